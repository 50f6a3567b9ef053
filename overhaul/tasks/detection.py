"""Detection: the models of mmdet that find boxes, and the masks of what is in them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor, nn

from overhaul.registry import TASKS
from overhaul.tasks.boxes import other_truth, wrong_boxes, wrong_in_file
from overhaul.tasks.results import Quote
from overhaul.tasks.task import Graph, Outputs, Task, classes_of, is_a

_LEAST_SCORE = 0.3  # of a box that is drawn


@TASKS.register_module(name='detection')
class Detection(Task):
    """Detectors of mmdet of one stage, of two, and with queries. Answers: see :class:`Task`."""

    quotes = {
        'coco/bbox_mAP': Quote('% box mAP', factor=100), 'coco/segm_mAP': Quote('% mask mAP', factor=100),
        'coco/bbox_mAP_50': Quote('% box mAP50', factor=100), 'pascal_voc/mAP': Quote('% mAP', factor=100)}

    # By default an image without a box is given up.
    stand_ins = {
        'mmdet.datasets.transforms.transforms.RandomCrop': dict(allow_negative_crop=True),
        'mmdet.datasets.transforms.transforms.Albu': dict(skip_img_without_anno=False)}

    truth_files = ('ann_file', )

    @classmethod
    def takes(cls, model: nn.Module) -> bool:
        """Whether it is a detector of mmdet."""
        return is_a(model, 'mmdet.models.detectors.base.BaseDetector')

    @property
    def channels(self) -> int:
        """As of any model, but behind a Focus, which lays four pixels over each other, the first convolution has more.

        YOLOX has one, and a data preprocessor without a mean.
        """
        channels = super().channels
        focused = any(is_a(module, 'mmdet.models.backbones.csp_darknet.Focus') for module in self.model.modules())
        return channels // 4 if focused and getattr(self.model.data_preprocessor, 'mean', None) is None else channels

    @property
    def num_classes(self) -> int | None:
        """That of the last of its heads: a head of proposals, which comes before, has none of its own."""
        return self._last('num_classes')

    def _last(self, name: str) -> int | None:
        numbers = [getattr(module, name, None) for module in self.model.modules()]
        return next((number for number in reversed(numbers) if isinstance(number, int) and number > 0), None)

    def random_sample(self, size: tuple[int, int], generator: torch.Generator) -> BaseDataElement | None:
        """Return a sample with two boxes, and masks where the model learns them; None where it knows no classes.

        It has what the pipelines and the data preprocessors of mmdet tell of an image.
        """
        if self.num_classes is None:
            return None
        from mmdet.structures import DetDataSample
        from mmdet.structures.mask import BitmapMasks

        # The upper left corner in the first half of the image, the lower right one in the second.
        sides = torch.tensor([size[1], size[0]])
        corners = torch.rand(2, 2, 2, generator=generator) * 0.4 + torch.tensor([[0.05], [0.55]])
        boxes = (corners * sides).flatten(1)
        labels = torch.randint(0, self._last('num_things_classes') or self.num_classes, (2, ), generator=generator)
        masks = np.zeros((2, *size), np.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.long().tolist()):
            mask[top:bottom + 1, left:right + 1] = 1
        # What evaluators compare with where they read no file.
        instances = [
            dict(bbox=[left, top, right, bottom], bbox_label=label, ignore_flag=0,
                 mask=[[left, top, right, top, right, bottom, left, bottom]])
            for (left, top, right, bottom), label in zip(boxes.tolist(), labels.tolist())]
        shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), size)
        sample = DetDataSample(metainfo=dict(
            img_id=int(torch.randint(2**31, (), generator=generator)), img_path='', instances=instances,
            scale_factor=(1.0, 1.0), border=(0, size[0], 0, size[1]), **shapes))
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
        sample.ignored_instances = InstanceData(bboxes=boxes[:0], labels=labels[:0])
        if self._gives_masks:
            sample.gt_instances.masks = BitmapMasks(masks, *size)
        if self._last('num_stuff_classes'):
            sample.gt_sem_seg = PixelData(sem_seg=torch.zeros(1, *size, dtype=torch.long))
        return sample

    def cannot_learn_from(self, dataset: object) -> str | None:
        """Return why not, also of data without a box, with one outside its image, or of other classes than theirs.

        mmdet would train on them, without a word and with boxes or labels left out or moved.
        """
        for part in _parts(dataset):
            reason = wrong_in_file(part) or wrong_boxes(part)
            if reason is not None:
                return f'The training data "{getattr(part, "ann_file", "")}" are not what they should be: {reason}'
        return super().cannot_learn_from(dataset)

    def cannot_be_judged_on(
            self, dataset: object, trained_on: Sequence[str] = (), metrics: Sequence[object] = ()) -> str | None:
        """Return why not, of data of other classes than theirs, or of fewer: mmdet's evaluator would fail at a box.

        And where it reads another file than the data: it would fail, or compare with the boxes of other images.
        """
        own, texts = self.num_classes, hasattr(self.model, 'language_model')  # whose classes are in the samples
        for part in _parts(dataset):
            given, reason = classes_of(part), wrong_in_file(part)
            if reason is None and not texts and own and given and own > given and hasattr(part, 'cat_ids'):
                reason = (f'they have {given} classes, and the {type(self.model).__name__} has num_classes={own}, so '
                          'that it finds boxes of classes that they do not know. Give its head as many.')
            if reason is not None:
                return f'The data "{getattr(part, "ann_file", "")}" to validate or test on cannot be used: {reason}'
        reason = other_truth(dataset, metrics)
        if reason is not None:
            return f'The data to validate or test on cannot be used: {reason}'
        return super().cannot_be_judged_on(dataset, trained_on, metrics)

    def cannot_judge(self, dataset: object, student: Task) -> str | None:
        """Return why not, for a detector that gives no masks where the student does, too."""
        reason = super().cannot_judge(dataset, student)
        if reason is None and student._gives_masks and not self._gives_masks:
            reason = 'it gives boxes, and the student masks as well'
        return reason

    @property
    def _gives_masks(self) -> bool:
        return self.model.with_mask or hasattr(self.model, 'panoptic_head') or is_a(
            getattr(self.model, 'bbox_head', None), 'mmdet.models.dense_heads.rtmdet_ins_head.RTMDetInsHead')

    def chance(self, classes: int, images: int) -> dict[str, float]:
        """A mAP is between 0 and 1, and of boxes at random as good as 0."""
        return dict.fromkeys(self.quotes, 0.001)

    def graph(self) -> Graph | None:
        """From images to all that the head of a detector of one stage gives, level by level; None for others.

        What becomes boxes of that, and which of them stay, is not in it.
        """
        head = getattr(self.model, 'bbox_head', None)
        levels = getattr(getattr(head, 'prior_generator', None), 'num_levels', None)
        if levels is None or not is_a(self.model, 'mmdet.models.detectors.single_stage.SingleStageDetector'):
            return None
        # What a head gives is what its loss takes, until the truth comes.
        names = list(inspect.signature(head.loss_by_feat).parameters)
        names = names[:names.index('batch_gt_instances')]
        outputs = {f'{name}_{level}': '(N, C, h, w)' for name in names for level in range(levels)}
        return Graph(Outputs(self.model, _levels), outputs, any_size=False)

    def loading(self, config: str, weights: str) -> str:
        """Return the line of mmdet."""
        return f"mmdet.apis.init_detector('{config}', '{weights}')"

    def draw(
            self, image: np.ndarray, sample: BaseDataElement, metainfo: Mapping, truth: bool,
    ) -> tuple[np.ndarray, str] | None:
        """Return the image in its own size, with boxes and masks in the colours of their classes."""
        import mmcv
        from mmengine.visualization import Visualizer

        found = _drawn(sample, truth)
        if found is None:
            return image, 'no boxes'
        palette = _palette(metainfo, self.num_classes)
        colours = [palette[label] for label in found.labels.tolist()]
        height, width = sample.ori_shape  # boxes and masks are in the coordinates of the file
        visualizer = Visualizer()
        visualizer.set_image(mmcv.imresize(image, (width, height)))
        if colours and 'masks' in found:
            visualizer.draw_binary_masks(_bitmaps(found.masks), colours, alphas=0.5)
        if colours:
            visualizer.draw_bboxes(found.bboxes, edge_colors=colours, line_widths=max(height, width) / 60)
        return visualizer.get_image(), ''

    def legend(
            self, samples: Sequence[BaseDataElement], metainfo: Mapping,
    ) -> list[tuple[str, tuple[float, float, float]]]:
        """Return the classes that are seen."""
        drawn = [_drawn(sample, truth) for sample in samples for truth in (True, False)]
        seen = {label for found in drawn if found is not None for label in found.labels.tolist()}
        palette, names = _palette(metainfo, self.num_classes), metainfo.get('classes', ())
        return [(str(dict(enumerate(names)).get(label, label)), tuple(part / 255 for part in palette[label]))
                for label in sorted(seen)]


def _levels(given: Sequence[Sequence[Tensor]], images: Tensor) -> tuple[Tensor, ...]:
    return tuple(level for output in given for level in ([output] if isinstance(output, Tensor) else output))


def _parts(dataset: object) -> list[object]:
    """Return the datasets that others around them repeat, join or mix."""
    inside = [part for part in [*(getattr(dataset, 'datasets', None) or ()), getattr(dataset, 'dataset', None)]
              if part is not None]  # an empty one is as good as False
    return [part for each in inside for part in _parts(each)] if inside else [dataset]


def _drawn(sample: BaseDataElement, truth: bool) -> InstanceData | None:
    """Return the boxes of the truth, or those of the prediction that it is sure of; None where there are none."""
    found = sample.get('gt_instances' if truth else 'pred_instances')
    return found if found is None or truth else found[found.scores >= _LEAST_SCORE]


def _palette(metainfo: Mapping, classes: int) -> list[tuple[int, int, int]]:
    from mmdet.visualization.palette import get_palette

    palette = metainfo.get('palette')
    colours = get_palette(palette if palette is not None and len(palette) >= classes else None, classes)
    return [tuple(colour) for colour in colours]  # a visualizer takes no lists


def _bitmaps(masks: object) -> Tensor:
    """Return masks (N, H, W), of the truth or of a prediction."""
    return masks if isinstance(masks, Tensor) else torch.as_tensor(masks.to_ndarray(), dtype=torch.bool)
