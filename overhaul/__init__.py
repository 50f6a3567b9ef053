"""Overhaul: feature distillation (Heo et al., ICCV 2019) for mmpretrain and mmsegmentation."""

from importlib import import_module

from overhaul.files import own_configs

__version__ = '0.1.0'

_PUBLIC = {
    'OverhaulDistiller': 'method.distiller',
    'MarginReLU': 'method.margins',
    'margin_from_batch_norm': 'method.margins',
    'ConvBNConnector': 'method.connectors',
    'PartialL2Loss': 'method.losses',
    'L2Loss': 'method.losses',
    'partial_l2': 'method.losses',
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
