"""Hooks that write down what each process of a distributed training sees, for tests to compare."""

import copy
import os
from pathlib import Path

import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.model import convert_sync_batchnorm
from mmengine.registry import HOOKS
from small_models import batch
from torch import nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

IMAGES = 12


@HOOKS.register_module()
class RecordStatisticsHook(Hook):
    """Keeps the running statistics of this process as they are before anything averages them."""

    priority = 'VERY_HIGH'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        runner.own_statistics = {
            name: buffer.clone() for name, buffer in runner.model.module.named_buffers() if 'running' in name}


@HOOKS.register_module()
class RecordHook(Hook):
    """Writes ``folder/<rank>.pth`` after ``step`` iterations."""

    priority = 'VERY_LOW'

    def __init__(self, folder, step):
        self.path, self.step = Path(folder, f'{dist.get_rank()}.pth'), step
        self.record = dict(pid=os.getpid(), world_size=dist.get_world_size(), port=os.environ['MASTER_PORT'], rates=[],
                           unlabelled=[])

    def before_train(self, runner):
        self.record.update(
            without_norm=gradients_without_batch_norm(runner.model),
            synchronised=gradients_with_synchronised_batch_norm(runner.model.module))

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        groups = runner.optim_wrapper.optimizer.param_groups
        names = {id(parameter): name for name, parameter in runner.model.module.named_parameters()}
        self.record['unlabelled'].append(torch.stack([
            image for image, sample in zip(data_batch['inputs'], data_batch['data_samples'])
            if 'gt_label' not in sample]))
        self.record['rates'].append({names[id(group['params'][0])]: group['lr'] for group in groups})

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.step:
            model = runner.model.module
            self.record.update(
                own_statistics=runner.own_statistics, model=model.state_dict(), teacher=model.teacher.state_dict())
            torch.save(self.record, f'{self.path}.part')
            os.rename(f'{self.path}.part', self.path)


def own_part():
    """The images and labels of this process, out of a batch of ``IMAGES``."""
    images, samples = batch(IMAGES)
    mine = slice(dist.get_rank(), None, dist.get_world_size())
    return images[mine], samples[mine]


def gradients(model, images, samples):
    """The gradients on the student and the connectors, and none left behind."""
    model.zero_grad()
    sum(model(images, samples, mode='loss').values()).backward()
    found = {name.removeprefix('module.'): parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


def gradients_without_batch_norm(model):
    """Those of this process and of all together, and those of one process that sees the whole batch."""
    bare = model.module
    for module in [*bare.modules(), *bare.teacher.modules()]:
        if isinstance(module, _BatchNorm):
            module.eval()
    found = dict(
        own=gradients(bare, *own_part()), together=gradients(model, *own_part()), whole=gradients(bare, *batch(IMAGES)))
    bare.train()
    return found


def gradients_with_synchronised_batch_norm(model):
    """The same for a model whose student and connectors are converted, and what was converted."""
    plain, converted = copy.deepcopy(model), convert_sync_batchnorm(copy.deepcopy(model), 'torch')
    model.teacher_batch_norm = 'running'  # of the teacher that all three share
    model.train()
    found = dict(
        plain=[name for name, module in plain.named_modules() if isinstance(module, _BatchNorm)],
        converted=[name for name, module in converted.named_modules() if isinstance(module, nn.SyncBatchNorm)],
        teacher=[type(module).__name__ for module in model.teacher.modules() if isinstance(module, _BatchNorm)])
    on_gpu, nn.SyncBatchNorm.forward = nn.SyncBatchNorm.forward, synchronised_on_cpu
    together = gradients(converted.train(), *own_part())
    nn.SyncBatchNorm.forward = on_gpu
    dist.all_reduce_dict(together, 'mean')  # as DDP does, which refuses synchronised batch norms on a CPU
    found.update(together=together, whole=gradients(plain.train(), *batch(IMAGES)))
    model.teacher_batch_norm = 'batch'
    model.train()
    return found


def synchronised_on_cpu(norm, maps):
    """What ``SyncBatchNorm`` computes, which PyTorch has for GPUs only."""
    size = dist.get_world_size()
    mean = all_reduce(maps.mean((0, 2, 3))) / size
    centred = maps - mean[:, None, None]
    variance = all_reduce(centred.square().mean((0, 2, 3))) / size
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return centred * scale[:, None, None] + norm.bias[:, None, None]
