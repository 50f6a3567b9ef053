"""A training that starts from the weights in files, each where it belongs."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from overhaul.engine.runner import bare_model
from overhaul.files import weights
from overhaul.files.initial import initialise
from overhaul.tasks import student_of


def prepare(runner: Runner) -> None:
    """Let ``runner`` start from what its ``load_from`` names, or refuse it.

    mmengine loads what happens to have the same name, which may be nothing, and goes on.

    Raises:
        FileNotFoundError, ValueError: As :func:`overhaul.files.weights.starting_weights`.
    """
    source = runner._load_from
    runner.register_hook(_StartingWeights(weights.starting_weights(bare_model(runner), source)))
    runner._load_from = weights.Source.of(source).file


def watch_initialisation(runner: Runner) -> None:
    """Refuse, when a model that is no distiller is initialised, what a distiller refuses, see :func:`initialise`."""
    model = bare_model(runner)
    own = getattr(model, 'init_weights', None)
    if own is None or student_of(model) is not model:
        return

    def init_weights() -> None:
        del model.init_weights  # of this model, not of its class
        initialise(model, own)

    model.init_weights = init_weights


class _StartingWeights(Hook):
    priority = 'VERY_HIGH'  # before EMAHook takes them over

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self._weights = weights

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put the weights by the names of the model where mmengine, and the hooks after this one, look for them."""
        checkpoint['state_dict'] = {**bare_model(runner).state_dict(), **self._weights}
        # The EMAHook of mmpretrain would take from here what was asked for, or what belongs to another model.
        checkpoint.pop('ema_state_dict', None)
        self._weights = {}
