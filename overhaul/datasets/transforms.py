"""Transforms that mmcv, mmpretrain and mmseg lack, and what those of a dataset do."""

from mmcv.transforms import BaseTransform, LoadImageFromFile

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


def reads_bgr(dataset: object) -> bool:
    """Whether a ``dataset``, or one in it, reads its images of three channels as BGR: mmcv's transform does.

    TIFF files are the exception, which it gives as they are where ``tifffile`` reads them.
    """
    inside = [*(getattr(dataset, 'datasets', None) or ()), getattr(dataset, 'dataset', None)]
    transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    return any(reads_bgr(part) for part in inside if part is not None) or any(
        isinstance(transform, LoadImageFromFile) and transform.imdecode_backend != 'tifffile'
        for transform in transforms)
