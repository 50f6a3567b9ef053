"""Every config that ships: is it what its name says, and does it run, on tiny data in the format of the real ones?"""

import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import mmengine
import mmseg
import pytest
import torch
from golden import parameter_count
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from small_models import OF_MMDET
from tiny_data import write_cifar100, write_imagenet, write_voc, write_voc_boxes

from overhaul import CIFAR100
from overhaul.engine import dry_run, starting_weights
from overhaul.files.checkpoints import read_checkpoint
from overhaul.files.names import to_model_keys
from overhaul.files.settings import read_config
from overhaul.registry import MODELS, build

REPOSITORY = Path(__file__).parents[1]
# The one of a folder, without labels, is in tests/engine/test_without_labels.py.
PATHS = {path.stem: path for path in sorted((REPOSITORY / 'configs').glob('[!f]*.py'))}
# Those of detection need mmdet: their tests are the last of this file.
DETECTION = {name: path for name, path in PATHS.items() if name.startswith(OF_MMDET)}
CONFIGS = {name: path for name, path in PATHS.items() if name not in DETECTION}

# <data>_<teacher>_<student>, then what is special about it.
NAME = re.compile(
    r'(?P<data>[a-z]+\d*)_(?P<teacher>[a-z]+\d+(_\d)?)(_(?P<student>[a-z]+\d*(_\d)?))?(_(?P<special>mmseg|unlabelled))?')
NETWORKS = {
    'cifar100': dict(
        wrn28_4='wrn28_4', wrn28_2='wrn28_2', wrn16_4='wrn16_4', wrn16_2='wrn16_2', r56='cifar_resnet56',
        pyramid200='pyramid200', pyramid110='pyramid110'),
    'imagenet': dict(r152='resnet152', r50='resnet50', mobilenet='mobilenet_v1'),
    'voc': dict(r101='deeplab_resnet101', r18='deeplab_resnet18', mbv2='deeplab_mobilenetv2'),
}
CLASSES = dict(cifar100=100, imagenet=1000, voc=21, digits=10, digitscenes=11)
EMBEDDED, SEGMENTATION = ('digits', 'digitscenes'), ('voc', 'digitscenes')
# Learning rate, weight decay and epochs of the official scripts, and the GPUs of its README or of the paper.
RECIPES = dict(cifar100=(0.1, 5e-4, 200, 1), imagenet=(0.1, 1e-4, 100, 8), voc=(0.007, 5e-4, 50, 2))
BATCH = 2
# By hand: stem; for each of the blocks 16 -> 16, 16 -> 32, 32 -> 64 two batch norms, two convolutions and, where the
# width changes, the shortcut; last batch norm; classifier of ten.
WRN10_1 = (
    3 * 16 * 9 + (2 * 16 + 16 * 16 * 9 + 2 * 16 + 16 * 16 * 9) + (2 * 16 + 16 * 32 * 9 + 2 * 32 + 32 * 32 * 9 + 16 * 32)
    + (2 * 32 + 32 * 64 * 9 + 2 * 64 + 64 * 64 * 9 + 32 * 64) + 2 * 64 + 64 * 10 + 10)
SMALL = dict(r34=(16, (3, 4, 6)), r18=(8, (2, 2, 2)))  # of the scenes of digits: width, and blocks of each stage


def conv(inputs, outputs, size):
    return inputs * outputs * size**2 + 2 * outputs  # with its batch norm


def small_resnet(width, blocks):
    """Parameters of a ResNet of the scenes of digits, counted by hand."""
    total, inputs = conv(3, width, 7), width
    for stage, count in enumerate(blocks):
        outputs = width * 2**stage
        total += conv(inputs, outputs, 3) + (2 * count - 1) * conv(outputs, outputs, 3)
        total += conv(inputs, outputs, 1) if outputs != inputs else 0
        inputs = outputs
    return total


