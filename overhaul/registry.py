"""Registries of scope ``overhaul``: every component is usable from any OpenMMLab config as ``overhaul.X``."""

import difflib
import re
from collections.abc import Iterable

from mmengine import registry as mmengine_registry
from mmengine.registry import Registry
from torch import nn

from overhaul import compat

# Whatever of overhaul a config names, this module is imported first, and so before mmseg.
compat.apply()


def _child(parent: Registry, locations: list[str]) -> Registry:
    return Registry(
        parent.name, parent=parent, scope='overhaul', locations=[f'overhaul.{name}' for name in locations])


MODELS = _child(
    mmengine_registry.MODELS,
    ['distiller', 'connectors', 'margins', 'losses', 'backbones', 'heads'])
DATASETS = _child(mmengine_registry.DATASETS, ['datasets', 'dry_run'])
TRANSFORMS = _child(mmengine_registry.TRANSFORMS, ['datasets'])
HOOKS = _child(mmengine_registry.HOOKS, ['hooks', 'dry_run'])
METRICS = _child(mmengine_registry.METRICS, ['voc_submission'])
PARAM_SCHEDULERS = _child(mmengine_registry.PARAM_SCHEDULERS, ['schedulers'])


def nearest(name: str, names: Iterable[str]) -> str:
    """Return up to three of ``names`` that look most like ``name``, for an error message; all of them if none does."""
    names = sorted(set(names))
    return ', '.join(difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names)


def build(cfg: dict, what: str, scope: str | None = None, **arguments: object) -> nn.Module:
    """Build the model component ``cfg``, with errors made for the person who wrote the config.

    Args:
        cfg: Config dict with ``type``.
        what: What it is in the config, for error messages: ``'student'``, ``'connector'``.
        scope: Registry scope in which a ``type`` without prefix is looked up. Default: that of the config file.
        arguments: Further arguments of the component.

    Raises:
        ValueError: If a type is unknown; names the nearest ones.
    """
    if scope is not None:
        cfg = {'_scope_': scope, **cfg}
    try:
        return MODELS.build({**cfg, **arguments})
    except KeyError as error:
        unknown = re.match(r"'?(\S+) is not in the (\S+) registry", str(error).strip('"'))
        if unknown is None:
            raise
        raise ValueError(
            f'The {what} asks for the type "{unknown[1]}", which no package has registered. '
            f'Nearest: {nearest(unknown[1].rpartition(".")[2], _known_types())}. '
            'A type of another package is written with its scope, as in "mmpretrain.ResNet".') from None


def _known_types() -> set[str]:
    registries = [mmengine_registry.MODELS, *mmengine_registry.MODELS.children.values()]
    return {name for registry in registries for name in registry.module_dict}
