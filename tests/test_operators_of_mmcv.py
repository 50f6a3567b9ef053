"""The operators of this package against the compiled ones of a full mmcv, where there is one, in float32 on a CPU."""

from importlib import import_module

import pytest
import torch
from slow_operators import FULL_MMCV, ops

from overhaul import operators

pytestmark = pytest.mark.skipif(not FULL_MMCV, reason='needs a full mmcv')


class Ours:
    """Stands in for mmcv._ext."""

    def __getattr__(self, name):
        return operators.find(name)


def assert_same(module, function, monkeypatch):
    """Compare all tensors that ``function`` gives with mmcv's operators and with ours."""
    theirs = function()
    monkeypatch.setattr(import_module(f'mmcv.ops.{module}'), 'ext_module', Ours())
    torch.testing.assert_close(function(), theirs, rtol=1e-5, atol=1e-5)


def some(number=200, seed=0):
    """Boxes (N, 4) and their scores."""
    generator = torch.Generator().manual_seed(seed)
    corners, sizes = (torch.rand(number, 2, generator=generator) for _ in range(2))
    return torch.cat([40 * corners, 40 * corners + 20 * sizes + 1], 1), torch.rand(number, generator=generator)


def maps():
    return torch.randn(2, 6, 20, 30, generator=torch.Generator().manual_seed(1), requires_grad=True)


def with_gradient(layer, *more):
    """What the layer makes of maps, and their gradient."""
    images = maps()
    output = layer(images, *more)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    return output.detach(), *torch.autograd.grad((output * weights).sum(), images)


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.1, 0.3, 0.5, 0.7])
def test_nms(threshold, offset, monkeypatch):
    assert_same('nms', lambda: ops.nms(*some(), threshold, offset=offset), monkeypatch)


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms(method, offset, monkeypatch):
    assert_same('nms', lambda: ops.soft_nms(*some(), 0.3, 0.5, 1e-3, method, offset=offset), monkeypatch)


@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize('aligned', [True, False])
def test_roi_align(aligned, sampling_ratio, monkeypatch):
    boxes, scores = some(40)
    layer = ops.RoIAlign((7, 5), 0.5, sampling_ratio, 'avg', aligned)
    rois = torch.cat([(scores > 0.5).float()[:, None], boxes], 1)
    assert_same('roi_align', lambda: with_gradient(layer, rois), monkeypatch)


@pytest.mark.parametrize(('module', 'kind', 'more'), [
    ('deform_conv', 'DeformConv2dPack', dict(groups=2)), ('modulated_deform_conv', 'ModulatedDeformConv2dPack', {})])
def test_deformable_convolution(module, kind, more, monkeypatch):
    torch.manual_seed(0)
    layer = getattr(ops, kind)(6, 8, 3, stride=2, padding=1, deform_groups=2, **more)
    layer.conv_offset.weight.data.normal_(0, 0.1)
    assert_same(module, lambda: with_gradient(layer), monkeypatch)
