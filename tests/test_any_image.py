"""Images of 1, 4 and 12 channels, from the list of taps to the exported student, as they lie on disk."""

import json
import re
import sys
from functools import cache
from itertools import count
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmcv.transforms import TRANSFORMS, BaseTransform
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from PIL import Image
from small_models import CLASSES, build_distiller, build_model, resnet, segmentor, wide_resnet

from overhaul import cli
from overhaul.engine import benchmark
from overhaul.files.parts import plain_model
from overhaul.files.settings import read_config
from overhaul.files.weights import load_weights
from overhaul.registry import MODELS, build
from overhaul.reports.logs import read_log

SIZE = (32, 32)
CHANNELS = {'gray': 1, 'RGB-D': 4, 'bands': 12}
PAIRS = [(task, kind) for task in ('classification', 'segmentation') for kind in CHANNELS]
# What takes long sees each number of channels and each task, but not all pairs of them.
DRAWN_IN_TRAINING, DRAWN_LATER = PAIRS[::2], PAIRS[1::2]
TAPS = [f'backbone.layer{stage}.1.relu:input' for stage in (1, 2)]

numbers = count()


@TRANSFORMS.register_module()
class LoadBands(BaseTransform):
    """Reads an image that is a folder with a file for each band. mmseg's loader of such images takes GDAL."""

    def transform(self, results):
        bands = [mmcv.imread(str(file), 'unchanged') for file in sorted(Path(results['img_path']).glob('*.tif'))]
        results['img'] = np.stack(bands, axis=-1).astype(np.float32)
        results['img_shape'] = results['ori_shape'] = SIZE
        return results


LOADING = {
    'gray': dict(type='LoadImageFromFile', color_type='grayscale'),
    'RGB-D': dict(type='LoadImageFromFile', color_type='unchanged'),
    'bands': dict(type='LoadBands')}


def write_image(path, kind, random):
    """Write an image: a gray PNG, a PNG whose fourth channel is the depth, or a 16-bit TIFF for each band."""
    if kind != 'bands':
        pixels = random.randint(0, 256, (*SIZE, CHANNELS[kind]), dtype=np.uint8)
        Image.fromarray(pixels.squeeze()).save(path.with_suffix('.png'))
        return
    path.mkdir()
    for band in range(12):  # reflectances of Sentinel-2, of which 10,000 is all of the light
        Image.fromarray(random.randint(0, 10001, SIZE, dtype=np.uint16)).save(path / f'B{band + 1:02d}.tif')


def write_data(folder, kind):
    """Write four images, with their labels and masks."""
    random = np.random.RandomState(0)
    for name in ('images', 'masks'):
        (folder / name).mkdir()
    suffix = '' if kind == 'bands' else '.png'
    for index in range(4):
        write_image(folder / f'images/{index}', kind, random)
        Image.fromarray(random.randint(0, CLASSES, SIZE, dtype=np.uint8)).save(folder / f'masks/{index}.png')
    (folder / 'labels.txt').write_text(''.join(f'{index}{suffix} {index}\n' for index in range(4)))
    (folder / 'names.txt').write_text('0\n1\n2\n3\n')
    return suffix


def preprocessor(task, channels, first=100.0):
    """Config of a data preprocessor whose numbers are another for each channel."""
    numbers = dict(mean=[first + 10 * i for i in range(channels)], std=[50.0 + i for i in range(channels)])
    if task == 'classification':
        return dict(type='ClsDataPreprocessor', **numbers)
    return dict(type='SegDataPreProcessor', **numbers, size=SIZE, seg_pad_val=255)


def network(task, width, channels):
    """Config of a ResNet-18 of two stages for images of so many channels."""
    stages = dict(num_stages=2, strides=(1, 2), dilations=(1, 1), in_channels=channels)
    if task == 'classification':
        model = resnet(width, out_indices=(1, ), **stages)
        model['head'].update(in_channels=2 * width)
    else:
        model = dict(segmentor(width, out_indices=(0, 1), **stages), train_cfg=dict(), test_cfg=dict(mode='whole'))
        model['decode_head'].update(in_channels=2 * width, in_index=1)
    return model


