"""The compiled operators of mmcv that detection calls, for mmcv-lite, which has none of them.

torchvision's compiled operators do the work, on CPUs and GPUs, and where it has none, a few lines of torch. Names,
order of arguments and results are those of ``mmcv._ext``, whose functions fill what they are handed as ``output``,
``dets`` or ``grad_...``, so all that ``mmcv.ops`` makes of them is there: ``batched_nms``, ``RoIAlign``, ``DCNv2``.
Numbers of 16 bits are computed in 32, as torchvision does under autocast.

:mod:`overhaul.compat` hands out what is in :data:`OPERATORS` where mmcv has no operators of its own, and imports this
only when one is called, for torchvision takes its time. Delete when mmcv calls torchvision by itself, or there is a
full mmcv for each release of torch.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from operator import itemgetter
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou  # the import also registers the operators below

_compiled = torch.ops.torchvision
# What mmcv calls the settings of deformable convolutions, version 1 and 2, in the order of torchvision.
_SETTINGS_1 = itemgetter('dH', 'dW', 'padH', 'padW', 'dilationH', 'dilationW', 'group', 'deformable_group')
_SETTINGS_2 = itemgetter(
    'stride_h', 'stride_w', 'pad_h', 'pad_w', 'dilation_h', 'dilation_w', 'group', 'deformable_group')


def find(name: str) -> Callable:
    """Return the operator ``name``.

    Raises:
        ImportError: If only a full mmcv has it.
    """
    return OPERATORS.get(name) or _missing(f'operator "{name}"')


def _missing(what: str) -> NoReturn:
    raise ImportError(
        f'The {what} is part of the full mmcv, and mmcv-lite is installed. '
        'Replace it: `pip uninstall mmcv-lite`, then install mmcv as its documentation says.')


def _wide(*tensors: Tensor) -> list[Tensor]:
    """Return ``tensors`` in the one type of 32 bits or more that holds all of them."""
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    return [tensor.to(dtype) for tensor in tensors]


def _fill(outputs: Iterable[Tensor | None], found: Iterable[Tensor]) -> None:
    """Copy what was ``found`` to where mmcv wants it; None is not wanted."""
    for output, values in zip(outputs, found):
        if output is not None:
            output.copy_(values)


def _stretched(boxes: Tensor, offset: int) -> Tensor:
    """Return (N, 4) ``boxes`` that are as long as mmcv takes them to be: from x1 to x2 + offset."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return which of (N, 4) ``boxes`` no better one overlaps by more than ``iou_threshold``, the best first."""
    boxes, scores = _wide(boxes, scores)
    # On a CPU torchvision compares with a threshold of 64 bits, to which 0.7 in 32 bits is another number.
    iou_threshold = torch.tensor(iou_threshold, dtype=boxes.dtype).item()
    return _compiled.nms(_stretched(boxes, offset), scores, iou_threshold)


def softnms(
        boxes: Tensor, scores: Tensor, dets: Tensor, iou_threshold: float, sigma: float, min_score: float, method: int,
        offset: int) -> Tensor:
    """Soft NMS: lower the scores of (N, 4) ``boxes`` by how much better ones overlap them. Returns those that are left.

    Fills the first rows of ``dets`` with boxes and new scores, the best first. Of equal scores, the first box counts
    as the better one. Source: Soft-NMS, Bodla et al., ICCV 2017, as mmcv has it.

    Args:
        method: 0 leaves out what overlaps by ``iou_threshold`` or more, 1 multiplies its score by 1 - IoU, and 2
            multiplies all scores by exp(-IoU^2 / ``sigma``).
        min_score: What falls below it is left out.
    """
    boxes, scores = _wide(boxes, scores)
    scores, stretched = scores.clone(), _stretched(boxes, offset)
    kept, rest = [], torch.arange(len(boxes), device=boxes.device)
    while len(rest):
        place = scores[rest].argmax()
        best, rest = rest[place], torch.cat([rest[:place], rest[place + 1:]])
        kept.append(best)
        iou = box_iou(stretched[best, None], stretched[rest])[0].nan_to_num()  # of boxes without area
        if method == 2:
            scores[rest] *= torch.exp(-iou**2 / sigma)
        else:
            scores[rest] *= torch.where(iou >= iou_threshold, (1 - iou) * method, 1)
        rest = rest[scores[rest] >= min_score]
    kept = torch.stack(kept) if kept else rest
    dets[:len(kept)] = torch.cat([boxes[kept], scores[kept, None]], dim=1)
    return kept


