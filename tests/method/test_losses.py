import math

import pytest
import torch

from overhaul import L2Loss, PartialL2Loss, partial_l2

pytestmark = pytest.mark.quick

# Student, teacher, squared difference that counts, its derivative in the student.
CASES = {
    'above a positive teacher': (2.0, 1.0, 1.0, 2.0),
    'below a positive teacher': (0.5, 1.0, 0.25, -1.0),
    'negative below a positive teacher': (-1.0, 2.0, 9.0, -6.0),
    'equal to a positive teacher': (1.0, 1.0, 0.0, 0.0),
    'above a negative teacher, positive': (1.0, -1.0, 4.0, 4.0),
    'above a negative teacher, negative': (-0.5, -1.0, 0.25, 1.0),
    'equal to a negative teacher': (-1.0, -1.0, 0.0, 0.0),
    'below a negative teacher': (-3.0, -1.0, 0.0, 0.0),
    'above a teacher of zero': (1.5, 0.0, 2.25, 3.0),
    'equal to a teacher of zero': (0.0, 0.0, 0.0, 0.0),
    'below a teacher of zero': (-1.5, 0.0, 0.0, 0.0),
}


@pytest.mark.parametrize(('student', 'teacher', 'value', 'gradient'), CASES.values(), ids=CASES)
def test_one_element(student, teacher, value, gradient):
    student = torch.full((1, 1, 1, 1), student, requires_grad=True)
    loss = partial_l2(student, torch.full((1, 1, 1, 1), teacher))
    loss.backward()
    assert loss.item() == value
    assert student.grad.item() == gradient


def test_sums_over_channels_and_space_and_averages_over_the_batch():
    students, teachers, values, gradients = (torch.tensor(column) for column in zip(*CASES.values()))
    # 3 images of 2 channels of 1 x 11 pixels, that is every case six times.
    student = students.expand(3, 2, 1, 11).clone().requires_grad_()
    loss = partial_l2(student, teachers.expand(3, 2, 1, 11))
    loss.backward()
    assert loss.shape == ()
    assert loss.item() == pytest.approx(6 * values.sum().item() / 3)
    assert torch.allclose(student.grad, (gradients / 3).expand(3, 2, 1, 11))


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('elements', [1, 50, 100, 1000])
def test_a_few_images_at_a_time_are_all_images(elements, memory_format, monkeypatch):
    monkeypatch.setattr('overhaul.method.losses._AT_A_TIME', elements)
    student, teacher = (torch.randn(5, 3, 4, 4).to(memory_format=memory_format) for _ in range(2))
    student.requires_grad_()
    counts = ((student > teacher) | (teacher > 0)).float()
    plain = (counts * (student - teacher).square()).sum() / 5
    loss = partial_l2(student, teacher)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(*(torch.autograd.grad(value, student)[0] for value in (loss, plain)))


@pytest.mark.parametrize('distance', [partial_l2, L2Loss(1)])
def test_float64_stays_float64(distance):
    maps = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True), torch.ones(2, 3, 4, 4, dtype=torch.float64)
    assert distance(*maps).dtype == torch.float64


def test_gradient_is_the_numerical_one():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=generator).requires_grad_()
    teacher = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=generator)
    # The numerical gradient is of no use on the edge of a branch.
    assert (student - teacher).abs().min() > 1e-4
    assert torch.autograd.gradcheck(lambda s: partial_l2(s, teacher), student, eps=1e-6, atol=1e-7)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_16_bit_maps_are_summed_in_float32(dtype):
    student = torch.full((2, 8, 64, 64), 300.0, dtype=dtype, requires_grad=True)
    loss = partial_l2(student, torch.ones(2, 8, 64, 64, dtype=dtype))
    loss.backward()
    # In 16 bits a single square of about 300, let alone the sum, is beyond float16 and rounded to 8 bits by bfloat16.
    difference = (torch.tensor(300.0, dtype=dtype) - 1).item()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(difference**2 * 8 * 64 * 64, rel=1e-6)
    assert student.grad.dtype == dtype
    assert student.grad[0, 0, 0, 0].item() == pytest.approx(difference, rel=1e-2)


def test_float64_maps_are_summed_in_float64():
    third = torch.full((1, 1, 1, 1), 1 / 3, dtype=torch.float64)
    loss = partial_l2(third, torch.ones_like(third))
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(4 / 9, rel=1e-15)


@pytest.mark.parametrize(('student', 'teacher'), [(math.nan, 1.0), (math.nan, -1.0), (1.0, math.nan), (-1.0, math.nan)])
def test_nan_is_not_dropped(student, teacher):
    student = torch.tensor([[[[student]], [[-2.0]]]], requires_grad=True)
    loss = partial_l2(student, torch.tensor([[[[teacher]], [[-1.0]]]]))
    loss.backward()
    assert loss.isnan()
    assert student.grad.isnan().flatten().tolist() == [True, False]


def test_no_gradient_for_the_teacher_and_inputs_left_alone():
    student = torch.tensor([[-2.0, 3.0]], requires_grad=True)
    teacher = torch.tensor([[-1.0, 1.0]], requires_grad=True)
    partial_l2(student, teacher).backward()
    assert teacher.grad is None
    assert not partial_l2(student.detach(), teacher).requires_grad
    assert student.grad.tolist() == [[0.0, 4.0]]
    assert student.tolist() == [[-2.0, 3.0]] and teacher.tolist() == [[-1.0, 1.0]]


@pytest.mark.parametrize('shape', [(2, 4, 4, 4), (2, 3, 4, 5), (1, 3, 4, 4), (2, 3, 4)])
def test_other_shape_is_an_error_even_where_it_would_broadcast(shape):
    with pytest.raises(ValueError, match='got student \\(2, 3, 4, 4\\) and teacher ') as error:
        partial_l2(torch.zeros(2, 3, 4, 4), torch.zeros(shape))
    assert str(shape) in str(error.value)


def test_the_module_scales_with_alpha():
    student, teacher = torch.full((2, 1, 1, 2), 3.0), torch.ones(2, 1, 1, 2)
    assert PartialL2Loss(loss_weight=0.25)(student, teacher).item() == 0.25 * 8
    assert PartialL2Loss()(student, teacher).item() == pytest.approx(1e-3 * 8)
    assert str(PartialL2Loss(0.25)) == 'PartialL2Loss(loss_weight=0.25)'


@pytest.mark.parametrize('loss_weight', [True, math.inf, math.nan, -1, '1'])
def test_alpha_is_a_number(loss_weight):
    with pytest.raises(ValueError, match='The loss_weight of PartialL2Loss is a number of 0 or more, or "auto", not'):
        PartialL2Loss(loss_weight)


def test_l2_drops_nothing():
    student = torch.tensor([[-3.0, 3.0], [0.0, 1.0]], requires_grad=True)
    teacher = torch.tensor([[-1.0, 1.0], [0.0, 3.0]], requires_grad=True)
    loss = L2Loss(loss_weight=0.5)(student, teacher)
    loss.backward()
    assert loss.item() == 0.5 * (4 + 4 + 4) / 2
    assert student.grad.tolist() == [[-1.0, 1.0], [0.0, -1.0]] and teacher.grad is None
    with pytest.raises(ValueError, match='L2Loss compares maps of one shape'):
        L2Loss()(student, teacher[:1])
    assert L2Loss()(student.bfloat16() * 1e3, teacher.bfloat16()).dtype == torch.float32
