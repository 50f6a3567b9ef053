"""What a person wants to know at the start and at the end of a training."""

from __future__ import annotations

from numbers import Number

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn

from overhaul.engine.followed import judge_in
from overhaul.engine.runner import bare_model, training_batches, validate
from overhaul.method.distiller import OverhaulDistiller
from overhaul.method.probe import Strength, measure
from overhaul.registry import HOOKS
from overhaul.reports.columns import in_columns
from overhaul.tasks import task_of
from overhaul.tasks.results import Judge


@HOOKS.register_module()
class SummaryHook(Hook):
    """Logs a summary of the distillation before its first step, and the student's best and last result after its last.

    The summary: the teacher and its result on the validation data, the parameters of both models, the taps, and on one
    batch the distillation beside the task, in loss and in gradient. With a model that is no distiller only the end is
    logged.

    Args:
        validate_teacher: Whether to run the validation data through the teacher before training. Default: True.

    Attributes:
        teacher_metrics, strength: What was measured before training, ``None`` where nothing was.
    """

    priority = 'LOW'

    def __init__(self, validate_teacher: bool = True) -> None:
        self.validate_teacher = validate_teacher
        self.teacher_metrics: dict[str, float] | None = None
        self.strength: Strength | None = None

    def before_train(self, runner: Runner) -> None:
        """Log the models and the taps, and validate the teacher."""
        model = bare_model(runner)
        if not isinstance(model, OverhaulDistiller):
            runner.logger.info(f'Student alone: {count_parameters(model):,} parameters')
            return
        runner.logger.info(describe(model))
        if self.validate_teacher and runner.val_loop is not None:
            task = task_of(model.teacher)
            reason = 'its teacher_checkpoint has not all of it' if not model.teacher_is_whole else task.cannot_judge(
                runner.val_dataloader.dataset, task_of(model))
            if reason is None:
                self.teacher_metrics = validate(runner, model.teacher)
            runner.logger.info('Teacher: ' + (
                f'not validated, since {reason}' if reason else Judge(task=task).headline(self.teacher_metrics)))
        with training_batches(runner, 1) as batches:
            self.strength = measure(model, next(batches), runner.optim_wrapper.optim_context(runner.model))
        runner.logger.info(describe_strength(self.strength, runner.iter))

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Remember the student's result, in the checkpoint too."""
        hub = runner.message_hub
        # Some evaluators also give a list, of a number for each class; some give nothing where nothing was found.
        numbers = {name: float(value) for name, value in (metrics or {}).items() if isinstance(value, Number)}
        last = {'step': _step(runner), 'metrics': numbers}
        judge = judge_in(runner.cfg, numbers, task_of(bare_model(runner)))
        best = hub.get_info('best_result') if 'best_result' in hub.runtime_info else last
        new, old = (judge.deciding(result['metrics']) for result in (last, best))
        hub.update_info('best_result', last if new and (old is None or new.better_than(old)) else best)
        hub.update_info('last_result', last)

    def after_train(self, runner: Runner) -> None:
        """Log the student's best and last result."""
        hub = runner.message_hub
        if 'best_result' not in hub.runtime_info:
            return
        results = [hub.get_info(name) for name in ('best_result', 'last_result')]
        judge = judge_in(runner.cfg, results[1]['metrics'], task_of(bare_model(runner)))
        told = [f'{judge.headline(result["metrics"])} ({result["step"]})' for result in results]
        if judge.quoted(results[0]['metrics']) and judge.deciding(results[0]['metrics']) is None:
            told[0] = 'not known (default_hooks.checkpoint.save_best and rule tell which metric decides, and how)'
        runner.logger.info('Student: best {}, last {}'.format(*told))


def _step(runner: Runner) -> str:
    """Return how far the training is, as its loop and the names of its checkpoints count."""
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        return f'epoch {runner.epoch}'
    return f'iteration {runner.iter}'


def count_parameters(model: nn.Module) -> int:
    """Return the number of weights that ``model`` is made of."""
    return sum(parameter.numel() for parameter in model.parameters())


def describe(model: OverhaulDistiller) -> str:
    """Return a table of the two models and their taps."""
    teacher, student = count_parameters(model.teacher), count_parameters(model.student)
    rows = [('teacher tap', 'channels', 'size', 'margin from', 'student tap', 'channels', 'size', 'weight')]
    for teacher_tap, student_tap, weight in zip(model.teacher_taps, model.student_taps, model.tap_weights):
        rows.append((
            teacher_tap.path, str(teacher_tap.channels), '{}x{}'.format(*teacher_tap.size),
            teacher_tap.norm_path or 'data', student_tap.path, str(student_tap.channels),
            '{}x{}'.format(*student_tap.size), f'{weight:g}'))
    return (f'Distillation: teacher {teacher:,} parameters, student {student:,} parameters ({student / teacher:.1%} of '
            f'the teacher), connectors {count_parameters(model.connectors):,}\n{in_columns(rows)}')


def describe_strength(strength: Strength, step: int) -> str:
    """Return how strong the distillation is beside the task after ``step`` steps, in one line."""
    if strength.task_loss is None:
        return f'Step {step}: distillation loss {strength.distillation_loss:.4g}; no task, for want of labels or a head'
    return (f'Step {step}: task loss {strength.task_loss:.4g}, distillation loss {strength.distillation_loss:.4g} '
            f'({strength.loss_ratio:.3g} times it); its gradient on the student is {strength.gradient_ratio:.3g} times '
            "the task's")
