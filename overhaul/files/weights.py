"""Loads the weights in a file into a model: all of them, as many as a teacher's taps need, or nothing."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from overhaul.files.adapted import adapted
from overhaul.files.checkpoints import PLAIN_KEYS, classes_in, examples, lists_in, read_checkpoint, weights_in
from overhaul.files.names import Fit, fits, misfit, rivals
from overhaul.registry import counted, nearest
from overhaul.tasks import student_of

_ANOTHER = (
    'Give the model in the config the architecture, depth, width, size of images and number of classes of the file, or '
    'name the file that belongs to it.')
_AS_LAYERS = (
    'Its weights are in parts, from which pruning, weight norm or a parametrisation makes them. Undo that in the '
    'program that wrote the file, as with torch.nn.utils.prune.remove or '
    'torch.nn.utils.parametrize.remove_parametrizations, and save it again.')
_REPARAMETRISED = re.compile(r'(_orig|_mask|_g|_v|\.parametrizations\.\w+\.original\d*)$')

# mmengine's EMAHook saves the average as state_dict.
_NOTES = {'ema_state_dict': ' (the weights before they were averaged)'}


class Source(NamedTuple):
    """Weights in a file.

    Attributes:
        file: As :func:`read_checkpoint` takes it.
        key: Which set of weights in the file, as ``'state_dict_ema'``. Default: the one that fits best; of equals,
            ``state_dict``, then ``model``, then the top of the file.
        prefix: What all names of the wanted set begin with, as ``'teacher.'``. Default: found from the names.
        argument: The argument of the config that names the file; ``''`` for the command line.
    """

    file: str
    key: str | None = None
    prefix: str | None = None
    argument: str = ''

    @classmethod
    def of(cls, source: str | dict, argument: str = '') -> Source:
        """Return the source that a config gives: a file, or ``dict(file=..., key=..., prefix=...)``.

        Raises:
            ValueError: If it is neither.
        """
        keys, what = cls._fields[:3], argument or 'The checkpoint'
        if isinstance(source, str | Path) and source != '':
            return cls(str(source), argument=argument)
        if not isinstance(source, dict):
            raise ValueError(
                f'{what} is a file, a URL or None, not {source!r}; dict(file=..., key=..., prefix=...) tells which '
                'weights of a file are meant.')
        for key, value in source.items():
            if key not in keys:
                raise ValueError(f'{what} has an unknown key "{key}". Nearest: {nearest(key, keys)}.')
            if value is not None and not isinstance(value, str):
                raise ValueError(f'{what} has {key}={value!r}, where a text is expected.')
        if not source.get('file'):
            raise ValueError(f'{what} names no file. Give it one, as in dict(file="path.pth", key="state_dict").')
        return cls(**source, argument=argument)


class WeightsFile:
    """The sets of weights in a file, to be fitted to a model.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_checkpoint`.
        ValueError: If the file has not the key or the prefix that is asked for; names those that it has.
    """

    def __init__(self, source: Source) -> None:
        self.source, self.prefix = source, ''
        self._found: dict[nn.Module, list[Fit]] = {}
        checkpoint = read_checkpoint(source.file)
        self.sets, self.classes = weights_in(checkpoint), classes_in(checkpoint)
        self._lists = lists_in(checkpoint)
        if source.key is not None:
            if source.key not in self.sets:
                known = ', '.join(f'"{key}"' for key in self.sets)
                raise ValueError(f'"{source.file}" has no weights under the key "{source.key}". It has {known}.')
            self.sets = {source.key: self.sets[source.key]}
        names = [name for weights in self.sets.values() for name in weights]
        if source.prefix:
            self.prefix = f'{source.prefix.removesuffix(".")}.'
            if not any(name.startswith(self.prefix) for name in names):
                begin = nearest(source.prefix, (name.partition('.')[0] for name in names))
                raise ValueError(f'No name in "{source.file}" begins with "{self.prefix}". Nearest: {begin}.')
        empty = [name for weights in self.sets.values() for name, value in weights.items()
                 if isinstance(value, Tensor) and (value.is_meta or value.layout != torch.strided)]
        if empty:
            what = counted(len(empty), 'tensor that has no values (device "meta") or is sparse',
                           'tensors that have no values (device "meta") or are sparse')
            raise ValueError(
                f'The checkpoint "{source.file}" has {what} ({examples(empty)}), and a model takes neither. Nothing '
                'was loaded. Save the weights as they are when the model runs, sparse ones with to_dense().')

    def fit(self, model: nn.Module) -> Fit:
        """Return the best fit to ``model``.

        Raises:
            ValueError: If several fit equally well.
        """
        found = self._fits(model)
        equal = rivals(found)
        if equal:
            raise ValueError(
                f'"{self.source.file}" holds {len(equal)} sets of weights that fit the {type(model).__name__} equally '
                f'well: {"; ".join(_name(fit) for fit in equal)}. Say which is meant: '
                f'{", or ".join(self._choice(fit) for fit in equal)}.')
        return found[0]

    def fits_whole(self, model: nn.Module) -> bool:
        """Return whether a set of weights fits all of ``model``."""
        return self._fits(model)[0].has_all

    def nearest(self, model: nn.Module) -> Fit:
        """Return the best fit to ``model``, the first of several that are as good."""
        return self._fits(model)[0]

    def _fits(self, model: nn.Module) -> list[Fit]:
        """Return how the sets fit ``model``, the best first, and that as the model's own code adapts it."""
        if model not in self._found:
            best, *others = fits(self.sets, model, self.prefix)
            if not best.has_all:
                best = max(best, adapted(model, best), key=lambda fit: (fit.size, -len(fit.unexpected)))
            self._found[model] = [best, *others]
        return self._found[model]

    def check_values(self, fit: Fit) -> None:
        """Refuse weights that are none.

        Raises:
            ValueError: If one is NaN or infinite, or a variance and negative; if one is quantised, an integer, complex
                or of 8 bits, where the model has a real number.
        """
        foreign = [f'{name} {str(value.dtype).removeprefix("torch.")}' for name, value in fit.taken.items()
                   if fit.model[name].is_floating_point() and not (value.is_floating_point() and value.itemsize > 1)]
        if foreign:
            raise ValueError(
                f'The checkpoint "{self.source.file}" has {counted(len(foreign), "tensor")} of no real numbers, as '
                f'those of the model are ({examples(foreign)}): weights that were quantised mean something only with '
                'the scale that belongs to them. Nothing was loaded. Take the file from before the conversion.')
        infinite = [name for name, value in fit.taken.items() if not value.isfinite().all()]
        negative = [name for name, value in fit.taken.items() if name.endswith('running_var') and (value < 0).any()]
        for wrong, what in ((infinite, 'NaN or infinite values'), (negative, 'negative variances')):
            if wrong:
                raise ValueError(
                    f'The checkpoint "{self.source.file}" has {what} in {counted(len(wrong), "tensor")} '
                    f'({examples(wrong)}): the training that it is from went wrong, or the file is damaged. Nothing '
                    'was loaded. Take an earlier one.')

    def refusal(self, model: nn.Module, fit: Fit, hint: str = '', names: Collection[str] | None = None) -> ValueError:
        """Return what to raise where ``fit`` is not enough, in all tensors or in those of ``names``."""
        theirs, ours = ({name: value for name, value in tensors.items() if names is None or name in names}
                        for tensors in (fit.weights, fit.model))
        if any(_REPARAMETRISED.search(name) for name in fit.unexpected):
            hint = _AS_LAYERS
        return ValueError(
            f'The checkpoint "{self.source.file}" does not fit the {type(model).__name__}: {misfit(theirs, ours)}. '
            f'Nothing was loaded. {hint or _ANOTHER}')

    def in_part(self, fit: Fit) -> str:
        """Say how a training begins with what fits of the backbone, if mmengine reads the file."""
        if fit.is_of_another_network or fit.task.trunk != 'backbone' or fit.key not in ('state_dict', ''):
            return ''
        beginning = fit.prefix + 'backbone.' * (not fit.added)
        given = f'checkpoint={self.source.file!r}' + f', prefix={beginning!r}' * bool(beginning)
        return ('To begin with what fits, and train the rest from random weights, give the backbone '
                f"init_cfg=dict(type='Pretrained', {given}) instead.")

    def tell(self, model: nn.Module, fit: Fit, what: str) -> None:
        """Log what was taken, from where, what was not, and what could have been."""
        file = self.source.file
        how = [f'from {_name(fit)}'] if fit.prefix or fit.key not in PLAIN_KEYS else []
        how += [f'with "{fit.added}" put before names that the model lacks'] if fit.added else []
        how += ['with "{}" as "{}"'.format(*fit.renamed)] if fit.renamed else []
        if fit.adapted:
            how.append(f'{len(fit.adapted)} of them adapted to it ({examples(fit.adapted)})')
        _log(', '.join([f'Loaded {counted(len(fit.taken), "tensor")} of {file} into the {what}', *how]) + '.')
        if fit.missing:
            _log(f'{len(fit.missing)} of {counted(len(fit.missing) + fit.size, "tensor")} of the {what} '
                 f'{"is" if len(fit.missing) == 1 else "are"} not in {file}, or of another shape, or of one layer or '
                 f'head with such a tensor, and {"stays" if len(fit.missing) == 1 else "stay"} as initialised: '
                 f'{examples(fit.missing)}.'
                 f'{" No prediction depends on them." * fit.has_all}', logging.WARNING)
        # A student is all of a distillation that is asked for.
        left_out = [name for name in fit.left_out + fit.unexpected + fit.mismatched
                    if fit.prefix != 'student.' or not name.startswith(('connectors.', 'margins.', 'distill_loss.'))]
        if left_out:
            _log(f'Left out {counted(len(left_out), "tensor")} of {file} for which the model has no place: '
                 f'{examples(left_out)}.')
        for other in self._fits(model)[1:]:
            if 2 * other.size > fit.size and not other.is_in(fit):
                note = _NOTES.get(other.key, '')
                lacks = [name for name in other.missing if name in fit.taken]
                _log(f'{file} also holds {_name(other)}{note}. ' + (
                    f'It lacks {len(lacks)} of these tensors ({examples(lacks)}); to take it, save a file with both.'
                    if lacks else f'To take that: {self._choice(other)}.'))
        for key, count in self._lists.items():
            _log(f'{file} also holds a list of {count} tensors, "{key}", which has no names and was left out. To take '
                 'that: copy it into the model in the program that wrote it, and save its state_dict.')

    def _choice(self, fit: Fit) -> str:
        if not self.source.argument:
            return f'save {_name(fit)} alone to a file of its own'
        said = [f'file={self.source.file!r}']
        said += [f'key={fit.key!r}'] if len(self.sets) > 1 else []
        said += [f'prefix={fit.prefix!r}'] if fit.prefix else []
        return f'{self.source.argument}=dict({", ".join(said)})'


def _name(fit: Fit) -> str:
    where = f'"{fit.key}"' if fit.key else 'the top of the file'
    return f'what begins with "{fit.prefix}" in {where}' if fit.prefix else where


def load_weights(model: nn.Module, source: str | dict) -> None:
    """Load the weights in ``source`` into ``model``, each tensor of the same name and shape, or none at all.

    Which tensor is which is recognised from the names in the file, see :func:`fits`. Either may lack what no prediction
    depends on, as auxiliary heads, and tensors of whole numbers, which are counted or computed. Log lines tell what was
    left out, and where several sets of weights would fit, which was taken. The names of the classes in the file become
    the model's ``dataset_meta``.

    Args:
        model: An mmpretrain classifier, an mmseg segmentor, any other model of mmengine, or a distiller, whose student
            is then loaded.
        source: A file as :func:`read_checkpoint` takes it, or a dict as :class:`Source` has it.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_checkpoint`.
        ValueError: If file and model do not fit; names what is missing, unexpected or of another shape. If several sets
            of weights fit equally well. Or if a weight is NaN or infinite. The model is then as it was.
    """
    model = student_of(model)
    file = WeightsFile(Source.of(source))
    fit = file.fit(model)
    if not fit.has_all:
        raise file.refusal(model, fit)
    _load(model, file, fit, type(model).__name__)


def lacking(missing: Sequence[str], what: str) -> ValueError:
    """Return what to raise where tensors are ``missing`` in a teacher's file on which ``what`` of it depends."""
    return ValueError(f'The teacher_checkpoint lacks {counted(len(missing), "tensor")} ({examples(missing)}), on '
                      f'which {what} depends. Nothing can be learnt from random ones. {_ANOTHER}')


