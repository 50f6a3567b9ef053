"""A resumed training that goes on as it was begun, or says in what it is another one.

mmengine writes its config into each checkpoint and compares it with nothing, so that other data, another teacher or
another loss go on where the first ended, without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from mmengine.hooks import Hook
from mmengine.runner import Runner

from overhaul.engine.runner import bare_model
from overhaul.files.checkpoints import classes_in
from overhaul.files.weights import checksum
from overhaul.method.distiller import OverhaulDistiller
from overhaul.tasks import names_of, other_label, task_of

# What in a config makes a training the one that it is. Its length, and how often it is validated and saved, are free.
_DECISIVE = ('model', 'optim_wrapper', 'param_scheduler', 'train_dataloader', 'custom_hooks', 'val_evaluator')
_DECISIVE_PARTS = (('train_cfg', 'by_epoch'), ('val_dataloader', 'dataset'))
# What changes nothing that is learnt, or only the weights that it begins with. A teacher is compared by its own.
_FREE = re.compile(
    r'train_dataloader\.(num_workers|persistent_workers|pin_memory|prefetch_factor|timeout)|'
    r'model\.teacher_checkpoint.*|(?!model\.teacher\.).*\b(student_checkpoint|init_cfg|pretrained)\b.*|'
    r'param_scheduler(\.\d+)?\.end')
_KEY, _TEACHER, _IMAGES = 'overhaul_training', 'checksum of the teacher', 'number of training images'
_MOST, _WIDTH = 5, 60


def prepare(runner: Runner) -> None:
    """Make ``runner`` write down what its training is, and compare it with that of one that it resumes.

    What is written travels in the checkpoints. One without it, of mmengine's own tools, is compared by the names of its
    classes.
    """
    runner.register_hook(_SameTrainingHook())


class _SameTrainingHook(Hook):
    priority = 'VERY_HIGH'  # before the optimizer's state is loaded

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare."""
        if not runner._resume:
            return
        check_classes(runner, classes_in(checkpoint))
        then = checkpoint.get('message_hub', {}).get('runtime_info', {}).get(_KEY)
        told = isinstance(then, dict) and differences(then, training_of(runner))
        if told:
            runner.logger.warning(
                f'The training that is resumed was begun otherwise: {told}. From here on it is as this config says, '
                'but for learning rates, momentum, weight decay and schedules, which stay those of the checkpoint. To '
                'go on with what was, resume with the config of then; for another training, start anew in another '
                '--work-dir, from these weights with --cfg-options load_from=PATH.')

    def before_train(self, runner: Runner) -> None:
        """Write down what this training is, for the checkpoints to come."""
        runner.message_hub.update_info(_KEY, training_of(runner))


def training_of(runner: Runner) -> dict[str, str]:
    """Return, by name, what makes the training of ``runner`` the one that it is, each as a text."""
    cfg, model = runner.cfg.to_dict(), bare_model(runner)
    parts = {name: cfg[name] for name in _DECISIVE if cfg.get(name)}
    parts |= {name: {key: cfg[name][key]} for name, key in _DECISIVE_PARTS if key in (cfg.get(name) or {})}
    found = {name: repr(value) for name, value in leaves(parts) if not _FREE.fullmatch(name)}
    found[_IMAGES] = str(len(runner.train_dataloader.dataset))
    if isinstance(model, OverhaulDistiller) and model.teacher_read:
        found[_TEACHER] = checksum(model.teacher, model.teacher_read)
    return found


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return in words in what two trainings differ, ``''`` for nothing.

    Raises:
        ValueError: If what is saved of the one means nothing in the other: of another teacher, or another optimizer.
    """
    differ = {name: (then.get(name), now.get(name)) for name in {**then, **now} if then.get(name) != now.get(name)}
    if _TEACHER in differ:
        raise ValueError(
            'The training to resume was begun with another teacher: the weights that its features come from are not '
            'those of then, and the margins in the checkpoint are of that one. Give the teacher_checkpoint of then; or '
            'let student and connectors begin anew with this teacher: --cfg-options load_from=PATH.')
    for name, (before, after) in differ.items():
        if re.search(r'optimizer\.type$', name) and _last_word(before) != _last_word(after):
            raise ValueError(
                f'The training to resume was begun with the optimizer {before}, and this config has {after}, for which '
                'what is saved of the first means nothing. Resume with the config of then, or start anew from the '
                'weights: --cfg-options load_from=PATH.')
    told = [f'{name} was {_shown(before)} and is {_shown(after)}' for name, (before, after) in differ.items()]
    return '; '.join(told[:_MOST]) + (f'; and {len(told) - _MOST} more' if len(told) > _MOST else '')


def check_classes(runner: Runner, learnt: tuple[str, ...]) -> None:
    """Compare the classes of the training data with those that the weights have ``learnt``.

    Raises:
        ValueError: If a label means another class now.
    """
    names, task = names_of(runner.train_dataloader.dataset), task_of(bare_model(runner))
    label = other_label(learnt, names) if task.has_loss else None
    if label is not None:
        raise ValueError(
            f'The training to resume has learnt other classes than these data have: the label {label} was '
            f'"{learnt[label]}" and is "{names[label]}". Resume with the data of then, or with the same classes in the '
            'same order; to learn others, start anew from the weights: --cfg-options load_from=PATH.')


def leaves(value: object, name: str = '') -> Iterator[tuple[str, object]]:
    """Yield what a part of a config is made of, each by its path, as ``'model.taps.0.teacher'``."""
    if isinstance(value, dict | list | tuple) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in items:
            yield from leaves(part, f'{name}.{key}' if name else str(key))
    else:
        yield name, value


def _shown(text: str | None) -> str:
    return 'not set' if text is None else text if len(text) <= _WIDTH else f'{text[:_WIDTH]}...'


def _last_word(name: str | None) -> str:
    return (name or '').strip("'").rpartition('.')[2]
