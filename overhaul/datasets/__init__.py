"""Datasets and transforms."""

import overhaul.registry  # noqa: F401  mmseg is imported after it
