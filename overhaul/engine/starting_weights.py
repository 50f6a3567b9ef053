"""A training that starts from the weights in a file, each where it belongs."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from overhaul.engine.runner import bare_model
from overhaul.files import weights


def prepare(runner: Runner) -> None:
    """Let ``runner`` start from what its ``load_from`` names, or refuse it.

    mmengine loads what happens to have the same name, which may be nothing, and goes on.

    Raises:
        FileNotFoundError, ValueError: As :func:`overhaul.files.weights.starting_weights`.
    """
    source = runner._load_from
    runner.register_hook(_StartingWeights(weights.starting_weights(bare_model(runner), source)))
    runner._load_from = weights.Source.of(source).file


class _StartingWeights(Hook):
    priority = 'VERY_HIGH'  # before EMAHook takes them over

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self._weights = weights

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put the weights by the names of the model where mmengine, and the hooks after this one, look for them."""
        checkpoint['state_dict'] = {**bare_model(runner).state_dict(), **self._weights}
        self._weights = {}