def load_teacher(
        model: nn.Module, source: str | dict, tapped: Collection[str] = (), student: nn.Module | None = None,
) -> list[str]:
    """Load the weights in ``source`` into ``model``, a teacher, as far as its features need them.

    The file may lack the head, have one for other classes, or one that the model lacks. Of a head that it does not
    fill, nothing is taken, unless it is tapped. What it has of the backbone must fit.

    Args:
        model, source: As :func:`load_weights` takes them.
        tapped: Paths of the taps behind the backbone, or of parts that may have some.
        student: The model whose file it may be by mistake.

    Returns:
        The tensors that are as they were, by name: where a feature depends on one, the file is of no use.

    Raises:
        FileNotFoundError, ValueError: As :func:`load_weights`.
    """
    file = WeightsFile(Source.of(source, 'teacher_checkpoint'))
    fit = file.fit(model)
    if not fit.taken or any(name in fit.weights for name in fit.astray):
        fits_student = student is not None and file.fits_whole(student)
        raise file.refusal(
            model, fit, 'It fits the student: name it as student_checkpoint.' * fits_student, names=fit.astray)
    fit.leave_heads_that_are_half_there(tapped)
    _load(model, file, fit, 'teacher')
    return fit.missing


def starting_weights(
        model: nn.Module, source: str | dict, argument: str = 'load_from',
        teacher: Callable[[], nn.Module] | None = None) -> dict[str, Tensor]:
    """Return the weights in ``source`` from which a training of ``model`` can start, by the names that it has for them.

    These are those of student and connectors that a distillation of the same kind has saved, or those of the student of
    ``model`` if it is a distiller, or those of the model. All of the backbone must be there. Three kinds of
    tensors may differ, and a warning names those that stay as they were initialised: the head; the convolution that
    takes the image, for other channels; the norm of an output of the backbone that the file does not give. A layer of
    which one of these is a part stays as a whole.

    Args:
        model: A distiller, or any model of mmengine.
        source: As :func:`load_weights` takes it.
        argument: What the config calls ``source``.
        teacher: Makes the model whose file it may be by mistake. Default: the teacher of ``model``, if it has one.

    Raises:
        FileNotFoundError, ValueError: As :func:`load_weights`.
    """
    file = WeightsFile(Source.of(source, argument))
    student = student_of(model)
    distills = student is not model
    part, beginning = type(model).__name__, 'student.' * distills
    if distills or argument == 'student_checkpoint':
        part = 'student'
    whole = distills and file.fits_whole(model)
    if whole:
        student, part, beginning = model, 'student and the connectors', ''
    fit = file.fit(student)
    if whole:  # margins and alpha are those of another teacher, or of other data
        fit.taken = {
            name: value for name, value in fit.taken.items() if name.startswith(('student.', 'connectors.'))}
    if not fit.has_backbone:
        other = teacher() if teacher else model.teacher if distills else None
        fits_teacher = other is not None and file.fits_whole(other)
        raise file.refusal(student, fit, 'It fits the teacher: name it as teacher_checkpoint.' if fits_teacher else
                           f'{_ANOTHER} {file.in_part(fit)}'.rstrip(), fit.astray)
    fit.leave_what_is_half_there({
        name for name, value in student.state_dict(keep_vars=True).items() if isinstance(value, nn.Parameter)})
    file.check_values(fit)
    file.tell(student, fit, part)
    return {beginning + name: value for name, value in fit.taken.items()}


