"""OverhaulDistiller: a student that learns the pre-ReLU features of a teacher beside its own task."""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Sequence

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel, revert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from overhaul.compat import save_names_that_load
from overhaul.files.checkpoints import examples
from overhaul.files.initial import initialise
from overhaul.files.parts import model_of, with_preprocessor
from overhaul.files.weights import checksum, lacking, load_teacher, starting_weights
from overhaul.method import recipe
from overhaul.method.arguments import check_batch_norm, check_kind, check_size, check_taps
from overhaul.method.at_once import at_once, possible
from overhaul.method.labelled_part import LabelledPart
from overhaul.method.memory_format import give_operators_plain_maps, quickest
from overhaul.method.normalization import Renormalize
from overhaul.method.stages import auto_taps, head_taps
from overhaul.method.taps import Tap, Taps, blank_batch
from overhaul.registry import MODELS, build, nearest
from overhaul.tasks import name_task, task_of, tell_what_is_left_out


@MODELS.register_module()
class OverhaulDistiller(BaseModel):
    """Trains ``student`` on its own task and on the features of a fixed ``teacher`` (Heo et al., ICCV 2019).

    In ``loss`` mode the losses are those of the student, and one per tap,
    ``loss_weight_of_the_tap * distill_loss(connector(S), margin(T))``, under ``distill.loss_<student tap>``.
    In ``predict`` and ``tensor`` mode this is the student. A loss that the student calls just ``loss`` is renamed
    ``loss_task``, since mmengine logs the sum of all losses under ``loss``.

    Of a batch in which some images have no labels (:class:`overhaul.WithUnlabelled`), the losses of the student are
    those of the others; the distillation, and all batch norms up to where the task's loss begins, see every image.
    Where none has labels, or the student no head, there are those of the distillation alone.

    The teacher is fixed: no gradient, dropout off, running statistics of its batch norms left as they are. It is an
    attribute and no submodule, hence neither in ``parameters()`` nor in ``state_dict()``: optimizers, checkpoints, DDP,
    EMA and conversion to synchronised batch norm pass it by.

    The optimizer treats each parameter of the student as it does without a teacher, whatever its ``constructor`` and
    ``paramwise_cfg``. Connectors, and what parameters margins and distance have, are to it further parts of the
    student, as heads are, by the names ``connectors``, ``margins`` and ``distill_loss``: see
    :func:`overhaul.method.recipe.as_student`.

    What it does not have itself it takes from the student, such as ``bbox_head``: hooks of other packages ask for it.

    On a CPU the features of the teacher, and those of ``ConvBNConnector``, are in channels-last memory, which is
    faster: a margin or distance of one's own takes ``reshape`` where it would take ``view``.

    Args:
        teacher: Config of an mmpretrain or mmseg model, or the config file that trains it: a path, or one of a package
            as ``'mmpretrain::resnet/resnet50_8xb32_in1k.py'``. Where its data preprocessor normalises otherwise than
            the student's, its images are normalised anew.
        student: Likewise.
        taps: Feature positions, shallow to deep, or ``'auto'``, which finds and pairs the stages of both models, see
            :func:`find_stages`. One dict each with ``teacher`` and ``student`` (``'path.of.module'``
            or ``'path.of.module:input'``, see :class:`Tap`), ``loss_weight`` (default 1), and
            ``margin_norm``, the path of the teacher's batch norm that gives the margin (default: the last one of the
            same shape on the main path before the tap, with no convolution of that shape after it; without any, the
            margin is estimated, see :class:`MarginReLU`).
        teacher_checkpoint: Weights of the teacher, a file or URL as :func:`read_checkpoint` takes it, or
            ``dict(file=..., key=..., prefix=...)`` where the file holds several sets of them, see :class:`Source`. The
            file may lack what no tap depends on. ``None`` leaves the teacher as its config initialises it, and warns.
        student_checkpoint: Likewise, weights that the student starts from, see :func:`starting_weights`. They outlive
            ``init_weights``; those of a resumed training, or of ``load_from``, replace them.
        connector: Student transform, built with ``student_channels`` and ``teacher_channels``. The gradient goes to its
            own parameters and to the feature that it is given. Default type: ``ConvBNConnector``.
        margin: Teacher transform, built with ``channels`` and ``norm``, the batch norm before the tap or ``None``.
            Default type: ``MarginReLU``.
        distill_loss: Distance between the two, scaled with alpha; its mean, where it is no scalar. The gradient goes to
            its own parameters and to the first feature. Default type: ``PartialL2Loss``.
        alpha: Short for the ``loss_weight`` of ``distill_loss``: a number, or ``'auto'``.
        teacher_batch_norm: ``'batch'`` normalises the teacher with the statistics of the batch, as the paper does
            (Table 8), ``'running'`` with those of its training.
        teacher_dropout: Whether the dropout of the teacher is live, as it is in the official segmentation code. The
            features of the teacher are noisy then.
        match_sizes: Whether to bring the teacher's feature to the height and width of the student's where they differ,
            by averaging if it is larger and bilinearly if it is smaller. Otherwise that is an error. ``taps='auto'``
            then also pairs stages of nearly equal size.
        tap_neck: Whether ``taps='auto'`` also pairs the levels of the necks, as those of a feature pyramid, see
            :func:`find_levels`.
        at_once: Whether the loss of a tap is computed with its gradient as soon as the student has reached the tap, so
            that the least is kept for the backward pass: see :func:`at_once`. To be turned off for
            what that refuses, such as a connector that takes something of another tap, and for a student that runs a
            tapped module a varying number of times.
        input_size: Height and width of the blank image of the dry run that finds channels and sizes.
        data_preprocessor: As in mmpretrain and mmseg, where a config gives it beside the model. Goes to the student
            and, where its config has none, to the teacher.
        task: Name of the student's task in ``overhaul.registry.TASKS``, and of the teacher's where that one looks like
            the student. Default: the one that takes the model, see :func:`task_of`.

    Attributes:
        teacher, student: The models.
        teacher_is_whole: Whether no tensor of the teacher is absent from its ``teacher_checkpoint``; True without one.
            A teacher that is not whole gives its features, and no results that could be validated.
        teacher_read: Names of the tensors of the teacher that are from its ``teacher_checkpoint``.
        connectors, margins: One per tap.

    Raises:
        ValueError: If a tap does not exist or is not reached; if teacher and student differ in height and width at a
            tap; if a type is unknown; if a checkpoint does not fit.
        FileNotFoundError: If the checkpoint does not exist.
    """

    def __init__(
        self,
        teacher: dict | str,
        student: dict | str,
        taps: Sequence[dict] | str,
        teacher_checkpoint: str | dict | None = None,
        student_checkpoint: str | dict | None = None,
        connector: dict | None = None,
        margin: dict | None = None,
        distill_loss: dict | None = None,
        alpha: float | str | None = None,
        teacher_batch_norm: str = 'batch',
        teacher_dropout: bool = False,
        match_sizes: bool = False,
        tap_neck: bool = False,
        at_once: bool = True,
        input_size: tuple[int, int] = (224, 224),
        data_preprocessor: dict | None = None,
        task: str | None = None,
    ) -> None:
        check_kind(dict | str, 'a dict, or the path of a config file', teacher=teacher, student=student)
        check_kind(
            dict | None, 'a dict, as in dict(type="...")',
            connector=connector, margin=margin, distill_loss=distill_loss)
        check_kind(
            bool, 'True or False', teacher_dropout=teacher_dropout, match_sizes=match_sizes, tap_neck=tap_neck,
            at_once=at_once)
        check_kind(str | None, 'the name of a task', task=task)
        check_size(input_size)
        check_batch_norm(teacher_batch_norm)
        check_taps(taps)
        student = with_preprocessor(model_of(student), data_preprocessor)
        student_model = build(student, 'student')
        super().__init__(data_preprocessor=student_model.data_preprocessor)
        self.match_sizes, self.at_once = match_sizes, at_once
        self.teacher_batch_norm, self.teacher_dropout = teacher_batch_norm, teacher_dropout
        self._owns_teacher, self._teacher_takes_views, self._calibrated = True, False, False
        self._fixed: set[str] = set()  # taps before all that learns

        teacher = with_preprocessor(model_of(teacher), student.get('data_preprocessor'))
        self._take_student(student_model, student_checkpoint, task, teacher)
        missing = self._take_teacher(teacher, teacher_checkpoint, task, taps, tap_neck)
        give_operators_plain_maps(self.teacher)  # its maps are channels-last on a CPU
        self.renormalize = _renormalize(self.student, self.teacher)

        if taps == 'auto':
            taps = auto_taps(self.teacher, self.student, input_size, match_sizes, tap_neck)
        self._place_taps(taps, input_size)
        self.connectors = self._build_connectors(connector or {})
        self.margins = self._build_margins(margin or {}, [tap.get('margin_norm') for tap in taps])
        self._check_teacher(missing, input_size)
        strength = {} if alpha is None else {'loss_weight': alpha}
        self.distill_loss = build(
            {'type': 'PartialL2Loss', **(distill_loss or {}), **strength}, 'distill_loss', scope='overhaul')
        self.train()

    def _take_student(
            self, student: nn.Module, checkpoint: str | dict | None, task: str | None, teacher: dict) -> None:
        name_task(student, task)
        self.student = student
        tell_what_is_left_out(task_of(student))
        save_names_that_load(student)
        given = {} if checkpoint is None else starting_weights(
            student, checkpoint, 'student_checkpoint', teacher=lambda: build(teacher, 'teacher'))
        if given:
            student.load_state_dict({**student.state_dict(), **given}, strict=False)
        self._given = set(given)

    def _take_teacher(
            self, cfg: dict, checkpoint: str | dict | None, task: str | None, taps: Sequence[dict] | str,
            tap_neck: bool) -> list[str]:
        """Build the teacher and return the names of what its checkpoint lacks."""
        teacher = revert_sync_batchnorm(build(cfg, 'teacher'))
        name_task(teacher, task, self.student)
        missing: list[str] = []
        if checkpoint is None:
            warnings.warn(
                'The teacher has no teacher_checkpoint: it is as its config initialises it, so there may be nothing to '
                'learn from it.', stacklevel=3)
            initialise(teacher, teacher.init_weights)
        else:
            # Where the stages are found with the weights, those behind the backbone are known without.
            tapped = head_taps(teacher, self.student) if taps == 'auto' else taps
            paths = [tap['teacher'] for tap in tapped] + ['neck'] * tap_neck
            missing = load_teacher(teacher, checkpoint, paths, self.student)
        # Past nn.Module's __setattr__, which would make it a submodule.
        self.__dict__['teacher'] = teacher.requires_grad_(False)
        self.teacher_is_whole = not missing
        self.teacher_read = set() if checkpoint is None else teacher.state_dict().keys() - missing
        return missing

    def _place_taps(self, taps: Sequence[dict], input_size: tuple[int, int]) -> None:
        self.teacher_taps = Taps(self.teacher, [tap['teacher'] for tap in taps], 'teacher')
        self.student_taps = Taps(self.student, [tap['student'] for tap in taps], 'student')
        self.tap_weights = [tap.get('loss_weight', 1.0) for tap in taps]
        self.loss_names = _loss_names([tap['student'] for tap in taps])
        self.teacher_taps.dry_run(self.teacher, input_size, stop_after_last=True)
        self.student_taps.dry_run(self.student, input_size, stop_after_last=False)
        self.labelled_part = LabelledPart(self.student, [tap['student'] for tap in taps])
        if not self.match_sizes:
            self._check_sizes(input_size)

    def _build_connectors(self, connector: dict) -> nn.ModuleList:
        return nn.ModuleList(
            build({'type': 'ConvBNConnector', **connector}, 'connector', scope='overhaul',
                  student_channels=student_tap.channels, teacher_channels=teacher_tap.channels)
            for teacher_tap, student_tap in zip(self.teacher_taps, self.student_taps))

    def _build_margins(self, margin: dict, norm_paths: Sequence[str | None]) -> nn.ModuleList:
        return nn.ModuleList(
            build({'type': 'MarginReLU', **margin}, 'margin', scope='overhaul', channels=tap.channels,
                  norm=self._margin_norm(tap, path))
            for tap, path in zip(self.teacher_taps, norm_paths))

    def _check_teacher(self, missing: Sequence[str], input_size: tuple[int, int]) -> None:
        """Refuse a teacher whose file lacks what its taps or their margins depend on.

        NaN in place of what a tap depends on comes through to it.
        """
        state = self.teacher.state_dict()
        kept = {name: state[name].clone() for name in missing if state[name].is_floating_point()}
        if not kept:
            return
        self.teacher.eval()
        with torch.no_grad():
            for name in kept:
                state[name].fill_(math.nan)
            features = self.teacher_taps.read(self.teacher, *blank_batch(self.teacher, input_size))
            for name, value in kept.items():
                state[name].copy_(value)
        lost = [tap.path for tap, feature in zip(self.teacher_taps, features) if not feature.isfinite().all()]
        if lost:
            raise lacking(missing, f'the tap {examples(lost)}')
        random = [tap.path for tap in self.teacher_taps
                  if not {f'{tap.norm_path}.weight', f'{tap.norm_path}.bias'}.isdisjoint(missing)]
        if random:
            raise lacking(missing, f'the margin of the tap {examples(random)}')

    def _check_sizes(self, input_size: tuple[int, int]) -> None:
        for teacher_tap, student_tap in zip(self.teacher_taps, self.student_taps):
            if teacher_tap.size != student_tap.size:
                raise ValueError(
                    f'Teacher and student differ in size at a tap: "{teacher_tap.path}" is {_size(teacher_tap.size)} '
                    f'and "{student_tap.path}" is {_size(student_tap.size)} for an image of {_size(input_size)}. '
                    "Pair taps of the same stride, or let match_sizes=True resize the teacher's feature.")

    def _margin_norm(self, teacher_tap: Tap, path: str | None) -> _BatchNorm | None:
        norm_path = path or teacher_tap.norm_path
        modules = dict(self.teacher.named_modules())
        if norm_path is None:
            return None
        if not isinstance(modules.get(norm_path), _BatchNorm):
            norms = [name for name, module in modules.items() if isinstance(module, _BatchNorm)]
            raise ValueError(
                f'margin_norm="{norm_path}" is no batch norm of the teacher. Nearest: {nearest(norm_path, norms)}.')
        if modules[norm_path].num_features != teacher_tap.channels:
            raise ValueError(
                f'margin_norm="{norm_path}" has {modules[norm_path].num_features} channels and the teacher tap '
                f'"{teacher_tap.path}" has {teacher_tap.channels}. Name the batch norm that feeds the tap.')
        teacher_tap.norm_path = norm_path
        return modules[norm_path]

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor') -> object:
        """Return all losses of the ``inputs`` (N, C, H, W) in ``loss`` mode, else what the student gives."""
        if mode == 'loss':
            with self.labelled_part.of(data_samples):
                return self.loss(inputs, data_samples)
        return self.student(inputs, data_samples, mode=mode)

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """Return the losses of the student and, per tap, of the distillation, each a scalar."""
        self._check_calibrated()
        with torch.no_grad():
            teacher_features = [
                margin(feature) for margin, feature in zip(self.margins, self.teacher_features(inputs, data_samples))]
        with_gradient = self.at_once and possible(
            inputs.device, [*self.connectors.parameters(), *self.distill_loss.parameters()])
        distances, count = {}, self.labelled_part.count
        labelled = data_samples if count is None else data_samples[:count]

        def compare(index: int, feature: Tensor) -> None:
            self._tell_if_nothing_learns(index, feature)
            # Taken out of the list, so that the map is gone when the next tap needs the memory.
            teacher_feature, teacher_features[index] = teacher_features[index], None
            if self.match_sizes:
                teacher_feature = _resize(teacher_feature, feature.shape[2:])
            connector, weight = self.connectors[index], self.tap_weights[index]

            def loss(feature: Tensor) -> Tensor:
                return (weight * self.distill_loss(connector(feature), teacher_feature)).mean()

            parameters = [*connector.parameters(), *self.distill_loss.parameters()]
            distances[index] = at_once(loss, feature, parameters) if with_gradient else loss(feature)

        self.student_taps.start(self.student, compare if with_gradient else None)
        try:
            if count == 0:
                self.student(inputs, data_samples, mode='tensor')
            losses = {} if count == 0 else dict(self.student(inputs, labelled, mode='loss'))
            for index, feature in enumerate(self.student_taps.take()):
                if feature is not None:
                    compare(index, feature)
        finally:
            self.student_taps.stop()
        if 'loss' in losses:
            losses['loss_task'] = losses.pop('loss')
        return losses | {name: distances[index] for index, name in enumerate(self.loss_names)}

    def _tell_if_nothing_learns(self, index: int, feature: Tensor) -> None:
        # Told where a first batch is measured, which no compiler sees.
        if feature.requires_grad or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return
        path = self.student_taps.taps[index].path
        if path not in self._fixed:
            self._fixed.add(path)
            print_log(
                f'The student tap "{path}" comes before all weights of the student that learn, as frozen_stages or '
                'requires_grad have it, so what is distilled there teaches its connector alone. Let that part of the '
                'student learn, or leave the tap out.', 'current', logging.WARNING)

    def teacher_features(self, inputs: Tensor, data_samples: list | None = None) -> list[Tensor]:
        """Return the teacher's features at its taps, before their margins, for the student's ``inputs`` (N, C, H, W).

        Call it without gradient, and with the ``data_samples`` where the teacher needs them, as some detectors do that
        are tapped in their heads.
        """
        plain = inputs if self.renormalize is None else self.renormalize(inputs)
        images = plain if self._teacher_takes_views else quickest(plain)
        try:
            return self.teacher_taps.read(self.teacher, images, data_samples)
        except RuntimeError as error:
            if images is plain or 'view size is not compatible' not in str(error):
                raise
        print_log("The teacher's code takes a view of a map that only the plain layout allows: it runs in that, and "
                  'somewhat slower.', 'current')
        self._teacher_takes_views = True
        return self.teacher_features(inputs, data_samples)

    def _check_calibrated(self) -> None:
        # In a compiled step the question would break the graph. An eager one comes before, SummaryHook's; else the loss
        # is NaN.
        if self._calibrated or torch.compiler.is_compiling():
            return
        unknown = [tap.path for tap, margin in zip(self.teacher_taps, self.margins) if not getattr(margin, 'known', 1)]
        if unknown:
            raise ValueError(
                f'The margins of the teacher taps {", ".join(unknown)} are to be estimated from data, and have not '
                'been. Add dict(type="overhaul.CalibrateHook") to custom_hooks, or name the batch norms that give '
                'them with margin_norm.')
        alpha = getattr(self.distill_loss, 'loss_weight', 0)
        if isinstance(alpha, Tensor) and alpha.isnan():
            raise ValueError(
                'loss_weight="auto" of the distill_loss is to be set from data, and has not been. Add '
                'dict(type="overhaul.CalibrateHook") to custom_hooks, or give a number.')
        self._calibrated = True

    def train(self, mode: bool = True) -> OverhaulDistiller:
        """Set the mode of student and connectors. The teacher's is eval but for its batch norms, as configured."""
        super().train(mode)
        if not self._owns_teacher:
            return self
        self.teacher.eval()
        for module in self.teacher.modules():
            if isinstance(module, _BatchNorm):
                # In train mode: statistics of the batch, and the running ones not touched. In eval mode: those.
                module.track_running_stats = False
                module.training = mode and self.teacher_batch_norm == 'batch'
            elif isinstance(module, _DropoutNd):
                module.training = mode and self.teacher_dropout
        return self

    def init_weights(self) -> None:
        """Initialise student and connectors; the teacher and what student_checkpoint gave stay as they are."""
        before = checksum(self.teacher)
        given = {name: value.clone() for name, value in self.student.state_dict().items() if name in self._given}
        initialise(self, super().init_weights)
        self.student.load_state_dict({**self.student.state_dict(), **given}, strict=False)
        if checksum(self.teacher) != before:
            raise RuntimeError('The initialisation of the student changed the teacher: they share parameters.')

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *arguments: object) -> None:
        # mmengine loads what happens to have the same name, which of a student's own file is nothing, and goes on.
        given = [name.removeprefix(prefix) for name in state_dict if name.startswith(prefix)]
        if given and not any(name.startswith('student.') for name in given) and self.state_dict().keys().isdisjoint(
                given):
            raise ValueError(
                f'These weights are not those of a distillation, none of whose names they have ({examples(given)}). '
                'Name the file of a student as student_checkpoint of the model, which finds out what is what, as '
                'load_from does in "overhaul train".')
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def __getattr__(self, name: str) -> object:
        # What a hook that knows the student's model asks for, as YOLOX's for the bbox_head: else it would fail in the
        # epoch in which it acts.
        try:
            return super().__getattr__(name)
        except AttributeError:
            student = self.__dict__.get('_modules', {}).get('student')
            if student is None or name.startswith('_') or not hasattr(student, name):
                raise
            return getattr(student, name)

    def _apply(self, fn: object, recurse: bool = True) -> OverhaulDistiller:
        # Device and dtype of the teacher follow, though it is no submodule.
        super()._apply(fn, recurse)
        if self._owns_teacher:
            self.teacher._apply(fn, recurse)
        return self

    def _set_device(self, device: torch.device) -> None:
        super()._set_device(device)
        if self._owns_teacher:
            self.teacher._set_device(device)

    def __deepcopy__(self, memo: dict) -> OverhaulDistiller:
        """Copy all but the teacher, which the copy shares, and leaves in its mode and place."""
        memo.update({id(shared): shared for shared in (self.teacher, self.teacher_taps)})
        duplicate = type(self).__new__(type(self))
        memo[id(self)] = duplicate
        duplicate.__dict__.update(copy.deepcopy(self.__dict__, memo))
        duplicate._owns_teacher = False
        return duplicate


