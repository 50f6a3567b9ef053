"""Batches of images with labels and, behind them, images without."""

import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from PIL import Image
from tiny_data import write_images, write_voc
from torch.utils.data import BatchSampler, DataLoader

from overhaul import Digits, DigitScenes, WithUnlabelled
from overhaul.engine.exact_resume import NumberedBatches, SeededDataset
from overhaul.registry import DATASETS
from overhaul.tasks import count_labelled

CROP = [dict(type='mmpretrain.RandomCrop', crop_size=8, padding=2), dict(type='mmpretrain.PackInputs')]
MASKED_CROP = [
    dict(type='mmseg.RandomCrop', crop_size=(32, 32), cat_max_ratio=0.75), dict(type='mmseg.PackSegInputs')]


def digits(labels=1, **more):
    return dict(type='overhaul.Digits', labels_per_class=labels, pipeline=CROP, **more)


def batches(dataset, count, size=4, workers=0, seed=(0, 0), skip=0):
    """The first batches that the loader of a training gives."""
    sampler = BatchSampler(InfiniteSampler(dataset, shuffle=True, seed=0), size, drop_last=False)
    loader = DataLoader(
        SeededDataset(dataset), batch_sampler=NumberedBatches(sampler, seed, 0, 0), num_workers=workers,
        collate_fn=list)
    return [batch for batch, _ in zip(loader, range(count))][skip:]


def pixels(batch):
    return torch.stack([item['inputs'] for item in batch])


@pytest.mark.parametrize('per_image', [1, 3])
def test_a_batch_has_those_with_labels_first_and_as_many_others_as_asked_for(tmp_path, per_image):
    dataset = WithUnlabelled(digits(5), write_images(tmp_path, 40), per_image)
    assert len(dataset) == 50 and dataset.metainfo['classes'] == Digits.METAINFO['classes']
    for batch in batches(dataset, 3):
        samples = [item['data_samples'] for item in batch]
        assert len(samples) == 4 * (1 + per_image) and count_labelled(samples) == 4
        assert all('gt_label' in sample for sample in samples[:4])
        assert not any(list(sample.keys()) for sample in samples[4:])
        numbers = [Path(sample.img_path).stem for sample in samples[4:]]
        assert len(set(numbers)) == 4 * per_image  # none twice


def test_those_with_labels_are_what_they_are_without_the_others(tmp_path):
    alone = batches(DATASETS.build(digits(5)), 3)
    beside = batches(WithUnlabelled(digits(5), write_images(tmp_path, 40)), 3)
    for one, other in zip(alone, beside):
        assert torch.equal(pixels(one), pixels(other[:4]))


def test_what_comes_depends_on_the_place_in_the_training_only(tmp_path):
    dataset = WithUnlabelled(digits(5), write_images(tmp_path, 40))
    first = batches(dataset, 4)
    random.random()
    for one, other in zip(first[2:], batches(dataset, 4, workers=1, skip=2)):
        assert torch.equal(pixels(one), pixels(other))
    other_process = batches(dataset, 4, seed=(0, 1))
    assert not any(torch.equal(pixels(one)[4:], pixels(other)[4:]) for one, other in zip(first, other_process))


def test_all_images_without_labels_come(tmp_path):
    dataset = WithUnlabelled(digits(5), write_images(tmp_path, 12))
    names = [item['data_samples'].img_path for batch in batches(dataset, 20) for item in batch[4:]]
    assert len(set(names)) == 12


def test_fewer_images_than_a_batch_takes_come_more_than_once(tmp_path):
    (batch, ) = batches(WithUnlabelled(digits(5), write_images(tmp_path, 3), 2), 1)
    names = [item['data_samples'].img_path for item in batch[4:]]
    assert sorted(names.count(name) for name in set(names)) == [2, 3, 3]


def test_a_loader_without_exact_resumption_has_them_too(tmp_path):
    dataset = WithUnlabelled(digits(5), write_images(tmp_path, 9))
    sizes = [len(batch) for batch in DataLoader(dataset, batch_size=20, collate_fn=list)]
    assert sizes == [40, 40, 20]


def test_labels_that_are_there_by_accident_change_nothing():
    clean, garbage = (
        batches(WithUnlabelled(digits(5), dict(type=type_, labels_per_class=20)), 3)
        for type_ in ('overhaul.Digits', 'overhaul.GarbageDigits'))
    for one, other in zip(clean, garbage):
        assert torch.equal(pixels(one), pixels(other))
        assert [sample['data_samples'].keys() for sample in other[4:]] == [[]] * 4


