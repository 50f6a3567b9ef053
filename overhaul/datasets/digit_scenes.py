"""The embedded default for segmentation and detection: scenes of scikit-learn's handwritten digits."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import cv2
import numpy as np
from mmseg.datasets import BaseSegDataset

from overhaul.datasets.digits import SPLITS, Digits
from overhaul.registry import DATASETS

SIZE = 64
MOST_DIGITS = 4
DIGIT_SIZES = (24, 36)
LEAST_SEEN = 0.5  # of a digit that a detector has to find
INK = 80  # of 255: what is fainter is paper, and is cut away


@DATASETS.register_module()
class DigitScenes(BaseSegDataset):
    """Scenes of handwritten digits: (64, 64, 3) uint8 images with masks (64, 64), 0 background and 1 to 10 the digits.

    Two to four images of :class:`Digits`, enlarged from 8x8 to between 24x24 and 36x36, lie on clouds and noise, each
    with its own gray values, and those laid later hide those below. A pixel belongs to the digit that is seen there,
    exactly. Scenes of the training split are made of training digits, scenes of the test split of test digits. Nothing
    is downloaded and nothing is written; the three channels are equal.

    The box of a digit is around what is seen of it: left, top, right and bottom in pixels, the last two behind it. One
    of which less than half is seen has an ``ignore_flag`` of 1, and one that is hidden has no box.

    Each item gives the pipeline ``img``, ``gt_seg_map``, ``seg_fields``, ``img_shape``, ``ori_shape``, and for mmdet
    ``instances``, ``height``, ``width`` and ``img_id``. A detector has no background, so its data name the classes:
    ``metainfo=dict(classes=('0', '1', ...))``.

    Args:
        split: ``'train'`` or ``'test'``.
        length: Number of scenes. With the same seed, fewer scenes are the first of more scenes.
        seed: Which scenes, 0 to 2**32 - 1. They are the same on every machine.
        pipeline: Transforms, as in every OpenMMLab dataset.
        **kwargs: Further arguments of ``mmseg.datasets.BaseSegDataset``, such as ``test_mode`` or ``indices``.

    Raises:
        ValueError: For a split that does not exist, and for a ``length`` or ``seed`` that is no such number.
    """

    METAINFO = dict(
        classes=('background', *Digits.METAINFO['classes']),
        palette=[
            [0, 0, 0], [220, 40, 40], [60, 170, 60], [240, 220, 40], [40, 90, 220], [240, 130, 30], [130, 50, 170],
            [80, 220, 230], [230, 80, 200], [150, 100, 50], [170, 170, 170]])

    def __init__(
            self, split: str = 'train', length: int = 1000, seed: int = 0, pipeline: Sequence[Any] = (),
            **kwargs: Any) -> None:
        if split not in SPLITS:
            raise ValueError(f"DigitScenes has no split {split!r}: use split='train' or split='test'.")
        for name, value, least in (('length', length, 1), ('seed', seed, 0)):
            if isinstance(value, bool) or not isinstance(value, Integral) or not least <= value < 2**32:
                raise ValueError(f'DigitScenes({name}={value!r}): give a whole number from {least} to 2**32 - 1.')
        self.split, self.length, self.seed = split, length, seed
        super().__init__(pipeline=pipeline, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return one dict per scene. Called by the base class."""
        digits = Digits(self.split)
        return [self._scene(index, digits) for index in range(self.length)]

    def _scene(self, index: int, digits: Sequence[dict]) -> dict[str, Any]:
        # As in Digits, a stream that numpy never changes.
        random = np.random.RandomState([SPLITS.index(self.split), self.seed, index])
        image = _enlarge(random.randint(0, 160, (6, 6)), SIZE) + random.normal(0, 16, (SIZE, SIZE))
        seen, laid = np.zeros((SIZE, SIZE), np.uint8), []
        for number in range(1, random.randint(2, MOST_DIGITS + 1) + 1):
            digit = digits[random.randint(len(digits))]
            size = random.randint(DIGIT_SIZES[0], DIGIT_SIZES[1] + 1)
            top, left = random.randint(0, SIZE - size + 1, 2)
            box = np.s_[top:top + size, left:left + size]
            gray = _enlarge(digit['img'][..., 0], size)
            ink = gray > INK
            image[box][ink] = gray[ink]
            seen[box][ink] = number
            laid.append((digit['gt_label'], ink.sum()))
        image = np.repeat(image.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
        mask = np.array([0, *(label + 1 for label, _ in laid)], np.uint8)[seen]
        return dict(
            img=image, gt_seg_map=mask, seg_fields=['gt_seg_map'], img_shape=mask.shape, ori_shape=mask.shape,
            instances=self._instances(seen, laid), height=SIZE, width=SIZE, img_id=index)

    def _instances(self, seen: np.ndarray, laid: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """Return the boxes of the digits, as mmdet has them.

        Args:
            seen: The number of the digit that is seen at each pixel (h, w), 0 where none is.
            laid: Label and pixels of each, also of those that are hidden.
        """
        labels = {name: label for label, name in enumerate(self.metainfo['classes'])}
        instances = []
        for number, (digit, pixels) in enumerate(laid, 1):
            rows, columns = np.nonzero(seen == number)
            if str(digit) in labels and len(rows):
                box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                instances.append(dict(
                    bbox=[float(side) for side in box], bbox_label=labels[str(digit)],
                    ignore_flag=int(len(rows) < LEAST_SEEN * pixels)))
        return instances


def _enlarge(image: np.ndarray, size: int) -> np.ndarray:
    """Return a gray image (h, w) as (size, size) uint8, bit by bit the same on every machine."""
    return cv2.resize(image.astype(np.uint8), (size, size), interpolation=cv2.INTER_LINEAR_EXACT)
