"""What a model makes of weights when it loads them: names of older versions, maps and windows of another size."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from overhaul.files.names import Fit


def adapted(model: nn.Module, fit: Fit) -> Fit:
    """Return ``fit`` with its weights as the modules of ``model`` change them while they load them.

    Those of mmpretrain resize the position embeddings of transformers, and drop what they compute themselves, which is
    then as ``model`` has it; convolutions of mmcv compute their scale. What is left at another size is resized here,
    see :func:`_resized`. Where the code of a module fails, the log says so, and the weights stay as they are.
    """
    weights, trial = dict(fit.weights), copy.deepcopy(model)
    for path, module in trial.named_modules():
        try:
            # As torch does it, but with one dictionary for all, which then holds what they have made of it.
            module._load_from_state_dict(weights, f'{path}.' if path else '', {}, False, [], [], [])
        except Exception as error:  # the code of any package, on weights that may be of another model
            why = str(error).strip().partition('\n')[0] or type(error).__name__
            print_log(f'The code of the {type(module).__name__} "{path}" failed on the weights: {why}', 'current')
    if not weights.keys() & fit.taken.keys():
        weights = dict(fit.weights)  # TimmClassifier renames all, for files of timm; their names are known here
    computed = {name: value for name, value in trial.state_dict().items()
                if name in fit.missing and name not in weights and isinstance(value, Tensor)
                and (value != fit.model[name]).any()}
    moved = {id(value) for value in weights.values()}
    dropped = [name for name, value in fit.weights.items() if name not in weights and id(value) not in moved]
    weights |= {name: fit.model[name] for name in dropped if name in fit.model} | computed
    modules = dict(model.named_modules())
    for name, value in weights.items():
        path = name.rpartition('.')[0]  # TimmClassifier names its tensors as its trunk does
        like, owner = fit.model.get(name), modules.get(path) or modules.get(f'{fit.task.trunk}.{path}')
        if like is not None and owner is not None and isinstance(value, Tensor) and value.shape != like.shape:
            weights[name] = _resized(value, like, owner)
    return replace(
        fit, weights=weights, left_out=fit.left_out + [name for name in dropped if name not in fit.model],
        adapted=[name for name, value in weights.items() if value is not fit.weights.get(name)])


def _resized(value: Tensor, like: Tensor, owner: nn.Module) -> Tensor:
    """Return a position embedding, or a table of relative positions, at the size that its ``owner`` needs.

    mmseg and mmdet do so in ``init_weights`` alone, and mmpretrain, for tables, with a function that scipy 1.14 took
    out. Here it is bicubic, from what was a square. What is neither of the two is returned as it is.

    Args:
        value: An embedding (1, L, C), extra tokens first; or a table (L, heads), what belongs to those last.
        like: What ``owner`` has in its place.
        owner: A module with a ``window_size``, or with an ``img_size`` and a ``patch_size``.
    """
    window, image, patch = (_pair(getattr(owner, name, None)) for name in ('window_size', 'img_size', 'patch_size'))
    if window and value.dim() == 2:
        tokens, size = 0, tuple(2 * length - 1 for length in window)
    elif image and patch and value.dim() == 3:
        tokens, size = 1, tuple(length // step for length, step in zip(image, patch))
    else:
        return value
    extra = like.shape[tokens] - math.prod(size)
    side = math.isqrt(max(0, value.shape[tokens] - extra))
    if extra < 0 or side ** 2 != value.shape[tokens] - extra or value.shape[tokens + 1:] != like.shape[tokens + 1:]:
        return value
    rest, grid = value.split([extra, side ** 2], 1) if tokens else value.split([side ** 2, extra])[::-1]
    maps = grid.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    maps = nn.functional.interpolate(maps, size, mode='bicubic').flatten(2).transpose(1, 2).to(value.dtype)
    return torch.cat([rest, maps], 1) if tokens else torch.cat([maps[0], rest])


def _pair(size: object) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list | tuple) else None
