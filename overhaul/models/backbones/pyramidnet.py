"""Deep pyramidal residual network for 32 x 32 images (Han et al., arXiv 1610.02915)."""

from collections.abc import Iterator, Sequence

import torch.nn.functional as F
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import Tensor, nn

from overhaul.models.backbones.arguments import blocks_per_stage, check_out_indices, feature_maps
from overhaul.registry import MODELS


class PyramidShortcut(nn.Module):
    """Shortcut without parameters, (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride).

    It averages where there is a stride and appends channels of zeros.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.pool = nn.Identity() if stride == 1 else nn.AvgPool2d(stride, ceil_mode=True)
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return the shortcut."""
        return F.pad(self.pool(x), (0, 0, 0, 0, 0, self.new_channels))


class PyramidBlock(nn.Module):
    """Basic block, (N, in_channels, H, W) -> (N, width, H / stride, W / stride): one ReLU, batch norm at either end."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.shortcut = PyramidShortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both branches, which has no activation."""
        residual = self.conv1(self.bn1(x))
        residual = self.bn3(self.conv2(self.relu(self.bn2(residual))))
        return residual + self.shortcut(x)


class PyramidBottleneck(nn.Module):
    """Bottleneck block, (N, in_channels, H, W) -> (N, 4 * width, H / stride, W / stride), with two ReLUs."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = self.expansion * width
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn4 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.shortcut = PyramidShortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both branches, which has no activation."""
        residual = self.conv1(self.bn1(x))
        residual = self.conv2(self.relu(self.bn2(residual)))
        residual = self.bn4(self.conv3(self.relu(self.bn3(residual))))
        return residual + self.shortcut(x)


@MODELS.register_module()
class PyramidNet(BaseBackbone):
    """PyramidNet-depth (alpha), (N, in_channels, H, W) -> feature maps of up to three stages.

    The width grows from 16 to 16 + alpha in equal steps, one per block. A stage's feature map has as many channels as
    its last block, at (H, W), (H/2, W/2) and (H/4, W/4); that of PyramidNet-200 (240) with bottlenecks ends with 1024,
    that of PyramidNet-110 (84) with basic blocks with 100. The last one has gone through ``bn_final`` and a ReLU; the
    two others are the raw sums that leave their stage. Follows the official code of the overhaul paper.

    Args:
        depth (int): 9n + 2 layers with bottlenecks, 6n + 2 with basic blocks; n blocks in each stage.
        alpha (float): By how much the width grows over the whole network.
        bottleneck (bool): Whether to build bottleneck blocks, with four times the width as output, or basic ones.
        out_indices (Sequence[int]): Stages, of 0 to 2, whose feature maps are returned. Defaults to ``(2, )``.
        in_channels (int): Channels of the image. Defaults to 3.
        init_cfg (dict | list[dict] | None): By default, convolutions are normal with variance 2 / fan-out.

    Raises:
        ValueError: If ``depth``, ``alpha`` or ``out_indices`` is not as above.
    """

    def __init__(
            self,
            depth: int,
            alpha: float,
            bottleneck: bool,
            out_indices: Sequence[int] = (2, ),
            in_channels: int = 3,
            init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg or dict(type='Kaiming', layer='Conv2d'))
        name = f'PyramidNet with bottleneck={bottleneck}'
        blocks = blocks_per_stage(name, depth, layers_outside=2, layers_per_block=3 if bottleneck else 2)
        if not isinstance(alpha, (int, float)) or alpha <= 0:
            raise ValueError(f'{name} got alpha={alpha!r}; it must be a number above 0.')
        self.out_indices = check_out_indices(name, out_indices, count=3)

        # Those of the paper.
        first = 'bn2' if bottleneck else 'bn1'
        self.stage_taps = (f'layer2.0.{first}', f'layer3.0.{first}', 'bn_final')

        block = PyramidBottleneck if bottleneck else PyramidBlock
        widths = _widths(alpha, 3 * blocks)
        channels = 16
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        for stage in range(3):
            layer = nn.Sequential()
            for index in range(blocks):
                width = next(widths)
                layer.append(block(channels, width, stride=2 if stage > 0 and index == 0 else 1))
                channels = block.expansion * width
            self.add_module(f'layer{stage + 1}', layer)
        self.bn_final = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps of ``out_indices``, shallow to deep."""
        return feature_maps(self.bn1(self.conv1(x)), (self.layer1, self.layer2, self._last), self.out_indices)

    def _last(self, x: Tensor) -> Tensor:
        return self.relu(self.bn_final(self.layer3(x)))


def _widths(alpha: float, blocks: int) -> Iterator[int]:
    """Yield the width of each block. The sum is carried as a float, so each width rounds as in the official code."""
    width = 16.0
    for _ in range(blocks):
        width += alpha / blocks
        yield round(width)
