"""The cross entropy of the VOC recipe: divided once more by the number of images."""

from mmengine.dist import get_world_size
from mmseg.models.losses import CrossEntropyLoss
from torch import Tensor

from overhaul.registry import MODELS


@MODELS.register_module()
class CrossEntropyPerImage(CrossEntropyLoss):
    """Cross entropy of (N, C, H, W) logits, averaged over the labelled pixels, then divided by the images of the step.

    The images of the step are N times the number of processes. The official VOC script divides its mean cross entropy
    by the whole minibatch, so at 12 images the task weighs a twelfth of what it would elsewhere, against a distillation
    term that is a plain mean over images. DistributedDataParallel averages gradients over the processes, and dividing
    by the world size as well keeps that proportion, and the gradient, the same however the images are spread over GPUs.
    Follows the official code; the paper does not mention the division.

    Args:
        loss_weight (float): Factor on the loss. Defaults to 1.
        loss_name (str): Name in the log. Must begin with ``loss_`` to be part of the total. Defaults to ``loss_ce``.
    """

    def __init__(self, loss_weight: float = 1.0, loss_name: str = 'loss_ce') -> None:
        super().__init__(avg_non_ignore=True, loss_weight=loss_weight, loss_name=loss_name)

    def forward(
            self, cls_score: Tensor, label: Tensor, weight: Tensor | None = None, ignore_index: int = 255) -> Tensor:
        """Loss () of logits (N, C, H, W) and labels (N, H, W); 0 where every pixel is ``ignore_index``."""
        loss = super().forward(cls_score, label, weight=weight, ignore_index=ignore_index)
        return loss / (len(cls_score) * get_world_size())
