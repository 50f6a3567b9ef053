"""The teacher transform: margin ReLU, and the margin in closed form."""

import math

import torch
from mmengine import dist
from torch import Tensor, nn

from overhaul.registry import MODELS, counted

# Below this share of negative responses the official code gives the truncated mean up for -3 sigma.
_LEAST_NEGATIVE_SHARE = 1e-3

# The margin of all channels, by source; that of data is not known yet.
_SAME_MARGIN = {'data': math.nan, 'zero': 0.0, 'none': -math.inf}


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
    # A NaN in z would compare false below, and a broken batch norm get a margin that looks sound.
    z = (mean / deviation).nan_to_num(nan=0.0)
    share = torch.special.ndtr(-z)
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    truncated_mean = mean - deviation * density / share
    margin = torch.where(share > _LEAST_NEGATIVE_SHARE, truncated_mean, -3 * deviation)
    return margin.to(weight.dtype)


@MODELS.register_module()
class MarginReLU(nn.Module):
    """Margin ReLU ``max(T, m)`` on a teacher feature (N, C, H, W), with one margin ``m <= 0`` per channel.

    Keeps the positive responses as they are and lifts all others to the channel's mean negative response (paper,
    section 3.1). The margins are the buffer ``margin`` (C,), NaN as long as they are not known.

    Args:
        channels: C.
        norm: The teacher's batch norm before the tap, its weights loaded; None where there is none.
        source: ``'batch_norm'`` takes the margins from ``norm`` in closed form, see :func:`margin_from_batch_norm`.
            ``'data'`` leaves them to be estimated before training by ``overhaul.CalibrateHook``, as the
            mean of the negative responses. ``'auto'``, the default, takes the former where there is a ``norm``.
            To compare with: ``'zero'`` makes it a plain ReLU, ``'none'`` leaves the feature as it is.

    Raises:
        ValueError: If the ``source`` is unknown, or the batch norm that it needs is missing.
    """

    def __init__(
            self, channels: int, norm: nn.modules.batchnorm._BatchNorm | None = None, source: str = 'auto') -> None:
        super().__init__()
        if source not in ('auto', 'batch_norm', *_SAME_MARGIN):
            raise ValueError(
                f'The source of the margins is "auto", "batch_norm", "data", "zero" or "none", not {source!r}.')
        if source == 'auto':
            source = 'data' if norm is None else 'batch_norm'
        if source == 'batch_norm' and norm is None:
            raise ValueError(
                f'No batch norm of {counted(channels, "channel")} feeds the teacher tap, so there is none to take '
                'the margins from. Name one with margin_norm="path.of.batch_norm" in that tap, or estimate the '
                'margins: margin=dict(type="MarginReLU", source="data").')
        if source in _SAME_MARGIN:
            margin = torch.full((channels, ), _SAME_MARGIN[source])
        else:
            weight = torch.ones(channels) if norm.weight is None else norm.weight
            bias = torch.zeros(channels) if norm.bias is None else norm.bias
            margin = margin_from_batch_norm(weight, bias)
        self.register_buffer('margin', margin)

    @property
    def known(self) -> bool:
        """Whether the margins are there, and need not be estimated."""
        return not self.margin.isnan().any().item()

    def forward(self, feature: Tensor) -> Tensor:
        """Return ``max(feature, margin)``, of the same shape and dtype."""
        return torch.maximum(feature, self.margin.to(feature.dtype).view(-1, 1, 1))


class NegativeMean:
    """The mean negative response of each channel over many features (N, C, H, W), on all processes together."""

    def __init__(self) -> None:
        self._sum = self._count = 0

    def add(self, feature: Tensor) -> None:
        """Take a feature in."""
        self._sum = self._sum + feature.double().clamp(max=0).sum((0, 2, 3))
        self._count = self._count + (feature < 0).sum((0, 2, 3))

    def result(self) -> Tensor:
        """Return the means (C,) in float64; 0 for a channel without a negative response."""
        total, count = self._sum, self._count
        dist.all_reduce(total)
        dist.all_reduce(count)
        return total / count.clamp(min=1)
