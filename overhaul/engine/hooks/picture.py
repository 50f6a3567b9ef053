"""Pictures of the features, while the student learns."""

from __future__ import annotations

from mmengine import dist
from mmengine.hooks import Hook
from mmengine.runner import Runner

from overhaul.engine.runner import bare_model, training_batches
from overhaul.method.distiller import OverhaulDistiller
from overhaul.registry import HOOKS


@HOOKS.register_module()
class PictureHook(Hook):
    """Gives pictures of one training batch to all backends of the visualizer, TensorBoard or a folder, at an interval.

    ``features`` shows, for one image, channels of the teacher, of the student as the training began and as it is, and
    the differences. ``pre_activations`` shows histograms of the teacher's pre-activations with the margins, and of the
    student's feature. The training is the same with and without it. Does nothing to a student that trains alone.

    Args:
        interval: Iterations between two pictures. There is one at the end too. Default: 1000.
    """

    priority = 'LOW'

    def __init__(self, interval: int = 1000) -> None:
        if not isinstance(interval, int) or interval < 1:
            raise ValueError(f'PictureHook draws every so many iterations: interval is 1 or more, not {interval!r}.')
        self.interval = interval

    def before_train(self, runner: Runner) -> None:
        """Remember a batch, and what the student makes of it."""
        if not isinstance(bare_model(runner), OverhaulDistiller):
            return
        with training_batches(runner, 1) as batches:
            self._data = next(batches)
        self._first_step, self._first = runner.iter, [tap.of_image(0) for tap in self._features(runner)]

    def after_train_iter(
            self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: dict | None = None) -> None:
        """Draw, if it is time."""
        if self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner):
            self._draw(runner)

    def _features(self, runner: Runner) -> list:
        from overhaul.reports import pictures  # here: matplotlib, which only users of this hook should load

        context = runner.optim_wrapper.optim_context(runner.model)
        return pictures.read_features(bare_model(runner), self._data, context)

    def _draw(self, runner: Runner) -> None:
        from overhaul.reports import pictures

        if not isinstance(bare_model(runner), OverhaulDistiller):
            return
        features = self._features(runner)  # in all processes, because synchronised batch norms wait for each other
        if not dist.is_main_process():
            return
        step = runner.iter + 1
        names = f'at iteration {self._first_step}', f'at iteration {step}'
        figures = dict(
            features=pictures.draw_features(self._first, features, names),
            pre_activations=pictures.draw_pre_activations(features))
        for name, figure in figures.items():
            runner.visualizer.add_image(name, pictures.to_array(figure), step)
