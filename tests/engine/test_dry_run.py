"""A dry run as it is prepared; that it runs, for every config that ships, is in test_configs.py."""

from pathlib import Path

import pytest
from small_models import CLASSES, wide_resnet
from test_tools import CONFIG, run_in_process

from overhaul.engine import dry_run
from overhaul.files.settings import read_config

CONFIGS = Path(CONFIG).parent


@pytest.mark.parametrize(('config', 'size'), [
    (CONFIGS / 'voc_r101_r18.py', (513, 513)),  # model.input_size
    (CONFIGS / 'digitscenes_r34.py', (64, 64)),  # what the data preprocessor fills images up to
    ('mmseg::unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64.py', (64, 64)),
    (CONFIGS / 'digits_wrn16_2.py', (16, 16)),  # what the pipeline crops to
    ('mmpretrain::resnet/resnet18_8xb16_cifar10.py', (32, 32)),
    ('mmpretrain::resnet/resnet50_8xb32_in1k.py', (224, 224)),
])
def test_images_have_the_size_that_the_config_trains_on(config, size):
    cfg = read_config(config)
    dry_run.prepare(cfg)
    assert cfg.train_dataloader.dataset.size == cfg.val_dataloader.dataset.size == size


@pytest.mark.parametrize(('scope', 'transform', 'size'), [
    ('mmseg', dict(type='Resize', scale=(96, 32)), (32, 96)),
    ('mmseg', dict(type='RandomCrop', crop_size=(32, 96)), (32, 96)),
    ('mmdet', dict(type='RandomCrop', crop_size=(96, 32)), (32, 96)),
    ('mmpretrain', dict(type='mmseg.RandomCrop', crop_size=(32, 96)), (32, 96)),
    ('mmpretrain', dict(type='RandomResizedCrop', scale=(32, 96)), (32, 96)),
    ('mmpretrain', dict(type='CenterCrop', crop_size=(96, 32)), (32, 96))])
def test_the_order_of_a_size_is_that_of_its_transform(scope, transform, size):
    assert list(dry_run._sizes([transform], scope)) == [size]


def test_what_knows_the_annotations_takes_no_memory_for_weights():
    data = dry_run.RandomImages(2, (16, 16), wide_resnet())
    assert all(value.is_meta for value in data.task.model.state_dict().values())
    assert data[1]['inputs'].shape == (3, 16, 16) and 0 <= data[1]['data_samples'].gt_label < CLASSES


def test_images_of_data_that_tell_no_size_are_of_224():
    cfg = read_config(CONFIGS / 'digits_wrn16_2.py', {'train_dataloader.dataset.pipeline': []})
    dry_run.prepare(cfg)
    assert cfg.train_dataloader.dataset.size == (224, 224)


def test_it_goes_on_from_no_checkpoint():
    cfg = read_config(CONFIG, {'load_from': 'nowhere.pth', 'resume': True})
    dry_run.prepare(cfg)
    assert (cfg.load_from, cfg.resume) == (None, False)


@pytest.mark.parametrize('given', [{}, dict(default_hooks=None)])
def test_a_config_need_have_no_hooks(given):
    cfg = read_config(CONFIG)
    cfg.pop('default_hooks')
    cfg.update(given)
    dry_run.prepare(cfg)
    assert cfg.default_hooks.keys() == {'checkpoint', 'logger'}


def test_without_validation_data_it_trains_only(tmp_path, capsys):
    parts = 'val_dataloader', 'val_evaluator', 'val_cfg'
    run_in_process(tmp_path, 'train.py', CONFIG, '--dry-run', options=[f'{part}=None' for part in parts])
    assert 'Dry run: ok. 2 training steps, ' in capsys.readouterr().out


STRANGE = '''
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn


@MODELS.register_module(force=True)
class Brightness(BaseModel):
    """Tells the mean of each image, and learns it from a label that nobody else makes."""

    def __init__(self, width=4):
        super().__init__(dict(type='ImgDataPreprocessor', mean=[0] * 3, std=[255] * 3))
        self.conv, self.bn, self.last = nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.Conv2d(width, 1, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        means = self.last(self.bn(self.conv(inputs)).relu()).mean((1, 2, 3))
        if mode != 'loss':
            return means
        return dict(loss_mean=sum((mean - sample.brightness)**2 for mean, sample in zip(means, data_samples)))
'''
STRANGE_CONFIG = """
custom_imports = dict(imports=['brightness'], allow_failed_imports=False)
model = dict(
    type='overhaul.OverhaulDistiller', teacher=dict(type='Brightness', width=8), student=dict(type='Brightness'),
    taps=[dict(teacher='bn', student='bn')], alpha=1e-3, input_size=(16, 16))
data = dict(batch_size=2, dataset=dict(type='Photographs'), sampler=dict(type='DefaultSampler', shuffle=False))
train_dataloader, val_dataloader = data, data
val_evaluator = dict(type='overhaul.VOCSubmission', folder='nowhere')
train_cfg, val_cfg = dict(by_epoch=True, max_epochs=3), dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
default_hooks = dict(summary=dict(type='overhaul.SummaryHook', validate_teacher=False))
"""


@pytest.mark.parametrize('options', [[], ['--student-only']])
def test_a_model_of_no_known_task_is_tried_without_its_loss(options, tmp_path, capsys, monkeypatch):
    (tmp_path / 'brightness.py').write_text(STRANGE)
    (tmp_path / 'config.py').write_text(STRANGE_CONFIG)
    monkeypatch.syspath_prepend(tmp_path)
    run_in_process(tmp_path, 'train.py', tmp_path / 'config.py', '--dry-run', *options)
    printed = capsys.readouterr().out
    assert "ok. 2 training steps without the task's loss and without validation, which need labels" in printed
    assert ('distill.loss_bn: ' in printed) == (options == [])
    assert options or 'Left out are the labels of a dry run' in printed
