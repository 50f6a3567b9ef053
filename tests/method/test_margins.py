import math

import pytest
import torch
from golden import load_golden
from scipy import stats
from torch import nn

from overhaul.method.margins import MarginReLU, NegativeMean, margin_from_batch_norm

pytestmark = pytest.mark.quick

CASES = load_golden('margin_cases')
DEFINED = [case for case in CASES if case['margin_float64'] is not None]
UNDEFINED = [case for case in CASES if case['margin_float64'] is None]


def margin(weight, bias, dtype=torch.float64):
    return margin_from_batch_norm(torch.tensor([weight], dtype=dtype), torch.tensor([bias], dtype=dtype)).item()


@pytest.mark.parametrize('case', DEFINED, ids=lambda case: f'{case["bn_weight"]:.3g} {case["bn_bias"]:.5g}')
def test_margin_is_that_of_the_official_code(case):
    assert margin(case['bn_weight'], case['bn_bias']) == pytest.approx(case['margin_float64'], rel=1e-6)
    # As it comes from the float32 weights of a checkpoint; one unit in the last place is 1.2e-7.
    single = margin(case['bn_weight'], case['bn_bias'], torch.float32)
    assert single == pytest.approx(case['margin_float32'], rel=1.3e-7)


def test_the_official_cases_reach_every_branch():
    branches = {(case['branch'], case['bn_weight'] < 0) for case in DEFINED}
    assert branches == {(name, negative) for name in ('truncated_mean', 'minus_3_sigma') for negative in (False, True)}
    assert len(UNDEFINED) == 2


@pytest.mark.parametrize('case', UNDEFINED, ids=lambda case: f'bias {case["bn_bias"]}')
def test_weight_of_zero_has_a_margin_where_the_official_code_divides_by_zero(case):
    assert case['bn_weight'] == 0 and case['error'].startswith('ZeroDivisionError')
    assert margin(case['bn_weight'], case['bn_bias']) == min(case['bn_bias'], 0)


def test_weight_of_zero_gets_the_limit_of_small_weights():
    assert margin(0.0, -0.5) == pytest.approx(margin(1e-20, -0.5)) == -0.5
    assert margin(0.0, 0.5) == pytest.approx(margin(1e-20, 0.5), abs=1e-19) == 0
    assert margin(0.0, 0.0) == pytest.approx(margin(1e-20, 0.0), abs=1e-19) == 0


@pytest.mark.parametrize(('weight', 'bias'), [(math.nan, 1.0), (1.0, math.nan), (0.0, math.nan)])
def test_nan_stays_nan(weight, bias):
    assert math.isnan(margin(weight, bias))


@pytest.mark.parametrize(('weight', 'bias'), [(1.3, 0.4), (-0.7, -0.9), (2.0, 3.0)])
def test_margin_is_the_mean_of_the_negative_samples(weight, bias):
    samples = bias + weight * torch.randn(2_000_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    negative = samples[samples < 0]
    standard_error = negative.std().item() / len(negative)**0.5
    assert abs(margin(weight, bias) - negative.mean().item()) < 4 * standard_error
    assert standard_error < 0.01 * abs(weight)


def test_three_deviations_where_fewer_than_a_thousandth_are_negative():
    edge = stats.norm.isf(1e-3)  # of N(edge, 1), one in a thousand is negative
    below, above = edge - 1e-6, edge + 1e-6
    truncated_mean = stats.truncnorm(-float('inf'), -below, loc=below).mean()
    assert margin(1.0, below) == pytest.approx(truncated_mean, rel=1e-6)
    assert margin(1.0, above) == -3
    assert margin(-0.5, 0.5 * above) == -1.5


def test_channels_do_not_mix_and_dtype_and_gradient_are_those_of_a_buffer():
    weight = torch.tensor([1.0, -2.0, 0.0, 0.1], requires_grad=True)
    bias = torch.tensor([0.5, 1.0, -1.0, 3.0], requires_grad=True)
    together = margin_from_batch_norm(weight, bias)
    assert together.dtype == torch.float32 and not together.requires_grad
    assert together.tolist() == [margin(w, b, torch.float32) for w, b in zip(weight.tolist(), bias.tolist())]
    assert margin_from_batch_norm(weight.bfloat16(), bias.bfloat16()).dtype == torch.bfloat16


def batch_norm():
    norm = nn.BatchNorm2d(2)
    norm.weight.data, norm.bias.data = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 8.0])
    return norm


