"""How good the features of a student are that has no task of its own."""

from __future__ import annotations

import numpy as np
import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor
from torch.utils._pytree import tree_leaves

from overhaul.engine.runner import bare_model, evaluating
from overhaul.method.distiller import OverhaulDistiller
from overhaul.registry import HOOKS
from overhaul.reports.progress import progress
from overhaul.tasks import label_of, student_of, task_of


@HOOKS.register_module()
class ProbeFeaturesHook(Hook):
    """Measures, while a student is distilled without labels, what its features are worth.

    * ``probe/distillation_loss``: the distillation loss on images that it is not trained on, in eval mode.
    * ``probe/neighbours``: of labelled images, the share in % whose class most of its nearest neighbours have, in five
      folds: the features at the end of the trunk, averaged over height and width, compared by their cosine.

    Both are logged, and are among the scalars of the visualizer. The training is the same with and without it.

    Args:
        held_out: Config of a data loader of images that are not trained on. Default: without that loss.
        labelled: Likewise, of a few hundred labelled images or more, at least five of each class. Default: without
            neighbours.
        interval: Iterations between two measurements. There is one at the end too. Default: 1000.
        neighbours: How many. Default: 10.

    Raises:
        ValueError: If there is neither of the loaders; for an ``interval`` or ``neighbours`` below 1.
    """

    priority = 'LOW'

    def __init__(
            self, held_out: dict | None = None, labelled: dict | None = None, interval: int = 1000,
            neighbours: int = 10) -> None:
        if held_out is None and labelled is None:
            raise ValueError('ProbeFeaturesHook has nothing to measure on. Give it held_out, labelled, or both.')
        if min(interval, neighbours) < 1:
            raise ValueError(
                f'ProbeFeaturesHook(interval={interval!r}, neighbours={neighbours!r}): give whole numbers above 0.')
        self.held_out, self.labelled, self.interval, self.neighbours = held_out, labelled, interval, neighbours

    def before_train(self, runner: Runner) -> None:
        """Build the loaders."""
        self._loaders = {
            name: runner.build_dataloader(cfg, seed=runner.seed)
            for name, cfg in (('held_out', self.held_out), ('labelled', self.labelled)) if cfg is not None}

    def after_train_iter(
            self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: dict | None = None) -> None:
        """Measure, if it is time."""
        if not self.every_n_train_iters(runner, self.interval) and not self.is_last_train_iter(runner):
            return
        model = bare_model(runner)
        found = {}
        with evaluating(model), torch.random.fork_rng(range(torch.cuda.device_count())):
            if 'held_out' in self._loaders and isinstance(model, OverhaulDistiller):
                found['probe/distillation_loss'] = _distillation_loss(model, self._loaders['held_out'])
            if 'labelled' in self._loaders:
                found['probe/neighbours'] = self._share_of_neighbours(model)
        if dist.is_main_process():
            runner.visualizer.add_scalars(found, step=runner.iter + 1)
            told = ', '.join(f'{name.removeprefix("probe/")} {value:.4g}' for name, value in found.items())
            runner.logger.info(f'Features after {runner.iter + 1} iterations: {told}')

    def _share_of_neighbours(self, model: torch.nn.Module) -> float:
        from sklearn.model_selection import cross_val_score  # here: it takes a second, and only users of this need it
        from sklearn.neighbors import KNeighborsClassifier

        student, maps = student_of(model), []
        hook = student.get_submodule(task_of(student).trunk).register_forward_hook(
            lambda module, inputs, output: maps.append(_vector(output)))
        labels = []
        try:
            for batch in progress(self._loaders['labelled'], 'Features'):
                data = model.data_preprocessor(batch, False)
                student(data['inputs'], data['data_samples'], mode='tensor')
                labels += map(label_of, data['data_samples'])
        finally:
            hook.remove()
        probe = KNeighborsClassifier(self.neighbours, metric='cosine')
        return 100 * float(np.mean(cross_val_score(probe, torch.cat(maps).float().cpu().numpy(), labels, cv=5)))


def _distillation_loss(model: OverhaulDistiller, loader: object) -> float:
    total = count = 0
    for batch in progress(loader, 'Held-out images'):
        data = model.data_preprocessor(batch, True)
        losses, images = model(**data, mode='loss'), len(data['inputs'])
        total, count = total + images * sum(losses[name].item() for name in model.loss_names), count + images
    return total / count


def _vector(output: object) -> Tensor:
    """Return (N, C) of the last tensor that a trunk gives: a map (N, C, H, W), tokens (N, L, C), or vectors."""
    last = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)][-1]
    return last.mean((2, 3)) if last.dim() == 4 else last.mean(1) if last.dim() == 3 else last
