"""Reads the weights of a teacher from any format in use: official, torchvision, mmpretrain and mmseg, and our own."""

import difflib
import hashlib
import logging
import os
import re
import resource
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmengine import dist
from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader, get_external_models, get_mmcls_models, get_torchvision_models
from torch import nn

from overhaul import compat

compat.apply()

_SHIPPED = Path(__file__).parents[1] / 'weights'
_ZOOS = {
    'torchvision': get_torchvision_models,
    'open-mmlab': get_external_models,
    'openmmlab': get_external_models,
    'mmcls': get_mmcls_models,
}
_SCHEMES = ('http', 'https', 'overhaul', *_ZOOS)
_OFFICIAL_SITE = 'https://github.com/clovaai/overhaul-distillation'
_OFFICIAL_FILES = {  # how the name of the file begins -> what it is
    'WRN28-4_21.09': 'WRN 28-4 for CIFAR-100',
    'pyramid200_mixup_15.6': 'PyramidNet-200 (240) for CIFAR-100',
    'deeplab-resnet': 'ResNet-101 DeepLabV3+ for Pascal VOC',
}

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
    weights = to_model_keys(_state_dict(read_checkpoint(source)))
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
            f'{len(wrong)} tensors of the checkpoint "{source}" hold NaN or infinite values ({_examples(wrong)}): the '
            'training that it is from went wrong, or the file is damaged. Nothing was loaded. Take an earlier one.')
    # All that there is fits. Some models, as SwinV2, drop on the way what they compute themselves.
    model.load_state_dict({**current, **weights}, strict=False)
    print_log(f'Loaded {len(weights)} tensors of {source} into the {type(model).__name__}.', logger='current')
    if spare:
        print_log(
            f'Left out {len(spare)} tensors of {source} for which the model has no place: {_examples(spare)}.',
            logger='current')


def load_distiller(model: nn.Module, source: str) -> None:
    """Load what a distillation has saved of its distiller ``model``: the student, the connectors, the margins.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_checkpoint`.
        ValueError: If the file is of another distillation, or of a student alone.
    """
    weights, current = _state_dict(read_checkpoint(source)), model.state_dict()
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
    misfit = _misfit(_state_dict(checkpoint), model.state_dict())
    if misfit:
        raise ValueError(
            f'"{source}" is from the training of another model: {misfit}. Resume with the config, and with or without '
            '--student-only, as that training was started.')


def latest_checkpoint(work_dir: str | Path) -> str | None:
    """Return the newest whole checkpoint of a training, ``None`` if it has saved none yet. Warns of damaged ones.

    Raises:
        ValueError: If all are damaged.
    """
    pointer = Path(work_dir, 'last_checkpoint')  # which may be of a moved folder, or behind what was saved last
    folders = {Path(work_dir)}
    if pointer.is_file():
        folders.add(Path(pointer.read_text(errors='replace').strip()).parent)
    numbers = {path: int(match[1]) for folder in folders for path in folder.glob('*.pth')
               if (match := re.fullmatch(r'(?:iter|epoch)_(\d+)\.pth', path.name))}
    for path in sorted(numbers, key=numbers.get, reverse=True):
        try:
            read_checkpoint(str(path))
            return str(path)
        except ValueError as error:
            print_log(f'Passed over: {error}', 'current', logging.WARNING)
    if numbers:
        raise ValueError(
            f'None of the {len(numbers)} checkpoints in "{work_dir}" can be read. To start anew, choose another '
            '--work-dir, or move them away.')
    return None


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


