"""docs/your_own_data.md: what the page tells to do is done here, with a few images that lie as it says."""

import re

import numpy as np
import pytest
from PIL import Image
from test_docs import IN_THIS_PROCESS, QUICK, ROOT, walk
from tiny_data import write_coco

PETS = [*IN_THIS_PROCESS[::2], 'train_dataloader.batch_size=4', 'train_cfg.max_epochs=1', 'param_scheduler.T_max=1',
        'train_dataloader.dataset.pipeline.1.scale=64', 'val_dataloader.dataset.pipeline.1.scale=64']
ROADS = [*IN_THIS_PROCESS, 'train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2',
         'train_dataloader.batch_size=2', 'train_dataloader.dataset.pipeline.2.scale=(128,64)',
         'train_dataloader.dataset.pipeline.3.crop_size=(64,64)', 'train_dataloader.dataset.pipeline.6.size=(64,64)',
         'val_dataloader.dataset.pipeline.1.scale=(128,64)']
FRUIT = [*IN_THIS_PROCESS, 'train_cfg.max_epochs=1', 'train_dataloader.dataset.pipeline.2.scale=(128,64)',
         'val_dataloader.dataset.pipeline.1.scale=(128,64)']
QUICK.update({
    'pets_r50.py': PETS, 'pets_r50_r18.py': [*PETS, 'model.teacher_checkpoint=work_dirs/pets_r50/epoch_1.pth'],
    'roads_r50.py': [*ROADS, 'model.data_preprocessor.size=(64,64)', 'model.pretrained=None'],
    'roads_r50_r18.py': [*ROADS, 'model.student.data_preprocessor.size=(64,64)', 'default_hooks.calibrate.batches=1',
                         'model.student.pretrained=None', 'model.teacher_checkpoint=work_dirs/roads_r50/iter_2.pth'],
    'fruit_r50.py': [*FRUIT, 'model.backbone.init_cfg=None'],
    'fruit_r50_r18.py': [*FRUIT, 'model.student.backbone.init_cfg=None',
                         'model.teacher_checkpoint=work_dirs/fruit_r50/epoch_1.pth'],
})


def write_pictures(folder, suffix='jpg', values=256, channels=(3, )):
    """Two pictures with random pixels."""
    folder.mkdir(parents=True)
    pixels = np.random.RandomState(0).randint(0, values, (2, 64, 64, *channels), dtype=np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f'{number}.{suffix}')


def write_masks(root):
    """Four pictures with masks of two classes, two of them to validate on."""
    for split in ('train', 'val'):
        write_pictures(root / split / 'images')
        write_pictures(root / split / 'masks', 'png', values=2, channels=())


def write_fruit(root):
    """Images with boxes, laid out as the page has them."""
    write_coco(root, classes=('apple', 'pear'))
    for split in ('train', 'val'):
        (root / f'{split}2017').rename(root / split)
        (root / f'annotations/instances_{split}2017.json').rename(root / f'{split}.json')


OWN_DATA = {
    'A folder for each class': lambda folder: [
        write_pictures(folder / 'data/pets' / split / name) for split in ('train', 'val')
        for name in ('cat', 'dog', 'rabbit')],
    'Images and masks': lambda folder: write_masks(folder / 'data/roads'),
    'Boxes in a COCO file': lambda folder: write_fruit(folder / 'data/fruit'),
}


@pytest.mark.parametrize('section', [
    pytest.param(section, marks=pytest.mark.detection) if 'COCO' in section else section for section in OWN_DATA])
def test_a_model_of_data_of_ones_own(section, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'hub/checkpoints').mkdir(parents=True)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    OWN_DATA[section](tmp_path)
    page = (ROOT / 'docs/your_own_data.md').read_text()
    walk(re.search(rf'^## {section}\n(.*?)(?=^## |\Z)', page, re.DOTALL | re.MULTILINE)[1], tmp_path)