def roi_align_forward(
        input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, aligned_height: int,
        aligned_width: int, spatial_scale: float, sampling_ratio: int, pool_mode: int, aligned: bool) -> None:
    """Fill ``output`` (K, C, h, w) with the means over each bin of (K, 5) ``rois`` on ``input`` (N, C, H, W).

    Raises:
        ImportError: If maxima are asked for, ``pool_mode`` 0.
    """
    if pool_mode == 0:
        _missing('maximum of "roi_align", pool_mode="max",')
    output.copy_(_compiled.roi_align(
        *_wide(input, rois), spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned))


def roi_align_backward(
        grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor, aligned_height: int,
        aligned_width: int, spatial_scale: float, sampling_ratio: int, pool_mode: int, aligned: bool) -> None:
    """Fill ``grad_input`` (N, C, H, W)."""
    grad_input.copy_(_compiled._roi_align_backward(
        *_wide(grad_output, rois), spatial_scale, aligned_height, aligned_width, *grad_input.shape, sampling_ratio,
        aligned))


def roi_pool_forward(
        input: Tensor, rois: Tensor, output: Tensor, argmax: Tensor, pooled_height: int, pooled_width: int,
        spatial_scale: float) -> None:
    """Fill ``output`` (K, C, h, w) with the maxima over each bin of (K, 5) ``rois`` on ``input`` (N, C, H, W).

    ``argmax`` gets where each of them is in its (H, W) map, and -1 where a bin is empty or outside of the map. Other
    than in mmcv, -1 also where a RoI has no area: there mmcv takes the maximum, which it has set to 0, for the first
    pixel of the map.
    """
    input, rois = _wide(input, rois)
    height, width = input.shape[-2:]
    left, right = _bins(rois[:, 1], rois[:, 3], spatial_scale, pooled_width, width)
    upper, lower = _bins(rois[:, 2], rois[:, 4], spatial_scale, pooled_height, height)
    bins = torch.stack(torch.broadcast_tensors(
        rois[:, :1, None], left[:, None], upper[..., None], right[:, None], lower[..., None]), dim=-1)
    # torchvision rounds the corners of a RoI before it divides it, so each bin is handed to it as a RoI of one bin.
    maxima, places = _compiled.roi_pool(input, bins.view(-1, 5), 1, 1, 1)
    _fill([output, argmax], [
        each.view(*bins.shape[:3], input.shape[1]).permute(0, 3, 1, 2) for each in (maxima, places)])


