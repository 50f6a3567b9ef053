import copy

import pytest
import torch
from small_models import batch, build_distiller, resnet, save_teacher, wide_resnet

from overhaul.method.probe import Strength, measure


@pytest.fixture
def model(tmp_path):
    return build_distiller(teacher_checkpoint=save_teacher(tmp_path, wide_resnet(2))).train()


def data(seed=0):
    images, samples = batch(seed=seed)
    return dict(inputs=images, data_samples=samples)


def test_losses_and_gradients_are_those_of_separate_backward_passes(model):
    strength = measure(model, data())
    images, samples = batch()
    expected = []
    for distillation in (False, True):
        other = copy.deepcopy(model)
        losses = other(images, samples, mode='loss')
        loss = sum(value for name, value in losses.items() if name.startswith('distill.') == distillation)
        loss.backward()
        squares = sum(p.grad.double().square().sum() for p in other.student.parameters() if p.grad is not None)
        expected.append((loss.item(), squares.sqrt().item()))
    (task, task_gradient), (distillation, distillation_gradient) = expected
    assert strength == pytest.approx((task, distillation, task_gradient, distillation_gradient), rel=1e-5)
    assert strength.gradient_ratio == pytest.approx(distillation_gradient / task_gradient, rel=1e-5)
    assert strength.loss_ratio == pytest.approx(distillation / task, rel=1e-5)


def test_the_model_stays_as_it_was(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    teacher = {name: value.clone() for name, value in model.teacher.state_dict().items()}
    measure(model, data())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, teacher[name]) for name, value in model.teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradient_checkpointing_changes_no_number():
    taps = [dict(teacher='backbone.layer2', student='backbone.layer2')]
    strengths = []
    for with_cp in (False, True):
        model = build_distiller(teacher=resnet(), student=resnet(with_cp=with_cp), taps=taps).train()
        strengths.append(measure(model, data()))
    assert strengths[1] == pytest.approx(strengths[0], rel=1e-5)


def test_gradients_that_are_there_stay(model):
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3)
    gradients = [parameter.grad for parameter in model.parameters()]
    measure(model, data())
    assert all(parameter.grad is gradient for parameter, gradient in zip(model.parameters(), gradients))
    assert all(gradient.eq(3).all() for gradient in gradients)


def test_a_task_without_gradient_gives_an_infinite_ratio():
    assert Strength(0.0, 1.0, 0.0, 1.0).loss_ratio == Strength(0.0, 1.0, 0.0, 1.0).gradient_ratio == float('inf')
