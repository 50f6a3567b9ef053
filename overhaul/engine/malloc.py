"""What GNU's C library does with memory that is freed: keep it, which is fast, or give it back, which can be measured.

By itself it decides by size and by what went before. To get memory from the system again is slow, since it comes page
by page and filled with zeros. Other C libraries are left as they are.
"""

import ctypes
import os
import platform

# Options of mallopt, from <malloc.h>.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_VARIABLES = ('MALLOC_TRIM_THRESHOLD_', 'MALLOC_MMAP_THRESHOLD_', 'MALLOC_MMAP_MAX_', 'GLIBC_TUNABLES')


def keep_freed() -> None:
    """Keep memory that the main thread frees for what is allocated next: the program stays as large as it has been.

    For training on a CPU, whose every step allocates maps of the same sizes: see docs/speed.md for what it brings. Does
    nothing where the environment has a variable of the C library on this, as ``MALLOC_TRIM_THRESHOLD_``.
    """
    if not any(name in os.environ for name in _VARIABLES):
        _set({_MMAP_MAX: 0, _TRIM_THRESHOLD: -1})


def give_back_freed() -> None:
    """Give memory that is freed back to the system at once, but for small pieces: resident is what is in use."""
    if _set({_MMAP_MAX: 2**16, _MMAP_THRESHOLD: 2**17, _TRIM_THRESHOLD: 2**17}):
        ctypes.CDLL(None).malloc_trim(0)


def _set(options: dict[int, int]) -> bool:
    known = platform.libc_ver()[0] == 'glibc'
    if known:
        for option, value in options.items():
            ctypes.CDLL(None).mallopt(option, value)
    return known
