"""Overhaul: feature distillation (Heo et al., ICCV 2019) for mmpretrain and mmsegmentation."""

from importlib import import_module

from overhaul import own_configs

__version__ = '0.1.0'

_PUBLIC = {
    'OverhaulDistiller': 'distiller',
    'MarginReLU': 'margins',
    'margin_from_batch_norm': 'margins',
    'ConvBNConnector': 'connectors',
    'PartialL2Loss': 'losses',
    'L2Loss': 'losses',
    'partial_l2': 'losses',
    'Digits': 'datasets',
    'DigitScenes': 'datasets',
}

__all__ = ['__version__', *_PUBLIC]

own_configs.allow_as_base()


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that `import overhaul` itself stays light: no torch."""
    if name in _PUBLIC:
        return getattr(import_module(f'overhaul.{_PUBLIC[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
