from pathlib import Path

import pytest
import torch
from golden import inputs, load_golden, load_manifest, parameter_count, recipe_state_dict
from mmengine.config import Config
from torch import nn

from overhaul import DeepLabV3PlusHead
from overhaul.files.names import to_model_keys
from overhaul.registry import MODELS

CONFIGS = Path(__file__).parents[3] / 'configs'
NETWORKS = Config.fromfile(CONFIGS / '_base_/networks/deeplab_v3_plus.py')


def small_head(aspp_dropout_ratio=0.0, fusion_dropout_ratio=0.0, dropout_ratio=0.0):
    torch.manual_seed(0)
    return DeepLabV3PlusHead(
        in_channels=6, c1_in_channels=3, channels=4, c1_channels=2, dilations=(1, 2), num_classes=5,
        aspp_dropout_ratio=aspp_dropout_ratio, fusion_dropout_ratio=fusion_dropout_ratio, dropout_ratio=dropout_ratio)


def small_maps(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 3, 16, 16, generator=generator), torch.randn(3, 6, 4, 4, generator=generator)]


@pytest.mark.parametrize('network', ['deeplab_resnet101', 'deeplab_resnet18', 'deeplab_mobilenetv2'])
def test_the_networks_have_the_official_number_of_parameters(network):
    model = MODELS.build(NETWORKS[network])
    assert sum(parameter.numel() for parameter in model.parameters()) == parameter_count(network)


@pytest.mark.parametrize(('network', 'role'), [('deeplab_resnet101', 'teacher'), ('deeplab_resnet18', 'student')])
def test_official_weights_fit_and_give_the_official_logits(network, role):
    golden = load_golden('voc_resnet18')
    model = MODELS.build(NETWORKS[network])
    model.load_state_dict(to_model_keys(recipe_state_dict(load_manifest(network), f'{role}.')), strict=True)
    model.double().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0
    images = inputs(golden).double()
    with torch.no_grad():
        logits = model(images, mode='tensor')
    assert logits.shape == (2, 21, 33, 33)
    logits = nn.functional.interpolate(logits, images.shape[2:], mode='bilinear', align_corners=True)
    expected = golden[f'{role}_logits']
    assert logits.flatten()[:8].tolist() == pytest.approx(expected['first8_flat'], rel=1e-9)
    assert logits[0, :8, 0, 0].tolist() == pytest.approx(expected['pixel00_first8_classes_sample0'], rel=1e-9)
    assert logits.mean().item() == pytest.approx(expected['mean'], rel=1e-9)
    assert logits.std(correction=0).item() == pytest.approx(expected['std'], rel=1e-9)
    assert logits.abs().sum().item() == pytest.approx(expected['abs_sum'], rel=1e-9)


def test_mobilenet_has_the_official_tensors_in_the_official_order():
    official = [shape for name, shape, kind in load_manifest('deeplab_mobilenetv2')
                if not name.startswith(('backbone.low_level_features.', 'backbone.high_level_features.'))]
    model = MODELS.build(NETWORKS.deeplab_mobilenetv2)
    backbone = [list(value.shape) for value in model.backbone.state_dict().values()]
    assert backbone == official[:len(backbone)]
    # The order of registration differs in the head, and the set of shapes does not.
    head = [list(value.shape) for value in model.decode_head.state_dict().values()]
    assert sorted(head) == sorted(official[len(backbone):])


def test_mobilenet_gives_the_head_strides_4_and_16():
    model = MODELS.build(NETWORKS.deeplab_mobilenetv2).eval()
    with torch.no_grad():
        low, high = model.backbone(torch.zeros(1, 3, 65, 65))
    assert (low.shape, high.shape) == ((1, 24, 17, 17), (1, 320, 5, 5))
    dilated = {name: module.dilation for name, module in model.backbone.named_modules()
               if isinstance(module, nn.Conv2d) and module.dilation != (1, 1)}
    assert dilated == {'layer7.0.conv.1.conv': (2, 2)}


def test_imagenet_weights_of_mobilenet_fit():
    # Those of init_cfg are mmpretrain's.
    from mmpretrain.models import MobileNetV2
    pretrained = {name: value.shape for name, value in MobileNetV2().state_dict().items()}
    needed = MODELS.build(NETWORKS.deeplab_mobilenetv2.backbone).state_dict()
    assert {name: value.shape for name, value in needed.items()}.items() <= pretrained.items()


def test_dropout_after_the_pyramid_drops_the_coarse_map_alone():
    (fine, coarse), (other_fine, other_coarse) = small_maps(seed=1), small_maps(seed=2)
    head = small_head(aspp_dropout_ratio=1.0)
    assert torch.equal(head([fine, coarse]), head([fine, other_coarse]))
    assert not torch.allclose(head([fine, coarse]), head([other_fine, coarse]))
    head = small_head()
    assert not torch.allclose(head([fine, coarse]), head([fine, other_coarse]))


def test_dropout_of_the_fusion_drops_both_maps():
    head = small_head(fusion_dropout_ratio=1.0)
    assert torch.equal(head(small_maps(seed=1)), head(small_maps(seed=2)))
    head = small_head()
    assert not torch.allclose(head(small_maps(seed=1)), head(small_maps(seed=2)))


def test_dropout_zeroes_elements_and_not_channels():
    head = small_head(dropout_ratio=0.5)
    seen = []
    head.conv_seg.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    head.fusion[1].register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    head(small_maps(seed=1))
    before, after = seen
    kept = (after != 0)[before > 0]
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(after[before > 0][kept], 2 * before[before > 0][kept])
    shares = torch.stack([(after[n, c] != 0)[before[n, c] > 0].float().mean() for n in range(3) for c in range(4)])
    assert ((shares > 0) & (shares < 1)).all()


def test_weights_are_drawn_by_fan_in():
    torch.manual_seed(0)
    head = MODELS.build(NETWORKS.deeplab_resnet18.decode_head)
    head.init_weights()
    convolutions = {name: module for name, module in head.named_modules() if isinstance(module, nn.Conv2d)}
    assert len(convolutions) == 4 + 1 + 1 + 1 + 2 + 1
    for name, module in convolutions.items():
        fan_in = module.weight[0].numel()
        # The sample deviation of n normal values is within 4 / sqrt(2 n) of the true one.
        tolerance = 4 / (2 * module.weight.numel()) ** 0.5
        assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=tolerance), name


@pytest.mark.parametrize('config', ['voc_r101_r18', 'voc_r101_mbv2'])
def test_the_configs_distil_without_dropout_after_the_pyramid(config):
    student = MODELS.build(Config.fromfile(CONFIGS / f'{config}.py').model.student)
    head = student.decode_head
    assert (head.aspp_dropout.p, head.fusion_dropout.p, head.dropout.p) == (0, 0.5, 0.1)
    assert MODELS.build(NETWORKS.deeplab_resnet101).decode_head.aspp_dropout.p == 0.5
