"""Datasets and transforms, registered in ``overhaul.registry``."""

import overhaul.registry  # noqa: F401  mmseg is imported after it
from overhaul.datasets.cifar100 import CIFAR100
from overhaul.datasets.digit_scenes import DigitScenes
from overhaul.datasets.digits import Digits
from overhaul.datasets.imagenet import ImageNet
from overhaul.datasets.in_memory import InMemory
from overhaul.datasets.pascal_voc import PascalVOC
from overhaul.datasets.transforms import EvaluateAtInputSize

__all__ = ['CIFAR100', 'DigitScenes', 'Digits', 'EvaluateAtInputSize', 'ImageNet', 'InMemory', 'PascalVOC']
