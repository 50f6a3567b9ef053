"""Backbones that mmpretrain and mmseg lack. They know nothing of distillation."""

import overhaul.registry  # noqa: F401  mmseg is imported after it
from overhaul.models.backbones.cifar_resnet import CifarResNet
from overhaul.models.backbones.dilated_resnet import DilatedResNet
from overhaul.models.backbones.mobilenet_v1 import MobileNetV1
from overhaul.models.backbones.pyramidnet import PyramidNet
from overhaul.models.backbones.wide_resnet import WideResNet

__all__ = ['CifarResNet', 'DilatedResNet', 'MobileNetV1', 'PyramidNet', 'WideResNet']
