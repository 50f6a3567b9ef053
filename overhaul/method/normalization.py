"""Images normalised for the student, made into what the teacher was trained on."""

from __future__ import annotations

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor, nn


class Renormalize(nn.Module):
    """Takes images (N, 3, H, W) from the normalisation and channel order of one data preprocessor to another's.

    A map per channel, on the device of the images. What was padded after normalisation, as mmseg pads, stays a constant
    but not the teacher's.

    Args:
        source: The data preprocessor that the images went through.
        target: The one that they shall look as if they had gone through.
    """

    def __init__(self, source: BaseDataPreprocessor, target: BaseDataPreprocessor) -> None:
        super().__init__()
        (source_mean, source_std, source_flip), (target_mean, target_std, target_flip) = (
            _normalization(preprocessor) for preprocessor in (source, target))
        self.flip = source_flip != target_flip
        if self.flip:
            source_mean, source_std = source_mean.flip(0), source_std.flip(0)
        self.register_buffer('scale', (source_std / target_std).view(3, 1, 1), persistent=False)
        self.register_buffer('shift', ((source_mean - target_mean) / target_std).view(3, 1, 1), persistent=False)

    @property
    def is_identity(self) -> bool:
        """Whether both preprocessors normalise alike."""
        return not self.flip and bool(torch.all(self.scale == 1) and torch.all(self.shift == 0))

    def forward(self, images: Tensor) -> Tensor:
        """Return the images, normalised anew."""
        if self.flip:
            images = images.flip(1)
        return images * self.scale + self.shift


def _normalization(preprocessor: BaseDataPreprocessor) -> tuple[Tensor, Tensor, bool]:
    """Return mean (3,), standard deviation (3,), and whether the channels are turned round before."""
    mean, std = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None)
    mean = torch.zeros(3) if mean is None else mean.detach().flatten().expand(3)
    std = torch.ones(3) if std is None else std.detach().flatten().expand(3)
    # One name in mmpretrain, another in mmengine and mmseg.
    flip = getattr(preprocessor, 'to_rgb', False) or getattr(preprocessor, '_channel_conversion', False) or getattr(
        preprocessor, 'channel_conversion', False)
    return mean, std, bool(flip)
