"""Random crops and flips of a whole batch on the device of the model, where image by image would keep a GPU waiting."""

from __future__ import annotations

from typing import Any

import torch
from mmpretrain.models import ClsDataPreprocessor
from torch import Tensor

from overhaul.registry import MODELS


@MODELS.register_module()
class CropFlipPreprocessor(ClsDataPreprocessor):
    """mmpretrain's ``ClsDataPreprocessor``, which in training first crops and flips the batch at random.

    For images (C, H, W) of one size: mirrors the borders, cuts (H, W) out, and flips, each image with its own draw. The
    distribution is that of the official code, and of mmpretrain's ``RandomCrop`` and ``RandomFlip``, image by image.

    Args:
        padding (int): Pixels by which an image is extended on each side, mirrored, before (H, W) are cut out of it.
        flip_prob (float): Share of images that are flipped horizontally.
        **kwargs: The arguments of ``ClsDataPreprocessor``.

    Raises:
        ValueError: If ``padding`` is negative, or ``flip_prob`` not between 0 and 1.
    """

    def __init__(self, padding: int = 4, flip_prob: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if padding < 0 or not 0 <= flip_prob <= 1:
            raise ValueError(
                f'CropFlipPreprocessor got padding={padding} and flip_prob={flip_prob}. The padding is a number of '
                'pixels, and the share of flipped images is between 0 and 1.')
        self.padding, self.flip_prob = padding, flip_prob

    def forward(self, data: dict, training: bool = False) -> dict:
        """Return ``data`` augmented if in ``training``, and normalised."""
        if training:
            # Stacked before it is moved, where the loader has not done it: one copy to the GPU per batch.
            inputs = data['inputs']
            images = self.cast_data(inputs if isinstance(inputs, Tensor) else torch.stack(tuple(inputs)))
            count, device = len(images), images.device
            offsets = torch.randint(-self.padding, self.padding + 1, (2, count), device=device)
            flipped = torch.rand(count, device=device) < self.flip_prob
            data = {**data, 'inputs': crop_and_flip(images, *offsets, flipped)}
        return super().forward(data, training)


def crop_and_flip(images: Tensor, down: Tensor, right: Tensor, flipped: Tensor) -> Tensor:
    """Move the window on each of the images (N, C, H, W), mirrored at their borders, and flip some; same shape.

    Args:
        images: Any dtype.
        down, right: Pixels (N,) by which the window moves, less than H and W either way.
        flipped: Whether (N,) the window's content is then flipped horizontally.
    """
    height, width = images.shape[2:]
    rows = _mirrored(torch.arange(height, device=images.device) + down[:, None], height)
    columns = _mirrored(torch.arange(width, device=images.device) + right[:, None], width)
    columns = torch.where(flipped[:, None], columns.flip(1), columns)
    images = images.gather(2, rows[:, None, :, None].expand(images.shape))
    return images.gather(3, columns[:, None, None].expand(images.shape))


def _mirrored(index: Tensor, size: int) -> Tensor:
    """Return the positions that a mirror at the first and at the last one shows; these two are there once."""
    return size - 1 - (size - 1 - index.abs()).abs()
