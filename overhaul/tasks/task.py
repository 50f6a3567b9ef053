"""What Overhaul asks of a kind of pipeline, and the answers for any model of mmengine."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from overhaul.registry import TASKS, counted, nearest
from overhaul.tasks.results import Quote

# What networks call what comes behind their features, where it lies among them.
_HEAD = re.compile(
    r'(neck|heads?|head_\w+|\w+_head|fc|classifier|last_linear|linear|logits|pre_logits|projector|(\w+\.)?pooler)\.')


class Outputs(nn.Module):
    """From normalised images (N, C, H, W) to what ``tensors`` makes of the answer of ``model``, and of the images."""

    def __init__(
            self, model: nn.Module,
            tensors: Callable[[Any, Tensor], Tensor | tuple[Tensor, ...]] = lambda given, images: given) -> None:
        super().__init__()
        self.model, self.tensors = model, tensors

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the tensors."""
        return self.tensors(self.model(images, None, mode='tensor'), images)


class Graph(NamedTuple):
    """What is written as ONNX.

    Attributes:
        module: From normalised images (N, C, H, W), or what the task takes in their place, see
            :meth:`Task.input_shape`, to one tensor per output, such as :class:`Outputs`.
        outputs: By name, the shape of each output in words, as ``'(N, classes)'``.
        any_size: Whether H and W are free too, and not N alone.
    """

    module: nn.Module
    outputs: dict[str, str]
    any_size: bool


