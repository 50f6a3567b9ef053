"""Numbers that go wrong, noticed before they cost a training."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from overhaul.engine import data_classes
from overhaul.engine.hooks.summary import SummaryHook
from overhaul.engine.runner import bare_model
from overhaul.method.distiller import OverhaulDistiller
from overhaul.registry import HOOKS, counted
from overhaul.tasks import classes_of, task_of
from overhaul.tasks.results import Judge

_ENOUGH = 100  # steps in a row without a finite gradient: there is nothing left to train


@HOOKS.register_module()
class HealthHook(Hook):
    """Stops a training whose loss or gradient is NaN or infinite, and tells of a distillation that cannot work.

    At each step: a loss or a gradient that is not finite. Overflow in float16 is no fault: mmengine's AmpOptimWrapper
    leaves such a step out.

    Before the first step, from what SummaryHook measures: a teacher no better than chance; a tap that is constant, not
    finite, or has no negative value, as behind a ReLU; a margin above 0; a distillation loss beside which the task loss
    is nothing.

    All processes decide alike.

    Args:
        on_nonfinite: ``'stop'`` ends the training before that step is validated or saved. ``'skip'`` leaves the weights
            as they were, counts the step (``steps_skipped`` in the log and the checkpoint) and goes on, unless that
            happens 100 times in a row; the optimizer then waits for each gradient. The running statistics of batch
            norms have taken in the batch all the same. Default: ``'stop'``.
        on_doubt: What to do about the findings before the first step: ``'warn'`` or ``'stop'``. Default: ``'warn'``.
        largest_ratio: Distillation loss over task loss from which the task is taken to be drowned. Default: 1000.

    Raises:
        ValueError: If the training is to be stopped, with the losses, the parameters or the tap that is to blame. If
            the model cannot learn from the data, as where they have more classes, which a GPU would not survive, or
            cannot be validated.
    """

    priority = 80  # after the summary, before CheckpointHook

    def __init__(self, on_nonfinite: str = 'stop', on_doubt: str = 'warn', largest_ratio: float = 1000.0) -> None:
        for name, value, choices in (('on_nonfinite', on_nonfinite, ('stop', 'skip')),
                                     ('on_doubt', on_doubt, ('warn', 'stop'))):
            if value not in choices:
                raise ValueError(f'HealthHook({name}={value!r}): give {" or ".join(map(repr, choices))}.')
        self.on_nonfinite, self.on_doubt, self.largest_ratio = on_nonfinite, on_doubt, largest_ratio
        self._norms: Tensor | None = None
        self._skipped = self._in_a_row = 0

    def before_run(self, runner: Runner) -> None:
        """Look at the classes, and until training begins at the features that pass the taps."""
        if not isinstance(runner._train_loop, BaseLoop):  # only the config of one: this is a test
            return
        data_classes.check(runner)  # for tools other than those of this package
        model = bare_model(runner)
        self._watch = _Watch(model) if isinstance(model, OverhaulDistiller) else None

    def before_train(self, runner: Runner) -> None:
        """Judge what was measured, and look at the gradients from now on."""
        if self._watch is not None:
            self._watch.end()
            # The processes have seen other images: what one of them finds is said by all.
            found = dist.all_gather_object(list(self._doubts(runner)))
            for doubt in next(filter(None, found), []):
                if self.on_doubt == 'stop':
                    raise ValueError(f'{doubt} To train all the same: default_hooks.health.on_doubt=warn.')
                runner.logger.warning(doubt)
        self._skipped = runner.message_hub.runtime_info.get('steps_skipped', 0)
        self._handle = runner.optim_wrapper.optimizer.register_step_pre_hook(self._look)

    def after_train_iter(
            self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: dict | None = None) -> None:
        """Stop, or tell of a step that was skipped."""
        # The losses are known by now, because mmengine has logged them; so nothing waits for the GPU here.
        loss = torch.as_tensor(outputs['loss']).float()
        wrong = torch.stack([1 - loss.isfinite().float(), *([] if self._norms is None else [_wrong(self._norms)])])
        dist.all_reduce(wrong, 'max')
        if wrong.any():
            message = f'Iteration {runner.iter + 1}: {self._blame(bare_model(runner), outputs)}.'
            if self.on_nonfinite == 'stop' or self._in_a_row == _ENOUGH:
                raise ValueError(
                    f'{message} The training has ended, and nothing of this step was saved. Lower the learning rate '
                    'or the loss_weight of the distill_loss, or limit the gradient with '
                    'optim_wrapper.clip_grad.max_norm=5; default_hooks.health.on_nonfinite=skip leaves out such steps '
                    'if they are few.')
            runner.message_hub.update_info('steps_skipped', self._skipped)
            runner.logger.warning(f'{message} Steps skipped so far: {self._skipped}.')
        self._norms = None

    def after_train(self, runner: Runner) -> None:
        """Leave the optimizer, and log how many steps were skipped."""
        self._handle.remove()
        if self._skipped:
            runner.logger.warning(
                counted(self._skipped, 'step was', 'steps were') + ' skipped, since the gradient was not finite.')

    def _look(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group['params']
                      if parameter.grad is not None and parameter.numel()]
        if not parameters:
            return
        gradients = [parameter.grad for parameter in parameters]
        norms = torch.stack(torch._foreach_norm(gradients, 2, dtype=torch.float32))  # of infinity it is slow
        # The scaler of float16 has a fused optimizer leave the step out by itself.
        overflow = getattr(optimizer, 'found_inf', None)
        self._norms = norms if overflow is None else norms.where(overflow.to(norms.device) == 0, 0)
        self._parameters = [id(parameter) for parameter in parameters]
        if self.on_nonfinite == 'skip':
            skip = bool(_wrong(self._norms))
            self._skipped += skip
            self._in_a_row = self._in_a_row + 1 if skip else 0
            for parameter in parameters if skip else []:
                parameter.grad = None  # which every optimizer passes over

    def _blame(self, model: nn.Module, losses: dict) -> str:
        values = {name: torch.as_tensor(value).item() for name, value in losses.items() if 'loss' in name}
        total = values.pop('loss')
        wrong = [f'{name} is {value}' for name, value in values.items() if not math.isfinite(value)]
        if not wrong and not math.isfinite(total):
            wrong = [f'the loss is {total}']
        if not wrong and self._norms is not None:
            names = {id(parameter): name for name, parameter in model.named_parameters()}
            wrong = [f'the gradient of {names.get(parameter)} is {norm}' for parameter, norm in
                     zip(self._parameters, self._norms.tolist()) if not math.isfinite(norm)]
        return ', '.join(wrong[:4]) + (f' and {len(wrong) - 4} more' if len(wrong) > 4 else '') or (
            'a loss or gradient is not finite in another process')

    def _doubts(self, runner: Runner) -> Iterator[str]:
        model = bare_model(runner)
        summary = next((hook for hook in runner.hooks if isinstance(hook, SummaryHook)), None)
        if summary is not None and summary.teacher_metrics:
            yield from doubts_of_teacher(model.teacher, summary.teacher_metrics, runner.val_dataloader.dataset)
        yield from doubts_of_taps(model, self._watch)
        strength = summary and summary.strength
        if strength and strength.task_loss is not None and strength.loss_ratio > self.largest_ratio:
            yield (f'The distillation loss is {strength.distillation_loss:.3g}, {strength.loss_ratio:.3g} times the '
                   'task loss, and will drown it. Lower the loss_weight of the distill_loss, or let '
                   "loss_weight='auto' set it.")


class _Watch:
    """The least and the greatest value that has passed each tap of a model."""

    def __init__(self, model: OverhaulDistiller) -> None:
        self.extents: dict[tuple[str, int], Tensor] = {}
        self._handles = [
            module.register_forward_pre_hook(self._recorder(side, index))
            for side, modules in (('teacher', model.margins), ('student', model.connectors))
            for index, module in enumerate(modules)]

    def _recorder(self, side: str, index: int) -> object:
        def record(module: nn.Module, inputs: tuple[Tensor]) -> None:
            with torch.no_grad():
                extent = torch.stack(inputs[0].aminmax())
                known = self.extents.get((side, index), extent)
                self.extents[side, index] = torch.stack([
                    torch.minimum(extent[0], known[0]), torch.maximum(extent[1], known[1])])
        return record

    def end(self) -> None:
        for handle in self._handles:
            handle.remove()


def doubts_of_teacher(teacher: nn.Module, metrics: dict[str, float], dataset: object) -> Iterator[str]:
    """Say whether the ``teacher`` with these ``metrics`` on ``dataset`` knows no more than chance."""
    classes = classes_of(dataset)
    if classes < 2:
        return
    task = task_of(teacher)
    for name, bound in task.chance(classes, len(dataset)).items():
        if name in metrics and metrics[name] <= bound:
            yield (f'The teacher has {Judge(task=task).headline({name: metrics[name]})}, which is chance for {classes} '
                   'classes: there is nothing to learn from it. Name its weights in teacher_checkpoint, and see that '
                   'its data preprocessor and the order of its classes are those that it was trained with.')


def doubts_of_taps(model: OverhaulDistiller, watch: _Watch) -> Iterator[str]:
    """Say which taps of ``model`` carry nothing, or nothing of what the method needs."""
    taps = {'teacher': model.teacher_taps.taps, 'student': model.student_taps.taps}
    # As mmpretrain's ResNets do: a block then gives what it got, which is behind a ReLU, until it has learnt.
    begin_at_zero = [side for side in taps if any(
        isinstance(module, _BatchNorm) and module.weight is not None and not module.weight.any()
        for module in getattr(model, side).modules())]
    for (side, index), extent in watch.extents.items():
        least, greatest = extent.tolist()
        name = f'The {side} tap "{taps[side][index].path}"'
        if not math.isfinite(least) or not math.isfinite(greatest):
            yield f'{name} has values that are not finite ({least:g} to {greatest:g}). Look at the weights before it.'
        elif least == greatest:
            yield f'{name} is {least:g} everywhere, and carries nothing. Tap another module.'
        elif least >= 0 and side not in begin_at_zero:
            yield (f'{name} has no negative value ({least:g} to {greatest:g}): it seems to be behind a ReLU, and the '
                   "method needs what enters it. Tap that, with ':input' after the path of the ReLU.")
    for tap, margin in zip(model.teacher_taps.taps, model.margins):
        values = getattr(margin, 'margin', None)
        if values is not None and (values > 0).any():
            of_tap = f'of the teacher tap "{tap.path}"'
            above = f'margin {of_tap} is above', f'margins {of_tap} are above'
            yield (f'{counted(int((values > 0).sum()), *above)} 0, up to '
                   f'{values.max().item():.3g}, and would lift what a ReLU lets through. A margin is the mean of '
                   'negative responses: see where it comes from.')


def _wrong(norms: Tensor) -> Tensor:
    return 1 - norms.isfinite().all().float()
