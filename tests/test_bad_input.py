"""Wrong input of every kind: the program ends with a status and one paragraph, and writes nothing over.

One row of the tables is one wrong input: the arguments of a tool, ``KEY=VALUE`` of ``--cfg-options``, or what is done
to a config file or to data; and what the message says.
"""

import gc
import hashlib
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_tools import CONFIG, QUICK, ROOT, TEACHER, run_in_process
from tiny_data import write_cifar100, write_imagenet, write_voc

from overhaul.files.checkpoints import read_checkpoint

EARLIER = 'work_dirs/earlier/iter_12.pth'

IMAGENET = f"""
_base_ = ['{CONFIG}']
pipeline = [dict(type='LoadImageFromFile'), dict(type='mmpretrain.Resize', scale=(16, 16)),
            dict(type='mmpretrain.PackInputs')]
data = dict(type='overhaul.ImageNet', data_root='imagenet', split='train', pipeline=pipeline)
train_dataloader = dict(_delete_=True, batch_size=4, num_workers=0, dataset=data,
                        sampler=dict(type='DefaultSampler', shuffle=False))
model = dict(student=dict(head=dict(num_classes=1000)))
val_dataloader = val_evaluator = val_cfg = test_dataloader = test_evaluator = test_cfg = None
"""
CIFAR100 = IMAGENET.replace('ImageNet', 'CIFAR100').replace(
    "data_root='imagenet'", "data_root='cifar100', download=False").replace("dict(type='LoadImageFromFile'), ", '')
SEGMENTATION = f"""
_base_ = ['{ROOT}/configs/_base_/datasets/voc_aug.py', '{ROOT}/configs/_base_/runtime.py']
default_scope = 'mmseg'
pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='Resize', scale=(64, 64)),
            dict(type='PackSegInputs')]
data = dict(type='overhaul.PascalVOC', data_root='voc', ann_file='ImageSets/Segmentation/train.txt',
            data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'), pipeline=pipeline)
train_dataloader = dict(_delete_=True, batch_size=2, num_workers=0, dataset=data,
                        sampler=dict(type='DefaultSampler', shuffle=False))
val_dataloader = val_evaluator = test_dataloader = test_evaluator = None
data_preprocessor = dict(size=(64, 64))
model = dict(
    type='EncoderDecoder', test_cfg=dict(mode='whole'),
    backbone=dict(type='ResNetV1c', depth=18, base_channels=4, stem_channels=4),
    decode_head=dict(type='ASPPHead', in_channels=32, in_index=3, channels=8, dilations=(1, 6), num_classes=21,
                     norm_cfg=dict(type='BN')))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
"""

TRAIN = ['train.py', CONFIG]
OTHER = ['train.py', 'config.py']
ALONE = ['train.py', 'config.py', '--student-only']


@pytest.fixture(scope='module', autouse=True)
def quick_collection():
    """Collect only what the tests themselves leave: mmengine collects for each dataset."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run a tool on wrong input in a folder with a checkpoint of an earlier training; return status and message."""
    monkeypatch.chdir(tmp_path)
    Path(EARLIER).parent.mkdir(parents=True)
    Path(EARLIER).write_bytes(b'earlier')

    def refused(arguments, options=(), quick=True):
        before = contents(tmp_path)
        options = [*(QUICK if quick and CONFIG in arguments else []), *options]
        with pytest.raises(SystemExit) as exit_:
            run_in_process(tmp_path, *arguments, options=options)
        after = contents(tmp_path)
        assert {path: after.get(path) for path in before} == before  # nothing written over
        assert not [path for path in after.keys() - before.keys() if path.suffix == '.pth']
        if isinstance(exit_.value.code, str):  # which Python prints, and ends with status 1
            return 1, exit_.value.code
        return exit_.value.code, capsys.readouterr().err.strip().splitlines()[-1].partition(': ')[2]

    return refused


def contents(folder):
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in folder.rglob('*') if path.is_file()}


def check(result, expected, status=1):
    code, message = result
    assert code == status
    assert message.startswith('error: ') and '\n' not in message
    assert re.search(expected, message), message


# ---------------------------------------------------------------------------------------------------------------------
# Command lines

