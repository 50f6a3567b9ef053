"""What users of mmpretrain put around a model works around the distiller, and leaves the teacher out of it."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.optim import OptimWrapper
from small_models import CLASSES, batch, build_distiller, save_teacher, wide_resnet

from overhaul import Digits
from overhaul.files.checkpoints import read_checkpoint
from overhaul.files.parts import student_only
from overhaul.files.settings import read_config
from overhaul.registry import MODELS

ROOT = Path(__file__).parents[1]
CONFIG = """
_base_ = '{base}'
model = dict(student=dict(train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])))
optim_wrapper = dict(accumulative_counts=2)
train_cfg = dict(max_iters=40, val_interval=4)
custom_hooks = [
    dict(type='EMAHook', momentum=0.1, update_buffers=True),
    dict(type='EarlyStoppingHook', monitor='accuracy/top1', patience=2, min_delta=101.0)]
default_hooks = dict(checkpoint=dict(interval=4, max_keep_ckpts=1), logger=dict(interval=1))
tta_model = dict(type='AverageClsScoreTTA')
enlarge = dict(type='Resize', scale=(16, 16), interpolation='bilinear')
tta_pipeline = [enlarge, dict(type='TestTimeAug', transforms=[
    [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)], [dict(type='PackInputs')]])]
"""


def tool(name, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [str(ROOT / 'tools' / name), *map(str, arguments)])
        runpy.run_path(sys.argv[0], run_name='__main__')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with a config that has all of it, and the work directory of its training."""
    folder = tmp_path_factory.mktemp('pipelines')
    config = folder / 'augmented.py'
    config.write_text(CONFIG.format(base=ROOT / 'configs/digits_wrn16_2_wrn10_1.py'))
    tool('train.py', config, '--work-dir', folder / 'work')
    return folder


def test_early_stopping_ends_the_training_after_its_patience(folder):
    # The first validation sets the mark, which no other can beat by 101 %.
    assert (folder / 'work/last_checkpoint').read_text().endswith('iter_12.pth')


def test_moving_average_is_in_the_checkpoint_without_the_teacher(folder):
    checkpoint = read_checkpoint(folder / 'work/iter_12.pth')
    trained = {name.removeprefix('module.') for name in checkpoint['ema_state_dict']} - {'steps'}
    assert trained == set(checkpoint['state_dict'])
    assert {name.split('.')[0] for name in trained} == {'student', 'connectors', 'margins'}
    name = 'student.backbone.conv1.weight'
    assert not torch.equal(checkpoint['state_dict'][name], checkpoint['ema_state_dict'][f'module.{name}'])


def test_augmentation_at_test_time_averages_the_student_over_flips(folder):
    tool('test.py', folder / 'augmented.py', folder / 'work/iter_12.pth', '--tta', '--work-dir', folder / 'test')
    metrics = json.loads(next((folder / 'test').glob('*/*.json')).read_text())

    cfg = read_config(folder / 'augmented.py')
    student = MODELS.build(student_only(cfg)).eval()
    state = read_checkpoint(folder / 'work/iter_12.pth')['state_dict']
    student.load_state_dict({name.removeprefix('student.'): value for name, value in state.items()
                             if name.startswith('student.')})
    data = [item for item in Digits(split='test', test_mode=True, pipeline=cfg.test_pipeline)]
    images = torch.stack([item['inputs'] for item in data])
    labels = torch.tensor([item['data_samples'].gt_label.item() for item in data])
    with torch.no_grad():
        scores = sum(student(student.data_preprocessor(dict(inputs=inputs))['inputs']).softmax(1)
                     for inputs in (images, images.flip(3)))
    assert metrics['accuracy/top1'] == pytest.approx(100 * (scores.argmax(1) == labels).float().mean().item(), abs=1e-3)


def test_mixed_images_reach_teacher_and_student_alike(tmp_path):
    student = dict(wide_resnet(1), train_cfg=dict(augments=dict(type='Mixup', alpha=1.0)))
    student['data_preprocessor'] = dict(type='mmpretrain.ClsDataPreprocessor', num_classes=CLASSES)
    model = build_distiller(student=student, teacher_checkpoint=save_teacher(tmp_path, wide_resnet(2)))
    inputs, samples = batch()
    torch.manual_seed(0)
    data = model.data_preprocessor(dict(inputs=inputs, data_samples=samples), training=True)
    assert not torch.allclose(data['inputs'], model.data_preprocessor(dict(inputs=inputs))['inputs'])
    seen = []
    for network in (model.teacher, model.student):
        network.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    losses = model(**data, mode='loss')
    assert torch.equal(seen[0], data['inputs']) and torch.equal(seen[1], data['inputs'])
    assert losses['loss_task'] == model.student(**data, mode='loss')['loss']


def test_accumulated_gradient_is_the_mean_over_batches(tmp_path):
    teacher = save_teacher(tmp_path, wide_resnet(2))
    batches = [batch(seed=1), batch(seed=2)]
    expected = build_distiller(teacher_checkpoint=teacher)
    for images, samples in batches:
        (expected.parse_losses(expected(images, samples, mode='loss'))[0] / 2).backward()
    model = build_distiller(teacher_checkpoint=teacher)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0), accumulative_counts=2)
    wrapper.initialize_count_status(model, 0, 2)
    for images, samples in batches:
        model.train_step(dict(inputs=images, data_samples=samples), wrapper)
    for start, parameter, twin in zip(before, model.parameters(), expected.parameters()):
        torch.testing.assert_close(start - parameter, twin.grad, rtol=1e-4, atol=1e-5)
