"""How the tools report an error that their user can mend."""

import errno
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine import dist

from overhaul.registry import explain

_PACKAGE = Path(__file__).parent
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@contextmanager
def one_paragraph_errors() -> Iterator[None]:
    """End the program with status 1 and one paragraph where the user is at fault; leave every other error as it is.

    That is where this package refuses something, where a registry cannot build a part of the config, where the system
    lets nothing be written, or where another process of the training is gone.
    """
    try:
        yield
    except Exception as error:
        message = _refusal(error) or _no_room(error) or _lost_process(error) or explain(error, 'config')
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


def _lost_process(error: Exception) -> str | None:
    """Return what to do where a process of a distributed training waited for another one that is gone."""
    lost = re.search('Connection (closed|reset|refused)|Broken pipe|remote process exited|Timed out', str(error))
    if not dist.is_distributed() or not isinstance(error, RuntimeError) or not lost:
        return None
    return (f'Process {dist.get_rank()} of this training has lost another one ({lost[0]}), which died or cannot be '
            'reached; its own output, or that of the system, tells why. Go on with --resume, for which MAX_RESTARTS '
            'lets tools/dist_train.sh start the processes again by itself.')