COMMAND_LINES = {
    'no config': (['train.py'], r'arguments are required: config', 2),
    'unknown argument': ([*TRAIN, '--student_only'], r'unrecognized arguments: --student_only', 2),
    'unknown launcher': ([*TRAIN, '--launcher', 'mpi'], r"invalid choice: 'mpi'", 2),
    'test without a checkpoint': (['test.py', CONFIG], r'name the CHECKPOINT to test, or give --teacher', 2),
    'config that is not there': (['train.py', CONFIG.replace('wrn10', 'wrn11')], r'no config file .+Nearest there', 1),
    'config that is a folder': (['train.py', '.'], r'"\." is a folder\. Name a config', 1),
    'config that is a checkpoint': (['train.py', TEACHER], r'is a checkpoint, and the config comes first', 1),
    'launcher without torchrun': ([*TRAIN, '--launcher', 'pytorch'], r'for processes that torchrun has started', 1),
    'work dir below a file': ([*TRAIN, '--work-dir', f'{EARLIER}/run'], r'Not a directory at .+--work-dir', 1),
    'work dir that is a file': ([*TRAIN, '--work-dir', EARLIER], r'File exists at .+--work-dir', 1),
    'dry run that resumes': ([*TRAIN, '--dry-run', '--resume'], r'--resume: not allowed with argument --dry-run', 2),
    'resume from nothing': ([*TRAIN, '--resume', 'nowhere.pth'], r'"nowhere\.pth" does not exist', 1),
    'resume from a folder': ([*TRAIN, '--resume', 'work_dirs'], r'"work_dirs" is a folder', 1),
    'resume from weights': ([*TRAIN, '--resume', TEACHER], r'nothing to resume', 1),
    'resume from a work dir of damaged files': (
        [*TRAIN, '--resume', '--work-dir', 'work_dirs/earlier'], r'Not even the one checkpoint', 1),
    'test of a file that is not there': (['test.py', CONFIG, 'nowhere.pth'], r'"nowhere\.pth" does not exist', 1),
    'test of another model': (['test.py', CONFIG, TEACHER], r'does not fit the ImageClassifier', 1),
    'tta that the config has not': (['test.py', CONFIG, '--teacher', '--tta'], r'--tta needs tta_model', 1),
    'voc submission of digits': (['test.py', CONFIG, '--teacher', '--voc-submission', 'o'], r'tests on overhaul', 1),
    'student of a plain model': (
        ['train.py', ROOT / 'configs/digits_wrn16_2.py', '--student-only'], r'which has no student', 1),
}


@pytest.mark.parametrize('name', COMMAND_LINES)
def test_command_line(refused, name):
    arguments, expected, status = COMMAND_LINES[name]
    check(refused(arguments), expected, status)


# ---------------------------------------------------------------------------------------------------------------------
# --cfg-options

