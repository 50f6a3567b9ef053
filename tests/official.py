"""Checks that every backbone's test makes: the same network, tensors and numbers as the official code."""

import re
from collections import Counter

import pytest
import torch
from golden import inputs, load_golden, load_manifest, parameter_count, recipe_state_dict
from mmpretrain.registry import MODELS
from torch import Tensor, nn


def build_classifier(backbone: dict, in_channels: int, classes: int) -> nn.Module:
    """Build an mmpretrain classifier on a backbone config, as a user's config does."""
    return MODELS.build(dict(
        type='ImageClassifier',
        backbone=backbone,
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=classes, in_channels=in_channels)))


def our_name(name: str) -> str:
    """Return what a tensor of the official code is called in a classifier of ours."""
    name = re.sub(r'^(block\d)\.layer\.', r'\1.', name).replace('convShortcut', 'shortcut')
    return f'head.{name}' if name.startswith('fc.') else f'backbone.{name}'


def check_tensors(classifier: nn.Module, network: str) -> None:
    """Assert the parameter count and the name and shape of each tensor."""
    assert sum(parameter.numel() for parameter in classifier.parameters()) == parameter_count(network)
    ours = {name: list(tensor.shape) for name, tensor in classifier.state_dict().items()}
    assert ours == {our_name(name): shape for name, shape, _ in load_manifest(network)}


def check_golden(classifier: nn.Module, setting: str, role: str, taps: tuple[str, ...]) -> None:
    """Assert logits and tap features of a recorded float64 run in train mode. ``taps`` are paths in the backbone."""
    golden = load_golden(setting)
    recipe = recipe_state_dict(load_manifest(golden[role]), f'{role}.')
    classifier.load_state_dict({our_name(name): tensor for name, tensor in recipe.items()})
    classifier.double().train()
    features = {}
    for tap in taps:
        path, _, side = tap.partition(':')

        def keep(module: nn.Module, args: tuple[Tensor], output: Tensor, tap: str = tap, side: str = side) -> None:
            features[tap] = args[0] if side == 'input' else output

        classifier.backbone.get_submodule(path).register_forward_hook(keep)
    with torch.no_grad():
        logits = classifier(inputs(golden).double(), mode='tensor')

    recorded = golden[f'{role}_logits']
    assert list(logits.shape) == recorded['shape']
    assert logits.flatten()[:8].tolist() == pytest.approx(recorded['first8_flat'], rel=1e-9)
    _check_statistics(logits, recorded)
    assert len(taps) == len(golden['taps'])
    for tap, record in zip(taps, golden['taps'], strict=True):
        assert list(features[tap].shape) == record[f'shape_{role}']
        _check_statistics(features[tap], record[f'{role}_feat'])


def _check_statistics(tensor: Tensor, recorded: dict) -> None:
    measured = dict(mean=tensor.mean(), std=tensor.std(correction=0), abs_sum=tensor.abs().sum())
    for statistic, value in measured.items():
        assert value.item() == pytest.approx(recorded[statistic], rel=1e-9), statistic


def check_batch_norms(backbone: nn.Module, size: int = 32) -> None:
    """Assert that one forward runs each batch norm exactly once, and that nothing writes over what it returned."""
    calls, outputs = Counter(), {}

    def record(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        calls[module] += 1
        outputs[module] = (output, output.clone())

    batch_norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    for batch_norm in batch_norms:
        batch_norm.register_forward_hook(record)
    backbone(torch.randn(2, 3, size, size))
    assert batch_norms and calls == Counter(batch_norms)
    assert all(torch.equal(output, original) for output, original in outputs.values())


def shapes(backbone: nn.Module, size: int = 32) -> list[tuple[int, ...]]:
    """Return the shapes of the feature maps of two square images."""
    return [tuple(feature.shape) for feature in backbone(torch.randn(2, 3, size, size))]


def check_official_convolutions(backbone: nn.Module) -> None:
    """Assert that ``init_weights`` draws convolutions of standard deviation sqrt(2 / (kernel area * out channels))."""
    backbone.init_weights()
    large = [module for module in backbone.modules()
             if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000]
    assert large
    for convolution in large:
        kernel = convolution.kernel_size[0] * convolution.kernel_size[1]
        expected = (2 / (kernel * convolution.out_channels))**0.5
        assert convolution.weight.std().item() == pytest.approx(expected, rel=0.05)
        assert abs(convolution.weight.mean().item()) < 0.05 * expected
