"""Data whose classes are those of the model, looked at before the first step."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

from overhaul.engine.runner import bare_model
from overhaul.tasks import names_of, task_of


def prepare(runner: Runner) -> None:
    """Make ``runner`` look at its data when it begins to train."""
    runner.register_hook(_DataClassesHook())


class _DataClassesHook(Hook):

    def before_run(self, runner: Runner) -> None:
        """Look."""
        check(runner)


def check(runner: Runner) -> None:
    """Refuse data that the model of ``runner`` cannot learn from, or cannot be validated on.

    Labels of other classes are numbers all the same, and nothing else would tell.

    Raises:
        ValueError: Says why, and what to do.
    """
    if not isinstance(runner._train_loop, BaseLoop):  # only the config of one: this is a test
        return
    task, train = task_of(bare_model(runner)), runner.train_dataloader.dataset
    reason = task.cannot_learn_from(train)
    if reason is None and runner.val_loop is not None:
        reason = task.cannot_be_judged_on(
            runner.val_dataloader.dataset, names_of(train), getattr(runner.val_evaluator, 'metrics', ()))
    if reason is not None:
        raise ValueError(reason)
