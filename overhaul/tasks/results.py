"""Which of the metrics of a validation are quoted, and of which of them more is better."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from numbers import Number
from types import MappingProxyType
from typing import NamedTuple, Protocol

from overhaul.registry import TASKS

# Words that tell where a metric's name ends in one, which an accuracy_drop does not.
_LESS = {
    'loss', 'error', 'err', 'mae', 'mse', 'rmse', 'mape', 'rmsle', 'silog', 'log10', 'epe', 'nme', 'mpjpe',
    'fid', 'nll', 'ece', 'perplexity', 'ppl', 'wer', 'cer'}
_GREATER = {
    'acc', 'accuracy', 'top', 'top1', 'top5', 'aacc', 'macc', 'ap', 'map', 'ar', 'auc', 'auroc', 'recall', 'mrecall',
    'precision', 'mprecision', 'f1', 'fscore', 'mfscore', 'iou', 'miou', 'dice', 'mdice', 'psnr', 'ssim', 'pck', 'pckh',
    'pq', 'kappa', 'r2', 'bleu', 'cider', 'rouge', 'meteor'}
# What may come behind: the part of the data, or of the result, that the number is of.
_PARTS = {'score', 'seg', 'val', 'test', 'train', 's', 'm', 'l', 'mean', 'macro', 'micro', 'avg', 'classwise', 'iter'}
# With one of these a name says something else than its last word.
_TURNS = {'neg', 'negative', 'minus', 'inverse', 'non', 'no', 'at', 'to', 'rank', 'fpr', 'fnr', 'without'}
# Metrics of depth whose names are no words: shares of pixels, and relative errors.
_OF_DEPTH = {'d1': False, 'd2': False, 'd3': False, 'abs_rel': True, 'sq_rel': True}


class Quote(NamedTuple):
    """How a metric is quoted.

    Attributes:
        unit: What is written after the number, as ``'% error'``.
        complement: Whether 100 minus the metric is quoted, as the error of an accuracy.
        factor: What the metric is multiplied by, as 100 to quote a share in %.
        less_is_better: Of the metric itself. Default: what its name tells.
    """

    unit: str
    complement: bool = False
    factor: float = 1
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

    @property
    def axis(self) -> str:
        """The unit, and what of it is better where that is known."""
        return self.unit + {True: ', less is better', False: ', more is better', None: ''}[self.less_is_better]

    def better_than(self, other: Result) -> bool:
        """Whether this is the better one of two results of one metric of which it is known; NaN never is."""
        if math.isnan(other.value):
            return not math.isnan(self.value)
        return self.value < other.value if self.less_is_better else self.value > other.value


class Quotes(Protocol):
    """What has quotes of metrics, by their names, the one to quote first: a task."""

    quotes: Mapping[str, Quote]


class Judge(NamedTuple):
    """Which of the metrics of a validation are quoted, and which validation is the better one.

    Attributes:
        rules: What the config says is better, ``'less'`` or ``'greater'`` by the name of a metric. It comes before what
            that name tells.
        task: That of the model, whose quotes come before those of other tasks.
    """

    rules: Mapping[str, str] = MappingProxyType({})
    task: Quotes | None = None

    def quoted(self, metrics: Mapping[str, object]) -> list[Result]:
        """Return the results to quote of the ``metrics`` of a validation, the first one first.

        It is the metric that the task of the pipeline quotes, and where a model has several tasks one of each. Of
        metrics that no task knows it is the first number; of none, nothing. The one that decides, see :meth:`deciding`,
        comes first where it is none of these.
        """
        results, first = self._of_task(metrics), self.deciding(metrics)
        return results if first is None or first.metric in {result.metric for result in results} else [first, *results]

    def headline(self, metrics: Mapping[str, object]) -> str:
        """Return what :meth:`quoted` does in one line."""
        return ', '.join(map(str, self.quoted(metrics))) or 'no result: the evaluator gave no number'

    def deciding(self, metrics: Mapping[str, object]) -> Result | None:
        """Return the result by which one validation is better than another; None where nobody can tell.

        The first metric that the rules name decides, and where the validation gives none of these, nothing does.
        Without rules it is the one result that is quoted, if it is one.
        """
        if self.rules:
            given = [name for name in self.rules if isinstance(metrics.get(name), Number)]
            return self._result(given[0], metrics[given[0]]) if given else None
        candidates = self._of_task(metrics)
        return candidates[0] if len(candidates) == 1 and candidates[0].less_is_better is not None else None

    def best(self, validations: Mapping[int, Mapping[str, object]]) -> int | None:
        """Return the step whose validation is the best, the first of equals; None where nobody can tell."""
        found: dict[int, Result] = {}
        for step, metrics in validations.items():
            result = self.deciding(metrics)
            if result and all(result.better_than(other) for other in found.values()):
                found = {step: result}
        return next(iter(found), None)

    def _of_task(self, metrics: Mapping[str, object]) -> list[Result]:
        names, quotes = [name for name, value in metrics.items() if isinstance(value, Number)], _quotes(self.task)
        known = {name: _known(name, quotes) for name in names}
        first = next((quote for quote in quotes if quote in known.values()), None)
        found = names[:1] if first is None else [name for name in names if known[name] == first]
        return [self._result(name, metrics[name]) for name in found]

    def _result(self, name: str, value: object) -> Result:
        quotes = _quotes(self.task)
        known = _known(name, quotes) or name
        quote, part = quotes.get(known, Quote(name)), name.removesuffix(known).rstrip('_/')
        number = float(value) * quote.factor
        unit = f'{quote.unit} of {part}' if part else quote.unit
        less = self.rules[name] == 'less' if name in self.rules else less_is_better(name, self.task)
        if quote.complement:
            return Result(name, 100 - number, unit, None if less is None else not less)
        return Result(name, number, unit, less)


def first_number(metrics: Mapping[str, object]) -> str | None:
    """Return the name of the first metric that is one number, which ``save_best='auto'`` follows."""
    return next((name for name, value in metrics.items() if isinstance(value, Number)), None)


def less_is_better(metric: str, task: Quotes | None = None) -> bool | None:
    """Whether less is better of a metric of that name, as a task has it or its words tell; None where neither does."""
    quotes = _quotes(task)
    known = _known(metric, {name: quote for name, quote in quotes.items() if quote.less_is_better is not None})
    if known is not None:
        return quotes[known].less_is_better
    known = _known(metric, _OF_DEPTH)
    if known is not None:
        return _OF_DEPTH[known]
    words = re.findall(r'[a-z]+\d*', metric.lower())
    while words and words[-1].rstrip('0123456789') in _PARTS:
        words.pop()
    if not words or metric.startswith('1') or _TURNS & {*words}:
        return None
    last = {words[-1], words[-1].rstrip('0123456789')}  # of AP50, or Bleu4
    words = {*words, *(word.rstrip('0123456789') for word in words)}
    if words & _LESS and words & _GREATER:
        return True if metric.lower().endswith(('error', 'err', 'loss')) else None
    return True if last & _LESS else False if last & _GREATER else None


def _quotes(task: Quotes | None) -> dict[str, Quote]:
    """Return the quotes of ``task``, then those of all tasks, first that which was registered last."""
    TASKS.import_from_location()
    quotes: dict[str, Quote] = {}
    for owner in (task, *reversed(TASKS.module_dict.values())):
        for name, quote in getattr(owner, 'quotes', {}).items():
            quotes.setdefault(name, quote)
    return quotes


def _known(name: str, quotes: Mapping[str, Quote]) -> str | None:
    """Return which of ``quotes`` a metric is, also with the prefix of an evaluator, or of one of several tasks."""
    return name if name in quotes else next(
        (known for known in quotes if name.endswith((f'_{known}', f'/{known}'))), None)
