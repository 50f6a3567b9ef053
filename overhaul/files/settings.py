"""Config files, read and checked, with what a command line overrides in them."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import re
import sys
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from types import ModuleType

from mmengine.config import Config, DictAction
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from overhaul import own_configs
from overhaul.registry import how_to_install, nearest, type_name

# What an override may add to a config: what the runner reads of it.
_ABSENT_PARTS = {
    *inspect.signature(Runner.__init__).parameters, 'activation_checkpointing', 'compile', 'custom_imports',
    'efficient_conv_bn_eval', 'find_unused_parameters', 'model_wrapper_cfg', 'sync_bn'} - {'self', 'cfg'}
# What takes the name of a file, or a dict that has one.
_SOURCES = ('load_from', 'teacher_checkpoint', 'student_checkpoint')
# The hooks that mmengine puts into default_hooks by itself, and leaves out where they are None.
_HOOKS_OF_MMENGINE = {'runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint'}
# Numbers that mmengine does not check and fails with later, and the least and greatest of each.
_WHOLE_NUMBERS = {('randomness', 'seed'): (0, 2**32 - 1), ('train_cfg', 'val_interval'): (1, None)}


class Overrides(DictAction):
    """Reads ``KEY=VALUE ...`` of a command line, as mmengine does, and refuses all else."""

    def __call__(
            self, parser: ArgumentParser, namespace: Namespace, values: Sequence[str],
            option_string: str | None = None) -> None:
        """Put them into the namespace as a dict."""
        wrong = [value for value in values if not value.partition('=')[0] or '=' not in value]
        if wrong:
            parser.error(f'{option_string} takes KEY=VALUE, as in randomness.seed=1, not {wrong[0]!r}')
        super().__call__(parser, namespace, values, option_string)


def read_config(path: str | Path, overrides: dict | None = None) -> Config:
    """Read a config file and merge ``overrides``, as ``--cfg-options`` gives them, into it.

    A hook in ``default_hooks`` that is None is switched off, whatever package it is of. A type that is given as a class
    becomes its name, see :func:`type_name`. The ``default_scope`` of a file of a package is that package, if it has
    none.

    Args:
        path: A file, or one that comes with a package: ``'mmpretrain::resnet/resnet50_8xb32_in1k.py'``, or
            ``'overhaul::voc_r101_r18.py'``.
        overrides: Keys with dots, and their values.

    Raises:
        FileNotFoundError: If there is no such file; names the nearest ones of the same folder or package.
        ValueError: If the file does not run or has no model; if an override is of a part that does not exist; if the
            seed or the interval of validation is out of range.
    """
    place = _located(str(path))
    cfg = _read(place)
    if '::' in place:
        cfg.setdefault('default_scope', place.partition('::')[0])
    if 'model' not in cfg:
        raise ValueError(f'The config "{path}" has no model. Name one that trains a model, or give it one.')
    _merge(cfg, overrides or {})
    _check_numbers(cfg)
    _switch_hooks_off(cfg)
    return cfg


def _located(path: str) -> str:
    """Return where the config of that name is; refuse a name that is not of a config."""
    if path.startswith(own_configs.PREFIX):
        path = own_configs.own_config(path)
    if '::' in path:
        _check_packaged(path)
    elif Path(path).suffix in ('.pth', '.pt', '.tar'):
        raise ValueError(f'"{path}" is a checkpoint, and the config comes first.')
    elif Path(path).is_dir():
        files = ', '.join(sorted(file.name for file in Path(path).glob('*.py'))[:5])
        raise ValueError(f'"{path}" is a folder. Name a config' + (f' in it, such as {files}.' if files else '.'))
    elif not Path(path).is_file():
        raise FileNotFoundError(f'There is no config file "{path}". {_nearest_beside(path)}.')
    return path


def _read(path: str) -> Config:
    if '::' not in path and (folder := str(Path(path).resolve().parent)) not in sys.path:
        sys.path.append(folder)  # so that custom_imports finds a module beside the config
    try:
        cfg = get_config(path) if '::' in path else Config.fromfile(path)
        _name_types(cfg)
        # The runner makes a text of its config for each checkpoint and log; to format one takes up to a second.
        object.__setattr__(cfg, '_format_python_code', False)
        return cfg
    except Exception as error:  # a config is a program, and can raise anything
        raise ValueError(f'The config "{path}" cannot be read: {_fault(error)}. Correct it there.') from error


def _merge(cfg: Config, overrides: dict) -> None:
    """Merge what a command line overrides into ``cfg``; refuse parts that neither config nor runner has."""
    for key in overrides:
        part = key.partition('.')[0]
        if part not in cfg and part not in _ABSENT_PARTS:
            inside = [f'{name}.{part}' for name, value in cfg.items() if isinstance(value, dict) and part in value]
            raise ValueError(
                f'--cfg-options sets "{key}", and the config has no "{part}". Nearest: '
                f'{", ".join(inside) or nearest(part, {*cfg, *_ABSENT_PARTS})}.')
    for key in overrides:
        _make_room(cfg, key)
    try:
        cfg.merge_from_dict(overrides)
    except (KeyError, TypeError) as error:
        raise ValueError(f'--cfg-options does not fit the config: {error.args[0]}.') from error


def _make_room(cfg: Config, key: str) -> None:
    """Let ``key``, as ``'load_from.key'``, be set in ``cfg`` where it has None, or the name of a file, before a dot."""
    *parts, _ = key.split('.')
    inside = cfg
    for depth, part in enumerate(parts, 1):
        if not isinstance(inside, dict | Config):
            return  # a list, by numbers
        value = inside.get(part, {})
        if value is None or isinstance(value, str) and part in _SOURCES:
            inside[part] = value = {} if value is None else dict(file=value)
        elif not isinstance(value, dict | list | tuple):
            raise ValueError(
                f'--cfg-options does not fit the config: "{key}" is a part of {".".join(parts[:depth])}, which is '
                f'{value!r} there. Set that itself.')
        inside = inside.get(part, {})


def _check_numbers(cfg: Config) -> None:
    for (part, name), (least, most) in _WHOLE_NUMBERS.items():
        value = (cfg.get(part) or {}).get(name)
        if value is not None and (not isinstance(value, Integral) or value < least or most and value > most):
            limits = f'from {least} to {most}' if most else f'of {least} or more'
            raise ValueError(f'{part}.{name} is {value!r}. Give a whole number {limits}.')


def _switch_hooks_off(cfg: Config) -> None:
    """Take the default hooks out that are None, but for those of mmengine, which it leaves out by itself."""
    hooks = cfg.get('default_hooks') or {}
    for name in [name for name, hook in hooks.items() if hook is None and name not in _HOOKS_OF_MMENGINE]:
        del hooks[name]


def enter_scope(cfg: Config) -> None:
    """Let types without a package be of the ``default_scope`` of ``cfg``, as the runner does it.

    Where that is None, each package looks in itself.
    """
    scope = cfg.get('default_scope', 'mmengine')
    if scope is not None:
        init_default_scope(scope)


def config_name(path: str) -> str:
    """Return the name of a config, without folder, package and ending, after which its work directory is called."""
    return Path(path.rpartition('::')[2]).stem


def _name_types(cfg: Config) -> None:
    """Make a config that has classes in it, as those with ``read_base()`` have, one that has names.

    mmengine can write such a config down only where all classes were imported lazily.
    """
    for name in [name for name, value in dict.items(cfg._cfg_dict)
                 if isinstance(value, type | ModuleType) or inspect.isroutine(value)]:
        cfg.pop(name)  # imported, and no part of a config
    _name_types_in(cfg._cfg_dict)


def _name_types_in(part: object) -> None:
    if isinstance(part, dict):
        for key, value in dict.items(part):
            if isinstance(value, type):
                part[key] = LazyObject(value.__module__, value.__qualname__)
            _name_types_in(value)
        name = type_name(part)
        if name is not None:
            part['type'] = name
    elif isinstance(part, list | tuple):
        for child in part:
            _name_types_in(child)


def _check_packaged(path: str) -> None:
    """Refuse ``'package::file'`` if there is none; mmengine would try to install the package, or name no file."""
    package, _, name = path.partition('::')
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    folder = Path(spec.origin).parent / '.mim/configs' if spec and spec.has_location else None
    if folder is None or not folder.is_dir():
        raise FileNotFoundError(
            f'There is no config "{path}": no package "{package}" with configs is installed here. '
            f'{how_to_install(package) or "Take mmpretrain::, mmseg:: or overhaul::, or the path of a file."}')
    if not (folder / name).is_file():
        known = [file.relative_to(folder).as_posix() for file in folder.rglob('*.py')]
        raise FileNotFoundError(f'{package} has no config "{name}". Nearest: {nearest(name, known)}.')


def _nearest_beside(path: str) -> str:
    base = f'{own_configs.PREFIX}_base_/{path.rpartition("/_base_/")[2]}'
    if '/_base_/' in path and Path(own_configs.own_config(base)).is_file():
        return f'The one of this package is "{base}"'
    stem, folder, where = Path(path).name.removesuffix('.py'), Path(path).parent, 'there'
    if not folder.is_dir():
        folder, where = folder.parent, f'beside "{folder}", which does not exist'
    names = [file.stem for file in folder.glob('*.py')]
    same = [
        file.relative_to(folder).as_posix() for place in ('', '*/') for file in folder.glob(f'{place}{stem}.py')]
    found = ', '.join(same or [f'{name}.py' for name in difflib.get_close_matches(stem, names)])
    return f'Nearest {where}: {found}' if found else 'Nothing near has a name like it'


def _fault(error: Exception) -> str:
    if isinstance(error, SyntaxError) and error.text:
        return f'{error.msg} in line {error.lineno}, "{error.text.strip()}", of it or of a config in its _base_'
    absent = re.match(r'(\w+) is not installed', str(error)) if isinstance(error, ModuleNotFoundError) else None
    if absent:
        return f'its _base_ is of {absent[1]}, which is not installed here. {how_to_install(absent[1])}'.rstrip('. ')
    late = _used_too_early(error)
    missing = re.search(r'["\'](.+\.py)["\']', str(error)) if isinstance(error, FileNotFoundError) else None
    hint = f'. {_nearest_beside(missing[1])}' if missing else ''
    # The frames of a config have this name.
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == '<module>']
    where = f' in line {lines[-1].lineno} of "{lines[-1].filename}"' if lines else ''
    if late:
        return (f"{late} is not there yet{where}: a config with read_base() imports other packages than Python's own "
                'when what it says is built, and can name what is in them, as in dict(type=ResNet, depth=18), but not '
                'call it or compute with it. Write there what would come out, or write the config in the other style, '
                'with _base_')
    return f'{type(error).__name__}{where}, {error}{hint}'


def _used_too_early(error: Exception) -> str:
    """Return the name of what a config with ``read_base()`` calls, or a word for what it computes with; '' if neither.
    """
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if frame.f_code in (LazyObject.__call__.__code__, LazyAttr.__call__.__code__):
        return f'"{frame.f_locals["self"]}"'
    return 'What is imported' if re.search(r"'Lazy(Object|Attr)'", str(error)) else ''
