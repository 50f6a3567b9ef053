"""The operators as ``mmcv.ops`` calls them, against the loops of slow_operators.py."""

import subprocess
import sys

import numpy as np
import pytest
import slow_operators as slow
import torch
from slow_operators import OPERATIONS, ROIS, convolution, operations, ops, random, some_boxes

pytestmark = pytest.mark.skipif(slow.FULL_MMCV, reason='a full mmcv has its own')


def assert_same_with_gradients(function, reference, *inputs):
    """Compare values, and the gradients of all inputs that have one."""
    weights = None
    results = []
    for each in (function, reference):
        leaves = [value.clone().requires_grad_(value.is_floating_point()) for value in inputs]
        output = each(*leaves)
        weights = random(*output.shape, seed=9) if weights is None else weights
        gradients = torch.autograd.grad(output, [leaf for leaf in leaves if leaf.requires_grad], weights.to(output))
        results.append((output, *gradients))
    assert any(gradient.abs().max() > 0 for gradient in results[1][1:])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.1, 0.3, 0.5])
def test_nms(threshold, offset):
    boxes, scores = some_boxes()
    expected = slow.nms(boxes.tolist(), scores.tolist(), threshold, offset)
    assert 1 < len(expected) < len(boxes)
    dets, kept = ops.nms(boxes, scores, threshold, offset)
    assert kept.tolist() == expected
    assert dets.equal(torch.cat([boxes[expected], scores[expected, None]], 1))


def test_nms_with_an_offset_is_another_one():
    boxes, scores = torch.tensor([[0., 0, 4, 4], [2, 0, 6, 4]]), torch.tensor([0.9, 0.8])
    assert ops.nms(boxes, scores, 0.4)[1].tolist() == [0, 1]  # an IoU of 8 / 24
    assert ops.nms(boxes, scores, 0.4, offset=1)[1].tolist() == [0]  # 15 / 35


@pytest.mark.parametrize('dtype', [torch.float32, torch.int64])
def test_an_overlap_of_just_the_threshold_is_none(dtype):
    # 0.4 is a little more in 32 bits than in 64, and so is the IoU of 4 / 10.
    boxes, scores = torch.tensor([[0, 0, 7, 1], [3, 0, 10, 1]], dtype=dtype), torch.tensor([0.9, 0.8])
    assert ops.nms(boxes, scores, 0.4)[1].tolist() == [0, 1]
    assert ops.nms(boxes, scores, 0.399)[1].tolist() == [0]


def test_nms_leaves_out_low_scores_and_more_than_are_wanted():
    boxes, scores = some_boxes()
    able = [place for place in slow.nms(boxes.tolist(), scores.tolist(), 0.5) if scores[place] > 0.5]
    assert ops.nms(boxes, scores, 0.5, score_threshold=0.5)[1].tolist() == able
    assert ops.nms(boxes, scores, 0.5, score_threshold=0.5, max_num=3)[1].tolist() == able[:3]


@pytest.mark.parametrize('dtype', [torch.int64, torch.int32, torch.float64, torch.float16, torch.bfloat16])
def test_nms_of_other_numbers(dtype):
    boxes, scores = some_boxes()
    boxes = boxes.to(dtype)
    expected = slow.nms(boxes.tolist(), scores.tolist(), 0.4)
    assert ops.nms(boxes, scores, 0.4)[1].tolist() == expected
    assert ops.nms(boxes, scores.double(), 0.4)[1].tolist() == expected


def test_nms_of_arrays():
    boxes, scores = some_boxes()
    dets, kept = ops.nms(boxes.numpy(), scores.numpy(), 0.4)
    assert isinstance(dets, np.ndarray) and kept.tolist() == slow.nms(boxes.tolist(), scores.tolist(), 0.4)


def test_boxes_without_area_are_kept():
    boxes = torch.tensor([[1., 1, 1, 1], [1, 1, 1, 1], [0, 0, 2, 2]])
    assert ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)[1].tolist() == [0, 1, 2]
    for method in ('naive', 'linear', 'gaussian'):
        dets, kept = ops.soft_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), method=method)
        assert kept.tolist() == [0, 1, 2] and dets[:, 4].tolist() == pytest.approx([0.9, 0.8, 0.7])


