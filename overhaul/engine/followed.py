"""Metrics that a training follows: to save the best checkpoint, to stop early, to lower the learning rate.

mmengine guesses from parts of a metric's name whether less or more is better. It wants more of 'MAPE', since that has
'mAP' in it. Here the config tells, or else :func:`less_is_better`, and nothing is guessed.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType

from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook, ParamSchedulerHook
from mmengine.optim.scheduler.param_scheduler import ReduceOnPlateauParamScheduler
from mmengine.registry import Registry
from mmengine.runner import Runner

from overhaul.engine.runner import bare_model
from overhaul.files.parts import build_plain
from overhaul.registry import HOOKS, PARAM_SCHEDULERS, dicts_in, nearest, type_name
from overhaul.tasks import Task, task_of
from overhaul.tasks.results import Judge, first_number, less_is_better

_RULES = {True: 'less', False: 'greater', None: None}


def give_rules(cfg: Config) -> None:
    """Give each part of ``cfg`` that follows a metric a ``rule``, ``'less'`` or ``'greater'``, where it has none.

    What ``save_best='auto'`` follows is known after the first validation, see :func:`prepare`.

    Raises:
        ValueError: If nobody knows what of the metric is better; names the line to add.
    """
    for part, key in _followers(cfg):
        if part.get('rule') is not None:
            continue
        names = _names(part[key])
        task = task_of(build_plain(cfg)) if names else None
        rules = {name: _rule(name, part, task) for name in names}
        for name, rule in rules.items():
            if rule is None:
                raise ValueError(
                    f'The {type_name(part)} has {key}={name!r}, and the name does not tell whether less or more of '
                    f"that is better. Say it beside it: {key}={name!r}, rule='less', or rule='greater'.")
        if rules:
            part['rule'] = rules[part[key]] if isinstance(part[key], str) else list(rules.values())


def judge_in(
        cfg: Config, metrics: Mapping[str, object] = MappingProxyType({}), task: Task | None = None) -> Judge:
    """Return the judge of results that ``cfg`` asks for, with a rule for each metric that it follows.

    The metrics of ``save_best`` come first, then those that stop a training or lower its learning rate.

    Args:
        cfg: Config of a training.
        metrics: Those of a validation; ``save_best='auto'`` follows the first number.
        task: That of the model.
    """
    rules = {}
    for part, key in sorted(_followers(cfg), key=lambda follower: follower[1] != 'save_best'):
        asked, rule = _listed(part[key]), part.get('rule')
        given = [rule] * len(asked) if isinstance(rule, str) else rule or [None] * len(asked)
        for name, said in zip(asked, given):
            name = first_number(metrics) if name == 'auto' else name
            said = name and (said or _rule(name, part, task))
            if said:
                rules.setdefault(name, said)
    return Judge(rules, task)


def prepare(runner: Runner) -> None:
    """Let ``runner`` follow metrics as this module says, and warn of those that its evaluator does not give."""
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and hook.save_best:
            hook._save_best_checkpoint = partial(_save_best, hook, hook._save_best_checkpoint)
        if isinstance(hook, ParamSchedulerHook):
            hook.after_val_epoch = partial(_lower_rate, hook.after_val_epoch)
    runner.register_hook(TellMissingHook())
    runner.register_hook(ScheduleHook())


class TellMissingHook(Hook):
    """Warns of followed metrics that the evaluator does not give, before the first step where it can."""

    priority = 'LOW'  # registered last, hence after the summary has validated the teacher

    def before_train(self, runner: Runner) -> None:
        """Look at the metrics of the teacher, where it was validated."""
        for hook in runner.hooks:
            self.after_val_epoch(runner, getattr(hook, 'teacher_metrics', None))  # of a SummaryHook

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, object] | None = None) -> None:
        """Look at the metrics of the student."""
        for part, key in _followers(runner.cfg) if metrics else ():
            for name in _names(part[key]):
                if name not in metrics:
                    runner.logger.warning(
                        f'The {type_name(part)} has {key}={name!r}, and this validation gave no such metric, so that '
                        f'is left out. Nearest of what it gave: {nearest(name, metrics)}.')


class ScheduleHook(Hook):
    """Lets schedules follow the metric that the config names, also where a resumed training followed another one."""

    priority = 'LOW'

    def before_run(self, runner: Runner) -> None:
        """Note the metrics of the config, before a checkpoint replaces them."""
        schedules = runner.param_schedulers
        schedules = chain(*schedules.values()) if isinstance(schedules, dict) else schedules or ()
        self._asked = [
            (schedule, schedule.monitor, schedule.rule) for schedule in schedules
            if isinstance(schedule, ReduceOnPlateauParamScheduler)]

    def before_train(self, runner: Runner) -> None:
        """Restart each schedule that has followed another metric."""
        for schedule, monitor, rule in self._asked:
            was, now = _described(schedule.monitor, schedule.rule), _described(monitor, rule)
            if was != now:
                runner.logger.warning(
                    f'The {type(schedule).__name__} has followed {was}; from here on it follows {now}, and begins anew '
                    'to wait for a better value.')
                schedule.monitor = monitor
                schedule._init_is_better(rule, schedule.threshold, schedule.threshold_rule)
                schedule._reset()


def _described(name: str, rule: str) -> str:
    return f'{name} (the {"most" if rule == "greater" else "least"} of it)'


def _followers(cfg: Config) -> Iterator[tuple[dict, str]]:
    """Yield the parts of ``cfg`` that follow metrics, and the key under which they name them."""
    for registry, places, kind in (
            (HOOKS, ('default_hooks', 'custom_hooks'), EarlyStoppingHook),
            (PARAM_SCHEDULERS, ('param_scheduler', ), ReduceOnPlateauParamScheduler)):
        for part in dicts_in([cfg.get(place) for place in places]):
            if part.get('save_best'):
                yield part, 'save_best'
            elif _is_of(kind, part, registry, cfg.get('default_scope')):
                if registry is PARAM_SCHEDULERS:
                    part.setdefault('monitor', 'loss')  # as mmengine does
                if part.get('monitor'):
                    yield part, 'monitor'


def _is_of(kind: type, part: dict, registry: Registry, scope: str | None) -> bool:
    name = type_name(part)
    with registry.switch_scope_and_registry(scope) as known:
        found = known.get(name) if name else None
    return inspect.isclass(found) and issubclass(found, kind)


def _listed(asked: str | list[str]) -> list[str]:
    names = [asked] if isinstance(asked, str) else asked
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"A metric to follow is its name, or for save_best a list of names, not {asked!r}: save_best='auto' takes "
            'the first that the validation gives.')
    return names


def _names(asked: str | list[str]) -> list[str]:
    return [name for name in _listed(asked) if name != 'auto']


def _rule(name: str, given: Mapping[str, object], task: Task | None) -> str | None:
    """Return what of a metric is better: by the keys that a CheckpointHook was ``given``, or by its name."""
    for rule in ('greater', 'less'):
        keys = given.get(f'{rule}_keys') or ()
        if any(key.lower() in name.lower() for key in ([keys] if isinstance(keys, str) else keys)):
            return rule
    return _RULES[less_is_better(name, task)]


def _save_best(hook: CheckpointHook, save: Callable, runner: Runner, metrics: Mapping[str, object]) -> None:
    """Save the best checkpoint of each metric that the validation gave."""
    if 'auto' in hook.key_indicators:
        name = first_number(metrics)
        if name is None:
            return
        rule = judge_in(runner.cfg, metrics, task_of(bare_model(runner))).rules.get(name)
        if rule is None:
            runner.logger.warning(
                f"save_best='auto' takes the first metric, {name}, and its name does not tell whether less or more of "
                f"that is better, so no best checkpoint is saved. Say it: save_best={name!r}, rule='less', or "
                "rule='greater'.")
            return
        hook._init_rule([rule], [name])
    _begin_anew(hook, runner)
    save(runner, {**dict.fromkeys(hook.key_indicators), **metrics})  # it passes over None


def _begin_anew(hook: CheckpointHook, runner: Runner) -> None:
    """Forget the best value of a resumed training if it is of another metric. Its checkpoint stays."""
    known = runner.message_hub.runtime_info
    several = len(hook.key_indicators) > 1
    for name, rule in zip(hook.key_indicators, hook.rules):
        score, path, by = (f'best_{what}_{name}' if several else f'best_{what}' for what in ('score', 'ckpt', 'by'))
        now = _described(name, rule)
        # A file of mmengine's own hook tells the name alone, in that of the checkpoint.
        saved = re.fullmatch(r'best_(.+)_(epoch|iter)_\d+\.pth', Path(known.get(path) or '').name)
        was = known.get(by) or (now if not saved or saved[1] == name.replace('/', '_') else saved[1])
        if was != now and score in known:
            runner.logger.warning(
                f'The best checkpoint so far, {known.pop(path, None)}, is that by {was}, and stays. From here on the '
                f'best is that by {now}, and what was reached of it before does not count.')
            del known[score]
            if several:
                hook.best_ckpt_path_dict[name] = None
            else:
                hook.best_ckpt_path = None
        runner.message_hub.update_info(by, now)


def _lower_rate(lower: Callable, runner: Runner, metrics: Mapping[str, object] | None = None) -> None:
    """Step the schedules whose metric the validation gave, and no others."""
    schedules = runner.param_schedulers
    if metrics is not None and isinstance(schedules, list):
        runner.param_schedulers = [
            schedule for schedule in schedules if getattr(schedule, 'monitor', None) in (None, *metrics)]
    lower(runner, metrics)
    runner.param_schedulers = schedules
