from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import METRICS, init_default_scope
from mmengine.runner import Runner

from overhaul import Digits, DigitScenes
from overhaul.datasets import digit_scenes
from overhaul.registry import DATASETS, MODELS

BASES = Path(__file__).parents[2] / 'configs/_base_/datasets'
CONFIG = BASES / 'digitscenes.py'
NAMES = tuple('0123456789')
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


def test_a_box_is_around_what_is_seen_of_a_digit_and_half_of_it_must_be(monkeypatch):
    monkeypatch.setattr(digit_scenes, 'Digits', Squares)
    flags, hidden = [], 0
    for seed in range(200):
        Squares.laid.clear()
        (item, ) = DigitScenes('train', 1, seed, serialize_data=False, metainfo=dict(classes=NAMES))
        laid = list(Squares.laid)
        if len(set(laid)) < len(laid):
            continue  # one square is no other's
        digit = item['img'][..., 0].astype(int) - LIGHTEST['train']
        expected = []
        for index in laid:
            rows, columns = np.nonzero((item['gt_seg_map'] > 0) & (digit == index))
            if len(rows):
                expected.append((index % 10, min(columns), min(rows), max(columns) + 1, max(rows) + 1))
                # What lies above may hide a side, and then the square was larger than its box.
                if len(rows) < (max(np.ptp(columns), np.ptp(rows)) + 1)**2 / 2:
                    assert item['instances'][len(expected) - 1]['ignore_flag'] == 1
                if len(rows) >= 36**2 / 2:
                    assert item['instances'][len(expected) - 1]['ignore_flag'] == 0
        assert [(box['bbox_label'], *box['bbox']) for box in item['instances']] == expected
        assert item['instances'][-1]['ignore_flag'] == 0  # the last one is seen whole
        flags += [box['ignore_flag'] for box in item['instances']]
        hidden += len(laid) - len(expected)
    assert 0.02 < np.mean(flags) < 0.4 and hidden > 0


def test_labels_are_the_numbers_of_the_classes_that_the_data_name():
    all_, some = (DigitScenes('train', 20, metainfo=metainfo) for metainfo in (None, dict(classes=('7', '0', '3'))))
    expected = {8: 0, 1: 1, 4: 2}
    for item, part in zip(all_, some, strict=True):
        labels = [box['bbox_label'] for box in item['instances']]
        assert [box['bbox_label'] for box in part['instances']] == [
            expected[label] for label in labels if label in expected]
        assert set(np.unique(item['gt_seg_map'])) - {0} >= {
            box['bbox_label'] for box in item['instances'] if not box['ignore_flag']}


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


@pytest.fixture
def detection():
    """The base config of boxes, whose types are those of mmdet."""
    init_default_scope('mmdet')
    return Config.fromfile(BASES / 'digitdet.py')


@pytest.mark.detection
def test_batches_of_boxes_are_normalised_and_their_boxes_are_within_the_image(detection):
    detection.train_dataloader.dataset.length = 200
    preprocess = MODELS.build(detection.data_preprocessor)
    np.random.seed(0)
    batches = iter(Runner.build_dataloader(detection.train_dataloader, seed=0))
    batches = [preprocess(next(batches), training=True) for _ in range(4)]
    inputs = torch.cat([batch['inputs'] for batch in batches])
    assert inputs.shape[1:] == (3, 64, 64)
    assert abs(inputs.mean()) < 0.2 and 0.8 < inputs.std() < 1.1  # with what is filled up
    samples = [sample for batch in batches for sample in batch['data_samples']]
    for sample in samples:
        left, top, right, bottom = sample.gt_instances.bboxes.T
        height, width = sample.img_shape
        assert (left >= 0).all() and (top >= 0).all() and (right <= width).all() and (bottom <= height).all()
        assert (right - left >= 8).all() and (bottom - top >= 8).all() and len(left)
    labels = torch.cat([sample.gt_instances.labels for sample in samples])
    assert set(labels.tolist()) == set(range(10))
    assert sum(len(sample.ignored_instances) for sample in samples) > 0


@pytest.mark.detection
def test_the_metric_of_coco_compares_with_the_boxes_and_needs_no_file(detection):
    detection.val_dataloader.dataset.length = 20
    loader = Runner.build_dataloader(detection.val_dataloader)
    (batch, ) = loader
    for shift, expected in ((0, 1), (0.2, 0.4), (0.6, 0)):  # of a box's width, with overlaps of 1, 2/3 and 1/4
        metric = METRICS.build(detection.val_evaluator)
        metric.dataset_meta = loader.dataset.metainfo
        for sample in batch['data_samples']:
            found = sample.gt_instances
            boxes = found.bboxes.tensor.clone()
            boxes[:, ::2] += shift * (boxes[:, 2:3] - boxes[:, :1])
            sample.pred_instances = found.new(bboxes=boxes, labels=found.labels, scores=torch.ones(len(boxes)))
        metric.process(batch, [sample.to_dict() for sample in batch['data_samples']])
        results = metric.evaluate(20)
        assert results['coco/bbox_mAP'] == pytest.approx(expected, abs=0.01)
        assert results['coco/bbox_mAP_50'] == pytest.approx(float(shift < 0.3), abs=0.01)
