"""Backbones that mmpretrain lacks. They know nothing of distillation."""

from overhaul.backbones.wide_resnet import WideResNet

__all__ = ['WideResNet']
