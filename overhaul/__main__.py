"""Lets `python -m overhaul` be the command `overhaul`."""

from overhaul.cli import main

if __name__ == '__main__':
    main()
