"""The recorded runs of the official code in ``data/golden``, and the recipe for the weights and images they used.

Each recorded run is a JSON dict, here called ``golden``. Its networks were not trained: every tensor is drawn from a
random generator seeded with the tensor's official name, so that a name, a shape and numpy are enough to have it again.
The names, shapes and kinds are in ``data/checkpoint_keys/manifest_<network>.json``. All dropout had p = 0.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent / 'data'

Manifest = list[tuple[str, list[int], str]]


def load_golden(setting: str) -> dict:
    """Return the recorded run of a setting: ``cifar_a``, ``imagenet_b``, ``voc_resnet18``, ..."""
    return json.loads((DATA / f'golden/{setting}.json').read_text())


def load_manifest(network: str) -> Manifest:
    """Return (official name, shape, kind) of each tensor of a network such as ``wrn16_4``, in state dict order."""
    return json.loads((DATA / f'checkpoint_keys/manifest_{network}.json').read_text())


def parameter_count(network: str) -> int:
    """Return the number of parameters of a network of the official code, classifier included."""
    counts = json.loads((DATA / 'param_counts.json').read_text())
    return next(entry['params'] for entry in counts if entry['net'] == network)


def recipe_state_dict(manifest: Manifest, prefix: str) -> dict[str, Tensor]:
    """Return the recipe's state dict of a network: official name -> float32 tensor (int64 for batch counters).

    Args:
        manifest: The network's tensors, from ``load_manifest``; for connectors, ``golden['connector_entries']``.
        prefix: The network's role in the run, part of the seeds: ``teacher.``, ``student.`` or ``connector.``.
    """
    return {name: _as_tensor(_draw(name, shape, kind, prefix)) for name, shape, kind in manifest}


def inputs(golden: dict) -> Tensor:
    """Return the images of a recorded run, float32 (N, 3, H, W)."""
    return _as_tensor(np.random.RandomState(golden['seed_input']).randn(*golden['input_shape']))


def labels(golden: dict) -> Tensor:
    """Return the labels of a recorded run, int64: (N,) classes, or (N, H, W) with 255 where a pixel has no label."""
    generator = np.random.RandomState(golden['seed_label'])
    shape, classes = tuple(golden['label_shape']), golden['student_logits']['shape'][1]
    drawn = generator.randint(0, classes, size=shape)
    if len(shape) == 3:
        drawn[generator.rand(*shape) < 0.05] = 255
    return torch.from_numpy(drawn).long()


def _draw(name: str, shape: list[int], kind: str, prefix: str) -> np.ndarray:
    """Draw one tensor in float64; a batch counter is an int64 zero."""
    if kind == 'bn_num_batches_tracked':
        return np.zeros(shape, np.int64)
    generator = np.random.RandomState(zlib.crc32((prefix + _seed_name(name)).encode()))
    if kind == 'bn_running_var':
        return 0.5 + generator.rand(*shape)
    normal = generator.randn(*shape)
    if kind == 'conv_weight':
        return normal * math.sqrt(2 / math.prod(shape[1:]))
    if kind == 'linear_weight':
        return normal * math.sqrt(1 / shape[1])
    if kind in ('conv_bias', 'linear_bias', 'bn_running_mean'):
        return normal * 0.1
    if kind == 'bn_weight':
        return 1 + 0.3 * normal
    if kind == 'bn_bias':
        # Every seventh channel is hardly ever negative, so that its margin takes the formula's other branch.
        bias = 0.5 * normal
        weight = _draw(name.removesuffix('bias') + 'weight', shape, 'bn_weight', prefix)
        bias[::7] = 4 * np.abs(weight[::7])
        return bias
    raise ValueError(f'The recipe knows no kind {kind!r}, of {name!r}.')


def _seed_name(name: str) -> str:
    """Return the name that seeds: the official DeepLab with MobileNetV2 lists the same tensors under several."""
    for alias in ('backbone.low_level_features.', 'backbone.high_level_features.'):
        if name.startswith(alias):
            return 'backbone.features.' + name.removeprefix(alias)
    return name


def _as_tensor(array: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(np.asarray(array))
    return tensor.float() if tensor.is_floating_point() else tensor
