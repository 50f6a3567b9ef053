"""Finds the stages of a network, and with them the taps of ``taps='auto'``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from overhaul.method.taps import blank_pass
from overhaul.method.tokens import Layout, Tokens, alone
from overhaul.registry import counted
from overhaul.tasks import task_of

# Gates such as Sigmoid are left out: what enters them is no feature.
_ACTIVATIONS = {
    'ReLU', 'ReLU6', 'LeakyReLU', 'PReLU', 'RReLU', 'ELU', 'CELU', 'SELU', 'SiLU', 'Swish', 'SwishMe', 'Mish', 'GELU',
    'GELUTanh', 'QuickGELU', 'Hardswish', 'HSwish', 'HardSwish', 'HardswishMe', 'Clip'}
_MOST_STAGES = 4

# Parts of the paper's networks for which no rule gives its taps, and which are not ours to write them into.
_PAPER_TAPS = {
    'mmseg.models.backbones.mobilenet_v2.MobileNetV2':
        ('layer3.0.conv.0.bn', 'layer4.0.conv.0.bn', 'layer6.0.conv.0.bn', 'layer7.0.conv.2.bn'),
    'mmseg.models.decode_heads.sep_aspp_head.DepthwiseSeparableASPPHead':
        {'bottleneck.activate:input': 1, 'sep_bottleneck.1.pointwise_conv.activate:input': 1 / 16},
}


class Stage(NamedTuple):
    """The tap of one stage: its path as :class:`Tap` takes it, and what is found there."""

    path: str
    channels: int
    size: tuple[int, int]


def find_stages(model: nn.Module, input_size: tuple[int, int]) -> list[Stage]:
    """Return the last pre-activation feature of each stage of the backbone of ``model``, shallow to deep.

    Where the backbone's class names the paper's taps, as ``stage_taps``, those are taken. Elsewhere, from one pass of a
    random image in eval mode:

    * A stage is an entry of ``res_layers``, as the ResNet family of mmpretrain and mmseg has it, or else all that runs
      at one resolution with a convolution; the four deepest count. Its feature is the last one that a module hands on
      before the block that lowers the resolution, or before the end.
    * In a network of blocks that take tokens, the part that makes the tokens is no stage, nor is what follows the
      blocks.
    * If that feature comes out of an activation, the tap is the activation's input. If the next module is a batch norm,
      as in pre-activation networks, the tap is that batch norm's output. Otherwise the stage ends without an
      activation, and the tap is its output. If the activation is a mere function or runs again later, where no tap can
      reach it, the tap is the output of the last batch norm before it, of as many channels if there is one.

    Args:
        model: Any model of mmengine. Its task tells which part of it has the stages.
        input_size: Height and width of the image.

    Raises:
        ValueError: If no stage is found, or none of the blocks that take tokens gives a map.
    """
    trunk = task_of(model).trunk
    backbone, inside = model.get_submodule(trunk), f'{trunk}.' if trunk else ''
    trace = _Trace(model, inside, input_size)
    named = _paper_taps(backbone)
    if named:
        outputs = {f'{inside}{path}': trace.last[f'{inside}{path}'].outputs[0] for path in named}
        return [Stage(path, output.channels, output.size) for path, output in outputs.items()]
    blocks = getattr(backbone, 'res_layers', None)
    if blocks and all(isinstance(name, str) and f'{inside}{name}' in trace.last for name in blocks):
        calls = [trace.last[f'{inside}{name}'] for name in blocks]
        ends = [(call, call.outputs[-1]) for call in calls]
    else:
        ends = list(trace.last_of_each_resolution())[-_MOST_STAGES:]
    stages = [trace.stage_of(call, output) for call, output in ends]
    if not stages:
        raise ValueError(
            f'taps="auto" found no feature map in the {type(backbone).__name__}. Name the taps: the modules of the '
            f'backbone are {", ".join(name for name, _ in backbone.named_children())}.')
    return stages


def find_levels(model: nn.Module, input_size: tuple[int, int]) -> list[Stage]:
    """Return the pre-activation features that the ``neck`` of ``model`` hands on, of the largest map to the smallest.

    Found as :func:`find_stages` finds the ends of stages, in what the neck returns. A level is left out where no module
    of the neck gives it, as one that a function pools, and where it has no negative values and no activation before it.
    A model without a neck, or with one that gives no maps, has none.
    """
    if 'neck' not in dict(model.named_children()):
        return []
    trace = _Trace(model, '', input_size)
    levels = {}
    for output in trace.last['neck'].outputs if 'neck' in trace.last else ():
        giver = next((giver for giver, version in output.feature.givers if version == output.version), None)
        if giver is not None and giver.path.startswith('neck.'):
            with suppress(ValueError):
                levels[output.size] = trace.stage_of(giver, output)
    return [levels[size] for size in sorted(levels, reverse=True)]


def pair_stages(teacher: Sequence[Stage], student: Sequence[Stage], match_sizes: bool = False) -> list[dict]:
    """Return ``taps``, as a config would have them, that pair stages of equal size, deepest first where several match.

    With ``match_sizes``, sizes are equal whose areas differ by less than a factor of two. The weights are the paper's:
    1 for the deepest pair, and half as much for each pair before.

    Raises:
        ValueError: If no stages have the same size.
    """
    factor = 2 if match_sizes else 1
    pairs: list[tuple[Stage, Stage]] = []
    left = list(student)
    for teacher_stage in reversed(teacher):
        match = next((stage for stage in reversed(left) if _alike(stage.size, teacher_stage.size, factor)), None)
        if match is not None:
            left = left[:left.index(match)]
            pairs.insert(0, (teacher_stage, match))
    if not pairs:
        raise ValueError(
            f'taps="auto" found no stages of equal size. Teacher: {_sizes(teacher)}. Student: {_sizes(student)}. '
            'Choose models of the same strides, let match_sizes=True pair sizes that are near, or name the taps.')
    alone = [
        f'{" and ".join("{} ({}x{})".format(stage.path, *stage.size) for stage in stages if stage not in paired)} of '
        f'the {owner}'
        for owner, stages, paired in zip(('teacher', 'student'), (teacher, student), zip(*pairs))
        if any(stage not in paired for stage in stages)]
    if alone:
        print_log(f'taps="auto" leaves out, since no partner of the same size is left: {", ".join(alone)}.', 'current')
    return [
        dict(teacher=teacher_stage.path, student=student_stage.path, loss_weight=0.5**(len(pairs) - 1 - i))
        for i, (teacher_stage, student_stage) in enumerate(pairs)]


def head_taps(teacher: nn.Module, student: nn.Module) -> list[dict]:
    """Return the taps of the decode heads, where both are those of the paper, or name ``stage_taps`` with weights."""
    taps, theirs = (_paper_taps(getattr(model, 'decode_head', None)) or {} for model in (teacher, student))
    return [
        dict(teacher=f'decode_head.{path}', student=f'decode_head.{path}', loss_weight=weight)
        for path, weight in taps.items() if path in theirs]


def auto_taps(
        teacher: nn.Module, student: nn.Module, input_size: tuple[int, int], match_sizes: bool = False,
        tap_neck: bool = False) -> list[dict]:
    """Return the ``taps`` that stand for ``'auto'``: see :func:`find_stages` and :func:`pair_stages`.

    With ``tap_neck`` those of the necks come after the backbones', see :func:`find_levels`.

    Raises:
        ValueError: As those; if one of the models has no neck to tap.
    """
    models = (teacher, student)
    taps = pair_stages(*(find_stages(model, input_size) for model in models), match_sizes)
    if tap_neck:
        levels = [find_levels(model, input_size) for model in models]
        for owner, found in zip(('teacher', 'student'), levels):
            if not found:
                raise ValueError(
                    f'tap_neck=True found no level in a neck of the {owner}. Leave it out, and name the taps of other '
                    'parts.')
        taps += pair_stages(*levels, match_sizes)
    return taps + head_taps(teacher, student)


class _Output(NamedTuple):
    """A feature map that a call hands on: the tensor's identity, and its state at that time."""

    feature: _Feature
    version: int
    channels: int
    size: tuple[int, int]
    negative: bool  # whether it has negative values


