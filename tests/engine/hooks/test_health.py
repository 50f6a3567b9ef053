import copy
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper
from small_models import Lines, batch, build_distiller, loader, runner, segmentor, sgd, wide_resnet
from torch import nn

from overhaul.engine.hooks import HealthHook, SummaryHook
from overhaul.engine.hooks.health import doubts_of_teacher
from overhaul.engine.modes import CompileHook
from overhaul.engine.runner import bare_model
from overhaul.registry import MODELS

ROOT = Path(__file__).parents[3]
BATCHES = [batch(seed=seed) for seed in range(4)]


class Spoil(Hook):
    """Makes a number not finite in some iterations, counted from 0: a loss, or a gradient."""

    priority = 'VERY_HIGH'

    def __init__(self, iterations, value=float('nan'), loss=None):
        self.iterations, self.value, self.loss = iterations, value, loss

    def before_train(self, runner):
        model, self.now = bare_model(runner), False
        if self.loss is None:
            parameter = model.connectors[1].conv.weight
            parameter.register_hook(lambda gradient: gradient * (self.value if self.now else 1))
        else:
            connector = model.connectors[self.loss]
            connector.register_forward_hook(lambda _, __, out: out * self.value if self.now else out)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.now = runner.iter in self.iterations


class Weights(Hook):
    """Copies the weights before each step and after the last."""

    priority = 'LOWEST'

    def __init__(self):
        self.states = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        # Momentum and running statistics go on moving in the forward pass; weights must not.
        self.states.append({name: p.detach().clone() for name, p in bare_model(runner).named_parameters()})

    def after_train(self, runner):
        self.before_train_iter(runner, 0)


def training(folder, *hooks, model=None, epochs=1, optim_wrapper=None, batches=BATCHES, **more):
    return runner(folder, model or build_distiller(), batches, epochs, optim_wrapper or sgd(0.01), hooks, **more)


def stopped(run):
    with pytest.raises(ValueError) as stop:
        run.train()
    assert '\n' not in str(stop.value)
    return str(stop.value)


def test_healthy_training_is_left_alone(tmp_path):
    watched, plain = Weights(), Weights()
    run = training(tmp_path / 'a', HealthHook(), SummaryHook(False), watched, randomness=dict(seed=0))
    lines = Lines(run)
    run.train()
    training(tmp_path / 'b', SummaryHook(False), plain, randomness=dict(seed=0)).train()
    for name, value in watched.states[-1].items():
        assert torch.equal(value, plain.states[-1][name])
    assert not [line for line in lines.messages if 'tap' in line and 'The ' in line]
    assert 'steps_skipped' not in run.message_hub.runtime_info
    assert not run.optim_wrapper.optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize('value', ['nan', 'inf'])
def test_loss_that_is_not_finite_stops_the_training_and_is_named(tmp_path, value):
    run = training(
        tmp_path, Spoil([2], float(value), loss=1), HealthHook(),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False), sampler_seed=None))
    message = stopped(run)
    assert message.startswith(f'Iteration 3: distill.loss_block3.0.bn1 is {value}. ')
    assert message.count(' is nan') + message.count(' is inf') == 1
    assert 'on_nonfinite=skip' in message
    assert {path.name for path in tmp_path.glob('*.pth')} == {'iter_1.pth', 'iter_2.pth'}


@pytest.mark.parametrize('value', ['nan', 'inf'])
def test_gradient_that_is_not_finite_stops_the_training_and_is_named(tmp_path, value):
    message = stopped(training(tmp_path, Spoil([1], float(value)), HealthHook()))
    assert re.match(r'Iteration 2: the gradient of connectors\.1\.conv\.weight is (nan|inf)\. The', message)


@pytest.mark.parametrize('spoil', [Spoil([1, 2]), Spoil([1, 2], loss=1), Spoil([1, 2], float('inf'), loss=0)],
                         ids=['gradient', 'loss', 'infinite loss'])
def test_skipped_steps_move_no_weight_and_are_counted(tmp_path, spoil):
    weights = Weights()
    run = training(tmp_path, copy.copy(spoil), HealthHook('skip'), weights)
    lines = Lines(run)
    run.train()
    moves = [any(not torch.equal(before[name], after[name]) for name in before)
             for before, after in zip(weights.states, weights.states[1:])]
    assert moves == [True, False, False, True]
    assert all(value.isfinite().all() for value in weights.states[-1].values())
    assert lines.one('Iteration 2: ').endswith('Steps skipped so far: 1.')
    assert lines.one('Iteration 3: ').endswith('Steps skipped so far: 2.')
    assert lines.one('2 steps were skipped')
    assert run.message_hub.get_info('steps_skipped') == 2


