"""Datasets and transforms, registered in ``overhaul.registry``."""

import overhaul.registry  # noqa: F401  mmseg is imported after it
from overhaul.datasets.digits import Digits
from overhaul.datasets.pascal_voc import PascalVOC
from overhaul.datasets.transforms import EvaluateAtInputSize

__all__ = ['Digits', 'EvaluateAtInputSize', 'PascalVOC']
