"""Classification: the models of mmpretrain that give an image a label, several, a number, or several of these."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from overhaul.registry import TASKS
from overhaul.tasks.results import Quote
from overhaul.tasks.task import Graph, Task, is_a

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

    @classmethod
    def takes(cls, model: nn.Module) -> bool:
        """Whether it is a classifier of mmpretrain."""
        return is_a(model, 'mmpretrain.models.classifiers.base.BaseClassifier')

    @property
    def _head(self) -> nn.Module | None:
        """What gives the answer. The whole network where nothing is set apart, as in those of timm."""
        return self.model.head if hasattr(self.model, 'head') else getattr(self.model, 'model', None)

    @property
    def _parts(self) -> dict[str, nn.Module]:
        """The heads of a head of several tasks by task; empty where there is one task."""
        return dict(getattr(self._head, 'task_heads', {}))

    @property
    def num_classes(self) -> int | None:
        """That of the head."""
        return None if self._parts else _classes(self._head)

    def random_sample(self, size: tuple[int, int], generator: torch.Generator) -> DataSample | MultiTaskDataSample:
        """Return a sample with a label, or a value for each task."""
        from mmpretrain.structures import DataSample, MultiTaskDataSample

        metainfo = dict(img_shape=size, ori_shape=size)
        if not self._parts:
            return _labelled(DataSample(metainfo=metainfo), self._head, generator)
        sample = MultiTaskDataSample(metainfo=metainfo)
        for name, head in self._parts.items():
            sample.set_field(_labelled(DataSample(metainfo=metainfo), head, generator), name)
        return sample

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
        several = [f'{_kind(head)} of {_classes(head)} for "{name}"' for name, head in self._parts.items()]
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
        return Graph(_Logits(self.model), outputs, any_size=False)

    def loading(self, config: str, weights: str) -> str:
        """Return the line of mmpretrain."""
        return f"mmpretrain.get_model('{config}', pretrained='{weights}')"

    def draw(
            self, image: np.ndarray, sample: DataSample, metainfo: Mapping, truth: bool,
    ) -> tuple[np.ndarray, str] | None:
        """Return the image as it is; its caption are the labels."""
        label = sample.get('gt_label' if truth else 'pred_label')
        if label is None:
            return None
        names = dict(enumerate(metainfo.get('classes', ())))
        return image, ', '.join(str(names.get(i, i)) for i in label.tolist()) or 'none'


class _Logits(nn.Module):
    """From normalised images (N, C, H, W) to logits (N, classes), several of them as a tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        logits = self.model(images, mode='tensor')
        return tuple(logits.values()) if isinstance(logits, dict) else logits


def _is_headless(head: nn.Module | None) -> bool:
    # timm's networks have none where they are made for 0 classes.
    return head is None or getattr(head, 'num_classes', None) == 0


def _kind(head: nn.Module | None) -> str:
    if is_a(head, _SEVERAL):
        return 'several classes'
    return 'one class' if _classes(head) else 'no class'


def _classes(head: nn.Module | None) -> int | None:
    # transformers has its number in a config.
    return getattr(head, 'num_classes', None) or getattr(getattr(head, 'config', None), 'num_labels', None)


def _labelled(sample: DataSample, head: nn.Module, generator: torch.Generator) -> DataSample:
    """Set what the loss of ``head`` compares with: a label, several as scores, or, of no classes, the number 0 or 1."""
    classes = _classes(head) or 2
    if is_a(head, _SEVERAL):
        return sample.set_gt_score(torch.randint(0, 2, (classes, ), generator=generator).float())
    return sample.set_gt_label(int(torch.randint(0, classes, (), generator=generator)))
