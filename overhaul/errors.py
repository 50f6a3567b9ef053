"""How the tools report an error that their user can mend."""

import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from overhaul.registry import explain

_PACKAGE = Path(__file__).parent


@contextmanager
def one_paragraph_errors() -> Iterator[None]:
    """End the program with status 1 and one paragraph where the user is at fault; leave every other error as it is.

    That is where this package refuses something, or where a registry cannot build a part of the config.
    """
    try:
        yield
    except Exception as error:
        message = _refusal(error) or explain(error, 'config')
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
