"""Registries of scope ``overhaul``: every component is usable from any OpenMMLab config as ``overhaul.X``."""

import difflib
import importlib.util
import inspect
import re
import textwrap
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType

from mmengine import registry as mmengine_registry
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.dataset import BaseDataset
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import DefaultScope, Registry, build_from_cfg
from mmengine.runner import Runner
from mmengine.utils import get_object_from_string
from torch import nn

import overhaul
from overhaul import compat

# Whatever of overhaul a config names, this module is imported first.
compat.apply()

# mmengine's functions that make something of a part of a config.
_BUILDERS = (build_from_cfg.__code__, Runner.build_dataloader.__code__)
# mmengine's own registries, whose children are those of the packages.
_ROOTS = [value for value in vars(mmengine_registry).values() if isinstance(value, Registry)]
# What is brought by which extra of this package.
_EXTRAS = {'detection': ('mmdet', 'pycocotools')}
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class _Registry(Registry):
    """Imports the file of a class when a config asks for the class, and no other: mmseg alone takes seconds."""

    def get(self, key: str) -> type | None:
        """Return what is registered as ``key``."""
        _import(key.rpartition('.')[2])
        return super().get(key)


def _import(name: str) -> None:
    if name in overhaul.__all__:
        getattr(overhaul, name)


def _child(parent: Registry) -> Registry:
    return _Registry(parent.name, parent=parent, scope='overhaul')


MODELS = _child(mmengine_registry.MODELS)
DATASETS = _child(mmengine_registry.DATASETS)
TRANSFORMS = _child(mmengine_registry.TRANSFORMS)
HOOKS = _child(mmengine_registry.HOOKS)
OPTIM_WRAPPERS = _child(mmengine_registry.OPTIM_WRAPPERS)
METRICS = _child(mmengine_registry.METRICS)
PARAM_SCHEDULERS = _child(mmengine_registry.PARAM_SCHEDULERS)
TASKS = Registry('task', scope='overhaul', locations=['overhaul.tasks'])


def type_name(part: Mapping) -> str | None:
    """Return the type that a part of a config asks for, by the name that it is registered under in its own package.

    A class, and the path of one as ``'mmengine.hooks.CheckpointHook'``, become ``'mmengine.CheckpointHook'``; so do
    those of mmcv, which registers them as mmengine's. One that is not registered in its package becomes its path.
    Other strings stay as they are; what has no type has None.
    """
    asked = part.get('type')
    if isinstance(asked, LazyAttr | LazyObject):
        asked = asked.build()
    found = get_object_from_string(asked) if isinstance(asked, str) and asked.count('.') > 1 else asked
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        return asked if isinstance(asked, str) else None
    package = str(found.__module__).partition('.')[0].replace('mmcv', 'mmengine')
    for root in _ROOTS:
        own = root if package == root.scope else root.children.get(package)
        for name, known in own.module_dict.items() if own else ():
            if known is found:
                return f'{package}.{name}'
    return f'{found.__module__}.{found.__qualname__}'


def short_name(name: str, scope: str) -> str:
    """Return the ``name`` of a type without its package, where that is ``scope`` or ``scope`` finds it in mmengine."""
    package, _, bare = name.rpartition('.')
    if package == 'mmengine':
        other = any(
            root.children[scope].module_dict.get(bare, known) is not known
            for root in _ROOTS if scope in root.children and (known := root.module_dict.get(bare)))
        return name if other else bare
    return bare if package == scope else name


def is_type(part: object, *names: str) -> bool:
    """Return whether a part of a config asks for one of the types ``names``, which have their packages before them.

    What the config gives without a package is taken to be of the one that is asked for.
    """
    name = type_name(part) if isinstance(part, Mapping) else None
    return name is not None and any(name in (known, known.rpartition('.')[2]) for known in names)


def dicts_in(part: object) -> Iterator[dict]:
    """Yield all dicts that a ``part`` of a config is made of, each before those in it."""
    if isinstance(part, dict):
        yield part
        part = list(part.values())
    for child in part if isinstance(part, list | tuple) else ():
        yield from dicts_in(child)


