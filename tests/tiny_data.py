"""Datasets of a few images, written as the real ones lie on disk. Their content is noise."""

import pickle
from pathlib import Path

import numpy as np
from PIL import Image

PALETTE = np.random.RandomState(0).randint(0, 256, (256, 3), dtype=np.uint8)  # colours are not the labels


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


def _write_image(path, size, random):
    Image.fromarray(random.randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)


def _write_mask(root, name, added, size, random):
    labels = random.randint(0, 21, (size[1], size[0]), dtype=np.uint8)
    labels[0] = 255
    mask = Image.fromarray(labels)
    if not added:  # the conversion of SBD writes no palette
        mask.putpalette(PALETTE.tobytes())
    mask.save(root / ('SegmentationClassAug' if added else 'SegmentationClass') / f'{name}.png')
