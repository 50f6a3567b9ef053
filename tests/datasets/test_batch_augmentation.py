"""Crops and flips of a batch: those of mmpretrain, given the same draws; drawn alike; in a training."""

import itertools

import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.runner import Runner
from scipy.stats import chisquare
from test_tools import CONFIG, ROOT, records, run_in_process
from tiny_data import write_cifar100

from overhaul import InMemory
from overhaul.datasets.batch_augmentation import CropFlipPreprocessor, crop_and_flip
from overhaul.engine import dry_run
from overhaul.engine.exact_resume import _seed
from overhaul.files.checkpoints import read_checkpoint
from overhaul.files.export import student_config
from overhaul.files.settings import read_config
from overhaul.registry import MODELS

IMAGE_BY_IMAGE = [
    # Mirrored by 4 pixels on each side. With `padding=4` mmpretrain 1.2.0 takes zeros, whatever the padding_mode.
    dict(type='mmpretrain.RandomCrop', crop_size=40, pad_if_needed=True, padding_mode='reflect'),
    dict(type='mmpretrain.RandomCrop', crop_size=32),
    dict(type='mmpretrain.RandomFlip', prob=0.5, direction='horizontal'),
]
DIGITS = """
_base_ = '{base}'
data_preprocessor = dict(type='overhaul.CropFlipPreprocessor', padding=2, flip_prob=0.0)
train_dataloader = dict(dataset=dict(_delete_=True, type='overhaul.InMemory', dataset=dict(
    type='overhaul.Digits', split='train', labels_per_class=5, pipeline=[
        dict(type='mmpretrain.Resize', scale=(16, 16), interpolation='bilinear'), dict(type='mmpretrain.PackInputs')])))
"""


def test_every_draw_gives_what_the_transforms_of_the_config_give():
    draws = list(itertools.product(range(9), range(9), (False, True)))
    image = np.random.RandomState(0).randint(0, 256, (32, 32, 3), dtype=np.uint8)
    steps = Compose(IMAGE_BY_IMAGE)
    _, crop, flip = steps.transforms
    ours = crop_and_flip(
        torch.from_numpy(image).permute(2, 0, 1).expand(len(draws), -1, -1, -1),
        *(torch.tensor(column) - 4 for column in list(zip(*draws))[:2]), torch.tensor([draw[2] for draw in draws]))
    assert ours.dtype == torch.uint8 and ours.is_contiguous()
    mirrored = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode='reflect')
    for (top, left, flipped), result in zip(draws, ours):
        crop.rand_crop_params = lambda _, where=(top, left): (*where, 32, 32)
        flip._choose_direction = lambda flipped=flipped: 'horizontal' if flipped else None
        result = result.permute(1, 2, 0).numpy()
        assert np.array_equal(result, steps(dict(img=image))['img'])
        window = mirrored[top:top + 32, left:left + 32]
        assert np.array_equal(result, window[:, ::-1] if flipped else window)


def test_offsets_are_uniform_independent_and_half_are_flipped():
    torch.manual_seed(0)
    # The position is the value, so that an image tells its draw.
    image = torch.arange(32 * 32, dtype=torch.float32).view(1, 32, 32).expand(3, -1, -1)
    preprocessor = CropFlipPreprocessor(padding=4)
    inputs = preprocessor(dict(inputs=[image] * 16200), training=True)['inputs'][:, 0].long()
    steps = inputs[:, 16, 16] - inputs[:, 16, 15]
    flipped = steps < 0
    rows, columns = inputs[:, 16, 16] // 32, inputs[:, 16, 16] % 32
    down, right = rows - 16, torch.where(flipped, columns - 15, columns - 16)
    counts = torch.zeros(9, 9, 2).index_put((down + 4, right + 4, flipped.long()), torch.ones(()), accumulate=True)
    assert counts.sum() == 16200
    assert chisquare(counts.flatten()).pvalue > 0.01  # all 162 combinations alike
    assert not torch.equal(inputs[:100], inputs[100:200])


def test_a_batch_that_the_loader_has_stacked_is_augmented_alike():
    images, augmented = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8), []
    for inputs in (images, list(images)):
        torch.manual_seed(0)
        augmented.append(CropFlipPreprocessor(padding=2)(dict(inputs=inputs), training=True)['inputs'])
    assert torch.equal(*augmented) and not torch.equal(augmented[0], images.float())