def write_config(folder, task, kind):
    """Write the data and the config of a distillation of a kind, and return the config's path."""
    suffix, channels = write_data(folder, kind), CHANNELS[kind]
    classification = task == 'classification'
    names = dict(classes=tuple('abcde'), palette=[[40 * i, 0, 99] for i in range(CLASSES)])
    if classification:
        pipeline = [LOADING[kind], dict(type='PackInputs')]
        dataset = dict(type='CustomDataset', data_root=str(folder), ann_file='labels.txt', data_prefix='images',
                       metainfo=names, pipeline=pipeline)
        evaluator = dict(type='Accuracy', topk=(1, ))
    else:
        pipeline = [LOADING[kind], dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
        dataset = dict(type='BaseSegDataset', data_root=str(folder), ann_file='names.txt', img_suffix=suffix,
                       data_prefix=dict(img_path='images', seg_map_path='masks'), metainfo=names, pipeline=pipeline)
        evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
    train, test = (dict(batch_size=2, num_workers=0, dataset=dataset,
                        sampler=dict(type='DefaultSampler', shuffle=shuffle)) for shuffle in (True, False))
    hooks = {name: dict(type=f'overhaul.{name.capitalize()}Hook') for name in ('calibrate', 'summary', 'health')}
    Config(dict(
        default_scope='mmpretrain' if classification else 'mmseg',
        data_preprocessor=preprocessor(task, channels),
        model=dict(
            type='overhaul.OverhaulDistiller', teacher=network(task, 8, channels),
            student=network(task, 4, channels), taps='auto', alpha='auto', input_size=SIZE),
        train_dataloader=train, val_dataloader=test, test_dataloader=test,
        val_evaluator=evaluator, test_evaluator=evaluator,
        train_cfg=dict(by_epoch=False, max_iters=2, val_interval=2), val_cfg=dict(), test_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
            logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False), **hooks),
        custom_hooks=[dict(type='overhaul.PictureHook')] if (task, kind) in DRAWN_IN_TRAINING else [],
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
        log_processor=dict(by_epoch=False))).dump(folder / 'config.py')
    return folder / 'config.py'


