"""Finds a checkpoint, wherever it is said to be, and reads it without trusting it."""

import difflib
import logging
import os
import re
import resource
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmengine import dist
from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader, get_external_models, get_mmcls_models, get_torchvision_models

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
# Where a file has its weights, if it says nothing of other sets; '' is its top.
PLAIN_KEYS = ('state_dict', 'model', '')

# Under how many keys weights may lie; four are those of an average in the state of a callback.
_DEEPEST = 5
# Averages that mmcv's and LDM's hooks keep among the weights: how their names begin, and what they have for a dot.
_AVERAGES_WITHIN = (('ema_', '_'), ('model_ema.', ''))

_ENDINGS = ('.pth', '.pt', '.bin', '.safetensors')

_OFFICIAL_SITE = 'https://github.com/clovaai/overhaul-distillation'
_OFFICIAL_FILES = {  # how the name of the file begins -> what it is
    'WRN28-4_21.09': 'WRN 28-4 for CIFAR-100',
    'pyramid200_mixup_15.6': 'PyramidNet-200 (240) for CIFAR-100',
    'deeplab-resnet': 'ResNet-101 DeepLabV3+ for Pascal VOC',
}


def read_checkpoint(source: str) -> dict:
    """Return what is in the checkpoint ``source``, as it was saved, with tensors on the CPU.

    The file cannot run code: ``torch.load`` always reads it with ``weights_only=True``, and safetensors hold no code.
    Nor can it fill the memory: a file that needs more than twice its size and a gigabyte to be read is refused, where
    the system can limit memory.

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
        ModuleNotFoundError: If it is of safetensors, and that package is not installed.
    """
    path = _locate(str(source))
    try:
        checkpoint = _load_safely(path, _beginning(path))
    except PermissionError:
        raise ValueError(f'"{path}" may not be read by you. Have its permissions changed, or copy it.') from None
    if not weights_in(checkpoint):
        found = f'a {type(checkpoint).__name__}'
        if isinstance(checkpoint, dict):
            found += f' with the keys {examples(map(str, checkpoint))}' if checkpoint else ' with nothing in it'
        if lists_in(checkpoint):
            found += ', with tensors in a list, where they have no names'
        raise ValueError(
            f'"{path}" holds no weights: a dictionary of tensors is expected at its top, or under a key such as '
            f'"state_dict" or "model", and there is {found}. Save one with '
            'torch.save(dict(state_dict=model.state_dict()), path).')
    return checkpoint


@CheckpointLoader.register_scheme(['', *(f'{scheme}://' for scheme in _SCHEMES)], force=True)
def load_from_overhaul(source: str, map_location: object = None) -> dict:
    """Read a checkpoint for mmengine's ``load_from``, ``resume`` and ``Pretrained``.

    mmengine's own reader leaves it to torch whether a file may run code: before version 2.6 it may, and later where a
    variable of the environment says so.
    """
    return read_checkpoint(source)


def latest_checkpoint(work_dir: str | Path) -> str | None:
    """Return the newest sound checkpoint of a training, ``None`` if it has saved none yet. Warns of damaged ones.

    Raises:
        ValueError: If all are damaged.
    """
    pointer = Path(work_dir, 'last_checkpoint')  # which may be of a moved folder, or behind what was saved last
    folders, kind = {Path(work_dir)}, ''
    if pointer.is_file():
        pointed = Path(pointer.read_text(errors='replace').strip())
        kind = pointed.name.partition('_')[0]  # a number of epochs is another one than that of iterations
        if not Path(work_dir, pointed.name).exists():  # else this is a copy, and where it is from may have gone on
            folders.add(pointed.parent)
    numbers = {path: int(match[1]) for folder in folders for path in folder.glob('*.pth')
               if (match := re.fullmatch(r'(?:iter|epoch)_(\d+)\.pth', path.name))}
    for path in sorted(numbers, key=lambda path: (path.name.startswith(kind), numbers[path]), reverse=True):
        try:
            read_checkpoint(str(path))
            return str(path)
        except ValueError as error:
            print_log(f'Passed over: {error}', 'current', logging.WARNING)
    if numbers:
        what = f'None of the {len(numbers)} checkpoints' if len(numbers) > 1 else 'Not even the one checkpoint'
        raise ValueError(
            f'{what} in "{work_dir}" can be read. To start anew, choose another --work-dir, or clear this one.')
    return None


def weights_in(checkpoint: object) -> dict[str, dict[str, torch.Tensor]]:
    """Return the sets of weights in what :func:`read_checkpoint` reads, by their key; ``''`` is the top of the file.

    The first is the one that is meant where nothing else is said: that of ``state_dict``, of ``model``, of the top. Of
    what lies deeper all keys are named, as in ``'model.state_dict'``. An average that is kept among the weights, under
    names without dots, is a set of its own, called by the beginning of those names.
    """
    sets = {}
    for key, part in _parts(checkpoint):
        if isinstance(part, dict) and any(isinstance(value, torch.Tensor) for value in part.values()):
            sets[key] = {  # an epoch, or the name of the network, may lie beside
                str(name): value for name, value in part.items()
                if isinstance(value, torch.Tensor) or not isinstance(value, dict) and '.' in str(name)}
    ordered = {key: sets.pop(key) for key in PLAIN_KEYS if key in sets} | sets
    for key, weights in list(ordered.items())[:1]:
        for beginning, dot in _AVERAGES_WITHIN:
            average = _average_within(weights, beginning, dot)
            if average:  # of the parameters; the other tensors belong to both
                plain = {name: value for name, value in weights.items() if not name.startswith(beginning)}
                ordered |= {key: plain, beginning: plain | average}
    return ordered


