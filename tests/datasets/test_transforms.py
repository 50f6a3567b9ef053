"""Transforms: what is known of the images that they read."""

import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset

from overhaul.datasets.transforms import reads_bgr


class OwnLoader(LoadImageFromFile):
    """As other packages have them."""


@pytest.mark.parametrize(('pipeline', 'bgr'), [
    ([LoadImageFromFile()], True), ([OwnLoader(color_type='unchanged')], True), ([], False), ([str], False),
    ([LoadImageFromFile(imdecode_backend='tifffile')], False)])
def test_files_are_read_as_bgr_by_the_transform_of_mmcv(pipeline, bgr):
    data = BaseDataset(pipeline=pipeline, serialize_data=False, lazy_init=True)
    data.full_init = lambda: None
    assert reads_bgr(data) is bgr
    assert reads_bgr(ConcatDataset([BaseDataset(lazy_init=True), data], lazy_init=True)) is bgr
    assert reads_bgr(RepeatDataset(data, times=2, lazy_init=True)) is bgr
    assert not reads_bgr(object())