def small_deeplab(width, blocks):
    """Those of a DeepLabV3+ on it."""
    pyramid = 2 * conv(4 * width, 2 * width, 1) + 3 * conv(4 * width, 2 * width, 3) + conv(10 * width, 2 * width, 1)
    fusion = conv(2 * width + width // 2, 2 * width, 3) + conv(2 * width, 2 * width, 3)
    return small_resnet(width, blocks) + pyramid + conv(width, width // 2, 1) + fusion + 2 * width * 11 + 11


def small_gfl(width, blocks):
    """Those of a GFL on it."""
    neck, towers = conv(4 * width, 2 * width, 3), 2 * conv(2 * width, 2 * width, 3)
    # A score for each of ten digits, and for each side a distribution over nine distances, times a scale.
    return small_resnet(width, blocks) + neck + towers + (2 * width * 9 + 1) * (10 + 4 * 9) + 1


def parts(name):
    """Data, teacher, student and special part of a config's name."""
    match = NAME.fullmatch(name)
    assert match, f'{name} is not <data>_<teacher>_<student>'
    return match.group('data', 'teacher', 'student', 'special')


@pytest.mark.parametrize('name', CONFIGS)
def test_the_data_are_those_of_the_name_and_the_docstring_gives_a_command(name):
    data = parts(name)[0]
    cfg = read_config(CONFIGS[name])
    dataset = cfg.train_dataloader.dataset
    types = {part.type for part in dataset.get('datasets', [dataset.get('dataset', dataset)])}
    assert types == {dict(
        cifar100='overhaul.CIFAR100', imagenet='overhaul.ImageNet', voc='overhaul.PascalVOC',
        digits='overhaul.Digits', digitscenes='overhaul.DigitScenes')[data]}
    assert cfg.data_preprocessor.get('num_classes', CLASSES[data]) == CLASSES[data]
    command = rf'^    (python tools/train\.py|tools/dist_train\.sh) configs/{name}\.py'
    assert re.search(command, CONFIGS[name].read_text(), re.MULTILINE)


@pytest.mark.parametrize('name', [name for name in CONFIGS if not name.startswith('digits')])
def test_the_recipe_is_that_of_the_official_scripts(name):
    rate, decay, epochs, gpus = RECIPES[parts(name)[0]]
    cfg = read_config(CONFIGS[name])
    # Settings (e) and (f) of the paper have half the batch.
    batch = dict(cifar100=64 if 'pyramid' in name else 128, imagenet=256, voc=12)[parts(name)[0]]
    assert cfg.train_dataloader.batch_size * gpus == cfg.auto_scale_lr.base_batch_size == batch
    assert cfg.auto_scale_lr.enable
    assert cfg.optim_wrapper.optimizer.to_dict() == dict(
        type='SGD', lr=rate, momentum=0.9, nesterov=True, weight_decay=decay)
    assert cfg.train_cfg.max_epochs == epochs


@pytest.mark.parametrize('name', [name for name in CONFIGS if not name.startswith('digits')])
def test_a_batch_is_one_tensor_with_the_values_of_single_images(name):
    # And goes to a GPU in one copy.
    cfg = small_config(name, '')
    preprocessor = MODELS.build(dict(cfg.data_preprocessor, _scope_=cfg.default_scope))
    dry_run.prepare(cfg)
    batch = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
    assert isinstance(batch['inputs'], torch.Tensor) and batch['inputs'].dtype == torch.uint8
    whole, single = (batch['inputs'], list(batch['inputs']))
    torch.manual_seed(0)
    whole = preprocessor(dict(batch, inputs=whole), training=True)['inputs']
    torch.manual_seed(0)
    assert torch.equal(whole, preprocessor(dict(batch, inputs=single), training=True)['inputs'])


# Type of a component -> what is set for a run that is small. Whatever is not here runs as in the config.
SMALLER = {
    'mmpretrain.RandomResizedCrop': dict(scale=64),
    'mmpretrain.ResizeEdge': dict(scale=72),
    'mmpretrain.CenterCrop': dict(crop_size=64),
    'overhaul.DigitScenes': dict(length=16),
    'mmseg.RandomCrop': dict(crop_size=(65, 65)),
    'mmseg.Resize': dict(scale=(65, 1000)),
    'Pad': dict(size=(65, 65)),
    'mmseg.SegDataPreProcessor': dict(size=(65, 65)),
}
RANDOM_RESIZE = {'voc': [(40, 1000), (90, 1000)], 'mmseg': (256, 64)}
INPUT_SIZE = dict(cifar100=(32, 32), imagenet=(64, 64), voc=(65, 65), digits=(16, 16), digitscenes=(64, 64))


def small_config(name, work_dir):
    """The config with small images and batches, and quiet."""
    data, _, _, special = parts(name)
    cfg = read_config(CONFIGS[name])
    for part in components(cfg._cfg_dict):
        part.update(SMALLER.get(part.type, {}))
        if part.type == 'RandomResize' and data == 'voc':
            part.scale = RANDOM_RESIZE[special or data]
    if 'teacher' in cfg.model:
        cfg.model.input_size = INPUT_SIZE[data]
    cfg.train_dataloader.batch_size = BATCH
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    cfg.merge_from_dict(dict(work_dir=str(work_dir), log_level='WARNING'))
    return cfg


def components(part):
    """Every dict with a type in a config, outer ones first."""
    if isinstance(part, dict):
        if 'type' in part:
            yield part
        part = list(part.values())
    if isinstance(part, (list, tuple)):
        for child in part:
            yield from components(child)


@pytest.mark.parametrize('name', CONFIGS)
def test_the_dry_run_needs_neither_data_nor_files_nor_a_connection(name, tmp_path, monkeypatch):
    def no_download(*_, **__):
        raise AssertionError('A dry run downloads nothing.')
    monkeypatch.setattr(torch.hub, 'download_url_to_file', no_download)
    monkeypatch.chdir(tmp_path)
    cfg = small_config(name, tmp_path / 'work')
    dry_run.prepare(cfg)
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 2
    assert math.isfinite(runner.message_hub.get_scalar('train/loss').current())
    assert next(iter(runner.message_hub.get_info('last_result')['metrics'].values())) >= 0
    assert not list(tmp_path.rglob('*.pth'))


def test_the_command_line_makes_a_dry_run(tmp_path, python):
    command = [python, REPOSITORY / 'tools/train.py', CONFIGS['digits_wrn16_2_wrn10_1'], '--dry-run']
    run = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(REPOSITORY)}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert 'Dry run: ok. 2 training steps and 1 validation step' in run.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(('part', 'config'), [
    ('teacher', 'deeplabv3plus_r101-d8_4xb4-20k_voc12aug-512x512'),
    ('student', 'deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024')])
def test_the_weights_of_mmseg_fit(part, config):
    cfg = read_config(CONFIGS['voc_r101_r18_mmseg'])
    mmseg_model = Config.fromfile(Path(mmseg.__path__[0]) / f'.mim/configs/deeplabv3plus/{config}.py').model
    mmseg_model.decode_head.num_classes = 21
    with torch.device('meta'):
        ours, theirs = (build(model, part, scope='mmseg').state_dict() for model in (cfg.model[part], mmseg_model))
    shapes = {name: value.shape for name, value in to_model_keys(theirs).items()
              if not name.startswith('auxiliary_head.')}
    assert {name: value.shape for name, value in ours.items()} == shapes


def test_the_teacher_of_mmseg_is_the_one_that_its_model_zoo_lists():
    url = read_config(CONFIGS['voc_r101_r18_mmseg']).model.teacher_checkpoint
    metafile = Path(mmseg.__path__[0]) / '.mim/configs/deeplabv3plus/metafile.yaml'
    (entry, ) = [model for model in mmengine.load(metafile)['Models'] if model['Weights'] == url]
    assert entry['Name'] == 'deeplabv3plus_r101-d8_4xb4-20k_voc12aug-512x512'


def write_data(cfg, data, root, monkeypatch):
    """Write a tiny dataset to ``root`` and let the config read it."""
    if data == 'cifar100':
        monkeypatch.setattr(CIFAR100, 'train_list', [['train', None]])  # without the checksums of the real files
        monkeypatch.setattr(CIFAR100, 'test_list', [['test', None]])
        write_cifar100(root, train=2 * BATCH, test=6)
    elif data == 'imagenet':
        write_imagenet(root, train=2 * BATCH, val=6)
    elif data == 'voc':
        write_voc(root, train=1, aug=1, val=2)
    for part in components(cfg._cfg_dict):
        if 'data_root' in part:
            part.data_root = str(root)


class Recorder(Hook):
    """Keeps the weights as training finds them, and the losses of each step."""

    def __init__(self):
        self.steps = []

    def before_train(self, runner):
        self.weights = sums(runner.model)
        self.teacher = sums(getattr(runner.model, 'teacher', torch.nn.Module()))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.steps.append({name: value.item() for name, value in outputs.items() if 'loss' in name})


def sums(module):
    return {name: value.double().sum().item() for name, value in module.state_dict().items()}


@pytest.mark.parametrize('name', CONFIGS)
def test_it_trains_and_evaluates(name, tmp_path, monkeypatch):
    data = parts(name)[0]
    cfg = small_config(name, tmp_path / 'work')
    write_data(cfg, data, tmp_path / 'data', monkeypatch)
    for part in components(cfg._cfg_dict):
        if (part.get('init_cfg') or {}).get('type') == 'Pretrained':
            part.init_cfg = None
    if data in EMBEDDED:
        cfg.train_cfg.update(max_iters=2, val_interval=2)
    else:
        epochs = 2 if data == 'voc' else 1  # VOC trains only the connectors in its first epoch
        cfg.train_cfg.update(max_epochs=epochs, val_interval=epochs)
        cfg.model.teacher_checkpoint = None
    cfg.default_hooks.checkpoint.interval = 2 if data in (*EMBEDDED, 'voc') else 1
    runner = Runner.from_cfg(cfg)
    check_networks(name, runner.model)
    recorder = Recorder()
    runner.register_hook(recorder)
    runner.train()

    assert len(recorder.steps) == 2
    for losses in recorder.steps:
        check_losses(losses, cfg, data)
    after = sums(runner.model)
    still = [name for name, value in runner.model.named_parameters() if recorder.weights[name] == after[name]]
    # A vector that begins at zero and gets no gradient stays, and there are not many of those.
    assert len(still) < 0.1 * len(after) and not any(name.endswith('conv1.weight') for name in still)
    assert sums(getattr(runner.model, 'teacher', torch.nn.Module())) == recorder.teacher

    metrics = runner.message_hub.get_info('last_result')['metrics']
    expected = dict(digits={'accuracy/top1'}, **dict.fromkeys(SEGMENTATION, {'aAcc', 'mIoU', 'mAcc'}))
    assert set(metrics) == expected.get(data, {'accuracy/top1', 'accuracy/top5'})
    assert all(0 <= value <= 100 for value in metrics.values())
    check_optimizer(runner, data, cfg)
    check_checkpoint(runner, data, tmp_path / 'work')
    shutil.rmtree(tmp_path)  # checkpoints are large


def check_networks(name, model):
    """Teacher and student are those of the name. A plain model is a teacher."""
    data, *networks, special = parts(name)
    models = [model.teacher, model.student] if networks[1] else [model]
    for network, model in zip(networks, models):
        head = model.decode_head if data in SEGMENTATION else model.head
        assert head.num_classes == CLASSES[data]
        if special == 'mmseg':
            assert type(model.backbone).__name__ == 'ResNetV1c' and model.backbone.depth == int(network[1:])
        elif network == 'wrn10_1':
            assert count(model) == WRN10_1
        elif data == 'digitscenes':
            assert count(model) == small_deeplab(*SMALL[network])
        elif data == 'digits':  # a hundred classes less ninety
            assert count(model) == parameter_count(network) - 90 * (128 + 1)
        else:
            assert count(model) == parameter_count(NETWORKS[data][network])


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def check_losses(losses, cfg, data):
    assert all(math.isfinite(value) for value in losses.values())
    if 'teacher' not in cfg.model:
        assert set(losses) == ({'loss', 'decode.loss_ce'} if data in SEGMENTATION else {'loss'})
        return
    task = {'decode.loss_ce'} if data in SEGMENTATION else {'loss_task'}
    distillation = {key for key in losses if key.startswith('distill.loss_')}
    assert set(losses) == {'loss'} | task | distillation
    assert len(distillation) == len(cfg.model.taps)
    assert all(losses[key] > 0 for key in task | distillation)
    assert losses['loss'] == pytest.approx(sum(losses[key] for key in task | distillation), rel=1e-5)


def check_optimizer(runner, data, cfg):
    """Each parameter of student and connectors is in it once, none of the teacher, at the scaled rate of the recipe."""
    names = {id(parameter): name for name, parameter in runner.model.named_parameters()}
    groups = runner.optim_wrapper.optimizer.param_groups
    optimized = [names[id(parameter)] for group in groups for parameter in group['params']]
    assert sorted(optimized) == sorted(names.values())
    if data in EMBEDDED:
        return
    rate, decay, _, _ = RECIPES[data]
    for group in groups:
        for parameter in group['params']:
            tenfold = data == 'voc' and names[id(parameter)].startswith(('student.decode_head', 'connectors'))
            expected = rate * (10 if tenfold else 1) * BATCH / cfg.auto_scale_lr.base_batch_size
            assert group['initial_lr'] == pytest.approx(expected)
            assert group['weight_decay'] == decay


def check_checkpoint(runner, data, work_dir):
    """It holds the student and not the teacher; VOC keeps its best mIoU as well."""
    last = Path((work_dir / 'last_checkpoint').read_text())
    weights = torch.load(last, weights_only=True)['state_dict']
    weights = {name.removeprefix('student.') for name in weights if not name.startswith(('connectors.', 'margins.'))}
    assert weights == set(getattr(runner.model, 'student', runner.model).state_dict())
    assert len(list(work_dir.glob('best_mIoU_*.pth'))) == (data == 'voc')


BACKBONES = dict(r50='ResNet', vgg16='SSDVGG', r34='ResNet', r18='ResNet', mobilenet='MobileNetV1')
# The head, its classes, and the weights of the taps.
DETECTORS = dict(
    ssd300=('SSDHead', 20, [1 / 8, 1 / 4, 1 / 2, 1]), retinanet=('RetinaHead', 80, [1 / 8, 1 / 4, 1 / 2, 1]),
    gfl=('GFLHead', 10, [1 / 4, 1 / 2, 1, 1]))


@pytest.mark.detection
@pytest.mark.parametrize('name', DETECTION)
def test_a_detector_is_that_of_the_name_and_learns_on_random_images(name, tmp_path, monkeypatch):
    detector, *networks = name.removesuffix('_unlabelled').split('_')[1:]
    head, classes, weights = DETECTORS[detector]
    cfg = read_config(PATHS[name], dict(log_level='WARNING', work_dir=str(tmp_path)))
    assert f' configs/{name}.py' in PATHS[name].read_text()
    cfg.train_dataloader.batch_size = BATCH
    if detector == 'retinanet':
        cfg.model.input_size = (64, 64)
    monkeypatch.chdir(tmp_path)  # where there is no data and no teacher
    dry_run.prepare(cfg)
    runner = Runner.from_cfg(cfg)
    models = [runner.model.teacher, runner.model.student] if networks[1:] else [runner.model]
    for model, network in zip(models, networks, strict=True):
        assert (type(model.bbox_head).__name__, model.bbox_head.num_classes) == (head, classes)
        assert type(model.backbone).__name__ == BACKBONES[network]
        assert getattr(model.backbone, 'depth', None) in (None, int(re.sub(r'[a-z]+', '', network) or 0))
    if networks[1:]:
        assert [tap.size for tap in runner.model.teacher_taps] == [tap.size for tap in runner.model.student_taps]
        assert runner.model.tap_weights == weights
    runner.train()
    assert runner.iter == 2 and math.isfinite(runner.message_hub.get_scalar('train/loss').current())


@pytest.mark.detection
def test_boxes_of_pascal_voc_come_to_the_detector_as_they_are_in_the_files(tmp_path):
    write_voc_boxes(tmp_path, trainval=3, test=2)
    cfg = read_config(PATHS['voc_ssd300_r50'])
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False, batch_size=2)
        for part in components(loader.dataset):
            if 'data_root' in part:
                part.data_root = str(tmp_path)
    init_default_scope('mmdet')
    train, val = (Runner.build_dataloader(loader, seed=0) for loader in (cfg.train_dataloader, cfg.val_dataloader))
    assert len(train.dataset) == 6 and len(val.dataset) == 2  # of both years, and of 2007
    batch = next(iter(train))
    assert batch['inputs'].shape == (2, 3, 300, 300)
    (sample, *_) = next(iter(val))['data_samples']
    assert sample.ori_shape == (64, 96) and sample.gt_instances.labels.tolist() == [0, 1]
    assert (sample.gt_instances.bboxes.tensor[:, 2] <= 96).all()  # not resized with the image