OPTIONS = {
    'no value': ('model.taps', r'takes KEY=VALUE, .+not .model\.taps', 2),
    'no key': ('=3', r'takes KEY=VALUE', 2),
    'unknown part': ('modle.input_size=3', r'has no "modle"\. Nearest: model'),
    'key below a number': ('model.student.backbone.depth.more=1', r'does not fit the config'),
    'key below a file that is none': ('load_from.file=nowhere.pth', r'"nowhere\.pth" does not exist'),
    'another key of a file': (
        'model.teacher_checkpoint.key=ema', r'has no weights under the key "ema". It has "state_dict"'),
    'index beyond the list': ('model.taps.7.teacher=backbone.bn1', r'Index 7'),
    # Components
    'unknown key of the distiller': ('model.distil_loss.loss_weight=1', r'key "distil_loss"\. Nearest: distill_loss'),
    'unknown key of a connector': ('model.connector.kernel=3', r'unknown key "kernel"'),
    'unknown key of a backbone': ('model.student.backbone.widen_facter=1', r'"widen_facter"\. Nearest: widen_factor'),
    'unknown key of a hook': ('default_hooks.health.on_nonfinit=skip', r'"on_nonfinit"\. Nearest: on_nonfinite'),
    'unknown key of a dataset': ('train_dataloader.dataset.label_per_class=1', r'Nearest: labels_per_class'),
    'unknown key of an optimizer': ('optim_wrapper.optimizer.momentun=1', r'"momentun"\. Nearest: momentum'),
    'unknown type of model': ('model.type=overhaul.OverhaulDistiler', r'Nearest: overhaul\.OverhaulDistiller'),
    'unknown type of optimizer': ('optim_wrapper.optimizer.type=SDG', r'optimizer "SDG".+Nearest: mmengine\.SGD'),
    'unknown type of metric': ('val_evaluator.type=Acuracy', r'Nearest: mmpretrain\.Accuracy'),
    'unknown type of transform': ('train_dataloader.dataset.pipeline.0.type=Rezise', r'Nearest: .*Resize'),
    'unknown type of sampler': ('train_dataloader.sampler.type=DefaltSampler', r'Nearest: mmengine\.DefaultSampler'),
    # Values
    'depth that no network has': ('model.student.backbone.depth=11', r'depth=11.+nearest that exist are 10 and 16'),
    'head for other channels': ('model.student.head.in_channels=65', r'failed on one image .+ correct the in_channels'),
    'alpha that is no number': ('model.distill_loss.loss_weight=high', r'number of 0 or more, or "auto", not .high'),
    'alpha below zero': ('model.distill_loss.loss_weight=-1', r'number of 0 or more, or "auto", not -1'),
    'teacher batch norm': ('model.teacher_batch_norm=eval', r'is "batch" or "running", not .eval'),
    'image size that is one number': ('model.input_size=16', r'input_size is the height and width .+not 16'),
    'image size of zero': ('model.input_size=(0,0)', r'input_size is the height and width .+not \(0, 0\)'),
    'best by a metric that nobody knows': (
        'default_hooks.checkpoint.save_best=stillness', r"the name does not tell .+save_best='stillness', rule='less'"),
    'health setting': ('default_hooks.health.on_nonfinite=warn', r"give 'stop' or 'skip'"),
    'ratio for alpha to give': ('default_hooks.calibrate.loss_ratio=0', r'loss_ratio=0\): give a finite number'),
    'seed that is a word': ('randomness.seed=abc', r"randomness\.seed is 'abc'\. Give a whole number from 0"),
    'validation after no step': ('train_cfg.val_interval=0', r'val_interval is 0\. Give a whole number of 1 or more'),
    'seed of the data below zero': ('train_dataloader.dataset.seed=-1', r'Digits\(seed=-1\): give a whole number'),
    'batch of no image': ('train_dataloader.batch_size=0', r'data loader cannot be built .+positive integer'),
    'workers below zero': ('train_dataloader.num_workers=-1', r'data loader cannot be built .+non-negative'),
    'learning rate below zero': ('optim_wrapper.optimizer.lr=-1', r'SGD cannot be built .+Invalid learning rate: -1'),
    'iterations that are a word': ('train_cfg.max_iters=ten', r"IterBasedTrainLoop cannot be built .+'ten'"),
    'no optimizer': ('optim_wrapper=None', r'runner of mmengine cannot be built .+optim_wrapper should be'),
    # Taps
    'no tap': ('model.taps=[]', r'taps is \[\]: name at least one pair'),
    'tap that does not exist': ('model.taps.0.student=backbone.blok2.0.bn1', r'Nearest: .*backbone\.block2\.0\.bn1'),
    'tap that is a number': ('model.taps.0.teacher=3', r'teacher=3, where the path of a module is expected'),
    'tap of vectors': ('model.taps.0.teacher=head.fc', r'tap "head\.fc" \(Linear\) gives a tensor of shape'),
    'tap of what a module does not have': ('model.taps.0.teacher=backbone.bn1:output', r'ends in ":output"'),
    'taps of other sizes': ('model.taps.0.student=backbone.bn1', r'differ in size at a tap'),
    'weight of a tap that is a word': ('model.taps.0.loss_weight=big', r"loss_weight='big', where a number"),
    'key of a tap': ('model.taps.0.los_weight=1', r"unknown keys \['los_weight'\]"),
    'margin from nothing': ('model.taps.0.margin_norm=backbone.bn9', r'is no batch norm of the teacher\. Nearest'),
    # Files of weights
    'teacher file that is not there': ('model.teacher_checkpoint=nowhere.pth', r'"nowhere\.pth" does not exist'),
    'teacher file in an unknown zoo': ('model.teacher_checkpoint=zoo://a.pth', r'"zoo://", which is not known'),
    'teacher file of another model': ('model.teacher.backbone.depth=10', r'does not fit the ImageClassifier'),
    'wider teacher than that of its file': ('model.teacher.backbone.widen_factor=4', r'does not fit the Image'),
    'teacher config that is not there': ('model.teacher=nowhere.py', r'There is no config file "nowhere\.py"'),
    'weights to start from that are not there': ('load_from=nowhere.pth', r'"nowhere\.pth" does not exist'),
    # Data
    'more labels than there are': ('train_dataloader.dataset.labels_per_class=131', r'Use at most 130'),
    'split that does not exist': ('train_dataloader.dataset.split=val', r"no split 'val'"),
    'dataset of no image': ('train_dataloader.dataset.indices=0', r'Digits cannot be built'),
    'fewer classes than labels': ('model.student.head.num_classes=5', r'num_classes=5, and the training data have 10'),
}


