"""What plain mmpretrain and mmseg load is loaded in a process that cannot import this package."""

import json
import os
import runpy
import subprocess
import sys
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from plain_process import WITHOUT_OVERHAUL
from small_models import build_model, of_each, resnet, segmentor, wide_resnet
from torch.torch_version import TorchVersion

from overhaul import PascalVOC
from overhaul.files import export
from overhaul.files.export import export_student, student_config
from overhaul.files.onnx_graph import OnnxGraph
from overhaul.files.settings import read_config
from overhaul.registry import DATASETS, MODELS
from overhaul.tasks import task_of

REPOSITORY = Path(__file__).parents[2]
TASKS = ['classification', 'segmentation']

PLAIN_PROCESS = f"""{WITHOUT_OVERHAUL}
import json

import numpy as np
import torch

task, config, weights = sys.argv[1:]
image = np.load('image.npy')
if task == 'segmentation':
    from mmseg.apis import inference_model, init_model
    model = init_model(config, weights, device='cpu')
    meta = model.dataset_meta
    answer = list(inference_model(model, image).pred_sem_seg.data.shape)
else:
    from mmpretrain import ImageClassificationInferencer, get_model
    model = get_model(config, pretrained=weights)
    meta = model._dataset_meta
    answer = ImageClassificationInferencer(model)(image)[0]['pred_scores'].tolist()
with torch.no_grad():
    torch.save(model.eval()(torch.load('images.pth'), mode='tensor'), 'logits.pth')
json.dump(dict(meta=meta, answer=answer), open('answer.json', 'w'))
"""


def deeplab():
    """Config of an mmseg DeepLabV3+ of its stock parts, with the loss of this package."""
    model = segmentor()
    model['decode_head'] = dict(
        type='DepthwiseSeparableASPPHead', in_channels=32, in_index=3, channels=8, dilations=(1, 2), c1_in_channels=4,
        c1_channels=4, num_classes=21, norm_cfg=dict(type='BN'), loss_decode=dict(type='overhaul.CrossEntropyPerImage'))
    return {**model, 'test_cfg': dict(mode='whole')}


@pytest.fixture(scope='module', params=TASKS)
def trained(request, tmp_path_factory):
    """A task, the student of a distillation, and the folder with its config.py and its checkpoint epoch_1.pth."""
    folder = tmp_path_factory.mktemp(request.param)
    segmentation = request.param == 'segmentation'
    teacher = deeplab() if segmentation else resnet()
    pretrained = dict(init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18'))
    student = {**teacher, 'backbone': {**teacher['backbone'], **pretrained}}
    tap = 'backbone.layer4.1.relu:input'
    dataset = REPOSITORY / f'configs/_base_/datasets/{"voc_aug_official" if segmentation else "cifar100"}.py'
    (folder / 'config.py').write_text(
        f'_base_ = {str(dataset)!r}\n'
        f'default_scope = {"mmseg" if segmentation else "mmpretrain"!r}\n'
        'custom_hooks = [dict(type="overhaul.CalibrateHook")]\n'
        f'model = dict(type="overhaul.OverhaulDistiller", teacher={teacher!r}, student={student!r},\n'
        f'    taps=[dict(teacher={tap!r}, student={tap!r})], input_size=(32, 32))\n')
    cfg = read_config(folder / 'config.py')
    cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with pytest.warns(UserWarning, match='no teacher_checkpoint'):
        distiller = MODELS.build({'_scope_': cfg.default_scope, **cfg.model})
    distiller.student.load_state_dict(build_model(teacher).state_dict())
    names = dict(classes=PascalVOC.METAINFO['classes'], palette=np.array(PascalVOC.METAINFO['palette']),
                 label_map=None, joints={'0': np.int64(3)})
    torch.save(dict(  # with what mmengine puts into a checkpoint and a bare torch.load refuses
        state_dict=distiller.state_dict(), meta=dict(epoch=1, **(dict(dataset_meta=names) if segmentation else {})),
        message_hub=dict(log_scalars=dict(loss=HistoryBuffer([1.0], [1])))), folder / 'epoch_1.pth')
    return request.param, distiller.student.eval(), folder


def run_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['export_student.py', *map(str, arguments)])
    runpy.run_path(str(REPOSITORY / 'tools/export_student.py'), run_name='__main__')