@TASKS.register_module(name='any')
class Task:
    """The task of any model of mmengine. It leaves out what can only be known of a certain kind of model.

    A kind is a subclass that is registered in ``overhaul.registry.TASKS`` by its name. It overrides what it knows.

    Args:
        model: The model: a student, a teacher or one that is trained as usual.

    Attributes:
        quotes: How metrics are quoted, by their names, the one to quote first.
        stand_ins: For images without labels, what replaces a transform that reads labels: the config of another
            transform, by the path of the class of the first. Without a type it is arguments that the first gets.
        height_first: Transforms that are given a size as (H, W), where others are given (W, H).
        truth_files: Arguments of evaluators that name a file with the truth of the data.
        for_training: Parts of a model that are there in training alone.
    """

    quotes: ClassVar[Mapping[str, Quote]] = {}
    stand_ins: ClassVar[Mapping[str, dict]] = {}
    height_first: ClassVar[Sequence[str]] = ()
    truth_files: ClassVar[Sequence[str]] = ()
    for_training: ClassVar[Sequence[str]] = ()

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @classmethod
    def takes(cls, model: nn.Module) -> bool:
        """Whether ``model`` is of this kind."""
        return True

    def accept_unlabelled(self) -> None:
        """Make the model, a student, ready for batches in which some images have no labels."""

    @property
    def trunk(self) -> str:
        """Path of the part of the model whose stages are tapped by ``taps='auto'``; empty for all of it."""
        parts = dict(self.model.named_children())
        return next((name for name in ('backbone', 'model') if name in parts), '')

    @property
    def channels(self) -> int:
        """Channels of an image: of the data preprocessor's mean or std, else of the first convolution in the trunk.

        A mean of one number is for all channels, and does not tell.

        Raises:
            ValueError: If nothing of these is there to tell.
        """
        preprocessor = getattr(self.model, 'data_preprocessor', None)
        for statistics in (getattr(preprocessor, name, None) for name in ('mean', 'std')):
            if statistics is not None and statistics.numel() > 1:
                return statistics.numel()
        for module in self.model.get_submodule(self.trunk).modules():
            if isinstance(module, _ConvNd):
                return module.in_channels
        raise ValueError(
            f'How many channels an image for the {type(self.model).__name__} has is not known: it has no convolution, '
            'and its data_preprocessor no mean for each channel. Give that one a mean and a std.')

    def input_shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Return the shape of what the model takes beside others in a batch: an image (C, H, W) of ``size`` (H, W).

        Of a task in which it is something else, as the images of a clip, the last three are C, H and W.
        """
        return (self.channels, *size)

    def is_of_trunk(self, name: str, network: str = '') -> bool:
        """Whether a tensor is of what comes before neck and head, by its name in the model.

        Args:
            name: As ``'backbone.conv1.weight'``.
            network: The prefix of a whole network inside the trunk, which has a head of its own. Default: that of the
                trunk.
        """
        return name.startswith(self._inside) and not _HEAD.match(name.removeprefix(network or self._inside))

    @cached_property
    def _inside(self) -> str:
        # The tensors of timm's classifiers, and those of a model without a trunk, have no such beginning.
        inside = f'{self.trunk}.'
        return inside if any(name.startswith(inside) for name in self.model.state_dict()) else ''

    @property
    def num_classes(self) -> int | None:
        """Number of classes that the model tells apart, None where there are none or several numbers of them."""
        return None

    @property
    def random_metainfo(self) -> dict:
        """What a dataset of random samples tells of them."""
        return dict(classes=tuple(map(str, range(self.num_classes or 0))))

    @property
    def has_loss(self) -> bool:
        """Whether the model has a loss of its own: one without a head is trained by distillation alone."""
        return True

    def random_sample(self, size: tuple[int, int], generator: torch.Generator) -> BaseDataElement | None:
        """Return the data sample of an image of ``size`` (H, W) with random annotations; None where that is not known.

        It is what the pipelines of the model's package pack beside an image.
        """
        return None

    def cannot_learn_from(self, dataset: object) -> str | None:
        """Return why the model cannot be trained on ``dataset``, and what to do; None if it can."""
        own, given = self.num_classes, classes_of(dataset)
        if own and own < given:
            return (f'The {type(self.model).__name__} has num_classes={own}, and the training data have '
                    f'{counted(given, "class", "classes")}: there would be labels that it does not know. Give its head '
                    'as many.')
        return None

    def cannot_be_judged_on(
            self, dataset: object, trained_on: Sequence[str] = (), metrics: Sequence[object] = ()) -> str | None:
        """Return why the model cannot be validated or tested on ``dataset``, and what to do; None if it can.

        Args:
            dataset: The data.
            trained_on: Names of the classes that it learns or has learnt, where they are known.
            metrics: What the results are compared by, which may read a file of their own.
        """
        names = names_of(dataset)
        label = other_label(trained_on, names)
        if label is None:
            return None
        return (
            f'The data to validate or test on have other classes than the training: the label {label} is '
            f'"{trained_on[label]}" there, and "{names[label]}" here. Let both have the same ones in the same order. '
            'Where a folder is a class, both need a folder for each.')

    def cut_loss(self, cut: Callable[[object], object], taps: Sequence[str]) -> None:
        """Let the model's loss be computed from the images with labels alone.

        The others are cut off behind the trunk, or behind the neck if a tap is in it.

        Args:
            cut: Takes tensors, in dicts or lists of any depth, and returns their part for the images with labels.
            taps: Paths of the taps, which all images must reach.

        Raises:
            ValueError: If the loss cannot be computed of a part of the images, or a tap is only reached by that part.
        """
        def inside(path: str, part: str) -> bool:
            return f'{path}.'.replace(':', '.').startswith(f'{part}.')

        name, last = type(self.model).__name__, 'neck' if any(inside(tap, 'neck') for tap in taps) else self.trunk
        if not self.trunk:
            raise ValueError(
                f'The loss of the {name} cannot be taken over a part of a batch: it has no backbone, at whose end the '
                'images without labels could be left out. Train it without unlabelled, or give it a task that knows '
                'how, with a cut_loss of its own: docs/tasks.md.')
        behind = [tap for tap in taps if not inside(tap, last) and not inside(tap, self.trunk)]
        if behind:
            raise ValueError(
                f'The tap "{behind[0]}" of the student is behind its {last}, where the images without labels have been '
                f'left out, for what comes there needs labels in a {name}. Leave that tap out, or unlabelled.')
        self.model.get_submodule(last).register_forward_hook(partial(_cut_output, cut))

    def cannot_judge(self, dataset: object, student: Task) -> str | None:
        """Return why the model, a teacher, cannot be validated on the ``dataset`` of ``student``, None if it can."""
        if type(self) is not type(student):
            kinds = [type(task.model).__name__ for task in (self, student)]
            return 'it has another task: it is of type {}, and the student of type {}'.format(*kinds)
        classes = classes_of(dataset) or student.num_classes
        if self.num_classes and classes and self.num_classes != classes:
            return f'it tells {counted(self.num_classes, "class", "classes")} apart, and the data have {classes}'
        return _other_names(_names(self.model, 'dataset_meta'), names_of(dataset))

    def chance(self, classes: int, images: int) -> dict[str, float]:
        """Return, by metric, what a model that knows nothing reaches on so many images of so many classes."""
        return {}

    def graph(self) -> Graph | None:
        """Return what is written as ONNX; None where that is not known."""
        return None

    def loading(self, config: str, weights: str) -> str:
        """Return the Python that loads an exported model."""
        return (f"cfg = mmengine.Config.fromfile('{config}'); "
                "mmengine.registry.init_default_scope(cfg.get('default_scope', 'mmengine')); "
                "model = mmengine.registry.MODELS.build(cfg.model); "
                f"model.load_state_dict(torch.load('{weights}')['state_dict'])")

    def draw(
            self, image: np.ndarray, sample: BaseDataElement, metainfo: Mapping, truth: bool,
    ) -> tuple[np.ndarray, str] | None:
        """Return a picture of the prediction of ``sample``, or its ``truth``, and a caption; None if not known how.

        Args:
            image: (H, W, 3) uint8, RGB.
            sample: With truth and prediction.
            metainfo: That of the dataset.
            truth: Whether the truth is drawn and not the prediction.
        """
        return None

    def legend(
            self, samples: Sequence[BaseDataElement], metainfo: Mapping,
    ) -> list[tuple[str, tuple[float, float, float]]]:
        """Return the name and the colour (each part from 0 to 1) of what is seen in pictures of ``samples``."""
        return []


def _cut_output(cut: Callable[[object], object], module: nn.Module, inputs: tuple, output: object) -> object:
    return cut(output)


def stand_in(transform: type) -> dict | None:
    """Return what a task has for a ``transform`` where there are no labels; None where it can stay as it is."""
    classes = [f'{cls.__module__}.{cls.__qualname__}' for cls in transform.__mro__]
    return next((task.stand_ins[name] for task in _registered().values() for name in classes
                 if name in task.stand_ins), None)


def is_height_first(transform: str) -> bool:
    """Whether the ``transform`` of that name, as ``'mmseg.RandomCrop'``, is given a size as (H, W)."""
    return any(transform in task.height_first for task in _registered().values())


def without_truth(evaluator: Mapping) -> dict:
    """Return the config of an ``evaluator`` without the file of a truth, so that it compares with the samples'."""
    files = {name for task in _registered().values() for name in task.truth_files}
    return {key: value for key, value in evaluator.items() if key not in files}


