"""The weights with which a model begins, where a part of it names their file as ``init_cfg``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from overhaul.files.checkpoints import PLAIN_KEYS, examples
from overhaul.files.weights import Source, WeightsFile
from overhaul.registry import counted, is_type

_SAMPLES = 16


def initialise(model: nn.Module, init_weights: Callable[[], None]) -> None:
    """Initialise ``model`` with its ``init_weights``, and refuse a file of an ``init_cfg`` that is of another network.

    mmengine, and backbones with code of their own for it, load what happens to have the same name and shape, which may
    be nothing, and go on. What is left out may be wanted, as in a backbone with another stem; more than half of it,
    or layers of another shape, are not.

    Raises:
        FileNotFoundError, ValueError: As :func:`overhaul.files.checkpoints.read_checkpoint`.
        ValueError: If no name in the file begins with the ``prefix`` that the ``init_cfg`` gives, if less than half of
            the tensors of that part are from the file, or if several of its layers have another shape there.
    """
    begun = list(_pretrained(model))
    for _, _, cfg in begun:
        if cfg.get('prefix'):
            WeightsFile(_source(cfg))  # refuses
    try:
        init_weights()
    except RuntimeError:  # of a backbone that loads its file by itself
        _check_that_they_came(begun)
        raise
    _check_that_they_came(begun)


def _pretrained(model: nn.Module) -> Iterator[tuple[str, nn.Module, dict]]:
    for path, module in model.named_modules():
        cfgs = getattr(module, 'init_cfg', None)
        for cfg in cfgs if isinstance(cfgs, list | tuple) else [cfgs]:
            if is_type(cfg, 'mmengine.Pretrained') and cfg.get('checkpoint') and not getattr(module, 'is_init', False):
                yield path, module, cfg


def _source(cfg: dict) -> Source:
    return Source(str(cfg['checkpoint']), prefix=cfg.get('prefix'))


def _check_that_they_came(begun: list[tuple[str, nn.Module, dict]]) -> None:
    for path, module, cfg in begun:
        _check_that_it_came(path, module, cfg)


def _check_that_it_came(path: str, module: nn.Module, cfg: dict) -> None:
    file = WeightsFile(_source(cfg))
    there = {_sample(value) for weights in file.sets.values() for value in weights.values()
             if isinstance(value, Tensor) and value.is_floating_point()}
    # What is the same number everywhere may be so without the file.
    own = [value for value in module.state_dict().values()
           if value.is_floating_point() and (value != value.flatten()[:1]).any()]
    came, fit = sum(_sample(value) in there for value in own), file.nearest(module)
    layers = fit.layers_of_another_shape
    if 2 * came >= len(own) and len(layers) < 2:
        return
    what = (f'only {came} of {counted(len(own), "tensor")} of learnt numbers came from there'
            if 2 * came < len(own) else
            f'{len(layers)} of its layers have another shape there ({examples(layers)})')
    where = f'the init_cfg of "{path}"' if path else 'its init_cfg'
    raise ValueError(
        f'The {type(module).__name__} was to begin with "{cfg["checkpoint"]}", as '
        f'{where} says, and {what}. {_advice(module, cfg)}')


def _sample(value: Tensor) -> tuple:
    some = value.detach().flatten()[::max(1, value.numel() // _SAMPLES)]
    return (*value.shape, *some.to('cpu', torch.float32).tolist())


def _advice(module: nn.Module, cfg: dict) -> str:
    """Say how the weights would come, if they are there."""
    fit = WeightsFile(Source(str(cfg['checkpoint']))).nearest(module)
    if fit.is_of_another_network:
        return 'It is the file of another network: name that of this one, or leave the init_cfg out.'
    if fit.prefix and fit.key in PLAIN_KEYS and not fit.added and not fit.adapted:
        return f'What belongs to it begins with "{fit.prefix}" there: give the init_cfg prefix="{fit.prefix}".'
    return ('The file has other names for them. Leave the init_cfg out, and name the file as load_from, or in a '
            'distillation as student_checkpoint or teacher_checkpoint, which find out what is what.')
