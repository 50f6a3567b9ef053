"""What the data decide before training: margins without batch norm, and alpha."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from overhaul.distiller import OverhaulDistiller
from overhaul.hooks.summary import bare_model
from overhaul.margins import NegativeMean
from overhaul.registry import HOOKS


@HOOKS.register_module()
class CalibrateHook(Hook):
    """Estimates, on training batches before the first step, what a distiller leaves to the data.

    The margins of taps that no batch norm feeds, or of all with ``margin=dict(type='MarginReLU', source='data')``: per
    channel, the mean of the teacher's negative responses. They are the same on all processes and travel in the
    checkpoint, so a resumed run does not estimate again. Does nothing where everything is known.

    Args:
        batches: Number of batches, or all of an epoch if it has fewer. Default: 50.
    """

    priority = 'NORMAL'  # before the summary, which tells what came out

    def __init__(self, batches: int = 50) -> None:
        self.batches = batches

    def before_train(self, runner: Runner) -> None:
        """Estimate what is missing."""
        model = bare_model(runner)
        if not isinstance(model, OverhaulDistiller):
            return
        unknown = [i for i, margin in enumerate(model.margins) if not margin.known]
        if unknown:
            means = {i: NegativeMean() for i in unknown}
            for inputs in self._inputs(runner, model):
                features = model.teacher_features(inputs)
                for i, mean in means.items():
                    mean.add(features[i])
            for i, mean in means.items():
                model.margins[i].margin.copy_(mean.result())
            paths = ', '.join(model.teacher_taps.taps[i].path for i in unknown)
            runner.logger.info(f'Margins estimated on up to {self.batches} batches: {paths}')

    def _inputs(self, runner: Runner, model: OverhaulDistiller) -> Iterator[Tensor]:
        with torch.no_grad():
            for data in islice(runner.train_dataloader, self.batches):
                yield model.data_preprocessor(data, True)['inputs']
