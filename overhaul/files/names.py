"""Finds out which tensor of a file is which of a model, whatever the file calls them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from overhaul.files.checkpoints import PLAIN_KEYS, examples
from overhaul.tasks import Task, is_for_training, student_of, task_of

# What official networks and torchvision call otherwise. Applied in this order; what is ours passes through unchanged.
_RENAMES: list[tuple[str, str | Callable[[re.Match], str]]] = [
    # Official DeepLab
    (r'^aspp\.aspp(\d)\.(atrous_)?', lambda match: f'decode_head.aspp_modules.{int(match[1]) - 1}.'),
    (r'^aspp\.global_avg_pool\.1\.', 'decode_head.image_pool.1.conv.'),
    (r'^aspp\.global_avg_pool\.2\.', 'decode_head.image_pool.1.bn.'),
    (r'^aspp\.(conv|bn)1\.', r'decode_head.bottleneck.\1.'),
    (r'^decoder\.(conv|bn)1\.', r'decode_head.c1_bottleneck.\1.'),
    (r'^decoder\.last_conv\.0\.', 'decode_head.fusion.0.conv.'),
    (r'^decoder\.last_conv\.1\.', 'decode_head.fusion.0.bn.'),
    (r'^decoder\.last_conv\.4\.', 'decode_head.fusion.1.conv.'),
    (r'^decoder\.last_conv\.5\.', 'decode_head.fusion.1.bn.'),
    (r'^decoder\.last_conv\.8\.', 'decode_head.conv_seg.'),
    # Official Wide ResNet
    (r'^(block\d)\.layer\.(\d+)\.', r'\1.\2.'),
    (r'^(block\d\.\d+)\.convShortcut\.', r'\1.shortcut.'),
    # Every official and torchvision classifier
    (r'^fc\.', 'head.fc.'),
    (r'^(?!(backbone|neck|head|decode_head|auxiliary_head|data_preprocessor)\.|ema_)', 'backbone.'),
]
# What a file may hold that the model lacks, which frameworks save beside the weights.
_SPARE = re.compile(r'data_preprocessor\.|ema_|(.+\.)?(mask_token|attn_mask)$')
# What a model may have that the file lacks, since no prediction depends on it.
_UNUSED = re.compile(r'(.+\.)?mask_token$')
# The norm of one output of a backbone. It is there if that output is asked for, and begins as 1 and 0, not at random.
_OUTPUT_NORM = re.compile(r'(backbone\.)?(norm|ln|fc_norm)\d*\.(weight|bias)$')
# What wrappers around a part of a model put into the names of its tensors.
_WRAPPERS = re.compile(r'(?<=\.)(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.')
# Names of a last module that tells classes apart. One that projects for a contrastive loss does not.
_CLASSIFIER = re.compile(
    r'(?!.*(proj|contrast|aux))(.*[._])?'
    r'(fc|cls|class\w*|heads?|linear|dense|logits?|out|output|pred\w*|seg|score|last|final|top)([._]?\d+|_\w+)*$')


@dataclass
class Fit:
    """How a set of weights in a file fits a model.

    Attributes:
        task: That of the model.
        model: The tensors of the model, by name.
        key: Where in the file the set is; ``''`` is the top.
        prefix: What was taken from the beginning of each name.
        added: What was put there instead, if the model has no such name.
        weights: The set, by the names of the model.
        left_out: Names in the file that are not needed.
        renamed: The last module in the file, and its name in the model.
        adapted: Names of tensors that were changed to fit, see :func:`adapted`.
    """

    task: Task
    model: dict[str, Tensor]
    key: str
    prefix: str
    added: str
    weights: dict[str, Tensor]
    left_out: list[str] = field(default_factory=list)
    renamed: tuple[str, str] | None = None
    adapted: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.taken = {
            name: value for name, value in self.weights.items()
            if name in self.model and _shape(value) == _shape(self.model[name])}
        self.missing = [name for name in self.model if name not in self.taken and not _counts(self.model[name])]
        self.unexpected = [name for name in self.weights if name not in self.model]
        self.mismatched = [name for name in self.weights if name in self.model and name not in self.taken]

    @property
    def size(self) -> int:
        """How many tensors fit, without those of whole numbers."""
        return sum(not _counts(self.model[name]) for name in self.taken)

    @property
    def has_all(self) -> bool:
        """Whether file and model have the same tensors. One may lack those that no prediction depends on."""
        return not self.unexpected and all(map(_is_unused, self.missing))

    @property
    def astray(self) -> list[str]:
        """What comes before neck and head and is only in the file, only in the model, or of another shape."""
        return [name for name in (*self.missing, *self.unexpected)
                if self.in_backbone(name) and not _is_unused(name) and not _OUTPUT_NORM.match(name)]

    @property
    def has_backbone(self) -> bool:
        """Whether the file fills all that comes before neck and head, and holds no more of it.

        The convolution that takes the image may be for other channels.
        """
        return any(map(self.in_backbone, self.taken)) and all(map(self._is_for_other_channels, self.astray))

    @property
    def is_of_another_network(self) -> bool:
        """Whether less than half of the backbone is there, or several of its layers have another shape."""
        here, missing = (sum(map(self.in_backbone, names)) for names in (self.taken, self.missing))
        return here < missing or len(self.layers_of_another_shape) > 1

    @property
    def layers_of_another_shape(self) -> list[str]:
        """The layers before neck and head that have another shape in the file, but for other channels of the image."""
        return list(dict.fromkeys(
            name.rpartition('.')[0] for name in self.mismatched
            if self.in_backbone(name) and not self._is_for_other_channels(name)))

    def _is_for_other_channels(self, name: str) -> bool:
        if name not in self.mismatched:
            return False
        theirs, ours = getattr(self.weights[name], 'shape', ()), self.model[name].shape
        return len(ours) > 2 and ours[1] == self.task.channels and (*theirs[:1], *theirs[2:]) == (*ours[:1], *ours[2:])

    @property
    def rank(self) -> tuple[bool, int]:
        """The better fit has the greater rank: it has a backbone, then more tensors of the right name."""
        return (True, self.size) if self.has_backbone else (False, self.size + len(self.mismatched))

    def in_backbone(self, name: str) -> bool:
        """Return whether ``name`` is of what comes before neck and head."""
        return self.task.is_of_trunk(name, self.added)

    def leave_what_is_half_there(self, learnt: Collection[str]) -> None:
        """Take nothing of a layer of which one of the ``learnt`` tensors is missing: half of it means nothing."""
        half = {name.rpartition('.')[0] for name in self.missing if name in learnt and not _is_unused(name)}
        self._leave([name for name in self.taken if name.rpartition('.')[0] in half])

    def leave_heads_that_are_half_there(self, tapped: Collection[str]) -> None:
        """Take nothing of a part behind the backbone of which tensors are missing, if no path of a tap is in it."""
        half = {name.partition('.')[0] for name in self.missing if not self.in_backbone(name) and not _is_unused(name)}
        half -= {path.partition('.')[0] for path in tapped}
        self._leave([name for name in self.taken if not self.in_backbone(name) and name.partition('.')[0] in half])

    def _leave(self, names: Collection[str]) -> None:
        self.taken = {name: value for name, value in self.taken.items() if name not in names}
        self.missing = [name for name in self.model if name not in self.taken and not _counts(self.model[name])]

    def is_in(self, other: Fit) -> bool:
        """Return whether ``other`` gives the model all that this does."""
        return self.taken.keys() <= other.taken.keys() and all(
            value is other.taken[name] or torch.equal(value, other.taken[name]) for name, value in self.taken.items())


def fits(sets: dict[str, dict[str, Tensor]], model: nn.Module, prefix: str = '') -> list[Fit]:
    """Return how ``sets`` of weights, as :func:`weights_in` gives them, fit ``model`` at best; the best fit first.

    A set is all weights under one key, or those of them that share a prefix. Of sets that fit equally well, the first
    one is the default.

    Args:
        prefix: What the prefix of the set that is meant begins with.
    """
    task, current = task_of(model) if student_of(model) is model else Task(model), model.state_dict()
    enough = sum(task.is_of_trunk(name) and not _counts(value) for name, value in current.items()) / 2
    found = []
    for key, weights in sets.items():
        prefixes = _prefixes(weights, enough)
        for beginning in dict.fromkeys([prefix, *(other for other in prefixes if other.startswith(prefix))]):
            inside = _inside(weights, beginning, prefixes)
            outside = [name for name in weights if not name.startswith(beginning)
                       or name.removeprefix(beginning) not in inside]
            candidates = list(_candidates(task, current, key, beginning, inside, outside))
            best = max(candidates, key=lambda fit: (*fit.rank, -len(fit.unexpected)))
            if not any(best.taken and best.is_in(fit) for fit in found):
                found.append(best)
    return sorted(found, key=lambda fit: fit.rank, reverse=True)


def rivals(found: list[Fit]) -> list[Fit]:
    """Return the first of :func:`fits` and those that could be meant just as well; an empty list without any."""
    best = found[0]
    equal = [fit for fit in found[1:] if fit.size == best.size > 0 and (
        best.prefix and fit.prefix if fit.key == best.key else best.key not in PLAIN_KEYS)]
    return [best, *equal] if equal else []


def to_model_keys(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of ``weights`` to what mmpretrain and mmseg models call them; values are not touched.

    Takes the names of the official networks (following the official code: WRN, PyramidNet, CIFAR ResNet, MobileNet,
    ResNet, DeepLab with a ResNet), of torchvision classifiers that end in ``fc``, and of mmpretrain and mmseg models.

    Raises:
        ValueError: If two tensors would get the same name.
    """
    renamed: dict[str, str] = {}
    for old in weights:
        new = old
        for pattern, replacement in _RENAMES:
            new = re.sub(pattern, replacement, new)
        if new in renamed:
            raise ValueError(
                f'The checkpoint has both "{renamed[new]}" and "{old}", and either would be "{new}" of the model. '
                'It mixes two naming schemes: save the weights of one model alone.')
        renamed[new] = old
    return {new: weights[old] for new, old in renamed.items()}


