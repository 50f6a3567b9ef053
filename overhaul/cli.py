"""The command `overhaul`: finds the module of overhaul/commands that the first word names, and imports no other."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

from overhaul import __version__

COMMANDS = {
    'train': 'train a distillation, its student alone, or a plain model',
    'test': 'test the student of a config, or its teacher',
    'taps': 'list where features can be tapped, and pair two networks',
    'export': 'write a student for its own package, or as an ONNX graph',
    'compare': 'train a student alone and distilled, over several seeds',
    'plot': 'draw how trainings went, and what their features are like',
    'benchmark': 'measure what a distillation costs per training step',
}


def main(command_line: Sequence[str] | None = None) -> None:
    """Run the command that the first word names, and give it the other words."""
    parser = argparse.ArgumentParser(
        prog='overhaul', formatter_class=argparse.RawDescriptionHelpFormatter, usage='overhaul COMMAND ...',
        description='Feature distillation: a small student learns the features of a big teacher.',
        epilog='\n'.join([
            'commands:', *(f'  {name:11}{help}' for name, help in COMMANDS.items()), '',
            'To see it work, with nothing to download:', '  overhaul train overhaul::digits_wrn16_2_wrn10_1.py',
            'What a command takes:', '  overhaul train --help']))
    parser.add_argument('--version', action='version', version=f'overhaul {__version__}')
    parser.add_argument('command', metavar='COMMAND', help='one of those below')
    command_line = (sys.argv[1:] if command_line is None else list(command_line)) or ['--help']
    command = parser.parse_args(command_line[:1]).command
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1, cutoff=0)
        parser.error(f'there is no command "{command}". Nearest: {", ".join(near)}')
    sys.argv[0] = f'overhaul {command}'  # the name of the program in the help and the errors of the command
    import_module(f'overhaul.commands.{command}').main(command_line[1:])
