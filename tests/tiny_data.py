"""Datasets of a few images, written as the real ones lie on disk. Their content is noise."""

import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

from overhaul import Digits
from overhaul.registry import DATASETS

PALETTE = np.random.RandomState(0).randint(0, 256, (256, 3), dtype=np.uint8)  # colours are not the labels


@DATASETS.register_module()
class GarbageDigits(Digits):
    """Those of Digits with labels that are none, and some that a strange dataset might have."""

    def load_data_list(self):
        return [dict(info, gt_label='garbage', gt_score=[9.0], instances=[{}]) for info in super().load_data_list()]


def write_images(folder, count, size=(8, 8)):
    """Write gray images, each of its number, as ``folder/more/<number>.png``, and return the folder."""
    Path(folder, 'more').mkdir(parents=True)
    for number in range(count):
        Image.new('RGB', size, (number, ) * 3).save(Path(folder, 'more', f'{number:02d}.png'))
    return str(folder)


def write_cifar100(root, train=8, test=4):
    """Write ``root/cifar-100-python/{train,test}``. The labels of a split count up from 0."""
    folder = Path(root, 'cifar-100-python')
    folder.mkdir(parents=True)
    random = np.random.RandomState(0)
    for split, count in (('train', train), ('test', test)):
        content = dict(
            data=random.randint(0, 256, (count, 3 * 32 * 32), dtype=np.uint8),
            fine_labels=list(range(count)), coarse_labels=[0] * count,
            filenames=[f'{split}_{index}.png' for index in range(count)], batch_label=f'{split}ing batch 1 of 1')
        (folder / split).write_bytes(pickle.dumps(content, protocol=2))


def write_imagenet(root, train=8, val=4, size=(90, 70)):
    """Write ``root/train`` with 1,000 class folders, of which the first ones have an image each, and a flat ``val``.

    The labels of ``val`` in ``root/meta/val.txt`` count up from 0.
    """
    root = Path(root)
    random = np.random.RandomState(0)
    for label in range(1000):
        (root / f'train/n{label:08d}').mkdir(parents=True)
    for label in range(train):
        _write_image(root / f'train/n{label:08d}/n{label:08d}_1.JPEG', size, random)
    names = [f'ILSVRC2012_val_{index:08d}.JPEG' for index in range(1, val + 1)]
    (root / 'meta').mkdir()
    (root / 'val').mkdir()
    (root / 'meta/val.txt').write_text(''.join(f'{name} {label}\n' for label, name in enumerate(names)))
    for name in names:
        _write_image(root / 'val' / name, size, random)


def write_voc(root, train=2, aug=2, val=2, test=2):
    """Write the folder ``VOC2012`` as ``root``, with the added masks. Images differ in size; ``test`` has no masks.

    Image i of ``test`` is called ``2008_00000i``.
    """
    root = Path(root)
    for folder in ('JPEGImages', 'SegmentationClass', 'SegmentationClassAug', 'ImageSets/Segmentation'):
        (root / folder).mkdir(parents=True)
    random = np.random.RandomState(0)
    for year, (split, count) in enumerate(dict(train=train, aug=aug, val=val, test=test).items(), start=2005):
        names = [f'{year}_{index:06d}' for index in range(count)]
        (root / f'ImageSets/Segmentation/{split}.txt').write_text(''.join(f'{name}\n' for name in names))
        for index, name in enumerate(names):
            size = (80 + 10 * index, 60 + 20 * index)
            _write_image(root / f'JPEGImages/{name}.jpg', size, random)
            if split != 'test':
                _write_mask(root, name, split == 'aug', size, random)


def write_coco(root, train=4, val=2, classes=('person', 'bicycle'), size=(96, 64)):
    """Write ``root/{train,val}2017`` and ``root/annotations/instances_{train,val}2017.json``.

    On each image there are a red box of the first class and a green one of the second, with their masks.
    """
    root = Path(root)
    (root / 'annotations').mkdir(parents=True)
    random = np.random.RandomState(0)
    categories = [dict(id=label + 1, name=name) for label, name in enumerate(classes)]
    for split, count in dict(train=train, val=val).items():
        (root / f'{split}2017').mkdir()
        images, annotations = [], []
        for index in range(count):
            images.append(dict(id=index, file_name=f'{index:012d}.jpg', width=size[0], height=size[1]))
            for label, (left, top, right, bottom) in enumerate(_write_boxes(
                    root / f'{split}2017/{index:012d}.jpg', 2, size, random)):
                annotations.append(dict(
                    id=len(annotations) + 1, image_id=index, category_id=label + 1, iscrowd=0,
                    bbox=[left, top, right - left, bottom - top], area=(right - left) * (bottom - top),
                    segmentation=[[left, top, right, top, right, bottom, left, bottom]]))
        content = dict(images=images, annotations=annotations, categories=categories)
        (root / f'annotations/instances_{split}2017.json').write_text(json.dumps(content))


