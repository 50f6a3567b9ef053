"""Maps of transformers: against what their own code makes of their tokens, on square and wide images of any size."""

import pytest
import torch
from small_models import batch, build_distiller, build_model, wide_resnet
from torch import nn

from overhaul.method.stages import find_stages
from overhaul.method.taps import Taps

SIZES = [(64, 64), (64, 128), (128, 64), (72, 116)]  # the last is no multiple of the patches
VIT = dict(patch_size=16, arch=dict(embed_dims=12, num_layers=2, num_heads=2, feedforward_channels=24))
SWIN = dict(embed_dims=8, depths=[1, 1, 2, 1], num_heads=[1, 1, 1, 1])
MIT = dict(embed_dims=8, num_layers=[1] * 4, num_heads=[1] * 4)
MMSEG_VIT = dict(patch_size=16, embed_dims=12, num_layers=2, num_heads=2)
TIMM_VIT = dict(type='TIMMBackbone', embed_dim=12, depth=2, num_heads=2, img_size=64, dynamic_img_size=True)


def classifier(backbone):
    return dict(_scope_='mmpretrain', type='ImageClassifier', backbone=backbone)


def vit(kind, **changes):
    return classifier(dict(dict(VIT, type=kind, img_size=64, out_type='featmap'), **changes))


def mmseg(**backbone):
    return classifier({key: f'mmseg.{value}' if key == 'type' else value for key, value in backbone.items()})


def timm(name, **changes):
    pytest.importorskip('timm')
    return classifier(dict(TIMM_VIT, model_name=name, **changes))


def own_map(model, images):
    """The last map of the backbone, by its own code."""
    return model.backbone(images)[-1]