@dataclass(eq=False)
class _Call:
    """One call of a module."""

    path: str
    module: nn.Module
    inside: tuple[_Call, ...]  # the calls that it is part of
    input_size: tuple[int, int] | None  # of the feature map that enters; None for the image
    takes_tokens: bool
    refusal: str = ''  # why a block's tokens are no map
    outputs: list[_Output] = field(default_factory=list)
    parts: list[_Call] = field(default_factory=list)  # the calls right inside it

    @property
    def computes(self) -> bool:
        """Return whether its module has a matrix of weights, as no pooling, normalisation or activation has."""
        return (not isinstance(self.module, nn.Sequential)
                and any(parameter.dim() > 1 for parameter in self.module.parameters()))

    def gives(self, size: tuple[int, int]) -> _Output | None:
        """Return its feature map of that size."""
        return next((output for output in self.outputs if output.size == size and output.feature.givers), None)

    @property
    def is_block(self) -> bool:
        """Return whether its module is no list of blocks, also none that ends with downsampling."""
        if type(self.module).forward is nn.Sequential.forward:
            return not any(list(part.parameters()) for block in self.module for part in block.children())
        listed = {block for child in self.module.children() if isinstance(child, nn.ModuleList) for block in child}
        blocks = [part for part in self.parts if part.module in listed]
        return not blocks or any(block.gives(self.input_size) is None for block in blocks)

    def lowers(self, size: tuple[int, int]) -> bool:
        """Return whether it is a block that takes a feature map of that size to a lower resolution."""
        return (self.input_size == size and self.is_block and bool(self.outputs)
                and all(output.size < size for output in self.outputs))

    def beside(self, size: tuple[int, int]) -> bool:
        """Return whether it goes to that size only inside, as squeeze and excitation, pyramids and attention do."""
        sizes = {output.size for output in self.outputs}
        return bool(sizes) and (min(sizes) > size or (sizes == {self.input_size} and size not in sizes))


