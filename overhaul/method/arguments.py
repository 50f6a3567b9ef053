"""Arguments of a distiller that are refused before anything is built."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import UnionType

_TAP_KEYS = ('teacher', 'student', 'loss_weight', 'margin_norm')


def check_kind(kind: type | UnionType, what: str, **arguments: object) -> None:
    """Refuse each of the ``arguments`` that is not of this ``kind``, which ``what`` says in words.

    Raises:
        ValueError: Names the first that is not.
    """
    for name, value in arguments.items():
        if not isinstance(value, kind):
            raise ValueError(f'{name} is {what}, not {value!r}.')


def check_batch_norm(teacher_batch_norm: str) -> None:
    """Refuse what is no way to normalise a teacher.

    Raises:
        ValueError: If it is neither ``'batch'`` nor ``'running'``.
    """
    if teacher_batch_norm not in ('batch', 'running'):
        raise ValueError(f'teacher_batch_norm is "batch" or "running", not {teacher_batch_norm!r}.')


def check_size(input_size: tuple[int, int]) -> None:
    """Refuse what is no height and width of an image.

    Raises:
        ValueError: If it is no pair of whole numbers above 0.
    """
    if not (isinstance(input_size, list | tuple) and len(input_size) == 2
            and all(isinstance(length, int) and length > 0 for length in input_size)):
        raise ValueError(f'input_size is the height and width of an image, as in (224, 224), not {input_size!r}.')


def check_taps(taps: Sequence[dict] | str) -> None:
    """Refuse what is neither ``'auto'`` nor a list of taps with the keys and values that a tap can have.

    Raises:
        ValueError: Names the tap and what is wrong with it.
    """
    if taps == 'auto':
        return
    if not taps or not isinstance(taps, list | tuple):
        raise ValueError(
            f'taps is {taps!r}: name at least one pair, dict(teacher="path", student="path"), or take "auto".')
    for tap in taps:
        if not isinstance(tap, dict):
            raise ValueError(f'The tap {tap!r} is no dict. A tap has the keys {", ".join(_TAP_KEYS)}.')
        unknown = [key for key in tap if key not in _TAP_KEYS]
        missing = [key for key in ('teacher', 'student') if key not in tap]
        if unknown or missing:
            raise ValueError(
                f'The tap {dict(tap)} ' + (f'lacks {missing}' if missing else f'has unknown keys {unknown}')
                + f'. A tap has the keys {", ".join(_TAP_KEYS)}, of which the first two are required.')
        for key, value in tap.items():
            if key == 'loss_weight':
                what, fits = 'a number of 0 or more', type(value) in (int, float) and 0 <= value < math.inf
            else:
                what, fits = 'the path of a module', isinstance(value, str) or (key, value) == ('margin_norm', None)
            if not fits:
                raise ValueError(f'The tap {dict(tap)} has {key}={value!r}, where {what} is expected.')
