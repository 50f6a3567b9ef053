import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from sklearn.datasets import load_digits

from overhaul import Digits
from overhaul.registry import DATASETS

CONFIGS = Path(__file__).parents[2] / 'configs'


def contents(dataset):
    """The images of a dataset as bytes: scikit-learn's 1,797 are all different, so a set counts them."""
    return [item['img'].tobytes() for item in dataset]


def test_the_two_splits_are_all_of_scikit_learn_and_share_no_image():
    train, test = contents(Digits('train')), contents(Digits('test'))
    assert (len(train), len(test)) == (1343, 454)
    assert len(set(train) | set(test)) == 1797


def test_every_fourth_image_of_a_class_is_a_test_image():
    digits, items = load_digits(), list(Digits('test'))
    for label in range(10):
        expected = [
            image for position, image in enumerate(digits.images[digits.target == label]) if position % 4 == 0]
        found = [item['img'][..., 0] / 255 * 16 for item in items if item['gt_label'] == label]
        # 16 grey levels spread over 256: rounding moves a pixel by at most half of 16 / 255.
        np.testing.assert_allclose(found, expected, atol=8 / 255 + 1e-12)


def test_an_item_is_a_colour_image_in_uint8_with_its_label():
    dataset = Digits('train')
    assert dataset.metainfo['classes'] == tuple('0123456789')
    item = dataset[0]
    assert item['img'].shape == (8, 8, 3) and item['img'].dtype == np.uint8
    assert item['img_shape'] == item['ori_shape'] == (8, 8)
    # Position 0 of every class is a test image, so training starts at the second 0, 1, 2, ... of scikit-learn.
    assert [dataset[index]['gt_label'] for index in range(10)] == list(load_digits().target[10:20])
    np.testing.assert_array_equal(item['img'][..., 1], np.round(load_digits().images[10] * 255 / 16))
    pixels = np.stack([item['img'] for item in dataset])
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert (pixels == pixels[..., :1]).all()


@pytest.mark.parametrize('labels_per_class', [1, 5, 130])
def test_labels_per_class_keeps_that_many_of_each_class_from_the_training_split(labels_per_class):
    kept = Digits('train', labels_per_class=labels_per_class, seed=3)
    assert np.bincount(kept.get_gt_labels()).tolist() == [labels_per_class] * 10
    assert set(contents(kept)) <= set(contents(Digits('train')))


def test_the_seed_alone_says_which_images_are_kept():
    first, again, other = (contents(Digits(labels_per_class=5, seed=seed)) for seed in (0, 0, 1))
    assert first == again
    assert set(first) != set(other)


def test_the_kept_images_do_not_depend_on_the_versions_of_libraries():
    # Found without this package: numpy's frozen RandomState(0) shuffles the classes 0 to 9 one after the other.
    kept = Digits(labels_per_class=1, seed=0)
    images = (load_digits().images * (255 / 16)).round().astype(np.uint8)
    positions = [int(np.flatnonzero((images == item['img'][..., 0]).all((1, 2)))[0]) for item in kept]
    assert positions == [73, 371, 664, 716, 1009, 1283, 1382, 1477, 1660, 1682]


def test_fewer_labels_are_a_subset_of_more():
    few, more, most = (set(contents(Digits(labels_per_class=count, seed=7))) for count in (2, 5, 60))
    assert few < more < most


def test_more_labels_than_images_says_how_many_there_are():
    with pytest.raises(ValueError, match=r'labels_per_class=131.*133, 136, 132, 137, .*130, 135.*at most 130'):
        Digits(labels_per_class=131)


@pytest.mark.parametrize('labels_per_class', [0, -5, 2.5, True, '5'])
def test_labels_per_class_must_be_a_positive_whole_number(labels_per_class):
    with pytest.raises(ValueError, match='whole number of 1 or more, or None'):
        Digits(labels_per_class=labels_per_class)


@pytest.mark.parametrize('seed', [None, 'x', 1.5, True, -1, 2**32])
@pytest.mark.parametrize('labels_per_class', [None, 5])
def test_a_seed_is_a_whole_number(seed, labels_per_class):
    with pytest.raises(ValueError, match=r'Digits\(seed=.+: give a whole number from 0 to 4294967295'):
        Digits(labels_per_class=labels_per_class, seed=seed)


def test_a_wrong_split_names_the_right_ones():
    with pytest.raises(ValueError, match=r"no split 'val'.*'train'.*'test'"):
        Digits('val')


def test_the_test_split_is_never_thinned():
    with pytest.raises(ValueError, match='labels_per_class.*Leave labels_per_class out'):
        Digits('test', labels_per_class=5)


def test_the_digits_are_read_without_what_they_do_not_need():
    code = "import sys; from overhaul import Digits; Digits(); assert not {'sklearn', 'mmseg'} & sys.modules.keys()"
    subprocess.run([sys.executable, '-c', code], check=True, cwd=CONFIGS.parent)


@pytest.fixture
def base_config():
    return Config.fromfile(CONFIGS / '_base_/datasets/digits.py')


def test_the_base_config_gives_normalised_16x16_batches(base_config):
    from mmpretrain.registry import MODELS
    train = Runner.build_dataloader(base_config.train_dataloader, seed=0)
    preprocess = MODELS.build(base_config.data_preprocessor)
    batches = iter(train)
    batch = preprocess(next(batches), training=True)
    assert batch['inputs'].shape == (50, 3, 16, 16)
    assert {sample.gt_label.item() for sample in batch['data_samples']} <= set(range(10))
    pixels = torch.cat([preprocess(next(batches))['inputs'] for _ in range(20)])
    assert abs(pixels.mean()) < 0.1 and 0.8 < pixels.std() < 1.1


def test_the_base_config_tests_on_every_test_image_without_shifting_it(base_config):
    loader = Runner.build_dataloader(base_config.test_dataloader)
    inputs = torch.cat([torch.stack(batch['inputs']) for batch in loader])
    assert inputs.shape == (454, 3, 16, 16)
    # Bilinear enlargement by two keeps the mean of an image up to its border and rounding.
    small = torch.tensor(np.stack([item['img'] for item in Digits('test')])).float().mean((1, 2, 3))
    assert (inputs.float().mean((1, 2, 3)) - small).abs().max() < 2


def test_five_labels_per_class_make_every_batch_the_whole_set(base_config):
    base_config.train_dataloader.dataset.labels_per_class = 5
    batches = iter(Runner.build_dataloader(base_config.train_dataloader, seed=0))
    for _ in range(3):
        labels = [sample.gt_label.item() for sample in next(batches)['data_samples']]
        assert sorted(labels) == sorted(list(range(10)) * 5)


def test_the_dataset_is_registered():
    assert DATASETS.get('overhaul.Digits') is DATASETS.get('Digits') is Digits
