"""Operators of detection written out in loops, to compare with, and what they are tried on.

Gradients are those of torch's autograd. Boxes are lists of numbers, maps are tensors of float64 (N, C, H, W), RoIs
have the place of their image first.
"""

import math
import sys

import torch

from overhaul import compat

compat.apply()

from mmcv import ops  # noqa: E402

FULL_MMCV = not isinstance(sys.modules['mmcv._ext'], compat._OperatorStub)

def iou(a, b, offset=0):
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    both = width * height
    either = sum((box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b)) - both
    return both / either if either else 0


def nms(boxes, scores, threshold, offset=0):
    """The places of the boxes that are kept, the best first."""
    kept = []
    for place in sorted(range(len(boxes)), key=lambda place: -scores[place]):
        if all(iou(boxes[place], boxes[other], offset) <= threshold for other in kept):
            kept.append(place)
    return kept


def soft_nms(boxes, scores, threshold, sigma, least, method, offset=0):
    """(place, new score) of each box that is kept, the best first."""
    left, kept = dict(enumerate(scores)), []
    while left:
        best = max(left, key=left.get)
        kept.append((best, left.pop(best)))
        for place in list(left):
            overlap = iou(boxes[best], boxes[place], offset)
            left[place] *= {
                'naive': 0 if overlap >= threshold else 1,
                'linear': 1 - overlap if overlap >= threshold else 1,
                'gaussian': math.exp(-overlap**2 / sigma)}[method]
            if left[place] < least:
                del left[place]
    return kept


def pixel(image, y, x):
    """The channels of one pixel; zeros outside of the map (C, H, W)."""
    inside = 0 <= y < image.shape[1] and 0 <= x < image.shape[2]
    return image[:, y, x] if inside else image.new_zeros(len(image))


def between(image, y, x):
    """The channels at a place between the four pixels around it, by bilinear interpolation."""
    top, left = (int(torch.as_tensor(each).detach().floor()) for each in (y, x))
    return sum(
        pixel(image, top + down, left + right) * (1 - abs(y - top - down)) * (1 - abs(x - left - right))
        for down in (0, 1) for right in (0, 1))


def roi_align(maps, rois, size, scale, sampling_ratio, aligned):
    height, width = maps.shape[2:]
    out = maps.new_zeros(len(rois), maps.shape[1], *size)
    for k, (image, *corners) in enumerate(rois.tolist()):
        left, top, right, bottom = (corner * scale - aligned / 2 for corner in corners)
        lengths = bottom - top, right - left
        if not aligned:
            lengths = [max(length, 1) for length in lengths]
        bins = [length / number for length, number in zip(lengths, size)]
        samples = [sampling_ratio or math.ceil(each) for each in bins]
        for row in range(size[0]):
            for column in range(size[1]):
                total = 0
                for i in range(samples[0]):
                    for j in range(samples[1]):
                        y = top + (row + (i + 0.5) / samples[0]) * bins[0]
                        x = left + (column + (j + 0.5) / samples[1]) * bins[1]
                        if -1 <= y <= height and -1 <= x <= width:
                            y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
                            total = total + between(maps[int(image)], y, x)
                out[k, :, row, column] = total / max(samples[0] * samples[1], 1)
    return out


def roi_pool(maps, rois, size, scale):
    height, width = maps.shape[2:]
    out = maps.new_zeros(len(rois), maps.shape[1], *size)
    for k, (image, *corners) in enumerate(rois.tolist()):
        left, top, right, bottom = corners[0] * scale, corners[1] * scale, *((each + 1) * scale for each in corners[2:])
        for row in range(size[0]):
            for column in range(size[1]):
                tall, wide = (bottom - top) / size[0], (right - left) / size[1]
                rows = range(max(math.floor(top + row * tall), 0), min(math.ceil(top + (row + 1) * tall), height))
                columns = range(
                    max(math.floor(left + column * wide), 0), min(math.ceil(left + (column + 1) * wide), width))
                if len(rows) and len(columns) and tall > 0 and wide > 0:
                    part = maps[int(image)][:, rows.start:rows.stop, columns.start:columns.stop]
                    out[k, :, row, column] = part.amax((1, 2))
    return out


def deform_conv(maps, offset, weight, mask=None, bias=None, stride=1, padding=0, dilation=1, groups=1, deform_groups=1):
    """``offset`` (N, deform_groups x kernel positions x (y, x), h, w), ``mask`` the same without (y, x)."""
    channels, (rows, columns) = maps.shape[1], weight.shape[2:]
    out = maps.new_zeros(len(maps), len(weight), *offset.shape[2:])
    offset = offset.unflatten(1, (deform_groups, rows * columns, 2))
    mask = offset.new_ones(offset[:, :, :, 0].shape) if mask is None else mask.unflatten(1, (deform_groups, -1))
    for n in range(len(maps)):
        for i in range(out.shape[2]):
            for j in range(out.shape[3]):
                samples = maps.new_zeros(channels, rows * columns)
                for place in range(rows * columns):
                    parts = []
                    for group, part in enumerate(maps[n].chunk(deform_groups)):
                        down, right = offset[n, group, place, :, i, j]
                        y = i * stride - padding + place // columns * dilation + down
                        x = j * stride - padding + place % columns * dilation + right
                        parts.append(between(part, y, x) * mask[n, group, place, i, j])
                    samples[:, place] = torch.cat(parts)
                for group, (part, kernels) in enumerate(zip(samples.chunk(groups), weight.chunk(groups))):
                    of_group = slice(group * len(kernels), (group + 1) * len(kernels))
                    out[n, of_group, i, j] = kernels.flatten(1) @ part.flatten()
    return out if bias is None else out + bias[:, None, None]