@pytest.mark.parametrize('split', [10000, 10])
def test_nms_by_class(split):
    boxes, scores = some_boxes()
    classes = torch.arange(60) % 3
    expected = [
        place for label in range(3) for place in
        (classes == label).nonzero()[:, 0][slow.nms(
            boxes[classes == label].tolist(), scores[classes == label].tolist(), 0.5)].tolist()]
    expected.sort(key=lambda place: -scores[place])
    dets, kept = ops.batched_nms(boxes, scores, classes, dict(type='nms', iou_threshold=0.5, split_thr=split))
    assert kept.tolist() == expected and dets[:, :4].equal(boxes[expected])
    together = dict(type='nms', iou_threshold=0.5, class_agnostic=True)
    assert ops.batched_nms(boxes, scores, classes, together)[1].tolist() == slow.nms(
        boxes.tolist(), scores.tolist(), 0.5)
    dets, kept = ops.batched_nms(
        boxes, scores, classes, dict(type='nms', iou_threshold=0.5, split_thr=split, max_num=4))
    assert kept.tolist() == expected[:4]


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms(method, offset):
    boxes, scores = (each.double() for each in some_boxes())
    before = scores.clone()
    expected = slow.soft_nms(boxes.tolist(), scores.tolist(), 0.3, 0.5, 0.05, method, offset)
    assert 1 < len(expected) < len(boxes)
    dets, kept = ops.soft_nms(boxes, scores, 0.3, 0.5, 0.05, method, offset)
    assert kept.tolist() == [place for place, _ in expected]
    assert dets[:, 4].tolist() == pytest.approx([score for _, score in expected])
    assert dets[:, :4].equal(boxes[kept]) and scores.equal(before)


def test_soft_nms_by_class():
    boxes, scores = some_boxes()
    classes = torch.arange(60) % 2
    settings = dict(type='soft_nms', iou_threshold=0.3, min_score=0.05)
    dets, kept = ops.batched_nms(boxes, scores, classes, settings)
    expected = {}
    for label in range(2):
        own = (classes == label).nonzero()[:, 0]
        for place, score in slow.soft_nms(boxes[own].tolist(), scores[own].tolist(), 0.3, 0.5, 0.05, 'linear'):
            expected[int(own[place])] = score
    assert dict(zip(kept.tolist(), dets[:, 4].tolist())) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize('size, scale, sampling_ratio', [((2, 3), 0.5, 2), (2, 0.25, 0), ((3, 1), 1., 0), (2, 0.5, 1)])
@pytest.mark.parametrize('aligned', [True, False])
def test_roi_align(size, scale, sampling_ratio, aligned):
    layer = ops.RoIAlign(size, scale, sampling_ratio, aligned=aligned)
    assert_same_with_gradients(
        lambda maps: layer(maps, ROIS),
        lambda maps: slow.roi_align(maps, ROIS, layer.output_size, scale, sampling_ratio, aligned),
        random(2, 3, 8, 9))


@pytest.mark.parametrize('layer', [ops.RoIAlign(2, 0.5, 2), ops.RoIPool(2, 0.5)])
def test_gradients_of_rois_are_those_of_small_changes(layer):
    maps = torch.randperm(144, generator=torch.Generator().manual_seed(0)).double().view(2, 1, 8, 9)  # no equal maxima
    assert torch.autograd.gradcheck(lambda maps: layer(maps, ROIS), maps.requires_grad_())


@pytest.mark.parametrize('size, scale', [((2, 3), 0.5), (4, 0.25), (3, 1.), (7, 1 / 16)])
def test_roi_pool(size, scale):
    layer = ops.RoIPool(size, scale)
    assert_same_with_gradients(
        lambda maps: layer(maps, ROIS), lambda maps: slow.roi_pool(maps, ROIS, layer.output_size, scale),
        random(2, 3, 8, 9))


def test_a_roi_without_area_pools_nothing():
    maps = random(1, 2, 4, 4).requires_grad_()
    pooled = ops.RoIPool(2)(maps, torch.tensor([[0, 2., 2, 0, 0]], dtype=torch.float64))
    pooled.sum().backward()
    assert not pooled.any() and not maps.grad.any()


def test_the_maximum_of_roi_align_is_refused():
    with pytest.raises(ImportError, match='pool_mode="max", is part of the full mmcv, and mmcv-lite is installed'):
        ops.RoIAlign(2, pool_mode='max')(random(2, 3, 8, 9), ROIS)


CONVOLUTIONS = [
    dict(), dict(stride=2, padding=1), dict(padding=1, dilation=2), dict(groups=2), dict(deform_groups=2),
    dict(stride=2, padding=1, groups=2, deform_groups=4)]


@pytest.mark.parametrize('settings', CONVOLUTIONS, ids=str)
def test_deformable_convolution(settings):
    maps, offset, weight, *_ = convolution(**settings)
    order = [settings.get(name, default) for name, default in (
        ('stride', 1), ('padding', 0), ('dilation', 1), ('groups', 1), ('deform_groups', 1))]
    assert_same_with_gradients(
        lambda *inputs: ops.deform_conv2d(*inputs, *order),
        lambda *inputs: slow.deform_conv(*inputs, **settings), maps, offset, weight)


