"""The layout of feature maps in memory."""

import torch
from torch import Tensor, nn


def quickest(feature: Tensor) -> Tensor:
    """Return the map (N, C, H, W) in the layout in which its device normalises and convolves it quickest.

    On a CPU that is channels-last, whatever the layout of the weights: a batch norm with the statistics of the batch
    takes about a quarter of the time, for the largest maps three quarters. Elsewhere it depends on the precision, and
    the map is returned as it is; so it is in a graph that is compiled, whose compiler chooses, and so are clips.
    """
    if feature.device.type != 'cpu' or feature.dim() != 4 or torch.compiler.is_compiling():
        return feature
    return feature.contiguous(memory_format=torch.channels_last)


def give_operators_plain_maps(model: nn.Module) -> None:
    """Let the operators of mmcv in ``model`` get their maps (N, C, H, W) in the plain layout.

    The compiled ones of mmcv 2.1 take it for granted. Of channels-last maps its RoIAlign gives wrong numbers, without a
    word, and its deformable convolutions end in an error.
    """
    for module in model.modules():
        of_mmcv = any(base.__module__.startswith('mmcv.ops.') for base in type(module).__mro__)
        if of_mmcv and _plain not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_plain)


def _plain(module: nn.Module, inputs: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(value.contiguous() if isinstance(value, Tensor) else value for value in inputs)