def lists_in(checkpoint: object) -> dict[str, int]:
    """Return how many tensors there are in lists, where nothing tells which is which, by the key of the list."""
    return {key: len(part) for key, part in _parts(checkpoint) if isinstance(part, list | tuple) and len(part) > 1
            and all(isinstance(value, torch.Tensor) and value.is_floating_point() for value in part)}


def _parts(checkpoint: object) -> Iterator[tuple[str, object]]:
    """Yield what lies in ``checkpoint``, itself first, by its keys. Optimizers are passed by: they hold tensors too."""
    parts, seen = [((), checkpoint)], set()
    for keys, part in parts:  # which grow on the way
        yield '.'.join(keys), part
        # A file of a stranger may hold itself.
        if isinstance(part, dict) and id(part) not in seen and len(keys) < _DEEPEST:
            seen.add(id(part))
            parts += [((*keys, name), value) for name, value in part.items()
                      if isinstance(name, str) and not name.startswith('optim')]


def _average_within(weights: dict[str, torch.Tensor], beginning: str, dot: str) -> dict[str, torch.Tensor]:
    found = {}
    for name in weights:
        parts = [] if name.startswith(beginning) else name.split('.')
        for first in range(len(parts)):  # of a part of the model, perhaps
            value = weights.get(beginning + dot.join(parts[first:]))
            if value is not None:
                found[name] = value
                break
    return found


def classes_in(checkpoint: dict) -> tuple[str, ...]:
    """Return the names of the classes that mmengine, or mmcv before it, writes beside weights; empty without any."""
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    data = meta.get('dataset_meta')
    classes = data.get('classes') if isinstance(data, dict) else meta.get('CLASSES')
    return tuple(map(str, classes)) if isinstance(classes, list | tuple) else ()


def examples(names: Iterable[str]) -> str:
    """Return the first few of ``names``, for a message."""
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
    nearest = difflib.get_close_matches(name, _checkpoints_in(folder)) if folder.is_dir() else []
    return f'; in that folder there is {", ".join(nearest)}' if nearest else ''


def _checkpoints_in(folder: Path) -> list[str]:
    kinds = ('*.pt*', '*.bin', '*.safetensors')
    return sorted(file.name for kind in kinds for file in folder.glob(kind) if file.is_file())


def _beginning(path: Path) -> bytes:
    if path.is_dir():
        files = examples(_checkpoints_in(path))
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
    read = _reader_of_safetensors(path) if _is_safetensors(path, head) else _read_torch
    try:
        with _little_memory(2 * path.stat().st_size + 2**30):
            return read(path)
    except Exception as error:
        # A damaged or hostile file can raise anything. Without the cause: torch's text advises to drop the protection.
        raise ValueError(f'"{path}" {_refusal(error, path, head)}') from None


def _read_torch(path: Path) -> object:
    return torch.load(path, map_location='cpu', weights_only=True)


def _reader_of_safetensors(path: Path) -> Callable[[Path], dict[str, torch.Tensor]]:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f'"{path}" is a file of safetensors, and the package that reads those is not installed: '
            'pip install safetensors.') from None
    return load_file


def _is_safetensors(path: Path, head: bytes) -> bool:
    # The length of the header in 8 bytes, then the header, which is JSON.
    return path.suffix == '.safetensors' or head[8:9] == b'{'


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


def _checkpoints_packed_in(path: Path) -> list[str]:
    """Return the names of checkpoints in an archive that is none itself, as sites hand files out."""
    names: list[str] = []
    with suppress(Exception), zipfile.ZipFile(path) as archive:  # of a stranger
        names = archive.namelist()
    with suppress(Exception), tarfile.open(path, 'r:') as archive:  # of a compressed one all would have to be read
        names = archive.getnames()
    return [name for name in names if name.endswith(_ENDINGS)]


def _refusal(error: Exception, path: Path, head: bytes) -> str:
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
    packed = _checkpoints_packed_in(path)
    if packed:
        return f'is an archive with {examples(packed)} in it. Unpack it, and name that file.'
    if head.startswith((b'PK', b'\x80\x02')) or _is_safetensors(path, head):
        return (
            'begins like a checkpoint but cannot be read to its end '
            f'({type(error).__name__}: {text.split(". ")[0] or "it stops too early"}). It was probably cut short while '
            'it was copied or downloaded: delete it and get it again.')
    return (
        'is not a checkpoint: neither torch.save nor safetensors wrote it. Name a file that holds the weights of a '
        'model, most often *.pth, *.pt or *.safetensors.')
