"""A gradient that is computed at once is the one that autograd computes later."""

import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from overhaul.method.at_once import at_once, possible

CPU = torch.device('cpu')


@pytest.fixture
def connector():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 1, bias=False), nn.BatchNorm2d(5)).double()


def maps(dtype=torch.float64):
    return torch.randn(2, 3, 4, 4, dtype=dtype, generator=torch.Generator().manual_seed(1))


def gradients(loss, feature, parameters, scales=(1.0, )):
    """Gradients of the sum of ``scales`` times the loss, a backward pass for each."""
    tensors = [tensor for tensor in [feature, *parameters] if tensor.requires_grad]
    found = [torch.autograd.grad(scale * loss, tensors, retain_graph=True) for scale in scales]
    return [sum(parts) for parts in zip(*found)]


@pytest.mark.parametrize('scales', [(1.0, ), (-0.3, ), (1.0, 2.0)])
@pytest.mark.parametrize('fixed', ['', 'feature', 'weight'])
def test_value_and_gradients_are_those_of_autograd(connector, scales, fixed):
    feature = maps().requires_grad_(fixed != 'feature')
    connector[0].requires_grad_(fixed != 'weight')

    def loss(feature):
        return connector(feature).pow(4).sum()

    parameters = list(connector.parameters())
    ours = at_once(loss, feature, parameters)
    assert ours.item() == loss(feature).item()
    expected = gradients(loss(feature), feature, parameters, scales)
    assert len(expected) == 4 - bool(fixed)
    for gradient, theirs in zip(gradients(ours, feature, parameters, scales), expected):
        assert theirs.abs().max() > 0.1
        torch.testing.assert_close(gradient, theirs, rtol=1e-12, atol=1e-12)


def test_what_the_loss_does_not_depend_on_gets_no_gradient(connector):
    feature, spare = maps().requires_grad_(), torch.ones(1, requires_grad=True)
    loss = at_once(lambda feature: connector(feature).sum(), feature, [*connector.parameters(), spare])
    assert torch.autograd.grad(loss, spare, allow_unused=True, retain_graph=True) == (None, )
    constant = at_once(lambda feature: torch.tensor(2.0), feature, connector.parameters())
    (3 * constant + loss).backward()
    assert constant.item() == 2 and connector[1].bias.grad.tolist() == [32.0] * 5


def test_the_feature_may_be_changed_in_place_afterwards(connector):
    gradient = []
    for change in (torch.relu, torch.relu_):
        leaf = maps().requires_grad_()
        feature = leaf * 1
        distance = at_once(lambda feature: connector(feature).pow(4).sum(), feature, connector.parameters())
        (distance + change(feature).sum()).backward()
        gradient.append(leaf.grad)
    assert torch.equal(*gradient)


def test_nothing_on_the_way_is_kept(connector):
    kept = []
    for module in connector:
        module.register_forward_hook(lambda module, inputs, output: kept.append(weakref.ref(output)))
    feature = maps().requires_grad_()
    loss = at_once(lambda feature: connector(feature).pow(4).sum(), feature, connector.parameters())
    assert [output() for output in kept] == [None, None]
    loss.backward()
    assert feature.grad.abs().sum() > 0


def test_inside_a_block_under_gradient_checkpointing(connector):
    found, runs = [], []

    def block(images):
        feature = images.tanh()
        runs.append(1)
        if len(runs) % 2:  # not in the pass that is for the gradient of the block
            found.append(at_once(
                lambda feature: connector(feature).pow(4).sum(), feature, connector.parameters()))
        return feature.sin()

    results = []
    for use in (lambda images: checkpoint(block, images, use_reentrant=False), block):
        runs.clear()
        images = maps().requires_grad_()
        (use(images).sum() + found.pop()).backward()
        results.append((images.grad, connector[0].weight.grad.clone(), len(runs)))
        connector.zero_grad()
    for ours, theirs in zip(*results):
        assert ours == theirs + 1 if isinstance(ours, int) else torch.equal(ours, theirs)