def misfit(weights: dict[str, Tensor], model: dict[str, Tensor]) -> str:
    """Return in what ``weights`` differ from the tensors of a ``model``, in names and shapes; ``''`` if in nothing."""
    missing = [
        f'{name} {_shape(value)}' for name, value in model.items() if name not in weights and not _counts(value)]
    unexpected = [f'{name} {_shape(value)}' for name, value in weights.items() if name not in model]
    mismatched = [
        f'{name} {_shape(value)} for {_shape(model[name])} in the model' for name, value in weights.items()
        if name in model and _shape(value) != _shape(model[name])]
    groups = [(missing, 'missing'), (unexpected, 'unexpected'), (mismatched, 'of another shape')]
    return '; '.join(f'{len(group)} {kind} ({examples(group)})' for group, kind in groups if group)


def _candidates(
        task: Task, model: dict[str, Tensor], key: str, prefix: str, inside: dict[str, Tensor], outside: list[str],
) -> Iterator[Fit]:
    def fit(added: str, renamed: dict[str, Tensor]) -> Fit:
        spare = {name: value for name, value in renamed.items()
                 if name not in model and (_SPARE.match(name) or is_for_training(name) or _counts(value))}
        kept = {name: value for name, value in renamed.items() if name not in spare}
        return _with_the_last_module(Fit(task, model, key, prefix, added, kept, outside + list(spare)))

    bare = {name if name in model else _WRAPPERS.sub('', name): value for name, value in inside.items()}
    if len(bare) == len(inside):  # no two names became one
        inside = bare
    for added in ('', *_additions(inside, model)):
        yield fit(added, {_placed(name, added, inside, model): value for name, value in inside.items()})
    try:
        official = to_model_keys(inside)
    except ValueError:
        return  # no names of one network
    yield fit('backbone.', official)


