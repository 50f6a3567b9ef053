import runpy
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from tiny_data import write_voc

from overhaul import PascalVOC
from overhaul.datasets import voc_submission
from overhaul.datasets.voc_submission import VOCSubmission
from overhaul.files.parts import student_only
from overhaul.files.settings import read_config
from overhaul.registry import MODELS

REPOSITORY = Path(__file__).parents[2]
CONFIG = REPOSITORY / 'configs/voc_r101_r18.py'
FOLDER = 'results/VOC2012/Segmentation/comp6_test_cls'


def sample(name, mask):
    return dict(img_path=f'somewhere/{name}.jpg', pred_sem_seg=dict(data=torch.from_numpy(mask)[None]))


def test_each_mask_is_an_indexed_image_in_the_colours_of_voc(tmp_path):
    metric = VOCSubmission(tmp_path / 'new/folder')
    metric.dataset_meta = PascalVOC.METAINFO
    masks = {
        '2008_000006': np.arange(21).reshape(3, 7),
        '2012_004331': np.random.RandomState(0).randint(0, 21, (50, 40))}
    for name, mask in masks.items():
        metric.process(None, [sample(name, mask)])
    assert metric.evaluate(2) == dict(images=2)
    for name, mask in masks.items():
        image = Image.open(tmp_path / f'new/folder/{FOLDER}/{name}.png')
        assert image.mode == 'P'
        assert np.array_equal(np.asarray(image), mask)
        # The devkit's colours: of a label's bits, the lowest three set the highest bits of red, green and blue.
        colours = np.asarray(image.convert('RGB'))
        bits = [[(mask >> bit & 1) * 128 + (mask >> bit + 3 & 1) * 64] for bit in range(3)]
        assert np.array_equal(colours, np.concatenate(bits).transpose(1, 2, 0))


def test_the_archive_holds_the_masks_of_this_run_in_the_tree_that_the_server_takes(tmp_path):
    stale = tmp_path / FOLDER / '2007_000001.png'
    stale.parent.mkdir(parents=True)
    stale.touch()
    metric = VOCSubmission(tmp_path)
    metric.dataset_meta = PascalVOC.METAINFO
    metric.process(None, [sample('2008_000008', np.ones((2, 3), int)), sample('2008_000006', np.ones((2, 3), int))])
    # With several processes an image may come twice.
    metric.process(None, [sample('2008_000006', np.ones((2, 3), int))])
    metric.evaluate(3)
    with tarfile.open(tmp_path / 'results.tgz') as archive:
        assert archive.getnames() == [f'{FOLDER}/2008_000006.png', f'{FOLDER}/2008_000008.png']
        assert archive.getmember(f'{FOLDER}/2008_000006.png').size > 0


@pytest.mark.parametrize('name', ['voc_aug', 'voc_aug_official', 'voc_aug_mmseg'])
def test_no_pipeline_keeps_what_needs_a_mask_or_changes_the_size_of_the_prediction(name):
    cfg = Config.fromfile(REPOSITORY / f'configs/_base_/datasets/{name}.py')
    voc_submission.prepare(cfg, 'out')
    assert [step.type for step in cfg.test_dataloader.dataset.pipeline] == [
        'LoadImageFromFile', 'mmseg.Resize', 'mmseg.PackSegInputs']
    assert 'seg_map_path' in cfg.val_dataloader.dataset.data_prefix


def run_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['test.py', *map(str, arguments)])
    runpy.run_path(str(REPOSITORY / 'tools/test.py'), run_name='__main__')


def test_the_tool_writes_the_test_set_at_the_size_of_its_images(tmp_path, monkeypatch):
    write_voc(tmp_path / 'VOC2012')
    student = MODELS.build(student_only(read_config(CONFIG)))
    with torch.no_grad():
        student.decode_head.conv_seg.weight.zero_()  # this student answers 15 everywhere
        student.decode_head.conv_seg.bias.copy_(torch.eye(21)[15])
    torch.save(dict(state_dict=student.state_dict()), tmp_path / 'student.pth')
    run_tool(
        monkeypatch, CONFIG, tmp_path / 'student.pth', '--voc-submission', tmp_path / 'out', '--work-dir',
        tmp_path / 'work', '--cfg-options', f'test_dataloader.dataset.data_root={tmp_path}/VOC2012',
        'test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False',
        'test_dataloader.dataset.pipeline.1.scale=(65,1000)')
    for name, size in (('2008_000000', (80, 60)), ('2008_000001', (90, 80))):
        image = Image.open(tmp_path / f'out/{FOLDER}/{name}.png')
        assert (image.mode, image.size) == ('P', size)
        assert set(np.unique(image)) == {15}
    with tarfile.open(tmp_path / 'out/results.tgz') as archive:
        assert archive.getnames() == [f'{FOLDER}/2008_000000.png', f'{FOLDER}/2008_000001.png']


def test_a_config_without_voc_is_refused(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r'error: This config tests on overhaul.Digits.*configs/voc_r101_r18.py'):
        run_tool(
            monkeypatch, REPOSITORY / 'configs/digits_wrn16_2_wrn10_1.py', 'any.pth', '--voc-submission', tmp_path)