def read_checkpoint(source: str) -> dict:
    """Return what is in the checkpoint ``source``, as it was saved, with tensors on the CPU.

    The file cannot run code: ``torch.load`` reads it with ``weights_only=True``, always. Nor can it take memory without
    end: what reading it needs beyond twice its size and a gigabyte is refused, where the system has such a limit.

    Args:
        source: A path (``~`` is expanded); ``http(s)://``; ``overhaul://name.pth``, a file that comes with this
            package; ``torchvision://name``, where a plain name stands for the IMAGENET1K_V1 weights (those of the
            paper) and ``name.imagenet1k_v2`` for others; or ``open-mmlab://name`` and ``mmcls://name`` of mmengine.
            Downloads are kept in torch's hub folder, and looked for there first.

    Raises:
        FileNotFoundError: If there is no such file; tells where the official teachers are to be had, and names the
            nearest files. Also if a download fails.
        ValueError: If the name is in no zoo, or the file is no checkpoint: a folder, empty, cut short, a web page,
            more than weights, or without tensors; or if the system does not let it be read.
    """
    path = _locate(str(source))
    try:
        checkpoint = _load_safely(path, _beginning(path))
    except PermissionError:
        raise ValueError(f'"{path}" may not be read by you. Have its permissions changed, or copy it.') from None
    if not _state_dict(checkpoint):
        found = f'a {type(checkpoint).__name__}'
        if isinstance(checkpoint, dict):
            found += f' with the keys {_examples(map(str, checkpoint))}' if checkpoint else ' with nothing in it'
        raise ValueError(
            f'"{path}" holds no weights: a dictionary of tensors is expected at its top, under "state_dict" or under '
            f'"model", and there is {found}. Save one with torch.save(dict(state_dict=model.state_dict()), path).')
    return checkpoint


@CheckpointLoader.register_scheme(['', *(f'{scheme}://' for scheme in _SCHEMES)], force=True)
def load_from_overhaul(source: str, map_location: object = None) -> dict:
    """Read a checkpoint for mmengine, which has its own way for ``load_from``, ``resume`` and ``Pretrained``.

    mmengine leaves it to torch whether a file may run code: before version 2.6 it may, and later where a variable of
    the environment says so.
    """
    return read_checkpoint(source)


def _state_dict(checkpoint: object) -> dict[str, torch.Tensor]:
    if isinstance(checkpoint, dict):
        for weights in (checkpoint.get('state_dict'), checkpoint.get('model'), checkpoint):
            if isinstance(weights, dict) and any(isinstance(value, torch.Tensor) for value in weights.values()):
                return {str(name): value for name, value in weights.items()}
    return {}


def _misfit(weights: dict[str, torch.Tensor], current: dict[str, torch.Tensor]) -> str:
    missing = [
        f'{name} {_shape(value)}' for name, value in current.items()
        if name not in weights and not name.endswith('.num_batches_tracked')]
    unexpected = [f'{name} {_shape(value)}' for name, value in weights.items() if name not in current]
    mismatched = [
        f'{name} {_shape(value)} for {_shape(current[name])} in the model' for name, value in weights.items()
        if name in current and _shape(value) != _shape(current[name])]
    groups = [(missing, 'missing'), (unexpected, 'unexpected'), (mismatched, 'of another shape')]
    return '; '.join(f'{len(group)} {kind} ({_examples(group)})' for group, kind in groups if group)


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else f'of type {type(value).__name__}'


def _examples(names: Iterable[str]) -> str:
    names = list(names)
    return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')


def _locate(source: str) -> Path:
    scheme, separator, name = source.partition('://')
    if not separator:
        return Path(source).expanduser()
    if scheme in ('http', 'https'):
        return _download(source)
    if scheme == 'overhaul':
        if not (_SHIPPED / name).is_file():
            shipped = ', '.join(sorted(file.name for file in _SHIPPED.glob('*.pth')))
            raise FileNotFoundError(f'overhaul comes with no weights "{name}". It has {shipped}.')
        return _SHIPPED / name
    if scheme not in _ZOOS:
        raise ValueError(
            f'"{source}" begins with "{scheme}://", which is not known. Give a path, or begin with one of '
            f'{", ".join(f"{known}://" for known in _SCHEMES)}.')
    zoo = _ZOOS[scheme]()
    # Of a plain torchvision name the original weights, never the newer recipe: those are the teachers of the paper.
    url = zoo.get(f'{name}.imagenet1k_v1', zoo.get(name))
    if url is None:
        nearest = ', '.join(difflib.get_close_matches(name, zoo, cutoff=0))
        raise ValueError(f'{scheme} has no weights called "{name}". Nearest: {nearest}.')
    return _download(url)


def _download(url: str) -> Path:
    path = Path(torch.hub.get_dir(), 'checkpoints', os.path.basename(urlparse(url).path))
    main = dist.is_main_process()
    if not main:
        dist.barrier()  # until the main process is done; then the file is there, or this is another machine
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            print_log(f'Downloading {url} to {path}', logger='current')
            torch.hub.download_url_to_file(url, str(path), _hash(url), progress=main)
    except (OSError, RuntimeError, ValueError) as error:
        raise FileNotFoundError(
            f'Could not download {url} ({type(error).__name__}: {error}). Get it by other means and save it as '
            f'"{path}", where it is found without a connection.') from error
    finally:
        if main:
            dist.barrier()
    return path


