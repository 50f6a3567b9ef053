"""Reads a tiny VOC2012 tree, in the genuine format, through the pipelines of the VOC config."""

import runpy
import shutil
import sys
from pathlib import Path

import mmseg
import numpy as np
import pytest
import scipy.io
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import ConcatDataset, pseudo_collate
from PIL import Image, ImageFilter

from overhaul import PascalVOC
from overhaul.registry import DATASETS, MODELS, TRANSFORMS

CONFIGS = Path(__file__).parents[2] / 'configs'
CROP = 513
CLASSES = dict(train=15, aug=7, val=3)  # the one class in the masks of each split, beside a frame of 255
LISTS = dict(train=['2007_000001', '2007_000002'], aug=['2008_000001'], val=['2007_000003'])
SIZES = {'2007_000001': (60, 40), '2007_000002': (40, 70), '2008_000001': (50, 50), '2007_000003': (90, 60)}


@pytest.fixture
def voc(tmp_path):
    """A VOC2012 folder: white JPEGs, masks as palette PNGs (of the added ones without a palette, as converted)."""
    root = tmp_path / 'VOCdevkit/VOC2012'
    for folder in ('JPEGImages', 'SegmentationClass', 'SegmentationClassAug', 'ImageSets/Segmentation'):
        (root / folder).mkdir(parents=True)
    for split, names in LISTS.items():
        (root / f'ImageSets/Segmentation/{split}.txt').write_text(''.join(f'{name}\n' for name in names))
        for name in names:
            width, height = SIZES[name]
            Image.new('RGB', (width, height), 'white').save(root / f'JPEGImages/{name}.jpg')
            labels = np.full((height, width), CLASSES[split], np.uint8)
            labels[0] = 255
            mask = Image.fromarray(labels)
            if split != 'aug':
                mask.putpalette(np.arange(768, dtype=np.uint8)[::-1].tobytes())  # colours that are not the indices
            mask.save(root / ('SegmentationClassAug' if split == 'aug' else 'SegmentationClass') / f'{name}.png')
    return root


def dataset(root, loader='train_dataloader', config='voc_aug'):
    cfg = Config.fromfile(CONFIGS / f'_base_/datasets/{config}.py')[loader].dataset
    for part in cfg.get('datasets', [cfg]):
        part.data_root = str(root)
        # Blur mixes neighbours; it has a test of its own.
        part.pipeline = [step for step in part.pipeline if step.type != 'mmpretrain.GaussianBlur']
    return DATASETS.build(cfg)


def transform(name, config='voc_aug'):
    pipeline = Config.fromfile(CONFIGS / f'_base_/datasets/{config}.py').train_pipeline
    (step, ) = [step for step in pipeline if step.type == name]
    return TRANSFORMS.build(step)


def image_and_mask(item):
    return item['inputs'], item['data_samples'].gt_sem_seg.data[0]


def test_training_takes_voc_and_the_added_masks(voc):
    train = dataset(voc)
    assert isinstance(train, ConcatDataset)
    assert [len(part) for part in train.datasets] == [2, 1]
    np.random.seed(0)
    for i, label in enumerate([15, 15, 7]):
        image, mask = image_and_mask(train[i])
        assert image.shape == (3, CROP, CROP) and image.dtype == torch.uint8
        assert mask.shape == (CROP, CROP)
        assert set(mask.unique().tolist()) <= {label, 255} and label in mask


@pytest.mark.parametrize(('config', 'padded_label'), [('voc_aug', 255), ('voc_aug_official', 0)])
def test_padding_is_black_right_and_below_and_labelled_as_the_config_says(voc, config, padded_label):
    train = dataset(voc, config=config)
    np.random.seed(0)
    shares = []
    for _ in range(12):
        image, mask = image_and_mask(train[1])
        black = (image == 0).all(0)
        rows, columns = (~black).any(1), (~black).any(0)
        height, width = int(rows.sum()), int(columns.sum())
        assert (~black[:height, :width]).all() and black[height:].all() and black[:, width:].all()
        assert (mask[black] == padded_label).all()
        # Of the image itself only the frame at the top is unlabelled, when it is in the crop.
        assert set(mask[~black].unique().tolist()) <= {15, 255}
        shares.append(black.float().mean().item())
    assert min(shares) == 0 and max(shares) > 0.2