def test_the_count_goes_on_after_a_resume(tmp_path):
    saving = dict(checkpoint=dict(type='CheckpointHook', interval=1), sampler_seed=None)
    training(tmp_path, Spoil([1, 2]), HealthHook('skip'), default_hooks=saving).train()
    run = training(tmp_path / 'resumed', Spoil([5]), HealthHook('skip'), epochs=2, default_hooks=saving,
                   load_from=str(tmp_path / 'epoch_1.pth'), resume=True)
    run.train()
    assert run.message_hub.get_info('steps_skipped') == 3


def test_accumulated_gradient_is_skipped_as_a_whole(tmp_path):
    weights, wrapper = Weights(), sgd(0.01)
    wrapper.accumulative_counts = 2
    run = training(tmp_path, Spoil([0]), HealthHook('skip'), weights, optim_wrapper=wrapper)
    run.train()
    first, *_, last = weights.states
    middle = weights.states[2]
    assert all(torch.equal(first[name], middle[name]) for name in first)
    assert not all(torch.equal(last[name], middle[name]) for name in last)
    assert run.message_hub.get_info('steps_skipped') == 1


def test_skipping_without_end_is_stopped(tmp_path):
    batches = [batch(seed=seed) for seed in range(2)]
    run = training(tmp_path, Spoil(range(5, 1000)), HealthHook('skip'), batches=batches, epochs=60)
    assert stopped(run).startswith('Iteration 105: ')


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('on_nonfinite', ['stop', 'skip'])
def test_overflow_in_float16_is_none(tmp_path, monkeypatch, fused, on_nonfinite):
    # mmengine's wrapper refuses the CPU; its scaler works there.
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.GradScaler',
                        lambda **kwargs: torch.amp.GradScaler('cpu', **kwargs))
    monkeypatch.setattr(AmpOptimWrapper, 'optim_context', lambda self, model: torch.autocast('cpu', torch.bfloat16))
    weights = Weights()
    wrapper = ConfigDict(**{**sgd(0.01), 'type': 'AmpOptimWrapper'})
    wrapper.optimizer.fused = fused
    run = training(tmp_path, Spoil([1], float('inf')), HealthHook(on_nonfinite), weights, optim_wrapper=wrapper)
    run.train()
    first, second, third, fourth, _ = weights.states
    assert all(torch.equal(second[name], third[name]) for name in second)
    for before, after in ((first, second), (third, fourth)):
        assert not all(torch.equal(before[name], after[name]) for name in before)
    assert run.optim_wrapper.loss_scaler.get_scale() == 2 ** 15  # of 2 ** 16, halved at the overflow
    assert 'steps_skipped' not in run.message_hub.runtime_info


def test_compiled_step(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, 'compile', functools.partial(torch.compile, backend='eager'))
    run = training(tmp_path, Spoil([1]), HealthHook(), CompileHook())
    assert 'Iteration 2: the gradient of connectors.1.conv.weight is nan' in stopped(run)


def test_a_step_that_mmengine_compiles_with_the_optimizer_in_it(tmp_path):
    run = training(tmp_path, Spoil([1, 2]), HealthHook('skip'), cfg=dict(compile=dict(backend='eager')))
    run.train()
    assert run.message_hub.get_info('steps_skipped') == 2


def test_the_compiler_is_not_loaded_before_it_is_needed():
    code = 'import sys, overhaul.engine.hooks; sys.exit("torch._dynamo" in sys.modules)'
    assert subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=ROOT).returncode == 0


# ---------------------------------------------------------------------------------------------------------------------
# Before the first step


def doubts(folder, model, **settings):
    run = training(folder, HealthHook(**settings), SummaryHook(), model=model, batches=BATCHES[:1],
                   val_dataloader=loader([batch(seed=seed) for seed in range(20, 60)]), val_cfg=dict(),
                   val_evaluator=dict(type='Accuracy'))
    lines = Lines(run)
    run.train()
    return [line for line in lines.messages if line.startswith('The ') or ' margins of ' in line]


def test_teacher_at_chance():
    class Data:
        metainfo = dict(classes='abcde')

        def __len__(self):
            return 100

    assert not list(doubts_of_teacher(MODELS.build(wide_resnet()), {'accuracy/top1': 33.}, Data()))  # 20 + 3 * 4
    (doubt, ) = doubts_of_teacher(MODELS.build(wide_resnet()), {'accuracy/top1': 31.}, Data())
    assert doubt.startswith('The teacher has 69.00 % error, which is chance for 5 classes')
    assert list(doubts_of_teacher(MODELS.build(segmentor()), {'mIoU': 20., 'aAcc': 90.}, Data()))
    assert not list(doubts_of_teacher(MODELS.build(segmentor()), {'mIoU': 21., 'aAcc': 90.}, Data()))


@pytest.mark.parametrize('side, other', [('teacher', 'student'), ('student', 'teacher')])
def test_tap_behind_a_relu(tmp_path, side, other):
    # The second convolution of a pre-activation block is fed by one.
    taps = [{side: 'backbone.block2.0.conv2:input', other: 'backbone.block3.0.bn1'}]
    (found, ) = doubts(tmp_path, build_distiller(taps=taps))
    assert found.startswith(f'The {side} tap "backbone.block2.0.conv2:input" has no negative value (0 to ')


