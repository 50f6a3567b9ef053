"""Which taps ``taps='auto'`` finds in each backbone of mmpretrain, mmseg and timm, and whether a training step works.

    python docs/backbones.py > docs/backbones.md

Needs timm, which comes with the extra ``test``. ``python docs/backbones.py vgg convnext`` looks at those networks alone
that have one of these words in their name.
"""

from __future__ import annotations

import copy
import logging
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from typing import NamedTuple

import torch
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from torch.nn.modules.batchnorm import _BatchNorm

from overhaul.engine.dry_run import RandomImages
from overhaul.files.parts import model_of, without_downloads
from overhaul.method.distiller import OverhaulDistiller
from overhaul.method.margins import NegativeMean
from overhaul.method.stages import find_stages
from overhaul.registry import build, is_type

# Configs of mmpretrain whose networks take images of any size.
CLASSIFIERS = [
    'resnet/resnet18_8xb32_in1k', 'resnet/resnet50_8xb32_in1k', 'resnet/resnetv1c50_8xb32_in1k',
    'resnet/resnetv1d50_8xb32_in1k', 'resnet/resnet18_8xb16_cifar10', 'wrn/wide-resnet50_8xb32_in1k',
    'resnext/resnext50-32x4d_8xb32_in1k', 'seresnet/seresnet50_8xb32_in1k', 'seresnet/seresnext50-32x4d_8xb32_in1k',
    'resnest/resnest50_32xb64_in1k', 'res2net/res2net50-w14-s8_8xb32_in1k', 'regnet/regnetx-400mf_8xb128_in1k',
    'densenet/densenet121_4xb256_in1k', 'mobilenet_v2/mobilenet-v2_8xb32_in1k',
    'mobilenet_v3/mobilenet-v3-small_8xb128_in1k', 'mobilenet_v3/mobilenet-v3-large_8xb128_in1k',
    'mobileone/mobileone-s0_8xb32_in1k', 'repvgg/repvgg-A0_8xb32_in1k', 'shufflenet_v1/shufflenet-v1-1x_16xb64_in1k',
    'shufflenet_v2/shufflenet-v2-1x_16xb64_in1k', 'efficientnet/efficientnet-b0_8xb32_in1k',
    'efficientnet_v2/efficientnetv2-b0_8xb32_in1k', 'hrnet/hrnet-w18_4xb32_in1k', 'cspnet/cspdarknet50_8xb32_in1k',
    'cspnet/cspresnet50_8xb32_in1k', 'cspnet/cspresnext50_8xb32_in1k', 'convnext/convnext-tiny_32xb128_in1k',
    'convnext_v2/convnext-v2-atto_32xb32_in1k', 'van/van-tiny_8xb128_in1k', 'hornet/hornet-tiny_8xb128_in1k',
    'edgenext/edgenext-xxsmall_8xb256_in1k', 'poolformer/poolformer-s12_32xb128_in1k',
    'riformer/riformer-s12_8xb128_in1k', 'mobilevit/mobilevit-xxsmall_8xb128_in1k',
    'twins/twins-pcpvt-small_8xb128_in1k', 'twins/twins-svt-small_8xb128_in1k',
]
# Configs of mmpretrain whose networks take images of one size only, or of at least this size.
CLASSIFIERS_AT_224 = [
    'lenet/lenet5_mnist', 'inception_v3/inception-v3_8xb32_in1k', 'convmixer/convmixer-768-32_10xb64_in1k',
    'repmlp/repmlp-base_8xb64_in1k', 'efficientformer/efficientformer-l1_8xb128_in1k',
    'conformer/conformer-tiny-p16_8xb128_in1k', 'levit/levit-128s_8xb256_in1k', 'tinyvit/tinyvit-5m_8xb256_in1k',
    'xcit/xcit-nano-12-p16_8xb128_in1k', 'swin_transformer/swin-tiny_16xb64_in1k', 'davit/davit-tiny_4xb256_in1k',
    'mvit/mvitv2-tiny_8xb256_in1k', 'vig/pvig-tiny_8xb128_in1k', 'vig/vig-tiny_8xb128_in1k',
    't2t_vit/t2t-vit-t-14_8xb64_in1k', 'tnt/tnt-s-p16_16xb64_in1k', 'deit/deit-tiny_4xb256_in1k',
    'deit/deit-tiny-distilled_4xb256_in1k', 'deit3/deit3-small-p16_64xb64_in1k',
    'mlp_mixer/mlp-mixer-base-p16_64xb64_in1k', 'revvit/revvit-small_8xb256_in1k', 'hivit/hivit-tiny-p16_16xb64_in1k',
    'eva02/eva02-tiny-p14_in1k',
]
CLASSIFIERS_AT_256 = ['swin_transformer_v2/swinv2-tiny-w8_16xb64_in1k-256px']
# Backbones of mmpretrain with their defaults, or smaller.
MMPRETRAIN = [
    dict(type='AlexNet'), dict(type='VGG', depth=11), dict(type='VGG', depth=11, norm_cfg=dict(type='BN')),
    dict(type='RepLKNet', arch=dict(
        large_kernel_sizes=[13, 13, 13, 7], layers=[2, 2, 2, 2], channels=[16, 32, 64, 128], small_kernel=5,
        dw_ratio=1)),
]
# Configs of mmseg.
SEGMENTORS = [
    'deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024',
    'hrnet/fcn_hr18s_4xb4-160k_ade20k-512x512', 'mobilenet_v2/mobilenet-v2-d8_fcn_4xb4-160k_ade20k-512x512',
    'unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64', 'bisenetv1/bisenetv1_r18-d32_4xb4-160k_coco-stuff164k-512x512',
    'bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024', 'cgnet/cgnet_fcn_4xb4-60k_cityscapes-680x680',
    'erfnet/erfnet_fcn_4xb4-160k_cityscapes-512x1024', 'pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes',
    'ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024', 'stdc/stdc1_4xb12-80k_cityscapes-512x1024',
    'segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512', 'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512',
    'twins/twins_pcpvt-s_fpn_fpnhead_8xb4-80k_ade20k-512x512', 'twins/twins_svt-s_fpn_fpnhead_8xb4-80k_ade20k-512x512',
    'poolformer/fpn_poolformer_s12_8xb4-40k_ade20k-512x512', 'vit/vit_deit-s16_upernet_8xb2-80k_ade20k-512x512',
]
SEGMENTORS_AT_256 = [
    'fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024', 'icnet/icnet_r18-d8_4xb2-80k_cityscapes-832x832',
    'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512',
]
SEGMENTORS_AT_512 = ['mobilenet_v3/mobilenet-v3-d8-scratch_lraspp_4xb4-320k_cityscapes-512x1024']
# Backbones of mmseg with their defaults, or smaller.
MMSEG = [
    dict(type='ResNet', depth=50), dict(type='ResNetV1d', depth=50), dict(type='ResNeXt', depth=50),
    dict(type='ResNeSt', depth=50), dict(type='mmpretrain.ConvNeXt', arch='atto', gap_before_final_norm=False),
    dict(type='BEiT', img_size=(128, 128), embed_dims=96, num_layers=3, num_heads=3, out_indices=2),
    dict(type='MAE', img_size=(128, 128), embed_dims=96, num_layers=3, num_heads=3, out_indices=2),
]
# Networks of timm.
TIMM = [
    'resnet18', 'resnetv2_50', 'seresnet18', 'skresnet18', 'resnest14d', 'regnety_002', 'res2net50d', 'densenet121',
    'dla34', 'dpn48b', 'vgg11_bn', 'efficientnet_b0', 'tf_efficientnetv2_b0', 'mobilenetv2_050',
    'mobilenetv3_small_050', 'mobilenetv4_conv_small', 'ghostnet_100', 'mnasnet_small', 'lcnet_050', 'rexnet_100',
    'hrnet_w18_small', 'repvgg_a0', 'mobileone_s0', 'ese_vovnet19b_dw', 'cspresnet50', 'hgnetv2_b0', 'inception_v4',
    'xception41', 'eca_nfnet_l0', 'convnext_atto', 'convnextv2_atto', 'fastvit_t8', 'edgenext_xx_small',
    'mobilevit_xxs', 'coatnet_nano_rw_224', 'starnet_s1', 'poolformer_s12', 'swin_tiny_patch4_window7_224',
    'vit_tiny_patch16_224',
]
# Networks of timm that give no map unless they are built with features_only.
FEATURES_ONLY = ['swin_tiny_patch4_window7_224', 'vit_tiny_patch16_224']
# Heads of mmpretrain that are built for their own distillation by default, and then cannot be trained.
HEADS_THAT_LEARN_ALONE = ['mmpretrain.EfficientFormerClsHead', 'mmpretrain.LeViTClsHead']


