"""Segmentation heads and their loss, on those of mmseg."""

import overhaul.registry  # noqa: F401  mmseg is imported after it
