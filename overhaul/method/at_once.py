"""A loss computed together with its gradient, so that of all that leads to it nothing but the gradient is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.autograd.graph import saved_tensors_hooks

_IN_PLACE = (
    'A connector changes the feature that it is given in place, and the student goes on with that. Let it work out of '
    'place (inplace=False).')


def possible(device: torch.device, parameters: Iterable[Tensor]) -> bool:
    """Return whether :func:`at_once` has a gradient to compute, and can compute it here.

    It cannot in a graph that is compiled, which decides by itself what to keep; nor under float16 autocast, where the
    gradient is too small a number before the loss has been scaled; nor where a hook waits for the gradient of one of
    the ``parameters``, since that would run twice.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    kind = device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
        return False
    return not any(parameter._backward_hooks for parameter in parameters)


def at_once(loss: Callable[[Tensor], Tensor], feature: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """Return ``loss(feature)``, whose gradient is there already and waits for the backward pass.

    A backward pass of ``loss`` runs now. What it needed is freed before more of the model runs; the gradients, each of
    the size of what it belongs to, are kept. The feature may be changed in place afterwards. Inside a block under
    gradient checkpointing that runs twice, ``loss`` runs once, and may draw no random numbers there.

    Args:
        loss: A function of ``feature`` and ``parameters`` that gives a scalar.
        feature: A map of the model that is about to run on.
        parameters: The parameters of ``loss``.

    Returns:
        The scalar. Differentiable once.

    Raises:
        ValueError: If ``loss`` changes ``feature`` in place, or something in it is under gradient checkpointing of the
            reentrant kind; if it depends on a tensor with gradient that is neither ``feature`` nor a parameter, whose
            gradient would be lost.
        RuntimeError: In a backward pass with ``create_graph=True``.
    """
    parameters = list(dict.fromkeys(parameters))
    # What is saved is the result, not part of the block that runs: it is none of a gradient checkpoint's business.
    with saved_tensors_hooks(_same, _same):
        return _AtOnce.apply(loss, feature, *parameters)


def _same(tensor: Tensor) -> Tensor:
    return tensor


class _AtOnce(torch.autograd.Function):

    @staticmethod
    def forward(
            ctx: FunctionCtx, loss: Callable[[Tensor], Tensor], feature: Tensor, *parameters: Tensor) -> Tensor:
        inputs = (feature.detach().requires_grad_(feature.requires_grad), *parameters)
        version = feature._version
        try:
            with torch.enable_grad():
                total = loss(inputs[0])
            gradients = iter(_gradients(total, inputs) if total.requires_grad else ())
        except RuntimeError as error:
            if (refusal := _refusal(error)) is None:
                raise
            raise ValueError(refusal) from error
        if feature._version != version:
            raise ValueError(_IN_PLACE)
        ctx.save_for_backward(*(next(gradients, None) if tensor.requires_grad else None for tensor in inputs))
        return total.detach()

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                'The gradient of the distillation is asked for with create_graph=True, to be differentiated again, and '
                'there is no second derivative: what it would need has not been kept.')
        return None, *(None if saved is None else saved * grad for saved in ctx.saved_tensors)


def _gradients(total: Tensor, inputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Return the gradients of those ``inputs`` that require one."""
    known = {id(tensor) for tensor in inputs}
    if any(id(leaf) not in known for leaf in _leaves(total)):
        raise ValueError(
            'The loss of a tap depends on more than its feature and the parameters of its connector and its distance, '
            'and the gradient of the rest would be lost. Make what it depends on a parameter or submodule of them, or '
            'set at_once=False in the model.')
    with torch.autocast(total.device.type, enabled=False):
        return torch.autograd.grad(total, [tensor for tensor in inputs if tensor.requires_grad], allow_unused=True)


def _leaves(total: Tensor) -> Iterator[Tensor]:
    """Yield the tensors that a gradient of ``total`` ends at."""
    left, seen = [total.grad_fn], set()
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, 'variable'):
            yield node.variable
        left.extend(following for following, _ in node.next_functions)


def _refusal(error: RuntimeError) -> str | None:
    """Return what the user can do about it, if anything."""
    if 'in-place operation' in str(error):
        return _IN_PLACE
    if 'view size is not compatible' in str(error):
        return ('A connector or distance takes a view of a map that has none, being in channels-last memory, as on a '
                'CPU or with --channels-last. Take reshape in the place of view.')
    if 'use_reentrant=True' in str(error):
        return ('A connector or distance is under gradient checkpointing, of a kind in which no gradient can be '
                'computed at once. Set with_cp=False in it, or at_once=False in the model.')
    return None