def test_margin_relu_lifts_each_channel_to_its_margin():
    relu = MarginReLU(2, batch_norm())
    feature = torch.tensor([5.0, -0.5, -5.0, -50.0]).view(1, 1, 2, 2).repeat(3, 2, 1, 1)
    first = -(2 / torch.pi)**0.5  # the mean of the negative half of N(0, 1)
    expected = torch.tensor([[5.0, -0.5, first, first], [5.0, -0.5, -5.0, -6.0]]).view(2, 2, 2)
    before = feature.clone()
    assert torch.allclose(relu(feature), expected.expand(3, 2, 2, 2))
    assert torch.equal(feature, before)
    assert relu(torch.full((1, 2, 1, 1), torch.nan)).isnan().all()


def test_margin_relu_reads_the_affine_part_of_the_batch_norm_once():
    norm = batch_norm()
    norm.running_mean.fill_(100)
    norm.running_var.fill_(100)
    relu = MarginReLU(2, norm)
    margins = relu.margin.clone()
    assert margins.tolist() == pytest.approx([-0.7978845608, -6.0])
    norm.weight.data.fill_(9)
    assert torch.equal(relu.margin, margins)
    assert [name for name, _ in relu.named_buffers()] == ['margin'] and not list(relu.parameters())


def test_batch_norm_without_affine_part_counts_as_a_standard_normal():
    assert MarginReLU(3, nn.BatchNorm2d(3, affine=False)).margin.tolist() == pytest.approx([-0.7978845608] * 3)


def test_margins_wait_for_data_where_there_is_no_batch_norm_or_where_asked():
    for waiting in (MarginReLU(2), MarginReLU(2, batch_norm(), source='data')):
        assert not waiting.known and waiting.margin.shape == (2, )
    assert MarginReLU(2, batch_norm()).known and MarginReLU(2, batch_norm(), source='batch_norm').known
    with pytest.raises(ValueError, match='No batch norm of 2 channels feeds the teacher tap'):
        MarginReLU(2, source='batch_norm')
    with pytest.raises(ValueError, match='"auto", "batch_norm", "data", "zero" or "none", not \'bn\''):
        MarginReLU(2, source='bn')


def test_plain_relu_and_no_transform_to_compare_with():
    feature = torch.tensor([-3.0, -0.5, 0.0, 2.0]).view(1, 2, 1, 2)
    relu = MarginReLU(2, batch_norm(), source='zero')
    assert relu.known and relu(feature).flatten().tolist() == [0, 0, 0, 2]
    as_it_is = MarginReLU(2, source='none')
    assert as_it_is.known and torch.equal(as_it_is(feature), feature)


def test_negative_mean_by_hand_over_batches_of_different_sizes():
    mean = NegativeMean()
    mean.add(torch.tensor([-1.0, 4.0, 0.0]).view(3, 1, 1, 1).repeat(1, 2, 1, 1))
    mean.add(torch.tensor([[-4.0, 2.0], [-1.0, 3.0]]).view(1, 2, 1, 2))
    mean.add(torch.tensor([[1.0, 2.0], [5.0, 3.0]]).view(1, 2, 1, 2))
    assert mean.result().tolist() == [-2.5, -1.0]  # (-1 - 4) / 2, (-1 - 1) / 2
    silent = NegativeMean()
    silent.add(torch.ones(1, 3, 2, 2))
    assert silent.result().tolist() == [0, 0, 0]


def test_estimated_margins_agree_with_the_closed_form_on_normal_data():
    generator = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm2d(4)
    norm.weight.data, norm.bias.data = torch.tensor([1.0, -2.0, 0.3, 1.0]), torch.tensor([0.0, 1.5, -1.0, 2.0])
    mean = NegativeMean()
    for _ in range(20):
        mean.add(norm.train()(torch.randn(16, 4, 40, 40, generator=generator) * 7 + 3).detach())
    # About 5e5 draws a channel, of which 2 % to all are negative: a standard error of up to 0.004.
    assert mean.result().tolist() == pytest.approx(
        margin_from_batch_norm(norm.weight, norm.bias).tolist(), rel=0.02)
