"""Backbones that mmpretrain and mmseg lack. They know nothing of distillation."""

import overhaul.registry  # noqa: F401  mmseg is imported after it
from overhaul.backbones.dilated_resnet import DilatedResNet
from overhaul.backbones.wide_resnet import WideResNet

__all__ = ['DilatedResNet', 'WideResNet']
