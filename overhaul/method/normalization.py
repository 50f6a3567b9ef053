"""Images normalised for the student, made into what the teacher was trained on."""

from __future__ import annotations

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor, nn


class Renormalize(nn.Module):
    """Turns images (..., C, H, W) that one data preprocessor has normalised into those that another would give.

    Each channel is scaled and shifted, and the order of the channels turned round where the two differ in it. Padding
    that came after the normalisation, as in mmseg, is changed with the images: it differs from the padding of the
    other.

    Args:
        source: The data preprocessor that the images went through.
        target: The other one.

    Raises:
        ValueError: If the two have statistics for different numbers of channels.
    """

    def __init__(self, source: BaseDataPreprocessor, target: BaseDataPreprocessor) -> None:
        super().__init__()
        (source_mean, source_std, source_flip), (target_mean, target_std, target_flip) = (
            _normalization(preprocessor) for preprocessor in (source, target))
        channels = {len(part) for part in (source_mean, source_std, target_mean, target_std)} - {1}
        if len(channels) > 1:
            raise ValueError(
                'The data preprocessors of student and teacher have a mean or std for '
                f'{" and ".join(map(str, sorted(channels)))} channels, and both see the same images. Give all of them '
                'as many, or one for all channels.')
        self.flip = source_flip != target_flip and channels <= {3}  # only three channels are turned round
        if self.flip:
            source_mean, source_std = source_mean.flip(0), source_std.flip(0)
        self.register_buffer('scale', (source_std / target_std).view(-1, 1, 1), persistent=False)
        self.register_buffer('shift', ((source_mean - target_mean) / target_std).view(-1, 1, 1), persistent=False)

    @property
    def is_identity(self) -> bool:
        """Whether both preprocessors normalise alike."""
        return not self.flip and bool(torch.all(self.scale == 1) and torch.all(self.shift == 0))

    def forward(self, images: Tensor) -> Tensor:
        """Return the images, normalised anew."""
        if self.flip and images.shape[-3] == 3:  # as the preprocessors do
            images = images.flip(-3)
        return images * self.scale + self.shift


def _normalization(preprocessor: BaseDataPreprocessor) -> tuple[Tensor, Tensor, bool]:
    """Return mean and standard deviation, (C,) or (1,) for all, and whether three channels are turned round before."""
    mean, std = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None)
    mean = torch.zeros(1) if mean is None else mean.detach().flatten()
    std = torch.ones(1) if std is None else std.detach().flatten()
    return mean, std, turns_channels(preprocessor)


def turns_channels(preprocessor: BaseDataPreprocessor) -> bool:
    """Whether a data preprocessor takes images of three channels from BGR to RGB or back."""
    # One name in mmpretrain, another in mmengine and mmseg.
    names = ('to_rgb', '_channel_conversion', 'channel_conversion')
    return any(getattr(preprocessor, name, False) for name in names)
