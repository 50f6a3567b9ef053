"""The distance: partial L2, and the plain one to compare with."""

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional
from torch.ops import aten

from overhaul.registry import MODELS

# Elements of a map that a CPU takes at a time, with two more maps in between: 12 MiB in float32.
_AT_A_TIME = 2**20


class _SummedPartialL2(torch.autograd.Function):
    """The sum behind :func:`partial_l2`, written out to save one map for the backward where autograd saves three."""

    @staticmethod
    def forward(ctx: FunctionCtx, student: Tensor, teacher: Tensor) -> Tensor:
        dtype = torch.promote_types(student.dtype, teacher.dtype)
        if dtype == torch.float16:
            dtype = torch.float32  # a gradient that is scaled, as one of float16 has to be, may overflow
        if student.device.type == 'cpu' and not torch.compiler.is_compiling():
            # A few images at a time, so that what lies in between stays in the processor's cache.
            images = max(1, student.shape[0] * _AT_A_TIME // max(1, student.numel()))
            difference, total = torch.empty_like(student, dtype=dtype), 0
            for s, t, d in zip(*(maps.split(images) for maps in (student, teacher, difference))):
                total = total + _mask_and_sum(torch.sub(s.to(dtype), t, out=d), t)
        else:
            difference = student.to(dtype) - teacher
            total = _mask_and_sum(difference, teacher)
        ctx.save_for_backward(difference)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        return difference * (2 * grad), None


def _mask_and_sum(difference: Tensor, teacher: Tensor) -> Tensor:
    """Set the ``difference`` to 0 where it needs no correction, in place, and return the sum of its squares."""
    # Kept where the difference or the teacher is above 0. The derivative of ReLU, the only masking that is vectorised
    # on the CPU, also keeps what is NaN, so that it is seen.
    aten.threshold_backward.grad_input(difference, torch.maximum(difference, teacher), 0, grad_input=difference)
    # 16-bit maps: the squares overflow, and their sum over millions of elements loses its digits.
    return difference.to(torch.promote_types(difference.dtype, torch.float32)).square().sum()


def partial_l2(student: Tensor, teacher: Tensor) -> Tensor:
    """Partial L2 between two maps (N, C, ...), summed over all dimensions but the first, averaged over N; a scalar.

    The squared difference, dropped where ``student <= teacher <= 0``: a response that the teacher keeps below zero and
    the student keeps below that needs no correction, since the ReLU that follows cuts both off.
    Eq. 3 and 4 of the paper; the average over N is that of the official training script.

    Args:
        student: Connected student feature S', (N, C, ...). The gradient flows to it alone.
        teacher: Transformed teacher feature T', same shape. Taken as a constant.

    Returns:
        Scalar in the dtype of the maps, in float32 for 16-bit maps. Differentiable once.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_shapes('partial_l2', student, teacher)
    return _SummedPartialL2.apply(student, teacher.detach()) / student.shape[0]


def _check_shapes(distance: str, student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f'{distance} compares maps of one shape, got student {tuple(student.shape)} and teacher '
            f'{tuple(teacher.shape)}. A connector brings the channels together; height and width must agree already.')


class _WeightedDistance(nn.Module):
    """A distance times alpha, see :class:`PartialL2Loss`."""

    def __init__(self, loss_weight: float | str = 1e-3) -> None:
        super().__init__()
        if loss_weight == 'auto':
            self.register_buffer('loss_weight', torch.tensor(torch.nan))
        elif type(loss_weight) in (int, float) and 0 <= loss_weight < math.inf:
            self.loss_weight = loss_weight
        else:
            raise ValueError(
                f'The loss_weight of {type(self).__name__} is a number of 0 or more, or "auto", not {loss_weight!r}.')

    def extra_repr(self) -> str:
        """Show alpha."""
        return f'loss_weight={float(self.loss_weight):g}'


@MODELS.register_module()
class PartialL2Loss(_WeightedDistance):
    """Weighted :func:`partial_l2`: (N, C, ...) maps to a scalar, summed over C and space, averaged over N.

    Args:
        loss_weight: Alpha, the scale of the distillation beside the task loss. The official code takes 1e-3 on
            CIFAR-100, 1e-4 on ImageNet and 1e-5 on Pascal VOC. ``'auto'`` leaves it to
            ``overhaul.CalibrateHook``, which sets it before training; it is NaN until then, and travels in
            the checkpoint. Default: 1e-3.

    Raises:
        ValueError: If ``loss_weight`` is neither a number of 0 or more nor ``'auto'``.
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return ``loss_weight * partial_l2(student, teacher)``."""
        return self.loss_weight * partial_l2(student, teacher)


@MODELS.register_module()
class L2Loss(_WeightedDistance):
    """The whole squared difference, of which :class:`PartialL2Loss` takes a part, to compare with.

    Args, shapes, reduction and errors: see :class:`PartialL2Loss`.
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return ``loss_weight`` times the squared difference, summed over C and space, averaged over N."""
        _check_shapes('L2Loss', student, teacher)
        dtype = torch.promote_types(student.dtype, torch.float32)
        total = functional.mse_loss(student.to(dtype), teacher.detach().to(dtype), reduction='sum')
        return self.loss_weight * total / student.shape[0]
