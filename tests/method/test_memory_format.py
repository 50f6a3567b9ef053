"""On a CPU the distillation runs in channels-last memory, and the student as it is configured."""

import pytest
import torch
from small_models import batch, build_distiller, segmentor
from torch import nn

from overhaul.method.memory_format import give_operators_plain_maps, quickest

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


def losses_of(model):
    return {name: loss.item() for name, loss in model.loss(*batch()).items()}


def take_views(module, inputs):
    """What mmseg's DMNet does between two convolutions, and mmpretrain's VGG after the last one."""
    (feature, ) = inputs
    return feature.view(1, -1, *feature.shape[2:]).view(feature.shape)


def test_a_teacher_that_takes_views_runs_in_the_plain_layout_and_says_so_once(monkeypatch):
    said = []
    monkeypatch.setattr('overhaul.method.distiller.print_log', lambda line, *_: said.append(line))
    expected, model = losses_of(build_distiller()), build_distiller()
    model.teacher.backbone.block2.register_forward_pre_hook(take_views)
    assert losses_of(model) == losses_of(model) == pytest.approx(expected, rel=1e-4)
    assert len(said) == 1 and 'it runs in that, and somewhat slower' in said[0]


def test_where_the_layout_is_as_it_was_the_error_is_raised_and_nothing_said(monkeypatch):
    monkeypatch.setattr('overhaul.method.distiller.print_log', lambda line, *_: pytest.fail(line))
    monkeypatch.setattr('overhaul.method.distiller.quickest', lambda images: images)  # as on a GPU
    model = build_distiller().to(memory_format=CHANNELS_LAST)
    model.teacher.backbone.block2.register_forward_pre_hook(take_views)
    with pytest.raises(RuntimeError, match='view size is not compatible'):
        model.loss(*batch())


def test_another_error_of_the_teacher_is_raised():
    model = build_distiller()
    model.teacher.backbone.block2.register_forward_pre_hook(lambda *_: torch.ones(2) + torch.ones(3))
    with pytest.raises(RuntimeError, match='size of tensor'):
        model.loss(*batch())


def test_a_compiled_step_leaves_the_layout_to_the_compiler():
    expected, model = losses_of(build_distiller()), build_distiller()
    model.teacher.backbone.block2.register_forward_pre_hook(take_views)
    model.loss = torch.compile(model.loss, backend='eager')
    assert losses_of(model) == pytest.approx(expected, rel=1e-4)


def test_a_distance_that_takes_views_is_refused_with_what_to_do():
    model = build_distiller()
    model.distill_loss.forward = lambda student, teacher: (student.view(4, -1) - teacher.view(4, -1)).square().sum()
    with pytest.raises(ValueError, match='Take reshape in the place of view'):
        model.loss(*batch())


@pytest.mark.quick
def test_operators_of_mmcv_get_plain_maps():
    """The compiled ones read others as if they were plain."""
    from mmcv.ops import RoIAlign
    deformable = dict(dcn=dict(type='DCN', deform_groups=1), stage_with_dcn=(False, False, False, True))
    teacher, student = segmentor(4), segmentor(2)
    teacher['backbone'] = dict(type='ResNet', depth=50, base_channels=4, stem_channels=4, **deformable)
    teacher['decode_head']['in_channels'] = 128
    model = build_distiller(
        teacher=teacher, student=student, input_size=(96, 96),
        taps=[dict(teacher='backbone.layer4.2.relu:input', student='backbone.layer4.1.relu:input')],
        data_preprocessor=dict(type='mmseg.SegDataPreProcessor', size=(96, 96)))
    first, pool = model.teacher.backbone.layer4[0], RoIAlign(2)
    given = []
    first.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].is_contiguous()))
    first.conv2.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].is_contiguous()))
    with torch.no_grad():
        model.eval().teacher_features(torch.randn(2, 3, 96, 96))
    assert given == [False, True]

    maps, box = torch.randn(1, 3, 8, 8), torch.tensor([[0., 1, 1, 6, 7]])
    expected = pool(maps, box)
    for _ in range(2):
        give_operators_plain_maps(pool)
    assert len(pool._forward_pre_hooks) == 1
    assert pool(maps.contiguous(memory_format=CHANNELS_LAST), box).equal(expected)
