"""A loss computed together with its gradient, so that of all that leads to it nothing but the gradient is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.autograd.graph import saved_tensors_hooks


def possible(device: torch.device) -> bool:
    """Return whether :func:`at_once` has a gradient to compute, and can compute it here.

    It cannot in a graph that is compiled, which decides by itself what to keep, nor under float16 autocast, where the
    gradient is too small a number before the loss has been scaled.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    kind = device.type
    return not (torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16)


def at_once(loss: Callable[[Tensor], Tensor], feature: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """Return ``loss(feature)``, whose gradient is there already and waits for the backward pass.

    A backward pass of ``loss`` runs now. What it needed is freed before more of the model runs; the gradient of
    ``feature``, of its own size, is kept. The feature may be changed in place afterwards.

    Args:
        loss: A function of ``feature`` and ``parameters``. Nothing else that it takes gets a gradient.
        feature: A map of the model that is about to run on.
        parameters: The parameters of ``loss``.

    Returns:
        The scalar. Differentiable once.

    Raises:
        RuntimeError: In a backward pass with ``create_graph=True``.
    """
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
        with torch.enable_grad():
            total = loss(inputs[0])
        gradients = iter(())
        if total.requires_grad:
            with torch.autocast(total.device.type, enabled=False):
                gradients = iter(torch.autograd.grad(
                    total, [tensor for tensor in inputs if tensor.requires_grad], allow_unused=True))
        ctx.save_for_backward(*(next(gradients, None) if tensor.requires_grad else None for tensor in inputs))
        return total.detach()

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                'The gradient of the distillation is asked for with create_graph=True, to be differentiated again, and '
                'there is no second derivative: what it would need has not been kept.')
        return None, *(None if saved is None else saved * grad.to(saved.dtype) for saved in ctx.saved_tensors)