def tokens_behind(extra, patch):
    """The last map of a backbone of timm, which gives all its tokens."""
    def read(model, images):
        tokens = own_map(model, images)[:, extra:]
        return tokens.transpose(1, 2).reshape(len(images), -1, images.shape[2] // patch, images.shape[3] // patch)
    return read


def channels_moved(model, images):
    return own_map(model, images).permute(0, 3, 1, 2)


BACKBONES = {
    'ViT': (lambda: vit('VisionTransformer'), 'ln1', own_map),
    'ViT without class token': (lambda: vit('VisionTransformer', with_cls_token=False), 'ln1', own_map),
    'ViT of rectangles': (lambda: vit('VisionTransformer', patch_cfg=dict(stride=(16, 8), padding=0)), 'ln1', own_map),
    'ViT of overlaps': (lambda: vit('VisionTransformer', patch_cfg=dict(stride=12, padding=0)), 'ln1', own_map),
    'DeiT': (lambda: vit('DistilledVisionTransformer'), 'ln1', own_map),
    'DeiT 3': (lambda: vit('DeiT3'), 'ln1', own_map),
    'BEiT': (lambda: vit('BEiTViT'), 'layers.1', own_map),
    'Swin': (lambda: classifier(dict(type='SwinTransformer', arch=SWIN, pad_small_map=True)), 'norm3', own_map),
    'ViT of mmseg': (
        lambda: mmseg(type='VisionTransformer', with_cls_token=False, **MMSEG_VIT), 'layers.1.ffn', own_map),
    'BEiT of mmseg': (lambda: mmseg(type='BEiT', img_size=(64, 64), out_indices=[1], **MMSEG_VIT), 'layers.1', own_map),
    'Swin of mmseg': (lambda: mmseg(type='SwinTransformer', **SWIN), 'norm3', own_map),
    'MiT': (lambda: mmseg(type='MixVisionTransformer', **MIT), 'layers.3.2', own_map),
    'ViT of timm': (lambda: timm('vit_tiny_patch16_224'), 'timm_model.norm', tokens_behind(1, 16)),
    'DINOv2 with registers': (lambda: timm('vit_small_patch14_reg4_dinov2', patch_size=16), 'timm_model.norm',
                              tokens_behind(5, 16)),
    'Swin of timm': (lambda: classifier(dict(
        type='TIMMBackbone', model_name='swin_tiny_patch4_window7_224', embed_dim=8, depths=(1, 1, 2, 1),
        num_heads=(1, 1, 1, 1), strict_img_size=False)), 'timm_model.norm', channels_moved),
}


@pytest.mark.parametrize('name', BACKBONES)
def test_the_last_block_is_tapped_and_read_as_the_backbone_reads_it(name):
    """At the size of the dry run, and at all others: images may be of several sizes in training."""
    config, path, truth = BACKBONES[name]
    sizes = SIZES[:3] if 'timm_model' in path else SIZES
    model = build_model(config()).eval()
    for size in sizes:
        if 'BEiT' in name:  # whose positions are bound to one size
            cfg = config()
            cfg['backbone']['img_size'] = size
            model = build_model(cfg).eval()
        stage = find_stages(model, size)[-1]
        assert stage.path == f'backbone.{path}'
        taps = Taps(model, [stage.path], 'student')
        taps.dry_run(model, size, stop_after_last=True)
        for other in [size] if 'BEiT' in name else sizes:
            images = torch.randn(2, 3, *other)
            feature, = taps.read(model, images)
            assert torch.allclose(feature, truth(model, images), atol=1e-5)
            if other == size:
                assert stage[1:] == (feature.shape[1], tuple(feature.shape[2:]))


def test_images_that_are_padded_for_timm():
    model = build_model(timm('vit_tiny_patch16_224', dynamic_img_pad=True)).eval()
    taps = Taps(model, ['backbone.timm_model.blocks.1'], 'teacher')
    taps.dry_run(model, (64, 64), stop_after_last=False)
    image = torch.randn(1, 3, 72, 116)
    padded = nn.functional.pad(image, (0, 12, 0, 8))
    assert torch.allclose(taps.read(model, image)[0], taps.read(model, padded)[0], atol=1e-5)
    assert taps.read(model, image)[0].shape == (1, 12, 5, 8)


def test_the_last_map_of_each_resolution_of_a_swin_that_has_its_channels_last():
    pytest.importorskip('timm')
    model = build_model(classifier(dict(
        type='TIMMBackbone', model_name='swin_tiny_patch4_window7_224', embed_dim=8, depths=(1, 1, 2, 1),
        num_heads=(1, 1, 1, 1), strict_img_size=False, features_only=True))).eval()
    taps = Taps(model, [stage.path for stage in find_stages(model, (64, 64))], 'teacher')
    taps.dry_run(model, (64, 64), stop_after_last=True)
    for size in ((32, 32), (64, 128)):  # of the first, the map is 8 x 8 x 8
        images = torch.randn(2, 3, *size)
        features, own = taps.read(model, images), model.backbone(images)
        assert all(torch.equal(ours, theirs.permute(0, 3, 1, 2)) for ours, theirs in zip(features, own, strict=True))


@pytest.mark.parametrize('start', [(64, 64), (65, 72)])
@pytest.mark.parametrize(('config', 'path'), [
    (mmseg(type='SwinTransformer', **SWIN), 'norm{}'), (mmseg(type='MixVisionTransformer', **MIT), 'layers.{}.2')])
def test_each_stage_at_sizes_that_are_no_multiple_of_anything(config, path, start):
    """6 tokens of an image of 79 x 63 are 3 x 2, and not 2 x 2 behind two others."""
    model = build_model(config).eval()
    taps = Taps(model, [f'backbone.{path.format(i)}' for i in range(4)], 'student')
    taps.dry_run(model, start, stop_after_last=False)
    for size in ((79, 63), (63, 79), (75, 85), (61, 113), (200, 97), (33, 47)):
        images = torch.randn(1, 3, *size)
        features = taps.read(model, images)
        assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(features, model.backbone(images), strict=True))


class Backbone(nn.Module):
    """Patches of 4 x 4 behind tokens of which it says nothing but their names, and one block."""

    def __init__(self, tokens=(), rearrange=lambda sequence: sequence, channels=7, behind=()):
        super().__init__()
        self.projection = nn.Conv2d(3, channels, 4, 4)
        self.block, self.rearrange, self.behind = nn.Linear(channels, channels), rearrange, behind
        for name, count in dict(tokens).items():
            self.register_parameter(name, nn.Parameter(torch.randn(1, count, channels)))

    def forward(self, images):
        tokens = {name: token.expand(len(images), -1, -1) for name, token in self.named_parameters(recurse=False)}
        after = [tokens.pop(name) for name in self.behind]
        sequence = torch.cat([*tokens.values(), self.projection(images).flatten(2).transpose(1, 2), *after], 1)
        return self.block(self.rearrange(sequence))


