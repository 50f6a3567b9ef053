"""What a model's own code makes of weights when it loads them: names of older versions, maps of another size."""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import replace

from torch import nn

from overhaul.files.names import Fit


def adapted(model: nn.Module, fit: Fit) -> Fit:
    """Return ``fit`` with its weights as the modules of ``model`` change them while they load them.

    Those of mmpretrain resize the position embeddings and tables of transformers, and drop what they compute
    themselves, which is then as ``model`` has it. A module whose code fails on the weights is passed over.
    """
    weights = dict(fit.weights)
    for path, module in copy.deepcopy(model).named_modules():
        # As torch does it, but with one dictionary for all, which then holds what they have made of it.
        with suppress(Exception):
            module._load_from_state_dict(weights, f'{path}.' if path else '', {}, False, [], [], [])
    moved = {id(value) for value in weights.values()}
    dropped = [name for name, value in fit.weights.items() if name not in weights and id(value) not in moved]
    weights |= {name: fit.model[name] for name in dropped if name in fit.model}
    return replace(
        fit, weights=weights, left_out=fit.left_out + [name for name in dropped if name not in fit.model],
        adapted=[name for name, value in weights.items() if value is not fit.weights.get(name)])