def _inside(weights: dict[str, Tensor], prefix: str, prefixes: Iterable[str]) -> dict[str, Tensor]:
    """Return what begins with ``prefix``, without that, and without a copy of it all under a further prefix."""
    inside = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    for further in prefixes:
        further = further.removeprefix(prefix) if further.startswith(prefix) else ''
        copy = {further + name for name in inside} & inside.keys() if further else ()
        if 2 * len(copy) > sum(name.startswith(further) for name in inside):
            inside = {name: value for name, value in inside.items() if not name.startswith(further)}
    return inside


def _placed(name: str, added: str, inside: dict[str, Tensor], model: dict[str, Tensor]) -> str:
    return name if name in model or added + name in inside else added + name


def _prefixes(names: Iterable[str], enough: float) -> list[str]:
    """Return '', and the prefixes that at least ``enough`` of ``names`` share."""
    count = Counter('')
    for name in names:
        parts = name.split('.')
        count.update('.'.join(parts[:depth]) + '.' for depth in range(1, len(parts)))
    return ['', *(prefix for prefix, number in count.items() if number >= enough)]


def _additions(weights: dict[str, Tensor], model: dict[str, Tensor]) -> list[str]:
    """Return the prefixes that make most names of the file names of the model, three at most."""
    absent = {name: _shape(value) for name, value in weights.items() if name not in model}
    count = Counter()
    for name, value in model.items():
        parts = name.split('.')
        for depth in range(1, len(parts)):
            if absent.get('.'.join(parts[depth:])) == _shape(value):
                count['.'.join(parts[:depth]) + '.'] += 1
    return [addition for addition, _ in count.most_common(3)]


def _with_the_last_module(fit: Fit) -> Fit:
    """Match a linear layer or a convolution that is left over in the file with one that is left over in the model.

    Every framework has its own name for the last layer. It must be one of those that classifiers have.
    """
    theirs, ours = ({name.rpartition('.')[0] for name in names} for names in (fit.unexpected, fit.missing))
    if len(theirs) != 1 or len(ours) != 1:
        return fit
    (their, ), (our, ) = theirs, ours
    if not _CLASSIFIER.match(their):
        return fit
    renamed = {f'{our}.{name.rpartition(".")[2]}': fit.weights[name] for name in fit.unexpected}
    if {name: _shape(value) for name, value in renamed.items()} != {
            name: _shape(fit.model[name]) for name in fit.missing} or getattr(
                renamed.get(f'{our}.weight'), 'ndim', 0) < 2:
        return fit
    kept = {name: value for name, value in fit.weights.items() if name not in fit.unexpected}
    return Fit(fit.task, fit.model, fit.key, fit.prefix, fit.added, kept | renamed, fit.left_out, (their, our))


def _is_unused(name: str) -> bool:
    return bool(_UNUSED.match(name)) or is_for_training(name)


def _counts(value: object) -> bool:
    """Return whether ``value`` has whole numbers, which are counted or computed, as an index is, and never learnt."""
    return isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f'of type {type(value).__name__}'
