"""Taps: where features are read inside a model, without a change to it and within its one forward pass."""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from overhaul.method.tokens import Layout, Tokens
from overhaul.registry import counted
from overhaul.tasks import task_of

# A batch norm on one of these branches does not scale the feature that the residual block computes.
_SIDE_BRANCHES = ('downsample', 'shortcut')


class ForwardDone(Exception):
    """Ends a teacher's forward pass after its last tap. It never leaves :meth:`Taps.read`."""


class NoMap(ValueError):
    """What a tap reads is no feature map."""


class Tap:
    """One feature position of a model.

    Args:
        model: The model that holds the position.
        path: ``'path.of.module'`` for the output of that module, ``'path.of.module:input'`` for what enters it. If the
            module runs several times in one forward pass, as the shared ``relu`` of a residual block does, the last
            call counts. Where the feature is received, see :meth:`start`, it is the call that was last in the dry run.
        owner: ``'teacher'`` or ``'student'``, for error messages.
        tokens: What the model tells of its tokens.

    Attributes:
        channels, size: Channels and (height, width) of the feature, known after :meth:`Taps.dry_run`.
        layout: How the module gives the map, known after the dry run.
        norm_path: Path of the batch norm before the tap, known after the dry run: the last one of the tap's shape on
            the main path. ``None`` if a convolution of that shape comes after it. Additions and activations in between
            do not count.

    Raises:
        ValueError: If the model has no module of that path; names the nearest ones.
    """

    def __init__(self, model: nn.Module, path: str, owner: str, tokens: Tokens) -> None:
        self.path, self.owner = path, owner
        self.module_path, _, self._side = path.partition(':')
        modules = dict(model.named_modules())
        if self.module_path not in modules or self._side not in ('', 'input') or path.endswith(':'):
            raise ValueError(_unknown_tap(path, owner, modules))
        self.channels: int | None = None
        self.size: tuple[int, int] | None = None
        self.norm_path: str | None = None
        self._reading = self._with_gradient = self._cut_off = self._received = False
        self._receive: Callable[[Tensor], None] | None = None
        self._tokens = tokens
        self.layout = Layout()
        self.calls = 0
        self._calls_of_dry_run: int | None = None
        self.last_call: int | None = None
        self._copy = False
        self._feature: Tensor | None = None
        self._version: int | None = None
        self.module: nn.Module | None = None
        self._hook: RemovableHandle | None = None
        self.attach(model)

    def attach(self, model: nn.Module) -> None:
        """Hook the module of the path; again, where it was replaced since, as conversion to SyncBatchNorm does.

        Raises:
            ValueError: If the path leads nowhere any more, and the module that it led to is gone.
        """
        try:
            module = model.get_submodule(self.module_path)
        except AttributeError as error:
            if any(module is self.module for module in model.modules()):  # it has moved, into another around it
                return
            raise ValueError(
                f'{self._where} is gone: something has changed the {self.owner} since it was built, and "'
                f'{self.module_path}" leads to no module any more ({error}). Tap what is there now, or leave that '
                'module in its place.') from error
        if module is self.module:
            return
        if self._hook is not None:
            self._hook.remove()  # the module may still run, inside the one that replaced it
        self.module = module
        # Bound methods, because a deep copy of the model (as EMA makes one) then copies the tap along.
        self._hook = (
            module.register_forward_pre_hook(self._record_input, with_kwargs=True) if self._side == 'input' else
            module.register_forward_hook(self._record_output))

    def _record_input(self, module: nn.Module, inputs: tuple, keywords: dict) -> None:
        self._record(next(chain(inputs, keywords.values()), None))

    def _record_output(self, module: nn.Module, inputs: tuple, output: object) -> None:
        self._record(output)

    def _record(self, feature: object) -> None:
        if not self._reading:
            return
        found = self._tokens.read(feature, self.layout)
        if found is None:
            raise NoMap(f'{self._where} {self._tokens.refusal(feature, self.layout)}')
        feature_map, layout = found
        if not self.layout.known:
            if not layout.known and self._calls_of_dry_run is not None:
                raise NoMap(self._undecided(feature))
            self.layout = layout
        self.calls += 1
        if self._received:
            raise ValueError(
                f'{self._where} runs {counted(self.calls, "time")} in this forward pass, and ran '
                f'{counted(self._calls_of_dry_run, "time")} in the dry run, so that the last time is not known. Tap a '
                'module that runs once, or set at_once=False in the model.')
        self._cut_off = self._with_gradient and not torch.is_grad_enabled()
        compiling = torch.compiler.is_compiling()
        in_time = self._receive is not None and self.calls == self._calls_of_dry_run
        if in_time and not self._cut_off and not compiling:
            self._check_channels(feature_map)
            self._received, self._feature = True, None
            self._receive(feature_map)
            return
        self._feature = feature_map.clone() if self._copy else feature_map
        self._version = None if compiling else _version(self._feature)
        if self.calls == self.last_call and not compiling:
            raise ForwardDone

    @property
    def _overwritten(self) -> bool:
        return self._version is not None and _version(self._feature) != self._version

    @property
    def _where(self) -> str:
        return f'The {self.owner} tap "{self.path}" ({type(self.module).__name__})'

    def start(self, receive: Callable[[Tensor], None] | None = None) -> None:
        """Get ready for a forward pass; only what runs between here and :meth:`take` is read.

        Args:
            receive: Is given the feature, before the model runs on, at the call that was the last one of the dry run.
        """
        self._reading, self._received, self._receive, self.calls, self._feature = True, False, receive, 0, None
        self._with_gradient = torch.is_grad_enabled()

    def stop(self) -> None:
        """Read and keep nothing any more."""
        self._reading, self._receive, self._feature = False, None, None

    def take(self) -> Tensor | None:
        """Hand over the feature of the forward pass that just ended, if not received, and keep nothing of it.

        Raises:
            ValueError: If the module did not run, if its feature was changed in place afterwards, or if it ran without
                the gradient that was on at the start.
        """
        self._reading = False
        if self._received:
            return None
        where = self._where
        if self._feature is None:
            raise ValueError(f'{where} was not reached: the model has this module and does not run it. Choose another.')
        if self._cut_off:
            raise ValueError(
                f'{where} runs without gradient, as all inside a block under gradient checkpointing does, and nothing '
                'would be learnt from its feature. Tap outside the block (the output of its stage, or the input of its '
                'last ReLU, "path.of.relu:input"), or set with_cp=False.')
        if self._overwritten:
            raise ValueError(
                f'{where} was changed in place after it was read, in a way that the dry run did not show, so the '
                'feature is lost. Tap the input of the module that changes it ("path.of.module:input"), or make that '
                'module work out of place (inplace=False).')
        feature, self._feature = self._feature, None
        self._check_channels(feature)
        return feature

    def _check_channels(self, feature: Tensor) -> None:
        # Of the call that counts: others of a shared module may give other numbers.
        if feature.shape[1] != self.channels:
            raise ValueError(
                f'{self._where} gives {counted(feature.shape[1], "channel")}, and gave {self.channels} when the '
                f'model was built: something has replaced a module of the {self.owner}. Let it have as many.')

    def _undecided(self, feature: Tensor) -> str:
        """Say that it is not known which dimension of ``feature`` has the channels, and what to do."""
        other = 'and an image of twice the width, which could tell, does not. Give another input_size, or tap another'
        if feature.dim() == 4:
            return (f'{self._where} gives a map whose height, width and channels nothing tells apart at this '
                    f'input_size, {other} module.')
        return (
            f'{self._where} gives a tensor of shape {tuple(feature.shape)}, and at this input_size either '
            f'{feature.shape[1]} or {feature.shape[2]} may be the tokens of the image and not its channels, {other} '
            'module. If it is (N, tokens, channels), as most transformers have it, '
            f'{self._tokens.advice}: of class and register tokens, 0 if there are none.')

    def refuse_a_window(self, model: nn.Module, input_size: tuple[int, int]) -> None:
        """Refuse the tokens of a window that is the whole map, and that rolled, for an image of ``input_size`` alone.

        Raises:
            ValueError: If an image of twice the width has several of them.
        """
        parts = self.module_path.split('.')
        paths = ['.'.join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        if not any(hasattr(model.get_submodule(path), 'window_size') for path in paths):
            return
        counts: set[int] = set()

        def count(module: nn.Module, inputs: tuple, output: object = None) -> None:
            feature = inputs[0] if self._side and inputs else output
            counts.update([len(feature)] if isinstance(feature, Tensor) else [])

        register = self.module.register_forward_pre_hook if self._side else self.module.register_forward_hook
        with suppress(ValueError):
            blank_pass(model, (input_size[0], 2 * input_size[1]), [register(count)])
        if max(counts, default=1) > 1:
            raise ValueError(
                f'{self._where} gives a window of a map, and not the map: an image of twice the width has '
                f'{max(counts)} of them. Tap a module around it.')

    def place_extra_tokens(self, extra: int, behind: int | None) -> None:
        """Note how many of the ``extra`` tokens come ``behind`` those of the patches, as :func:`_tokens_behind` tells.

        Raises:
            ValueError: If they lie among them, or nothing tells.
        """
        if behind is None and self._tokens.counted:
            behind = 0
        if behind is None or behind < 0:
            raise ValueError(
                f'{self._where} gives {extra + math.prod(self.size)} tokens, of which '
                f'{counted(extra, "is no patch", "are no patches")} of the image, and it is not known which, or they '
                f'lie among the others. If they are the first ones, {self._tokens.advice}; else tap another module.')
        self.layout = self.layout._replace(behind=behind)

    def learn(self, before: Sequence[tuple[str, nn.Module, torch.Size]]) -> None:
        """Note what the dry run shows: channels, size, the batch norm behind it, and whether to copy the feature."""
        # A copy keeps the feature whatever the model does to its own tensor afterwards.
        self._copy, self._calls_of_dry_run = self._copy or self._overwritten, self.calls
        feature = self._feature
        self.channels, self.size = feature.shape[1], tuple(feature.shape[2:])
        main_path = [
            (path, module) for path, module, shape in before
            if shape == feature.shape and not any(branch in path for branch in _SIDE_BRANCHES)]
        # A convolution after the last batch norm makes another feature of it.
        path, module = main_path[-1] if main_path else (None, None)
        self.norm_path = path if isinstance(module, _BatchNorm) else None


class Taps:
    """The taps of one model, shallow to deep.

    Args:
        model: An mmengine model with ``forward(inputs, data_samples, mode)``.
        paths: One path per tap, see :class:`Tap`.
        owner: ``'teacher'`` or ``'student'``, for error messages.
    """

    def __init__(self, model: nn.Module, paths: Sequence[str], owner: str) -> None:
        self.tokens = Tokens(model)
        self.taps = [Tap(model, path, owner, self.tokens) for path in paths]

    def __iter__(self) -> Iterator[Tap]:
        return iter(self.taps)

    def __len__(self) -> int:
        return len(self.taps)

    def start(self, model: nn.Module, receive: Callable[[int, Tensor], None] | None = None) -> None:
        """Get ready for a forward pass of ``model``, whose modules may have been replaced since the last one.

        Args:
            model: The model that the taps were made for.
            receive: Is given the number of a tap and its feature as soon as that is computed, see :meth:`Tap.start`.

        Raises:
            ValueError: If the path of a tap leads to no module any more.
        """
        self.tokens.image = None
        replaced = self.tokens.attach(model)
        for index, tap in enumerate(self.taps):
            tap.attach(model)
            if replaced:  # by one whose tokens may be others
                tap.layout = tap.layout._replace(tokens=())
            tap.start(None if receive is None else functools.partial(receive, index))

    def stop(self) -> None:
        """Read and keep nothing any more, also where the forward pass failed."""
        for tap in self.taps:
            tap.stop()

    def take(self) -> list[Tensor | None]:
        """Hand over the features of the forward pass that just ended, with None for those that were received."""
        return [tap.take() for tap in self.taps]

    def read(self, model: nn.Module, inputs: Tensor, data_samples: list | None = None) -> list[Tensor]:
        """Run ``model`` on ``inputs`` (N, C, H, W), no further than its last tap, and return the features."""
        self.start(model)
        try:
            with suppress(ForwardDone):
                model(inputs, data_samples, mode='tensor')
            return self.take()
        finally:
            self.stop()

    def dry_run(self, model: nn.Module, input_size: tuple[int, int], stop_after_last: bool) -> None:
        """Learn each tap's channels, size and batch norm from one forward pass of a blank image in eval mode.

        Args:
            model: The model that the taps were made for. Comes out as it went in.
            input_size: Height and width of the blank image.
            stop_after_last: Whether later passes may end at the tap that is reached last.

        Raises:
            ValueError: If a tap is not reached, or gives no map. Or if nothing tells the channels of a map from its
                height and width, or from its tokens, and the model takes no image of another shape, which would. Or if
                class tokens lie where it is not known, or the tap gives a window of a map.
        """
        last = self._learn(model, input_size)
        if not all(tap.layout.known for tap in self.taps):
            height, width = input_size
            with suppress(ValueError):  # what runs before the model finds the size wrong is read all the same
                self._learn(model, (height, 2 * width))
            last = self._learn(model, input_size)
        for tap in self.taps:
            if tap.layout.tokens:
                tap.refuse_a_window(model, input_size)
            extra = max((extra for extra, _ in tap.layout.tokens), default=0)
            if extra:
                tap.place_extra_tokens(
                    extra, _tokens_behind(model, input_size, extra, extra + math.prod(tap.size)))
        if not all(tap.layout.plain for tap in self.taps):
            self.tokens.watch()
        if stop_after_last:
            last.last_call = last.calls

    def _learn(self, model: nn.Module, input_size: tuple[int, int]) -> Tap:
        """Let each tap learn from one pass, and return the one that was reached last."""
        # Taps, and batch norms and convolutions with the shape that they give, as they ran.
        events: list[Tap | tuple[str, nn.Module, torch.Size]] = []

        def note(event: Tap | str) -> Callable:
            if isinstance(event, Tap):
                return lambda *_: events.append(event)
            return lambda module, inputs, output=None: events.append(
                (event, module, (inputs[0] if output is None else output).shape))

        # Those of a module run in this order: a convolution makes its own output, a batch norm none of its own input.
        modules = list(model.named_modules())
        hooks = [
            module.register_forward_hook(note(path)) for path, module in modules if isinstance(module, _ConvNd)]
        hooks.append(self.tokens.watch())
        self.tokens.normed.clear()
        hooks += [module.register_forward_pre_hook(self.tokens.note_norm, prepend=True)
                  for _, module in modules if hasattr(module, 'normalized_shape')]
        for tap in self.taps:
            register = tap.module.register_forward_pre_hook if tap._side else tap.module.register_forward_hook
            hooks.append(register(note(tap)))
        # Before it runs: some batch norms hold the activation that is tapped.
        hooks += [
            module.register_forward_pre_hook(note(path)) for path, module in modules if isinstance(module, _BatchNorm)]
        with torch.no_grad():
            self.start(model)
        try:
            failure = blank_pass(model, input_size, hooks)
            reached = [event for event in events if isinstance(event, Tap)]
            for tap in self.taps:
                if tap not in reached:
                    if failure is not None:
                        raise failure
                    tap.take()  # raises
                before = events[:len(events) - 1 - events[::-1].index(tap)]
                tap.learn([event for event in before if not isinstance(event, Tap)])
        finally:
            self.stop()
        return reached[-1]


def _tokens_behind(model: nn.Module, input_size: tuple[int, int], extra: int, count: int) -> int | None:
    """Return how many of ``extra`` tokens come after those of the patches; -1 if among them, None if that is not seen.

    An image of NaN is in each patch of it, and in no other token, before they are mixed: in the first sequence of
    ``count`` tokens, or else in the first of another length, which may have been pooled later.
    """
    found: dict[bool, int] = {}

    def look(module: nn.Module, *values: object) -> None:
        for value in chain.from_iterable(some if isinstance(some, tuple) else [some] for some in values):
            if not isinstance(value, Tensor) or value.dim() != 3 or len(value) != 1:
                continue
            patches = value[0].isnan().any(1).nonzero().flatten().tolist()
            if patches and len(patches) == value.shape[1] - extra:
                among = patches[-1] - patches[0] >= len(patches)
                found.setdefault(value.shape[1] == count, -1 if among else value.shape[1] - 1 - patches[-1])
                if True in found:
                    raise ForwardDone

    hooks = [register(look) for module in model.modules()
             for register in (module.register_forward_pre_hook, module.register_forward_hook)]
    with suppress(ValueError):
        blank_pass(model, input_size, hooks, lambda *size, **options: torch.full(size, math.nan, **options))
    return found.get(True, found.get(False))


def _version(feature: Tensor) -> int:
    # In inference mode nothing counts the changes.
    return 0 if feature.is_inference() else feature._version


def blank_batch(
        model: nn.Module, input_size: tuple[int, int], fill: Callable[..., Tensor] = torch.zeros,
) -> tuple[Tensor, list | None]:
    """Return one image (1, C, H, W) or clip for ``model``, and data samples, which some detectors need for maps."""
    parameter, task = next(model.parameters()), task_of(model)
    image = fill(1, *task.input_shape(input_size), dtype=parameter.dtype, device=parameter.device)
    sample = task.random_sample(tuple(input_size), torch.Generator())
    return image, None if sample is None else [sample.to(parameter.device)]


def blank_pass(
        model: nn.Module, input_size: tuple[int, int], hooks: Sequence[RemovableHandle],
        fill: Callable[..., Tensor] = torch.zeros) -> ValueError | None:
    """Run ``model`` once, without gradient and in eval mode, and remove ``hooks``. It comes out as it went in.

    Returns:
        None, or what to raise where more is needed than the trunk: some models, as mmseg's PointRend, have no
        ``mode='tensor'`` that runs to its end.

    Raises:
        ValueError: If the model does not take an image of this size and of its channels, or a part of it not what
            another one gives; or if the trunk fails.
    """
    modes = [(module, module.training) for module in model.modules()]
    image, samples = blank_batch(model, input_size, fill)
    model.eval()
    trunk, done = model.get_submodule(task_of(model).trunk), []
    hooks = [*hooks, trunk.register_forward_hook(lambda *_: done.append(True))]
    try:
        with torch.no_grad():
            model(image, samples, mode='tensor')
        return None
    except (ImportError, NoMap):  # which tell what to do
        raise
    except Exception as error:
        failure = ValueError(
            f'The model with the {type(trunk).__name__} failed on one image {tuple(image.shape[1:])} of the dry run: '
            f'{str(error).rstrip(".") or type(error).__name__}. {_advice(error, image)}')
        failure.__cause__ = error
        if not done or isinstance(error, AssertionError | RuntimeError | ValueError):  # of shapes, also in training
            raise failure from error
        return failure
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training


def _advice(error: Exception, image: Tensor) -> str:
    text = str(error)
    of_image = re.search(rf'expected input{re.escape(str(list(image.shape)))} to have (\d+) channels', text)
    if of_image:
        return (
            f"Its data_preprocessor, the student's for a teacher without one, has a mean for {image.shape[1]} "
            f'channels, and its first layer takes {of_image[1]}. Correct the in_channels of the backbone, or the mean '
            'and the std; a teacher sees the images of its student, of as many channels.')
    if re.search(r'mat1 and mat2 shapes|expected input.* to have \d+ channels', text):
        return ('A layer is made for another number of channels than it gets: correct the in_channels, most often of '
                'the head.')
    if not isinstance(error, AssertionError | RuntimeError | ValueError):
        return "Taps are found with forward(mode='tensor'), which does not get as far: tap a module before that."
    return 'If it is made for another size, give that as input_size.'


def _unknown_tap(path: str, owner: str, modules: dict[str, nn.Module]) -> str:
    module_path, colon, side = path.partition(':')
    if colon and side != 'input':
        return (f'The {owner} tap "{path}" ends in ":{side}". A tap is "path.of.module" (its output) or '
                '"path.of.module:input" (what enters it).')
    names = [name for name in modules if name]
    # The longest part of the path that exists tells where the typing went wrong better than letters alone.
    parent = module_path
    while parent and parent not in modules:
        parent = parent.rpartition('.')[0]
    nearest = difflib.get_close_matches(module_path, names, n=5, cutoff=0.6)
    inside = [name for name, _ in modules[parent].named_children()]
    hint = f'Nearest: {", ".join(nearest)}. ' if nearest else ''
    return (f'The {owner} has no module "{module_path}" to tap. {hint}Inside '
            f'"{parent or type(modules[""]).__name__}" there are: {", ".join(inside[:20])}.')