def is_for_training(name: str) -> bool:
    """Whether a tensor, by its ``name`` in a model, is of a part that is there in training alone."""
    return any(name.startswith(f'{part}.') for task in _registered().values() for part in task.for_training)


def student_of(model: nn.Module) -> nn.Module:
    """Return the student of a distiller, and any other model itself, which may have a part of that name too."""
    return model.student if hasattr(model, 'student_taps') else model


def task_of(model: nn.Module) -> Task:
    """Return the task of ``model``, or of its student: the one that it was given by name, else the one that takes it.

    If several take it, the last registered one counts, so that a package can replace what is here.

    Raises:
        ValueError: If no task has the name that is given, see :func:`name_task`; names the nearest.
    """
    model = student_of(model)
    name, tasks = getattr(model, '_overhaul_task', None), _registered()
    if name is None:
        return _recognised(model)(model)
    if name not in tasks:
        raise ValueError(
            f'model.task="{name}" is no task that is registered. Nearest: {nearest(name, tasks)}. One of another '
            'package is registered once the package is in the custom_imports of the config.')
    return tasks[name](model)


def name_task(model: nn.Module, name: str | None, student: nn.Module | None = None) -> None:
    """Let ``model`` be of the task called ``name``. With None, its task is recognised from its class.

    With a ``student``, ``model`` is its teacher. The name then counts only if both would be recognised as one task.
    """
    if name is not None and (student is None or _recognised(model) is _recognised(student)):
        model._overhaul_task = name


