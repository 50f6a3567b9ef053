"""How the tools report an error that their user can mend."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PACKAGE = Path(__file__).parent


@contextmanager
def one_paragraph_errors() -> Iterator[None]:
    """End the program with the message alone when this package refuses something; leave every other error as it is."""
    try:
        yield
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if _PACKAGE not in raised_in.parents:
            raise
        sys.exit(f'error: {error}')