class Network(NamedTuple):
    """A network to be looked at: where it is from, its name, what makes its config, height and width of its images."""

    package: str
    name: str
    config: Callable[[], dict]
    side: int


def networks() -> Iterator[Network]:
    """Yield all networks."""
    for side, names in ((64, CLASSIFIERS), (224, CLASSIFIERS_AT_224), (256, CLASSIFIERS_AT_256)):
        for name in names:
            yield Network('mmpretrain', name, partial(model_of, f'mmpretrain::{name}.py'), side)
    for backbone in MMPRETRAIN:
        yield Network('mmpretrain', _name(backbone), partial(classifier, backbone, 128), 128)
    for side, names in ((128, SEGMENTORS), (256, SEGMENTORS_AT_256), (512, SEGMENTORS_AT_512)):
        for name in names:
            yield Network('mmseg', name, partial(model_of, f'mmseg::{name}.py'), side)
    for backbone in MMSEG:
        yield Network('mmseg', _name(backbone), partial(segmentor, backbone, 128), 128)
    for name in TIMM:
        side = 224 if '224' in name or 'inception' in name else 64
        backbone = dict(type='TIMMBackbone', model_name=name, features_only=name in FEATURES_ONLY)
        yield Network('timm', name, partial(classifier, backbone, side), side)


