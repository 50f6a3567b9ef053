"""MobileNet, the first version (Howard et al., arXiv 1704.04861)."""

from collections.abc import Sequence

from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import Tensor, nn

from overhaul.models.backbones.arguments import check_out_indices, feature_maps
from overhaul.registry import MODELS

# Output channels and stride of the 13 depthwise separable blocks.
BLOCKS = (
    (64, 1),
    (128, 2), (128, 1),
    (256, 2), (256, 1),
    (512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1),
    (1024, 2), (1024, 1),
)


@MODELS.register_module()
class MobileNetV1(BaseBackbone):
    """MobileNet at full width, (N, in_channels, H, W) -> feature maps of any of its 14 blocks.

    Block 0 is the stem and 1 to 13 are the depthwise separable ones. The last of each resolution are 1, 3, 5, 11 and
    13: (N, 64, H/2, W/2), (N, 128, H/4, W/4), (N, 256, H/8, W/8), (N, 512, H/16, W/16), (N, 1024, H/32, W/32).
    All are after a ReLU; the feature just before it is the output of the batch norm ``model.<block>.4``.
    Follows the official code of the overhaul paper, and keeps PyTorch's default initialisation as it does.

    Args:
        out_indices (Sequence[int]): Blocks, of 0 to 13, whose feature maps are returned. Defaults to ``(13, )``.
        in_channels (int): Channels of the image. Defaults to 3.
        init_cfg (dict | list[dict] | None): Initialisation. Defaults to None, that is PyTorch's own.

    Raises:
        ValueError: If ``out_indices`` is not as above.
    """

    stage_taps = ('model.3.4', 'model.5.4', 'model.11.4', 'model.13.4')  # those of the paper

    def __init__(
            self,
            out_indices: Sequence[int] = (13, ),
            in_channels: int = 3,
            init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg)
        self.out_indices = check_out_indices('MobileNetV1', out_indices, count=1 + len(BLOCKS))

        channels = 32
        self.model = nn.Sequential(nn.Sequential(*_convolution(in_channels, channels, stride=2)))
        for out_channels, stride in BLOCKS:
            depthwise = _convolution(channels, channels, stride, groups=channels)
            pointwise = _convolution(channels, out_channels, kernel_size=1)
            self.model.append(nn.Sequential(*depthwise, *pointwise))
            channels = out_channels

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps of ``out_indices``, shallow to deep."""
        return feature_maps(x, self.model, self.out_indices)


def _convolution(
        in_channels: int, channels: int, stride: int = 1, kernel_size: int = 3, groups: int = 1) -> list[nn.Module]:
    """Return convolution, batch norm and ReLU."""
    padding = kernel_size // 2
    return [
        nn.Conv2d(in_channels, channels, kernel_size, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]