def test_student_whose_blocks_begin_at_zero_is_not_behind_a_relu(tmp_path):
    # As mmpretrain's ResNets, which leave it to the training to bring in the negative values.
    taps = [dict(teacher='backbone.block3.0.bn1', student='backbone.block2.0.conv2:input')]
    model = build_distiller(taps=taps)
    nn.init.zeros_(model.student.backbone.bn1.weight)
    model.student.init_weights = lambda: None
    assert not [doubt for doubt in doubts(tmp_path, model) if 'negative' in doubt]


def test_tap_that_is_constant(tmp_path):
    model = build_distiller()
    for name in ('weight', 'bias'):
        nn.init.zeros_(getattr(model.student.backbone.block3[0].bn1, name))
    model.student.init_weights = lambda: None
    assert doubts(tmp_path, model)[0] == (
        'The student tap "backbone.block3.0.bn1" is 0 everywhere, and carries nothing. Tap another module.')


def test_margin_above_zero(tmp_path):
    model = build_distiller()
    model.margins[1].margin[:3] = 0.25
    (found, ) = doubts(tmp_path, model)
    assert found.startswith('3 margins of the teacher tap "backbone.block3.0.bn1" are above 0, up to 0.25')


def test_distillation_that_drowns_the_task(tmp_path):
    model = build_distiller(distill_loss=dict(loss_weight=100.))
    (found, ) = doubts(tmp_path, model)
    ratio = float(re.search(r', (\S+) times the task loss', found)[1])
    assert ratio > 1000
    assert not doubts(tmp_path / 'b', build_distiller(distill_loss=dict(loss_weight=100.)), largest_ratio=2 * ratio)


def test_a_doubt_stops_the_training_where_that_is_wanted(tmp_path):
    model = build_distiller()
    model.margins[1].margin[:3] = 0.25
    with pytest.raises(ValueError, match='margins of the teacher tap.+default_hooks.health.on_doubt=warn'):
        doubts(tmp_path, model, on_doubt='stop')


def test_tap_that_is_not_finite(tmp_path):
    model = build_distiller()
    model.teacher.backbone.block2[0].bn1.bias.data[0] = float('inf')
    model.init_weights = lambda: None
    with pytest.raises(ValueError, match=r'The teacher tap "backbone.block2.0.bn1" has values that are not finite'):
        doubts(tmp_path, model, on_doubt='stop')


@pytest.mark.parametrize('settings', [dict(on_nonfinite='warn'), dict(on_doubt='skip')])
def test_wrong_setting(settings):
    with pytest.raises(ValueError, match=r"HealthHook\(on_\w+='\w+'\): give '\w+' or '\w+'\."):
        HealthHook(**settings)


# ---------------------------------------------------------------------------------------------------------------------
# Several processes

IN_EACH_PROCESS = """
import sys

import torch
from mmengine import dist
from mmengine.hooks import Hook
from small_models import Lines, batch, build_distiller, runner, sgd

from overhaul import compat
from overhaul.engine.hooks import HealthHook
from overhaul.engine.runner import bare_model


class Spoil(Hook):
    priority = 'VERY_HIGH'

    def before_train(self, runner):
        if what == 'margin' and dist.get_rank() == 1:
            bare_model(runner).margins[0].margin.fill_(0.5)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if what == 'loss' and dist.get_rank() == 1 and runner.iter == 1:
            outputs['loss'] = torch.tensor(float('nan'))


torch.distributed.init_process_group('gloo')
for what in ('loss', 'margin'):
    file = f'{sys.argv[1]}/{what}{dist.get_rank()}'
    run = runner(
        file + '_work_dir', build_distiller(), [batch(seed=seed) for seed in range(4)], 1, sgd(0.01),
        [HealthHook(on_doubt='stop'), Spoil()], launcher='pytorch',
        cfg=dict(model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None)))
    try:
        run.train()
    except ValueError as error:
        open(file, 'w').write(str(error))
del run
compat.leave_launcher()
"""


def test_what_one_process_finds_stops_all(tmp_path, python):
    script = tmp_path / 'script.py'
    script.write_text(IN_EACH_PROCESS)
    subprocess.run(
        [python, '-W', 'ignore', '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2',
         str(script), str(tmp_path)],
        env={**os.environ, 'PYTHON_EXEC': python, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}'},
        check=True, timeout=120,
        capture_output=True)
    messages = {name: (tmp_path / name).read_text() for name in ('loss0', 'loss1', 'margin0', 'margin1')}
    assert messages['loss0'].startswith('Iteration 2: a loss or gradient is not finite in another process.')
    assert messages['loss1'].startswith('Iteration 2: the loss is nan.')
    assert messages['margin0'] == messages['margin1']
    assert messages['margin0'].startswith('32 margins of the teacher tap "backbone.block2.0.bn1" are above 0')
