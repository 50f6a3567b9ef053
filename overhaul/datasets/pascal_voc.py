"""Pascal VOC 2012, with errors that tell how to get it."""

from pathlib import Path
from typing import Any

import mmseg
from mmseg.datasets import PascalVOCDataset

from overhaul.registry import DATASETS

_VOC_URL = 'http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar'
_SBD_URL = 'http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz'


@DATASETS.register_module()
class PascalVOC(PascalVOCDataset):
    """mmseg's ``PascalVOCDataset``: images (H, W, 3) and masks (H, W) of 21 classes, 255 where a pixel is unlabelled.

    Args:
        data_root (str): The folder ``VOC2012``, with ``JPEGImages``, ``SegmentationClass`` and ``ImageSets`` in it.
        ann_file (str): The list of images, relative to ``data_root``.
        data_prefix (dict): ``img_path`` and ``seg_map_path``, folders relative to ``data_root``.
        **kwargs: The rest of :class:`mmseg.datasets.PascalVOCDataset`.

    Raises:
        FileNotFoundError: If a part of the dataset is missing; says where it is to be had and where to put it.
    """

    def __init__(self, data_root: str, ann_file: str, data_prefix: dict, **kwargs: Any) -> None:
        for part in (data_prefix['img_path'], ann_file, data_prefix.get('seg_map_path')):
            if part and not Path(data_root, part).exists():
                raise FileNotFoundError(_how_to_get(Path(data_root), Path(data_root, part)))
        super().__init__(data_root=data_root, ann_file=ann_file, data_prefix=data_prefix, **kwargs)


def _how_to_get(root: Path, missing: Path) -> str:
    if missing.name not in ('aug.txt', 'SegmentationClassAug'):
        return (
            f'{missing} does not exist. Pascal VOC 2012 is to be downloaded from {_VOC_URL} and unpacked so that its '
            f'folders JPEGImages, SegmentationClass and ImageSets are in {root}; or give another data_root.')
    converter = Path(mmseg.__file__).parent / '.mim/tools/dataset_converters/voc_aug.py'
    folder = root.parent / 'VOCaug'
    return (
        f'{missing} does not exist. The additional masks (SBD) are to be downloaded from {_SBD_URL} and unpacked so '
        f'that {folder / "dataset"} is there; then this writes them: python {converter} {root.parent} {folder}')
