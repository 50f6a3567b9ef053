"""Action recognition: the models of mmaction2 that tell what is done in a clip by looking at single images of it."""

from __future__ import annotations

import math

import torch
from mmengine.structures import BaseDataElement
from torch import nn

from overhaul.registry import TASKS
from overhaul.tasks.results import Quote
from overhaul.tasks.task import Graph, Outputs, Task, is_a

_IMAGES = 3  # of a clip, for a backbone that takes any number


@TASKS.register_module(name='action')
class Action(Task):
    """2D recognizers of mmaction2, whose backbone takes the images of all clips one by one. Answers: :class:`Task`."""

    quotes = {'acc/top1': Quote('% error', complement=True, factor=100)}

    @classmethod
    def takes(cls, model: nn.Module) -> bool:
        """Whether it is such a recognizer."""
        return is_a(model, 'mmaction.models.recognizers.recognizer2d.Recognizer2D')

    def input_shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Return that of the images of a clip, (images, C, H, W)."""
        return (getattr(self.model.backbone, 'num_segments', _IMAGES), *super().input_shape(size))

    @property
    def num_classes(self) -> int | None:
        """That of the head."""
        return getattr(getattr(self.model, 'cls_head', None), 'num_classes', None)

    @property
    def has_loss(self) -> bool:
        """Whether there is a head."""
        return self.num_classes is not None

    def random_sample(self, size: tuple[int, int], generator: torch.Generator) -> BaseDataElement | None:
        """Return a sample with a label, or several, as scores; None where there is no head to learn it."""
        if not self.has_loss:
            return None
        from mmaction.structures import ActionDataSample

        sample = ActionDataSample(metainfo=dict(img_shape=size))
        if self.model.cls_head.multi_class:
            return sample.set_gt_label(torch.randint(0, 2, (self.num_classes, ), generator=generator).float())
        return sample.set_gt_label(int(torch.randint(0, self.num_classes, (), generator=generator)))

    def cannot_judge(self, dataset: object, student: Task) -> str | None:
        """Return why not, for a model without a head, too."""
        return super().cannot_judge(dataset, student) if self.has_loss else 'it has no head'

    def chance(self, classes: int, images: int) -> dict[str, float]:
        """Chance has three standard deviations of luck."""
        return {'acc/top1': 1 / classes + 3 * math.sqrt((1 - 1 / classes) / classes / images)}

    def graph(self) -> Graph | None:
        """From the images of clips to the scores of the classes."""
        if not self.has_loss:
            return None
        scores = Outputs(self.model, lambda given, images: self.model.cls_head(given, num_segs=images.shape[1]))
        return Graph(scores, {'scores': '(N, classes)'}, any_size=False)

    def loading(self, config: str, weights: str) -> str:
        """Return the line of mmaction2."""
        return f"mmaction.apis.init_recognizer('{config}', '{weights}')"
