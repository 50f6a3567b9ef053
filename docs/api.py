"""Build the API reference from the docstrings, with pdoc.

    pip install -e '.[docs]'
    python docs/api.py site

It begins at site/index.html.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pdoc

import overhaul


def main() -> None:
    """Build."""
    # pdoc cannot resolve the types of a NamedTuple's constructor, and shows them as they are written.
    warnings.filterwarnings('ignore', 'Error parsing type annotation ForwardRef')
    del overhaul.__all__  # else pdoc shows only the names in it, and none of the modules
    pdoc.render.configure(docformat='google', footer_text=f'Overhaul {overhaul.__version__}')
    pdoc.pdoc('overhaul', output_directory=Path(*sys.argv[1:] or ['site']))


if __name__ == '__main__':
    main()