def test_the_short_side_is_a_whole_number_from_256_to_1026(voc):
    resize = transform('RandomResize')
    np.random.seed(0)
    short_sides = np.array([min(resize._random_scale()) for _ in range(20000)])
    assert (short_sides.min(), short_sides.max()) == (256, 1026)  # both ends included
    assert short_sides.mean() == pytest.approx(641, abs=4 * 222.6 / 20000 ** 0.5)
    assert len(np.unique(short_sides)) == 771
    for _ in range(3):
        results = resize(dict(img=np.zeros((40, 60, 3), np.uint8), gt_seg_map=np.zeros((40, 60), np.uint8),
                              seg_fields=['gt_seg_map']))
        height, width = results['img'].shape[:2]
        assert height == min(results['scale']) and width == pytest.approx(1.5 * height, abs=1)
        assert results['gt_seg_map'].shape == (height, width)


def test_images_are_resized_as_pillow_does_and_masks_without_new_labels():
    # Shrinking tells: Pillow averages the stripes, OpenCV picks among them.
    resize = transform('RandomResize')
    stripes = np.zeros((2052, 2052, 3), np.uint8)
    stripes[:, ::2] = 255
    labels = np.where(stripes[..., 0] > 0, 15, 255).astype(np.uint8)
    np.random.seed(0)
    results = resize(dict(img=stripes, gt_seg_map=labels, seg_fields=['gt_seg_map']))
    size = results['img'].shape[1::-1]
    expected = np.asarray(Image.fromarray(stripes).resize(size, Image.Resampling.BILINEAR))
    assert np.array_equal(results['img'], expected)
    assert set(np.unique(results['gt_seg_map'])) <= {15, 255}


def test_half_of_the_images_are_flipped_with_their_masks():
    flip = transform('mmseg.RandomFlip')
    image = np.arange(4, dtype=np.uint8).reshape(1, 4, 1).repeat(3, axis=2)
    np.random.seed(0)
    flipped = 0
    for _ in range(1000):
        results = flip(dict(img=image, gt_seg_map=image[..., 0], seg_fields=['gt_seg_map']))
        assert np.array_equal(results['img'][..., 0], results['gt_seg_map'])
        flipped += results['img'][0, 0, 0] == 3
    assert flipped == pytest.approx(500, abs=4 * 250 ** 0.5)


def test_half_of_the_images_are_blurred_with_a_radius_of_at_most_one():
    blur = transform('mmpretrain.GaussianBlur')
    image = np.zeros((9, 9, 3), np.uint8)
    image[4, 4] = 255

    def peak(radius):
        return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))[4, 4, 0]

    np.random.seed(0)
    peaks = np.array([blur(dict(img=image))['img'][4, 4, 0] for _ in range(2000)])
    # A tiny radius leaves the image as it is; one below the median radius 0.5 leaves more than peak(0.5).
    assert peaks.min() >= peak(1.0) and peaks.min() < peak(0.95)
    expected = 2000 * (0.5 + 0.5 * 0.5)  # not blurred, or by a radius in the lower half
    assert (peaks > peak(0.5)).sum() == pytest.approx(expected, abs=4 * (2000 * 0.75 * 0.25) ** 0.5)
    assert (peaks < peak(0.75)).sum() == pytest.approx(2000 / 8, abs=4 * (2000 / 8 * 7 / 8) ** 0.5)


