"""Which of the metrics of a validation are quoted, and of which of them more is better."""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Number
from typing import NamedTuple

from overhaul.registry import TASKS

# Words of a metric's name that tell. Those of errors come first: `accuracy_error` is one.
_LESS = {
    'loss', 'error', 'err', 'mae', 'mse', 'rmse', 'mape', 'rmsle', 'rel', 'silog', 'log10', 'epe', 'nme', 'mpjpe',
    'fid', 'nll', 'ece', 'perplexity', 'ppl', 'wer', 'cer', 'sad'}
_GREATER = {
    'acc', 'accuracy', 'top', 'top1', 'top5', 'aacc', 'macc', 'ap', 'map', 'ar', 'auc', 'auroc', 'recall', 'mrecall',
    'precision', 'mprecision', 'f1', 'fscore', 'mfscore', 'iou', 'miou', 'dice', 'mdice', 'psnr', 'ssim', 'pck', 'pckh',
    'pq', 'kappa', 'r2', 'bleu', 'cider', 'd1', 'd2', 'd3'}


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
        """Whether this is the better one of two results of one metric of which it is known."""
        return self.value < other.value if self.less_is_better else self.value > other.value


def quoted(metrics: Mapping[str, object]) -> list[Result]:
    """Return the results to quote of the ``metrics`` of a validation, the first one first.

    It is the metric that the task of the pipeline quotes, and where a model has several tasks one of each. Of metrics
    that no task knows it is the first number; of none, nothing.
    """
    numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, Number)}
    for known, quote in _quotes().items():
        found = [name for name in numbers if name == known or name.endswith(f'_{known}')]
        if found:
            return [_result(name, numbers[name], quote, name.removesuffix(known).removesuffix('_')) for name in found]
    return [Result(name, numbers[name], name, less_is_better(name)) for name in list(numbers)[:1]]


def deciding(metrics: Mapping[str, object], rules: Mapping[str, str]) -> Result | None:
    """Return the result by which one validation is better than another; None where nobody can tell.

    Args:
        metrics: Those of a validation.
        rules: ``'less'`` or ``'greater'`` by the name of a metric, as the config's CheckpointHook has them. What it
            names decides; else the one result that is quoted, if it is one and its name tells what is better.
    """
    candidates = quoted(metrics)
    for name, rule in rules.items():
        if name in metrics:
            same = [result for result in candidates if result.metric == name and result.less_is_better is not None]
            return same[0] if same else Result(name, float(metrics[name]), name, rule == 'less')
    return candidates[0] if len(candidates) == 1 and candidates[0].less_is_better is not None else None


def headline(metrics: Mapping[str, object]) -> str:
    """Return the results to quote in one line."""
    return ', '.join(map(str, quoted(metrics))) or 'no result: the evaluator gave no number'


def less_is_better(metric: str) -> bool | None:
    """Whether less is better of a metric of that name; None where the name does not tell."""
    words = set(re.split(r'[^a-z0-9]+', metric.lower()))
    return True if words & _LESS else False if words & _GREATER else None


def _quotes() -> dict[str, Quote]:
    TASKS.import_from_location()
    return {name: quote for task in TASKS.module_dict.values() for name, quote in task.quotes.items()}


def _result(name: str, number: float, quote: Quote, part: str) -> Result:
    unit = f'{quote.unit} of {part}' if part else quote.unit
    less = less_is_better(name) if quote.less_is_better is None else quote.less_is_better
    return Result(name, 100 - number, unit, not less) if quote.complement else Result(name, number, unit, less)
