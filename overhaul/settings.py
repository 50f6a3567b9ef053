"""Config files, and the variants of one that the tools run."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config, ConfigDict

from overhaul.registry import nearest


def read_config(path: str, overrides: dict | None = None) -> Config:
    """Read a config file and merge ``overrides``, as ``--cfg-options`` gives them, into it.

    Raises:
        FileNotFoundError: If there is no such file; names the nearest ones of the same folder.
    """
    if not Path(path).is_file():
        beside = sorted(file.name for file in Path(path).parent.glob('*.py'))
        hint = f'Nearest there: {nearest(Path(path).name, beside)}.' if beside else 'Its folder has no config either.'
        raise FileNotFoundError(f'There is no config file "{path}". {hint}')
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(overrides or {})
    return cfg


def student_only(cfg: Config) -> ConfigDict:
    """Return the config of the student of a distillation, to be trained or tested without its teacher.

    Raises:
        ValueError: If the config's model is no distillation.
    """
    return _part(cfg, 'student')


def teacher_only(cfg: Config) -> ConfigDict:
    """Return the config of the teacher of a distillation.

    Raises:
        ValueError: If the config's model is no distillation.
    """
    return _part(cfg, 'teacher')


def _part(cfg: Config, name: str) -> ConfigDict:
    if name not in cfg.model:
        raise ValueError(
            f'The model of this config is a {cfg.model.type}, which has no {name}. The option is for configs of an '
            'overhaul.OverhaulDistiller.')
    model = cfg.model[name]
    if 'data_preprocessor' in cfg.model:
        model.setdefault('data_preprocessor', cfg.model.data_preprocessor)
    return model
