"""The operators of mmcv on a GPU, against those on the CPU, which tests/test_operators.py holds against loops."""

import pytest
import slow_operators
import torch
from slow_operators import OPERATIONS, operations, ops, random, some_boxes

pytestmark = [
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU'),
    pytest.mark.skipif(slow_operators.FULL_MMCV, reason='a full mmcv has its own')]


@pytest.mark.parametrize('name', OPERATIONS)
@pytest.mark.parametrize('dtype, tolerance', [
    (torch.float64, 1e-9), (torch.float32, 1e-4), (torch.float16, 5e-3), (torch.bfloat16, 3e-2)])
def test_values_and_gradients(name, dtype, tolerance):
    function, inputs = operations()[name]
    results = []
    for device in ('cpu', 'cuda'):
        leaves = [value.to(device, dtype).requires_grad_() for value in inputs]
        output = function(*leaves)
        gradients = torch.autograd.grad(output, leaves, random(*output.shape, seed=9).to(output))
        assert all(each.device.type == device and each.dtype == dtype for each in (output, *gradients))
        results.append([each.cpu() for each in (output, *gradients)])
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('name', OPERATIONS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_under_autocast(name, dtype):
    function, inputs = operations()[name]
    leaves = [value.to('cuda', torch.float32).requires_grad_() for value in inputs]
    with torch.autocast('cuda', dtype):
        output = function(*leaves)
    output.float().sum().backward()
    expected = function(*inputs)
    torch.testing.assert_close(output.double().cpu(), expected, rtol=1e-3, atol=1e-3)
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16, torch.int64])
@pytest.mark.parametrize('offset', [0, 1])
def test_nms(dtype, offset):
    boxes, scores = some_boxes()
    boxes = boxes.to(dtype)
    expected = ops.nms(boxes, scores, 0.3, offset)[1]
    dets, kept = ops.nms(boxes.cuda(), scores.cuda(), 0.3, offset)
    assert dets.is_cuda and kept.tolist() == expected.tolist()


@pytest.mark.parametrize('settings', [
    dict(type='nms', iou_threshold=0.5), dict(type='nms', iou_threshold=0.5, split_thr=10),
    dict(type='soft_nms', iou_threshold=0.3, min_score=0.05)])
def test_nms_by_class(settings):
    boxes, scores = some_boxes()
    classes = torch.arange(len(boxes)) % 3
    expected = ops.batched_nms(boxes, scores, classes, dict(settings))
    dets, kept = ops.batched_nms(boxes.cuda(), scores.cuda(), classes.cuda(), dict(settings))
    assert dets.is_cuda and kept.tolist() == expected[1].tolist()
    torch.testing.assert_close(dets.cpu(), expected[0])


def test_nothing_in():
    assert len(ops.nms(torch.zeros(0, 4).cuda(), torch.zeros(0).cuda(), 0.5)[1]) == 0
    for name in ('roi_align', 'roi_pool', 'sigmoid_focal_loss'):
        function, (maps, ) = operations(number=0)[name]
        maps = maps.cuda().requires_grad_()
        output = function(maps)
        output.sum().backward()
        assert len(output) == 0 and not maps.grad.any(), name
