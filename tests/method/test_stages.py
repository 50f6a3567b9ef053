"""The taps of taps='auto': the paper's in the paper's networks, and elsewhere what one rule says."""

import runpy
from pathlib import Path

import pytest
import torch
from mmengine.model import ImgDataPreprocessor
from small_models import OF_MMDET, batch, build_distiller, build_model, resnet, segmentor
from torch import nn

from overhaul.files.parts import model_of
from overhaul.method.stages import Stage, auto_taps, find_stages, pair_stages
from overhaul.method.taps import Taps
from overhaul.registry import build

CONFIGS = {  # those of detection need mmdet, and that of a folder its images
    path.stem: model_of(str(path)) for path in sorted((Path(__file__).parents[2] / 'configs').glob('*.py'))
    if not path.stem.startswith(('folder', *OF_MMDET))}
PAIRS = {name: cfg for name, cfg in CONFIGS.items() if not isinstance(cfg.get('taps', 'auto'), str)}
# Small, and with the strides of the full size.
SIZES = dict(cifar100=(32, 32), imagenet=(64, 64))


@pytest.mark.parametrize('name', PAIRS)
def test_each_config_that_ships_has_the_taps_that_are_found(name):
    cfg = PAIRS[name]
    teacher, student = (build({'_scope_': cfg['_scope_'], **cfg[part]}, part) for part in ('teacher', 'student'))
    taps = auto_taps(teacher, student, SIZES.get(name.split('_')[0], (65, 65)))
    assert taps == [dict(tap) for tap in cfg['taps']]  # paths, weights and order


