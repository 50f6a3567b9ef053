"""What the backbones of this package have in common: their depth, and the feature maps that they give."""

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor


def blocks_per_stage(network: str, depth: int, layers_outside: int, layers_per_block: int) -> int:
    """Return how many residual blocks each of the three stages of a CIFAR network of this ``depth`` has.

    Args:
        network: Name of the network, for the error message.
        depth: Number of layers with weights, counted as the papers do.
        layers_outside: Those of them that are outside the blocks.
        layers_per_block: Those in one block.

    Raises:
        ValueError: If no whole, positive number of blocks gives that depth; names the nearest depths that exist.
    """
    step = 3 * layers_per_block
    if isinstance(depth, int) and depth > layers_outside and (depth - layers_outside) % step == 0:
        return (depth - layers_outside) // step
    blocks = max(1, (depth - layers_outside) // step) if isinstance(depth, int) else 1
    nearest = ' and '.join(str(step * count + layers_outside) for count in (blocks, blocks + 1))
    raise ValueError(
        f'{network} got depth={depth!r}; its depth must be {step} * n + {layers_outside} with n >= 1. '
        f'The nearest that exist are {nearest}.')


def check_out_indices(network: str, out_indices: Sequence[int], count: int) -> tuple[int, ...]:
    """Return ``out_indices`` as a tuple.

    Raises:
        ValueError: If it is not a non-empty sequence of integers from 0 to ``count - 1``.
    """
    valid = isinstance(out_indices, Sequence) and len(out_indices) > 0
    if not valid or any(index not in range(count) for index in out_indices):
        raise ValueError(
            f'{network} got out_indices={out_indices!r}; it must be a tuple such as ({count - 1},) '
            f'of integers from 0 to {count - 1}.')
    return tuple(out_indices)


def feature_maps(
        x: Tensor, stages: Iterable[Callable[[Tensor], Tensor]], out_indices: Sequence[int]) -> tuple[Tensor, ...]:
    """Return what the stages of ``out_indices`` give when ``x`` (N, C, H, W) goes through all, shallow to deep."""
    outputs = []
    for index, stage in enumerate(stages):
        x = stage(x)
        if index in out_indices:
            outputs.append(x)
    return tuple(outputs)
