"""The teacher's quick batch norm gives what torch's gives, on the maps that it is for, and leaves the others to it."""

import pytest
import torch
from mmengine.registry import MODELS
from small_models import build_distiller, resnet
from torch import nn
from torch.nn import functional

from overhaul import batch_norm
from overhaul.batch_norm import TeacherBatchNorm2d


def feature(shape=(16, 32, 32, 32), mean=0.5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    channels = torch.rand(shape[1], dtype=torch.float64, generator=generator).add(0.1).view(-1, 1, 1)
    values = channels * (mean + torch.randn(shape, dtype=torch.float64, generator=generator))
    return values.to(dtype)


def norm_of(channels, **options):
    torch.manual_seed(1)
    norm = TeacherBatchNorm2d(channels, **{'track_running_stats': False, **options})
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm


@pytest.fixture
def statistics(monkeypatch):
    """The calls of torch that compute the statistics themselves."""
    calls, plain = [], functional.batch_norm

    def spy(*arguments, **keywords):
        training = keywords.get('training', arguments[5] if len(arguments) > 5 else False)
        calls.append(training)
        return plain(*arguments, **keywords)

    monkeypatch.setattr(functional, 'batch_norm', spy)
    return calls


@pytest.mark.parametrize('options', [{}, dict(affine=False), dict(eps=0.1)])
@pytest.mark.parametrize('mean', [0, 5])
@torch.no_grad()
def test_large_maps_are_normalised_without_the_statistics_of_torch(options, mean, statistics):
    norm, values = norm_of(32, **options), feature(mean=mean)
    assert values.numel() == batch_norm._LEAST
    ours = norm(values)
    assert statistics == [False]
    theirs = nn.BatchNorm2d.forward(norm, values)
    expected = nn.BatchNorm2d.forward(norm.double(), values.double())
    errors = [(result - expected).norm() / expected.norm() for result in (ours, theirs)]
    assert errors[0] < 5 * errors[1] < 1e-5


@pytest.mark.parametrize('values', [
    feature((15, 32, 32, 32)), feature(mean=11), feature(dtype=torch.float64), feature(dtype=torch.bfloat16),
    feature().to(memory_format=torch.channels_last), torch.full((16, 32, 32, 32), 3.0), feature((1, 2, 1024, 512)),
], ids=['small', 'far from 0', 'float64', 'bfloat16', 'channels-last', 'constant', 'many pixels'])
@torch.no_grad()
def test_others_are_left_to_torch(values, statistics):
    norm = norm_of(values.shape[1], dtype=values.dtype)
    expected = functional.batch_norm(values, None, None, norm.weight, norm.bias, True)
    statistics.clear()
    assert torch.equal(norm(values), expected) and statistics == [True]


def test_with_gradient_or_running_statistics_it_is_torch(statistics):
    values = feature()
    norm_of(32)(values.requires_grad_()).sum().backward()
    assert values.grad is not None
    with torch.no_grad():
        norm = norm_of(32, track_running_stats=True)
        norm(values)
        assert norm.num_batches_tracked == 1
        norm.eval()(values)
    assert statistics == [True, True, False]


@torch.no_grad()
def test_nan_and_infinity_are_seen_and_0_is_no_division():
    values = feature()
    values[3, 1, 2, 2], values[4, 2, 2, 2], values[:, 3] = torch.nan, torch.inf, 0
    norm = norm_of(32)
    ours, theirs = norm(values), nn.BatchNorm2d.forward(norm, values)
    assert torch.equal(ours[:, 3], theirs[:, 3]) and ours[:, 1:3].isnan().all()
    torch.testing.assert_close(ours[:, 4:], theirs[:, 4:])


@MODELS.register_module()
class OwnBatchNorm(nn.BatchNorm2d):
    """A batch norm of the teacher's own."""


def test_a_batch_norm_of_the_teachers_own_is_left_alone():
    model = build_distiller(teacher=resnet(8, norm_cfg=dict(type='OwnBatchNorm')), student=resnet(8), taps='auto')
    assert {type(module) for module in model.teacher.modules() if isinstance(module, nn.BatchNorm2d)} == {OwnBatchNorm}


def test_a_teacher_has_it_and_a_student_has_not():
    model = build_distiller()
    kinds = [{type(module) for module in part.modules() if isinstance(module, nn.BatchNorm2d)}
             for part in (model.teacher, model.student, model.connectors)]
    assert kinds == [{TeacherBatchNorm2d}, {nn.BatchNorm2d}, {nn.BatchNorm2d}]
