"""Models of a few thousand weights and the runs that tests make with them. Teachers get weights drawn from a seed."""

import logging
import warnings
from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from mmengine.structures import PixelData
from torch import nn
from torch.utils.data import DataLoader

from overhaul.registry import MODELS

PATHS = ('backbone.block2.0.bn1', 'backbone.block3.0.bn1', 'backbone.bn1')
TAPS = [dict(teacher=path, student=path, loss_weight=weight) for path, weight in zip(PATHS, (1 / 4, 1 / 2, 1))]
CLASSES = 5
OF_MMDET = ('coco', 'digitdet', 'voc_ssd300')  # how configs begin whose models are of mmdet


def of_each(configs):
    """The parameters of a test of ``configs``, paths or names, with the mark of those whose models are of mmdet."""
    return [pytest.param(config, marks=pytest.mark.detection) if Path(config).stem.startswith(OF_MMDET) else config
            for config in configs]


def wide_resnet(widen_factor=1):
    """Config of a WRN-10 classifier of 16 x 16 images."""
    return dict(
        _scope_='mmpretrain', type='ImageClassifier',
        backbone=dict(type='overhaul.WideResNet', depth=10, widen_factor=widen_factor),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=CLASSES, in_channels=64 * widen_factor))


def resnet(base_channels=8, **backbone):
    """Config of mmpretrain's CIFAR ResNet-18 classifier, whose blocks share one in-place ReLU."""
    return dict(
        _scope_='mmpretrain', type='ImageClassifier',
        backbone=dict(type='ResNet_CIFAR', depth=18, base_channels=base_channels, stem_channels=base_channels,
                      **backbone),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=CLASSES, in_channels=8 * base_channels))


def segmentor(base_channels=4, dropout=0.0, **backbone):
    """Config of an mmseg FCN on a ResNet-18. Its dropout sits before the last convolution."""
    return dict(
        _scope_='mmseg', type='EncoderDecoder',
        backbone=dict(type='ResNetV1c', depth=18, base_channels=base_channels, stem_channels=base_channels, **backbone),
        decode_head=dict(type='FCNHead', in_channels=8 * base_channels, in_index=3, channels=8, num_convs=1,
                         num_classes=CLASSES, dropout_ratio=dropout, norm_cfg=dict(type='BN')))


def build_model(cfg, seed=0):
    """Build a model and draw every weight and statistic of its batch norms, so that none is 0 or 1."""
    torch.manual_seed(seed)
    model = MODELS.build(cfg)
    model.init_weights()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.normal_(1, 0.3)
            module.bias.data.normal_(0, 0.5)
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2)
    return model


def save_teacher(folder, cfg, seed=7):
    """Write the drawn weights of a model and return the path, for ``teacher_checkpoint``."""
    path = str(folder / f'teacher_{seed}.pth')
    torch.save({'state_dict': build_model(cfg, seed).state_dict()}, path)
    return path


def distiller_config(**changes):
    """Config of the distillation from a WRN-10-2 to a WRN-10-1."""
    return dict(dict(
        type='overhaul.OverhaulDistiller', teacher=wide_resnet(2), student=wide_resnet(1), taps=TAPS,
        input_size=(16, 16)), **changes)


def build_distiller(**changes):
    """Build the above, without the warning that the teacher may have no checkpoint. Its weights follow the seed."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='The teacher has no teacher_checkpoint')
        return MODELS.build(distiller_config(**changes))


def batch(size=4, seed=0, pixels=16):
    """Images (size, 3, pixels, pixels) and their labelled samples for a classifier."""
    from mmpretrain.structures import DataSample
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, pixels, pixels, generator=generator)
    labels = torch.randint(0, CLASSES, (size, ), generator=generator)
    return images, [DataSample().set_gt_label(label) for label in labels]


def segmentation_batch(size=2, seed=0, pixels=32):
    """The same for a segmentor."""
    from mmseg.structures import SegDataSample
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, pixels, pixels, generator=generator)
    masks = torch.randint(0, CLASSES, (size, 1, pixels, pixels), generator=generator)
    shapes = dict(img_shape=(pixels, pixels), ori_shape=(pixels, pixels))
    return images, [SegDataSample(gt_sem_seg=PixelData(data=mask), metainfo=shapes) for mask in masks]


def loader(batches):
    """A data loader that gives exactly these (inputs, data_samples), which are of one size."""
    items = [dict(inputs=image, data_samples=sample) for images, samples in batches
             for image, sample in zip(images, samples)]
    return DataLoader(items, batch_size=len(batches[0][1]), collate_fn=pseudo_collate)


def runner(folder, model, batches, epochs, optim_wrapper, hooks=(), schedule=None, **more):
    """An mmengine runner as a config makes one, for ``epochs`` rounds over ``batches``."""
    arguments = dict(
        model=model, work_dir=str(folder), train_dataloader=loader(batches),
        train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=10**6), optim_wrapper=optim_wrapper,
        param_scheduler=schedule, custom_hooks=list(hooks), default_hooks=dict(checkpoint=None, sampler_seed=None),
        default_scope='mmpretrain', experiment_name=str(folder))
    return Runner(**{**arguments, **more})


def sgd(lr=0.1, **paramwise):
    """The optimizer of every recipe: Nesterov SGD with weight decay."""
    optimizer = dict(type='SGD', lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    return ConfigDict(type='OptimWrapper', optimizer=optimizer, **paramwise)


class Lines(logging.Handler):
    """What the runner logs, message by message."""

    def __init__(self, run):
        super().__init__()
        self.messages = []
        run.logger.addHandler(self)

    def emit(self, record):
        self.messages.append(record.getMessage())

    def one(self, start):
        (message, ) = [message for message in self.messages if message.startswith(start)]
        return message