def test_images_are_normalised_as_rgb_after_the_padding(voc):
    cfg = Config.fromfile(CONFIGS / '_base_/datasets/voc_aug.py')
    preprocessor = MODELS.build(cfg.data_preprocessor)
    sample = dataset(voc)[0]['data_samples']
    image = torch.zeros(3, CROP, CROP, dtype=torch.uint8)
    image[2, 0, 0] = 255  # one red pixel, as OpenCV loads it
    out = preprocessor(dict(inputs=[image], data_samples=[sample]), training=True)['inputs']
    assert out.shape == (1, 3, CROP, CROP)
    red = [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    black = [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    assert out[0, :, 0, 0].tolist() == pytest.approx(red, rel=1e-5)
    assert out[0, :, -1, -1].tolist() == pytest.approx(black, rel=1e-5)


@pytest.mark.parametrize(('config', 'measured_at'), [('voc_aug', (60, 90)), ('voc_aug_official', (513, 770))])
def test_validation_resizes_the_short_side_to_513_and_measures_where_the_config_says(voc, config, measured_at):
    cfg = Config.fromfile(CONFIGS / f'_base_/datasets/{config}.py')
    batch = pseudo_collate([dataset(voc, 'val_dataloader', config)[0]])
    assert batch['inputs'][0].shape == (3, 513, 770)
    mask = batch['data_samples'][0].gt_sem_seg.data
    assert mask.shape == (1, *measured_at)
    assert set(mask.unique().tolist()) == {3, 255}

    torch.manual_seed(0)
    model = MODELS.build(ConfigDict(
        type='mmseg.EncoderDecoder', data_preprocessor=cfg.data_preprocessor, test_cfg=dict(mode='whole'),
        backbone=dict(type='overhaul.DilatedResNet', depth=18, base_channels=4, stem_channels=4, out_indices=(0, 3)),
        decode_head=dict(
            type='overhaul.DeepLabV3PlusHead', in_channels=32, c1_in_channels=4, channels=4, c1_channels=4,
            num_classes=21)))
    model.eval()
    # A network that always answers 3 is right wherever there is a label.
    model.decode_head.conv_seg.weight.data.zero_()
    model.decode_head.conv_seg.bias.data = torch.eye(21)[3]
    with torch.no_grad():
        predictions = model.val_step(batch)
    assert predictions[0].pred_sem_seg.data.shape == (1, *measured_at)
    from mmseg.evaluation import IoUMetric
    metric = IoUMetric(iou_metrics=['mIoU'])
    metric.dataset_meta = PascalVOC.METAINFO
    metric.process(batch, [sample.to_dict() for sample in predictions])
    assert metric.evaluate(1) == dict(aAcc=100, mIoU=100, mAcc=100)


def test_a_missing_dataset_says_where_it_is_to_be_had(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        dataset(tmp_path / 'VOC2012')
    assert 'VOCtrainval_11-May-2012.tar' in str(error.value)
    assert f'are in {tmp_path}/VOC2012' in str(error.value)


def test_an_empty_list_is_refused(voc):
    (voc / 'ImageSets/Segmentation/train.txt').write_text('')
    with pytest.raises(ValueError, match='train.txt" has no image in it.*VOCtrainval_11-May-2012.tar'):
        dataset(voc)


@pytest.mark.parametrize('part', ['JPEGImages/2007_000001.jpg', 'SegmentationClass/2007_000001.png'])
def test_images_and_masks_that_are_not_there_are_found_at_once(voc, part):
    (voc / part).unlink()
    with pytest.raises(FileNotFoundError, match=f'{part}", the first file named by .*train.txt", does not exist'):
        dataset(voc)


def test_a_missing_test_set_says_where_it_is_to_be_had(voc):
    with pytest.raises(FileNotFoundError, match=r'test.txt" does not exist.*host.robots.ox.ac.uk:8080.*VOC2012test'):
        PascalVOC(str(voc), 'ImageSets/Segmentation/test.txt', dict(img_path='JPEGImages'))


@pytest.mark.parametrize('part', ['ImageSets/Segmentation/aug.txt', 'SegmentationClassAug'])
def test_missing_added_masks_say_how_to_make_them(voc, part):
    (voc / part).rename(voc / 'elsewhere')
    with pytest.raises(FileNotFoundError) as error:
        dataset(voc)
    assert f'"{voc / part}" does not exist' in str(error.value)
    assert 'benchmark.tgz' in str(error.value)
    converter = Path(mmseg.__path__[0]) / '.mim/tools/dataset_converters/voc_aug.py'
    assert converter.is_file()
    assert f'python {converter} {voc.parent} {voc.parent}/VOCaug' in str(error.value)


def test_the_command_that_makes_the_added_masks_does(voc, monkeypatch):
    """On an SBD of two images, one of which VOC's own training set has as well."""
    shutil.rmtree(voc / 'SegmentationClassAug')
    (voc / 'ImageSets/Segmentation/aug.txt').unlink()
    sbd = voc.parent / 'VOCaug/dataset'
    (sbd / 'cls').mkdir(parents=True)
    for split, name in (('train', '2007_000001'), ('val', '2008_000001')):
        (sbd / f'{split}.txt').write_text(f'{name}\n')
        width, height = SIZES[name]
        labels = np.full((height, width), CLASSES['aug'], np.uint8)
        scipy.io.savemat(sbd / f'cls/{name}.mat', dict(GTcls=dict(Segmentation=labels, CategoriesPresent=7)))

    converter = Path(mmseg.__path__[0]) / '.mim/tools/dataset_converters/voc_aug.py'
    # It insists on the number of images that the real lists have: here the two of train.txt and the added one.
    script = converter.read_text().replace('AUG_LEN = 10582', 'AUG_LEN = 3')
    (voc.parent / 'voc_aug.py').write_text(script)
    monkeypatch.setattr(sys, 'argv', ['voc_aug.py', str(voc.parent), str(voc.parent / 'VOCaug')])
    runpy.run_path(str(voc.parent / 'voc_aug.py'), run_name='__main__')

    assert (voc / 'ImageSets/Segmentation/aug.txt').read_text().split() == ['2008_000001']
    image, mask = image_and_mask(dataset(voc).datasets[1][0])
    assert set(mask.unique().tolist()) <= {7, 255} and 7 in mask
