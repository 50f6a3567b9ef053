"""Registries of scope ``overhaul``: every component is usable from any OpenMMLab config as ``overhaul.X``."""

from mmengine import registry as mmengine_registry
from mmengine.registry import Registry

from overhaul import compat

# Whatever of overhaul a config names, this module is imported first, and so before mmseg.
compat.apply()


def _child(parent: Registry, locations: list[str]) -> Registry:
    return Registry(
        parent.name, parent=parent, scope='overhaul', locations=[f'overhaul.{name}' for name in locations])


MODELS = _child(
    mmengine_registry.MODELS,
    ['distiller', 'connectors', 'margins', 'losses', 'backbones', 'heads'])
DATASETS = _child(mmengine_registry.DATASETS, ['datasets'])
TRANSFORMS = _child(mmengine_registry.TRANSFORMS, ['datasets'])
HOOKS = _child(mmengine_registry.HOOKS, ['hooks'])
PARAM_SCHEDULERS = _child(mmengine_registry.PARAM_SCHEDULERS, ['schedulers'])
