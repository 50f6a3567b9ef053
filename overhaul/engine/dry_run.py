"""A config tried out on random data: no dataset, no teacher file, nothing written."""

from __future__ import annotations

import copy
import resource
import time
import warnings
from collections.abc import Iterator

import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten
from torch.utils.data import Dataset

from overhaul.datasets.unlabelled import read_line
from overhaul.engine.runner import bare_model
from overhaul.files.parts import model_of, plain_model, task_name, without_downloads
from overhaul.registry import DATASETS, HOOKS, build, dicts_in, is_type, type_name
from overhaul.tasks import is_height_first, name_task, student_of, task_of, without_truth

_STEPS = 2


def prepare(cfg: Config) -> None:
    """Edit a training config so that it runs two training steps and one validation step on random data.

    Batches have the size that the config says. Images have that of ``model.input_size``; else that which the data
    preprocessor fills them up to; else that which the last transform of the training data with a ``scale``,
    ``crop_size`` or ``size`` gives them; else 224x224.
    """
    for part in cfg.model.keys() & {'teacher', 'student'}:
        cfg.model[part] = ConfigDict(model_of(cfg.model[part]))
    preprocessors = [
        part['data_preprocessor'] for part in (cfg, cfg.model, cfg.model.get('student'))
        if part and (part.get('data_preprocessor') or {}).get('size')]
    given = [part['size'] for part in reversed(preprocessors)] + [cfg.model.get('input_size')]
    told = [*_sizes(cfg.train_dataloader.dataset, cfg.get('default_scope')), *map(_pair, filter(None, given))]
    size = told[-1] if told else (224, 224)
    for part in preprocessors:
        part['size'] = size  # what mmseg fills images up to
    without_downloads(cfg.model)
    if cfg.model.get('teacher_checkpoint') is not None:
        warnings.filterwarnings('ignore', message='The teacher has no teacher_checkpoint')  # it has, elsewhere
    for key in cfg.model.keys() & {'teacher_checkpoint', 'student_checkpoint'}:
        cfg.model[key] = None
    cfg.load_from, cfg.resume = None, False

    random = dict(size=size, model=plain_model(cfg), task=task_name(cfg))
    if not RandomImages(1, **copy.deepcopy(random)).annotated:  # evaluators may ask even what nothing is known of
        cfg.update(val_dataloader=None, val_evaluator=None, val_cfg=None)
    data = dict(type='overhaul.RandomImages', **random)
    for loader, batches in ((cfg.train_dataloader, _STEPS), (cfg.get('val_dataloader'), 1)):
        if loader is None:
            continue
        batch_size = min(loader.batch_size, cfg.train_dataloader.batch_size)
        loader.update(batch_size=batch_size, num_workers=0, persistent_workers=False)
        loader.pop('batch_sampler', None)  # which may ask the dataset for more than images
        loader.dataset = ConfigDict(length=batch_size * batches, **data)
        if 'unlabelled' in loader:
            _, per_image = read_line(loader.unlabelled)
            loader.unlabelled = dict(dataset=dict(length=batch_size * per_image, **data), per_image=per_image)
    evaluators = cfg.get('val_evaluator') or []
    if evaluators:
        cfg.val_evaluator = [
            without_truth(one) for one in (evaluators if isinstance(evaluators, list | tuple) else [evaluators])]
    by_epoch = cfg.train_cfg.get('by_epoch', is_type(cfg.train_cfg, 'mmengine.EpochBasedTrainLoop'))
    cfg.train_cfg.update(dict(max_epochs=1, val_interval=1) if by_epoch else
                         dict(max_iters=_STEPS, val_interval=_STEPS))
    cfg.default_hooks = cfg.get('default_hooks') or {}
    cfg.default_hooks.update(checkpoint=None, logger=dict(type='LoggerHook', interval=1))
    cfg.default_hooks.pop('health', None)
    cfg.custom_hooks = [*cfg.get('custom_hooks', []), dict(type='overhaul.DryRunHook')]
    for hook in (*cfg.default_hooks.values(), *cfg.custom_hooks):
        if is_type(hook, 'overhaul.CalibrateHook'):
            hook['batches'] = _STEPS