def _name(backbone: dict) -> str:
    return ', '.join(
        [backbone['type'], *(f'{key}={value}' for key, value in backbone.items() if isinstance(value, (str, int))
                             and key not in ('type', 'out_indices')), *(['BN'] if 'norm_cfg' in backbone else [])])


def _channels(backbone: dict, side: int, scope: str) -> int:
    with torch.no_grad():
        return build({'_scope_': scope, **backbone}, 'backbone')(torch.zeros(2, 3, side, side))[-1].shape[1]


def classifier(backbone: dict, side: int) -> dict:
    """Return the config of a classifier on a backbone."""
    return dict(
        _scope_='mmpretrain', type='ImageClassifier', backbone=backbone, neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=_channels(backbone, side, 'mmpretrain')))


def segmentor(backbone: dict, side: int) -> dict:
    """Return the config of a segmentor on a backbone."""
    return dict(
        _scope_='mmseg', type='EncoderDecoder', backbone=backbone,
        data_preprocessor=dict(type='SegDataPreProcessor', size=(side, side)),
        decode_head=dict(type='FCNHead', in_channels=_channels(backbone, side, 'mmseg'), in_index=-1, channels=16,
                         num_classes=10, norm_cfg=dict(type='BN')))


def resnet(depth: int, side: int, segmentation: bool) -> dict:
    """Return the config of the narrow ResNet that the network distils into or from."""
    backbone = dict(depth=depth, base_channels=16, stem_channels=16)
    if segmentation:
        return segmentor(dict(type='ResNetV1c', **backbone), side)
    return classifier(dict(type='ResNet', **backbone), side)


def save_weights(cfg: dict, path: str) -> None:
    """Write weights of a teacher in which no batch norm is as it was initialised, with a scale of 1 or 0."""
    model = build(copy.deepcopy(cfg), 'teacher')  # building edits a config
    model.init_weights()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.5)
    torch.save(dict(state_dict=model.state_dict()), path)


