"""ResNet for segmentation whose basic blocks are dilated throughout."""

from typing import Any

from mmcv.cnn import build_conv_layer
from mmseg.models.backbones.resnet import BasicBlock, ResNet

from overhaul.registry import MODELS


class DilatedBasicBlock(BasicBlock):
    """Basic block (N, inplanes, H, W) -> (N, planes, H/stride, W/stride) with both 3x3 convolutions dilated."""

    def __init__(
            self, inplanes: int, planes: int, dilation: int = 1, conv_cfg: dict | None = None, **kwargs: Any) -> None:
        super().__init__(inplanes, planes, dilation=dilation, conv_cfg=conv_cfg, **kwargs)
        self.conv2 = build_conv_layer(
            conv_cfg, planes, planes, 3, padding=dilation, dilation=dilation, bias=False)


@MODELS.register_module()
class DilatedResNet(ResNet):
    """mmseg's ResNet: (N, in_channels, H, W) to feature maps, where basic blocks dilate both of their 3x3 convolutions.

    mmseg dilates the first only, and for depths 50 and more, whose blocks have one 3x3 convolution, its ``ResNet`` is
    already what the paper uses. Follows the official code: the segmentation student ResNet-18 has output stride 16 by
    ``strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)``. Checkpoints of torchvision's ResNet fit.

    Args:
        depth (int): 18 or 34.
        **kwargs: The rest of :class:`mmseg.models.backbones.ResNet`.

    Raises:
        ValueError: For any other depth.
    """

    arch_settings = {depth: (DilatedBasicBlock, ResNet.arch_settings[depth][1]) for depth in (18, 34)}

    def __init__(self, depth: int, **kwargs: Any) -> None:
        if depth not in self.arch_settings:
            raise ValueError(
                f'DilatedResNet has depths 18 and 34, not {depth}. '
                'Deeper networks have one 3x3 convolution per block, which mmseg.ResNet dilates: take that one.')
        super().__init__(depth, **kwargs)
