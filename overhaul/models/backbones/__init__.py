"""Backbones that mmpretrain and mmseg lack. They know nothing of distillation."""

import overhaul.registry  # noqa: F401  mmseg is imported after it
