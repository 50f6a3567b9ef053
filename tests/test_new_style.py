"""Configs of mmengine's new style, with ``read_base()`` and classes for types, through all the tools."""

import copy

import pytest
from mmengine.config import Config
from mmengine.config import utils as config_utils
from mmpretrain import get_model
from test_tools import run_in_process

from overhaul.datasets import voc_submission
from overhaul.files.export import export_student, student_config
from overhaul.files.parts import build_plain, whole_model
from overhaul.files.settings import enter_scope, read_config
from overhaul.registry import build

BASE = """
from mmengine.hooks import CheckpointHook, LoggerHook

from overhaul import CalibrateHook, HealthHook, SummaryHook

default_hooks = dict(
    logger=dict(type=LoggerHook, interval=1), checkpoint=dict(type=CheckpointHook, interval=1),
    calibrate=dict(type=CalibrateHook), summary=dict(type=SummaryHook), health=dict(type=HealthHook))
"""
CONFIG = """
from mmengine.config import read_base
from mmengine.dataset import DefaultSampler
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, TestLoop, ValLoop
from mmpretrain.datasets import PackInputs, Resize
from mmpretrain.evaluation import Accuracy
from mmpretrain.models import ClsDataPreprocessor, CrossEntropyLoss, GlobalAveragePooling, ImageClassifier
from mmpretrain.models import LinearClsHead
from torch.optim import SGD

from overhaul import ConvBNConnector, Digits, MarginReLU, OverhaulDistiller, PartialL2Loss, WideResNet

with read_base():
    from .base import *

default_scope = 'mmpretrain'
data_preprocessor = dict(type=ClsDataPreprocessor, num_classes=10, mean=[78.0] * 3, std=[96.0] * 3)
head = dict(type=LinearClsHead, num_classes=10, topk=(1,), loss=dict(type=CrossEntropyLoss))
model = dict(
    type=OverhaulDistiller,
    teacher=dict(type=ImageClassifier, backbone=dict(type=WideResNet, depth=16, widen_factor=2),
                 neck=dict(type=GlobalAveragePooling), head=dict(**head, in_channels=128)),
    teacher_checkpoint='overhaul://digits_wrn16_2.pth',
    student=dict(type=ImageClassifier, backbone=dict(type=WideResNet, depth=10, widen_factor=1),
                 neck=dict(type=GlobalAveragePooling), head=dict(**head, in_channels=64)),
    taps='auto', connector=dict(type=ConvBNConnector), margin=dict(type=MarginReLU),
    distill_loss=dict(type=PartialL2Loss, loss_weight='auto'), input_size=(16, 16))
pipeline = [dict(type=Resize, scale=(16, 16)), dict(type=PackInputs)]
train_dataloader = dict(
    batch_size=25, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(type=Digits, split='train', labels_per_class=5, pipeline=pipeline))
val_dataloader = dict(
    batch_size=250, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(type=Digits, split='test', test_mode=True, pipeline=pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type=Accuracy, topk=(1,))
test_evaluator = val_evaluator
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=1)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.01))
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with the config above, trained for an epoch of two steps."""
    folder = tmp_path_factory.mktemp('new_style')
    (folder / 'base.py').write_text(BASE)
    (folder / 'config.py').write_text(CONFIG)
    run_in_process(folder, 'train.py', 'config.py', '--work-dir', 'work')
    return folder


def test_classes_have_their_names_once_a_config_is_read(folder):
    cfg = read_config(folder / 'config.py')
    assert cfg.model.type == 'overhaul.OverhaulDistiller' and cfg.model.student.type == 'mmpretrain.ImageClassifier'
    assert cfg.default_hooks.health.type == 'overhaul.HealthHook'
    assert cfg.optim_wrapper == dict(type='mmengine.OptimWrapper', optimizer=dict(type='torch.optim.sgd.SGD', lr=0.01))
    assert [step.type for step in cfg.pipeline] == ['mmengine.Resize', 'mmpretrain.PackInputs']
    assert read_config(folder / 'work/config.py').model == cfg.model  # what a training writes down


def test_without_a_default_scope_the_package_of_each_model_is_the_scope(tmp_path):
    (tmp_path / 'base.py').write_text(BASE)
    (tmp_path / 'config.py').write_text(CONFIG.replace("default_scope = 'mmpretrain'", 'default_scope = None').replace(
        ', loss=dict(type=CrossEntropyLoss)', ''))  # that one the head names by itself, without its package
    cfg = read_config(tmp_path / 'config.py')
    assert cfg.default_scope is None
    assert type(build_plain(cfg).head.loss_module).__module__.startswith('mmpretrain.')
    assert student_config(cfg).default_scope == 'mmpretrain'
    enter_scope(cfg)
    assert type(build(whole_model(cfg), 'model').student.head.loss_module).__module__.startswith('mmpretrain.')


