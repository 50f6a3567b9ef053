"""Overhaul: feature distillation (Heo et al., ICCV 2019) for mmpretrain and mmsegmentation."""

from importlib import import_module

from overhaul.files import own_configs

__version__ = '0.1.0'

# All that is registered, for configs that name classes, and the functions of the method: where each is.
_PUBLIC = {name: module for module, names in {
    'method.distiller': ['OverhaulDistiller'],
    'method.connectors': ['ConvBNConnector'],
    'method.margins': ['MarginReLU', 'margin_from_batch_norm'],
    'method.losses': ['PartialL2Loss', 'L2Loss', 'partial_l2'],
    'models.backbones': ['CifarResNet', 'DilatedResNet', 'MobileNetV1', 'PyramidNet', 'WideResNet'],
    'models.heads': ['CrossEntropyPerImage', 'DeepLabV3PlusHead'],
    'datasets': [
        'CIFAR100', 'DigitScenes', 'Digits', 'EvaluateAtInputSize', 'ImageNet', 'InMemory', 'PascalVOC'],
    'datasets.batch_augmentation': ['CropFlipPreprocessor'],
    'datasets.voc_submission': ['VOCSubmission'],
    'engine.dry_run': ['DryRunHook', 'RandomImages'],
    'engine.hooks': [
        'AverageStatisticsHook', 'CalibrateHook', 'ConnectorsFirstHook', 'HealthHook', 'PictureHook',
        'ResetMomentumHook', 'SummaryHook'],
    'engine.modes': ['Bfloat16OptimWrapper', 'ChannelsLastHook', 'CompileHook'],
    'engine.schedulers': ['PolyLR'],
}.items() for name in names}

__all__ = ['__version__', *_PUBLIC]

own_configs.allow_as_base()


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that `import overhaul` itself stays light: no torch."""
    if name in _PUBLIC:
        return getattr(import_module(f'overhaul.{_PUBLIC[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
