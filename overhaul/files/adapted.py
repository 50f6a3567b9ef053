"""What a model makes of weights when it loads them: names of older versions, maps and windows of another size."""

from __future__ import annotations

import copy
import math
import sys
from dataclasses import replace

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from overhaul.files.names import Fit


def adapted(model: nn.Module, fit: Fit) -> Fit:
    """Return ``fit`` with its weights as the modules of ``model`` change them while they load them.

    Those of mmpretrain resize the position embeddings of transformers, and drop what they compute themselves, which is
    then as ``model`` has it; convolutions of mmcv compute their scale; timm has a function for each kind of network.
    What is left at another size is resized here, see :func:`_resized`. Where the code of a module fails, the log says
    so, and the weights stay as they are.
    """
    weights, trial = dict(fit.weights), copy.deepcopy(model)
    for path, module in trial.named_modules():
        try:
            # As torch does it, but with one dictionary for all, which then holds what they have made of it.
            module._load_from_state_dict(weights, f'{path}.' if path else '', {}, False, [], [], [])
        except Exception as error:  # the code of any package, on weights that may be of another model
            _tell(path, module, error)
    if not weights.keys() & fit.taken.keys():
        weights = dict(fit.weights)  # TimmClassifier renames all, for files of timm; their names are known here
    weights = _as_timm_takes_them(weights, trial)
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
            weights[name] = _resized(value, like, owner, _sizes_around(owner, modules))
    return replace(
        fit, weights=weights, left_out=fit.left_out + [name for name in dropped if name not in fit.model],
        adapted=[name for name, value in weights.items() if value is not fit.weights.get(name)])


def _as_timm_takes_them(weights: dict[str, object], model: nn.Module) -> dict[str, object]:
    """Return ``weights`` with those of a network of timm as timm changes those that it downloads."""
    for path, module in model.named_modules():
        convert = getattr(sys.modules.get(type(module).__module__), 'checkpoint_filter_fn', None)
        if convert is None or not type(module).__module__.startswith('timm.'):
            continue
        beginning = f'{path}.' if any(name.startswith(f'{path}.') for name in weights) else ''
        inside = {name.removeprefix(beginning): value for name, value in weights.items() if name.startswith(beginning)}
        try:
            changed = convert(dict(inside), module)
        except Exception as error:
            _tell(path, module, error)
            return weights
        others = {name: value for name, value in weights.items() if not name.startswith(beginning)}
        return others | {beginning + name: value for name, value in changed.items()}
    return weights


def _tell(path: str, module: nn.Module, error: Exception) -> None:
    why = str(error).strip().partition('\n')[0] or type(error).__name__
    print_log(f'The code of the {type(module).__name__} "{path}" failed on the weights: {why}', 'current')


def _sizes_around(owner: nn.Module, modules: dict[str, nn.Module]) -> tuple[tuple | None, tuple | None]:
    """Return the size of the image and of its patches that the nearest module tells, of those in and around ``owner``.
    """
    path = next(path for path, module in modules.items() if module is owner)
    parts = path.split('.') if path else []
    around = [modules['.'.join(parts[:depth])] for depth in range(len(parts), -1, -1)]
    for module in (part for outer in around for part in (outer, *outer.children())):
        image = _pair(getattr(module, 'img_size', None)) or _pair(getattr(module, 'image_size', None))
        patch = _pair(getattr(module, 'patch_size', None))
        if image and patch:
            return image, patch
    return None, None


def _resized(
        value: Tensor, like: Tensor, owner: nn.Module, sizes: tuple[tuple | None, tuple | None]) -> Tensor:
    """Return a position embedding, or a table of relative positions, at the size that its ``owner`` needs.

    mmseg and mmdet do so in ``init_weights`` alone, mmpretrain, for tables, with a function that scipy 1.14 took out,
    and torchvision and transformers leave it to who loads. Here it is bicubic, from what was a square. What is neither
    of the two is returned as it is.

    Args:
        value: An embedding (1, L, C), extra tokens first; or a table (L, heads), what belongs to those last.
        like: What ``owner`` has in its place.
        owner: A module with a ``window_size``, or one for which ``sizes`` are known.
        sizes: Of the image and of its patches.
    """
    window, (image, patch) = _pair(getattr(owner, 'window_size', None)), sizes
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
    # As each package does it.
    corners = type(owner).__module__.startswith('torchvision.')
    maps = nn.functional.interpolate(maps, size, mode='bicubic', align_corners=corners)
    maps = maps.flatten(2).transpose(1, 2).to(value.dtype)
    return torch.cat([rest, maps], 1) if tokens else torch.cat([maps[0], rest])


def _pair(size: object) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list | tuple) else None