def test_a_config_with_a_base_may_name_classes_too(tmp_path):
    (tmp_path / 'base.py').write_text('model = dict(type="A")\n')
    (tmp_path / 'config.py').write_text(
        '_base_ = "base.py"\nfrom mmengine.model import PretrainedInit\nfrom torch.nn import GELU\n'
        'model = dict(init_cfg=dict(type=PretrainedInit, checkpoint="x"), act=GELU)\n')
    cfg = read_config(tmp_path / 'config.py')
    assert cfg.model.init_cfg == dict(type='mmengine.Pretrained', checkpoint='x') and cfg.model.act.__name__ == 'GELU'
    assert cfg.keys() == {'model'}
    cfg.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').model.act == 'torch.nn.modules.activation.GELU'


@pytest.mark.parametrize('base', ['with read_base():\n    from .base import *\n', '_base_ = "base.py"\n'])
@pytest.mark.parametrize('folder_of_python', ['/usr/lib/python3', '/opt/python'])
def test_functions_of_python_can_be_called_wherever_it_is(base, folder_of_python, tmp_path, monkeypatch):
    monkeypatch.setattr(config_utils, 'SYSTEM_PYTHON_PREFIX', folder_of_python)
    (tmp_path / 'base.py').write_text('layers = dict(depth=3)\n')
    (tmp_path / 'config.py').write_text(
        'import math\nfrom copy import deepcopy\nfrom mmengine.config import read_base\n' * ('with' in base)
        + 'from copy import deepcopy\nimport math\n' * ('with' not in base) + base
        + 'model = dict(type="A", taps=deepcopy([dict(width=math.ceil(2.5))]), join=math.sqrt(4))\n')
    cfg = read_config(tmp_path / 'config.py')
    assert cfg.model == dict(type='A', taps=[dict(width=3)], join=2.0) and cfg.layers.depth == 3
    assert copy.deepcopy(cfg).keys() == {'layers', 'model'}


@pytest.mark.parametrize(('line', 'told'), [
    ('model = dict(backbone=ResNet(depth=18))', '"ResNet" is not there yet in line 4 of ".+config.py": a config with'),
    ('model = dict(mean=np.array([1]))', '"array" is not there yet in line 4'),
    ('model = dict(angle=np.pi * 2)', 'What is imported is not there yet in line 4'),
    ('model = dict(angle=ResNet[0])', 'What is imported is not there yet in line 4')])
def test_what_is_imported_later_is_told_where_it_is_used_too_early(line, told, tmp_path):
    (tmp_path / 'config.py').write_text(
        f'from mmengine.config import read_base\nfrom mmpretrain.models import ResNet\nimport numpy as np\n{line}\n')
    with pytest.raises(ValueError, match=told):
        read_config(tmp_path / 'config.py')


def test_paths_of_classes_are_as_good_as_names(folder, capsys):
    run_in_process(folder, 'train.py', 'config.py', '--dry-run', options=[
        'optim_wrapper.optimizer.type=torch.optim.AdamW', 'default_hooks.timer.type=mmengine.hooks.IterTimerHook',
        'default_hooks.calibrate.type=overhaul.engine.hooks.CalibrateHook'])
    assert 'Dry run: ok. 2 training steps and 1 validation step' in capsys.readouterr().out


def test_it_trains_in_bfloat16_goes_on_and_trains_the_student_alone(folder, capsys):
    run_in_process(folder, 'train.py', 'config.py', '--amp', '--resume', '--work-dir', 'work', options=[
        'train_cfg.max_epochs=2'])
    assert 'resumed epoch: 1' in capsys.readouterr().out and (folder / 'work/epoch_2.pth').exists()
    run_in_process(folder, 'train.py', 'config.py', '--student-only', '--work-dir', 'alone')
    assert (folder / 'alone/epoch_1.pth').exists()


def test_its_student_is_tested_and_exported(folder, capsys):
    run_in_process(folder, 'test.py', 'config.py', 'work/epoch_1.pth')
    assert '% error' in capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        export_student('config.py', 'work/epoch_1.pth', 'student.pth')
        model = get_model('student.py', pretrained='student.pth')
    assert type(model).__name__ == 'ImageClassifier'
    exported = Config.fromfile(folder / 'student.py')
    assert exported.model.type == 'ImageClassifier' and exported.model.head.loss.type == 'CrossEntropyLoss'
    assert exported.model.data_preprocessor.type == 'ClsDataPreprocessor'
    assert [step.type for step in exported.test_pipeline] == ['Resize', 'PackInputs']


def test_masks_for_the_server_are_made_of_classes_too(tmp_path):
    (tmp_path / 'config.py').write_text("""
from mmcv.transforms import LoadImageFromFile
from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs

from overhaul import EvaluateAtInputSize, PascalVOC

model = dict()
pipeline = [
    dict(type=LoadImageFromFile), dict(type=LoadAnnotations), dict(type=EvaluateAtInputSize), dict(type=PackSegInputs)]
test_dataloader = dict(dataset=dict(
    type=PascalVOC, data_prefix=dict(img_path='a', seg_map_path='b'), pipeline=pipeline))
""")
    cfg = read_config(tmp_path / 'config.py')
    voc_submission.prepare(cfg, 'out')
    steps = [step.type for step in cfg.test_dataloader.dataset.pipeline]
    assert steps == ['mmengine.LoadImageFromFile', 'mmseg.PackSegInputs']
