"""``overhaul::voc_r101_r18.py``: the configs that come with this package, by name, from any folder and repository.

A workaround for mmengine 0.10.7, which has a fixed list of the packages that configs may be taken from, refuses one
that is in no folder, and does not find a package that pip has installed as editable. Not in compat.py, which needs
torch, for it is in place as soon as overhaul is imported.
Delete when mmengine asks the package where its configs are.
"""

from pathlib import Path

from mmengine.config import Config

PREFIX = 'overhaul::'
_PACKAGE = Path(__file__).parent
_mmengine_path = Config._get_cfg_path


def own_config(name: str) -> str:
    """Return the path of ``name``, which begins with ``overhaul::``; whether there is such a file is not looked at."""
    installed = _PACKAGE / '.mim/configs'
    folder = installed if installed.is_dir() else _PACKAGE.parent / 'configs'
    return str(folder / name.removeprefix(PREFIX))


def allow_as_base() -> None:
    """Let any config have ``_base_ = 'overhaul::voc_r101_r18.py'``, as it may have one of mmpretrain or mmseg."""
    Config._get_cfg_path = staticmethod(_base_path)


def _base_path(path: str, filename: str) -> tuple[str, str | None]:
    """Return where a base is, and the scope for its types: ``None`` leaves them to its ``default_scope``."""
    return (own_config(path), None) if path.startswith(PREFIX) else _mmengine_path(path, filename)
