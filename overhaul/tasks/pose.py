"""Pose: the models of mmpose that find the keypoints of what is in a box, by a heatmap for each."""

from __future__ import annotations

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import nn
from torch.nn import functional

from overhaul.registry import TASKS
from overhaul.tasks.results import Quote
from overhaul.tasks.task import Graph, Outputs, Task, is_a


@TASKS.register_module(name='pose')
class Pose(Task):
    """Top-down pose estimators of mmpose with a head of heatmaps. Answers: see :class:`Task`."""

    quotes = {'coco/AP': Quote('% AP', factor=100), 'PCK': Quote('% PCK', factor=100), 'PCKh': Quote('% PCKh')}
    truth_files = ('ann_file', )

    @classmethod
    def takes(cls, model: nn.Module) -> bool:
        """Whether it is such a pose estimator."""
        return is_a(model, 'mmpose.models.pose_estimators.topdown.TopdownPoseEstimator') and is_a(
            getattr(model, 'head', None), 'mmpose.models.heads.heatmap_heads.heatmap_head.HeatmapHead')

    @property
    def _keypoints(self) -> int:
        return self.model.head.out_channels

    def random_sample(self, size: tuple[int, int], generator: torch.Generator) -> BaseDataElement | None:
        """Return a sample with keypoints in a box as large as the image; None for a head without a codec of its own."""
        codec = self.model.head.decoder
        if not hasattr(codec, 'heatmap_size'):
            return None
        from mmpose.structures import PoseDataSample

        # These are (W, H). The heatmaps of an image of another size than the codec's are as much smaller than it.
        sides, places = np.array(size[::-1]), torch.rand(1, self._keypoints, 2, generator=generator).numpy()
        box, visible = np.array([[0, 0, *sides]], np.float32), np.ones((1, self._keypoints), np.float32)
        encoded = codec.encode(places * codec.input_size, visible)
        heatmaps = functional.interpolate(
            torch.from_numpy(encoded['heatmaps'])[None],
            tuple(np.ceil(sides * codec.heatmap_size / codec.input_size).astype(int)[::-1].tolist()))[0]
        keypoints = places * sides
        number = int(torch.randint(2**31, (), generator=generator))
        annotation = dict(
            id=number, image_id=number, category_id=1, iscrowd=0, bbox=box[0].tolist(), area=float(sides.prod()),
            num_keypoints=self._keypoints,
            keypoints=np.concatenate([keypoints, 2 * visible[..., None]], -1).flatten().tolist())
        sample = PoseDataSample(metainfo=dict(
            id=number, img_id=number, img_path='', category_id=1, img_shape=size, ori_shape=size, input_size=sides,
            input_center=sides / 2, input_scale=sides, raw_ann_info=annotation,
            flip_indices=list(range(self._keypoints))))
        sample.gt_instances = InstanceData(
            bboxes=box, bbox_scores=np.ones(1, np.float32), bbox_scales=box[:, 2:], keypoints=keypoints,
            keypoints_visible=visible, head_size=box[:, 2:] / 2)
        sample.gt_instance_labels = InstanceData(keypoint_weights=torch.from_numpy(encoded['keypoint_weights']))
        sample.gt_fields = PixelData(heatmaps=heatmaps)
        return sample

    @property
    def random_metainfo(self) -> dict:
        """Keypoints of one kind of thing, as the metrics of mmpose want to know them."""
        count = self._keypoints
        return dict(
            dataset_name='random', CLASSES=[dict(id=1, name='thing')], num_keypoints=count,
            sigmas=np.full(count, 0.05), flip_indices=list(range(count)))

    def cannot_learn_from(self, dataset: object) -> str | None:
        """Return why not, of data with another number of keypoints."""
        given = getattr(dataset, 'metainfo', {}).get('num_keypoints', self._keypoints)
        return None if given == self._keypoints else (
            f'The head of the {type(self.model).__name__} has out_channels={self._keypoints}, and the training data '
            f'have {given} keypoints. Give it as many.')

    def cannot_judge(self, dataset: object, student: Task) -> str | None:
        """Return why not, for a teacher that finds another number of keypoints, too."""
        reason = super().cannot_judge(dataset, student)
        if reason is None and self._keypoints != student._keypoints:
            reason = f'it finds {self._keypoints} keypoints, and the student {student._keypoints}'
        return reason

    def graph(self) -> Graph:
        """From images to heatmaps; what finds the keypoints in them is not in it."""
        return Graph(Outputs(self.model), {'heatmaps': '(N, keypoints, h, w)'}, any_size=False)

    def loading(self, config: str, weights: str) -> str:
        """Return the line of mmpose."""
        return f"mmpose.apis.init_model('{config}', '{weights}')"