def test_the_answers_without_this_package_are_the_same_bit_by_bit(trained, tmp_path, monkeypatch, capsys):
    task, student, folder = trained
    run_tool(monkeypatch, folder / 'config.py', folder / 'epoch_1.pth', tmp_path / 'new/student.pth')
    assert 'Overhaul need not be installed there.' in capsys.readouterr().out
    assert 'overhaul.' not in (tmp_path / 'new/student.py').read_text()
    assert sorted(path.name for path in (tmp_path / 'new').iterdir()) == ['student.pth', 'student.py']

    random = np.random.RandomState(0)
    image = random.randint(0, 256, (32, 32, 3) if task == 'classification' else (40, 60, 3)).astype(np.uint8)
    np.save(tmp_path / 'image.npy', image)
    images = torch.randn(2, 3, 32, 32)
    torch.save(images, tmp_path / 'images.pth')
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    process = subprocess.run(
        [sys.executable, '-c', PLAIN_PROCESS, task, 'new/student.py', 'new/student.pth'], cwd=tmp_path,
        env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / 'logits.pth'), student(images, mode='tensor'))

    answer = json.loads((tmp_path / 'answer.json').read_text())
    if task == 'segmentation':
        assert answer['answer'] == [1, 40, 60]  # not at the size of the input, as voc_aug_official measures
        assert answer['meta'] == dict(
            classes=list(PascalVOC.METAINFO['classes']), palette=PascalVOC.METAINFO['palette'],
            joints={'0': 3})
    else:
        normalised = (image - np.array([125.3, 123.0, 113.9])) / np.array([63.0, 62.1, 66.7])
        with torch.no_grad():
            logits = student(torch.from_numpy(normalised).permute(2, 0, 1)[None].float(), mode='tensor')
        assert answer['answer'] == pytest.approx(logits.softmax(1)[0].tolist(), abs=1e-6)
        assert len(answer['meta']['classes']) == 100 and answer['meta']['classes'][0] == 'apple'


def test_the_student_alone_is_exported_likewise(trained, tmp_path):
    task, student, folder = trained
    torch.save(student.state_dict(), tmp_path / 'alone.pth')
    cfg = read_config(folder / 'config.py')
    cfg.model = cfg.model.student
    cfg.dump(tmp_path / 'alone.py')
    export_student(tmp_path / 'alone.py', tmp_path / 'alone.pth', tmp_path / 'one.pth')
    export_student(folder / 'config.py', folder / 'epoch_1.pth', tmp_path / 'other.pth')
    one, other = (torch.load(tmp_path / f'{name}.pth', weights_only=True) for name in ('one', 'other'))
    other['meta']['dataset_meta'].pop('joints', None)  # which the data of the config do not have
    assert one['meta'] == other['meta']
    assert one['state_dict'].keys() == other['state_dict'].keys() == student.state_dict().keys()
    assert all(torch.equal(value, other['state_dict'][name]) for name, value in one['state_dict'].items())
    one, other = (Config.fromfile(tmp_path / f'{name}.py')._cfg_dict for name in ('one', 'other'))
    assert one == other
    assert set(one) == {
        'default_scope', 'model', 'test_cfg', 'test_dataloader', 'test_evaluator', 'test_pipeline'}


