"""Overhaul: feature distillation (Heo et al., ICCV 2019) for models of MMEngine."""

from importlib import import_module
from importlib.util import find_spec

_missing = [name for name in ('mmengine', 'mmcv', 'mmpretrain') if find_spec(name) is None]
if _missing:
    raise ModuleNotFoundError(
        f'Overhaul stands on mmengine, mmcv and mmpretrain, and {" and ".join(_missing)} cannot be found. '
        'pip install "overhaul[lite]" brings them, without a compiler, and "overhaul[onedl]" brings forks of them that '
        'are maintained. Where some of them are installed already, use neither of the two: install only what is '
        'missing, by its own name.')

from overhaul import own_configs  # noqa: E402

__version__ = '0.1.0'

# All that is registered, for configs that name classes, and the functions of the method: where each is.
_PUBLIC = {name: module for module, names in {
    'method.distiller': ['OverhaulDistiller'],
    'method.connectors': ['ConvBNConnector'],
    'method.margins': ['MarginReLU', 'margin_from_batch_norm'],
    'method.losses': ['PartialL2Loss', 'L2Loss', 'partial_l2'],
    'models.backbones.cifar_resnet': ['CifarResNet'],
    'models.backbones.dilated_resnet': ['DilatedResNet'],
    'models.backbones.mobilenet_v1': ['MobileNetV1'],
    'models.backbones.pyramidnet': ['PyramidNet'],
    'models.backbones.wide_resnet': ['WideResNet'],
    'models.heads.cross_entropy': ['CrossEntropyPerImage'],
    'models.heads.deeplab_v3_plus_head': ['DeepLabV3PlusHead'],
    'datasets.cifar100': ['CIFAR100'],
    'datasets.digit_scenes': ['DigitScenes'],
    'datasets.digits': ['Digits'],
    'datasets.imagenet': ['ImageNet'],
    'datasets.in_memory': ['InMemory'],
    'datasets.pascal_voc': ['PascalVOC'],
    'datasets.transforms': ['EvaluateAtInputSize'],
    'datasets.unlabelled': ['BlankMask', 'ForgetLabels', 'ImageFolder', 'WithUnlabelled'],
    'datasets.batch_augmentation': ['CropFlipPreprocessor'],
    'datasets.voc_submission': ['VOCSubmission'],
    'engine.dry_run': ['DryRunHook', 'RandomImages'],
    'engine.hooks': [
        'AverageStatisticsHook', 'CalibrateHook', 'ConnectorsFirstHook', 'HealthHook', 'PictureHook',
        'ProbeFeaturesHook', 'ResetMomentumHook', 'SummaryHook'],
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
