"""Pascal VOC 2012, with errors that tell how to get it."""

from pathlib import Path
from typing import Any

import mmseg
from mmseg.datasets import PascalVOCDataset

from overhaul.datasets.presence import TellsUnreadableImages, check_images
from overhaul.registry import DATASETS

_VOC_URL = 'http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar'
_SBD_URL = 'http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz'
_TEST_URL = 'http://host.robots.ox.ac.uk:8080'


@DATASETS.register_module()
class PascalVOC(TellsUnreadableImages, PascalVOCDataset):
    """mmseg's ``PascalVOCDataset``: images (H, W, 3) and masks (H, W) of 21 classes, 255 where a pixel is unlabelled.

    Args:
        data_root (str): The folder ``VOC2012``, with ``JPEGImages``, ``SegmentationClass`` and ``ImageSets`` in it.
        ann_file (str): The list of images, relative to ``data_root``.
        data_prefix (dict): ``img_path`` and, where there are masks, ``seg_map_path``, folders relative to
            ``data_root``.
        **kwargs: The rest of :class:`mmseg.datasets.PascalVOCDataset`.

    Raises:
        FileNotFoundError: If a part of the dataset is missing; says where it is to be had and where to put it.
        ValueError: If the list of images is empty, or if an image or a mask cannot be read.
    """

    def __init__(self, data_root: str, ann_file: str, data_prefix: dict, **kwargs: Any) -> None:
        how_to_get = _how_to_get(Path(data_root), ann_file)
        for part in (data_prefix['img_path'], ann_file, data_prefix.get('seg_map_path')):
            if part and not Path(data_root, part).exists():
                raise FileNotFoundError(f'"{Path(data_root, part)}" does not exist. {how_to_get}')
        super().__init__(data_root=data_root, ann_file=ann_file, data_prefix=data_prefix, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return one dict per image of the list. Called by the base class."""
        data_list = super().load_data_list()
        check_images(data_list, self.ann_file, _how_to_get(Path(self.data_root), self.ann_file))
        return data_list


def _how_to_get(root: Path, ann_file: str) -> str:
    name = Path(ann_file).name
    if name == 'test.txt':
        return (
            f'The images of the test set and their list are to be downloaded from {_TEST_URL} (VOC2012test.tar, after '
            f'registration) and unpacked so that they are in {root / "JPEGImages"} and {root / "ImageSets"}, beside '
            'those for training.')
    if name == 'aug.txt':
        converter = Path(mmseg.__file__).parent / '.mim/tools/dataset_converters/voc_aug.py'
        folder = root.parent / 'VOCaug'
        return (
            f'The additional masks (SBD) are to be downloaded from {_SBD_URL} and unpacked so that '
            f'{folder / "dataset"} is there; then this writes them: python {converter} {root.parent} {folder}')
    return (
        f'Pascal VOC 2012 is to be downloaded from {_VOC_URL} and unpacked so that its folders JPEGImages, '
        f'SegmentationClass and ImageSets are in {root}; or give another data_root.')
