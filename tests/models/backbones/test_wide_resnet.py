import pytest
import torch
from official import (
    build_classifier,
    check_batch_norms,
    check_golden,
    check_official_convolutions,
    check_tensors,
    shapes,
)

from overhaul import WideResNet

TAPS = ('block2.0.bn1', 'block3.0.bn1', 'bn1')


def classifier(depth, widen_factor):
    backbone = dict(type='overhaul.WideResNet', depth=depth, widen_factor=widen_factor)
    return build_classifier(backbone, in_channels=64 * widen_factor, classes=100)


@pytest.mark.parametrize(('depth', 'widen_factor'), [(28, 4), (16, 4), (28, 2), (16, 2)])
def test_same_tensors_as_the_official_network(depth, widen_factor):
    check_tensors(classifier(depth, widen_factor), f'wrn{depth}_{widen_factor}')


@pytest.mark.parametrize(('role', 'depth'), [('teacher', 28), ('student', 16)])
def test_same_numbers_as_the_official_network(role, depth):
    check_golden(classifier(depth, widen_factor=4), 'cifar_a', role, TAPS)


def test_shapes_of_the_feature_maps():
    assert shapes(WideResNet(10, 2, out_indices=(0, 1, 2))) == [(2, 32, 32, 32), (2, 64, 16, 16), (2, 128, 8, 8)]
    assert shapes(WideResNet(16, 1)) == [(2, 64, 8, 8)]


def test_only_the_last_feature_map_is_activated():
    features = WideResNet(10, 1, out_indices=(0, 1, 2))(torch.randn(2, 3, 32, 32))
    negative = [bool((feature < 0).any()) for feature in features]
    assert negative == [True, True, False]


@pytest.mark.parametrize(('depth', 'widen_factor'), [(10, 1), (16, 2), (28, 1)])
def test_each_batch_norm_runs_once_and_keeps_its_output(depth, widen_factor):
    check_batch_norms(WideResNet(depth, widen_factor))


def test_at_widen_factor_1_the_first_stage_passes_its_raw_input():
    backbone = WideResNet(10, 1)
    assert [block[0].shortcut is None for block in (backbone.block1, backbone.block2, backbone.block3)] == [
        True, False, False]


def test_initialisation_is_the_official_one():
    check_official_convolutions(WideResNet(10, 4))


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(depth=17, widen_factor=2), r'depth=17.*6 \* n \+ 4.*16 and 22'),
    (dict(depth=4, widen_factor=2), r'depth=4.*10 and 16'),
    (dict(depth='28', widen_factor=2), r"depth='28'.*10 and 16"),
    (dict(depth=16, widen_factor=0), 'widen_factor=0.*1 or more'),
    (dict(depth=16, widen_factor=1.5), 'widen_factor=1.5.*integer'),
    (dict(depth=16, widen_factor=2, out_indices=(3, )), r'out_indices=\(3,\).*from 0 to 2'),
    (dict(depth=16, widen_factor=2, out_indices=(-1, )), r'out_indices=\(-1,\).*from 0 to 2'),
    (dict(depth=16, widen_factor=2, out_indices=()), r'out_indices=\(\).*from 0 to 2'),
    (dict(depth=16, widen_factor=2, out_indices=2), r'out_indices=2.*a tuple'),
])
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        WideResNet(**arguments)
