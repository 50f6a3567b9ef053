"""Segmentation: the models of mmseg that give each pixel a class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from mmengine.structures import PixelData
from torch import Tensor, nn

from overhaul.registry import TASKS
from overhaul.tasks.results import Quote
from overhaul.tasks.task import Graph, Outputs, Task, is_a

if TYPE_CHECKING:
    from mmseg.structures import SegDataSample


@TASKS.register_module(name='segmentation')
class Segmentation(Task):
    """Segmentors of mmseg, with one decode head or several that work one after another. Answers: see :class:`Task`."""

    quotes = {
        'mIoU': Quote('% mIoU'), 'mDice': Quote('% Dice'), 'mFscore': Quote('% F-score'), 'aAcc': Quote('% of pixels')}

    height_first = ('mmseg.RandomCrop', )

    for_training = ('auxiliary_head', )

    stand_ins = {'mmseg.datasets.transforms.loading.LoadAnnotations': dict(type='overhaul.BlankMask')}

    @classmethod
    def takes(cls, model: nn.Module) -> bool:
        """Whether it is a segmentor of mmseg; those that estimate depth have no classes and are none."""
        return is_a(model, 'mmseg.models.segmentors.base.BaseSegmentor') and not is_a(
            model, 'mmseg.models.segmentors.depth_estimator.DepthEstimator')

    @property
    def num_classes(self) -> int | None:
        """That of the last decode head."""
        return getattr(self.model, 'num_classes', None)

    def random_sample(self, size: tuple[int, int], generator: torch.Generator) -> SegDataSample | None:
        """Return a sample with a mask (1, H, W), and the map of edges that some heads learn; None without classes."""
        if self.num_classes is None:
            return None
        from mmseg.structures import SegDataSample

        mask, edges = (torch.randint(0, most, (1, *size), generator=generator) for most in (self.num_classes, 2))
        return SegDataSample(
            gt_sem_seg=PixelData(data=mask), gt_edge_map=PixelData(data=edges),
            metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size))

    def cut_loss(self, cut: Callable[[object], object], taps: Sequence[str]) -> None:
        """As of any model; or, where a tap is in a head, between the logits of all heads and their losses."""
        if not any('head' in path.partition('.')[0] for path in taps):
            super().cut_loss(cut, taps)
            return
        for name in ('decode_head', 'auxiliary_head'):
            head = getattr(self.model, name, None)
            for one in head if isinstance(head, nn.ModuleList) else filter(None, [head]):
                one.loss_by_feat = partial(_cut_logits, one.loss_by_feat, cut)

    def chance(self, classes: int, images: int) -> dict[str, float]:
        """An answer that is always the same has a mIoU of at most ``1 / classes``."""
        return {'mIoU': 100 / classes}

    def graph(self) -> Graph:
        """From images to logits of their size, in ``mode='whole'``."""
        return Graph(Outputs(self.model, self._logits), {'logits': '(N, classes, H, W)'}, any_size=True)

    def _logits(self, given: Tensor | Sequence, images: Tensor) -> Tensor:
        logits = given if isinstance(given, Tensor) else given[0]  # DAHead and EncHead give what else they learn from
        return nn.functional.interpolate(
            logits, size=images.shape[2:], mode='bilinear', align_corners=getattr(self.model, 'align_corners', False))

    def loading(self, config: str, weights: str) -> str:
        """Return the line of mmseg."""
        return f"mmseg.apis.init_model('{config}', '{weights}')"

    def draw(
            self, image: np.ndarray, sample: SegDataSample, metainfo: Mapping, truth: bool,
    ) -> tuple[np.ndarray, str] | None:
        """Return the mask in the colours of its classes, over the image where it has no class.

        Raises:
            ValueError: If the dataset has no palette.
        """
        from mmseg.visualization import SegLocalVisualizer

        if truth and 'gt_sem_seg' not in sample:
            return image, 'no mask'
        if metainfo.get('palette') is None:
            raise ValueError(
                'Predictions of a segmentation are drawn in the colours of their classes, and this dataset has no '
                'palette. Give it one in its metainfo.')
        visualizer = SegLocalVisualizer(alpha=1)
        visualizer.dataset_meta = metainfo
        visualizer.add_datasample('', image, sample, with_labels=False, draw_gt=truth, draw_pred=not truth)
        return visualizer.get_image(), ''

    def legend(
            self, samples: Sequence[SegDataSample], metainfo: Mapping) -> list[tuple[str, tuple[float, float, float]]]:
        """Return the classes that are seen."""
        masks = [sample.get(name) for sample in samples for name in ('gt_sem_seg', 'pred_sem_seg')]
        seen = {label for mask in masks if mask is not None for label in mask.data.unique().tolist()}
        return [(name, tuple(part / 255 for part in colour)) for label, (name, colour) in
                enumerate(zip(metainfo['classes'], metainfo['palette'])) if label in seen]


def _cut_logits(loss: Callable[..., dict], cut: Callable[[object], object], logits: object, *rest: object) -> dict:
    return loss(cut(logits), *rest)
