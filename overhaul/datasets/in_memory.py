"""A dataset whose pipeline has run once and for all."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from overhaul.registry import DATASETS


@DATASETS.register_module()
class InMemory(Dataset):
    """Images (C, H, W) of one size with their annotations, which go through the pipeline of ``dataset`` only once.

    For a pipeline without randomness; :class:`CropFlipPreprocessor` brings it back.

    Args:
        dataset: Config of a dataset.

    Attributes:
        metainfo: That of ``dataset``.
        random: False: an image does not depend on where in the training it is asked for.
    """

    random = False

    def __init__(self, dataset: dict) -> None:
        source = DATASETS.build(dataset)
        items = [source[i] for i in range(len(source))]
        self.metainfo = source.metainfo
        self.images = torch.stack([item['inputs'] for item in items])
        self.samples = [item['data_samples'] for item in items]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        # A new sample each time, because preprocessors write into it.
        return dict(inputs=self.images[index], data_samples=self.samples[index].new())
