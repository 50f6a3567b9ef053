"""Segmentation heads and their loss, on those of mmseg."""

import overhaul.registry  # noqa: F401  mmseg is imported after it
from overhaul.models.heads.cross_entropy import CrossEntropyPerImage
from overhaul.models.heads.deeplab_v3_plus_head import DeepLabV3PlusHead

__all__ = ['CrossEntropyPerImage', 'DeepLabV3PlusHead']
