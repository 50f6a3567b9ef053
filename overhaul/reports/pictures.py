"""Pictures of a distillation: how it went, and what its features are like. Each is a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import cycle
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from overhaul.method.distiller import OverhaulDistiller
from overhaul.method.normalization import turns_channels
from overhaul.method.probe import aside
from overhaul.reports.statistics import interval
from overhaul.tasks import Task
from overhaul.tasks.results import Result, less_is_better

# The colours of the Okabe-Ito palette, which people of any colour vision tell apart.
TEACHER, STUDENT, ALONE = '#000000', '#0072B2', '#D55E00'
COLOURS = (STUDENT, ALONE, '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#F0E442')

_IMAGES = 32  # more would not make a picture better, and fill the memory


class TapFeatures(NamedTuple):
    """What meets at a tap, of up to 32 images of a batch.

    Attributes:
        name: The student's tap.
        raw: The teacher's feature (N, Ct, H, W) before its transform.
        teacher: The same after it, as the distance sees it, in the student's size.
        student: The student's feature (N, Ct, H, W) after the connector.
        margin: The margins (Ct,), None where the teacher transform has none.
    """

    name: str
    raw: Tensor
    teacher: Tensor
    student: Tensor
    margin: Tensor | None

    def of_image(self, index: int) -> TapFeatures:
        """Return a copy of what belongs to one image, with N = 1."""
        maps = [feature[index:index + 1].clone() for feature in (self.raw, self.teacher, self.student)]
        return TapFeatures(self.name, *maps, self.margin)


class Curve(NamedTuple):
    """A run: its name, by step the results of its validations and the losses of its task, and the best step, if any."""

    name: str
    results: Mapping[int, Sequence[Result]]
    task_losses: Mapping[int, float]
    best: int | None = None


def read_features(
        model: OverhaulDistiller, data: dict, precision: AbstractContextManager | None = None) -> list[TapFeatures]:
    """Return the features of a batch at each tap, as the losses see them, and leave the model as it was.

    Random numbers too, those of dropout, are drawn as if it had not been looked at.

    Args:
        model: The distiller in train mode, without a wrapper for distributed training.
        data: A batch as the data loader gives it.
        precision: Context of the forward pass, for autocast.
    """
    raw, pairs = [], []
    hooks = [
        margin.register_forward_pre_hook(lambda _, inputs: raw.append(_some(inputs[0]))) for margin in model.margins]
    hooks.append(model.distill_loss.register_forward_pre_hook(
        lambda _, inputs: pairs.append([_some(feature) for feature in inputs])))
    try:
        devices = range(torch.cuda.device_count())
        with torch.random.fork_rng(devices), torch.no_grad(), precision or nullcontext():
            data = model.data_preprocessor(data, True)
            aside(model, lambda model: model(**data, mode='loss'))
    finally:
        for hook in hooks:
            hook.remove()
    names = [tap.path for tap in model.student_taps]
    margins = [_margin(margin) for margin in model.margins]
    return [
        TapFeatures(name, feature, teacher, student, margin)
        for name, feature, (student, teacher), margin in zip(names, raw, pairs, margins)]


def _some(feature: Tensor) -> Tensor:
    return feature[:_IMAGES].detach().float().cpu()


def _margin(transform: nn.Module) -> Tensor | None:
    margin = getattr(transform, 'margin', None)
    return margin.float().cpu() if isinstance(margin, Tensor) and margin.isfinite().all() else None


def draw_curves(curves: Sequence[Curve], step: str, teacher: Mapping[str, float] = MappingProxyType({})) -> Figure:
    """Draw the validation results of several runs, a panel each, and their task losses; stars mark the best step.

    Args:
        curves: The runs.
        step: What the steps of the results are, ``'iteration'`` or ``'epoch'``.
        teacher: The teacher's results, by their units, each a line.
    """
    kinds = {result.unit: result for curve in curves for some in curve.results.values() for result in some}
    figure = Figure((5 * (len(kinds) + 1), 4), layout='constrained')
    *panels, losses = figure.subplots(1, len(kinds) + 1, sharex=step == 'iteration', squeeze=False)[0]
    for axes, (unit, kind) in zip(panels, kinds.items()):
        for curve, colour in zip(curves, cycle(COLOURS)):
            points = {at: result.value for at, some in curve.results.items() for result in some if result.unit == unit}
            axes.plot(list(points), list(points.values()), 'o-', color=colour, label=curve.name, ms=3)
            if curve.best in points:
                axes.plot(curve.best, points[curve.best], '*', color=colour, ms=12)
        if unit in teacher:
            axes.axhline(teacher[unit], color=TEACHER, ls='--', label=f'teacher, {teacher[unit]:g}')
        axes.set(xlabel=step, ylabel=f'validation, {kind.axis}')
        if kind.less_is_better and axes.dataLim.y0 >= 0:
            axes.set_ylim(0, None)
    for curve, colour in zip(curves, cycle(COLOURS)):
        losses.plot(list(curve.task_losses), list(curve.task_losses.values()), color=colour, label=curve.name)
    losses.set(xlabel='iteration', ylabel='task loss in training', yscale='log')
    for axes in (*panels, losses):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _finish(axes)
    return figure


def draw_tap_losses(losses: Mapping[str, Mapping[int, float]], task_losses: Mapping[int, float]) -> Figure:
    """Draw the distillation loss of each tap by iteration, and the task loss beside them.

    Raises:
        ValueError: If there is no tap.
    """
    if not losses:
        raise ValueError('That training was of a student alone: it has no distillation loss to draw. Name another.')
    figure = Figure((7, 4), layout='constrained')
    axes = figure.subplots()
    for (tap, values), colour in zip(losses.items(), cycle(COLOURS)):
        axes.plot(list(values), list(values.values()), 'o-', color=colour, label=tap, ms=3)
    axes.plot(list(task_losses), list(task_losses.values()), '--', color=TEACHER, label='task')
    axes.set(xlabel='iteration', ylabel='loss in training', yscale='log')
    _finish(axes, title='distillation loss at the tap')
    return figure


def draw_budget(
        units: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]], label: str,
        teacher: float | None = None) -> Figure:
    """Draw the results of each side by budget, a panel for each unit: the runs as dots, the means, 95 % intervals.

    Args:
        units: By unit, as ``'% error'``, side and budget, one result per seed. A side may lack budgets.
        label: What the budgets are.
        teacher: The teacher's result, in the first unit.
    """
    figure = Figure((7 * len(units), 4.5), layout='constrained')
    for axes, (unit, results) in zip(figure.subplots(1, len(units), squeeze=False)[0], units.items()):
        _draw_budget(axes, results, unit, label, None if axes.get_subplotspec().colspan.start else teacher)
    return figure


def _draw_budget(
        axes: Axes, results: Mapping[str, Mapping[str, Sequence[float]]], unit: str, label: str,
        teacher: float | None) -> None:
    budgets = list(dict.fromkeys(budget for side in results.values() for budget in side))
    # Names of variants are long, and in no order that a line could follow.
    named = any(budget[:1].isalpha() for budget in budgets if budget != 'None')
    for i, (side, colour) in enumerate(zip(results, (ALONE, STUDENT, *COLOURS[2:]))):
        places = np.array([*map(budgets.index, results[side])]) + 0.12 * (i - (len(results) - 1) / 2)
        samples = list(results[side].values())
        for place, sample in zip(places, samples):
            axes.plot([place] * len(sample), sample, '.', color=colour, alpha=0.3, ms=6, mew=0)
        means, half_widths = [np.mean(sample) for sample in samples], [interval(sample) for sample in samples]
        axes.errorbar(
            places, means, half_widths, color=colour, marker='o', capsize=3, label=side, ls='' if named else '-')
    if teacher is not None:
        axes.axhline(teacher, color=TEACHER, ls='--', label=f'teacher, {teacher:g}')
    axes.set(xlabel=label, ylabel=unit, xlim=(-0.5, len(budgets) - 0.5))
    axes.set_xticks(range(len(budgets)), ['all' if budget == 'None' else budget for budget in budgets],
                    **(dict(rotation=30, ha='right') if named else {}))
    samples = [sample for side in results.values() for sample in side.values()]
    # Half of an error is as much wherever it starts.
    if less_is_better(unit.partition(' of ')[0]) and min(map(min, samples)) > 0:
        axes.set_yscale('log')
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter('{x:g}')
        axes.yaxis.set_minor_formatter(NullFormatter())
    seeds = sorted({min(map(len, samples)), max(map(len, samples))})
    _finish(axes, title=f'mean and its 95 % interval, {" to ".join(map(str, seeds))} seeds')


def draw_features(
        before: Sequence[TapFeatures], after: Sequence[TapFeatures], names: tuple[str, str] = ('before', 'after'),
        channels: int = 2) -> Figure:
    """Draw, for the first image, some channels of teacher and student, and the difference, before and after.

    The channels are those in which the teacher varies most over the image. All maps of a row have one scale.
    """
    rows = [(first, last, channel) for first, last in zip(before, after) for channel in _liveliest(last, channels)]
    figure = Figure((11, 1.75 * len(rows)), layout='constrained')
    all_axes = figure.subplots(len(rows), 5, squeeze=False)
    titles = ['teacher', f'student {names[0]}', f'difference {names[0]}', f'student {names[1]}',
              f'difference {names[1]}']
    for axes, title in zip(all_axes[0], titles):
        axes.set_title(title, fontsize=10)
    for row, (first, last, channel) in zip(all_axes, rows):
        teacher, *students = [feature[0, channel].numpy() for feature in (last.teacher, first.student, last.student)]
        maps = [teacher, students[0], students[0] - teacher, students[1], students[1] - teacher]
        scale = max(np.abs(teacher).max(), *(np.abs(student).max() for student in students)) or 1
        for axes, picture in zip(row, maps):
            image = axes.imshow(picture, cmap='RdBu_r', vmin=-scale, vmax=scale)
            axes.set(xticks=[], yticks=[])
        for axes, picture in zip(row[2::2], maps[2::2]):
            axes.set_xlabel(f'rms {np.sqrt(np.mean(picture**2)):.2f}', fontsize=9)
        row[0].set_ylabel(f'{last.name}\nchannel {channel}', fontsize=8)
        figure.colorbar(image, ax=row.tolist(), fraction=0.02, pad=0.01)
    return figure


def _liveliest(features: TapFeatures, count: int) -> list[int]:
    return features.teacher[0].flatten(1).std(1).argsort(descending=True)[:count].tolist()


def draw_pre_activations(features: Sequence[TapFeatures], channels: int = 3) -> Figure:
    """Draw histograms of the teacher's pre-activations with the margin, and of the student's connected feature.

    One row per tap; the channels run from the one with the least negative responses to the one with the most.
    """
    figure = Figure((3.7 * channels, 2.6 * len(features)), layout='constrained')
    for row, tap in zip(figure.subplots(len(features), channels, squeeze=False), features):
        shares = (tap.raw < 0).float().mean((0, 2, 3))
        places = torch.linspace(0, len(shares) - 1, channels).round().long()
        for axes, channel in zip(row, shares.argsort()[places].tolist()):
            _histogram(axes, tap, channel)
            axes.set_title(f'{tap.name}, channel {channel}', fontsize=9)
        row[0].set_ylabel('density')
    for axes in figure.axes[-channels:]:
        axes.set_xlabel('response')
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc='outside upper center', ncols=2, fontsize=9)
    return figure


def _histogram(axes: Axes, tap: TapFeatures, channel: int) -> None:
    raw, student = (feature[:, channel].flatten().numpy() for feature in (tap.raw, tap.student))
    ends = np.quantile(np.concatenate([raw, student]), (0.001, 0.999))
    bins = np.linspace(*ends, 60) if ends[0] < ends[1] else 10
    axes.hist(raw, bins, density=True, color='0.75', label='teacher, before its transform')
    axes.hist(student, bins, density=True, histtype='step', color=STUDENT, label='student, after its connector')
    if (raw < 0).any():
        axes.axvline(raw[raw < 0].mean(), color=TEACHER, ls=':', label="mean of the teacher's negative responses")
    if tap.margin is not None:
        margin = tap.margin[channel].item()
        axes.axvline(margin, color=ALONE, label='margin')
        axes.text(margin, 0.95, f'{margin:.2f} ', transform=axes.get_xaxis_transform(), ha='right', va='top',
                  color=ALONE, fontsize=8, bbox=dict(facecolor='white', alpha=0.7, edgecolor='none', pad=1))
    axes.set_yticks([])


def draw_predictions(
        task: Task, images: Sequence[np.ndarray], samples: Mapping[str, Sequence[BaseDataElement]],
        metainfo: Mapping) -> Figure:
    """Draw images, their truth and predictions of several models side by side, a row per image.

    Args:
        task: Draws a prediction.
        images: In uint8, each (H, W, 3), RGB.
        samples: By model, one sample per image with truth and prediction.
        metainfo: That of the dataset, with ``classes`` and, for a segmentation, ``palette``.

    Raises:
        ValueError: If the task does not know how a prediction is drawn.
    """
    truth = next(iter(samples.values()))
    columns = {'truth': [task.draw(image, sample, metainfo, truth=True) for image, sample in zip(images, truth)]}
    for name, predicted in samples.items():
        columns[name] = [task.draw(image, sample, metainfo, truth=False) for image, sample in zip(images, predicted)]
    if any(drawn is None for column in columns.values() for drawn in column):
        raise ValueError(
            f'How a prediction of the {type(task.model).__name__} is drawn is not known. A task of your own can draw '
            'it: docs/tasks.md.')
    columns = {'image': [(image, '') for image in images], **columns}
    figure = Figure((1.5 * len(columns), 1.5 * len(images) + 0.7), layout='constrained')
    for axes, (name, column) in zip(figure.subplots(len(images), len(columns), squeeze=False).T, columns.items()):
        axes[0].set_title(name)
        for row, (picture, caption) in zip(axes, column):
            row.imshow(picture)
            row.set(xticks=[], yticks=[], frame_on=False, xlabel=caption)
    legend = task.legend([sample for predicted in samples.values() for sample in predicted], metainfo)
    if legend:
        names, colours = zip(*legend)
        figure.legend(
            [Patch(color=colour) for colour in colours], names, loc='outside lower center', ncols=6, fontsize=8)
    return figure


def to_rgb(image: Tensor, preprocessor: nn.Module, bgr: bool = False) -> np.ndarray:
    """Return an image (C, H, W) of a data loader as (H, W, 3) uint8, RGB, to look at.

    Of one channel it is gray, of more than three the first three are shown. What is no uint8 is stretched from its
    least to its greatest value.

    Args:
        image: As it goes into ``preprocessor``.
        preprocessor: Three channels that it turns round are BGR.
        bgr: Whether they are, also for a model that takes them so. Default: False.
    """
    turned = len(image) == 3 and (bgr or turns_channels(preprocessor))
    image = image[:3] if len(image) > 2 else image[:1].expand(3, -1, -1)
    if image.dtype != torch.uint8:
        image = image.float()  # aminmax is not there for every type
        least, greatest = image.aminmax()
        image = ((image - least) * (255 / (greatest - least).clamp(min=1e-9))).to(torch.uint8)
    return (image.flip(0) if turned else image).permute(1, 2, 0).numpy()


def to_array(figure: Figure, dpi: int = 100) -> np.ndarray:
    """Return a figure as an RGB image, (height, width, 3) uint8."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _finish(axes: Axes, title: str | None = None) -> None:
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, title=title, title_fontsize=8)
