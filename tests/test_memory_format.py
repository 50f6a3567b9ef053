"""On a CPU the distillation runs in channels-last memory, and the student as it is configured."""

import pytest
import torch
from small_models import batch, build_distiller
from torch import nn

from overhaul.memory_format import quickest

CHANNELS_LAST = torch.channels_last


def test_a_map_keeps_its_values_and_one_that_is_channels_last_is_not_copied():
    feature = torch.randn(2, 3, 4, 5)
    quick = quickest(feature)
    assert quick.is_contiguous(memory_format=CHANNELS_LAST) and torch.equal(quick, feature)
    assert quickest(quick) is quick


def test_on_another_device_a_map_is_left_as_it_is():
    feature = torch.empty(2, 3, 4, 5, device='meta')
    assert quickest(feature) is feature


@pytest.mark.parametrize('at_once', [True, False])
def test_teacher_and_connectors_normalise_in_channels_last_and_the_student_does_not(at_once):
    model = build_distiller(at_once=at_once)
    layouts = {}
    for name, part in dict(teacher=model.teacher, student=model.student, connectors=model.connectors).items():
        layouts[name] = []
        for module in part.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(lambda _, inputs, output, kind=layouts[name]: kind.extend(
                    feature.is_contiguous(memory_format=CHANNELS_LAST) for feature in (*inputs, output)))
    compared = []
    model.distill_loss.register_forward_pre_hook(lambda _, maps: compared.extend(
        feature.is_contiguous(memory_format=CHANNELS_LAST) for feature in maps))
    model.loss(*batch())
    assert all(layouts['teacher']) and all(layouts['connectors']) and not any(layouts['student'])
    assert len(compared) == 2 * len(model.connectors) and all(compared)
