import pytest
import torch
import torchvision
from torch import nn

from overhaul import DilatedResNet


def dilated_resnet18():
    network = DilatedResNet(18, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), out_indices=(0, 3))
    network.eval()  # mmseg's returns None
    return network


def test_both_convolutions_of_the_last_stage_are_dilated_and_no_other():
    dilations = {name: module.dilation[0] for name, module in dilated_resnet18().named_modules()
                 if isinstance(module, nn.Conv2d)}
    dilated = {name for name, dilation in dilations.items() if dilation == 2}
    assert dilated == {f'layer4.{block}.conv{i}' for block in (0, 1) for i in (1, 2)}
    assert len(dilations) == 20 and set(dilations.values()) == {1, 2}


@pytest.mark.parametrize('depth', [18, 34])
def test_it_is_the_torchvision_network_where_nothing_is_dilated(depth):
    torch.manual_seed(0)
    reference = getattr(torchvision.models, f'resnet{depth}')().double().eval()
    network = DilatedResNet(depth).double()
    network.eval()
    weights = {name: value for name, value in reference.state_dict().items() if not name.startswith('fc.')}
    network.load_state_dict(weights, strict=True)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = nn.Sequential(*list(reference.children())[:-2])(images)
        torch.testing.assert_close(network(images)[-1], expected, rtol=1e-12, atol=1e-12)


def test_a_dilated_block_is_the_plain_one_on_every_second_pixel():
    torch.manual_seed(0)
    plain = torchvision.models.resnet18().double().eval().layer4[1]
    dilated = dilated_resnet18().double().layer4[1]
    dilated.load_state_dict(plain.state_dict(), strict=True)
    features = torch.randn(1, 512, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(
            dilated(features)[..., ::2, ::2], plain(features[..., ::2, ::2]), rtol=1e-12, atol=1e-12)


def test_strides_are_4_and_16():
    with torch.no_grad():
        low, high = dilated_resnet18()(torch.zeros(1, 3, 65, 65))
    assert (low.shape, high.shape) == ((1, 64, 17, 17), (1, 512, 5, 5))


def test_other_depths_are_refused():
    with pytest.raises(ValueError, match='depths 18 and 34, not 50.*mmseg.ResNet'):
        DilatedResNet(50)
