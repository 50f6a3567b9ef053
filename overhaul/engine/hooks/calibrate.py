"""What the data decide before training: margins without batch norm, and alpha."""

from __future__ import annotations

import math

import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.runner import Runner

from overhaul.engine.runner import bare_model, training_batches
from overhaul.method.distiller import OverhaulDistiller
from overhaul.method.margins import NegativeMean
from overhaul.method.probe import measure
from overhaul.registry import HOOKS


@HOOKS.register_module()
class CalibrateHook(Hook):
    """Sets, from training batches before the first step, what a distiller leaves to the data.

    * The margins of taps that no batch norm feeds, or of all with ``margin=dict(type='MarginReLU', source='data')``:
      per channel, the mean of the teacher's negative responses.
    * Alpha, with ``distill_loss=dict(type='PartialL2Loss', loss_weight='auto')``: such that the distillation loss is
      ``loss_ratio`` times the task loss.

    Both are the same on all processes and travel in the checkpoint, so a resumed run does not set them again. Does
    nothing where everything is known.

    Args:
        batches: Number of batches for the margins, or all of an epoch if it has fewer. Default: 50.
        loss_ratio: The ratio that alpha gives, over up to 8 batches; the loss itself where there is no task.
            Default: 20, between the 7 and the 39 that the paper's settings for classification begin with, see
            docs/alpha.md.
    """

    priority = 'NORMAL'  # before the summary, which tells what came out

    def __init__(self, batches: int = 50, loss_ratio: float = 20.0) -> None:
        if not isinstance(batches, int) or batches < 1:
            raise ValueError(f'CalibrateHook(batches={batches!r}): give a whole number of 1 or more.')
        if not isinstance(loss_ratio, int | float) or not 0 < loss_ratio < math.inf:
            raise ValueError(f'CalibrateHook(loss_ratio={loss_ratio!r}): give a finite number above 0.')
        self.batches, self.loss_ratio = batches, loss_ratio

    def before_train(self, runner: Runner) -> None:
        """Set what is missing."""
        model = bare_model(runner)
        if isinstance(model, OverhaulDistiller):
            self._set_margins(runner, model)
            self._set_alpha(runner, model)

    def _set_margins(self, runner: Runner, model: OverhaulDistiller) -> None:
        means = {i: NegativeMean() for i, margin in enumerate(model.margins) if not margin.known}
        if not means:
            return
        with torch.no_grad(), training_batches(runner, self.batches) as batches:
            for data in batches:
                features = model.teacher_features(**model.data_preprocessor(data, True))
                for i, mean in means.items():
                    mean.add(features[i])
            for i, mean in means.items():
                model.margins[i].margin.copy_(mean.result())
        paths = ', '.join(model.teacher_taps.taps[i].path for i in means)
        runner.logger.info(f'Margins estimated on data: {paths}')

    def _set_alpha(self, runner: Runner, model: OverhaulDistiller) -> None:
        alpha = getattr(model.distill_loss, 'loss_weight', None)
        if not isinstance(alpha, torch.Tensor) or not alpha.isnan():
            return
        alpha.fill_(1)
        with training_batches(runner, min(self.batches, 8)) as batches:
            ratios = torch.tensor([
                measure(model, data, runner.optim_wrapper.optim_context(runner.model)).loss_ratio
                for data in batches])
        # Over batches and processes, on a scale on which twice and half are as far from 1.
        mean = ratios.log().mean()
        dist.all_reduce(mean, 'mean')
        alpha.fill_(self.loss_ratio / mean.exp())
        runner.logger.info(f'Alpha set to {alpha.item():.3g}')