def _sizes(data: object, scope: str | None) -> Iterator[tuple[int, int]]:
    """Yield the (H, W) that the transforms in the config of a dataset give images, the last one last."""
    for part in dicts_in(data):
        name = type_name(part) or ''
        height_first = is_height_first(name if '.' in name else f'{scope}.{name}')
        for size in map(part.get, ('scale', 'crop_size', 'size')):
            pair = _pair(size)
            if len(pair) == 2 and all(isinstance(side, int) and side > 0 for side in pair):
                yield pair if height_first else pair[::-1]


def _pair(size: object) -> tuple:
    return tuple(size) if isinstance(size, list | tuple) else (size, size)


@DATASETS.register_module()
class RandomImages(Dataset):
    """Random images (C, H, W) in uint8 with random annotations, as the pipelines of a model's package pack them.

    Args:
        length: Number of images.
        size: H and W.
        model: Config of the model that they are for. Its task tells the channels and the annotations.
        task: Name of the task. Default: the one that takes the model.

    Where the task knows no annotations there are none: ``annotated`` tells.
    """

    def __init__(self, length: int, size: tuple[int, int], model: dict, task: str | None = None) -> None:
        self.length, self.size = length, tuple(size)
        model = build(model, 'student').to('meta')  # what is asked of a task needs no weights
        name_task(model, task)
        self.task = task_of(model)
        self.metainfo = self.task.random_metainfo
        self.annotated = self.task.random_sample(self.size, torch.Generator()) is not None

    def __deepcopy__(self, memo: dict) -> RandomImages:
        """Return itself, which does not change: mmengine copies the config of a loader with all that is in it."""
        return self

    def __len__(self) -> int:
        return self.length

    def update_skip_type_keys(self, keys: object) -> None:
        """Do nothing, where mmdet's hook for the last epochs of YOLOX leaves out transforms."""

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.length:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, self.task.input_shape(self.size), generator=generator, dtype=torch.uint8)
        sample = self.task.random_sample(self.size, generator) if self.annotated else BaseDataElement()
        return dict(inputs=image, data_samples=sample)


@HOOKS.register_module()
class DryRunHook(Hook):
    """Logs, at the end of a dry run, the seconds of its last step and the peak memory."""

    priority = 'VERY_LOW'  # after the summary: the last line

    def before_run(self, runner: Runner) -> None:
        """Leave out what needs annotations where there are none."""
        self._annotated = runner.train_dataloader.dataset.annotated
        if not self._annotated:
            model = bare_model(runner)
            leave_out_task_loss(student_of(model))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def after_train_iter(
            self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: dict | None = None) -> None:
        """Stop the clock."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._seconds = time.perf_counter() - self._start

    def after_train(self, runner: Runner) -> None:
        """Log what was measured."""
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated()
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        validation = '' if runner.val_loop is None else ' and 1 validation step'
        random = 'Teacher and data are' if hasattr(bare_model(runner), 'teacher') else 'The data are'
        without = '' if self._annotated else " without the task's loss and without validation, which need labels"
        runner.logger.info(
            f'Dry run: ok. {_STEPS} training steps{validation}{without}, {self._seconds:.2f} s per step, peak memory '
            f'{peak / 2**20:.0f} MiB. {random} random, so losses and errors above say nothing.')


def leave_out_task_loss(model: nn.Module) -> None:
    """Let ``model`` have a loss of 0, whose gradient reaches all that it gives."""
    forward = model.forward

    def forward_without_loss(inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor') -> object:
        if mode != 'loss':
            return forward(inputs, data_samples, mode=mode)
        outputs, _ = tree_flatten(forward(inputs, data_samples, mode='tensor'))
        return dict(loss_left_out=0 * sum(output.float().sum() for output in outputs if isinstance(output, Tensor)))

    model.forward = forward_without_loss
