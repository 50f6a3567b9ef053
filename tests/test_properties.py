"""What holds for all margins, all maps, all models: examples drawn by hypothesis, the same in every run."""

import copy
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from mmengine.hooks import EMAHook
from scipy.stats import norm, truncnorm
from small_models import batch, build_distiller, runner, save_teacher, segmentation_batch, segmentor, sgd, wide_resnet
from torch import nn

from overhaul.engine.hooks import CalibrateHook
from overhaul.engine.modes import ChannelsLastHook, CompileHook
from overhaul.method.losses import partial_l2
from overhaul.method.margins import margin_from_batch_norm
from overhaul.method.taps import Taps

settings.register_profile('same', derandomize=True, deadline=None, database=None, max_examples=100,
                          suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('same')


# Margins

def margin(weight, bias):
    return margin_from_batch_norm(*torch.tensor([weight, bias], dtype=torch.float64)[:, None]).item()


numbers = st.floats(-1e3, 1e3)
scales = st.floats(1e-3, 1e3)
means = st.floats(-6, 3)  # in deviations: where more than a thousandth of the responses are negative


@given(st.floats(-1e30, 1e30, allow_subnormal=False), st.floats(-1e30, 1e30, allow_subnormal=False))
def test_margin_is_never_positive_and_of_weights_as_they_come(weight, bias):
    for dtype in (torch.float32, torch.float64):
        found = margin_from_batch_norm(torch.tensor([weight], dtype=dtype), torch.tensor([bias], dtype=dtype))
        assert found.dtype == dtype and found.item() <= 0


@given(scales, means)
def test_margin_is_the_mean_of_the_negative_part_of_a_normal(deviation, mean):
    expected = truncnorm.mean(-float('inf'), -mean, loc=deviation * mean, scale=deviation)
    assert margin(deviation, deviation * mean) == pytest.approx(expected, rel=1e-7)


@given(scales, st.floats(norm.isf(1e-3) + 1e-9, 1e3))
def test_margin_is_three_deviations_below_zero_where_hardly_a_response_is_negative(deviation, mean):
    assert margin(deviation, deviation * mean) == pytest.approx(-3 * deviation)


@given(scales, means, means)
def test_margin_grows_with_the_bias(deviation, one, other):
    low, high = sorted((one, other))
    assert margin(deviation, deviation * low) <= margin(deviation, deviation * high) + 1e-9 * deviation


@given(numbers, scales, scales)
def test_margin_falls_with_the_deviation(bias, one, other):
    low, high = sorted((one, other))
    assume(bias / low < 3)
    assert margin(high, bias) <= margin(low, bias) + 1e-9 * high


@given(numbers, numbers, scales)
def test_margin_scales_with_the_feature_and_knows_no_sign_of_the_weight(weight, bias, scale):
    assume(weight == 0 or abs(bias / weight - norm.isf(1e-3)) > 1e-6)  # between the branches
    expected = pytest.approx(scale * margin(weight, bias), rel=1e-7, abs=1e-300)
    assert margin(scale * weight, scale * bias) == expected
    assert margin(-scale * weight, scale * bias) == expected


# Partial L2

@st.composite
def pairs(draw):
    """A student's and a teacher's map of one shape, with many values in common."""
    shape = draw(array_shapes(min_dims=2, max_dims=4, max_side=4))
    values = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0]) | st.integers(-10**9, 10**9).map(lambda n: n / 1e6)
    student, teacher = (torch.from_numpy(draw(arrays('float64', shape, elements=values))) for _ in range(2))
    return student, teacher


def squares(student, teacher):
    """What each element adds, as the paper's equation 3 has it."""
    return torch.where((student <= teacher) & (teacher <= 0), 0, (student - teacher)**2)