class Model(nn.Module):
    def __init__(self, *arguments, **changes):
        super().__init__()
        self.backbone = Backbone(*arguments, **changes)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.backbone(inputs)


def taps_of(model, size):
    taps = Taps(model, ['backbone.block'], 'teacher')
    taps.dry_run(model, size, stop_after_last=True)
    return taps


@pytest.mark.parametrize('tokens', [
    {}, dict(unknown=1), dict(cls_token=1), dict(cls_token=1, dist_token=1), dict(cls_token=1, register_tokens=4)])
def test_extra_tokens_by_their_names_and_one_or_two_without(tokens):
    model = Model(tokens)
    images = torch.randn(2, 3, 36, 64)  # 9 x 16 = 12 x 12
    assert torch.allclose(taps_of(model, (36, 64)).read(model, images)[0], own_map_of(model, images), atol=1e-6)


def own_map_of(model, images):
    """The patches by hand: a linear layer is a convolution of one pixel."""
    block = model.backbone.block
    return nn.functional.conv2d(model.backbone.projection(images), block.weight[:, :, None, None], block.bias)


@pytest.mark.parametrize('behind', [('cls_token', ), ('other', ), ('cls_token', 'other')])
def test_extra_tokens_behind_the_patches(behind):
    model = Model(dict(cls_token=1, other=1), behind=behind)
    model.backbone.num_extra_tokens = 2
    taps = taps_of(model, (36, 64))
    for size in ((36, 64), (64, 24)):
        images = torch.randn(2, 3, *size)
        assert torch.allclose(taps.read(model, images)[0], own_map_of(model, images), atol=1e-6)


def test_a_class_token_of_an_unknown_name_behind_the_patches():
    model, images = Model(dict(unknown=1), behind=('unknown', )), torch.randn(2, 3, 36, 64)
    assert torch.allclose(taps_of(model, (36, 64)).read(model, images)[0], own_map_of(model, images), atol=1e-6)


class Middle(Model):
    """Its class token is in the middle, as in Vision Mamba, or is the mean of the patches."""

    def __init__(self, mean=False):
        super().__init__({} if mean else dict(cls_token=1), self.arrange)
        self.mean = mean

    def arrange(self, sequence):
        if self.mean:
            return torch.cat([sequence, sequence.mean(1, keepdim=True)], 1)
        return torch.cat([sequence[:, 1:73], sequence[:, :1], sequence[:, 73:]], 1)


@pytest.mark.parametrize('mean', [False, True])
def test_extra_tokens_that_lie_nobody_knows_where_are_refused(mean):
    with pytest.raises(ValueError, match='145 tokens, of which 1 is no patch of the image, and it is not known which'):
        taps_of(Middle(mean), (36, 64))
    told = Middle(True)
    told.backbone.num_extra_tokens = 1  # who says so says that they come first
    assert taps_of(told, (36, 64)).taps[0].size == (9, 16)


def test_a_class_token_beside_patches_that_are_pooled_later_goes_on():
    pytest.importorskip('timm')
    model = build_model(dict(type='mmpretrain.TimmClassifier', model_name='pit_ti_224')).eval()
    taps = Taps(model, ['model.transformers.1.blocks.5'], 'teacher')
    taps.dry_run(model, (224, 224), stop_after_last=True)
    assert (taps.taps[0].size, taps.taps[0].layout.behind) == ((14, 14), 0)


@pytest.mark.parametrize('swin', [
    lambda: mmseg(type='SwinTransformer', **dict(SWIN, depths=[1, 2, 1, 1])),
    lambda: classifier(dict(type='SwinTransformer', arch=dict(SWIN, depths=[1, 2, 1, 1]), pad_small_map=True))])
