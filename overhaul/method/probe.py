"""What one batch tells before training: how strong the distillation is beside the task."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from overhaul.method.distiller import OverhaulDistiller

Result = TypeVar('Result')


class Strength(NamedTuple):
    """Task loss and distillation loss of a batch, and the norms of their gradients on the student's weights.

    Where there is no task, its loss is None.
    """

    task_loss: float | None
    distillation_loss: float
    task_gradient: float
    distillation_gradient: float

    @property
    def loss_ratio(self) -> float:
        """Distillation loss over task loss; over 1 where there is none."""
        if self.task_loss is None:
            return self.distillation_loss
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
    return aside(model, lambda model: _strength(model, data, precision or nullcontext()))


def aside(model: nn.Module, look: Callable[[nn.Module], Result]) -> Result:
    """Return ``look(model)``, of which nothing stays in ``model`` and nobody else learns.

    Meanwhile other leaves stand for the parameters, on the same memory, and copies for the buffers. So a backward pass
    leaves no gradient behind, and what waits for the gradients of the parameters does not take it for one of the
    training: DDP counts every backward pass that it sees, and with ``static_graph`` reduces nothing after a second one
    in the first iteration.
    """
    leaves = {name: nn.Parameter(parameter.detach(), parameter.requires_grad)
              for name, parameter in model.named_parameters(prefix='model')}
    copies = {name: buffer.clone() for name, buffer in model.named_buffers(prefix='model')}
    return functional_call(_Look(model), leaves | copies, (look, ))


class _Look(nn.Module):
    """Lets any function be the forward pass of ``model``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, look: Callable[[nn.Module], Result]) -> Result:
        return look(self.model)


def _strength(model: OverhaulDistiller, data: dict, precision: AbstractContextManager) -> Strength:
    with torch.enable_grad():
        with precision:
            losses = model(**data, mode='loss')
        distillation = sum(loss for name, loss in losses.items() if name in model.loss_names)
        of_task = {name: loss for name, loss in losses.items() if name not in model.loss_names}
        task = model.parse_losses(of_task)[0] if of_task else None
        gradients = [0.0 if loss is None else _gradient(loss, model) for loss in (task, distillation)]
    return Strength(None if task is None else task.item(), distillation.item(), *gradients)


def _gradient(loss: Tensor, model: OverhaulDistiller) -> float:
    model.zero_grad()
    # Not torch.autograd.grad, which gradient checkpointing refuses.
    loss.backward(retain_graph=True)
    return _norm(parameter.grad for parameter in model.student.parameters())


def _norm(gradients: Iterable[Tensor | None]) -> float:
    squares = [gradient.double().square().sum() for gradient in gradients if gradient is not None]
    return torch.stack(squares).sum().sqrt().item() if squares else 0.0