def test_masks_that_are_there_by_accident_do_not_steer_a_crop(tmp_path):
    write_voc(tmp_path / 'voc', train=2, aug=2)
    load = [dict(type='LoadImageFromFile'), dict(type='mmseg.LoadAnnotations')]
    labelled = dict(
        type='overhaul.PascalVOC', data_root=str(tmp_path / 'voc'), ann_file='ImageSets/Segmentation/train.txt',
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'), pipeline=load + MASKED_CROP)
    masks = sorted((tmp_path / 'voc/SegmentationClassAug').glob('*'))
    unlabelled = dict(
        type='overhaul.PascalVOC', data_root=str(tmp_path / 'voc'), ann_file='ImageSets/Segmentation/aug.txt',
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassAug'))

    def seen():
        return batches(WithUnlabelled(labelled, unlabelled), 4, size=2)

    before = seen()
    for mask in masks:
        Image.fromarray(np.zeros(np.array(Image.open(mask)).shape, np.uint8)).save(mask)
    for one, other in zip(before, seen()):
        assert torch.equal(pixels(one), pixels(other))
        assert [list(item['data_samples'].keys()) for item in other] == [['gt_sem_seg']] * 2 + [[]] * 2


def test_scenes_lose_their_masks_before_a_crop_looks_at_them():
    pipeline = [dict(type='mmseg.RandomCrop', crop_size=(32, 32)), dict(type='mmseg.PackSegInputs')]
    dataset = WithUnlabelled(
        dict(type='overhaul.DigitScenes', length=4, pipeline=pipeline), dict(type='overhaul.DigitScenes', length=8))
    assert isinstance(dataset.unlabelled, DigitScenes)
    assert not dataset.beside(1)[0]['data_samples'].keys()


def test_a_pipeline_of_their_own_and_datasets_in_datasets(tmp_path):
    folder = write_images(tmp_path, 4, (6, 6))
    own = [dict(type='LoadImageFromFile'), dict(type='mmpretrain.Resize', scale=12), dict(type='mmpretrain.PackInputs')]
    both = dict(type='mmengine.ConcatDataset', ignore_keys='classes', datasets=[
        dict(type='overhaul.ImageFolder', data_root=folder, pipeline=own), dict(type='overhaul.GarbageDigits')])
    dataset = WithUnlabelled(dict(type='mmengine.RepeatDataset', times=2, dataset=digits(5)), both)
    assert len(dataset) == 100
    sizes = [dataset.unlabelled[index]['inputs'].shape[1] for index in (0, 3, 4)]
    assert sizes == [12, 12, 8]


def test_a_dataset_that_is_built_and_whose_pipeline_is_its_own_loses_its_labels_too():
    unlabelled = Digits(labels_per_class=2, pipeline=[dict(type='mmpretrain.PackInputs')])
    assert 'gt_label' in unlabelled[0]['data_samples']
    assert not WithUnlabelled(Digits(labels_per_class=1), unlabelled).beside(1)[0]['data_samples'].keys()


def test_a_transform_that_needs_a_label_is_told():
    pipeline = [dict(type='LoadAnnotations', with_bbox=False, with_label=True)]
    data = WithUnlabelled(digits(), dict(type='overhaul.Digits', pipeline=pipeline))
    with pytest.raises(ValueError, match="A transform asks for 'instances' of an image without labels"):
        data.beside(1)


def test_a_transform_that_gives_up_every_image_is_told():
    unlabelled = dict(type='overhaul.Digits', pipeline=[lambda _: None], max_refetch=3)
    with pytest.raises(ValueError, match='A transform gives up every image without labels'):
        WithUnlabelled(digits(), unlabelled).beside(1)


def test_boxes_are_none_and_not_missing():
    sample = DATASETS.build(digits())[0]['data_samples']
    sample.gt_instances = InstanceData(bboxes=torch.ones(3, 4), labels=torch.ones(3))
    items = [dict(inputs=torch.zeros(3, 8, 8), data_samples=sample)]
    (item, ) = WithUnlabelled(digits(), items).beside(1)
    assert item['data_samples'].keys() == ['gt_instances'] and item['data_samples'].gt_instances.bboxes.shape == (0, 4)
    assert len(sample.gt_instances) == 3  # the dataset's own has not changed


def test_images_in_both_are_told_once():
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = MMLogger.get_instance('both')
    logger.addHandler(handler)
    dataset = WithUnlabelled(digits(2), dict(type='overhaul.Digits'))
    batches(dataset, 2)
    assert [message for message in said if 'are among those' in message] == [
        '20 of 20 images with labels are among those without labels, too: without their labels they are as good as any '
        'other.']
    logger.removeHandler(handler)
    DefaultScope._instance_dict.clear()


@pytest.mark.parametrize(('unlabelled', 'per_image', 'expected'), [
    ('nowhere', 1, r'There is no folder "nowhere"'), ('empty', 1, r'"empty" has no image in it.+\.jpg'),
    ('folder', 0, r'per_image=0\. Give the number'), ('folder', 1.5, r'per_image=1\.5'),
    ([], 1, r'is empty\. Name one that has images'), ([3], 1, r'come as int, and not as a dict')])
def test_what_cannot_be_is_refused(tmp_path, monkeypatch, unlabelled, per_image, expected):
    monkeypatch.chdir(tmp_path)
    Path('empty').mkdir()
    write_images('folder', 2)
    with pytest.raises((ValueError, FileNotFoundError), match=expected):
        WithUnlabelled(digits(), unlabelled, per_image).beside(1)