@pytest.mark.parametrize('name', OPTIONS)
def test_option(refused, name):
    option, expected, *status = OPTIONS[name]
    check(refused(TRAIN, [option]), expected, *status)


# ---------------------------------------------------------------------------------------------------------------------
# Config files

CONFIGS = {
    'bracket that is not closed': ('model = dict(\n', r"'\(' was never closed in line 1"),
    'name that is not defined': ('model = dict(type=Distiller)\n', r"NameError in line 1 of .*'Distiller'"),
    'base that is not there': ("_base_ = 'nowhere.py'\n", r'No such file or directory: .*nowhere\.py'),
    'nothing in it': ('', r'has no model'),
    'model without a type': (f"_base_ = '{CONFIG}'\nmodel = dict(_delete_=True, depth=1)\n", r'part without a type'),
    'hook that is a word': (f"_base_ = '{CONFIG}'\ncustom_hooks = ['EMAHook']\n", r'hook should be an instance of'),
    'import of nothing': ("custom_imports = dict(imports='nowhere')\n", r'cannot be read: .+nowhere'),
}


@pytest.mark.parametrize('name', CONFIGS)
def test_config(refused, name):
    text, expected = CONFIGS[name]
    Path('config.py').write_text(text)
    check(refused(OTHER), expected)


# ---------------------------------------------------------------------------------------------------------------------
# Data trees


def images(root):
    return sorted(Path(root, 'train').glob('*/*.JPEG'))


def labels(text):
    def change(root):
        Path(root, 'meta/val.txt').write_text(text)
    return change


VAL = ['train_dataloader.dataset.split=val']
IMAGENETS = {
    'no folder': (shutil.rmtree, r'"imagenet/train" does not exist. .+to be downloaded'),
    'missing class': (lambda root: shutil.rmtree(root / 'train/n00000999'), r'999 class folders where 1000 are'),
    'no image': (lambda root: [path.unlink() for path in images(root)], r'has no image in it'),
    'empty image': (lambda root: images(root)[0].write_bytes(b''), r'n00000000_1\.JPEG" cannot be read'),
    'unreadable image': (lambda root: images(root)[0].write_bytes(b'JPEG'), r'n00000000_1\.JPEG" cannot be read'),
    'unreadable image in a worker': (
        lambda root: images(root)[0].write_bytes(b'JPEG'), r'n00000000_1\.JPEG" cannot be read',
        ['train_dataloader.num_workers=1']),
    'truncated image': (lambda root: os.truncate(images(root)[0], 100), r'n00000000_1\.JPEG" cannot be read'),
    'label beyond the classes': (labels('ILSVRC2012_val_00000001.JPEG 1000\n'), r'not in 0 to 999: .+ has 1000', VAL),
    'label below zero': (labels('ILSVRC2012_val_00000001.JPEG -1\n'), r'not in 0 to 999: .+ has -1', VAL),
    'label that is a word': (labels('ILSVRC2012_val_00000001.JPEG cat\n'), r'no list of images and labels', VAL),
    'no label': (labels('ILSVRC2012_val_00000001.JPEG\n'), r'no list of images and labels', VAL),
    'empty list': (labels(''), r'has no image in it', VAL),
    'listed image that is not there': (labels('nothing.JPEG 1\n'), r'nothing\.JPEG".+does not exist', VAL),
    'split that does not exist': (
        lambda root: None, r'The split must be one of', ['train_dataloader.dataset.split=trian']),
}