def test_the_stacked_batch_is_what_is_pinned(monkeypatch):
    cfg = read_config(ROOT / 'configs/cifar100_wrn28_4_wrn16_2.py')
    dry_run.prepare(cfg)
    pinned = []
    monkeypatch.setattr('torch.accelerator.is_available', lambda: True)  # or nothing is pinned
    monkeypatch.setattr('torch.accelerator.current_accelerator', lambda: torch.device('cuda'))
    monkeypatch.setattr(torch.Tensor, 'pin_memory', lambda tensor, *_: pinned.append(tensor) or tensor)
    batch = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
    moved = []
    preprocessor = CropFlipPreprocessor()
    monkeypatch.setattr(preprocessor, 'cast_data', lambda data: moved.append(data) or data)
    preprocessor(batch, training=True)
    assert [images.shape for images in pinned] == [(128, 3, 32, 32)]
    assert moved[0] is pinned[0]


def test_validation_is_left_alone():
    plain = MODELS.build(dict(type='mmpretrain.ClsDataPreprocessor', mean=[1.0] * 3, std=[2.0] * 3))
    ours = CropFlipPreprocessor(mean=[1.0] * 3, std=[2.0] * 3)
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(ours(dict(inputs=list(images)))['inputs'], plain(dict(inputs=list(images)))['inputs'])


def test_the_config_uses_it_and_exports_for_mmpretrain():
    cfg = read_config(ROOT / 'configs/cifar100_wrn28_4_wrn16_2.py')
    preprocessor = MODELS.build(cfg.data_preprocessor)
    assert (type(preprocessor), preprocessor.padding, preprocessor.flip_prob) == (CropFlipPreprocessor, 4, 0.5)
    assert student_config(cfg).model.data_preprocessor == {**cfg.data_preprocessor, 'type': 'ClsDataPreprocessor'}


@pytest.mark.parametrize('arguments', [dict(padding=-1), dict(flip_prob=1.5)])
def test_nonsense_is_refused(arguments):
    with pytest.raises(ValueError, match='The padding is a number of pixels'):
        CropFlipPreprocessor(**arguments)


def test_in_memory_holds_what_the_pipeline_gives(tmp_path):
    write_cifar100(tmp_path)
    cfg = Config.fromfile(ROOT / 'configs/_base_/datasets/cifar100.py').train_dataloader.dataset
    with pytest.MonkeyPatch.context() as patch:
        for split in ('train_list', 'test_list'):
            patch.setattr('overhaul.datasets.cifar100.CIFAR100.' + split, [[split.partition('_')[0], None]])
        cfg.dataset.data_root = str(tmp_path)
        dataset = InMemory(cfg.dataset)
    assert len(dataset) == 8 and dataset.metainfo['classes'][0] == 'apple'
    assert dataset.images.shape == (8, 3, 32, 32) and dataset.images.dtype == torch.uint8
    for label in range(8):
        assert dataset[label]['data_samples'].gt_label.tolist() == [label]
        assert torch.equal(dataset[label]['inputs'], dataset.images[label])
    dataset[0]['data_samples'].set_gt_label(5)  # as preprocessors do
    assert dataset[0]['data_samples'].gt_label.item() == 0


def test_trains_and_resumes_exactly(tmp_path):
    config = tmp_path / 'digits.py'
    config.write_text(DIGITS.format(base=CONFIG))
    quick = ['train_cfg.max_iters=8', 'train_cfg.val_interval=8', 'default_hooks.checkpoint.interval=4',
             'default_hooks.logger.interval=1']
    run_in_process(tmp_path, 'train.py', config, '--work-dir', 'whole', options=quick)
    run_in_process(tmp_path, 'train.py', config, '--work-dir', 'resumed', '--resume', tmp_path / 'whole/iter_4.pth',
                   options=quick)
    whole, resumed = (read_checkpoint(tmp_path / name / 'iter_8.pth')['state_dict'] for name in ('whole', 'resumed'))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert [row['step'] for row in records(tmp_path / 'resumed', 'train')] == [5, 6, 7, 8]


def test_processes_draw_differently():
    images = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8)
    drawn = []
    for rank in (0, 0, 1):
        _seed(0, rank, 7)  # what is done before each step
        drawn.append(CropFlipPreprocessor()(dict(inputs=list(images)), training=True)['inputs'])
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