def attention(value, shapes, locations, weights):
    """Deformable attention: ``value`` (N, pixels of all levels, heads, C), ``locations`` (N, queries, heads, levels,
    points, (x, y)) from 0 to 1, ``weights`` the same without (x, y)."""
    number, _, heads, channels = value.shape
    out = value.new_zeros(number, locations.shape[1], heads, channels)
    levels = value.split([height * width for height, width in shapes.tolist()], dim=1)
    for n, query, head, level, point in torch.cartesian_prod(*map(torch.arange, weights.shape)).tolist():
        height, width = shapes[level].tolist()
        x, y = locations[n, query, head, level, point]
        image = levels[level][n, :, head].T.reshape(channels, height, width)
        out[n, query, head] += weights[n, query, head, level, point] * between(image, y * height - 0.5, x * width - 0.5)
    return out.flatten(2)


def focal_loss(logits, labels, gamma, alpha, weight=None):
    out = torch.zeros_like(logits)
    for n, label in enumerate(labels.tolist()):
        for c in range(logits.shape[1]):
            p = 1 / (1 + torch.exp(-logits[n, c]))
            loss = -alpha * (1 - p)**gamma * torch.log(p) if c == label else \
                -(1 - alpha) * p**gamma * torch.log(1 - p)
            known = weight is not None and 0 <= label < len(weight)
            out[n, c] = loss * (weight[label] if known else 1)
    return out


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def some_boxes(number=60, seed=0, size=20.):
    """Boxes of about a third of a square of ``size``, many of which overlap, and scores none of which are equal."""
    draw = torch.Generator().manual_seed(seed)
    corner, length = (torch.rand(number, 2, generator=draw) * part for part in (0.7 * size, 0.6 * size))
    return torch.cat([corner, corner + length], 1), torch.randperm(number, generator=draw).float().add(1) / number


# The last two reach out, or are outside. Numbers that 8 bits hold.
ROIS = torch.tensor([
    [0, 1.25, 0.75, 11.25, 9.5], [1, 0, 0, 15, 15], [1, 5.5, 6.125, 6.25, 6.375], [0, -9.25, -4.25, 5.125, 30.75],
    [1, 40.5, 41, 60, 61.5]], dtype=torch.float64)


def convolution(seed=0, kernel=(3, 2), stride=1, padding=0, dilation=1, groups=1, deform_groups=1):
    """Maps, offsets, weights, masks and biases of a convolution from 4 to 6 channels; images of different offsets."""
    size = [(length + 2 * padding - dilation * (part - 1) - 1) // stride + 1 for length, part in zip((5, 4), kernel)]
    positions = deform_groups * kernel[0] * kernel[1]
    return (random(2, 4, 5, 4, seed=seed), random(2, 2 * positions, *size, seed=seed + 1),
            random(6, 4 // groups, *kernel, seed=seed + 2), random(2, positions, *size, seed=seed + 3),
            random(6, seed=seed + 4))


def operations(number=5):
    """A call of each operator with gradients, on ``number`` boxes: (function, inputs)."""
    maps, offset, weight, mask, bias = convolution()
    rois, labels, logits = ROIS[:number], torch.tensor([0, 3, 4, -1, 2])[:number], random(number, 4)
    shapes, starts = torch.tensor([[3, 4], [2, 2]]), torch.tensor([0, 12])
    value, weights = random(2, 16, 2, 3), random(2, 5, 2, 2, 3).softmax(-1)
    locations = random(2, 5, 2, 2, 3, 2, seed=1).sigmoid() * 1.4 - 0.2  # also outside
    attend = ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply
    return {
        'roi_align': (lambda maps: ops.roi_align(maps, rois.to(maps), 2, 0.5), [maps]),
        'roi_pool': (lambda maps: ops.roi_pool(maps, rois.to(maps), 2, 0.5), [maps]),
        'deform_conv2d': (ops.deform_conv2d, [maps, offset, weight]),
        'modulated_deform_conv2d': (ops.modulated_deform_conv2d, [maps, offset, mask, weight, bias]),
        'sigmoid_focal_loss': (
            lambda logits: ops.sigmoid_focal_loss(logits, labels.to(logits.device), 2., 0.25, None, 'none'), [logits]),
        'ms_deform_attn': (
            lambda value, locations, weights: attend(
                value, shapes.to(value.device), starts.to(value.device), locations, weights, 64),
            [value, locations, weights])}


OPERATIONS = list(operations())
