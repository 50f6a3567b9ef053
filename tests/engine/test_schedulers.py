"""Learning rates of the schedules that ship, as the runner applies them step by step, against the official scripts."""

from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner
from small_models import batch, loader, wide_resnet
from torch import nn

from overhaul import OverhaulDistiller
from overhaul.engine.schedulers import PolyLR
from overhaul.files.settings import read_config

CONFIGS = Path(__file__).parents[2] / 'configs'


class Idle(OverhaulDistiller):
    """Has the parameters of a distillation, and a step that costs nothing."""

    def train_step(self, data, optim_wrapper):
        optim_wrapper.update_params(sum(next(part.parameters()).sum() for part in parts(self)))
        return {'loss': torch.zeros(())}


def parts(model):
    """Backbone, head and connectors."""
    student = model.student
    return student.backbone, student.decode_head if hasattr(student, 'decode_head') else student.head, model.connectors


def idle(segmentation):
    network = wide_resnet()
    if segmentation:
        head = dict(type='FCNHead', in_channels=64, in_index=0, channels=3, num_convs=1, num_classes=3)
        network = dict(_scope_='mmseg', type='EncoderDecoder', backbone=network['backbone'], decode_head=head)
    taps = [dict(teacher='backbone.bn1', student='backbone.bn1')]
    with pytest.warns(UserWarning, match='no teacher_checkpoint'):
        return Idle(network, network, taps, input_size=(16, 16))


def train(folder, name, iterations, epochs, segmentation=False):
    """Run the schedule of a config for some epochs. Returns the runner and, for each step, what the optimizer used.

    That is the rates of the groups of backbone, head and connectors, and whether there was momentum.
    """
    cfg = read_config(str(CONFIGS / f'{name}.py'))
    steps = []
    run = Runner(
        model=idle(segmentation), work_dir=str(folder), train_dataloader=loader([batch(1, pixels=1)] * iterations),
        train_cfg=dict(cfg.train_cfg, max_epochs=epochs), optim_wrapper=cfg.optim_wrapper,
        param_scheduler=cfg.param_scheduler, custom_hooks=cfg.get('custom_hooks'),
        default_hooks=dict(checkpoint=None, sampler_seed=None, logger=None, timer=None),
        default_scope=cfg.default_scope, experiment_name=str(folder), log_level='ERROR')
    optimizer = run.optim_wrapper = run.build_optim_wrapper(run.optim_wrapper)
    optimizer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: steps.append((rates(run.model, optimizer), len(optimizer.state) > 0)))
    run.train()
    return run, steps


def rates(model, optimizer):
    """The rates of backbone, head and connectors; all parameters of a part have the same."""
    rate_of = {id(parameter): group['lr'] for group in optimizer.param_groups for parameter in group['params']}
    found = [{rate_of[id(parameter)] for parameter in part.parameters()} for part in parts(model)]
    assert [len(values) for values in found] == [1, 1, 1]
    return tuple(values.pop() for values in found)


def approximately(*values):
    return pytest.approx(values, rel=1e-9)


def test_voc_has_the_rates_of_the_official_script(tmp_path):
    iterations = 882
    run, steps = train(tmp_path, 'voc_r101_r18', iterations, epochs=2, segmentation=True)
    assert len(steps) == 2 * iterations
    # The first epoch trains connectors alone, at the plain rate.
    assert steps[0][0] == approximately(0, 0, 0.007)
    assert steps[881][0] == approximately(0, 0, 0.006874016212055112)
    assert steps[882][0] == approximately(0.006873873066176027, 0.06873873066176027, 0.06873873066176027)
    assert [number for number, (_, momentum) in enumerate(steps) if not momentum] == [0, 882]
    # The rest of the schedule without the steps.
    (scheduler, ) = run.param_schedulers
    optimizer = run.optim_wrapper.optimizer
    optimizer.param_groups[:] = map(dict, optimizer.param_groups)  # are quicker than mmengine's
    for step in range(2 * iterations, 50 * iterations):
        if step == 25 * iterations:
            assert rates(run.model, optimizer) == approximately(
                0.003751207118877026, 0.03751207118877026, 0.03751207118877026)
        if step == 50 * iterations - 1:
            assert rates(run.model, optimizer) == approximately(
                4.6249102517105546e-07, 4.6249102517105546e-06, 4.6249102517105546e-06)
        scheduler.step()


@pytest.mark.parametrize('name', ['cifar100_wrn28_4_wrn16_4', 'cifar100_pyramid200_pyramid110'])
def test_cifar_drops_at_epochs_100_and_150_with_fresh_momentum(tmp_path, name):
    _, steps = train(tmp_path, name, iterations=1, epochs=200)
    expected = [0.1] * 100 + [0.01] * 50 + [0.001] * 50
    assert [rate for rate, _ in steps] == [approximately(value, value, value) for value in expected]
    assert [epoch for epoch, (_, momentum) in enumerate(steps) if not momentum] == [0, 100, 150]


@pytest.mark.parametrize('name', ['imagenet_r152_r50', 'imagenet_r50_mobilenet'])
def test_imagenet_drops_where_the_epoch_counted_from_1_is_30_60_and_90(tmp_path, name):
    _, steps = train(tmp_path, name, iterations=1, epochs=100)
    expected = [0.1 * 0.1**(epoch // 30) for epoch in range(1, 101)]
    assert [rate for rate, _ in steps] == [approximately(value, value, value) for value in expected]
    assert [epoch for epoch, (_, momentum) in enumerate(steps) if not momentum] == [0]


@pytest.mark.parametrize(('name', 'lr', 'weight_decay', 'epochs'), [
    ('cifar100_wrn28_4_wrn16_4', 0.1, 5e-4, 200), ('cifar100_pyramid200_pyramid110', 0.1, 5e-4, 200),
    ('imagenet_r152_r50', 0.1, 1e-4, 100), ('voc_r101_r18', 0.007, 5e-4, 50)])
def test_optimizers_are_those_of_the_official_scripts(name, lr, weight_decay, epochs):
    cfg = read_config(str(CONFIGS / f'{name}.py'))
    assert cfg.optim_wrapper.optimizer == dict(
        type='SGD', lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    assert cfg.train_cfg.max_epochs == epochs


@pytest.mark.parametrize(('begin', 'power', 'eta_min'), [(0, 0.9, 0), (4, 0.9, 0), (0, 2, 0.5)])
def test_polynomial_decay_is_spread_over_all_iterations(begin, power, eta_min):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=2.0)
    scheduler = PolyLR(optimizer, power=power, eta_min=eta_min, begin=begin, end=begin + 10, by_epoch=False)
    values = []
    for _ in range(begin + 10):
        values.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        scheduler.step()
    decay = [eta_min + (2 - eta_min) * (1 - step / 10)**power for step in range(10)]
    assert values == pytest.approx([2.0] * begin + decay, rel=1e-9)
