"""Files that are there whole or not at all."""

import tempfile
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file beside ``path``, in whose folder it is moved once it is whole. Makes that folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.export_', dir=path.parent) as folder:
        draft = Path(folder, path.name)
        write(draft)
        draft.replace(path)
