"""docs/: what a page tells to do is done here, with a few images, and what it shows comes out but for its numbers."""

import contextlib
import io
import os
import re
import runpy
import shlex
import sys
from concurrent.futures import Executor, Future
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import build_model
from tiny_data import write_coco, write_imagenet

from overhaul import cli
from overhaul.engine.dry_run import without_downloads
from overhaul.files.parts import model_of

ROOT = Path(__file__).parents[1]
DIGITS, SCENES = 'configs/digits_wrn16_2_wrn10_1.py', 'configs/digitscenes_r34_r18.py'
BOXES = 'configs/digitdet_gfl_r34_r18.py'
PAGE = (ROOT / 'docs/distil_your_own.md').read_text()
BLOCK = re.compile(r'```(\w+)\n(.*?)```', re.DOTALL)

TWO_ITERATIONS = [
    'train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2',
    'default_hooks.logger.interval=1', 'default_hooks.summary.validate_teacher=False']
IN_THIS_PROCESS = [
    'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False', 'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False', 'default_hooks.checkpoint.save_optimizer=False']
# What makes a training of a page a short one on small images.
QUICK = {
    'resnet50_resnet18.py': [
        'train_dataloader.batch_size=4', 'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0',
        'train_cfg.max_epochs=1', 'train_dataloader.dataset.pipeline.1.scale=64', 'model.input_size=(64,64)'],
    'deeplab_r101_r18.py': [
        *IN_THIS_PROCESS, 'train_cfg.max_iters=2', 'train_cfg.val_interval=2',
        'default_hooks.checkpoint.interval=2', 'train_dataloader.dataset.pipeline.2.scale=(128,64)',
        'train_dataloader.dataset.pipeline.3.crop_size=(64,128)', 'val_dataloader.dataset.pipeline.1.scale=(128,64)',
        'model.student.data_preprocessor.size=(64,128)', 'model.student.pretrained=None',
        'default_hooks.calibrate.batches=1', 'model.input_size=(64,64)'],
    'retinanet_r50_r18.py': [
        *IN_THIS_PROCESS, 'train_cfg.max_epochs=1',
        'train_dataloader.dataset.pipeline.2.scale=(128,64)', 'val_dataloader.dataset.pipeline.1.scale=(128,64)',
        'model.student.backbone.init_cfg=None'],
    DIGITS: [*TWO_ITERATIONS, 'val_dataloader.dataset.indices=20'],
    DIGITS.replace('.py', '_unlabelled.py'): [*TWO_ITERATIONS, 'val_dataloader.dataset.indices=20'],
    'configs/digits_wrn16_2.py': [*TWO_ITERATIONS, 'val_dataloader.dataset.indices=20'],
    SCENES: [*TWO_ITERATIONS, 'val_dataloader.dataset.length=4'],
    BOXES: [*TWO_ITERATIONS, 'val_dataloader.dataset.length=4', 'model.student.test_cfg.score_thr=0'],
}
QUICK.update({
    config.replace('.py', '_unlabelled.py'): [*QUICK[config], 'train_dataloader.unlabelled.dataset.length=8']
    for config in (SCENES, BOXES)})
