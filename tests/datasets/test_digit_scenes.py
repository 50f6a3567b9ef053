from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from overhaul import Digits, DigitScenes
from overhaul.datasets import digit_scenes
from overhaul.registry import DATASETS, MODELS

CONFIG = Path(__file__).parents[2] / 'configs/_base_/datasets/digitscenes.py'
LIGHTEST = dict(train=110, test=180)


def contents(dataset):
    return [item['img'].tobytes() + item['gt_seg_map'].tobytes() for item in dataset]


class Squares(list):
    """Fifty digits that are squares, each of a gray of its own, and which of them were laid."""

    laid = []

    def __init__(self, split):
        super().__init__(
            dict(img=np.full((8, 8, 3), LIGHTEST[split] + index, np.uint8), gt_label=index % 10) for index in range(50))

    def __getitem__(self, index):
        self.laid.append(index)
        return super().__getitem__(index)


def test_an_item_is_a_colour_image_in_uint8_with_its_mask():
    scenes = DigitScenes('train', 3)
    assert len(scenes) == 3
    for item in scenes:
        assert item['img'].shape == (64, 64, 3) and item['img'].dtype == np.uint8
        assert (item['img'] == item['img'][..., :1]).all()
        assert item['gt_seg_map'].shape == item['img_shape'] == item['ori_shape'] == (64, 64)
        assert item['gt_seg_map'].dtype == np.uint8 and 0 < item['gt_seg_map'].max() <= 10
    assert scenes.metainfo['classes'] == ('background', *'0123456789')
    assert len(set(map(tuple, scenes.metainfo['palette']))) == 11


@pytest.mark.parametrize('split', LIGHTEST)
def test_a_pixel_is_of_the_digit_seen_there_and_the_digit_laid_last_is_seen_whole(split, monkeypatch):
    monkeypatch.setattr(digit_scenes, 'Digits', Squares)
    sides, hidden = set(), 0
    for seed in range(200):
        Squares.laid.clear()
        (item, ) = DigitScenes(split, 1, seed, serialize_data=False)  # which is slow
        mask, laid = item['gt_seg_map'], list(Squares.laid)
        assert 2 <= len(laid) <= 4
        digit = item['img'][..., 0].astype(int) - LIGHTEST[split]
        assert set(digit[mask > 0]) <= set(laid) and laid[-1] in digit[mask > 0]
        assert (digit[mask > 0] % 10 == mask[mask > 0] - 1).all()
        rows, columns = np.nonzero((mask > 0) & (digit == laid[-1]))
        if laid.count(laid[-1]) == 1:
            assert np.ptp(rows) == np.ptp(columns) == len(rows)**0.5 - 1
            sides.add(np.ptp(rows) + 1)
        hidden += any(((mask > 0) & (digit == index)).sum() < 24 * 24 for index in laid)
    assert sides == set(range(24, 37))
    assert hidden > 50


def test_paper_is_cut_away_and_ink_keeps_its_gray():
    pixels = [(item['img'][..., 0][item['gt_seg_map'] > 0]) for item in DigitScenes('train', 50)]
    pixels = np.concatenate(pixels)
    assert pixels.min() == 81 and pixels.max() == 255


@pytest.mark.parametrize('split', LIGHTEST)
def test_any_digit_of_the_split_is_laid(split, monkeypatch):
    laid = []

    class Recorded(Digits):
        def __getitem__(self, index):
            laid.append((self.split, index))
            return super().__getitem__(index)

    monkeypatch.setattr(digit_scenes, 'Digits', Recorded)
    DigitScenes(split, 300)
    digits = Digits(split)
    assert {part for part, _ in laid} == {split}
    # Of n draws among N digits, a digit is left out with a chance of (1 - 1/N)^n.
    expected = len(digits) * (1 - (1 - 1 / len(digits))**len(laid))
    assert len(set(laid)) == pytest.approx(expected, rel=0.05)
    counts = np.bincount(digits.get_gt_labels()[[index for _, index in laid]])
    assert counts.min() > 0.5 * len(laid) / 10


def test_the_seed_and_the_split_say_which_scenes():
    first, again, other_seed = (contents(DigitScenes('train', 5, seed)) for seed in (0, 0, 1))
    other_split = contents(DigitScenes('test', 5))
    assert first == again
    assert len({*first, *other_seed, *other_split}) == 15
    assert contents(DigitScenes('train', 2)) == first[:2]


