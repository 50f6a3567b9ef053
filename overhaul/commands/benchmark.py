"""Measure what a distillation costs per training step, in time and memory.

    OMP_NUM_THREADS=2 overhaul benchmark configs/cifar100_wrn28_4_wrn16_2.py --batch-size 64

On random images in the shapes of the config, without its dataset and its teacher's file. The floor is the teacher's
forward pass plus the training step of the student, with no distillation at all: overhaul/engine/benchmark.py has the
details.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from overhaul.engine import benchmark
from overhaul.errors import one_paragraph_errors
from overhaul.files.settings import Overrides, read_config


def parse_arguments(command_line: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line: that of the process by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of a distillation')
    parser.add_argument('--batch-size', type=int, help='images per step; default: as in the config')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--rounds', type=int, default=30, help='turns of each variant; default: 30')
    parser.add_argument('--modes', nargs='+', default=benchmark.MODES, metavar='MODE',
                        help=f'any of bfloat16, channels_last, compile, joined by +; or eager, none of them. Default: '
                             f'{" ".join(benchmark.MODES)}')
    parser.add_argument('--json', type=Path, metavar='OUT', help='file for all numbers')
    parser.add_argument('--cfg-options', nargs='+', action=Overrides, metavar='KEY=VALUE',
                        help='changes of the config, as model.input_size=(256,256) for other images')
    arguments = parser.parse_args(command_line)
    if arguments.rounds < 1 or (arguments.batch_size is not None and arguments.batch_size < 1):
        parser.error('take at least one round, and at least one image per step')
    return arguments


def main(command_line: Sequence[str] | None = None) -> None:
    """Measure and print."""
    arguments = parse_arguments(command_line)
    with one_paragraph_errors():
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
        cfg = read_config(arguments.config, arguments.cfg_options)
        result = benchmark.measure(
            cfg, arguments.batch_size or cfg.train_dataloader.batch_size, arguments.device, arguments.rounds,
            arguments.modes, progress=lambda line: print(line, file=sys.stderr, flush=True))
    result['setting'] = {'config': Path(arguments.config).name, **result['setting']}
    print(benchmark.table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + '\n')