@pytest.mark.detection
@pytest.mark.parametrize('name', [name for name in DETECTION if name.startswith('digitdet')])
def test_a_detector_of_digits_trains_and_evaluates(name, tmp_path):
    cfg = read_config(PATHS[name], dict(log_level='WARNING', work_dir=str(tmp_path / 'work')))
    cfg.train_dataloader.batch_size = BATCH
    cfg.train_dataloader.dataset.length = cfg.val_dataloader.dataset.length = 4
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    cfg.default_hooks.checkpoint.interval = 2
    cfg.model.get('student', cfg.model).test_cfg.score_thr = 0  # or nothing is found after two steps
    runner = Runner.from_cfg(cfg)
    models = [runner.model.teacher, runner.model.student] if 'teacher' in cfg.model else [runner.model]
    for model, network in zip(models, name.removesuffix('_unlabelled').split('_')[2:], strict=True):
        assert count(model) == small_gfl(*SMALL[network])
    recorder = Recorder()
    runner.register_hook(recorder)
    runner.train()
    task = {'loss_cls', 'loss_bbox', 'loss_dfl'}
    distillation = {key for key in recorder.steps[0] if key.startswith('distill.')}
    assert len(distillation) == (4 if 'teacher' in cfg.model else 0)
    for losses in recorder.steps:
        assert set(losses) == {'loss'} | task | distillation
        assert all(0 < value < math.inf for value in losses.values())
    assert sums(getattr(runner.model, 'teacher', torch.nn.Module())) == recorder.teacher
    assert 'coco/bbox_mAP_50' in runner.message_hub.get_info('last_result')['metrics']
    check_optimizer(runner, 'digits', cfg)
    check_checkpoint(runner, 'digits', tmp_path / 'work')


@pytest.mark.detection
def test_the_teacher_of_boxes_begins_with_the_backbone_of_the_teacher_of_masks(tmp_path):
    cfg = read_config(PATHS['digitdet_gfl_r34'], dict(log_level='ERROR', work_dir=str(tmp_path)))
    cfg.train_dataloader.dataset.length = cfg.val_dataloader.dataset.length = 2
    masks = read_checkpoint(cfg.load_from)['state_dict']
    runner = Runner.from_cfg(cfg)
    starting_weights.prepare(runner)
    runner.load_or_resume()
    backbone = {name: value for name, value in runner.model.state_dict().items() if name.startswith('backbone.')}
    assert backbone.keys() == {name for name in masks if name.startswith('backbone.')}
    assert all(torch.equal(value, masks[name]) for name, value in backbone.items())