def _recognised(model: nn.Module) -> type[Task]:
    return next(task for task in reversed(_registered().values()) if task.takes(model))


def _registered() -> dict[str, type[Task]]:
    TASKS.import_from_location()
    foreign = [task.__name__ for task in TASKS.module_dict.values() if not issubclass(task, Task)]
    if foreign:
        raise ValueError(
            f'{foreign[0]} is registered in overhaul.registry.TASKS and is no subclass of overhaul.tasks.Task, which '
            'has the answers that a task does not give itself. Make it one.')
    return TASKS.module_dict


def tell_what_is_left_out(task: Task) -> None:
    """Say in the log what cannot be done with a model of no known kind, and how it can."""
    if type(task) is Task:
        print_log(
            f'The {type(task.model).__name__} is of no task that is known here. It is distilled all the same. Left out '
            'are the labels of a dry run, the ONNX graph of an export and pictures of predictions. A class in '
            'overhaul.registry.TASKS brings them: docs/tasks.md.', 'current')


def classes_of(dataset: object) -> int:
    """Return the number of classes of ``dataset``, 0 where it has none."""
    return len(names_of(dataset))


def names_of(dataset: object) -> Sequence[str]:
    """Return the names of the classes of ``dataset``, none where it does not tell."""
    return _names(dataset, 'metainfo')


def _names(owner: object, attribute: str) -> Sequence[str]:
    names = (getattr(owner, attribute, None) or {}).get('classes')
    return () if names is None else names


def other_label(own: Sequence[str], given: Sequence[str]) -> int | None:
    """Return the first label that is another class among those ``given`` than among its ``own``; None without any.

    Of as many classes a few may be spelt otherwise. Where the last ones are absent, the others have their labels.
    """
    label = next((label for label, (name, other) in enumerate(zip(own, given))
                  if str(name).casefold() != str(other).casefold()), None)
    return None if len(own) == len(given) and _other_names(own, given) is None else label


def _other_names(own: Sequence[str], given: Sequence[str]) -> str | None:
    """Say that a model's ``own`` classes are not those ``given`` by the data; a few may be spelt otherwise."""
    if len(own) != len(given):
        return None  # the names are of something else
    own, given = ([str(name).casefold() for name in names] for names in (own, given))
    for label, name in enumerate(own):
        if name != given[label] and own.count(name) == given.count(name) == 1:
            return (f'its classes are in another order: "{name}" is the one with the label {label}, and '
                    f'{given.index(name)} in the data')
    unknown = [label for label, name in enumerate(own) if name not in given]
    if 2 * len(unknown) > len(own):
        first = unknown[0]
        return f'its classes are others: the label {first} is "{own[first]}", and "{given[first]}" in the data'
    return None


def is_a(model: nn.Module, *classes: str) -> bool:
    """Whether ``model`` is of one of the ``classes``, written as ``'package.module.Class'``; imports none of them."""
    return any(f'{cls.__module__}.{cls.__qualname__}' in classes for cls in type(model).__mro__)
