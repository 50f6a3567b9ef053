"""Tokens: which map a module's output is, by the size of the image and by what the model tells of its tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from overhaul.registry import counted
from overhaul.tasks import task_of

# How many tokens a transformer has beside those of its patches: in mmpretrain, and in timm.
_COUNTS = ('num_extra_tokens', 'num_prefix_tokens')
# The tokens themselves, where it does not say how many, in mmseg, DINOv2, torchvision and transformers.
_EXTRA_TOKENS = (
    'cls_token', 'class_token', 'class_embedding', 'dist_token', 'distillation_token', 'reg_token', 'register_tokens')


class Layout(NamedTuple):
    """How a module gives its map, as far as that is known.

    Attributes:
        plain: Whether four dimensions are (N, C, H, W), and not (N, H, W, C).
        tokens: For three dimensions, the pairs that are possible: how many extra tokens there are, and how many patches
            in a row became one token.
        behind: How many of the extra tokens come after those of the patches; the others come before.
    """

    plain: bool | None = None
    tokens: tuple[tuple[int, int], ...] = ()
    behind: int = 0

    @property
    def known(self) -> bool:
        """Whether it is known which dimension has the channels."""
        return self.plain is not None or len(self.tokens) > 0


class Tokens:
    """What a model tells of the tokens in it.

    Args:
        model: Any model of mmengine. Its task tells which part of it takes the image.

    Attributes:
        entry: The module that takes the image.
        image: (N, H, W), the number of images in the forward pass that runs, their height and their width; None before
            the first.
        extra: Number of class and register tokens; None if the model does not tell.
        counted: Whether the model says that number, and not only the names of its parameters.
        normed: Shapes that were normalised over their last dimension, noted in a dry run.
    """

    def __init__(self, model: nn.Module) -> None:
        self._trunk = task_of(model).trunk
        self._hook: RemovableHandle | None = None
        self._take(model.get_submodule(self._trunk))

    def _take(self, entry: nn.Module) -> None:
        self.entry = entry
        self.image: tuple[int, int, int] | None = None
        parts = list(entry.modules())
        counts = [getattr(part, name) for part in parts for name in _COUNTS if hasattr(part, name)]
        extra_tokens = [token for name, token in entry.named_parameters() if name.rpartition('.')[2] in _EXTRA_TOKENS]
        self.extra: int | None = next(iter(counts), None)
        self.counted = bool(counts)
        self.normed: set[torch.Size] = set()
        if not counts and extra_tokens:
            self.extra = sum(token.shape[:-1].numel() for token in extra_tokens)
        self._own_order = any(hasattr(part, 'reroll') for part in parts)  # Hiera, whose tokens go unit by unit
        # The patch embedding, or the first convolution of a stem.
        patches = next((part for part in parts if isinstance(part, nn.Conv2d)), None)
        self._stride = (1, 1) if patches is None else patches.stride
        self._overlap = (0, 0) if patches is None or isinstance(patches.padding, str) else tuple(
            kernel - stride - 2 * padding
            for kernel, stride, padding in zip(patches.kernel_size, patches.stride, patches.padding))
        self._has_patches = patches is not None

    def watch(self) -> RemovableHandle:
        """Note each image that enters, until the hook that is returned is removed."""
        # A bound method, because a deep copy of the model then copies this along.
        self._hook = self.entry.register_forward_pre_hook(self.note, with_kwargs=True)
        return self._hook

    def attach(self, model: nn.Module) -> bool:
        """Watch the part that takes the image anew if it was replaced; return whether it was."""
        try:
            entry = model.get_submodule(self._trunk)
        except AttributeError:  # moved into another one, or gone with its taps, which tell
            return False
        if entry is self.entry:
            return False
        if self._hook is not None:
            self._hook.remove()
        self._take(entry)
        self.watch()
        return True

    def note(self, module: nn.Module, inputs: tuple, keywords: dict) -> None:
        """Note the image that enters; a pre-hook of ``entry``."""
        image = next(chain(inputs, keywords.values()), None)
        if isinstance(image, Tensor) and image.dim() == 4:
            self.image = (image.shape[0], *image.shape[2:])

    def note_norm(self, norm: nn.Module, inputs: tuple) -> None:
        """Note what enters a layer norm, whose last dimension then has the channels; a pre-hook."""
        if inputs and isinstance(inputs[0], Tensor) and tuple(norm.normalized_shape) == inputs[0].shape[-1:]:
            self.normed.add(inputs[0].shape)

    def may_have_channels_first(self, tokens: Tensor) -> bool:
        """Return whether three dimensions may be (N, C, L) as well as (N, L, C), as between layers of an MLP-Mixer.

        They are not if the last one has no number of tokens of the image. Nor if the backbone says how many extra
        tokens it has, as transformers do, or normalises what has this shape.
        """
        _, length, channels = tokens.shape
        normed = length != channels and tokens.shape in self.normed
        return self.extra is None and not normed and bool(self._possible(channels))

    def as_map(self, output: object) -> Tensor | None:
        """Return what a module gives as a feature map (N, C, H, W), or None if it is none of the image."""
        found = self.read(output)
        return None if found is None else found[0]

    def read(self, output: object, known: Layout = Layout()) -> tuple[Tensor, Layout] | None:  # noqa: B008
        """Return what a module gives as a feature map (N, C, H, W), and how it is read; None if it is no map.

        A map is returned as it is, or (N, H, W, C) with its channels moved to the front. Of tokens (N, L, C), the extra
        ones are dropped, and the others become a map. Its height and width are those that the module gives with them,
        as Swin does. Else they follow from the size of the image and of its patches, which may have been merged. Of a
        tuple, see :func:`alone`.

        Args:
            output: What the module gives.
            known: What is known of this module. Without it, four dimensions are (N, H, W, C) if only the middle two
                have the shape of the image. If the last two have it as well, nothing tells, and the output is returned
                as it is. Where three may be (N, C, L) as well, they are read as (N, L, C). How it is read is then
                unknown, too.
        """
        output = alone(output)
        tokens, size = output, None
        if isinstance(output, (tuple, list)) and len(output) == 2 and _is_size(output[1]):
            tokens, size = output
        if not isinstance(tokens, Tensor) or tokens.dim() not in ((3, 4) if size is None else (3, )):
            return None
        if tokens.dim() == 3 and tokens.shape[2] == 1:  # a vector (N, C, 1), as pooled
            return None
        if known.plain and tokens.dim() == 4:
            return tokens, known
        if self.image is None or len(tokens) != self.image[0]:  # windows of a map, or heads
            return None
        if tokens.dim() == 4:
            plain = known.plain
            if plain is None:
                first, last = self.fits(tokens.shape[1:3]), self.fits(tokens.shape[2:])
                plain = None if first and last else not first
            return tokens.permute(0, 3, 1, 2) if plain is False else tokens, Layout(plain)
        found = self._possible(tokens.shape[1], size, known.tokens)
        shapes = set().union(*found.values())
        if len(shapes) != 1 or self._own_order:
            return None
        (height, width), = shapes
        first = max(0, tokens.shape[1] - height * width - known.behind)
        laid = tokens[:, first:first + height * width].transpose(1, 2).unflatten(2, (height, width))
        if size is None and not known.tokens and self.may_have_channels_first(tokens):
            return laid, Layout()
        return laid, Layout(tokens=tuple(found))

    def fits(self, size: tuple[int, int]) -> bool:
        """Return whether a map of that height and width has the shape of the image, but for rounding up or down."""
        _, height, width = self.image
        height, width = height * self._stride[1], width * self._stride[0]
        return abs(height * size[1] - width * size[0]) < max(height, width)

    def _possible(
            self, count: int, given: tuple[int, int] | None = None, known: tuple[tuple[int, int], ...] = (),
    ) -> dict[tuple[int, int], set[tuple[int, int]]]:
        """Return the heights and widths that ``count`` tokens can have, by how they are read, see :class:`Layout`."""
        if given is None and count <= (self.extra or 0):  # the class token alone, as of attention that pools
            return {}
        # A class token at least is to be expected of models that tell nothing.
        extras = {0, 1, 2} if self.extra is None else {0, self.extra}
        sizes = self._sizes() if given is None else [(1, tuple(given))]
        found: dict[tuple[int, int], set[tuple[int, int]]] = {}
        for merged, size in sizes:
            layout = count - math.prod(size), merged
            if layout[0] in extras and (not known or layout in known):
                found.setdefault(layout, set()).add(size)
        return found

    def _sizes(self) -> Iterator[tuple[int, tuple[int, int]]]:
        """Yield how many patches were merged in a row, and then the height and width of the image."""
        image = self.image[1:]
        padded = [-(-length // stride) for length, stride in zip(image, self._stride)]
        cut = [(length - overlap) // stride for length, stride, overlap in zip(image, self._stride, self._overlap)]
        for patches in (padded, cut):
            merged = 1
            while merged <= max(patches):
                yield merged, tuple(-(-length // merged) for length in patches)
                if merged <= min(patches):
                    yield merged, tuple(length // merged for length in patches)
                # Two by two; of a patch embedding without a convolution nothing is known.
                merged = 2 * merged if self._has_patches else merged + 1

    def refusal(self, output: object, known: Layout) -> str:
        """Say why the output of a module is no map, and what to do."""
        kind = f'tensor of shape {tuple(output.shape)}' if isinstance(output, Tensor) else type(output).__name__
        text = f'gives a {kind}, and a tap is one feature map (N, C, H, W), or tokens (N, H * W, C) of one. '
        if not isinstance(output, Tensor) or output.dim() != 3 or self.image is None:
            return text + 'Choose a module inside it, before the pooling or flattening.'
        images, *size = self.image
        if len(output) != images:
            return text + (f'These are {counted(len(output), "part")} of {counted(images, "image")}: choose a module '
                           'around it.')
        if self._own_order:
            return text + 'The backbone keeps its tokens in an order of its own: tap a module that gives a map.'
        if output.shape[1] <= (self.extra or 0):
            return text + (
                f'The backbone has {counted(self.extra, "class or register token")}, and here are no others: tap a '
                'module that gives those of the patches too.')
        told = 'tells of no class and register tokens' if self.extra is None else (
            f'has {counted(self.extra, "class or register token")}')
        fit = 'more than one map' if self._possible(output.shape[1], known=known.tokens) else 'no map'
        return text + (
            f'{counted(output.shape[1], "token fits", "tokens fit")} {fit} of an image of {size[0]}x{size[1]} with '
            f'patches of {self._stride[0]}x{self._stride[1]}; the backbone {told}. If that is not so, '
            f'{self.advice}; else tap a module that gives a map (N, C, H, W), or tokens with their (H, W).')

    @property
    def advice(self) -> str:
        """How the backbone is made to tell how many class and register tokens come before those of the patches."""
        kind = type(self.entry).__name__
        # What __init__ sets hides what the class has.
        return (f'correct the {_COUNTS[0]} that the __init__ of {kind} sets' if _COUNTS[0] in vars(self.entry) else
                f'give {kind} the right number as the class attribute {_COUNTS[0]}')


def alone(output: object) -> object:
    """Return the tokens in a tuple that has nothing else in it but None, as blocks of Hugging Face give them."""
    parts = [part for part in output if part is not None] if isinstance(output, tuple) else ()
    return parts[0] if len(parts) == 1 and isinstance(parts[0], Tensor) and parts[0].dim() == 3 else output


def _is_size(value: object) -> bool:
    return isinstance(value, (tuple, list, torch.Size)) and len(value) == 2 and all(
        isinstance(length, (int, torch.SymInt)) for length in value)