@dataclass(eq=False)
class _Feature:
    """One tensor: the calls that handed it on, and the batch norm that takes it in."""

    givers: list[tuple[_Call, int]] = field(default_factory=list)  # with the tensor's version at that time
    batch_norm: _Call | None = None


class _Trace:
    """The calls of all modules of a model whose paths begin with ``inside``, in the order in which they end.

    The model takes one random image for it.
    """

    def __init__(self, model: nn.Module, inside: str, input_size: tuple[int, int]) -> None:
        self.calls: list[_Call] = []
        self.last: dict[str, _Call] = {}
        self._tokens = Tokens(model)
        self._running: list[_Call] = []
        self._computed = False
        self._inside, self._listed = inside, set()
        hooks = [self._tokens.watch()]
        for path, module in model.named_modules():
            if isinstance(module, nn.ModuleList | nn.Sequential):
                self._listed.update(module)
            if path and path.startswith(inside) and not isinstance(module, nn.Identity):
                hooks.append(module.register_forward_pre_hook(partial(self._begin, path)))
                hooks.append(module.register_forward_hook(self._end))
        blank_pass(model, input_size, hooks, torch.randn)

    def _begin(self, path: str, module: nn.Module, inputs: tuple) -> None:
        entering = inputs[0] if inputs else None
        if isinstance(entering, Tensor) and not self._computed:
            entering._is_image = True
        takes_tokens = self._tokens.image is not None and any(
            isinstance(part, Tensor) and part.dim() == 3
            and len(part) == self._tokens.image[0] for part in inputs)  # and not one of its windows
        call = _Call(path, module, tuple(self._running), self._size(entering), takes_tokens)
        feature = getattr(entering, '_feature', None)
        if feature and isinstance(module, _BatchNorm):
            feature.batch_norm = feature.batch_norm or call
        self._running.append(call)

    def _end(self, module: nn.Module, inputs: tuple, outputs: object) -> None:
        call = self._running.pop()
        self._computed = self._computed or call.computes
        if self._running:
            self._running[-1].parts.append(call)
        outputs = alone(outputs)
        several = isinstance(outputs, (tuple, list)) and self._size(outputs) is None
        for output in outputs if several else (outputs, ):
            size = self._size(output)
            if size is None:
                continue
            tensor = output if isinstance(output, Tensor) else output[0]
            # On the tensor, since ids are used again; an in-place operation keeps it.
            tensor._feature = feature = getattr(tensor, '_feature', None) or _Feature()
            if not several or feature.givers:  # no tap takes one of several that no module gave before
                feature.givers.append((call, tensor._version))
            call.outputs.append(
                _Output(feature, tensor._version, self._tokens.as_map(output).shape[1], size, bool((tensor < 0).any())))
        if not call.outputs:
            call.refusal = self._tokens.refusal(outputs, Layout())
        self.calls.append(call)
        self.last[call.path] = call

    def _size(self, output: object) -> tuple[int, int] | None:
        """Return height and width of a feature map; None for the image, for windows of a map, for what is no map."""
        feature_map = self._tokens.as_map(output)
        if feature_map is None or not self._computed or hasattr(output, '_is_image'):
            return None
        size = tuple(feature_map.shape[2:])
        return None if feature_map is output and not self._tokens.fits(size) else size

    def last_of_each_resolution(self) -> Iterator[tuple[_Call, _Output]]:
        """Yield the last call at each resolution that is outside the block that lowers it, with its feature map."""
        within = self._within_blocks()
        # What is pooled over the whole image is no feature map.
        sizes = {output.size for call in within for output in call.outputs} - {(1, 1)}
        for size in sorted(sizes, reverse=True):
            calls = [
                call for call in within
                if call.gives(size) and not any(outer.lowers(size) or outer.beside(size)
                                                for outer in (*call.inside, call))]
            if any(call.computes for call in calls):
                yield calls[-1], calls[-1].gives(size)

    def _within_blocks(self) -> list[_Call]:
        """Return the calls that are neither of what makes tokens for a list of blocks, nor of what pools them behind.

        Raises:
            ValueError: If none of the blocks gives a map.
        """
        blocks = [
            call for call in self.calls
            if call.takes_tokens and call.computes and call.module in self._listed and list(call.module.children())]
        if not blocks:
            return self.calls
        if not any(block.outputs for block in blocks):
            raise ValueError(
                f'taps="auto" can read none of the {counted(len(blocks), "block")} of the '
                f'{type(self._tokens.entry).__name__}: '
                f'"{blocks[-1].path}" {blocks[-1].refusal}')
        around = [call.path for call in blocks[0].inside
                  if not isinstance(call.module, nn.Sequential) and all(call in block.inside for block in blocks)]
        inside = f'{around[-1]}.' if around else self._inside

        def part(call: _Call) -> str:
            return call.path.removeprefix(inside).partition('.')[0]

        parts, first, last = {part(block) for block in blocks}, *map(self.calls.index, (blocks[0], blocks[-1]))
        outside = [call for call in self.calls[:first] if call.path.startswith(inside) and part(call) not in parts]
        outside += [call for call in self.calls[last:] if call.takes_tokens and call.computes and not any(
            call in (block, *block.inside) for block in blocks)]
        return [call for call in self.calls if not any(outer in outside for outer in (*call.inside, call))]

    def stage_of(self, call: _Call, output: _Output) -> Stage:
        """Return the stage whose feature is the pre-activation behind ``output``, which ``call`` hands on."""
        giver = next(giver for giver, version in output.feature.givers if version == output.version)
        activated = type(giver.module).__name__ in _ACTIVATIONS
        if activated and self.last[giver.path] is giver:
            return Stage(f'{giver.path}:input', output.channels, output.size)
        if not activated and output.negative:
            norm = output.feature.batch_norm
            if norm and norm.outputs:
                return self.stage_of(norm, norm.outputs[0])
            return Stage(giver.path, output.channels, output.size)
        norms = [
            norm for norm in self.calls[:self.calls.index(giver)]
            if isinstance(norm.module, _BatchNorm) and norm.gives(output.size)]
        if not norms:
            raise ValueError(
                f'taps="auto" found no feature before the activation at the end of "{call.path}", which is a function '
                'or runs again later, and no batch norm to take instead. Name the taps.')
        alike = [norm for norm in norms if norm.outputs[0].channels == output.channels]
        norm = (alike or norms)[-1]
        # Those of timm hold their activation.
        inside = [f'{part.path}:input' for part in norm.parts if type(part.module).__name__ in _ACTIVATIONS]
        return Stage([norm.path, *inside][-1], norm.outputs[0].channels, output.size)


def _paper_taps(part: nn.Module | None) -> Sequence[str] | dict[str, float] | None:
    """Return the taps that the class of a backbone or head names, or that are known for it."""
    return getattr(part, 'stage_taps', None) or _PAPER_TAPS.get(f'{type(part).__module__}.{type(part).__qualname__}')


def _alike(size: tuple[int, int], other: tuple[int, int], factor: int) -> bool:
    return size == other or max(math.prod(size), math.prod(other)) < factor * min(math.prod(size), math.prod(other))


def _sizes(stages: Sequence[Stage]) -> str:
    return ', '.join('{}x{}'.format(*stage.size) for stage in stages)
