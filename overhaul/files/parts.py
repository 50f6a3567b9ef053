"""The models that a config names: the one that it trains, its student, its teacher; and their task."""

from __future__ import annotations

import copy

from mmengine.config import Config, ConfigDict
from torch import nn

from overhaul.files.settings import read_config
from overhaul.registry import build, is_type, type_name
from overhaul.tasks import name_task


def model_of(source: dict | str) -> dict:
    """Return the config of a model: ``source`` itself, or what the config file that it names trains.

    Such a model takes the data preprocessor and the scope of its file along.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_config`.
    """
    return whole_model(read_config(source)) if isinstance(source, str) else source


def whole_model(cfg: Config, part: dict | None = None) -> dict:
    """Return the config of the model that ``cfg`` trains, or of a ``part`` of it, as the runner builds it.

    It has the data preprocessor and the scope that the file gives beside the model. Where the file has
    ``default_scope=None``, as those that name classes, the scope is the package of the model, or of its student.
    """
    model = cfg.model if part is None else part
    student = model.get('student')
    package, dot, name = (type_name(student if isinstance(student, dict) else model) or '').partition('.')
    scope = cfg.get('default_scope') or (package if dot and '.' not in name else 'mmengine')
    return copy.deepcopy(with_preprocessor({'_scope_': scope, **model}, cfg.get('data_preprocessor')))


def plain_model(cfg: Config) -> dict:
    """Return the config of the student of a distillation, or of the plain model that ``cfg`` trains, likewise."""
    return whole_model(cfg, student_only(cfg) if 'student' in cfg.model else None)


def build_plain(cfg: Config) -> nn.Module:
    """Build the model of :func:`plain_model` with random weights, of the task that ``cfg`` names."""
    part = plain_model(cfg)
    without_downloads(part)
    model = build(part, 'student')
    name_task(model, task_name(cfg))
    return model


def task_name(cfg: Config) -> str | None:
    """Return the task that ``cfg`` names: the model of a distillation does, and beside a plain model the config."""
    return cfg.model.get('task') if 'student' in cfg.model else cfg.get('task')


def with_preprocessor(model: dict, data_preprocessor: dict | None) -> dict:
    """Return the config of a model with that ``data_preprocessor`` where it has none of its own."""
    return model if data_preprocessor is None else {'data_preprocessor': dict(data_preprocessor), **model}


def student_only(cfg: Config) -> ConfigDict:
    """Return the config of the student of a distillation, to be trained or tested without its teacher.

    Raises:
        ValueError: If the config's model is no distillation.
    """
    return ConfigDict(with_preprocessor(_part(cfg, 'student'), cfg.model.get('data_preprocessor')))


def teacher_only(cfg: Config) -> ConfigDict:
    """Return the config of the teacher of a distillation. Where it has no data preprocessor, it has the student's.

    Raises:
        ValueError: If the config's model is no distillation.
    """
    return ConfigDict(with_preprocessor(_part(cfg, 'teacher'), student_only(cfg).get('data_preprocessor')))


def _part(cfg: Config, name: str) -> dict:
    if name not in cfg.model:
        raise ValueError(
            f'The model of this config is of type {type_name(cfg.model)}, which has no {name}. This is for '
            'configs of an overhaul.OverhaulDistiller.')
    return model_of(cfg.model[name])


def without_downloads(model: dict | list) -> None:
    """Edit the config of a model so that it begins with random weights and loads none."""
    for key, value in reversed(list(model.items() if isinstance(model, dict) else enumerate(model))):
        if is_type(value, 'mmengine.Pretrained'):
            del model[key]
        elif key == 'pretrained':
            model[key] = False if isinstance(value, bool) else None
        elif isinstance(value, (dict, list)):
            without_downloads(value)
