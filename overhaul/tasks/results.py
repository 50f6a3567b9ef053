"""Which of the metrics of a validation are quoted, and of which of them more is better."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from numbers import Number
from types import MappingProxyType
from typing import NamedTuple

from overhaul.registry import TASKS

# Words of a metric's name that tell. Where it has some of both, the last one may be that of an error.
_LESS = {
    'loss', 'error', 'err', 'mae', 'mse', 'rmse', 'mape', 'rmsle', 'silog', 'log10', 'epe', 'nme', 'mpjpe',
    'fid', 'nll', 'ece', 'perplexity', 'ppl', 'wer', 'cer'}
_GREATER = {
    'acc', 'accuracy', 'top', 'top1', 'top5', 'aacc', 'macc', 'ap', 'map', 'ar', 'auc', 'auroc', 'recall', 'mrecall',
    'precision', 'mprecision', 'f1', 'fscore', 'mfscore', 'iou', 'miou', 'dice', 'mdice', 'psnr', 'ssim', 'pck', 'pckh',
    'pq', 'kappa', 'r2', 'bleu', 'cider', 'rouge', 'meteor'}
# Metrics of depth whose names are no words: shares of pixels, and relative errors.
_OF_DEPTH = {'d1': False, 'd2': False, 'd3': False, 'abs_rel': True, 'sq_rel': True}


class Quote(NamedTuple):
    """How a metric is quoted.

    Attributes:
        unit: What is written after the number, as ``'% error'``.
        complement: Whether 100 minus the metric is quoted, as the error of an accuracy.
        less_is_better: Of the metric itself. Default: what its name tells.
    """

    unit: str
    complement: bool = False
    less_is_better: bool | None = None


class Result(NamedTuple):
    """A metric that is quoted.

    Attributes:
        metric: Its name, as the evaluator gives it.
        value: The number to quote.
        unit: What that is.
        less_is_better: Whether a smaller ``value`` is better; None where nobody knows.
    """

    metric: str
    value: float
    unit: str
    less_is_better: bool | None

    def __str__(self) -> str:
        return f'{self.value:.2f} {self.unit}'

    def better_than(self, other: Result) -> bool:
        """Whether this is the better one of two results of one metric of which it is known; NaN never is."""
        if math.isnan(other.value):
            return not math.isnan(self.value)
        return self.value < other.value if self.less_is_better else self.value > other.value


def quoted(metrics: Mapping[str, object], rules: Mapping[str, str] = MappingProxyType({})) -> list[Result]:
    """Return the results to quote of the ``metrics`` of a validation, the first one first.

    It is the metric that the task of the pipeline quotes, and where a model has several tasks one of each. Of metrics
    that no task knows it is the first number; of none, nothing.

    Args:
        metrics: Those of a validation.
        rules: What the config says is better, ``'less'`` or ``'greater'`` by the name of a metric. It comes before what
            that name tells.
    """
    names = [name for name, value in metrics.items() if isinstance(value, Number)]
    for known in _quotes():
        found = [name for name in names if _is_of(name, known)]
        if found:
            return [_result(name, metrics[name], rules) for name in found]
    return [_result(name, metrics[name], rules) for name in names[:1]]


def deciding(metrics: Mapping[str, object], rules: Mapping[str, str]) -> Result | None:
    """Return the result by which one validation is better than another; None where nobody can tell.

    Args:
        metrics: Those of a validation.
        rules: As :func:`quoted` takes them. The first metric that they name decides, and where the validation gives
            none of these, nothing does. Without rules it is the one result that is quoted, if it is one.
    """
    if rules:
        given = [name for name in rules if isinstance(metrics.get(name), Number)]
        return _result(given[0], metrics[given[0]], rules) if given else None
    candidates = quoted(metrics)
    return candidates[0] if len(candidates) == 1 and candidates[0].less_is_better is not None else None


def headline(metrics: Mapping[str, object], rules: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return the results to quote in one line, and before them the one that decides by the ``rules`` of the config."""
    results, first = quoted(metrics, rules), deciding(metrics, rules)
    if first and first not in results:
        results.insert(0, first)
    return ', '.join(map(str, results)) or 'no result: the evaluator gave no number'


def less_is_better(metric: str) -> bool | None:
    """Whether less is better of a metric of that name, as a task has it or its words tell; None where neither does."""
    for known, quote in _quotes().items():
        if quote.less_is_better is not None and _is_of(metric, known):
            return quote.less_is_better
    if metric in _OF_DEPTH:
        return _OF_DEPTH[metric]
    *_, last = words = re.split(r'[^a-z0-9]+', metric.lower())
    words = {*words, *(word.rstrip('0123456789') for word in words)}  # of AP50, or Bleu4
    if words & _LESS and words & _GREATER:
        return True if last in ('error', 'err', 'loss') else None
    return True if words & _LESS else False if words & _GREATER else None


def _quotes() -> dict[str, Quote]:
    TASKS.import_from_location()
    return {name: quote for task in TASKS.module_dict.values()
            for name, quote in getattr(task, 'quotes', {}).items()}


def _is_of(name: str, known: str) -> bool:
    """Whether it is the ``known`` metric, or that of one of several tasks."""
    return name == known or name.endswith(f'_{known}')


def _result(name: str, value: object, rules: Mapping[str, str]) -> Result:
    known, quote = next(
        ((known, quote) for known, quote in _quotes().items() if _is_of(name, known)), (name, Quote(name)))
    part, number = name.removesuffix(known).removesuffix('_'), float(value)
    unit = f'{quote.unit} of {part}' if part else quote.unit
    less = rules[name] == 'less' if name in rules else less_is_better(name)
    if quote.complement:
        return Result(name, 100 - number, unit, None if less is None else not less)
    return Result(name, number, unit, less)