def test_the_scenes_do_not_depend_on_the_versions_of_libraries():
    item = DigitScenes('train', 3)[2]
    assert np.bincount(item['gt_seg_map'].ravel()).tolist() == [2991, 441, 0, 0, 591, 0, 0, 0, 73]
    assert item['img'][::16, ::16, 0].tolist() == [
        [106, 6, 49, 124], [21, 201, 71, 30], [161, 168, 156, 208], [114, 108, 119, 154]]


def test_workers_give_the_same_scenes():
    config = Config.fromfile(CONFIG).test_dataloader
    config.update(batch_size=4)
    config.dataset.length = 8
    alone = list(Runner.build_dataloader(config))
    config.update(num_workers=2)
    for batch, expected in zip(Runner.build_dataloader(config), alone, strict=True):
        assert torch.equal(torch.stack(batch['inputs']), torch.stack(expected['inputs']))


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(split='val'), r"no split 'val'.*'train'.*'test'"),
    (dict(length=0), r'DigitScenes\(length=0\): give a whole number from 1'),
    (dict(length=2.5), 'length=2.5'),
    (dict(length=True), 'length=True'),
    (dict(seed=-1), r'DigitScenes\(seed=-1\): give a whole number from 0'),
    (dict(seed=2**32), r'seed=4294967296\): give a whole number from 0 to 2\*\*32 - 1'),
    (dict(seed='0'), "seed='0'")])
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DigitScenes(**arguments)


def test_the_base_config_gives_normalised_batches_whose_padding_is_unlabelled():
    config = Config.fromfile(CONFIG)
    config.train_dataloader.dataset.length = 400
    preprocess = MODELS.build(config.data_preprocessor)
    np.random.seed(0)
    batches = iter(Runner.build_dataloader(config.train_dataloader, seed=0))
    batches = [preprocess(next(batches), training=True) for _ in range(4)]
    inputs = torch.cat([batch['inputs'] for batch in batches])
    masks = torch.cat([sample.gt_sem_seg.data for batch in batches for sample in batch['data_samples']])
    assert inputs.shape[1:] == (3, 64, 64) and masks.shape == (len(inputs), 64, 64)
    assert set(masks.unique().tolist()) == {*range(11), 255}
    labelled = inputs[:, 0][masks < 255]
    assert abs(labelled.mean()) < 0.1 and 0.9 < labelled.std() < 1.1
    assert (inputs[:, 0][masks == 255] == 0).all()


def test_the_metric_and_the_visualizer_of_mmseg_take_it():
    from mmseg.evaluation import IoUMetric
    from mmseg.visualization import SegLocalVisualizer
    config = Config.fromfile(CONFIG).val_dataloader
    config.dataset.length = 20
    loader = Runner.build_dataloader(config)
    metric = IoUMetric(iou_metrics=['mIoU'])
    metric.dataset_meta = loader.dataset.metainfo
    (batch, ) = loader
    truth = torch.stack([sample.gt_sem_seg.data for sample in batch['data_samples']])
    for prediction, expected in [
            (truth, dict(aAcc=100, mIoU=100, mAcc=100)),
            # A background everywhere is right on its own share, and has the union with all.
            (torch.zeros_like(truth), dict(
                aAcc=100 * (truth == 0).float().mean().item(), mIoU=100 * (truth == 0).float().mean().item() / 11,
                mAcc=100 / 11))]:
        for sample, pixels in zip(batch['data_samples'], prediction):
            sample.set_data(dict(pred_sem_seg=sample.gt_sem_seg.new(data=pixels)))
        metric.process(batch, [sample.to_dict() for sample in batch['data_samples']])
        assert metric.evaluate(20) == pytest.approx(expected, abs=0.01)

    visualizer = SegLocalVisualizer(alpha=1)
    visualizer.dataset_meta = loader.dataset.metainfo
    image = batch['inputs'][0].permute(1, 2, 0).numpy()
    visualizer.add_datasample('', image, batch['data_samples'][0], draw_pred=False, with_labels=False)
    colours = np.array(DigitScenes.METAINFO['palette'])[truth[0, 0]]
    np.testing.assert_array_equal(visualizer.get_image(), colours)


def test_the_dataset_is_registered():
    assert DATASETS.get('overhaul.DigitScenes') is DATASETS.get('DigitScenes') is DigitScenes
