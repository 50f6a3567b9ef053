import pytest
from official import (
    build_classifier,
    check_batch_norms,
    check_golden,
    check_official_convolutions,
    check_tensors,
    shapes,
)

from overhaul import CifarResNet


def resnet56():
    return build_classifier(dict(type='overhaul.CifarResNet', depth=56), in_channels=64, classes=100)


def test_same_tensors_as_the_official_network():
    check_tensors(resnet56(), 'cifar_resnet56')


def test_same_numbers_as_the_official_network():
    taps = ('layer1.8.relu:input', 'layer2.8.relu:input', 'layer3.8.relu:input')
    check_golden(resnet56(), 'cifar_d', 'student', taps)


def test_shapes_of_the_feature_maps():
    assert shapes(CifarResNet(8, out_indices=(0, 1, 2))) == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]
    assert shapes(CifarResNet(14)) == [(2, 64, 8, 8)]


@pytest.mark.parametrize('depth', [8, 20])
def test_each_batch_norm_runs_once_and_keeps_its_output(depth):
    check_batch_norms(CifarResNet(depth))


def test_initialisation_is_the_official_one():
    check_official_convolutions(CifarResNet(14))


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(depth=57), r'depth=57.*6 \* n \+ 2.*56 and 62'),
    (dict(depth=2), r'depth=2.*8 and 14'),
    (dict(depth=56, out_indices=(0, 3)), r'out_indices=\(0, 3\).*from 0 to 2'),
])
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CifarResNet(**arguments)