def test_in_bfloat16_as_autograd_does(connector):
    connector.float()
    results = []
    for compute in (at_once, lambda loss, feature, parameters: loss(feature)):
        feature = maps(torch.float32).requires_grad_()
        connector.zero_grad()
        with torch.autocast('cpu', dtype=torch.bfloat16):
            loss = compute(lambda feature: connector(feature).float().square().sum(), feature, connector.parameters())
        loss.backward()
        results.append([feature.grad, *(parameter.grad for parameter in connector.parameters())])
    for ours, theirs in zip(*results):
        assert ours.dtype == torch.float32 and torch.equal(ours, theirs)


def test_the_backward_pass_is_not_under_autocast(connector):
    seen = []

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, feature):
            ctx.save_for_backward(feature)
            return feature.square()

        @staticmethod
        def backward(ctx, grad):
            seen.append(torch.is_autocast_enabled('cpu'))
            return 2 * grad * ctx.saved_tensors[0]

    with torch.autocast('cpu', dtype=torch.bfloat16):
        at_once(lambda feature: Square.apply(feature).sum(), maps().requires_grad_(), connector.parameters())
    assert seen == [False]


def test_where_it_is_possible():
    weight = torch.ones(1, requires_grad=True)
    assert possible(CPU, [weight])
    with torch.no_grad():
        assert not possible(CPU, [weight])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert possible(CPU, [weight])
    with torch.autocast('cpu', dtype=torch.float16):  # a gradient that has not been scaled would be rounded to 0
        assert not possible(CPU, [weight])
    hook = weight.register_hook(lambda gradient: gradient * 2)
    assert not possible(CPU, [weight])
    hook.remove()
    assert possible(CPU, [weight])


def test_a_parameter_that_is_named_twice_has_one_gradient():
    feature, weight = maps().requires_grad_(), torch.ones(3, 1, 1, dtype=torch.float64, requires_grad=True)
    at_once(lambda feature: (feature * weight).sum(), feature, [weight, weight]).backward()
    assert torch.allclose(weight.grad.flatten(), maps().sum((0, 2, 3)))


def test_a_scale_is_not_rounded_to_the_precision_of_the_feature():
    feature = torch.ones(1, 1, 1, 512, dtype=torch.bfloat16, requires_grad=True)
    loss = at_once(lambda feature: (feature.float() * torch.linspace(1, 2, 512)).sum(), feature, [])
    (loss / 3).backward()
    assert feature.grad.dtype == torch.bfloat16
    assert feature.grad.float().mean().item() == pytest.approx(0.5, rel=5e-4)  # a third in bfloat16 is 0.2 % more


@pytest.mark.parametrize('trained', [True, False])
def test_a_connector_that_changes_the_feature_in_place_is_refused(connector, trained):
    feature = maps().requires_grad_(trained)
    with pytest.raises(ValueError, match=r'changes the feature that it is given in place.*inplace=False'):
        at_once(lambda feature: connector(feature.relu_()).sum(), feature, connector.parameters())


def test_a_gradient_that_would_be_lost_is_refused(connector):
    feature, other = maps().requires_grad_(), torch.ones(1, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=r'depends on more than its feature and the parameters.*at_once=False'):
        at_once(lambda feature: (connector(feature) * other).sum(), feature, connector.parameters())
    with pytest.raises(ValueError, match='depends on more'):
        at_once(lambda feature: (connector(feature) * other.exp()).sum(), feature, connector.parameters())


def test_checkpointing_that_takes_no_part_is_refused_with_a_reason(connector):
    feature = maps().requires_grad_()
    with pytest.raises(ValueError, match='under gradient checkpointing.*with_cp=False in it, or at_once=False'):
        at_once(lambda feature: checkpoint(connector, feature, use_reentrant=True).sum(), feature,
                connector.parameters())


def test_what_an_error_in_the_loss_says_is_kept(connector):
    with pytest.raises(RuntimeError, match='to have 3 channels, but got 4'):
        at_once(lambda feature: connector(feature).sum(), torch.zeros(1, 4, 2, 2, dtype=torch.float64),
                connector.parameters())


def test_a_second_derivative_is_refused(connector):
    feature = maps().requires_grad_()
    loss = at_once(lambda feature: connector(feature).pow(4).sum(), feature, connector.parameters())
    with pytest.raises(RuntimeError, match='create_graph=True.* there is no second derivative'):
        torch.autograd.grad(loss, feature, create_graph=True)