def _bins(start: Tensor, end: Tensor, scale: float, number: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the first and last pixel, each (K, number), of the bins of K stretches on a map of ``size`` pixels.

    Empty bins begin and end behind the map.
    """
    start, end = start[:, None] * scale, (end[:, None] + 1) * scale
    borders = torch.arange(number + 1, device=start.device) * ((end - start) / number) + start
    first, last = borders[:, :-1].floor().clamp(0, size), borders[:, 1:].ceil().clamp(0, size) - 1
    empty = (last < first) | (end <= start)
    return first.masked_fill(empty, size), last.masked_fill(empty, size)


def roi_pool_backward(
        grad_output: Tensor, rois: Tensor, argmax: Tensor, grad_input: Tensor, pooled_height: int, pooled_width: int,
        spatial_scale: float) -> None:
    """Fill ``grad_input`` (N, C, H, W)."""
    grad_output, rois = _wide(grad_output, rois)
    grad_input.copy_(_compiled._roi_pool_backward(
        grad_output, rois, argmax, spatial_scale, pooled_height, pooled_width, *grad_input.shape))


def deform_conv_forward(
        input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor,
        **settings: int) -> None:
    """Fill ``output`` with the deformable convolution, version 1, of ``input`` (N, C, H, W)."""
    output.copy_(_compiled.deform_conv2d(*_operands(input, weight, offset), *_SETTINGS_1(settings), False))


def deform_conv_backward_input(
        input: Tensor, offset: Tensor, grad_output: Tensor, grad_input: Tensor, grad_offset: Tensor, weight: Tensor,
        columns: Tensor, **settings: int) -> None:
    """Fill ``grad_input`` and ``grad_offset``."""
    found = _compiled._deform_conv2d_backward(
        *_wide(grad_output), *_operands(input, weight, offset), *_SETTINGS_1(settings), False)
    _fill([grad_input, None, grad_offset], found)


def deform_conv_backward_parameters(
        input: Tensor, offset: Tensor, grad_output: Tensor, grad_weight: Tensor, columns: Tensor, ones: Tensor,
        **settings: int) -> None:
    """Fill ``grad_weight``, which does not depend on the weight: what is in it stands for that, which mmcv keeps."""
    found = _compiled._deform_conv2d_backward(
        *_wide(grad_output), *_operands(input, grad_weight, offset), *_SETTINGS_1(settings), False)
    _fill([None, grad_weight], found)


def modulated_deform_conv_forward(
        input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor, mask: Tensor, output: Tensor,
        columns: Tensor, *, with_bias: bool, **settings: int) -> None:
    """Fill ``output`` with the deformable convolution, version 2, of ``input`` (N, C, H, W).

    As in mmcv, offsets and masks that are larger than the output are read as if they were of its size: its first
    numbers, whatever place they were meant for. DyHead has learned with that.
    """
    offset, mask = (_first(each, output.shape[2:]) for each in (offset, mask))
    operands = _operands(input, weight, offset, mask, bias if with_bias else None)
    output.copy_(_compiled.deform_conv2d(*operands, *_SETTINGS_2(settings), True))


def modulated_deform_conv_backward(
        input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor, mask: Tensor, columns: Tensor,
        grad_input: Tensor, grad_weight: Tensor, grad_bias: Tensor, grad_offset: Tensor, grad_mask: Tensor,
        grad_output: Tensor, *, with_bias: bool, **settings: int) -> None:
    """Fill the gradients of all that the convolution depends on, also of the bias if there is one."""
    offset, mask = (_first(each, grad_output.shape[2:]) for each in (offset, mask))
    of_input, of_weight, *others, of_bias = _compiled._deform_conv2d_backward(
        *_wide(grad_output), *_operands(input, weight, offset, mask), *_SETTINGS_2(settings), True)
    _fill([grad_input, grad_weight, grad_bias if with_bias else None], [of_input, of_weight, of_bias])
    for gradient, first in zip((grad_offset, grad_mask), others):
        gradient.copy_(F.pad(first.flatten(1), (0, gradient[0].numel() - first[0].numel())).view_as(gradient))


def _first(maps: Tensor, size: torch.Size) -> Tensor:
    """Return the first numbers of each of ``maps`` (N, C, H, W) as one of the ``size`` (h, w)."""
    return maps.flatten(1)[:, :maps.shape[1] * size.numel()].unflatten(1, (-1, *size))


def _operands(
        input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None = None,
        bias: Tensor | None = None) -> list[Tensor]:
    """Return what is convolved as torchvision takes it, with zeros in the place of what there is not."""
    return _wide(
        input, weight, offset, input.new_zeros(len(input), 1) if mask is None else mask,
        input.new_zeros(len(weight)) if bias is None else bias)


def ms_deform_attn_forward(
        value: Tensor, spatial_shapes: Tensor, level_start_index: Tensor, sampling_locations: Tensor,
        attention_weights: Tensor, im2col_step: int) -> Tensor:
    """Return deformable attention (N, queries, channels) by mmcv's own function for CPUs; on GPUs it calls this one."""
    return _attend(spatial_shapes, *_wide(value, sampling_locations, attention_weights)).to(value.dtype)


def ms_deform_attn_backward(
        value: Tensor, spatial_shapes: Tensor, level_start_index: Tensor, sampling_locations: Tensor,
        attention_weights: Tensor, grad_output: Tensor, grad_value: Tensor, grad_sampling_loc: Tensor,
        grad_attn_weight: Tensor, im2col_step: int) -> None:
    """Fill ``grad_value``, ``grad_sampling_loc`` and ``grad_attn_weight``, once more from the start."""
    grad_output, *inputs = _wide(grad_output, value, sampling_locations, attention_weights)
    with torch.enable_grad():
        inputs = [each.detach().requires_grad_() for each in inputs]
        found = torch.autograd.grad(_attend(spatial_shapes, *inputs), inputs, grad_output)
    _fill([grad_value, grad_sampling_loc, grad_attn_weight], found)


def _attend(spatial_shapes: Tensor, value: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch  # which is there when it calls

    return multi_scale_deformable_attn_pytorch(value, spatial_shapes, sampling_locations, attention_weights)


def sigmoid_focal_loss_forward(
        input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float) -> None:
    """Fill ``output`` (N, C) with -a (1 - p)^gamma log p, p the probability that the logits give to the truth.

    ``a`` is ``alpha`` for the class that ``target`` (N,) names and 1 - ``alpha`` for all others, times the ``weight``
    (C,) of that class, if there are weights. A label that is none of the classes, as -1 or C, is the background, whose
    weight is 1. torchvision's own has the same values, but no gradient where gamma < 1 and p is rounded to 1.
    Source: Focal Loss for Dense Object Detection, Lin et al., ICCV 2017.
    """
    sign, logit, factor = _focus(input, target, weight, alpha)
    output.copy_(-factor * torch.sigmoid(-logit)**gamma * F.logsigmoid(logit))


def sigmoid_focal_loss_backward(
        input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float) -> None:
    """Fill ``grad_input`` (N, C) with the derivative of each loss by its logit."""
    sign, logit, factor = _focus(input, target, weight, alpha)
    slope = gamma * torch.sigmoid(logit) * F.logsigmoid(logit) - torch.sigmoid(-logit)
    grad_input.copy_(sign * factor * torch.sigmoid(-logit)**gamma * slope)


def _focus(input: Tensor, target: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return, each (N, C), whether a logit should rise, 1 or -1; the logit of the truth; and what its loss counts."""
    (input, ), classes = _wide(input), input.shape[1]
    true = (target[:, None] == torch.arange(classes, device=input.device)).to(input.dtype)
    sign, factor = 2 * true - 1, 1 - alpha + (2 * alpha - 1) * true
    if weight.numel():
        of_background = (target < 0) | (target >= classes)
        factor = factor * weight[target.masked_fill(of_background, 0)].masked_fill(of_background, 1)[:, None]
    return sign, sign * input, factor


OPERATORS: Mapping[str, Callable] = {operator.__name__: operator for operator in (
    nms, softnms, roi_align_forward, roi_align_backward, roi_pool_forward, roi_pool_backward, deform_conv_forward,
    deform_conv_backward_input, deform_conv_backward_parameters, modulated_deform_conv_forward,
    modulated_deform_conv_backward, ms_deform_attn_forward, ms_deform_attn_backward, sigmoid_focal_loss_forward,
    sigmoid_focal_loss_backward)}
