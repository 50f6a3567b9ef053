"""Fits the weights in a file to a model, whatever the file calls them: official, torchvision, mmpretrain and mmseg."""

import hashlib
import re
from collections.abc import Callable

import torch
from mmengine.logging import print_log
from torch import nn

from overhaul.files.checkpoints import examples, read_checkpoint, weights_in

# Parts of a distiller's checkpoint that belong to no student.
_DISTILLER_PARTS = ('connectors.', 'margins.', 'distill_loss.')
# What a file may hold more than the model: heads used in training alone, and what frameworks save beside the weights.
_SPARE_PARTS = ('auxiliary_head.', 'data_preprocessor.', 'ema_')

# Applied to each name in this order. A name that is already ours passes through unchanged.
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


def load_weights(model: nn.Module, source: str) -> None:
    """Load the weights in ``source`` into ``model``, each tensor of the same name and shape, or none at all.

    The format is recognised from the names in the file. ``num_batches_tracked`` may be absent. The file may also hold
    auxiliary heads that the model lacks, and what frameworks save beside weights; a log line tells how many.

    Args:
        model: An mmpretrain classifier, an mmseg segmentor, or a distiller, whose student is then loaded.
        source: As :func:`read_checkpoint` takes it.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_checkpoint`.
        ValueError: If file and model do not fit; names what is missing, unexpected or of another shape. Or if a weight
            is NaN or infinite. The model is then as it was.
    """
    model = getattr(model, 'student', model)
    current = model.state_dict()
    weights = to_model_keys(weights_in(read_checkpoint(source)))
    spare = [name for name in weights if name not in current and name.startswith(_SPARE_PARTS)]
    weights = {name: value for name, value in weights.items() if name not in spare}
    misfit = _misfit(weights, current)
    if misfit:
        raise ValueError(
            f'The checkpoint "{source}" does not fit the {type(model).__name__}: {misfit}. Nothing was loaded. Give '
            'the model in the config the architecture, depth, width and number of classes of the file, or name the '
            'file that belongs to it.')
    wrong = [name for name, value in weights.items() if not value.isfinite().all()]
    if wrong:
        raise ValueError(
            f'{len(wrong)} tensors of the checkpoint "{source}" hold NaN or infinite values ({examples(wrong)}): the '
            'training that it is from went wrong, or the file is damaged. Nothing was loaded. Take an earlier one.')
    # All that there is fits. Some models, as SwinV2, drop on the way what they compute themselves.
    model.load_state_dict({**current, **weights}, strict=False)
    print_log(f'Loaded {len(weights)} tensors of {source} into the {type(model).__name__}.', logger='current')
    if spare:
        print_log(
            f'Left out {len(spare)} tensors of {source} for which the model has no place: {examples(spare)}.',
            logger='current')


def load_distiller(model: nn.Module, source: str) -> None:
    """Load what a distillation has saved of its distiller ``model``: the student, the connectors, the margins.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_checkpoint`.
        ValueError: If the file is of another distillation, or of a student alone.
    """
    weights, current = weights_in(read_checkpoint(source)), model.state_dict()
    misfit = _misfit(weights, current)
    if misfit:
        raise ValueError(
            f'"{source}" is not from the distillation of this config: {misfit}. Name an iter_*.pth or epoch_*.pth of '
            'its work directory, which has connectors beside the student.')
    model.load_state_dict({**current, **weights})


def check_resumable(model: nn.Module, source: str) -> None:
    """Refuse a checkpoint that a training of ``model`` cannot be resumed from; mmengine would load what fits of it.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_checkpoint`.
        ValueError: If the file has no state of a training, or one of another model.
    """
    checkpoint = read_checkpoint(source)
    if not {'meta', 'message_hub', 'optimizer'} <= checkpoint.keys():
        raise ValueError(
            f'"{source}" holds weights and not the state of a training, so there is nothing to resume. Name an '
            'iter_*.pth or epoch_*.pth of a work directory; to start anew from weights: --cfg-options load_from=PATH.')
    misfit = _misfit(weights_in(checkpoint), model.state_dict())
    if misfit:
        raise ValueError(
            f'"{source}" is from the training of another model: {misfit}. Resume with the config, and with or without '
            '--student-only, as that training was started.')


def checksum(model: nn.Module) -> str:
    """Return a checksum of all bits of the weights and buffers of ``model``."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def to_model_keys(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the tensors of ``state_dict`` to what mmpretrain and mmseg models call them; values are not touched.

    Takes the names of the official networks (following the official code: WRN, PyramidNet, CIFAR ResNet, MobileNet,
    ResNet, DeepLab with a ResNet), of torchvision classifiers that end in ``fc``, and of mmpretrain and mmseg models,
    all with or without the ``module.`` of DataParallel. Of a distiller's checkpoint it returns the student.

    Raises:
        ValueError: If two tensors would get the same name.
    """
    names = {name: name.removeprefix('module.') for name in state_dict}
    if any(name.startswith('student.') for name in names.values()):
        names = {
            old: new.removeprefix('student.') for old, new in names.items() if not new.startswith(_DISTILLER_PARTS)}
    renamed: dict[str, str] = {}
    for old, new in names.items():
        for pattern, replacement in _RENAMES:
            new = re.sub(pattern, replacement, new)
        if new in renamed:
            raise ValueError(
                f'The checkpoint has both "{renamed[new]}" and "{old}", and either would be "{new}" of the model. '
                'It mixes two naming schemes: save the weights of one model alone.')
        renamed[new] = old
    return {new: state_dict[old] for new, old in renamed.items()}


def _misfit(weights: dict[str, torch.Tensor], current: dict[str, torch.Tensor]) -> str:
    missing = [
        f'{name} {_shape(value)}' for name, value in current.items()
        if name not in weights and not name.endswith('.num_batches_tracked')]
    unexpected = [f'{name} {_shape(value)}' for name, value in weights.items() if name not in current]
    mismatched = [
        f'{name} {_shape(value)} for {_shape(current[name])} in the model' for name, value in weights.items()
        if name in current and _shape(value) != _shape(current[name])]
    groups = [(missing, 'missing'), (unexpected, 'unexpected'), (mismatched, 'of another shape')]
    return '; '.join(f'{len(group)} {kind} ({examples(group)})' for group, kind in groups if group)


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else f'of type {type(value).__name__}'