def load_distiller(model: nn.Module, source: str) -> None:
    """Load what a distillation has saved of its distiller ``model``: the student, the connectors, the margins.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_checkpoint`.
        ValueError: If the file is of another distillation, or of a student alone.
    """
    weights, current = _saved_by_a_training(read_checkpoint(source)), model.state_dict()
    differs = misfit(weights, current)
    if differs:
        raise ValueError(
            f'"{source}" is not from the distillation of this config: {differs}. Name an iter_*.pth or epoch_*.pth of '
            'its work directory, which has connectors beside the student.')
    model.load_state_dict({**current, **weights})


def resumed_file(source: str | dict) -> str:
    """Return the file of a training that ``source``, what ``load_from`` says, is to be resumed from.

    Raises:
        ValueError: If it names a part of a file, or as :meth:`Source.of`.
    """
    file, key, prefix, _ = Source.of(source, 'load_from')
    if key is not None or prefix is not None:
        raise ValueError(
            f'load_from names a part of "{file}", and a training is resumed from all that its file holds. Name the '
            'file alone to go on, or set resume=False to start anew from that part.')
    return file


def check_resumable(model: nn.Module, source: str | dict, averages: bool = True) -> None:
    """Refuse a checkpoint that a training of ``model`` cannot be resumed from; mmengine would load what fits of it.

    Args:
        averages: Whether the training has an ``EMAHook``. Such a hook saves the average as the weights, and puts both
            where they belong when it is resumed.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_checkpoint` and :func:`resumed_file`.
        ValueError: If the file has no state of a training, or one of another model; or if its weights are an average,
            and the training has no use for one.
    """
    source = resumed_file(source)
    checkpoint = read_checkpoint(source)
    if not {'meta', 'message_hub', 'optimizer'} <= checkpoint.keys():
        raise ValueError(
            f'"{source}" holds weights and not the state of a training, so there is nothing to resume. Name an '
            'iter_*.pth or epoch_*.pth of a work directory; to start anew from weights: --cfg-options load_from=PATH.')
    differs = misfit(_saved_by_a_training(checkpoint), model.state_dict())
    if differs:
        raise ValueError(
            f'"{source}" is from the training of another model: {differs}. Resume with the config, and with or without '
            '--student-only, as that training was started.')
    if 'ema_state_dict' in checkpoint and not averages:
        raise ValueError(
            f'"{source}" is from a training with an EMAHook, and has the average where weights are looked for. '
            'This config has no such hook, so it would go on from the average. Resume with that hook, or start anew '
            'from the average: --cfg-options load_from=PATH.')


def checksum(model: nn.Module, names: Collection[str] | None = None) -> str:
    """Return a checksum of all bits of the weights and buffers of ``model``, or of those of ``names``."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if names is None or name in names:
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def _log(text: str, level: int = logging.INFO) -> None:
    print_log(text, logger='current', level=level)


def _load(model: nn.Module, file: WeightsFile, fit: Fit, what: str) -> None:
    file.check_values(fit)
    # All that there is fits. Some models, as SwinV2, drop on the way what they compute themselves.
    model.load_state_dict({**fit.model, **fit.taken}, strict=False)
    model.dataset_meta = dict(classes=file.classes)
    file.tell(model, fit, what)


def _saved_by_a_training(checkpoint: dict) -> dict[str, Tensor]:
    return next(iter(weights_in(checkpoint).values()))