@pytest.mark.parametrize('settings', CONVOLUTIONS, ids=str)
def test_modulated_deformable_convolution(settings):
    maps, offset, weight, mask, bias = convolution(**settings)
    order = [settings.get(name, default) for name, default in (
        ('stride', 1), ('padding', 0), ('dilation', 1), ('groups', 1), ('deform_groups', 1))]
    biases = [bias] if settings else []
    assert_same_with_gradients(
        lambda maps, offset, mask, weight, *bias: ops.modulated_deform_conv2d(
            maps, offset, mask, weight, *(bias or [None]), *order),
        lambda maps, offset, mask, weight, *bias: slow.deform_conv(maps, offset, weight, mask, *bias, **settings),
        maps, offset, mask, weight, *biases)


def test_offsets_of_a_larger_map_are_read_as_mmcv_reads_them():
    maps, _, weight, *_ = convolution()
    offset, mask = random(2, 12, 5, 4), random(2, 6, 5, 4)
    assert_same_with_gradients(
        lambda maps, offset, mask: ops.modulated_deform_conv2d(maps, offset, mask, weight),
        lambda maps, offset, mask: slow.deform_conv(
            maps, offset.flatten(1)[:, :108].view(2, 12, 3, 3), weight, mask.flatten(1)[:, :54].view(2, 6, 3, 3)),
        maps, offset, mask)


def test_gradients_of_convolutions_are_those_of_small_changes():
    maps, offset, weight, mask, bias = (each[:1, :].requires_grad_() if each.dim() == 4 and len(each) == 2
                                        else each.requires_grad_() for each in convolution(kernel=(2, 2)))
    assert torch.autograd.gradcheck(ops.deform_conv2d, (maps, offset, weight))
    assert torch.autograd.gradcheck(ops.modulated_deform_conv2d, (maps, offset, mask, weight, bias))


def test_only_the_gradients_that_are_asked_for():
    maps, offset, weight, *_ = convolution()
    expected = torch.autograd.grad(ops.deform_conv2d(maps, offset, weight.requires_grad_()).sum(), weight)
    maps, offset = maps.requires_grad_(), offset.requires_grad_()
    found = torch.autograd.grad(ops.deform_conv2d(maps, offset, weight).sum(), [weight, maps, offset])
    assert found[0].equal(expected[0]) and expected[0].any()
    only = torch.autograd.grad(ops.deform_conv2d(maps, offset, weight.detach()).sum(), [maps, offset])
    assert all(a.equal(b) for a, b in zip(only, found[1:]))


def test_im2col_step_is_of_no_consequence():
    maps, offset, weight, *_ = convolution()
    results = [ops.deform_conv2d(maps, offset, weight, 1, 0, 1, 1, 1, False, step) for step in (1, 2, 32)]
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


def test_layers_with_offsets_of_their_own():
    torch.manual_seed(0)
    for layer, reference in (
            (ops.DeformConv2dPack(4, 6, 3, padding=1, bias=False, deform_groups=2), slow.deform_conv),
            (ops.ModulatedDeformConv2dPack(4, 6, 3, padding=1, deform_groups=2), slow.deform_conv)):
        layer = layer.double()
        torch.nn.init.normal_(layer.conv_offset.weight, std=0.1)
        maps = random(2, 4, 5, 4)
        out = layer.conv_offset(maps)
        parts = dict(offset=out)
        if isinstance(layer, ops.ModulatedDeformConv2dPack):
            parts = dict(offset=out[:, :36], mask=out[:, 36:].sigmoid(), bias=layer.bias)
        expected = reference(maps, weight=layer.weight, padding=1, deform_groups=2, **parts)
        torch.testing.assert_close(layer(maps), expected)