def counted(number: int, one: str, more: str = '') -> str:
    """Return ``number`` with the words for ``one``, or for ``more`` of them (default: with an s), for a message."""
    return f'{number} {one if number == 1 else more or f"{one}s"}'


def nearest(name: str, names: Iterable[str]) -> str:
    """Return up to three of ``names`` that look most like ``name``, for an error message; else the first 20."""
    names = sorted(set(names))
    return ', '.join(difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names[:20])


def how_to_install(package: str) -> str:
    """Say which extra of this package brings another ``package``, for an error message; nothing where none does."""
    return next((f'pip install "overhaul[{extra}]" brings {" and ".join(packages)}, without a compiler.'
                 for extra, packages in _EXTRAS.items() if package in packages), '')


def build(cfg: dict, what: str, scope: str | None = None, **arguments: object) -> nn.Module:
    """Build the model component ``cfg``, with errors made for the person who wrote the config.

    Args:
        cfg: Config dict with ``type``.
        what: What it is in the config, for error messages: ``'student'``, ``'connector'``.
        scope: Registry scope in which a ``type`` without prefix is looked up. Default: that of the config file.
        arguments: Further arguments of the component.

    Raises:
        ValueError: If a type or a key is unknown, with the nearest ones; if a type or a required key is missing.
    """
    if scope is not None:
        cfg = {'_scope_': scope, **cfg}
    try:
        return MODELS.build({**cfg, **arguments})
    except (KeyError, TypeError) as error:
        message = explain(error, what, given=arguments)
        if message is None:
            raise
        raise ValueError(message) from None