@given(pairs())
def test_partial_l2_and_its_gradient_are_those_of_the_equation(maps):
    student, teacher = maps
    student.requires_grad_()
    by_equation = squares(student, teacher).sum() / len(student)
    value = partial_l2(student, teacher)
    torch.testing.assert_close(value, by_equation, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (value, by_equation)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=0)


@given(pairs())
def test_partial_l2_is_a_part_of_l2_and_zero_only_where_nothing_is_to_be_learnt(maps):
    student, teacher = maps
    value = partial_l2(student, teacher)
    assert 0 <= value <= (student - teacher).square().sum() / len(student) * (1 + 1e-12)
    nothing = (student == teacher) | ((student < teacher) & (teacher <= 0))
    assert (value == 0) == bool(nothing.all())
    assert partial_l2(torch.where(nothing, student, teacher), teacher) == 0


# Taps

class Shifted(nn.Module):
    """Changes what it is given, and only in training, which a dry run does not see."""

    def forward(self, x):
        return x.add_(1) if self.training else x


# With _: what comes out is what goes in, the same tensor, changed in place or not.
MODULES = dict(
    conv=lambda: nn.Conv2d(3, 3, 3, padding=1), norm=lambda: nn.BatchNorm2d(3), relu=nn.ReLU,
    relu_=lambda: nn.ReLU(inplace=True), shared_=lambda: nn.ReLU(inplace=True),
    clamp_=lambda: nn.Hardtanh(-0.3, 0.3, inplace=True), shifted_=Shifted, same_=nn.Identity)
BETWEEN = ('keep', 'add', 'add_', 'halve_', 'halve_kept_')


