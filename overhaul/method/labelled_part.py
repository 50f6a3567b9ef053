"""Batches in which some images have no labels: the distillation sees them all, the task's loss those with labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import overhaul.datasets.unlabelled  # noqa: F401  lets a data loader bring such batches
from overhaul.tasks import count_labelled, task_of


class LabelledPart:
    """What a student's loss is taken of, where its forward pass has all images.

    Args:
        student: The model.
        taps: Paths of its taps.

    Attributes:
        count: How many images of the batch have labels to learn, the first ones; None where all do.
    """

    def __init__(self, student: nn.Module, taps: Sequence[str]) -> None:
        self.count: int | None = None
        self._task, self._taps = task_of(student), taps
        self._all, self._placed, self._cuts = 0, False, 0
        self._task.accept_unlabelled()

    @contextmanager
    def of(self, samples: Sequence[BaseDataElement] | None) -> Iterator[None]:
        """Let the loss that is computed inside this block be that of the images with labels among ``samples``.

        Raises:
            ValueError: If it cannot be.
        """
        self.count = count_labelled(samples) if self._task.has_loss else 0
        if not self.count:
            yield
            return
        if not self._placed:
            self._task.cut_loss(self.cut, self._taps)
            self._placed = True
        self._all, self._cuts = len(samples), 0
        try:
            yield
        finally:
            self.count = None
        self._check(0)

    def cut(self, features: object) -> object:
        """Return ``features``, tensors in whatever they are, without the images that have no labels."""
        if self.count is None:
            return features
        before = self._cuts
        features = tree_map(self._cut, features)
        self._check(before)
        return features

    def _cut(self, feature: object) -> object:
        if not isinstance(feature, Tensor) or feature.dim() == 0 or len(feature) != self._all:
            return feature
        self._cuts += 1
        return feature[:self.count]

    def _check(self, before: int) -> None:
        if self._cuts == before:
            raise ValueError(
                f'The loss of the {type(self._task.model).__name__} cannot be taken over a part of a batch: its '
                'features do not come, image by image, out of the module that its task names for that. Train it '
                'without unlabelled, or give it a task with a cut_loss of its own: docs/tasks.md.')
