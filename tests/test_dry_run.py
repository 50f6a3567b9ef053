"""A dry run as it is prepared; that it runs, for every config that ships, is in test_configs.py."""

from pathlib import Path

import pytest
from test_tools import CONFIG

from overhaul import dry_run
from overhaul.settings import read_config

CONFIGS = Path(CONFIG).parent


@pytest.mark.parametrize(('config', 'size'), [
    (CONFIGS / 'voc_r101_r18.py', (513, 513)),  # model.input_size
    (CONFIGS / 'digitscenes_r34.py', (64, 64)),  # what the data preprocessor fills images up to
    ('mmseg::unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64.py', (64, 64)),
    (CONFIGS / 'digits_wrn16_2.py', (16, 16)),  # what the pipeline crops to
    ('mmpretrain::resnet/resnet18_8xb16_cifar10.py', (32, 32)),
    ('mmpretrain::resnet/resnet50_8xb32_in1k.py', (224, 224)),
])
def test_images_have_the_size_that_the_config_trains_on(config, size):
    cfg = read_config(config)
    dry_run.prepare(cfg)
    assert cfg.train_dataloader.dataset.size == cfg.val_dataloader.dataset.size == size


def test_images_of_data_that_tell_no_size_are_of_224():
    cfg = read_config(CONFIGS / 'digits_wrn16_2.py', {'train_dataloader.dataset.pipeline': []})
    dry_run.prepare(cfg)
    assert cfg.train_dataloader.dataset.size == (224, 224)