@pytest.mark.quick
def test_the_graph_answers_as_the_model_for_other_batches_and_sizes(trained, tmp_path, onnxruntime):
    task, student, folder = trained
    report = export_student(
        folder / 'config.py', folder / 'epoch_1.pth', tmp_path / 'student.pth', tmp_path / 'graph.onnx')
    assert 'in onnxruntime within' in report
    assert sorted(path.name for path in tmp_path.iterdir()) == ['graph.onnx', 'student.pth', 'student.py']
    session = onnxruntime.InferenceSession(tmp_path / 'graph.onnx', providers=['CPUExecutionProvider'])
    for shape in [(1, 32, 32), (5, 32, 32)] if task == 'classification' else [(1, 65, 97), (4, 32, 48)]:
        images = torch.randn(shape[0], 3, *shape[1:])
        with torch.no_grad():
            if task == 'classification':
                expected = student(images, mode='tensor')
            else:
                metas = [dict(img_shape=shape[1:])] * shape[0]
                expected = student.encode_decode(images, metas)
                assert expected.shape == (shape[0], 21, *shape[1:])
        given = session.run(['logits'], dict(images=images.numpy()))[0]
        np.testing.assert_allclose(given, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_graph_that_is_not_the_model_is_refused(tmp_path, monkeypatch, onnxruntime):
    write = torch.onnx.export

    def write_wrongly(model, *arguments, **more):
        weight = model.module.model.head.fc.weight
        with torch.no_grad():
            weight.mul_(1.01)
        write(model, *arguments, **more)
        with torch.no_grad():
            weight.div_(1.01)

    monkeypatch.setattr(torch.onnx, 'export', write_wrongly)
    with pytest.raises(ValueError, match=r'is not the model: for images \(1, 3, 16, 16\).*differ by up to'):
        OnnxGraph(task_of(build_model(wide_resnet()).eval()), (16, 16)).write(tmp_path / 'graph.onnx')
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_no_graph_is_refused_in_one_sentence(tmp_path, onnxruntime):
    model = build_model(wide_resnet()).eval()
    model.head.fc.register_forward_hook(lambda module, images, logits: logits if logits.max() > 0 else -logits)
    with pytest.raises(ValueError, match='cannot write the ImageClassifier as a graph .GuardOn.*Leave --onnx out'):
        OnnxGraph(task_of(model), (16, 16)).write(tmp_path / 'graph.onnx')
    assert not list(tmp_path.iterdir())


def test_a_torch_that_cannot_write_graphs_is_told(monkeypatch):
    monkeypatch.setattr(torch, '__version__', TorchVersion('2.6.0+cpu'))
    with pytest.raises(ValueError, match='torch 2.7 or newer is needed, and this is 2.6.0'):
        OnnxGraph(task_of(build_model(resnet())), (16, 16))


DIGITS = REPOSITORY / 'configs/digits_wrn16_2.py'
DIGITS_WEIGHTS = REPOSITORY / 'overhaul/weights/digits_wrn16_2.pth'


def test_a_student_of_this_package_says_so_and_loads_where_it_is(tmp_path):
    report = export_student(DIGITS, DIGITS_WEIGHTS, tmp_path / 'student.pth')
    assert report.endswith('Overhaul must be installed there: WideResNet is of this package.')
    assert Config.fromfile(tmp_path / 'student.py').custom_imports.imports == ['overhaul.registry']
    from mmpretrain import get_model
    model = get_model(str(tmp_path / 'student.py'), pretrained=str(tmp_path / 'student.pth'))
    assert model._dataset_meta == dict(classes=list('0123456789'))
    expected = torch.load(DIGITS_WEIGHTS, weights_only=True)['state_dict']
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def types(part):
    if isinstance(part, dict):
        yield from [part['type']] if 'type' in part else []
        part = list(part.values())
    if isinstance(part, (list, tuple)):
        for child in part:
            yield from types(child)


@pytest.mark.parametrize(
    'path', of_each(sorted((REPOSITORY / 'configs').glob('*.py'))), ids=lambda path: path.stem)
def test_of_every_config_no_more_than_the_network_and_the_digits_remain(path):
    cfg = student_config(read_config(path))
    own = {name for name in types(cfg._cfg_dict) if name.startswith('overhaul.')}
    assert own <= {
        'overhaul.CifarResNet', 'overhaul.DeepLabV3PlusHead', 'overhaul.DigitScenes', 'overhaul.Digits',
        'overhaul.DilatedResNet', 'overhaul.MobileNetV1', 'overhaul.PyramidNet', 'overhaul.WideResNet'}
    assert 'Pretrained' not in types(cfg._cfg_dict)
    assert cfg.model.data_preprocessor.type.endswith(
        'DataPreProcessor' if path.stem.startswith(('voc_r101', 'digitscenes')) else 'DataPreprocessor')


def test_what_replaces_a_type_is_what_it_extends():
    for name, plain in export._PLAIN.items():
        registry = MODELS if MODELS.get(plain['type']) else DATASETS
        assert issubclass(registry.get(name), registry.get(plain['type']))


@pytest.mark.parametrize(('out', 'onnx', 'message'), [
    ('weights.pth', None, 'error: "weights.pth" would be written over, and it is read from'),
    ('config.pth', None, 'error: "config.py" would be written over, and it is read from'),
    ('other.pth', None, 'error: The config would be written over "other.py", which is no exported one'),
    ('folder.pth', None, 'error: "folder.pth" is a folder'),
    ('student.pth', 'folder.onnx', 'error: "folder.onnx" is a folder'),
    ('other.py/student.pth', None, 'error: "other.py/student.pth" cannot be written, for "other.py" is no folder'),
    ('student.pth', 'other.py/a/b.onnx', 'error: "other.py/a/b.onnx" cannot be written, for "other.py" is no folder'),
    ('student.pth', 'graph.onnx --size 0 16', 'error: --size is 0 16. Give a height and a width of 1 or more'),
    ('student.bin', None, 'error: "student.bin" does not end in .pth'),
    ('student.pth', 'graph.pb', 'error: "graph.pb" does not end in .onnx'),
    ('student.pth', 'graph.onnx', 'error: The graph of the ImageClassifier is for one size .* Add --size HEIGHT WIDTH'),
])
def test_a_mistake_is_one_paragraph_and_writes_nothing(out, onnx, message, tmp_path, monkeypatch, request):
    if onnx and onnx.startswith('graph.onnx'):
        request.getfixturevalue('onnxruntime')
    monkeypatch.chdir(tmp_path)
    Path('config.py').write_text(f'_base_ = {str(DIGITS)!r}')
    Path('weights.pth').write_bytes(DIGITS_WEIGHTS.read_bytes())
    Path('other.py').write_text('lr = 1')
    Path('folder.pth').mkdir()
    Path('folder.onnx').mkdir()
    before = {path.name: path.is_dir() or path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SystemExit, match=message):
        run_tool(monkeypatch, 'config.py', 'weights.pth', out, *(['--onnx', *onnx.split()] if onnx else []))
    assert {path.name: path.is_dir() or path.read_bytes() for path in tmp_path.iterdir()} == before


def test_without_the_packages_of_onnx_it_names_the_extra(tmp_path, monkeypatch):
    find = util.find_spec
    monkeypatch.setattr(util, 'find_spec', lambda name, *more: None if 'onnx' in name else find(name, *more))
    with pytest.raises(SystemExit, match=r'error: Without onnx and onnxscript .*overhaul\[onnx\]'):
        run_tool(monkeypatch, DIGITS, DIGITS_WEIGHTS, tmp_path / 'student.pth', '--onnx', tmp_path / 'graph.onnx',
                 '--size', 16, 16)
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    export_student(DIGITS, DIGITS_WEIGHTS, tmp_path / 'student.pth')
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(checkpoint, path):
        Path(path).write_bytes(b'PK')
        raise OSError('No space left on device')

    monkeypatch.setattr(torch, 'save', full_disk)
    with pytest.raises(OSError, match='No space left'):
        export_student(DIGITS, DIGITS_WEIGHTS, tmp_path / 'student.pth')
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