def test_a_window_that_is_the_whole_map_of_one_size_is_refused(swin):
    """It is rolled by three tokens in every second block."""
    model = build_model(swin()).eval()
    for path in ('attn.w_msa', 'attn.w_msa:input'):
        taps = Taps(model, [f'backbone.stages.1.blocks.1.{path}'], 'teacher')
        with pytest.raises(ValueError, match='gives a window of a map, and not the map: .* has 2 of them'):
            taps.dry_run(model, (56, 56), stop_after_last=True)
    taps = Taps(model, ['backbone.stages.1.blocks.1.attn'], 'teacher')
    taps.dry_run(model, (56, 56), stop_after_last=True)
    assert taps.taps[0].size == (7, 7)


def channels_first(sequence):
    return sequence.transpose(1, 2)


@pytest.mark.parametrize('size', [(36, 64), (32, 32)])
def test_channels_that_could_be_tokens_are_refused(size):
    """As between the layers of an MLP-Mixer that mix tokens: 144 channels, and 144 tokens or 64."""
    class Mixer(Model):
        def __init__(self):
            super().__init__(channels=144 if size == (36, 64) else 64)
            count = size[0] * size[1] // 16
            self.backbone.block = nn.Linear(count, count)
            self.backbone.rearrange = channels_first

    model = Mixer()
    with pytest.raises(ValueError, match=r'at this input_size either (144|64) or \1 may be the tokens of the image'):
        taps_of(model, size)


def test_tokens_whose_channels_could_be_tokens_are_read_where_another_image_tells():
    model, images = Model(channels=64), torch.randn(2, 3, 32, 32)
    assert torch.allclose(taps_of(model, (32, 32)).read(model, images)[0], own_map_of(model, images), atol=1e-6)


class OneSize(Model):
    def forward(self, inputs, data_samples=None, mode='tensor'):
        assert inputs.shape[2:] == (32, 32)
        return super().forward(inputs)


@pytest.mark.parametrize('told', ['num_extra_tokens', 'norm'])
def test_tokens_of_a_model_for_one_size_are_read_where_something_tells(monkeypatch, told):
    images = torch.randn(2, 3, 32, 32)
    with pytest.raises(ValueError, match='either 64 or 16 .* class attribute num_extra_tokens: of class'):
        taps_of(OneSize(channels=16), (32, 32))
    model = OneSize(channels=16)
    if told == 'norm':
        model.backbone.block = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16))
    else:
        monkeypatch.setattr(Backbone, 'num_extra_tokens', 0, raising=False)
    with torch.no_grad():
        truth = model.backbone.block(model.backbone.projection(images).movedim(1, 3)).movedim(3, 1)
    assert torch.allclose(taps_of(model, (32, 32)).read(model, images)[0], truth, atol=1e-6)


@pytest.mark.parametrize(('config', 'path', 'size'), [
    (lambda: timm('vit_tiny_patch16_224', patch_size=2, img_size=16, embed_dim=64, dynamic_img_size=False),
     'timm_model.blocks.1', (16, 16)),
    (lambda: timm('vit_base_patch16_siglip_224', patch_size=2, img_size=16, embed_dim=64, dynamic_img_size=False),
     'timm_model.blocks.1', (16, 16)),
    (lambda: classifier(dict(type='MlpMixer', arch=dict(
        embed_dims=16, num_layers=1, tokens_mlp_dims=8, channels_mlp_dims=8), img_size=32, patch_size=4)),
     'layers.0.ln2', (32, 32)),
    (lambda: mmseg(type='MixVisionTransformer', **dict(MIT, embed_dims=16)), 'layers.1.2', (64, 64)),
    (lambda: mmseg(type='SwinTransformer', **dict(SWIN, embed_dims=16)), 'norm2', (64, 64)),
], ids=['ViT', 'SigLIP', 'Mixer', 'MiT', 'Swin'])
def test_transformers_with_as_many_channels_as_patches_go_on(config, path, size):
    """As ViT-L at 512, where 1024 patches have 1024 channels."""
    model = build_model(config()).eval()
    taps = Taps(model, [f'backbone.{path}'], 'teacher')
    taps.dry_run(model, size, stop_after_last=True)
    assert taps.taps[0].layout.tokens