class Program(nn.Module):
    """A chain of modules, and of what models do between them to a feature ``x`` and to one that they ``keep``."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        shared = MODULES['shared_']()
        for number, step in enumerate(steps):
            if step in MODULES:
                self.add_module(f'{step}{number}', shared if step == 'shared_' else MODULES[step]())
        self.last = nn.Conv2d(3, 3, 1)

    def forward(self, x, data_samples=None, mode='tensor'):
        kept = x
        for number, step in enumerate(self.steps):
            if step in MODULES:
                x = getattr(self, f'{step}{number}')(x)
            elif step == 'keep':
                kept = x
            elif step == 'add':
                x = x + kept
            elif step == 'add_':
                x += kept
            elif step == 'halve_':
                x *= 0.5
            elif step == 'halve_kept_':
                kept *= 0.5
        return self.last(x)


def by_hand(program, image):
    """Return what enters and leaves each module of a program at its last call, and the output. Changes no tensor.

    The names of one tensor share a list that holds its value.
    """
    x = kept = [image]
    seen, paths = {}, {module: path for path, module in program.named_modules()}
    for number, step in enumerate(program.steps):
        if step in MODULES:
            module = getattr(program, f'{step}{number}')
            seen[f'{paths[module]}:input'] = x[0]
            value = module(x[0].clone())
        elif step in ('add', 'add_'):
            value = x[0] + kept[0]
        elif step == 'halve_':
            value = x[0] * 0.5
        elif step == 'halve_kept_':
            kept[0] = kept[0] * 0.5
            continue
        else:
            kept = x
            continue
        if step.endswith('_'):
            x[0] = value
        else:
            x = [value]
        if step in MODULES:
            seen[paths[module]] = value
    return seen, program.last(x[0])


@settings(max_examples=300)
@given(st.lists(st.sampled_from([*MODULES, *BETWEEN]), min_size=1, max_size=10), st.booleans(), st.data())
def test_tap_reads_what_was_there_or_says_that_it_is_lost(steps, training, data):
    torch.manual_seed(0)
    program, image = Program(steps).train(training), torch.randn(2, 3, 4, 4)
    seen, output = by_hand(program, image)
    assume(seen)
    path = data.draw(st.sampled_from(sorted(seen)))
    taps = Taps(program, [path], 'student')
    taps.dry_run(program, (4, 4), stop_after_last=False)
    taps.start(program)
    assert torch.equal(program(image.clone()), output)  # it computes what it did before
    try:
        (feature, ) = taps.take()
    except ValueError as error:
        assert 'was changed in place after it was read' in str(error)
        assert training and 'shifted_' in steps
        return
    assert torch.equal(feature, seen[path])
    if feature.requires_grad:
        factor = torch.randn_like(feature)
        expected = torch.autograd.grad((seen[path] * factor).sum(), program.parameters(), materialize_grads=True)
        try:
            gradients = torch.autograd.grad((feature * factor).sum(), program.parameters(), materialize_grads=True)
        except RuntimeError as error:
            assert 'modified by an inplace operation' in str(error)
            return
        for gradient, by_reference in zip(gradients, expected):
            torch.testing.assert_close(gradient, by_reference)


# The distiller

def test_gradient_of_all_losses_is_the_numerical_one():
    """Along a random direction of each parameter of student and connectors, in float64."""
    model = build_distiller(distill_loss=dict(loss_weight=1e-2)).double().train()
    images, samples = batch(2)

    def loss():
        return sum(model.loss(images.double(), samples).values())

    loss().backward()
    step, generator = 1e-6, torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        with torch.no_grad():
            parameter += step * direction
            above = loss()
            parameter -= 2 * step * direction
            below = loss()
            parameter += step * direction
        numerical, written = (above - below) / (2 * step), (parameter.grad * direction).sum()
        torch.testing.assert_close(written, numerical, rtol=1e-4, atol=1e-6, msg=f'gradient of {name}')
    assert {name.partition('.')[0] for name, _ in model.named_parameters()} == {'student', 'connectors'}


SEGMENTATION = dict(
    teacher=segmentor(4, dropout=0.5), student=segmentor(2), input_size=(32, 32),
    taps=[dict(teacher='backbone.layer4.1.relu:input', student='backbone.layer4.1.relu:input')],
    data_preprocessor=dict(type='mmseg.SegDataPreProcessor', size=(32, 32)))
MODES = {
    'as by default': {},
    'running statistics': dict(teacher_batch_norm='running'),
    'dropout in the teacher': dict(SEGMENTATION, teacher_dropout=True, data=segmentation_batch),
    'margins and alpha from data': dict(
        margin=dict(source='data'), distill_loss=dict(loss_weight='auto'), hooks=[CalibrateHook()]),
    'moving average': dict(hooks=[EMAHook()]),
    'bfloat16': dict(wrapper='overhaul.Bfloat16OptimWrapper'),
    'channels last': dict(hooks=[ChannelsLastHook()]),
    'compiled': dict(hooks=[CompileHook()]),
}


@pytest.mark.parametrize('mode', MODES)
def test_a_hundred_steps_leave_the_teacher_as_it_was(mode, tmp_path, monkeypatch):
    changes = dict(MODES[mode])
    hooks, data, wrapper = changes.pop('hooks', []), changes.pop('data', batch), sgd(0.01)
    wrapper.type = changes.pop('wrapper', wrapper.type)
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend='eager'))  # needs no C++ compiler
    teacher = changes.setdefault('teacher', wide_resnet(2))
    model = build_distiller(teacher_checkpoint=save_teacher(tmp_path, teacher), **changes)
    before = copy.deepcopy(dict(model.teacher.state_dict(), **model.margins.state_dict()))
    student = copy.deepcopy(model.student.state_dict())
    run = runner(tmp_path, model, [data(seed=seed) for seed in range(10)], 10, wrapper, hooks)
    run.train()
    assert run.iter == 100
    after = dict(model.teacher.state_dict(), **model.margins.state_dict())
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert changed == (list(model.margins.state_dict()) if 'margin' in changes else [])
    kept = [name for name, value in student.items() if torch.equal(value, model.student.state_dict()[name])]
    assert not [name for name in kept if name.endswith(('conv.weight', 'running_mean', 'num_batches_tracked'))]
