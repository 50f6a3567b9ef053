"""The DeepLabV3+ head of the paper: plain convolutions throughout."""

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads import ASPPHead
from mmseg.models.utils import resize
from torch import Tensor, nn

from overhaul.registry import MODELS


@MODELS.register_module()
class DeepLabV3PlusHead(ASPPHead):
    """DeepLabV3+ head: maps (N, c1_in_channels, H/4, W/4) ... (N, in_channels, H/16, W/16) to (N, classes, H/4, W/4).

    Differs from mmseg's ``DepthwiseSeparableASPPHead`` in what the paper's segmentation experiments differ in: no
    separable convolution, a 1x1 ``bottleneck`` after the pyramid, and a dropout after the pyramid and after each of
    the two 3x3 ``fusion`` convolutions. So the official checkpoints fit. Follows the official code.

    Dropouts zero single elements and not, as elsewhere in mmseg, whole channels.

    Args:
        in_channels (int): Channels of the last feature map given to the head.
        c1_in_channels (int): Channels of the first feature map given to the head, the finest.
        channels (int): Channels of the pyramid's branches and of the decoder. Defaults to 256.
        c1_channels (int): Channels to which the finest map is reduced. Defaults to 48.
        dilations (Sequence[int]): Dilation of each branch of the pyramid; 1 makes a 1x1 convolution.
            Defaults to (1, 6, 12, 18), for output stride 16.
        aspp_dropout_ratio (float): Dropout after the pyramid. Defaults to 0.5. The official code leaves it out while
            distilling, so the configs that distil set it to 0.
        fusion_dropout_ratio (float): Dropout after the first fusion convolution. Defaults to 0.5.
        dropout_ratio (float): Dropout before the classifier. Defaults to 0.1.
        norm_cfg (dict): Normalisation layer. Defaults to ``dict(type='BN')``. In training mode the image pooling
            normalises N values per channel, so a GPU needs at least two images.
        align_corners (bool): How maps are resized. Defaults to True.
        loss_decode (dict): Loss. Defaults to the cross entropy averaged over all pixels but the ignored ones.
        init_cfg (dict): Initialisation. Defaults to normal weights by fan-in, as in the official code, and no bias.
        **kwargs: The rest of :class:`mmseg.models.decode_heads.ASPPHead`; ``num_classes`` is required.
    """

    stage_taps = {'bottleneck.activate:input': 1, 'fusion.1.activate:input': 1 / 16}  # and weights, those of the paper

    def __init__(
            self,
            in_channels: int,
            c1_in_channels: int,
            channels: int = 256,
            c1_channels: int = 48,
            dilations: Sequence[int] = (1, 6, 12, 18),
            aspp_dropout_ratio: float = 0.5,
            fusion_dropout_ratio: float = 0.5,
            dropout_ratio: float = 0.1,
            norm_cfg: dict | None = None,
            align_corners: bool = True,
            loss_decode: dict | Sequence[dict] | None = None,
            init_cfg: dict | list[dict] | None = None,
            **kwargs: Any) -> None:
        super().__init__(
            in_channels=in_channels,
            channels=channels,
            dilations=tuple(dilations),
            dropout_ratio=dropout_ratio,
            norm_cfg=norm_cfg or dict(type='BN'),
            align_corners=align_corners,
            loss_decode=loss_decode or dict(type='mmseg.CrossEntropyLoss', avg_non_ignore=True),
            init_cfg=init_cfg or dict(type='Kaiming', layer='Conv2d', mode='fan_in'),
            **kwargs)
        self.bottleneck = self._conv((len(dilations) + 1) * channels, channels, kernel_size=1)
        self.aspp_dropout = nn.Dropout(aspp_dropout_ratio)
        self.c1_bottleneck = self._conv(c1_in_channels, c1_channels, kernel_size=1)
        self.fusion = nn.ModuleList([
            self._conv(channels + c1_channels, channels, kernel_size=3),
            self._conv(channels, channels, kernel_size=3),
        ])
        self.fusion_dropout = nn.Dropout(fusion_dropout_ratio)
        self.dropout = nn.Dropout(dropout_ratio)

    def _conv(self, in_channels: int, out_channels: int, kernel_size: int) -> ConvModule:
        module = ConvModule(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2,
            conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg, act_cfg=self.act_cfg)
        # A direct child of the head would otherwise initialise itself once more, by fan-out, after init_cfg.
        module.is_init = True
        return module

    def _forward_feature(self, inputs: Sequence[Tensor]) -> Tensor:
        """Decode feature maps, finest first, into the map (N, channels, H/4, W/4) that is classified."""
        x = self._transform_inputs(inputs)
        pooled = self._resize_like(self.image_pool(x), x)
        # In the order that the official weights need: mmseg's head puts the pooled map first.
        pyramid = self.bottleneck(torch.cat([*self.aspp_modules(x), pooled], dim=1))
        c1 = self.c1_bottleneck(inputs[0])
        features = torch.cat([self._resize_like(self.aspp_dropout(pyramid), c1), c1], dim=1)
        features = self.fusion_dropout(self.fusion[0](features))
        return self.fusion[1](features)

    def _resize_like(self, x: Tensor, target: Tensor) -> Tensor:
        return resize(x, size=target.shape[2:], mode='bilinear', align_corners=self.align_corners)