def step(teacher: dict, student: dict, side: int) -> OverhaulDistiller:
    """Take one training step of a distillation and return its model.

    Raises:
        ValueError: If there is no such distillation, if a loss is not finite, if the teacher's features at a tap have
            no negative responses, or if no gradient arrives at a connector.
    """
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = f'{folder}/teacher.pth'
        save_weights(teacher, checkpoint)
        model = build(copy.deepcopy(dict(
            type='overhaul.OverhaulDistiller', teacher=teacher, teacher_checkpoint=checkpoint, student=student,
            taps='auto', match_sizes=True, input_size=(side, side),
            distill_loss=dict(type='PartialL2Loss', loss_weight=1e-4))), 'model')
    model.init_weights()
    model.train()
    data = random_batch(student, side)
    with torch.no_grad():
        features = model.teacher_features(model.data_preprocessor(data, True)['inputs'])
    for tap, margin, feature in zip(model.teacher_taps, model.margins, features):
        if not (feature < 0).any():
            raise ValueError(f'The feature at "{tap.path}" has no negative responses.')
        if not margin.known:
            mean = NegativeMean()
            mean.add(feature)
            margin.margin.copy_(mean.result())
    optimizer = build_optim_wrapper(model, dict(optimizer=dict(type='SGD', lr=1e-3)))
    losses = model.train_step(data, optimizer)
    unusable = [name for name, loss in losses.items() if not torch.isfinite(loss).all()]
    if unusable:
        raise ValueError(f'Not finite: {", ".join(unusable)}.')
    return model


def random_batch(student: dict, side: int) -> dict:
    """Return two random images with the labels that the student learns from."""
    images = RandomImages(2, (side, side), student)
    return pseudo_collate([images[i] for i in range(2)])


def look_at(network: Network) -> list[str]:
    """Return the row of a network."""
    torch.manual_seed(0)
    cfg = network.config()
    without_downloads(cfg)
    segmentation = 'decode_head' in cfg
    if is_type(cfg.get('head'), *HEADS_THAT_LEARN_ALONE):
        cfg['head']['distillation'] = False
    if segmentation:
        cfg['data_preprocessor']['size'] = (network.side, network.side)
    model = build(copy.deepcopy(cfg), 'model')
    backbone = type(model.backbone).__name__
    try:
        stages = find_stages(model, (network.side, network.side))
    except ValueError as error:
        return [network.package, network.name, backbone, _refusal(error), '', '', '']
    taps = '<br>'.join(
        f'`{stage.path.removeprefix("backbone.")}` {stage.channels}, {round(network.side / stage.size[0])}'
        for stage in stages)
    results, margins = [], ''
    for is_teacher in (True, False):
        pair = (cfg, resnet(18, network.side, segmentation)) if is_teacher else (
            resnet(50, network.side, segmentation), cfg)
        try:
            distiller = step(*pair, network.side)
        except ValueError as error:
            results.append(_refusal(error))
            continue
        count = len(distiller.tap_weights)
        results.append(f'{count} tap' + 's' * (count > 1))
        if is_teacher:
            sources = ['data' if tap.norm_path is None else 'batch norm' for tap in distiller.teacher_taps]
            margins = ', '.join(sorted(set(sources)))
    return [network.package, network.name, backbone, taps, margins, *results]


def _refusal(error: ValueError) -> str:
    return 'refused: ' + re.split(r'(?<=\.) ', ' '.join(str(error).split()))[0]


HEADER = """\
# Backbones

This page says what `taps='auto'` finds in the backbones of mmpretrain 1.2.0 and mmseg 1.2.2, and of timm through
mmpretrain's wrapper, and whether one training step works, on a batch of two random images, with `match_sizes=True`.
Each network is the teacher of a narrow ResNet-18, and the student of a narrow ResNet-50. Made by
`python docs/backbones.py`, with the versions of `constraints.txt`.

A tap has its path inside `backbone`, its channels and its stride. It is the last feature of each of the four deepest
resolutions, or of each layer of a ResNet. It is before the activation if there is one, or the batch norm before an
activation that is a function. The last columns say how many taps were paired, which is by resolution. If a margin is
from data, the config needs `overhaul.CalibrateHook`.

`python tools/list_taps.py CONFIG` lists the taps of any config.

| | network | backbone | taps | margins | as teacher | as student |
|---|---|---|---|---|---|---|"""


def main() -> None:
    """Print the page."""
    warnings.filterwarnings('ignore')
    logging.disable(logging.WARNING)
    print(HEADER)
    for network in networks():
        if len(sys.argv) == 1 or any(word in f'{network.package} {network.name}' for word in sys.argv[1:]):
            with redirect_stdout(sys.stderr):  # some of the packages print
                row = look_at(network)
            print('|', ' | '.join(row), '|', flush=True)


if __name__ == '__main__':
    main()
