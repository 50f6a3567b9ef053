import math

import pytest
import torch
from small_models import build_distiller, wide_resnet
from torch import nn

from overhaul import ConvBNConnector

pytestmark = pytest.mark.quick


def test_connector_is_a_convolution_without_bias_and_a_batch_norm():
    connector = ConvBNConnector(student_channels=3, teacher_channels=5)
    shapes = {name: tuple(parameter.shape) for name, parameter in connector.named_parameters()}
    assert shapes == {'conv.weight': (5, 3, 1, 1), 'bn.weight': (5, ), 'bn.bias': (5, )}
    assert connector.bn.weight.tolist() == [1] * 5 and connector.bn.bias.tolist() == [0] * 5


def test_output_is_the_normalised_mixture_of_channels():
    torch.manual_seed(0)
    connector = ConvBNConnector(3, 5).double()
    feature = torch.randn(4, 3, 6, 7, dtype=torch.float64)
    mixed = torch.einsum('oi,nihw->nohw', connector.conv.weight[:, :, 0, 0], feature)
    centred = mixed - mixed.mean((0, 2, 3), keepdim=True)
    expected = centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(connector(feature), expected, atol=1e-12)
    assert (expected < 0).any()  # no activation at its end


@pytest.mark.parametrize(('student_channels', 'teacher_channels'), [(64, 256), (256, 64)])
def test_initial_deviation_comes_from_the_teachers_channels(student_channels, teacher_channels):
    torch.manual_seed(0)
    weight = ConvBNConnector(student_channels, teacher_channels).conv.weight
    expected = math.sqrt(2 / teacher_channels)
    # Of 16,384 samples the deviation is known to 0.6 %, and the mean to 0.8 % of it.
    assert weight.std().item() == pytest.approx(expected, rel=0.025)
    assert weight.mean().item() == pytest.approx(0, abs=0.03 * expected)
    # Normal, not uniform: 4.55 % are beyond two deviations.
    assert (weight.abs() > 2 * expected).float().mean().item() == pytest.approx(0.0455, abs=0.006)


def test_there_is_a_connector_at_every_tap_where_channels_agree_too():
    model = build_distiller(teacher=wide_resnet(1), student=wide_resnet(1))
    assert [type(connector) for connector in model.connectors] == [ConvBNConnector] * 3
    for connector, channels in zip(model.connectors, (16, 32, 64)):
        assert isinstance(connector.conv, nn.Conv2d)
        assert connector.conv.weight.shape == (channels, channels, 1, 1)
