"""Which of the metrics of a validation are quoted, and of which of them more is better."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from numbers import Number
from types import MappingProxyType
from typing import NamedTuple, Protocol

from overhaul.registry import TASKS

# The last word of a metric's name tells if it is one of these. That of accuracy_drop is none.
_LESS = {
    'loss', 'error', 'err', 'mae', 'mse', 'rmse', 'mape', 'rmsle', 'silog', 'epe', 'nme', 'mpjpe',
    'fid', 'nll', 'ece', 'perplexity', 'ppl', 'wer', 'cer'}
_GREATER = {
    'acc', 'accuracy', 'top', 'top1', 'top5', 'aacc', 'macc', 'ap', 'map', 'ar', 'auc', 'auroc', 'recall', 'mrecall',
    'precision', 'mprecision', 'f1', 'fscore', 'mfscore', 'iou', 'miou', 'dice', 'mdice', 'psnr', 'ssim', 'pck', 'pckh',
    'pq', 'kappa', 'r2', 'bleu', 'cider', 'rouge', 'meteor'}
# Words that may follow: they name a part of the data, or of the result.
_PARTS = {'score', 'seg', 'val', 'test', 'train', 's', 'm', 'l', 'mean', 'macro', 'micro', 'avg', 'classwise', 'iter'}
# With one of these words in the name, the last word does not tell.
_TURNS = {'neg', 'negative', 'minus', 'inverse', 'non', 'no', 'at', 'to', 'rank', 'fpr', 'fnr', 'without'}
# Metrics of depth whose names are no words: relative errors.
_OF_DEPTH = {'abs_rel': True, 'sq_rel': True}
# And those that mean something else behind another word, as the d1 of stereo images: shares of pixels, and an error.
_ALONE = {'d1': False, 'd2': False, 'd3': False, 'log10': True}


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
        """Whether this is better than ``other``, a result of the same metric. NaN never is."""
        if math.isnan(other.value):
            return not math.isnan(self.value)
        return self.value < other.value if self.less_is_better else self.value > other.value


class Quotes(Protocol):
    """What results need of a task: how its metrics are quoted, by name, the one to quote first."""

    quotes: Mapping[str, Quote]


class Judge(NamedTuple):
    """Which of the metrics of a validation are quoted, and which validation is the better one.

    Attributes:
        rules: What the config says is better, ``'less'`` or ``'greater'``, by the name of a metric. It overrules what
            that name tells.
        task: That of the model. Its quotes come before those of other tasks.
    """

    rules: Mapping[str, str] = MappingProxyType({})
    task: Quotes | None = None

    def quoted(self, metrics: Mapping[str, object]) -> list[Result]:
        """Return the results to quote of the ``metrics`` of a validation, the first one first.

        A task has one metric that is quoted; of a model with several tasks, there is one of each. If no task knows any
        of the metrics, the first number is quoted. The metric that decides, see :meth:`deciding`, is added in front if
        it is not among them.
        """
        results, first = self._of_task(metrics), self.deciding(metrics)
        return results if first is None or first.metric in {result.metric for result in results} else [first, *results]

    def headline(self, metrics: Mapping[str, object]) -> str:
        """Return the results to quote in one line."""
        return ', '.join(map(str, self.quoted(metrics))) or 'no result: the evaluator gave no number'

    def deciding(self, metrics: Mapping[str, object]) -> Result | None:
        """Return the result by which one validation is better than another; None where nobody can tell.

        With rules, the first metric in them that the validation gives decides. Without rules, the quoted result
        decides, if there is only one.
        """
        if self.rules:
            given = [name for name in self.rules if isinstance(metrics.get(name), Number)]
            return self._result(given[0], metrics[given[0]]) if given else None
        candidates = self._of_task(metrics)
        return candidates[0] if len(candidates) == 1 and candidates[0].less_is_better is not None else None

    def best(self, validations: Mapping[int, Mapping[str, object]]) -> int | None:
        """Return the step of the best validation, the first of several equal ones; None where nobody can tell."""
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
    """Whether less of a metric is better: a task tells, or the words of its name. None where neither does."""
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
    if words and words[-1] in _ALONE:
        return _ALONE[words[-1]] if {*words[:-1]} <= _PARTS else None
    if not words or metric.startswith('1') or _TURNS & {*words}:
        return None
    last = {words[-1], words[-1].rstrip('0123456789')}  # of AP50, or Bleu4
    words = {*words, *(word.rstrip('0123456789') for word in words)}
    if words & _LESS and words & _GREATER:
        return True if metric.lower().endswith(('error', 'err', 'loss')) else None
    return True if last & _LESS else False if last & _GREATER else None


def _quotes(task: Quotes | None) -> dict[str, Quote]:
    """Return the quotes of ``task``, then those of all tasks, the last registered first."""
    TASKS.import_from_location()
    quotes: dict[str, Quote] = {}
    for owner in (task, *reversed(TASKS.module_dict.values())):
        for name, quote in getattr(owner, 'quotes', {}).items():
            quotes.setdefault(name, quote)
    return quotes


def _known(name: str, quotes: Mapping[str, Quote]) -> str | None:
    """Return the name in ``quotes`` of a metric, which may have the prefix of an evaluator or of a task before it."""
    return name if name in quotes else next(
        (known for known in quotes if name.endswith((f'_{known}', f'/{known}'))), None)
