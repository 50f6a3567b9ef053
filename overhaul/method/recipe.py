"""What the optimizer does with each parameter: with the student's, what its recipe says without a teacher."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial

from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, Registry, build_from_cfg
from torch import nn


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
        bare, paramwise = getattr(model, 'module', model), cfg.get('paramwise_cfg') or {}
        if not isinstance(bare, kind):
            return build_from_cfg(cfg, registry, **arguments)(model)
        if 'custom_keys' in paramwise:
            paramwise = {**paramwise, 'custom_keys': _as_keys_of_student(paramwise['custom_keys'], bare.student)}
        return build_from_cfg({**cfg, 'paramwise_cfg': paramwise or None}, registry, **arguments)(as_student(bare))

    return construct


def _as_keys_of_student(keys: Mapping[str, dict], student: nn.Module) -> dict[str, dict]:
    """Put in place of the ``custom_keys`` that begin with ``student.`` the whole names of the parameters they mean.

    Without their beginning they would mean others too: ``student.neck`` is no ``decode_head.bottleneck``.
    """
    names = [name for name, _ in student.named_parameters()]
    of_distiller = [
        key for key in keys if f'{key}.'.startswith('student.') and not any(key in name for name in names)]
    own = {key: options for key, options in keys.items() if key not in of_distiller}
    for name in names if of_distiller else ():
        # As in mmengine, the longest key that a name holds decides.
        decides = next((key for key in sorted(sorted(keys), key=len, reverse=True) if key in f'student.{name}'), None)
        if decides in of_distiller:
            own[name] = keys[decides]
    return own
