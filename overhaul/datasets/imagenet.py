"""ImageNet, with errors that tell how to get it."""

from typing import Any

from mmengine import fileio
from mmpretrain.datasets import ImageNet as MMPretrainImageNet
from mmpretrain.datasets.custom import find_folders

from overhaul.datasets.presence import TellsUnreadableImages, check_images
from overhaul.registry import DATASETS, counted

_URL = 'https://image-net.org/download-images'
_LABELS_URL = 'https://download.openmmlab.com/mmclassification/datasets/imagenet/meta/caffe_ilsvrc12.tar.gz'


@DATASETS.register_module()
class ImageNet(TellsUnreadableImages, MMPretrainImageNet):
    """mmpretrain's ``ImageNet``: 1,281,167 training and 50,000 validation images of 1,000 classes.

    The labels of a split are the names of its folders in alphabetical order, ``train/n01440764/*.JPEG``, or in a list
    ``meta/<split>.txt`` with lines such as ``ILSVRC2012_val_00000001.JPEG 65``.

    Args:
        data_root (str): The folder with ``train``, ``val`` and, where there is one, ``meta``.
        split (str): ``'train'``, ``'val'`` or ``'test'``, which has no labels.
        **kwargs: The rest of ``mmpretrain.datasets.ImageNet``.

    Raises:
        FileNotFoundError: If images, class folders or labels are missing; says where they are to be had and where to
            put them.
        ValueError: If the split has no image in it, if the list of labels is none or has one of no class, or if an
            image cannot be read.
    """

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return one dict per image of the split. Called by the base class."""
        how_to_get = (
            f'ImageNet (ILSVRC2012, classification) is to be downloaded from {_URL} after registration. Unpack it so '
            f'that "{self.data_root}" has train/<wnid>/*.JPEG and either val/<wnid>/*.JPEG, or val/*.JPEG with the '
            f'labels meta/val.txt out of {_LABELS_URL}; or give another data_root.')
        if not fileio.exists(self.img_prefix):
            raise FileNotFoundError(f'"{self.img_prefix}" does not exist. {how_to_get}')
        if not self.ann_file and self.with_label:
            folders, _ = find_folders(self.img_prefix)
            if len(folders) != len(self.CLASSES):
                raise FileNotFoundError(
                    f'"{self.img_prefix}" has {counted(len(folders), "class folder")} where {len(self.CLASSES)} are '
                    f'expected, and there is no list of labels. {how_to_get}')
        try:
            data_list = super().load_data_list()
        except RuntimeError:  # what mmpretrain raises for folders without images
            data_list = []
        except ValueError as error:
            raise ValueError(
                f'"{self.ann_file}" is no list of images and labels ({error}). Each of its lines is a file name, a '
                f'blank, and a whole number. {how_to_get}') from error
        source, classes = self.ann_file or self.img_prefix, len(self.CLASSES)
        check_images(data_list, source, how_to_get)
        wrong = [data for data in data_list if not 0 <= data.get('gt_label', 0) < classes]
        if wrong:
            raise ValueError(
                f'"{source}" has {counted(len(wrong), "image")} with a label that is not in 0 to {classes - 1}: '
                f'"{wrong[0]["img_path"]}" has {wrong[0]["gt_label"]}. {how_to_get}')
        return data_list
