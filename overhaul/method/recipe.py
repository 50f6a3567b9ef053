"""What the optimizer does with each parameter: with the student's, what its recipe says without a teacher."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Mapping
from functools import partial

from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, Registry, build_from_cfg
from torch import nn

from overhaul.registry import nearest, type_name


def follow(kind: type[nn.Module]) -> None:
    """Let every constructor of an optimizer wrapper see a distiller of this ``kind`` as :func:`as_student` shows it.

    Constructors, those of mmengine and of any other package, go by the names of parameters, as ``backbone.layers.0``,
    and some ask the model, as for ``get_layer_depth``. In the distiller the names begin with ``student.``, and there is
    nobody to ask.
    """
    OPTIM_WRAPPER_CONSTRUCTORS.build_func = partial(_build, kind)


def as_student(distiller: nn.Module) -> nn.Module:
    """Return the student of ``distiller`` with connectors, margins and distance as further parts of it.

    It has the parameters of the distiller in the same order: the student's under the names that they have without a
    teacher, then ``connectors.0.conv.weight`` and so on, or ``distiller.connectors...`` where the student has a part of
    that name.
    """
    student = distiller.student
    view = copy.copy(student)
    view._modules = dict(student._modules)
    for name, part in distiller.named_children():
        if part is not student and part is not view._modules.get(name):
            view._modules[f'distiller.{name}' if name in view._modules else name] = part
    view._parameters = {**student._parameters, **distiller._parameters}
    return view


def _build(kind: type, cfg: dict, registry: Registry, **arguments: object) -> Callable[[nn.Module], OptimWrapper]:
    def construct(model: nn.Module) -> OptimWrapper:
        bare, seen, recipe = getattr(model, 'module', model), model, cfg
        if isinstance(bare, kind):
            paramwise = cfg.get('paramwise_cfg') or {}
            if 'custom_keys' in paramwise:
                paramwise = {**paramwise, 'custom_keys': _as_keys_of_student(paramwise, bare)}
            seen, recipe = as_student(bare), {**cfg, 'paramwise_cfg': paramwise or None}
        try:
            return build_from_cfg(recipe, registry, **arguments)(seen)
        except (TypeError, KeyError, NameError) as error:  # of what paramwise_cfg lacks, deep in a constructor
            if not _is_of_a_package(error):
                raise
            given = dict(cfg.get('paramwise_cfg') or {})
            raise ValueError(
                f'The {type_name(cfg)} of the optimizer fails with paramwise_cfg={given} ({type(error).__name__}: '
                f'{error}). Those of mmseg and mmdet need num_layers, the depth of the backbone, decay_rate, and '
                'decay_type="layer_wise" or "stage_wise"; the LayerDecayOptimizerConstructor needs num_layers and '
                'layer_decay_rate.') from error
        except NotImplementedError as error:
            backbone = getattr(seen, 'backbone', seen)
            raise ValueError(
                f'The {type_name(cfg)} of the optimizer does not know which parameter of a {type(backbone).__name__} '
                'is in which layer. That of mmpretrain knows it of ViT, Swin, ConvNeXt, BEiT and their like, and of '
                'ResNets with the blocks of depth 50 and more; that of mmseg of ConvNeXt, BEiT and MAE; that of mmdet '
                'of ConvNeXt. For others leave the constructor out, and give a rate to each part by its name, as in '
                "paramwise_cfg=dict(custom_keys={'backbone.layer1': dict(lr_mult=0.25)}).") from error

    return construct


def _is_of_a_package(error: Exception) -> bool:
    """Return whether the code of a constructor raised ``error``, and not that of mmengine."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    of_constructor = isinstance(frame.f_locals.get('self'), DefaultOptimWrapperConstructor)
    return of_constructor and not frame.f_globals['__name__'].startswith('mmengine.')


def _as_keys_of_student(paramwise: Mapping[str, object], distiller: nn.Module) -> dict[str, dict]:
    """Return ``custom_keys`` where those that begin with ``student.`` are whole names of the parameters they mean.

    Without their beginning they would mean others too: ``student.neck`` is no ``decode_head.bottleneck``. A parameter
    whose name holds such a whole name gets a key of its own, with what it would get without.

    Raises:
        ValueError: If no key can say that, since what it would get depends on more than ``custom_keys``. If these are
            no dicts by name. If one begins as a part of the distiller does and is in the name of no parameter.
    """
    keys = paramwise['custom_keys']
    if not isinstance(keys, Mapping) or not all(isinstance(options, Mapping) for options in keys.values()):
        raise ValueError(
            f'paramwise_cfg.custom_keys is {keys!r}. Give a dict by the name of each part, as in '
            "custom_keys={'backbone': dict(lr_mult=0.1)}.")
    of_all = [name for model in (distiller, as_student(distiller)) for name, _ in model.named_parameters()]
    parts = {name for name, _ in distiller.named_children()}
    for key in keys:
        if key.partition('.')[0] in parts and not any(key in name for name in of_all):
            paths = (name.rsplit('.', count)[0] for name in of_all for count in range(name.count('.') + 1))
            raise ValueError(
                f'paramwise_cfg.custom_keys has "{key}", which is in the name of no parameter. Nearest: '
                f'{nearest(key, paths)}.')
    names = [name for name, _ in distiller.student.named_parameters()]
    of_distiller = [
        key for key in keys if f'{key}.'.startswith('student.') and not any(key in name for name in names)]
    own = {key: options for key, options in keys.items() if key not in of_distiller}
    if not of_distiller:
        return own

    def decides(name: str) -> str | None:
        # As in mmengine, the longest key that a name holds.
        return next((key for key in sorted(sorted(keys), key=len, reverse=True) if key in name), None)

    deciding = {name: decides(f'student.{name}') for name in names}
    meant = [name for name, key in deciding.items() if key in of_distiller]
    own |= {name: keys[deciding[name]] for name in meant}
    for other, _ in as_student(distiller).named_parameters():
        within = [name for name in meant if name in other and other not in meant]
        if within:
            key = deciding.get(other) or decides(other)
            if key is None and paramwise.keys() - {'custom_keys', 'bypass_duplicate'}:
                raise ValueError(
                    f'paramwise_cfg.custom_keys has "{deciding[within[0]]}", which means {within[0]}. mmengine looks '
                    f'for that name within others, and would find it in {other} too. Give that one a key of its own, '
                    f'as "{other.rpartition(".")[0]}": dict(lr_mult=1).')
            own[other] = keys.get(key, {})
    return own
