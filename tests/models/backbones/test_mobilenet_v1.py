import pytest
import torch
from official import build_classifier, check_batch_norms, check_golden, check_tensors, shapes

from overhaul import MobileNetV1


def mobilenet():
    return build_classifier(dict(type='overhaul.MobileNetV1'), in_channels=1024, classes=1000)


def test_same_tensors_as_the_official_network():
    check_tensors(mobilenet(), 'mobilenet_v1')


def test_same_numbers_as_the_official_network():
    check_golden(mobilenet(), 'imagenet_b', 'student', ('model.3.4', 'model.5.4', 'model.11.4', 'model.13.4'))


def test_shapes_of_the_feature_maps():
    assert shapes(MobileNetV1(), size=64) == [(2, 1024, 2, 2)]
    assert shapes(MobileNetV1(out_indices=(0, 1, 3, 5, 11, 13)), size=64) == [
        (2, 32, 32, 32), (2, 64, 32, 32), (2, 128, 16, 16), (2, 256, 8, 8), (2, 512, 4, 4), (2, 1024, 2, 2)]


def test_each_batch_norm_runs_once_and_keeps_its_output():
    check_batch_norms(MobileNetV1(), size=64)


def test_init_weights_keeps_the_initialisation_of_pytorch():
    backbone = MobileNetV1()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    backbone.init_weights()
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


@pytest.mark.parametrize('out_indices', [(14, ), (-1, ), (), 13])
def test_out_indices_out_of_range_are_named(out_indices):
    with pytest.raises(ValueError, match='MobileNetV1 got out_indices=.*from 0 to 13'):
        MobileNetV1(out_indices=out_indices)
