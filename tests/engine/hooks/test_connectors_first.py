import copy

import pytest
import torch
from mmengine.hooks import Hook
from small_models import batch, build_distiller, build_model, runner, save_teacher, sgd, wide_resnet

LR = 0.007
GROUPS = dict(custom_keys=dict(head=dict(lr_mult=10), connectors=dict(lr_mult=10)))


class Recorder(Hook):
    """Notes after every hook of the package what the optimizer step is about to use, and what it leaves."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.rates, self.momenta, self.scheduled, self.states = [], [], [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        optimizer = runner.optim_wrapper.optimizer
        self.rates.append(rates_of(runner.model, optimizer))
        self.momenta.append(len(optimizer.state))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.scheduled.append(rates_of(runner.model, runner.optim_wrapper.optimizer))
        self.states.append({name: value.clone() for name, value in runner.model.state_dict().items()})


def rates_of(model, optimizer):
    """The learning rates of backbone, head and connectors, each one value."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {}
    for group in optimizer.param_groups:
        for parameter in group['params']:
            name = names[id(parameter)]
            part = 'connectors' if name.startswith('connectors') else name.split('.')[1]
            rates.setdefault(part, set()).add(group['lr'])
    return {part: values.pop() for part, values in rates.items() if len(values) == 1}


def distilling(tmp_path, batches, epochs, hook=None, paramwise=GROUPS, model=None, schedule=None):
    hook = hook or dict(type='overhaul.ConnectorsFirstHook', epochs=1)
    recorder = Recorder()
    if model is None:
        model = build_distiller(teacher_checkpoint=save_teacher(tmp_path, wide_resnet(2)))
    run = runner(tmp_path, model, batches, epochs, sgd(LR, paramwise_cfg=paramwise), [hook, recorder], schedule)
    return run, recorder


def test_rates_of_the_three_parts_while_and_after_connectors_train_alone(tmp_path):
    run, recorder = distilling(tmp_path, [batch(seed=seed) for seed in range(2)], epochs=2)
    run.train()
    alone = dict(backbone=0, head=0, connectors=pytest.approx(LR))
    together = dict(backbone=LR, head=pytest.approx(10 * LR), connectors=pytest.approx(10 * LR))
    assert recorder.rates == [alone, alone, together, together]
    assert recorder.scheduled == [together] * 4  # what the schedule and the log see
    assert recorder.momenta[0] == recorder.momenta[2] == 0 < recorder.momenta[1]


def test_the_student_keeps_its_weights_meanwhile_and_its_statistics_move(tmp_path):
    run, recorder = distilling(tmp_path, [batch(seed=seed) for seed in range(3)], epochs=2)
    run.model.init_weights()
    before = copy.deepcopy(run.model.state_dict())
    trained = dict(run.model.named_parameters())
    run.train()
    end_of_phase, end = recorder.states[2], recorder.states[5]
    for name, value in before.items():
        if name.startswith('student') and name in trained:
            assert torch.equal(end_of_phase[name], value), name
            assert not torch.equal(end[name], value), name
        elif not name.startswith('margins'):
            assert not torch.equal(end_of_phase[name], value), name  # connectors, running statistics


def test_result_is_that_of_the_two_optimizers_of_the_official_code(tmp_path):
    batches = [batch(seed=seed) for seed in range(3)]
    total = 2 * len(batches)
    schedule = dict(type='overhaul.PolyLR', power=0.9, eta_min=0, begin=0, end=total, by_epoch=False)
    run, _ = distilling(tmp_path, batches, epochs=2, schedule=schedule)
    run.model.init_weights()
    reference = copy.deepcopy(run.model).train()
    run.train()

    settings = dict(lr=LR, momentum=0.9, nesterov=True, weight_decay=5e-4)
    first = torch.optim.SGD(reference.connectors.parameters(), **settings)
    student = reference.student
    second = torch.optim.SGD(
        [dict(params=part.parameters()) for part in (student.backbone, student.head, reference.connectors)], **settings)
    for step in range(total):
        rate = LR * (1 - step / total)**0.9
        optimizer = first if step < len(batches) else second
        for group, factor in zip(optimizer.param_groups, (1, 10, 10)):
            group['lr'] = rate * factor
        reference.zero_grad()
        reference.parse_losses(reference(*batches[step % len(batches)], mode='loss'))[0].backward()
        optimizer.step()
    ours, theirs = run.model.state_dict(), reference.state_dict()
    for name, value in theirs.items():
        assert torch.allclose(ours[name], value, rtol=1e-4, atol=1e-6), name


def test_epochs_and_factor_are_arguments(tmp_path):
    hook = dict(type='overhaul.ConnectorsFirstHook', epochs=2, lr_factor=0.5)
    run, recorder = distilling(tmp_path, [batch()], epochs=3, hook=hook)
    run.train()
    assert [rates['connectors'] / LR for rates in recorder.rates] == pytest.approx([5, 5, 10])
    assert [rates['backbone'] / LR for rates in recorder.rates] == [0, 0, 1]
    assert [momenta > 0 for momenta in recorder.momenta] == [False, True, False]


def test_connectors_without_groups_of_their_own_are_refused(tmp_path):
    model = build_distiller(teacher_checkpoint=save_teacher(tmp_path, wide_resnet(2)))
    run, _ = distilling(tmp_path, [batch()], epochs=1, paramwise=None, model=model)
    with pytest.raises(ValueError, match='custom_keys.connectors=dict\\(lr_mult=10\\)'):
        run.train()


def test_a_student_that_trains_alone_is_left_alone(tmp_path):
    model = build_model(wide_resnet())
    hook = dict(type='overhaul.ConnectorsFirstHook', epochs=1)
    before = model.backbone.conv1.weight.clone()
    optimizer = sgd(LR)
    run = runner(tmp_path, model, [batch()] * 2, 2, optimizer, [hook])
    optimizer_states = []

    class States(Hook):
        priority = 'VERY_LOW'

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            groups = runner.optim_wrapper.optimizer.param_groups
            optimizer_states.append((groups[0]['lr'], len(runner.optim_wrapper.optimizer.state) > 0))

    run.register_hook(States())
    run.train()
    assert optimizer_states == [(LR, False), (LR, True), (LR, True), (LR, True)]
    assert not torch.equal(run.model.backbone.conv1.weight, before)