@pytest.mark.parametrize('channels, kernel', [(4, 3), (4, 7)])
def test_a_map_smaller_than_the_kernel(channels, kernel):
    maps = random(1, channels, 3, 4)
    layer = ops.DeformConv2d(channels, 2, kernel, padding=kernel // 2).double()
    offset = random(1, 2 * kernel**2, 3, 4) / 2
    torch.testing.assert_close(
        layer(maps, offset), slow.deform_conv(maps, offset, layer.weight, padding=kernel // 2))


@pytest.mark.parametrize('gamma, alpha', [(2., 0.25), (0., 0.5), (0.5, 0.6), (1.5, 1.)])
@pytest.mark.parametrize('weight', [None, torch.tensor([0.5, 2, 0, 3], dtype=torch.float64)])
def test_focal_loss(gamma, alpha, weight):
    labels = torch.tensor([0, 3, 4, -1, 2, 1])  # 4 and -1 are the background
    assert_same_with_gradients(
        lambda logits: ops.sigmoid_focal_loss(logits, labels, gamma, alpha, weight, 'none'),
        lambda logits: slow.focal_loss(logits, labels, gamma, alpha, weight), 3 * random(6, 4))
    assert torch.autograd.gradcheck(
        lambda logits: ops.SigmoidFocalLoss(gamma, alpha, weight)(logits, labels), random(6, 4).requires_grad_())


def test_focal_loss_is_averaged_over_boxes():
    logits, labels = random(6, 4), torch.tensor([0, 3, 4, -1, 2, 1])
    total = slow.focal_loss(logits, labels, 2, 0.25).sum()
    torch.testing.assert_close(ops.sigmoid_focal_loss(logits, labels, 2., 0.25, None, 'sum'), total)
    torch.testing.assert_close(ops.sigmoid_focal_loss(logits, labels, 2., 0.25, None, 'mean'), total / 6)


@pytest.mark.parametrize('gamma', [0.5, 2.])
def test_focal_loss_of_certain_boxes_is_finite(gamma):
    logits = torch.tensor([[200., -200.], [-200, 200]], requires_grad=True)
    loss = ops.sigmoid_focal_loss(logits, torch.tensor([0, 0]), gamma, 0.25, None, 'none')
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.tensor([[0., 0], [50, 150]]))
    torch.testing.assert_close(logits.grad, torch.tensor([[0., 0], [-0.25, 0.75]]))


def test_deformable_attention():
    # mmcv asks for this operator on GPUs alone.
    function, inputs = operations()['ms_deform_attn']
    assert_same_with_gradients(
        function, lambda *inputs: slow.attention(inputs[0], torch.tensor([[3, 4], [2, 2]]), *inputs[1:]), *inputs)


@pytest.mark.parametrize('name', OPERATIONS)
@pytest.mark.parametrize('dtype, tolerance', [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_16_bits(name, dtype, tolerance):
    function, inputs = operations()[name]
    leaves = [value.to(dtype).requires_grad_() for value in inputs]
    exact = [value.detach().double().requires_grad_() for value in leaves]
    with torch.autocast('cpu', dtype):
        output = function(*leaves)
    assert output.dtype == dtype
    expected = function(*exact)
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)
    output.sum().backward()
    expected.sum().backward()
    for leaf, truth in zip(leaves, exact):
        assert leaf.grad.dtype == dtype
        torch.testing.assert_close(leaf.grad.double(), truth.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('name', ['roi_align', 'deform_conv2d'])
def test_compiled(name):
    # The gradients that mmcv has filled in would be 0, as torch 2.11 compiles it.
    function, inputs = operations()[name]
    assert_same_with_gradients(torch.compile(function, backend='aot_eager'), function, *inputs)


def test_autocast_of_a_layer():
    torch.manual_seed(0)
    layer = ops.ModulatedDeformConv2dPack(4, 6, 3, padding=1)
    maps = random(2, 4, 5, 4, dtype=torch.float32)
    with torch.autocast('cpu', torch.bfloat16):
        output = layer(maps)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), layer(maps), rtol=0.03, atol=0.03)
    output.float().sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in layer.parameters())


def test_nothing_in():
    boxes, scores = torch.zeros(0, 4), torch.zeros(0)
    assert [len(each) for each in ops.nms(boxes, scores, 0.5)] == [0, 0]
    assert [len(each) for each in ops.soft_nms(boxes, scores)] == [0, 0]
    for name in ('roi_align', 'roi_pool', 'sigmoid_focal_loss'):
        function, (maps, ) = operations(number=0)[name]
        output = function(maps.requires_grad_())
        output.sum().backward()
        assert len(output) == 0 and not maps.grad.any(), name


def test_maps_in_channels_last_order():
    for name in ('roi_align', 'roi_pool', 'deform_conv2d', 'modulated_deform_conv2d'):
        function, (maps, *others) = operations()[name]
        other_order = maps.to(memory_format=torch.channels_last).requires_grad_()
        output, expected = function(other_order, *others), function(maps.requires_grad_(), *others)
        torch.testing.assert_close(output, expected)
        weights = random(*output.shape)
        for result in (output, expected):
            result.backward(weights.to(memory_format=torch.channels_last))
        torch.testing.assert_close(other_order.grad, maps.grad)


def test_torchvision_is_imported_when_an_operator_is_called():
    script = (
        'import sys; from overhaul import compat; compat.apply(); import mmcv.ops, torch\n'
        'print("torchvision" in sys.modules, "overhaul.operators" in sys.modules)\n'
        'mmcv.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)\n'
        'print("torchvision" in sys.modules)')
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', script], capture_output=True, text=True)
    assert run.stdout.split() == ['False', 'False', 'True'], run.stderr
