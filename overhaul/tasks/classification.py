"""Classification: the models of mmpretrain that give an image a label, several, a number, or several of these."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from overhaul.registry import TASKS
from overhaul.tasks.results import Quote
from overhaul.tasks.task import Graph, Outputs, Task, is_a
from overhaul.tasks.unlabelled import preprocess_apart

if TYPE_CHECKING:
    from mmpretrain.structures import DataSample, MultiTaskDataSample

_SEVERAL = 'mmpretrain.models.heads.multi_label_cls_head.MultiLabelClsHead'


@TASKS.register_module(name='classification')
class Classification(Task):
    """Classifiers of mmpretrain, those of timm and transformers among them. Answers: see :class:`Task`.

    A head may tell one class of several, several at once (``MultiLabelClsHead``), give numbers (a head without
    ``num_classes``), or be a ``MultiTaskHead`` of such heads.
    """

    quotes = {
        'accuracy/top1': Quote('% error', complement=True),
        'multi-label/mAP': Quote('% mAP'),
        'single-label/f1-score': Quote('% F1'),
        'multi-label/f1-score': Quote('% F1'),
    }
    height_first = ('mmpretrain.RandomCrop', 'mmpretrain.RandomResizedCrop')

    @classmethod
    def takes(cls, model: nn.Module) -> bool:
        """Whether it is a classifier of mmpretrain."""
        return is_a(model, 'mmpretrain.models.classifiers.base.BaseClassifier')

    def accept_unlabelled(self) -> None:
        """Let its data preprocessor, which asks all images of a batch for labels, and mixes them, take some apart."""
        preprocess_apart(self.model.data_preprocessor)

    @property
    def _head(self) -> nn.Module | None:
        """What gives the answer. The whole network where nothing is set apart, as in those of timm."""
        return self.model.head if hasattr(self.model, 'head') else getattr(self.model, 'model', None)

    @property
    def _parts(self) -> dict[str, nn.Module]:
        """The heads of a head of several tasks by task; empty where there is one task."""
        return _leaves(self._head) if _tasks(self._head) else {}

    @property
    def num_classes(self) -> int | None:
        """That of the head."""
        return None if self._parts else _classes(self._head)

    @property
    def has_loss(self) -> bool:
        """That of the head."""
        return not _is_headless(self._head)

    def random_sample(
            self, size: tuple[int, int], generator: torch.Generator) -> DataSample | MultiTaskDataSample | None:
        """Return a sample with a label, or a value for each task; None where a student has no head to learn it."""
        if not self.has_loss:
            return None
        return _labelled(self._head, dict(img_shape=size, ori_shape=size), generator)

    def cannot_judge(self, dataset: object, student: Task) -> str | None:
        """Return why not, for a model without a head, and for one that gives something else than the student, too."""
        if _is_headless(self._head):
            return 'it has no head'
        reason = super().cannot_judge(dataset, student)
        if reason is None and isinstance(student, Classification) and self._answers != student._answers:
            reason = f'it gives {self._answers}, and the student {student._answers}'
        return reason

    @property
    def _answers(self) -> str:
        """What it tells of an image in words, and of how many classes where it has several tasks."""
        several = [
            f'{_kind(head)} of {_classes(head)} for "{name}"' if _classes(head) else f'{_kind(head)} for "{name}"'
            for name, head in sorted(self._parts.items())]
        return ', '.join(several) or _kind(self._head)

    def chance(self, classes: int, images: int) -> dict[str, float]:
        """Chance has three standard deviations of luck."""
        return {'accuracy/top1': 100 * (1 / classes + 3 * math.sqrt((1 - 1 / classes) / classes / images))}

    def graph(self) -> Graph | None:
        """From images to logits, those of each task apart."""
        if self._head is None:
            return None
        heads = self._parts or {'logits': self._head}
        outputs = {name: '(N, classes)' if _classes(head) else '(N, values)' for name, head in heads.items()}
        return Graph(Outputs(self.model, _logits), outputs, any_size=False)

    def loading(self, config: str, weights: str) -> str:
        """Return the line of mmpretrain."""
        return f"mmpretrain.get_model('{config}', pretrained='{weights}')"

    def draw(
            self, image: np.ndarray, sample: DataSample, metainfo: Mapping, truth: bool,
    ) -> tuple[np.ndarray, str] | None:
        """Return the image as it is; its caption are the labels."""
        caption = _caption(sample, 'gt_label' if truth else 'pred_label', dict(enumerate(metainfo.get('classes', ()))))
        return None if caption is None else (image, caption)


def _logits(given: Tensor | dict, images: Tensor) -> Tensor | tuple[Tensor, ...]:
    return tuple(tree_leaves(given)) if isinstance(given, dict) else given


def label_of(sample: DataSample) -> int:
    """Return the label of the ``sample`` of an image that has one."""
    return int(sample.gt_label)


def _is_headless(head: nn.Module | None) -> bool:
    # timm's networks have none where they are made for 0 classes.
    return head is None or getattr(head, 'num_classes', None) == 0


def _kind(head: nn.Module | None) -> str:
    if is_a(head, _SEVERAL):
        return 'several classes'
    if _classes(head):
        return 'one class'
    width = _width(head)
    return f'{width} number{"s" * (width > 1)}' if width else 'no class'


def _classes(head: nn.Module | None) -> int | None:
    # transformers has its number in a config; the CSRAClsHead does not tell.
    return (getattr(head, 'num_classes', None) or getattr(getattr(head, 'config', None), 'num_labels', None)
            or (_width(head) if is_a(head, _SEVERAL) else None))


def _width(head: nn.Module | None) -> int | None:
    """Return how many numbers the last layer of ``head`` gives; None where it has no layer."""
    layers = [] if head is None else [part for part in head.modules() if isinstance(part, nn.Linear | _ConvNd)]
    return getattr(layers[-1], 'out_features', None) or getattr(layers[-1], 'out_channels', None) if layers else None


def _tasks(head: nn.Module | None) -> Mapping[str, nn.Module]:
    return getattr(head, 'task_heads', {})


def _leaves(head: nn.Module) -> dict[str, nn.Module]:
    """Return the heads of one task that are inside ``head``, by their tasks as losses and metrics have them."""
    leaves = {}
    for name, part in _tasks(head).items():
        leaves |= {f'{name}_{inner}': leaf for inner, leaf in _leaves(part).items()} if _tasks(part) else {name: part}
    return leaves


def _labelled(
        head: nn.Module, metainfo: dict, generator: torch.Generator) -> DataSample | MultiTaskDataSample:
    """Return what ``head`` learns from: a label, several as scores, or, of no classes, the number 0 or 1; by task."""
    from mmpretrain.structures import DataSample, MultiTaskDataSample

    if _tasks(head):
        sample = MultiTaskDataSample(metainfo=metainfo)
        for name, part in _tasks(head).items():
            sample.set_field(_labelled(part, metainfo, generator), name)
        return sample
    sample, classes = DataSample(metainfo=metainfo), _classes(head) or 2
    if is_a(head, _SEVERAL):
        return sample.set_gt_score(torch.randint(0, 2, (classes, ), generator=generator).float())
    return sample.set_gt_label(int(torch.randint(0, classes, (), generator=generator)))


def _caption(sample: BaseDataElement, field: str, names: Mapping[int, str]) -> str | None:
    """Return the labels of a sample in words, those of several tasks a line each; None where there are none."""
    label = sample.get(field)
    if label is not None:
        return ', '.join(str(names.get(i, i)) for i in label.tolist()) or 'none'
    parts = sorted((name, part) for name, part in sample.items() if isinstance(part, BaseDataElement))
    captions = {name: _caption(part, field, {}) for name, part in parts}
    return '\n'.join(f'{name}: {caption or "not known"}' for name, caption in captions.items()) or None