recipe.follow(OverhaulDistiller)


def _renormalize(student: nn.Module, teacher: nn.Module) -> Renormalize | None:
    of_student, of_teacher = (task_of(model).channels for model in (student, teacher))
    if of_student != of_teacher:
        raise ValueError(
            f'An image has {of_student} channel{"s" * (of_student > 1)} for the student and {of_teacher} for the '
            'teacher, and both see the same images. Give their data preprocessors a mean and a std for as many '
            'channels, and their backbones as many in_channels.')
    renormalize = Renormalize(student.data_preprocessor, teacher.data_preprocessor)
    if renormalize.is_identity:
        return None
    print_log("Teacher and student normalise images differently: the teacher's are normalised anew.", 'current')
    return renormalize


def _resize(feature: Tensor, size: torch.Size) -> Tensor:
    if feature.shape[2:] == size:
        return feature
    if feature.shape[2:].numel() > size.numel():
        return nn.functional.adaptive_avg_pool2d(feature, size)
    return nn.functional.interpolate(feature, size, mode='bilinear', align_corners=False)


def _loss_names(student_paths: Sequence[str]) -> list[str]:
    names = [f'distill.loss_{path.removeprefix("backbone.").removesuffix(":input")}' for path in student_paths]
    # A student tap may serve several teacher taps, and losses of one name would replace each other; those with a dot
    # and a number are of other taps.
    return [name if names.count(name) == 1 else f'{name}#{names[:i].count(name)}' for i, name in enumerate(names)]


def _size(size: tuple[int, int]) -> str:
    return f'{size[0]}x{size[1]}'
