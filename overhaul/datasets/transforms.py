"""Transforms that mmcv, mmpretrain and mmseg lack."""

from mmcv.transforms import BaseTransform

from overhaul.registry import TRANSFORMS


@TRANSFORMS.register_module()
class EvaluateAtInputSize(BaseTransform):
    """Declares the present size of the image (H, W, C) its original one, so that mmseg predicts (H, W) labels.

    mmseg resizes predictions back to the size that the image file has. The official VOC script does not: it measures
    mIoU after the resize of the input, on masks resized likewise, so load the annotations before the resize and put
    this transform after it.
    """

    def transform(self, results: dict) -> dict:
        """Set ``ori_shape`` to ``img_shape``."""
        results['ori_shape'] = results['img_shape']
        return results
