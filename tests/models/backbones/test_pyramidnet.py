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

from overhaul import PyramidNet


def pyramid200():
    backbone = dict(type='overhaul.PyramidNet', depth=200, alpha=240, bottleneck=True)
    return build_classifier(backbone, in_channels=1024, classes=100)


def pyramid110():
    backbone = dict(type='overhaul.PyramidNet', depth=110, alpha=84, bottleneck=False)
    return build_classifier(backbone, in_channels=100, classes=100)


def test_same_tensors_as_the_official_networks():
    check_tensors(pyramid200(), 'pyramid200')
    check_tensors(pyramid110(), 'pyramid110')


def test_same_numbers_as_the_official_bottleneck_network():
    check_golden(pyramid200(), 'cifar_f', 'teacher', ('layer2.0.bn2', 'layer3.0.bn2', 'bn_final'))


def test_same_numbers_as_the_official_basic_network():
    check_golden(pyramid110(), 'cifar_f', 'student', ('layer2.0.bn1', 'layer3.0.bn1', 'bn_final'))


@pytest.mark.parametrize(('depth', 'bottleneck', 'factor'), [(8, False, 1), (11, True, 4)])
def test_shapes_of_the_feature_maps(depth, bottleneck, factor):
    backbone = PyramidNet(depth, alpha=24, bottleneck=bottleneck, out_indices=(0, 1, 2))
    assert shapes(backbone) == [
        (2, 24 * factor, 32, 32), (2, 32 * factor, 16, 16), (2, 40 * factor, 8, 8)]
    assert shapes(backbone, size=33)[1:] == [(2, 32 * factor, 17, 17), (2, 40 * factor, 9, 9)]


def test_only_the_last_feature_map_is_activated():
    features = PyramidNet(8, alpha=24, bottleneck=False, out_indices=(0, 1, 2))(torch.randn(2, 3, 32, 32))
    assert [bool((feature < 0).any()) for feature in features] == [True, True, False]


@pytest.mark.parametrize(('depth', 'bottleneck'), [(14, False), (20, True)])
def test_each_batch_norm_runs_once_and_keeps_its_output(depth, bottleneck):
    check_batch_norms(PyramidNet(depth, alpha=12, bottleneck=bottleneck))


def test_the_shortcut_follows_the_dtype_of_the_features():
    backbone = PyramidNet(8, alpha=24, bottleneck=False).bfloat16()
    assert backbone(torch.randn(2, 3, 32, 32, dtype=torch.bfloat16))[0].dtype == torch.bfloat16


def test_initialisation_is_the_official_one():
    check_official_convolutions(PyramidNet(11, alpha=240, bottleneck=True))


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(depth=100, alpha=84, bottleneck=True), r'bottleneck=True got depth=100.*9 \* n \+ 2.*92 and 101'),
    (dict(depth=100, alpha=84, bottleneck=False), r'bottleneck=False got depth=100.*6 \* n \+ 2.*98 and 104'),
    (dict(depth=110, alpha=0, bottleneck=False), 'alpha=0.*above 0'),
    (dict(depth=110, alpha=84, bottleneck=False, out_indices=(1, 3)), r'out_indices=\(1, 3\).*from 0 to 2'),
])
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        PyramidNet(**arguments)
