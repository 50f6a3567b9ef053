"""CIFAR-100, with an error that tells how to get it where there is no connection."""

from http.client import HTTPException
from pathlib import Path
from typing import Any

from mmpretrain.datasets import CIFAR100 as MMPretrainCIFAR100

from overhaul.registry import DATASETS


@DATASETS.register_module()
class CIFAR100(MMPretrainCIFAR100):
    """mmpretrain's ``CIFAR100``: 50,000 training and 10,000 test images (32, 32, 3), RGB, of 100 classes.

    What ``data_root`` lacks is unpacked from ``cifar-100-python.tar.gz`` in it, or else downloaded to there.

    Args:
        data_root (str): The folder that holds ``cifar-100-python``, with the files ``train`` and ``test``.
        split (str): ``'train'`` or ``'test'``.
        **kwargs: The rest of ``mmpretrain.datasets.CIFAR100``.

    Raises:
        FileNotFoundError: If the images are not there and cannot be downloaded; says where they are to be had and
            where to put them.
    """

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return one dict per image of the split. Called by the base class."""
        try:
            return super().load_data_list()
        except (OSError, HTTPException, RuntimeError, AssertionError) as error:
            root = Path(self.data_prefix['root'])
            reason = str(error) or type(error).__name__
            raise FileNotFoundError(
                f'CIFAR-100 is not whole in "{root / self.base_folder}", and there is no way to have it from here '
                f'({reason.rstrip(".")}). Download {self.url} by other means and save it as '
                f'"{root / self.filename}", from where it is unpacked; or give another data_root.') from error
