"""Batches whose last images have no labels: how they are told apart, and a preprocessor that takes them apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from mmengine.structures import BaseDataElement
from torch import nn


def mark_unlabelled(sample: BaseDataElement) -> None:
    """Note in the ``sample`` of an image that it has no labels."""
    sample.set_metainfo(dict(unlabelled=True))


def count_labelled(samples: Sequence[BaseDataElement] | None) -> int | None:
    """Return how many of a batch have labels, which come first; None if there are no others."""
    count = sum(not getattr(sample, 'unlabelled', False) for sample in samples or ())
    return None if count == len(samples or ()) else count


def preprocess_apart(preprocessor: nn.Module) -> None:
    """Let ``preprocessor`` take the images with labels, and then those without, each as a batch of its own."""
    preprocessor.forward = partial(_apart, preprocessor.forward)


def _apart(forward: Callable[..., dict], data: dict, training: bool = False) -> dict:
    samples = data.get('data_samples')
    count = count_labelled(samples)
    if not count:
        return forward(data, training)
    with_labels, without = (
        forward({**data, 'inputs': data['inputs'][part], 'data_samples': samples[part]}, training)
        for part in (slice(count), slice(count, None)))
    shapes = [tuple(part['inputs'].shape[1:]) for part in (with_labels, without)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f'The images with labels come out of their pipeline as {shapes[0]}, and those without as {shapes[1]}, and '
            'a batch has one size. End both pipelines with a resize or crop to the same size.')
    return {**with_labels, 'inputs': torch.cat([with_labels['inputs'], without['inputs']]),
            'data_samples': [*with_labels['data_samples'], *without['data_samples']]}
