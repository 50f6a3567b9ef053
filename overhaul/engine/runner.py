"""What is asked of a runner by several hooks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import numpy as np
import torch
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from overhaul.engine.exact_resume import numbered_loader
from overhaul.reports.progress import progress


def bare_model(runner: Runner) -> nn.Module:
    """Return the runner's model without its wrapper for distributed training."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


@contextmanager
def training_batches(runner: Runner, count: int) -> Iterator[Iterator[dict]]:
    """Give up to ``count`` training batches, and leave the training its own batches and random numbers.

    A data loader of its own does it: mmengine's endless sampler can be iterated once only.
    """
    loader = runner.train_dataloader
    cfg = runner.cfg.get('train_dataloader')
    if isinstance(cfg, dict):
        in_process = dict(num_workers=0, persistent_workers=False, prefetch_factor=None) if count <= 8 else {}
        loader = numbered_loader(runner, {**cfg, **in_process, 'dataset': loader.dataset})
    python, numpy, devices = random.getstate(), np.random.get_state(), range(torch.cuda.device_count())
    with torch.random.fork_rng(devices):
        yield islice(loader, count)
    random.setstate(python)
    np.random.set_state(numpy)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into eval mode without gradients, and afterwards each part of it into the mode that it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    with torch.no_grad():
        yield
    model.train(modes[model])  # the teacher of a distiller, which is no part of it
    for module, training in modes.items():
        module.training = training


def validate(runner: Runner, model: nn.Module) -> dict[str, float]:
    """Return the metrics of ``model`` on the runner's validation data."""
    loop = runner.val_loop
    with evaluating(model):
        for batch in progress(loop.dataloader, 'Validation'):
            loop.evaluator.process(data_samples=model.val_step(batch), data_batch=batch)
    return loop.evaluator.evaluate(len(loop.dataloader.dataset))
