"""Distillation without any label: what is trained, how it is followed, and what becomes of it."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner import Runner, load_checkpoint
from PIL import Image
from small_models import batch, build_distiller, runner, save_teacher, sgd, wide_resnet
from test_tools import CONFIG, TEACHER, log, records, run_in_process
from tiny_data import write_images

from overhaul import Digits
from overhaul.engine.hooks import ProbeFeaturesHook
from overhaul.files.checkpoints import read_checkpoint
from overhaul.files.settings import read_config
from overhaul.method import probe
from overhaul.registry import DATASETS, MODELS

FOLDER = Path(CONFIG).parent / 'folder_vits14_r18.py'
# The digits of the shipped teacher, as files.
DIGITS = f"""
_base_ = '{CONFIG}'
resize = [dict(type='Resize', scale=(16, 16), interpolation='bilinear'), dict(type='PackInputs')]
train_dataloader = dict(dataset=dict(_delete_=True, type='overhaul.ImageFolder', data_root='digits', pipeline=resize))
model = dict(
    student=dict(_delete_=True, type='ImageClassifier', backbone=dict(type='overhaul.WideResNet', depth=10,
                                                                      widen_factor=1), head=None),
    alpha='auto')
labelled = dict(
    batch_size=100, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='overhaul.Digits', split='test', indices=300, pipeline=resize))