# Whose weights the pages download, by how the name of the file begins.
DOWNLOADS = {
    'resnet18': 'mmpretrain::resnet/resnet18_8xb32_in1k.py',
    'resnet50': 'mmpretrain::resnet/resnet50_8xb32_in1k.py',
    'deeplabv3plus_r50': 'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-40k_voc12aug-512x512.py',
    'deeplabv3plus_r101': 'mmseg::deeplabv3plus/deeplabv3plus_r101-d8_4xb2-80k_cityscapes-512x1024.py',
    'retinanet_r50': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'}
QUICK_DRY_RUN = ['train_dataloader.batch_size=2', 'model.input_size=(64,64)']
LAST_CHECKPOINT = {'epoch_100.pth': 'epoch_1.pth', 'epoch_30.pth': 'epoch_1.pth', 'epoch_12.pth': 'epoch_1.pth',
                   'iter_80000.pth': 'iter_2.pth', 'iter_4000.pth': 'iter_2.pth',
                   'iter_600.pth': 'iter_2.pth', 'iter_300.pth': 'iter_2.pth', 'iter_200.pth': 'iter_2.pth'}


def write_cityscapes(root):
    """Two images each to train and to validate on, as the dataset lies on disk."""
    random = np.random.RandomState(0)
    for split in ('train', 'val'):
        for folder, suffix, shape, values in (('leftImg8bit', 'leftImg8bit', (64, 128, 3), 256),
                                              ('gtFine', 'gtFine_labelTrainIds', (64, 128), 19)):
            (root / folder / split).mkdir(parents=True)
            for i in range(2):
                image = Image.fromarray(random.randint(0, values, shape, dtype=np.uint8))
                image.save(root / folder / split / f'{i}_{suffix}.png')


def write_downloads(config, folder):
    """Write random weights where what the page downloads would be, of the model that the address names."""
    for address in re.findall(r"https://[^']*/(?:'\s*')?([^/']*\.pth)'", config):
        model = model_of(next(name for beginning, name in DOWNLOADS.items() if address.startswith(beginning)))
        without_downloads(model)
        torch.save(dict(meta={}, state_dict=build_model(model).state_dict()), folder / address)


def run(command):
    """Run a command of the page, in this process, and return what it prints."""
    program, tool, *arguments = shlex.split(command)
    arguments = [re.sub(r'\w+\.pth$', lambda name: LAST_CHECKPOINT.get(name[0], name[0]), word) for word in arguments]
    if tool in ('train', 'tools/train.py'):
        if '--cfg-options' in arguments:
            index = arguments.index('--cfg-options')
            arguments, given = arguments[:index], arguments[index + 1:]
        else:
            given = []
        options = QUICK_DRY_RUN if '--dry-run' in arguments else QUICK[arguments[0]]
        if '--student-only' in arguments:
            options = [option.replace('model.student.', 'model.') for option in options]
        # Names of their own, because mmengine keeps one log and one visualizer per name in a process.
        name = f'page{os.urandom(4).hex()}'
        # Configs of this package have no visualizer, and get mmengine's.
        visualizer = [] if arguments[0].startswith('configs/') else [f'visualizer.name={name}']
        arguments += ['--cfg-options', f'experiment_name={name}', *visualizer, *given, *options]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        if program == 'overhaul':
            cli.main([tool, *arguments])
        else:
            patch.setattr(sys, 'argv', [str(ROOT / tool), *arguments])
            runpy.run_path(sys.argv[0], run_name='__main__')
    return printed.getvalue()


def shape_of(text):
    """The text without what differs from run to run: numbers, and the space that columns of numbers need."""
    return re.sub(r'\s+', ' ', re.sub(r'\d+(\.\d+)?(e[-+]?\d+)?', '#', text))


@pytest.mark.parametrize('section', [
    'A classifier of mmpretrain', 'A segmentor of mmseg',
    pytest.param('A detector of mmdet', marks=pytest.mark.detection)])
def test_the_walk_through_can_be_walked(section, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'hub/checkpoints').mkdir(parents=True)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    if 'mmdet' in section:
        from mmdet.datasets import CocoDataset
        write_coco(tmp_path / 'data/coco', classes=CocoDataset.METAINFO['classes'])
    elif 'mmseg' in section:
        write_cityscapes(tmp_path / 'data/cityscapes')
    else:
        write_imagenet(tmp_path / 'data/imagenet', train=8, val=4)
    text = re.search(rf'^## {section}\n(.*?)(?=^## |\Z)', PAGE, re.DOTALL | re.MULTILINE)[1]
    walk(text, tmp_path)


def walk(text, folder):
    """Do what a page tells to do, and compare what comes out with what it shows."""
    printed, done = '', set()
    for language, block in BLOCK.findall(text):
        done.add(language)
        before = text[:text.index(block)]
        if language == 'bash':
            printed = ''.join(run(command) for command in block.replace('\\\n', ' ').splitlines())
        elif language == 'python' and block.startswith('_base_'):
            Path(re.findall(r'Save as `(.+?)`', before)[-1]).write_text(block)
            write_downloads(block, folder / 'hub/checkpoints')
        elif language == 'python':
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(block, {})
            printed = output.getvalue()
        elif printed:
            actual = shape_of(printed)
            for line in block.strip().splitlines():
                assert all(part.strip() in actual for part in shape_of(line).split('...')), line
    assert done == {'bash', 'python', 'text'}


def test_the_page_of_images_without_labels_can_be_walked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    blocks = BLOCK.findall((ROOT / 'docs/unlabelled.md').read_text())
    for language, block in blocks:
        if language == 'python' and 'import' in block:
            exec(block, {})
        elif language == 'bash':
            for line in block.replace('\\\n', ' ').splitlines():
                run(shlex.join(PLACEHOLDERS.get(word, word) for word in shlex.split(line)))
    assert len(list(tmp_path.glob('data/more/*.png'))) == 1343
    log = next(tmp_path.glob('work_dirs/digits_wrn16_2_wrn10_1/*/*.log')).read_text()
    assert "unlabelled='data/more'" in log and '2/2' in log
    assert (tmp_path / 'backbone.pth').is_file()


class InThisProcess(Executor):
    """Stands in for processes: does what is submitted at once. mmengine's default scope does not go with threads."""

    def __init__(self, *_):
        pass

    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future


# What stands for a training of the reader's.
PLACEHOLDERS = {
    'work_dirs/DISTILLED': 'work_dirs/digits_wrn16_2_wrn10_1', 'work_dirs/ALONE': 'work_dirs/digits_wrn16_2_wrn10_1',
    'CONFIG': DIGITS, 'CHECKPOINT': 'work_dirs/digits_wrn16_2_wrn10_1/iter_200.pth'}


@pytest.mark.parametrize(('of_mmdet', 'files'), [(False, 12), pytest.param(True, 3, marks=pytest.mark.detection)])
def test_every_command_of_the_evidence_makes_what_it_should(of_mmdet, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    (tmp_path / 'docs/results').mkdir(parents=True)
    # Runs of two iterations are over sooner than a process begins.
    monkeypatch.setattr('overhaul.commands.compare.ProcessPoolExecutor', InThisProcess)
    variables, made = {}, []
    blocks = BLOCK.findall((ROOT / 'docs/evidence.md').read_text())
    for language, block in blocks:
        if language == 'python' and 'import' in block:
            exec(block, {})
    lines = ''.join(block for language, block in blocks if language == 'bash').replace('\\\n', ' ').splitlines()
    for line in lines:
        if variable := re.fullmatch(r'(\w+)=(\S+)', line):
            variables[f'${variable[1]}'] = variable[2]
            continue
        if ('digitdet' in line) != of_mmdet:
            continue
        for name, value in variables.items():
            line = line.replace(name, value)
        words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line, comments=True)]
        if words[1] == 'tools/compare.py':
            given = words[words.index('--cfg-options') + 1:] if '--cfg-options' in words else []  # it is the last one
            words += ['--seeds', '1', '--jobs', '1', '--cfg-options', *given, *QUICK[words[2]]]
            if '--vary' in words:
                del words[words.index('--vary') + 3:words.index('--csv') - 1]  # two values are enough
            for first, after in (('plain_relu', 'alpha_1e-1'), ('inverted', 'weak_teacher')):
                if first in words:  # and so are three variants; tests/test_evidence.py builds the others
                    del words[words.index(first) - 1:words.index(after) - 1]
        elif words[1] == 'tools/test.py':
            words += ['--cfg-options', 'test_dataloader.dataset.length=4']
        run(shlex.join(words))
        made += [word for word in words if word.startswith('docs/')]
    assert len(set(made)) == files
    assert all((tmp_path / name).stat().st_size for name in made)
