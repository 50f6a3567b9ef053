"""Momentum that starts afresh when the learning rate drops."""

from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.runner import Runner

from overhaul.registry import HOOKS


@HOOKS.register_module()
class ResetMomentumHook(Hook):
    """Empties the optimizer's momentum at the start of some epochs.

    The official CIFAR code makes a new optimizer at each drop of the learning rate; the paper does not mention it.

    Args:
        epochs: Epochs, counted from 0, that start without momentum.
    """

    def __init__(self, epochs: Sequence[int]) -> None:
        self.epochs = set(epochs)

    def before_train_epoch(self, runner: Runner) -> None:
        """Empty the momentum if this is one of the epochs."""
        if runner.epoch in self.epochs:
            runner.optim_wrapper.optimizer.state.clear()