@pytest.mark.parametrize(('arguments', 'message'), [
    ((dict(unknown=5), ), r'149 tokens fit no map of an image of 36x64 with patches of 4x4; the backbone tells of no '
                          r'class and register tokens\. .* class attribute num_extra_tokens'),
    ((dict(cls_token=1, unknown=4), ), '149 tokens .* the backbone has 1 class or register token'),
    (({}, lambda sequence: sequence.unflatten(1, (9, 16)).flatten(0, 1)), 'These are 9 parts of 1 image:'),
    (({}, lambda sequence: sequence[:, :30]), '30 tokens fit no map'),
    ((dict(cls_token=1), lambda sequence: sequence[:, :1]), 'has 1 class or register token, and here are no others'),
    (({}, lambda sequence: sequence[:, :2]), '2 tokens fit more than one map'),
], ids=['not told', 'more than told', 'windows', 'a part', 'class token', 'two tokens'])
def test_tokens_that_are_no_map_of_the_image_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f'The teacher tap "backbone.block" .*Linear.* tokens .*{message}'):
        taps_of(Model(*arguments), (36, 64))


def test_no_map_has_no_pixels():
    """One token of an image that is nearly three times as wide as high is no map of 0 x 1 behind a class token."""
    with pytest.raises(ValueError, match='1 token fits no map'):
        taps_of(Model({}, lambda sequence: sequence[:, :1]), (24, 56))


@pytest.mark.parametrize('told', [None, 1])
def test_what_the_message_advises_is_right(monkeypatch, told):
    model = Model(dict(unknown=5))
    advice = 'give Backbone the right number as the class attribute num_extra_tokens'
    if told:
        model.backbone.num_extra_tokens = told
        advice = 'correct the num_extra_tokens that the __init__ of Backbone sets'
    with pytest.raises(ValueError, match=advice):
        taps_of(model, (36, 64))
    if told:
        model.backbone.num_extra_tokens = 5
    else:
        monkeypatch.setattr(Backbone, 'num_extra_tokens', 5, raising=False)
    assert taps_of(model, (36, 64)).taps[0].size == (9, 16)


def test_tokens_in_an_order_of_their_own_are_refused():
    model = Model()
    model.backbone.reroll = nn.Identity()
    with pytest.raises(ValueError, match='keeps its tokens in an order of its own'):
        taps_of(model, (36, 64))


def test_a_compiled_backbone_gives_the_same_maps_without_a_graph_break():
    model = Model(dict(cls_token=1))
    taps = taps_of(model, (36, 64))
    images = torch.randn(2, 3, 36, 64), torch.randn(2, 3, 64, 36)
    plain = [tap for image in images for tap in taps.read(model, image)]
    for tap in taps:
        tap.last_call = None  # a compiled pass runs to its end
    model.backbone.compile(backend='eager', fullgraph=True)
    for image, expected in zip(images, plain):
        assert torch.allclose(taps.read(model, image)[0], expected, atol=1e-6)


@pytest.mark.parametrize('side', ['teacher', 'student'])
def test_a_distillation_of_wide_images(side):
    """Between a network of convolutions and a transformer, in the size of the dry run and in another one."""
    transformer = vit('VisionTransformer', patch_size=4, out_type='cls_token')
    transformer['head'] = dict(type='VisionTransformerClsHead', num_classes=5, in_channels=12)
    other = 'student' if side == 'teacher' else 'teacher'
    model = build_distiller(
        taps='auto', input_size=(36, 64), teacher_checkpoint=None, alpha=1e-3,
        **{side: transformer, other: wide_resnet()})
    for margin in model.margins:
        if margin.margin.isnan().any():
            margin.margin.fill_(-0.1)
    taps = getattr(model, f'{side}_taps')
    assert [(tap.path, tap.size) for tap in taps] == [('backbone.ln1', (9, 16))]
    for size in ((36, 64), (64, 36)):
        losses = model(torch.randn(4, 3, *size), batch()[1], mode='loss')
        assert losses[model.loss_names[0]] > 0
