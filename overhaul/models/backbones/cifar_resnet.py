"""Residual network for 32 x 32 images (He et al., arXiv 1512.03385, section 4.2)."""

from collections.abc import Sequence

from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import Tensor, nn

from overhaul.models.backbones.arguments import blocks_per_stage, check_out_indices, feature_maps
from overhaul.registry import MODELS


class CifarBlock(nn.Module):
    """Basic residual block, (N, in_channels, H, W) -> (N, channels, H / stride, W / stride).

    The last call of ``relu`` receives the sum of both branches.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.downsample = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1, stride, bias=False),
            nn.BatchNorm2d(channels)) if in_channels != channels else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated sum of both branches."""
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(residual + (x if self.downsample is None else self.downsample(x)))


@MODELS.register_module()
class CifarResNet(BaseBackbone):
    """ResNet-20, -56, -110, ..., (N, in_channels, H, W) -> feature maps of up to three stages.

    They are (N, 16, H, W), (N, 32, H/2, W/2) and (N, 64, H/4, W/4), each after the ReLU of its last block; the feature
    just before it is what enters that block's ``relu`` last: ``layer1.8.relu:input`` in a ResNet-56. Where the channels
    change, the shortcut is a 1x1 convolution and a batch norm, as in the official code of the overhaul paper.

    Args:
        depth (int): 6n + 2 layers, n blocks in each stage: 8, 14, 20, 32, 44, 56, 110, ...
        out_indices (Sequence[int]): Stages, of 0 to 2, whose feature maps are returned. Defaults to ``(2, )``.
        in_channels (int): Channels of the image. Defaults to 3.
        init_cfg (dict | list[dict] | None): By default, convolutions are normal with variance 2 / fan-out.

    Raises:
        ValueError: If ``depth`` or ``out_indices`` is not as above.
    """

    def __init__(
            self,
            depth: int,
            out_indices: Sequence[int] = (2, ),
            in_channels: int = 3,
            init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg or dict(type='Kaiming', layer='Conv2d'))
        blocks = blocks_per_stage('CifarResNet', depth, layers_outside=2, layers_per_block=2)
        self.out_indices = check_out_indices('CifarResNet', out_indices, count=3)

        channels = 16
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        for stage in range(3):
            before, channels = channels, 16 * 2**stage
            first = CifarBlock(before, channels, stride=1 if stage == 0 else 2)
            rest = [CifarBlock(channels, channels, stride=1) for _ in range(blocks - 1)]
            self.add_module(f'layer{stage + 1}', nn.Sequential(first, *rest))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps of ``out_indices``, shallow to deep."""
        x = self.relu(self.bn1(self.conv1(x)))
        return feature_maps(x, (self.layer1, self.layer2, self.layer3), self.out_indices)
