"""How the tools report an error that their user can mend."""

import errno
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from overhaul.registry import explain

_PACKAGE = Path(__file__).parent
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@contextmanager
def one_paragraph_errors() -> Iterator[None]:
    """End the program with status 1 and one paragraph where the user is at fault; leave every other error as it is.

    That is where this package refuses something, where a registry cannot build a part of the config, or where the
    system lets nothing be written.
    """
    try:
        yield
    except Exception as error:
        message = _refusal(error) or _no_room(error) or explain(error, 'config')
        if message is None:
            raise
        sys.exit('error: ' + re.sub(r'\s*\n\s*', ' ', message.strip()))


def _refusal(error: BaseException | None) -> str | None:
    """Return what this package said when it raised ``error``, or an error that was raised again with more words."""
    while isinstance(error, ValueError | FileNotFoundError | ModuleNotFoundError):
        if _PACKAGE in Path(traceback.extract_tb(error.__traceback__)[-1].filename).parents:
            return str(error)
        original = error.__cause__ or error.__context__
        error = original if type(original) is type(error) and str(original) in str(error) else None
    return None


def _no_room(error: Exception) -> str | None:
    """Return what to do about a full disk or a folder that is not ours."""
    if not isinstance(error, OSError) or error.errno not in _NO_ROOM:
        return None
    where = f' at "{error.filename}"' if error.filename else ''
    return (f'{error.strerror}{where}. Checkpoints are written whole or not at all, so those that are there are sound: '
            'make room, or name a folder that you may write to with --work-dir, and go on with --resume.')
