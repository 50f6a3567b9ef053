"""What one batch tells before training: how strong the distillation is beside the task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from overhaul.method.distiller import OverhaulDistiller


class Strength(NamedTuple):
    """Task loss and distillation loss of a batch, and the norms of their gradients on the student's weights."""

    task_loss: float
    distillation_loss: float
    task_gradient: float
    distillation_gradient: float

    @property
    def loss_ratio(self) -> float:
        """Distillation loss over task loss."""
        return self.distillation_loss / self.task_loss if self.task_loss else float('inf')

    @property
    def gradient_ratio(self) -> float:
        """Norm of the distillation's gradient over that of the task's."""
        return self.distillation_gradient / self.task_gradient if self.task_gradient else float('inf')


def measure(model: OverhaulDistiller, data: dict, precision: AbstractContextManager | None = None) -> Strength:
    """Measure a batch in train mode, and leave weights, gradients and buffers as they were.

    Args:
        model: The distiller, without a wrapper for distributed training.
        data: A batch as the data loader gives it.
        precision: Context of the forward pass, for autocast.
    """
    data = model.data_preprocessor(data, True)
    with buffers_kept(model), _gradients_kept(model), torch.enable_grad():
        with precision or nullcontext():
            losses = model(**data, mode='loss')
        distillation = sum(loss for name, loss in losses.items() if name in model.loss_names)
        task, _ = model.parse_losses({name: loss for name, loss in losses.items() if name not in model.loss_names})
        gradients = [_gradient(loss, model) for loss in (task, distillation)]
    return Strength(task.item(), distillation.item(), *gradients)


def _gradient(loss: Tensor, model: OverhaulDistiller) -> float:
    model.zero_grad()
    # Not torch.autograd.grad, which gradient checkpointing refuses.
    loss.backward(retain_graph=True)
    return _norm(parameter.grad for parameter in model.student.parameters())


def _norm(gradients: Iterable[Tensor | None]) -> float:
    squares = [gradient.double().square().sum() for gradient in gradients if gradient is not None]
    return torch.stack(squares).sum().sqrt().item() if squares else 0.0


@contextmanager
def _gradients_kept(model: nn.Module) -> Iterator[None]:
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Give the buffers of ``model`` back what they hold now, at the end."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    yield
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
