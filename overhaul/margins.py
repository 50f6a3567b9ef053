"""The teacher transform: margin ReLU, and the margin in closed form."""

import math

import torch
from torch import Tensor, nn

from overhaul.registry import MODELS

# Below this share of negative responses the official code gives the truncated mean up for -3 sigma.
_LEAST_NEGATIVE_SHARE = 1e-3


def margin_from_batch_norm(weight: Tensor, bias: Tensor) -> Tensor:
    """Margins (C,) from the ``weight`` (C,) and ``bias`` (C,) of a batch norm: each channel's mean negative response.

    A batch norm's output is taken as normal with mean ``bias`` and deviation ``|weight|`` (paper, section 3.1), so with
    ``z = bias / |weight|`` the share of negative responses is ``Phi(-z)``, and

    * ``margin = bias - |weight| * phi(z) / Phi(-z)`` where that share is above 0.001,
    * ``margin = -3 |weight|`` elsewhere, as in the official code. The two branches do not meet.

    A weight of exactly 0, on which the official code divides by zero, gets the limit: ``bias`` where that is negative,
    else 0. Computed in float64 and without the running statistics.

    Args:
        weight: Scale of the batch norm, any sign.
        bias: Shift of the batch norm.

    Returns:
        Margins in pre-activation units, all <= 0, in the dtype of ``weight``.
    """
    mean, deviation = bias.detach().double(), weight.detach().double().abs()
    # 0 / 0 for a constant channel at 0 would be NaN; any z will do there, since it is multiplied by 0.
    z = (mean / deviation).nan_to_num(nan=0.0)
    share = torch.special.ndtr(-z)
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    truncated_mean = mean - deviation * density / share
    margin = torch.where(share > _LEAST_NEGATIVE_SHARE, truncated_mean, -3 * deviation)
    return margin.to(weight.dtype)


@MODELS.register_module()
class MarginReLU(nn.Module):
    """Margin ReLU ``max(T, m)`` on a teacher feature (N, C, H, W), with one margin ``m <= 0`` per channel.

    Keeps the positive responses as they are and lifts all others to the channel's mean negative response
    (paper, section 3.1). The margins are the buffer ``margin`` (C,), computed once from the batch norm that feeds the
    tap, see :func:`margin_from_batch_norm`; so the teacher's weights must be loaded before.

    Args:
        norm: The teacher's batch norm before the tap.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        weight = torch.ones(norm.num_features) if norm.weight is None else norm.weight
        bias = torch.zeros(norm.num_features) if norm.bias is None else norm.bias
        self.register_buffer('margin', margin_from_batch_norm(weight, bias))

    def forward(self, feature: Tensor) -> Tensor:
        """Return ``max(feature, margin)``, of the same shape."""
        return torch.maximum(feature, self.margin.view(-1, 1, 1))