custom_hooks = [dict(type='overhaul.ProbeFeaturesHook', held_out=labelled, labelled=labelled, interval=10)]
val_dataloader = val_evaluator = val_cfg = test_dataloader = test_evaluator = test_cfg = None
param_scheduler = None
train_cfg = dict(max_iters=20)
default_hooks = dict(checkpoint=dict(interval=20), logger=dict(interval=1))
"""


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('trained')
    (folder / 'digits').mkdir()
    for number, digit in enumerate(Digits(labels_per_class=20)):
        Image.fromarray(digit['img']).save(folder / f'digits/{number}.png')
    (folder / 'config.py').write_text(DIGITS)
    run_in_process(folder, 'train.py', 'config.py', '--work-dir', 'work')
    return folder


def test_the_features_become_better(trained):
    rows = [row for row in records(trained / 'work', 'val') if 'probe/neighbours' in row]
    first, last = rows
    assert last['probe/distillation_loss'] < first['probe/distillation_loss']
    assert last['probe/neighbours'] > 50  # of ten classes
    text = log(trained / 'work')
    assert re.search(r'Step 0: distillation loss [\d.]+; no task, for want of labels or a head', text)
    assert re.search(r'Features after 20 iterations: distillation_loss [\d.]+, neighbours [\d.]+', text)
    losses = {name for row in records(trained / 'work', 'train') for name in row if 'loss' in name}
    assert losses == {'loss', *(name for name in losses if name.startswith('distill.loss_'))}


def test_the_neighbours_are_those_that_a_search_by_hand_finds(trained):
    model = build_distiller(student=dict(wide_resnet(1), head=None))
    digits = DATASETS.build(dict(type='overhaul.Digits', split='test', pipeline=[dict(type='mmpretrain.PackInputs')]))
    data = [digits[i] for i in range(100)]
    hook = ProbeFeaturesHook(labelled={}, neighbours=1)
    hook._loaders = dict(labelled=[
        dict(inputs=[item['inputs'] for item in data], data_samples=[item['data_samples'] for item in data])])
    model.eval()
    with torch.no_grad():
        found = hook._share_of_neighbours(model)
        features = model.student.backbone(torch.stack([item['inputs'].float() for item in data]))[-1].mean((2, 3))
    features = torch.nn.functional.normalize(features).double().numpy()
    labels = np.array([int(item['data_samples'].gt_label) for item in data])
    from sklearn.model_selection import StratifiedKFold
    shares = []
    for train, test in StratifiedKFold(5).split(features, labels):
        nearest = train[(features[test] @ features[train].T).argmax(1)]
        shares.append((labels[nearest] == labels[test]).mean())
    assert found == pytest.approx(100 * np.mean(shares))


def test_the_backbone_is_written_for_any_pipeline(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    from overhaul.commands import export
    export.main(['config.py', 'work/iter_20.pth', 'backbone.pth', '--backbone'])
    told = capsys.readouterr().out
    assert "init_cfg=dict(type='Pretrained', checkpoint='backbone.pth', prefix='backbone.')" in told
    state = read_checkpoint('work/iter_20.pth')['state_dict']
    begun = wide_resnet(1)
    begun['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint='backbone.pth', prefix='backbone.')
    one, other = MODELS.build(begun), MODELS.build(wide_resnet(1))
    one.init_weights()
    load_checkpoint(other, 'backbone.pth', strict=False)  # what load_from does
    for name, value in one.backbone.state_dict().items():
        assert torch.equal(value, state[f'student.backbone.{name}'])
        assert torch.equal(value, other.backbone.state_dict()[name])
    assert not Path('backbone.py').exists()
    for arguments in (['--onnx', 'a.onnx'], ['--size', '16', '16']):
        with pytest.raises(SystemExit):
            export.main(['config.py', 'work/iter_20.pth', 'backbone.pth', '--backbone', *arguments])


def test_a_network_in_one_piece_becomes_a_backbone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('config.py').write_text(
        "default_scope = 'mmpretrain'\nmodel = dict(type='TimmClassifier', model_name='resnet18', num_classes=5)")
    model = MODELS.build(dict(type='mmpretrain.TimmClassifier', model_name='resnet18', num_classes=5))
    torch.save(dict(state_dict=model.state_dict()), 'whole.pth')
    from overhaul.commands import export
    export.main(['config.py', 'whole.pth', 'backbone.pth', '--backbone'])
    found = read_checkpoint('backbone.pth')['state_dict']
    assert torch.equal(found['backbone.conv1.weight'], model.model.conv1.weight)
    assert all(name.startswith('backbone.') for name in found)


def test_a_student_without_a_head_learns_from_labelled_images_too(tmp_path):
    images, samples = batch()
    teacher = save_teacher(tmp_path, wide_resnet(2))
    model = build_distiller(student=dict(wide_resnet(1), head=None), teacher_checkpoint=teacher)
    losses = model(images, samples, mode='loss')
    assert set(losses) == set(model.loss_names)
    whole = build_distiller(teacher_checkpoint=teacher)
    whole.load_state_dict(model.state_dict(), strict=False)
    expected = whole(images, samples, mode='loss')
    assert all(losses[name].item() == pytest.approx(expected[name].item(), rel=1e-5) for name in losses)
    strength = probe.measure(model, dict(inputs=list(images), data_samples=samples))
    assert strength.task_loss is None and strength.task_gradient == 0
    assert strength.loss_ratio == strength.distillation_loss > 0 and strength.distillation_gradient > 0


@pytest.mark.parametrize('arguments', [{}, dict(labelled={}, interval=0), dict(labelled={}, neighbours=0)])
def test_a_probe_of_nothing_is_refused(arguments):
    with pytest.raises(ValueError, match='nothing to measure on|give whole numbers above 0'):
        ProbeFeaturesHook(**arguments)


def test_a_probe_leaves_the_training_as_it_is(tmp_path):
    ends = []
    loader = dict(batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dict(
        type='overhaul.Digits', split='test', indices=60, pipeline=[
            dict(type='mmpretrain.Resize', scale=(16, 16)), dict(type='mmpretrain.PackInputs')]))
    for hooks in ([], [ProbeFeaturesHook(held_out=loader, labelled=loader, interval=1)]):
        model = build_distiller(student=dict(wide_resnet(1), head=None), teacher_checkpoint=None)
        runner(tmp_path / str(len(hooks)), model, [batch(), batch(seed=1)], 1, sgd(), hooks,
               randomness=dict(seed=0)).train()
        ends.append(model.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_dinov2_teaches_a_resnet_on_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images('images', 8, (60, 60))
    assert TEACHER.is_file()
    run_in_process(tmp_path, 'train.py', FOLDER, '--dry-run', options=[
        'train_dataloader.batch_size=2', 'model.input_size=(56,56)'])
    cfg = read_config(FOLDER, {
        'model.teacher_checkpoint': None, 'model.input_size': (56, 56), 'train_dataloader.batch_size': 4,
        'train_dataloader.num_workers': 0, 'train_dataloader.persistent_workers': False,
        'train_dataloader.dataset.data_root': 'images', 'train_dataloader.dataset.pipeline.1.scale': 56,
        'train_cfg.max_epochs': 1, 'work_dir': 'work', 'log_level': 'WARNING'})
    run = Runner.from_cfg(cfg)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.train()
    taps = [(tap.channels, tap.size) for tap in (*run.model.teacher_taps, *run.model.student_taps)]
    assert taps == [(384, (4, 4))] * 2 + [(256, (4, 4)), (512, (2, 2))]
    moved = [name for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])]
    assert 'student.backbone.conv1.weight' in moved and 'connectors.1.conv.weight' in moved
    assert Path('work/epoch_1.pth').is_file()
