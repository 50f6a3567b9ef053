"""Wide residual network for 32 x 32 images (Zagoruyko and Komodakis, arXiv 1605.07146)."""

from collections.abc import Sequence

from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import Tensor, nn

from overhaul.models.backbones.arguments import blocks_per_stage, check_out_indices, feature_maps
from overhaul.registry import MODELS


class WideBlock(nn.Module):
    """Pre-activation residual block, (N, in_channels, H, W) -> (N, channels, H / stride, W / stride).

    Where the channels change, the shortcut is a 1x1 convolution of the *activated* input; elsewhere it is the raw one.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.relu = nn.ReLU()
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False) if in_channels != channels else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both branches, which has no activation."""
        activated = self.relu(self.bn1(x))
        residual = self.conv2(self.relu(self.bn2(self.conv1(activated))))
        return residual + (x if self.shortcut is None else self.shortcut(activated))


@MODELS.register_module()
class WideResNet(BaseBackbone):
    """WRN-depth-widen_factor, (N, in_channels, H, W) -> feature maps of up to three stages.

    With w the widen factor, they are (N, 16w, H, W), (N, 32w, H/2, W/2) and (N, 64w, H/4, W/4). The last one has gone
    through the final batch norm and ReLU; the two others are the raw sums that leave their stage. As each stage begins
    with batch norm and ReLU, the feature just before the ReLU that follows stage 1 is the output of ``block2.0.bn1``.
    Follows the official code of the overhaul paper.

    Args:
        depth (int): 6n + 4 layers, n blocks in each stage: 10, 16, 22, 28, 40, ...
        widen_factor (int): Factor on the channels 16, 32, 64 of the stages.
        out_indices (Sequence[int]): Stages, of 0 to 2, whose feature maps are returned. Defaults to ``(2, )``.
        in_channels (int): Channels of the image. Defaults to 3.
        init_cfg (dict | list[dict] | None): By default, convolutions are normal with variance 2 / fan-out.

    Raises:
        ValueError: If ``depth``, ``widen_factor`` or ``out_indices`` is not as above.
    """

    stage_taps = ('block2.0.bn1', 'block3.0.bn1', 'bn1')  # those of the paper

    def __init__(
            self,
            depth: int,
            widen_factor: int,
            out_indices: Sequence[int] = (2, ),
            in_channels: int = 3,
            init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg or dict(type='Kaiming', layer='Conv2d'))
        blocks = blocks_per_stage('WideResNet', depth, layers_outside=4, layers_per_block=2)
        if not isinstance(widen_factor, int) or widen_factor < 1:
            raise ValueError(f'WideResNet got widen_factor={widen_factor!r}; it must be an integer of 1 or more.')
        self.out_indices = check_out_indices('WideResNet', out_indices, count=3)

        channels = 16
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        for stage in range(3):
            before, channels = channels, 16 * 2**stage * widen_factor
            first = WideBlock(before, channels, stride=1 if stage == 0 else 2)
            rest = [WideBlock(channels, channels, stride=1) for _ in range(blocks - 1)]
            self.add_module(f'block{stage + 1}', nn.Sequential(first, *rest))
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps of ``out_indices``, shallow to deep."""
        return feature_maps(self.conv1(x), (self.block1, self.block2, self._last), self.out_indices)

    def _last(self, x: Tensor) -> Tensor:
        return self.relu(self.bn1(self.block3(x)))
