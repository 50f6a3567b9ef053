"""The embedded default: scikit-learn's handwritten digits, real images that are there after ``pip install``."""

from collections.abc import Sequence
from importlib.util import find_spec
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from mmpretrain.datasets import BaseDataset

from overhaul.registry import DATASETS

SPLITS = ('train', 'test')
TEST_STRIDE = 4


@DATASETS.register_module()
class Digits(BaseDataset):
    """The 1,797 handwritten digits of scikit-learn as (8, 8, 3) uint8 images in 0..255 with labels 0..9.

    Of each class, in the order of scikit-learn, the images 0, 4, 8, ... form the test split (454 images, 44 to 46 of
    each class) and the others the training split (1,343 images, 130 to 137 of each class). The split is the same
    for every seed and on every machine. The three channels are equal. Nothing is downloaded and nothing is written.

    Each item gives the pipeline ``img``, ``gt_label``, ``img_shape`` and ``ori_shape``.

    Args:
        split: ``'train'`` or ``'test'``.
        labels_per_class: How many images of each class the training split keeps; None keeps all of them.
        seed: Which images are kept, 0 to 2**32 - 1. With the same seed, fewer labels are a subset of more labels.
        pipeline: Transforms, as in every OpenMMLab dataset.
        **kwargs: Further arguments of ``mmpretrain.datasets.BaseDataset``, such as ``test_mode`` or ``indices``.

    Raises:
        ValueError: For a split that does not exist, for ``labels_per_class`` that is not a positive whole number, is
            more than the smallest class has, or is given for the test split; for a seed that is none.
    """

    METAINFO = {'classes': tuple('0123456789')}

    def __init__(
            self, split: str = 'train', labels_per_class: int | None = None, seed: int = 0,
            pipeline: Sequence[Any] = (), **kwargs: Any) -> None:
        if split not in SPLITS:
            raise ValueError(f"Digits has no split {split!r}: use split='train' or split='test'.")
        if labels_per_class is not None:
            if split != 'train':
                raise ValueError(
                    f'Digits(split={split!r}, labels_per_class={labels_per_class!r}): the number of labels belongs to '
                    "split='train', and the test split is always whole. Leave labels_per_class out here.")
            if isinstance(labels_per_class, bool) or not isinstance(labels_per_class, Integral) or labels_per_class < 1:
                raise ValueError(
                    f'Digits(labels_per_class={labels_per_class!r}): give a whole number of 1 or more, or None for '
                    'all training images.')
        if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 2**32:
            raise ValueError(f'Digits(seed={seed!r}): give a whole number from 0 to {2**32 - 1}.')
        self.split = split
        self.labels_per_class = labels_per_class
        self.seed = seed
        super().__init__(ann_file='', pipeline=pipeline, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return one dict per image of the split, in the order of scikit-learn. Called by the base class."""
        pixels, labels = _of_scikit_learn()
        images = np.round(pixels * (255 / 16)).astype(np.uint8)
        return [
            dict(
                img=np.repeat(images[index][..., None], 3, axis=2), gt_label=int(labels[index]),
                img_shape=(8, 8), ori_shape=(8, 8))
            for index in self._select(labels)]

    def _select(self, labels: np.ndarray) -> np.ndarray:
        """Return the sorted positions of this split's images among ``labels`` (N,)."""
        by_class = [np.flatnonzero(labels == label) for label in range(10)]
        if self.split == 'test':
            return np.sort(np.concatenate([positions[::TEST_STRIDE] for positions in by_class]))

        by_class = [np.delete(positions, np.s_[::TEST_STRIDE]) for positions in by_class]
        if self.labels_per_class is not None:
            sizes = [len(positions) for positions in by_class]
            if self.labels_per_class > min(sizes):
                raise ValueError(
                    f'Digits(labels_per_class={self.labels_per_class}) asks for more than there is: the training '
                    f'images of the classes 0 to 9 number {", ".join(map(str, sizes))}. Use at most {min(sizes)}, or '
                    'None for all of them.')
            random = np.random.RandomState(self.seed)  # numpy promises to never change this stream
            by_class = [random.permutation(positions)[:self.labels_per_class] for positions in by_class]
        return np.sort(np.concatenate(by_class))

    def extra_repr(self) -> list[str]:
        """Return the lines that ``repr`` adds for this dataset."""
        return [f'Split: \t{self.split}', f'Labels per class: \t{self.labels_per_class or "all"}']


def _of_scikit_learn() -> tuple[np.ndarray, np.ndarray]:
    """Return all images (1797, 8, 8), 0 to 16, and their labels (1797,)."""
    # From the file that load_digits() reads: to import scikit-learn takes a second.
    (package, ) = find_spec('sklearn').submodule_search_locations
    table = np.loadtxt(Path(package, 'datasets/data/digits.csv.gz'), delimiter=',')
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(int)