@pytest.mark.parametrize('name', IMAGENETS)
def test_imagenet(refused, name):
    change, expected, *options = IMAGENETS[name]
    Path('config.py').write_text(IMAGENET)
    write_imagenet('imagenet', train=2, val=1, size=(20, 20))
    change(Path('imagenet'))
    check(refused(ALONE, *options), expected)


CIFAR100S = {
    'no folder': (lambda: None, r'CIFAR-100 is not whole'),
    'files of other content': (lambda: write_cifar100('cifar100'), r'CIFAR-100 is not whole'),
}


@pytest.mark.parametrize('name', CIFAR100S)
def test_cifar100(refused, name):
    prepare, expected = CIFAR100S[name]
    Path('config.py').write_text(CIFAR100)
    prepare()
    check(refused(ALONE), expected)


def mask(value=None, size=(80, 60)):
    def change(root):
        path = root / 'SegmentationClass/2005_000001.png'
        path.write_bytes(b'PNG') if value is None else Image.fromarray(np.full(size[::-1], value, np.uint8)).save(path)
    return change


def unlink(name):
    return lambda root: Path(root, name).unlink()


VOCS = {
    'no folder': (shutil.rmtree, r'"voc/JPEGImages" does not exist. Pascal VOC 2012 is to be downloaded'),
    'no list': (unlink('ImageSets/Segmentation/train.txt'), r'train\.txt" does not exist'),
    'empty list': (lambda root: (root / 'ImageSets/Segmentation/train.txt').write_text(''), r'has no image in it'),
    'missing first mask': (unlink('SegmentationClass/2005_000000.png'), r'000000\.png", the first file named by'),
    'missing image': (unlink('JPEGImages/2005_000001.jpg'), r'2005_000001\.jpg" or .+ cannot be read'),
    'missing mask': (unlink('SegmentationClass/2005_000001.png'), r'2005_000001\.png" cannot be read'),
    'unreadable mask': (mask(), r'2005_000001\.png" cannot be read'),
    'mask with values that are no class': (mask(30), r'A label is 30, and the model has no such class'),
    'mask of colours': (
        lambda root: Image.new('RGB', (80, 60), (128, 0, 0)).save(root / 'SegmentationClass/2005_000001.png'),
        r'masks of a batch differ in size: .+ a mask is an image of one channel'),
    'fewer classes than masks have': (
        lambda root: None, r'num_classes=20, and the training data have 21', ['model.decode_head.num_classes=20']),
    'batch of one image before a pooled batch norm': (
        lambda root: None, r'single value per channel .+\[1, 8, 1, 1\].+batch_size of 2',
        ['train_dataloader.batch_size=1']),
}


@pytest.mark.parametrize('name', VOCS)
def test_voc(refused, name):
    change, expected, *options = VOCS[name]
    Path('config.py').write_text(SEGMENTATION)
    write_voc('voc')
    change(Path('voc'))
    check(refused(OTHER, *options), expected)


def test_weights_that_are_not_finite(refused):
    state = read_checkpoint(TEACHER)['state_dict']
    state['backbone.block2.0.conv1.weight'][0] = float('nan')
    torch.save({'state_dict': state}, 'teacher.pth')
    check(refused(TRAIN, ['model.teacher_checkpoint=teacher.pth']),
          r'NaN or infinite values in 1 tensor .+block2\.0\.conv1\.weight')


def test_the_right_input_is_not_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('config.py').write_text(SEGMENTATION)
    write_voc('voc')
    run_in_process(tmp_path, *OTHER)
    assert Path('work_dirs/config/epoch_1.pth').is_file()
    Path('config.py').write_text(IMAGENET)
    write_imagenet('imagenet', train=4, val=1, size=(20, 20))
    run_in_process(tmp_path, *ALONE, options=['train_cfg.max_iters=1', 'default_hooks.checkpoint.interval=1'])
    assert Path('work_dirs/config_student_only/iter_1.pth').is_file()