def overhaul(command, *arguments):
    # A name of its own, because mmengine keeps one log per name in a process.
    named = ['--cfg-options', f'experiment_name=any_image{next(numbers)}'] if command in ('train', 'test') else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', ['overhaul'])
        cli.main([command, *map(str, arguments), *named])


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Give, for a task and a kind of images, the folder with config.py and the work directory of its training."""
    @cache
    def train(task, kind):
        folder = tmp_path_factory.mktemp('any_image')
        overhaul('train', write_config(folder, task, kind), '--work-dir', folder / 'work')
        return folder

    return train


def pixels(folder, kind, index):
    """Return an image (C, H, W) as its files have it, in the order of OpenCV."""
    if kind == 'bands':
        files = [folder / f'images/{index}/B{band:02d}.tif' for band in range(1, 13)]
        return np.stack([np.asarray(Image.open(file)) for file in files]).astype(float)
    image = np.asarray(Image.open(folder / f'images/{index}.png')).astype(float)
    return image[None] if kind == 'gray' else image.transpose(2, 0, 1)[[2, 1, 0, 3]]


@pytest.mark.parametrize(('task', 'kind'), PAIRS)
def test_all_channels_of_the_files_reach_teacher_and_student_normalised(trained, task, kind):
    folder = trained(task, kind)
    cfg = read_config(folder / 'config.py')
    init_default_scope(cfg.default_scope)
    model = build_distiller(**{**cfg.model, 'alpha': 1}, data_preprocessor=cfg.data_preprocessor)
    assert model.renormalize is None
    seen = []
    for network in (model.teacher, model.student):
        network.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    data = next(iter(Runner.build_dataloader(cfg.test_dataloader)))
    model(**model.data_preprocessor(data, True), mode='loss')
    channels = np.arange(CHANNELS[kind])[:, None, None]
    expected = np.stack([(pixels(folder, kind, i) - (100 + 10 * channels)) / (50 + channels) for i in range(2)])
    assert len(seen) == 2
    for images in seen:
        np.testing.assert_allclose(images.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('task', 'kind'), PAIRS)
def test_training_finds_the_taps_and_alpha_and_validates(trained, task, kind):
    folder = trained(task, kind)
    log = read_log(folder / 'work')
    assert list(log.validation) == [2] and log.teacher is not None
    assert list(log.tap_losses) == [tap.removeprefix('backbone.').removesuffix(':input') for tap in TAPS]
    assert all(np.isfinite(row['loss']) for row in log.training.values()) and len(log.training) == 2
    text = next((folder / 'work').glob('*/*.log')).read_text()
    ratio = float(re.search(r'Alpha set to .*\(([\d.]+) times it\)', text, re.DOTALL)[1])
    assert 10 < ratio < 40  # 20 is what alpha is made for, over more than this batch
    drawn = {path.name for path in (folder / 'work').rglob('vis_image/*.png')}
    assert drawn == ({'features_2.png', 'pre_activations_2.png'} if (task, kind) in DRAWN_IN_TRAINING else set())


@pytest.mark.parametrize(('task', 'kind'), PAIRS)
def test_taps_are_listed(trained, task, kind, capsys):
    overhaul('taps', trained(task, kind) / 'config.py')
    listed = capsys.readouterr().out
    assert 'Images of 32x32.' in listed
    for tap, weight in zip(TAPS, ('1 / 2', '1')):
        assert f"dict(teacher='{tap}', student='{tap}', loss_weight={weight})," in listed


@pytest.mark.parametrize(('task', 'kind'), DRAWN_LATER)
def test_dry_run(trained, task, kind, capsys):
    overhaul('train', trained(task, kind) / 'config.py', '--dry-run')
    assert 'Dry run: ok. 2 training steps and 1 validation step, ' in capsys.readouterr().out


@pytest.mark.parametrize(('task', 'kind'), PAIRS)
def test_test_measures_what_the_training_measured(trained, task, kind, tmp_path):
    folder = trained(task, kind)
    overhaul('test', folder / 'config.py', folder / 'work/iter_2.pth', '--work-dir', tmp_path)
    metrics = json.loads(next(tmp_path.glob('*/*.json')).read_text())
    (expected, ) = read_log(folder / 'work').validation.values()
    name = 'accuracy/top1' if task == 'classification' else 'mIoU'
    assert metrics[name] == expected[name]


@pytest.mark.parametrize(('task', 'kind'), PAIRS)
def test_the_exported_student_is_loaded_by_its_own_package(trained, task, kind, tmp_path, capsys):
    folder = trained(task, kind)
    config, checkpoint = folder / 'config.py', folder / 'work/iter_2.pth'
    graph = tmp_path / 'student.onnx' if (task, kind) in DRAWN_IN_TRAINING else None
    overhaul('export', config, checkpoint, tmp_path / 'student.pth', *(['--onnx', graph] if graph else []))
    told = capsys.readouterr().out
    assert 'Overhaul need not be installed there.' in told
    if task == 'classification':
        from mmpretrain import get_model
        model = get_model(str(tmp_path / 'student.py'), pretrained=str(tmp_path / 'student.pth'))
    else:
        from mmseg.apis import init_model
        model = init_model(str(tmp_path / 'student.py'), str(tmp_path / 'student.pth'), device='cpu')
    student = build(plain_model(read_config(config)), 'student')
    load_weights(student, str(checkpoint))
    images = torch.randn(2, CHANNELS[kind], *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = student.eval()(images, mode='tensor')
        assert torch.equal(model.eval()(images, mode='tensor'), expected)
    assert model.data_preprocessor.mean.flatten().tolist() == [100 + 10 * i for i in range(CHANNELS[kind])]
    if graph:
        onnxruntime = pytest.importorskip('onnxruntime')
        given, = onnxruntime.InferenceSession(graph).run(None, dict(images=images.numpy()))
        if task == 'segmentation':
            expected = torch.nn.functional.interpolate(expected, SIZE, mode='bilinear', align_corners=False)
        np.testing.assert_allclose(given, expected.numpy(), rtol=1e-4, atol=1e-5)
        assert f'images (N, {CHANNELS[kind]}, ' in told


@pytest.mark.parametrize('variant', ['floor', 'eager'])
@pytest.mark.parametrize(('task', 'kind'), PAIRS)
def test_benchmark_steps(trained, task, kind, variant, monkeypatch):
    built = []
    build_model = benchmark._build
    monkeypatch.setattr(benchmark, '_build', lambda *arguments: built.append(build_model(*arguments)) or built[-1])
    step = benchmark.build_step(read_config(trained(task, kind) / 'config.py'), variant, 2, 'cpu')
    student = built[-1].student if variant == 'eager' else built[-1]
    weight = next(module for module in student.modules() if isinstance(module, torch.nn.Conv2d)).weight
    before = weight.detach().clone()
    step()
    assert weight.shape[1] == CHANNELS[kind]
    assert weight.isfinite().all() and not torch.equal(weight, before)


@pytest.mark.parametrize(('task', 'kind'), DRAWN_IN_TRAINING)
def test_predictions_are_drawn(trained, task, kind, tmp_path):
    folder = trained(task, kind)
    checkpoint = folder / 'work/iter_2.pth'
    overhaul('plot', 'predictions', folder / 'config.py', f'distilled={checkpoint}', '--images', 2, '--out',
             tmp_path / 'predictions.png')
    assert min(cv2.imread(str(tmp_path / 'predictions.png')).shape[:2]) > 400


@pytest.mark.parametrize(('task', 'kind'), DRAWN_LATER)
def test_features_are_drawn(trained, task, kind, tmp_path):
    folder = trained(task, kind)
    overhaul('plot', 'features', folder / 'config.py', folder / 'work/iter_2.pth', '--channels', 1, '--out',
             tmp_path / 'features.png')
    assert min(cv2.imread(str(tmp_path / 'features.png')).shape[:2]) > 500


def with_channels(task, channels, width=4, own=False):
    """Config of a network for images of so many channels, with a data preprocessor of its own where asked."""
    model = network(task, width, channels)
    return dict(model, data_preprocessor=preprocessor(task, channels)) if own else model


@pytest.mark.parametrize(('teacher', 'student', 'own', 'beside', 'message'), [
    (3, 4, False, None, 'An image has 4 channels for the student and 3 for the teacher, and both see the same images'),
    (12, 1, False, None, 'An image has 1 channel for the student and 12 for the teacher'),
    (3, 12, True, None, 'An image has 12 channels for the student and 3 for the teacher'),
    (3, 12, False, 12, 'has a mean for 12 channels, and its first layer takes 3. Correct the in_channels of the'),
    (4, 4, False, 12, 'has a mean for 12 channels, and its first layer takes 4. Correct the in_channels of the'),
])
@pytest.mark.parametrize('task', ['classification', 'segmentation'])
def test_a_teacher_of_other_channels_is_refused(task, teacher, student, own, beside, message):
    with pytest.raises(ValueError) as error:
        build_distiller(
            teacher=with_channels(task, teacher, own=own), student=with_channels(task, student, own=own), taps='auto',
            input_size=SIZE, **({'data_preprocessor': preprocessor(task, beside)} if beside else {}))
    assert message in str(error.value) and '\n' not in str(error.value)


def test_a_teacher_of_twelve_channels_may_lack_its_head(tmp_path):
    cfg = with_channels('classification', 12, 8)
    state = {name: value for name, value in build_model(cfg).state_dict().items() if not name.startswith('head')}
    torch.save(dict(state_dict=state), tmp_path / 'teacher.pth')
    model = build_distiller(
        teacher=cfg, student=with_channels('classification', 12), taps='auto', input_size=SIZE,
        teacher_checkpoint=str(tmp_path / 'teacher.pth'))
    assert not model.teacher_is_whole and len(model.teacher_taps) == 2


def vision_transformer(channels):
    arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
    return dict(
        _scope_='mmpretrain', type='ImageClassifier',
        backbone=dict(type='VisionTransformer', arch=arch, img_size=32, patch_size=8, in_channels=channels),
        head=dict(type='VisionTransformerClsHead', num_classes=CLASSES, in_channels=16))


def timm_backbone(channels):
    backbone = dict(type='TIMMBackbone', model_name='resnet10t', in_channels=channels, features_only=True)
    return dict(wide_resnet(), backbone=backbone, head=dict(type='LinearClsHead', num_classes=CLASSES, in_channels=512))


OTHERS = {
    'transformer': (vision_transformer, 12, ['backbone.ln1']),
    'timm classifier': (
        lambda channels: dict(_scope_='mmpretrain', type='TimmClassifier', model_name='resnet10t', in_chans=channels,
                              num_classes=CLASSES),
        4, ['model.act1:input', *(f'model.layer{stage}.0.act2:input' for stage in (1, 2, 3))]),
    'timm backbone': (
        timm_backbone, 4, ['backbone.timm_model.act1:input',
                           *(f'backbone.timm_model.layer{stage}.0.act2:input' for stage in (1, 2, 3))]),
}


@pytest.mark.parametrize('kind', OTHERS)
def test_other_networks_have_their_taps(kind):
    pytest.importorskip('timm')
    cfg, channels, taps = OTHERS[kind]
    model = build_distiller(teacher=cfg(channels), student=cfg(channels), taps='auto', input_size=SIZE)
    assert [tap.path for tap in model.student_taps] == taps
    with torch.no_grad():
        features = model.teacher_features(torch.randn(2, channels, *SIZE))
    assert [feature.shape[1] for feature in features] == [tap.channels for tap in model.teacher_taps]


@pytest.mark.parametrize('backbone', [
    dict(type='WideResNet', depth=10, widen_factor=1), dict(type='CifarResNet', depth=8), dict(type='MobileNetV1'),
    dict(type='PyramidNet', depth=11, alpha=8, bottleneck=True)], ids=lambda cfg: cfg['type'])
def test_backbones_of_this_package_take_any_number_of_channels(backbone):
    default, bands = (MODELS.build(dict(_scope_='overhaul', **backbone, **more)) for more in ({}, {'in_channels': 12}))
    sizes = [[parameter.shape for parameter in network.parameters()] for network in (default, bands)]
    assert sizes[0][0][1] == 3 and sizes[1][0][1] == 12 and sizes[0][1:] == sizes[1][1:]
    assert bands(torch.randn(2, 12, *SIZE))[0].shape == default(torch.randn(2, 3, *SIZE))[0].shape
