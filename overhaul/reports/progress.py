"""Progress of long work: a bar on a terminal, nothing in a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from mmengine import dist
from rich.console import Console
from rich.progress import track

Item = TypeVar('Item')


def progress(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield ``items``, and show on a terminal how many are done and how long the others take.

    The bar is gone at the end, and what is printed meanwhile stands above it. Where the output is a file or a pipe, and
    in all processes but the first, nothing is shown.

    Args:
        items: What the work goes over.
        description: What they are, as ``'Runs'``.
        total: How many they are. Default: ``len(items)``.
    """
    console = Console()
    return track(
        items, description, total, console=console, transient=True,
        disable=not (console.is_terminal and dist.is_main_process()))