def explain(error: Exception, what: str, given: Collection[str] = ()) -> str | None:
    """Return what is wrong in a config that a registry failed to build with ``error``; None if that is not the cause.

    Args:
        error: What was raised, with its traceback.
        what: What was built, for the message.
        given: Arguments that do not come from the config, and are no advice.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return (_explain_build(error, what, frames, given) or _explain_optimizer(what, frames)
            or _explain_data(error, frames) or _explain_values(error, what, frames))


def _explain_build(error: Exception, what: str, frames: list[FrameType], given: Collection[str]) -> str | None:
    # Only the variables of mmengine's function tell which part of the config it was at.
    builds = [frame for frame in frames if frame.f_code is build_from_cfg.__code__]
    if not builds or not isinstance(error, KeyError | TypeError):
        return None
    part, raised_there, message = builds[-1].f_locals, builds[-1] is frames[-1], str(error.args[0])
    if isinstance(error, KeyError):
        if not raised_there:
            return None
        if 'obj_type' in part:
            package = _package_of(part['obj_type'])
            if how_to_install(package) and importlib.util.find_spec(package) is None:
                return (f'The {what} asks for the type "{part["obj_type"]}" of {package}, which is not installed here: '
                        f'{how_to_install(package)}')
            return (f'The {what} asks for the type "{part["obj_type"]}", which no package has registered. '
                    f'{_nearest_types(part["obj_type"], part["registry"])}'
                    'A type of another package is written with its scope, as in "mmpretrain.ResNet".')
        return f'The {what} has a part without a type: {dict(part["cfg"])}. Name one, as in dict(type="...").'
    unknown = re.search(r"unexpected keyword argument '(\w+)'", message)
    if unknown and unknown[1] in part['args']:
        names = _arguments(part['obj_cls']) - set(given)
        advice = f'Nearest: {nearest(unknown[1], names)}.' if names else 'It takes none.'
        return f'The {what} gives {part["obj_cls"].__name__} an unknown key "{unknown[1]}". {advice}'
    missing = re.search(r'missing \d+ required (?:keyword-only|positional) arguments?: (.+)', message)
    if missing and raised_there:
        return f'The {what} gives {part["obj_cls"].__name__} no {missing[1]}, which it cannot do without.'
    return None


def _package_of(asked: str) -> str:
    """Return the package in which a type is looked up, by its name or by the default scope."""
    scope = DefaultScope.get_current_instance()
    return asked.partition('.')[0] if '.' in asked else scope.scope_name if scope else 'mmengine'


def _explain_data(error: Exception, frames: list[FrameType]) -> str | None:
    """Name the file that a dataset cannot read, or of which it keeps nothing."""
    owners = [frame.f_locals.get('self') for frame in frames if frame.f_code.co_name == 'full_init']
    datasets = [owner for owner in owners if isinstance(owner, BaseDataset) and owner.ann_file]
    if not datasets:
        return None
    kind, file = type(datasets[-1]).__name__, datasets[-1].ann_file
    if 'need at least one array to concatenate' in str(error):
        return (f'The {kind} has no image: "{file}" names none, or its filter_cfg keeps none of them, as where no '
                'image has a box of one of the classes. Correct the file, or the classes in the metainfo.')
    return (f'The {kind} cannot read its annotations, "{file}": {type(error).__name__}, '
            f'{textwrap.shorten(str(error), 200).rstrip(".!")}. It has not the format that a {kind} takes, or is not '
            'whole. Correct it, name the file that is meant as ann_file, or take the dataset that reads this format.')


def _explain_optimizer(what: str, frames: list[FrameType]) -> str | None:
    """Name an optimizer that is in no registry, which mmengine goes on to call."""
    for frame in frames:
        if frame.f_code is DefaultOptimWrapperConstructor.__call__.__code__ and 'optimizer_cls' in frame.f_locals:
            name = frame.f_locals['optimizer_cfg'].get('type')
            if frame.f_locals['optimizer_cls'] is None:
                return (f'The {what} asks for the optimizer "{name}", which no package has registered. '
                        f'{_nearest_types(name, mmengine_registry.OPTIMIZERS)}')
    return None


def _explain_values(error: Exception, what: str, frames: list[FrameType]) -> str | None:
    """Pass on what another package has to say of a value when a part of the config is built."""
    message = str(error.args[0]) if error.args else ''
    if not isinstance(error, ValueError | AssertionError | KeyError | TypeError) or ' ' not in message:
        return None
    last = frames[-1].f_code.co_filename
    builds = [frame for frame in frames if frame.f_code in _BUILDERS]
    if builds and not isinstance(error, TypeError):
        cls = builds[-1].f_locals.get('obj_cls')
        part = getattr(cls, '__name__', 'data loader')
    elif last == Runner.__init__.__code__.co_filename:
        part = 'runner of mmengine'
    else:
        return None
    place = f'{Path(last).name}, line {traceback.extract_tb(error.__traceback__)[-1].lineno}'
    return f'The {part} cannot be built as the {what} has it: {textwrap.shorten(message, 300).rstrip(".")} ({place}).'


def _nearest_types(name: str, registry: Registry) -> str:
    root = registry.root
    for own in overhaul.__all__:
        _import(own)
    scoped: dict[str, list[str]] = {}
    for owner in (root, *root.children.values()):
        for known in owner.module_dict:
            scoped.setdefault(known, []).append(f'{owner.scope}.{known}')
    close = difflib.get_close_matches(name.rpartition('.')[2], scoped, n=3, cutoff=0.5)
    return f'Nearest: {", ".join(known for match in close for known in scoped[match])}. ' if close else ''


def _arguments(cls: Callable) -> set[str]:
    """Return the names of what ``cls`` takes, itself or by handing ``**kwargs`` to its bases."""
    names: set[str] = set()
    for owner in inspect.getmro(cls) if inspect.isclass(cls) else [cls]:
        function = vars(owner).get('__init__') if inspect.isclass(owner) else owner
        if function is None or owner is object:
            continue
        parameters = inspect.signature(function).parameters.values()
        names |= {parameter.name for parameter in parameters if parameter.kind in _NAMED}
        if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            break
    return names - {'self'}