def _hash(url: str) -> str | None:
    # torchvision keeps to the rule that the name ends in the file's hash. Elsewhere it is a habit, with exceptions.
    match = re.search(r'-([0-9a-f]{8,})\.', os.path.basename(url))
    return match[1] if match and '//download.pytorch.org/' in url else None


def _missing(path: Path) -> str:
    if path.is_symlink():
        return f'"{path}" is a link to "{os.readlink(path)}", which does not exist. Correct the link, or name the file.'
    for beginning, what in _OFFICIAL_FILES.items():
        if path.name.startswith(beginning):
            return (
                f'"{path}" does not exist. It is the official {what}: the README of {_OFFICIAL_SITE} links it under '
                f'"Teacher models". Download it with a browser and save it as "{path.absolute()}"'
                f'{_nearby(path.name, path.parent)}.')
    if not path.parent.is_dir():
        return f'"{path}" does not exist, and neither does the folder "{path.parent}". Correct the path.'
    return f'"{path}" does not exist. Correct the path{_nearby(path.name, path.parent)}.'


def _nearby(name: str, folder: Path) -> str:
    files = [file.name for file in folder.glob('*.pt*') if file.is_file()] if folder.is_dir() else []
    nearest = difflib.get_close_matches(name, files)
    return f'; in that folder there is {", ".join(nearest)}' if nearest else ''


def _beginning(path: Path) -> bytes:
    if path.is_dir():
        files = _examples(sorted(file.name for file in path.glob('*.pt*')))
        raise ValueError(f'"{path}" is a folder. Name a checkpoint file' + (f', such as {files}.' if files else '.'))
    if not path.exists():
        raise FileNotFoundError(_missing(path))
    if not path.is_file():
        raise ValueError(f'"{path}" is a device or a pipe, not a file. Name a checkpoint file.')
    with path.open('rb') as file:
        return file.read(256)


def _load_safely(path: Path, head: bytes) -> object:
    if not head:
        raise ValueError(f'"{path}" is empty. Get the file again.')
    if head.lstrip().lower().startswith((b'<!doctype', b'<html', b'<?xml')):
        raise ValueError(
            f'"{path}" is a web page, not a checkpoint: the site answered with a page about the file, as file sharing '
            'sites do before a large download. Delete it, and download the file itself with a browser.')
    try:
        with _little_memory(2 * path.stat().st_size + 2**30):
            return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:
        # A damaged or hostile file can raise anything. Without the cause: torch's text advises to drop the protection.
        raise ValueError(f'"{path}" {_refusal(error, head)}') from None


@contextmanager
def _little_memory(more: int) -> Iterator[None]:
    """Let the process have no more than this number of bytes ``more`` than now; without effect outside Linux."""
    statistics = Path('/proc/self/statm')
    if not statistics.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [int(statistics.read_text().split()[0]) * resource.getpagesize() + more, soft, hard]
    resource.setrlimit(resource.RLIMIT_AS, (min(limit for limit in limits if limit >= 0), hard))  # below 0: no limit
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _refusal(error: Exception, head: bytes) -> str:
    text = str(error)
    foreign = re.search(r'GLOBAL (\S+)|(Refused to .+?):|(Trying to call .+|Can only .+|TorchScript archive)', text)
    if foreign:
        return (
            f'holds more than weights ({next(filter(None, foreign.groups()))}), and to read that would run code that '
            'the file names; it was refused and nothing was run. If you trust where it comes from, open it in the '
            'program that wrote it, and save the weights alone: '
            'torch.save(dict(state_dict=model.state_dict()), path).')
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return (
            'asks for far more memory than its size warrants, and was not read: it is damaged, or made to fill up '
            'computers. Delete it, and get it again from where you trust.')
    if head.startswith((b'PK', b'\x80\x02')):
        return (
            'begins like a checkpoint but cannot be read to its end '
            f'({type(error).__name__}: {text.split(". ")[0] or "it stops too early"}). It was probably cut short while '
            'it was copied or downloaded: delete it and get it again.')
    return (
        'is not a checkpoint: torch.save did not write it. Name a file that holds the weights of a model, '
        'most often *.pth or *.pt.')
