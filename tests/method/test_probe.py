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


def test_what_waits_for_the_gradients_of_the_training_learns_nothing(model):
    """As DDP does, which counts the backward passes that it sees: by a hook on the node that adds to ``grad``."""
    seen, nodes = [], []
    for parameter in model.parameters():
        nodes.append(parameter.view_as(parameter).grad_fn.next_functions[0][0])
        nodes[-1].register_hook(lambda *_: seen.append(1))
        parameter.register_post_accumulate_grad_hook(lambda _: seen.append(1))
    before = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    measure(model, data())
    assert not seen
    assert {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()} == before
    sum(model(**data(), mode='loss').values()).backward()
    assert len(seen) == 2 * len(nodes)


def test_weights_that_two_modules_share_stay_shared(model):
    first, last = model.student.backbone.block2[0].bn2, model.student.backbone.block3[0].bn1
    last.weight = first.weight
    separate = copy.deepcopy(model)
    separate.student.backbone.block3[0].bn1.weight = torch.nn.Parameter(first.weight.detach().clone())
    shared, apart = measure(model, data()), measure(separate, data())
    assert shared.task_loss == apart.task_loss
    assert abs(shared.task_gradient / apart.task_gradient - 1) > 1e-6
    assert last.weight is first.weight


def test_a_pass_that_fails_leaves_the_model_as_it_was(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hook = model.student.head.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure(model, data())
    hook.remove()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    measure(model, data())


def test_a_task_without_gradient_gives_an_infinite_ratio():
    assert Strength(0.0, 1.0, 0.0, 1.0).loss_ratio == Strength(0.0, 1.0, 0.0, 1.0).gradient_ratio == float('inf')