class Model(nn.Module):
    """A backbone on its own."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.backbone(inputs)


class Module(nn.Module):
    """Parts by name, and what is done with them."""

    def __init__(self, forward, **parts):
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, inputs):
        return self._forward(self, inputs)


class OwnOrder(nn.Sequential):
    """A Sequential that is no list: its parts are a block of their own making."""

    def forward(self, inputs):
        return self[1](self[0](inputs))


class NormWithActivation(nn.BatchNorm2d):
    """As those of timm are."""

    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, inputs):
        return self.act(super().forward(inputs))


def conv(inputs, outputs, stride=1):
    return nn.Conv2d(inputs, outputs, 3, stride, 1)


def unit(inputs, outputs, stride=1, activation=nn.ReLU):
    """Convolution, batch norm, activation."""
    return nn.Sequential(conv(inputs, outputs, stride), nn.BatchNorm2d(outputs), activation(inplace=True))


def linear_unit(inputs, outputs, stride=1):
    return nn.Sequential(conv(inputs, outputs, stride), nn.BatchNorm2d(outputs))


def before_activation(inputs, outputs, stride=2):
    """A block that begins with batch norm and activation."""
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), conv(inputs, outputs, stride))


def residual(inputs, outputs, stride=1):
    """A block that lowers the resolution in the second of its convolutions, and uses its activation twice."""
    def forward(self, x):
        return self.relu(self.second(self.relu(self.first(x))) + self.shortcut(x))
    return Module(
        forward, first=linear_unit(inputs, 4), second=linear_unit(4, outputs, stride),
        shortcut=nn.Conv2d(inputs, outputs, 1, stride), relu=nn.ReLU(inplace=True))


def with_function(inputs, outputs):
    return Module(lambda self, x: self.bn(self.conv(x)).relu(), conv=conv(inputs, outputs, 2),
                  bn=nn.BatchNorm2d(outputs))


def with_activation_inside(inputs, outputs):
    return Module(lambda self, x: 2 * self.bn(self.conv(x)), conv=conv(inputs, outputs, 2),
                  bn=NormWithActivation(outputs))


def stage_with_downsampling(inputs, outputs):
    """Blocks at one resolution and then the way to the next, in one module, as in TinyViT."""
    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.downsample(x)
    return Module(forward, blocks=nn.ModuleList([linear_unit(inputs, inputs) for _ in range(2)]),
                  downsample=conv(inputs, outputs, 2))


def block_with_list(inputs, outputs):
    """Half of its features at each resolution, as in STDC."""
    def forward(self, x):
        first = self.layers[0](x)
        return torch.cat([self.pool(first), self.layers[1](first)], 1)
    return Module(forward, layers=nn.ModuleList([unit(inputs, outputs // 2), unit(outputs // 2, outputs // 2, 2)]),
                  pool=nn.AvgPool2d(2))


def attention(channels):
    """Whose weights look like a map of another size."""
    def forward(self, x):
        weights = self.weigh(torch.einsum('nchw,ncij->nhwij', x, x).flatten(3).flatten(1, 2)[:, None])
        return x + self.project(x) * weights.mean()
    return Module(forward, weigh=linear_unit(1, 4), project=conv(channels, channels))


def squeeze_and_excitation(channels):
    def forward(self, x):
        return x * self.gate(self.conv(x.mean((2, 3), keepdim=True)))
    return Module(forward, conv=nn.Conv2d(channels, channels, 1), gate=nn.Sigmoid())


def pooled(channels):
    """Adds what it finds at a quarter of the resolution, as pyramid pooling does."""
    def forward(self, x):
        return x + nn.functional.interpolate(self.conv(self.pool(x)), x.shape[2:])
    return Module(forward, pool=nn.AvgPool2d(4), conv=conv(channels, channels))


def tokens(channels):
    """Takes a map to tokens with a class token before them, as it tells, works in windows, and hands tokens on."""
    def forward(self, x):
        x = self.embed(x)
        sequence = torch.cat([self.proj(x).flatten(2).mean(2, keepdim=True), x.flatten(2)], 2).transpose(1, 2)
        windows = self.window(sequence[:, 1:].unflatten(1, (-1, 4)).flatten(0, 1))
        return self.norm(sequence + windows.mean())
    block = Module(forward, embed=nn.Conv2d(3, channels, 4, 4), proj=nn.Conv2d(channels, channels, 1),
                   window=nn.Linear(channels, channels), norm=nn.LayerNorm(channels))
    block.num_extra_tokens = 1
    return block


@pytest.mark.parametrize(('backbone', 'expected'), [
    (lambda: nn.Sequential(unit(3, 8, 2), unit(8, 16, 2)), ['0.2:input', '1.2:input']),
    (lambda: nn.Sequential(unit(3, 8, 2, nn.SiLU), unit(8, 8, 1, nn.Hardswish)), ['1.2:input']),
    (lambda: nn.Sequential(conv(3, 8), before_activation(8, 16), before_activation(16, 32), nn.BatchNorm2d(32),
                           nn.ReLU(inplace=True)), ['1.0', '2.0', '4:input']),
    (lambda: nn.Sequential(linear_unit(3, 8, 2), linear_unit(8, 16, 2)), ['0.1', '1.1']),
    (lambda: nn.Sequential(linear_unit(3, 8, 2), nn.Identity(), linear_unit(8, 16, 2), nn.Identity()), ['0.1', '2.1']),
    (lambda: nn.Sequential(with_function(3, 8), with_function(8, 16)), ['0.bn', '1.bn']),
    (lambda: nn.Sequential(with_activation_inside(3, 8)), ['0.bn.act:input']),
    (lambda: nn.Sequential(unit(3, 8), nn.Sequential(residual(8, 16, 2), residual(16, 16)), residual(16, 32, 2)),
     ['0.2:input', '1.1.relu:input', '2.relu:input']),
    (lambda: nn.Sequential(unit(3, 8, 2), stage_with_downsampling(8, 16), unit(16, 16)),
     ['1.blocks.1.1', '2.2:input']),
    (lambda: nn.Sequential(linear_unit(3, 8, 2), block_with_list(8, 16), linear_unit(16, 16)), ['0.1', '2.1']),
    (lambda: nn.Sequential(linear_unit(3, 8, 2), linear_unit(8, 8, 4), attention(8)), ['0.1', '2']),
    (lambda: nn.Sequential(linear_unit(3, 8), OwnOrder(unit(8, 4), unit(4, 16, 2))), ['0.1', '1.1.2:input']),
    (lambda: nn.Sequential(linear_unit(3, 8, 2), squeeze_and_excitation(8), pooled(8)), ['2']),
    (lambda: nn.Sequential(linear_unit(3, 8, 2), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1)), ['0.1']),
    (lambda: nn.Sequential(nn.MaxPool2d(2), linear_unit(3, 8), nn.AvgPool2d(2)), ['1.1']),
    (lambda: nn.Sequential(*[linear_unit(3 if i == 0 else 8, 8, 2) for i in range(5)]), ['1.1', '2.1', '3.1', '4.1']),
    (lambda: nn.Sequential(tokens(8)), ['0.norm']),
], ids=['activation', 'other activations', 'pre-activation', 'linear', 'identity', 'function', 'inside',
        'residual', 'stage with downsampling', 'block with a list', 'attention', 'Sequential that is no list',
        'squeeze and pyramid', 'pooled to 1x1', 'pooling is no stage', 'four deepest', 'tokens'])
def test_the_rule(backbone, expected):
    torch.manual_seed(0)
    model = Model(backbone())
    stages = find_stages(model, (64, 64))
    assert [stage.path.removeprefix('backbone.') for stage in stages] == expected

    taps = Taps(model, [stage.path for stage in stages], 'teacher')
    taps.dry_run(model, (64, 64), stop_after_last=False)
    assert [(tap.path, tap.channels, tap.size) for tap in taps] == stages
    assert all((feature < 0).any() for feature in taps.read(model, torch.randn(2, 3, 64, 64)))


def test_the_search_leaves_the_model_as_it_was():
    model = build_model(resnet()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert len(find_stages(model, (32, 32))) == 4
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert [module.inplace for module in model.modules() if isinstance(module, nn.ReLU)] == [True] * 9


def test_stages_of_a_dilated_resnet_are_its_layers_whatever_their_resolution():
    model = build_model(segmentor(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)))
    assert find_stages(model, (64, 64)) == [
        Stage(f'backbone.layer{i + 1}.1.relu:input', 4 * 2**i, (side, side)) for i, side in enumerate((16, 8, 8, 8))]


# Families whose blocks differ from each other. docs/backbones.py looks at all of them.
@pytest.mark.parametrize(('backbone', 'expected'), [
    (dict(type='mmpretrain.MobileNetV3', arch='small'),
     ['layer1.linear_conv.bn 16', 'layer3 24', 'layer8 48', 'layer12.activate:input 576']),
    (dict(type='mmpretrain.DenseNet', arch=dict(growth_rate=8, depths=[2, 2, 2, 2], init_channels=8)),
     ['transitions.0.norm 24', 'transitions.1.norm 28', 'transitions.2.norm 30', 'act:input 31']),
    (dict(type='mmpretrain.ShuffleNetV2', widen_factor=0.5),
     ['layers.0.3.branch2.2.bn 24', 'layers.1.7.branch2.2.bn 48', 'layers.3.activate:input 1024']),
    (dict(type='mmpretrain.ConvNeXt', arch='atto'),
     ['stages.0.1 40', 'stages.1.1 80', 'stages.2.5 160', 'stages.3.1 320']),
    (dict(type='mmpretrain.SwinTransformer', arch=dict(embed_dims=12, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1]),
          pad_small_map=True),
     ['stages.0.blocks.0.ffn 12', 'stages.1.blocks.0.ffn 24', 'stages.2.blocks.0.ffn 48', 'norm3 96']),
    (dict(type='mmseg.UNet', base_channels=4),
     ['decoder.1.conv_block.convs.1.activate:input 8', 'decoder.2.conv_block.convs.1.activate:input 16',
      'decoder.3.conv_block.convs.1.activate:input 32', 'encoder.4.1.convs.1.activate:input 64']),
    (dict(type='mmseg.MixVisionTransformer', embed_dims=8, num_layers=[1, 1, 1, 1], num_heads=[1, 1, 1, 1]),
     ['layers.0.2 8', 'layers.1.2 8', 'layers.2.2 8', 'layers.3.2 8']),
], ids=lambda value: value['type'] if isinstance(value, dict) else '')
def test_backbones_of_mmpretrain_and_mmseg(backbone, expected):
    backbone['_scope_'], backbone['type'] = backbone['type'].split('.')
    model = build(dict(type='mmpretrain.ImageClassifier', backbone=backbone), 'model')
    stages = find_stages(model, (224, 224))
    assert [f'{stage.path.removeprefix("backbone.")} {stage.channels}' for stage in stages][-len(expected):] == expected


def test_a_network_of_timm():
    """Whose batch norms hold the activation, and whose wrapper takes the image."""
    pytest.importorskip('timm')
    model = build(dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='mmpretrain.TIMMBackbone', model_name='lcnet_050')), 'model')
    taps = Taps(model, [stage.path for stage in find_stages(model, (64, 64))], 'student')
    taps.dry_run(model, (64, 64), stop_after_last=False)
    prefix = 'backbone.timm_model'
    assert [(tap.path, tap.norm_path) for tap in taps] == [
        *((f'{prefix}.blocks.{i}.bn2.act:input', f'{prefix}.blocks.{i}.bn2') for i in ('1.1', '2.1', '4.3')),
        (f'{prefix}.act2:input', None)]


def timm_classifier(name, **arguments):
    pytest.importorskip('timm')
    return build(dict(type='mmpretrain.TimmClassifier', model_name=name, num_classes=5, **arguments), 'model')


@pytest.mark.parametrize(('name', 'arguments', 'size', 'expected'), [
    ('xcit_nano_12_p16_224', dict(depth=1, img_size=(96, 224)), (96, 224), [('norm', (6, 14))]),
    ('vit_base_patch16_siglip_224', dict(depth=1, embed_dim=12, num_heads=3), (224, 224), [('norm', (14, 14))]),
    ('cait_xxs24_224', dict(depth=1, img_size=(96, 224)), (96, 224), [('norm', (6, 14))]),
    ('levit_128s', dict(depth=(1, 1, 1)), (224, 224), [
        ('stages.0.blocks.0', (14, 14)), ('stages.1.blocks.0', (7, 7)), ('stages.2.blocks.0', (4, 4))]),
    ('crossvit_9_240', {}, (240, 240), [('norm.0', (20, 20))]),
])
def test_what_makes_tokens_and_what_pools_them_are_no_stages(name, arguments, size, expected):
    model = timm_classifier(name, **arguments)
    assert [(stage.path.removeprefix('model.'), stage.size) for stage in find_stages(model, size)] == expected


def test_tokens_that_come_second_to_those_of_their_pixels():
    backbone = dict(type='mmpretrain.TNT', arch=dict(
        embed_dims_outer=12, embed_dims_inner=4, num_layers=1, num_heads_outer=2, num_heads_inner=1), img_size=64)
    model = build(dict(type='mmpretrain.ImageClassifier', backbone=backbone), 'model')
    assert find_stages(model, (64, 64)) == [Stage('backbone.norm', 12, (4, 4))]


def test_blocks_that_cannot_be_read_are_refused_and_the_patch_embedding_not_taken_for_them():
    model = timm_classifier('hiera_tiny_224', embed_dim=12, stages=(1, 1, 1, 1))
    with pytest.raises(ValueError, match='can read none of the 4 blocks of the Hiera: "model.blocks.3" gives a tensor '
                                         r'of shape \(1, 49, 96\).* keeps its tokens in an order of its own'):
        find_stages(model, (224, 224))


@pytest.mark.parametrize(('backbone', 'message'), [
    (nn.Flatten(), r'found no feature map in the Flatten. Name the taps: the modules of the backbone are'),
    (Module(lambda self, x: self.conv(x).relu(), conv=conv(3, 8)),
     r'no feature before the activation at the end of "backbone.block", .* Name the taps.'),
    (nn.Linear(7, 7), r'The model with the Linear failed on one image \(3, 64, 64\).*in_channels'),
], ids=['no map', 'function without batch norm', 'fails'])
def test_what_cannot_be_found_is_refused(backbone, message):
    if isinstance(backbone, Module):
        backbone = Module(lambda self, x: self.block(x), block=backbone)
    model = Model(backbone)
    model.anchor = nn.Linear(1, 1)  # a model has parameters
    model.data_preprocessor = ImgDataPreprocessor(mean=[0] * 3, std=[1] * 3)
    with pytest.raises(ValueError, match=message):
        find_stages(model, (64, 64))


def stages(name, *sides):
    return [Stage(f'{name}{i}', 8, (side, side)) for i, side in enumerate(sides)]


@pytest.mark.parametrize(('teacher', 'student', 'match_sizes', 'expected'), [
    ((32, 16, 8), (32, 16, 8), False, [(0, 0, 1 / 4), (1, 1, 1 / 2), (2, 2, 1)]),
    ((56, 28, 14, 7), (28, 14), False, [(1, 0, 1 / 2), (2, 1, 1)]),
    ((32, 16, 16, 16), (32, 16, 16, 16), False, [(0, 0, 1 / 8), (1, 1, 1 / 4), (2, 2, 1 / 2), (3, 3, 1)]),
    ((32, 16, 16, 16), (32, 16, 8, 4), False, [(0, 0, 1 / 2), (3, 1, 1)]),
    ((52, 25, 12, 5), (56, 28, 14, 7), True, [(0, 0, 1 / 8), (1, 1, 1 / 4), (2, 2, 1 / 2), (3, 3, 1)]),
    ((16, ), (28, 14, 7), True, [(0, 1, 1)]),
])
def test_stages_are_paired_by_size(teacher, student, match_sizes, expected):
    taps = pair_stages(stages('t', *teacher), stages('s', *student), match_sizes)
    assert taps == [dict(teacher=f't{i}', student=f's{j}', loss_weight=weight) for i, j, weight in expected]


def test_stages_that_stay_without_a_partner_are_told(monkeypatch):
    said = []
    monkeypatch.setattr('overhaul.method.stages.print_log', lambda line, *_: said.append(line))
    pair_stages(stages('t', 56, 28, 14, 7), stages('s', 28, 14, 5))
    assert said == [
        'taps="auto" leaves out, since no partner of the same size is left: t0 (56x56) and t3 (7x7) of the teacher, s2 '
        '(5x5) of the student.']
    said.clear()
    pair_stages(stages('t', 14, 7), stages('s', 14, 7))
    assert not said


@pytest.mark.parametrize('match_sizes', [False, True])
def test_stages_without_a_pair_are_refused(match_sizes):
    with pytest.raises(ValueError, match=r'Teacher: 32x32, 20x20. Student: 14x14. Choose models of the same strides, '
                                         r'let match_sizes=True pair sizes that are near, or name the taps'):
        pair_stages(stages('t', 32, 20), stages('s', 14), match_sizes)


def test_a_distillation_between_sizes_that_are_near():
    """AlexNet, whose maps are a little smaller than those of a ResNet, learns from it where asked to."""
    student = dict(
        _scope_='mmpretrain', type='ImageClassifier', backbone=dict(type='AlexNet'),
        neck=dict(type='GlobalAveragePooling'), head=dict(type='LinearClsHead', num_classes=5, in_channels=256))
    arguments = dict(teacher=resnet(8, strides=(2, 2, 2, 2)), student=student, taps='auto', input_size=(64, 64))
    with pytest.raises(ValueError, match=r'no stages of equal size\. Teacher: 32x32, 16x16, 8x8, 4x4\. Student: 15x15'):
        build_distiller(**arguments)
    model = build_distiller(match_sizes=True, **arguments)
    assert [(teacher_tap.size, student_tap.size) for teacher_tap, student_tap in zip(
        model.teacher_taps, model.student_taps)] == [((16, 16), (15, 15)), ((8, 8), (7, 7)), ((4, 4), (3, 3))]
    losses = model(*batch(pixels=64), mode='loss')
    assert all(losses[name].item() > 0 for name in model.loss_names)


def test_the_page_of_backbones_lists_what_is_found():
    """With the networks of its script, and for two of them the rows that it would write today."""
    pytest.importorskip('timm')
    docs = Path(__file__).parents[2] / 'docs'
    script = runpy.run_path(str(docs / 'backbones.py'))
    rows = [line.strip('| ').split(' | ') for line in (docs / 'backbones.md').read_text().splitlines()[16:]]
    networks = {network[:2]: network for network in script['networks']()}
    assert [tuple(row[:2]) for row in rows] == list(networks)
    for name in (('mmpretrain', 'convnext_v2/convnext-v2-atto_32xb32_in1k'), ('timm', 'lcnet_050')):
        assert script['look_at'](networks[name]) in rows


class Residual(nn.Module):
    """A block that answers as those of Hugging Face do: with a tuple."""

    def __init__(self, channels, rest):
        super().__init__()
        self.norm, self.output, self.rest = nn.LayerNorm(channels), nn.Linear(channels, channels), rest

    def forward(self, tokens):
        return tokens + self.output(self.norm(tokens)), *self.rest


class Pooled(nn.Module):
    """Tokens, blocks, and the mean of all as (N, C, 1), whose channels are as many as there are patches."""

    def __init__(self, rest):
        super().__init__()
        self.patches, self.blocks = nn.Conv2d(3, 64, 4, 4), nn.ModuleList(Residual(64, rest) for _ in range(2))
        self.pooler = nn.AdaptiveAvgPool1d(1)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)[0]
        return self.pooler(tokens.transpose(1, 2))


class OfTuples(nn.Module):
    def __init__(self, rest):
        super().__init__()
        self.backbone = Pooled(rest)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.backbone(inputs)


@pytest.mark.parametrize('rest', [(), (None, )])
@pytest.mark.parametrize('size', [(32, 32), (16, 48)])
def test_the_last_block_is_tapped_where_blocks_give_tuples(rest, size):
    torch.manual_seed(0)
    model = OfTuples(rest).eval()
    (stage, ) = find_stages(model, size)
    assert stage == ('backbone.blocks.1', 64, (size[0] // 4, size[1] // 4))
    taps, images = Taps(model, [stage.path], 'teacher'), torch.randn(2, 3, *size)
    taps.dry_run(model, size, stop_after_last=True)
    backbone, truth = model.backbone, model.backbone.patches(images).flatten(2).transpose(1, 2)
    for block in backbone.blocks:
        truth = block(truth)[0]
    assert torch.equal(taps.read(model, images)[0], truth.transpose(1, 2).unflatten(2, stage.size))