def write_voc_boxes(root, trainval=2, test=2, classes=('aeroplane', 'bicycle'), size=(96, 64)):
    """Write ``root/VOC2007`` and ``root/VOC2012`` with such images, boxes in XML; only VOC2007 has a ``test``."""
    random = np.random.RandomState(0)
    for year, splits in (('VOC2007', dict(trainval=trainval, test=test)), ('VOC2012', dict(trainval=trainval))):
        for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
            Path(root, year, folder).mkdir(parents=True)
        for split, count in splits.items():
            names = [f'{split}_{index:06d}' for index in range(count)]
            Path(root, year, f'ImageSets/Main/{split}.txt').write_text(''.join(f'{name}\n' for name in names))
            for name in names:
                boxes = _write_boxes(Path(root, year, f'JPEGImages/{name}.jpg'), len(classes), size, random)
                objects = ''.join(
                    f'<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{left + 1}</xmin>'
                    f'<ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>'
                    for label, (left, top, right, bottom) in zip(classes, boxes))
                Path(root, year, f'Annotations/{name}.xml').write_text(
                    f'<annotation><size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>'
                    f'{objects}</annotation>')


def _write_boxes(path, count, size, random):
    """Write an image of noise with ``count`` boxes side by side, and return them as (left, top, right, bottom)."""
    image = random.randint(0, 80, (size[1], size[0], 3), dtype=np.uint8)
    boxes, width = [], size[0] // count
    for label in range(count):
        (left, top), (right, bottom) = (
            (random.randint(low, high), random.randint(low * size[1] // width, high * size[1] // width))
            for low, high in ((0, width // 4), (width * 3 // 4, width)))
        box = (label * width + left, top, label * width + right, bottom)
        image[box[1]:box[3], box[0]:box[2]] = np.eye(3, dtype=np.uint8)[label % 3] * 220
        boxes.append(tuple(map(int, box)))
    Image.fromarray(image).save(path)
    return boxes


def _write_image(path, size, random):
    Image.fromarray(random.randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)


def _write_mask(root, name, added, size, random):
    labels = random.randint(0, 21, (size[1], size[0]), dtype=np.uint8)
    labels[0] = 255
    mask = Image.fromarray(labels)
    if not added:  # the conversion of SBD writes no palette
        mask.putpalette(PALETTE.tobytes())
    mask.save(root / ('SegmentationClassAug' if added else 'SegmentationClass') / f'{name}.png')


def write_poses(root, train=4, val=2, keypoints=17, size=(96, 64)):
    """Write what :func:`write_coco` does, and keypoints at random places of the person of each image."""
    write_coco(root, train, val, ('person', ), size)
    random = np.random.RandomState(0)
    for split in ('train', 'val'):
        content = json.loads(Path(root, f'annotations/instances_{split}2017.json').read_text())
        for annotation in content['annotations']:
            left, top, width, height = annotation['bbox']
            places = random.rand(keypoints, 2) * (width, height) + (left, top)
            annotation.update(num_keypoints=keypoints, keypoints=[
                number for x, y in places.round().tolist() for number in (x, y, 2)])
        content['categories'][0]['keypoints'] = [str(number) for number in range(keypoints)]
        Path(root, f'annotations/person_keypoints_{split}2017.json').write_text(json.dumps(content))


def write_clips(root, train=4, val=2, length=4, size=(48, 32)):
    """Write ``root/clips/<name>/img_<number>.jpg`` of noise, and ``root/{train,val}.txt``: name, length, label."""
    random = np.random.RandomState(0)
    for split, count in dict(train=train, val=val).items():
        for index in range(count):
            folder = Path(root, f'clips/{split}{index}')
            folder.mkdir(parents=True)
            for number in range(1, length + 1):
                _write_image(folder / f'img_{number:05d}.jpg', size, random)
        lines = [f'{split}{index} {length} {index % 2}\n' for index in range(count)]
        Path(root, f'{split}.txt').write_text(''.join(lines))
