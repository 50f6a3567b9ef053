"""What every dataset checks before training starts rather than in the middle of it."""

from collections.abc import Sequence
from typing import Any

import cv2
from mmengine import fileio


class TellsUnreadableImages:
    """A dataset that names the file where one of its images or masks cannot be read. Goes before the dataset's base."""

    def prepare_data(self, idx: int) -> Any:
        """Return the item ``idx`` as the pipeline makes it. Called by the base class."""
        try:
            return super().prepare_data(idx)
        except (OSError, AssertionError, cv2.error) as error:
            info = self.get_data_info(idx)
            files = ' or '.join(f'"{info[key]}"' for key in ('img_path', 'seg_map_path') if info.get(key))
            reason = str(error) or type(error).__name__
            raise ValueError(
                f'{files} cannot be read ({reason.strip()}). Get the file again; the dataset is not whole.') from error


def check_images(data_list: Sequence[dict], source: str, how_to_get: str) -> None:
    """Refuse a data list that is empty, or whose first image or mask is not there.

    Args:
        data_list: One dict per image with ``img_path``, and ``seg_map_path`` where there are masks.
        source: The file or folder that the list was read from, for the message.
        how_to_get: A sentence on where the dataset is to be had and where to put it.

    Raises:
        ValueError: If the list is empty.
        FileNotFoundError: If the first image or its mask does not exist.
    """
    if not data_list:
        raise ValueError(f'"{source}" has no image in it. {how_to_get}')
    for key in ('img_path', 'seg_map_path'):
        path = data_list[0].get(key)
        if path is not None and not fileio.exists(path):
            raise FileNotFoundError(f'"{path}", the first file named by "{source}", does not exist. {how_to_get}')
