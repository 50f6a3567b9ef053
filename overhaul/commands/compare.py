"""Compare a student alone with the same student distilled, over several seeds.

    overhaul compare configs/digits_wrn16_2_wrn10_1.py --seeds 10

Runs `overhaul train` with and without --student-only once per seed, and prints the mean of the last validation result,
its 95 % interval and a paired test. The seed sets `randomness.seed`, and the `seed` of the training dataset where its
config has one, so that both sides of a pair see the same labelled images.

With --vary all this is done for each value of one key of the config, with --variant for each set of keys:

    overhaul compare CONFIG --vary train_dataloader.dataset.labels_per_class 1 2 5 10 --csv label_budget.csv
    overhaul compare CONFIG --variant default --variant L2 model.distill_loss.type=L2Loss --sides distilled

One side alone is tested against the first value or variant. A run that is finished in the work directory is not run
again, so an interrupted comparison goes on where it was. `overhaul plot budget` draws what --csv writes.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from itertools import cycle, product
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config

from overhaul.commands import train as training
from overhaul.engine.followed import give_rules, judge_in
from overhaul.errors import one_paragraph_errors
from overhaul.files.parts import build_plain, student_only
from overhaul.files.settings import config_name, read_config
from overhaul.reports.logs import read_log
from overhaul.reports.progress import progress
from overhaul.reports.statistics import interval, paired_test
from overhaul.tasks import task_of
from overhaul.tasks.results import Result

ALONE, DISTILLED = 'alone', 'distilled'
FINISHED = 'finished.json'


class Run(NamedTuple):
    """One training: a side of the comparison in a variant of the config, with a seed."""

    side: str
    variant: str
    seed: int


def parse_arguments(command_line: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line: that of the process by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of a distillation')
    parser.add_argument('--seeds', type=int, default=10, help='number of seeds, from 0 on; default: 10')
    group = parser.add_mutually_exclusive_group()
    group.add_argument('--vary', nargs='+', metavar=('KEY', 'VALUE'),
                       help='a key of the config, and the values to compare at')
    group.add_argument('--variant', nargs='+', action='append', metavar=('NAME', 'KEY=VALUE'),
                       help='a name, and what is other in this variant of the config; can be given several times')
    parser.add_argument('--sides', nargs='+', choices=[ALONE, DISTILLED], default=[ALONE, DISTILLED],
                        help='what is trained; default: both')
    parser.add_argument('--jobs', type=int, default=torch.cuda.device_count() or os.cpu_count(),
                        help='runs at a time, spread over the GPUs; default: one per GPU, or per core without any')
    parser.add_argument('--work-dir', type=Path, help='where the runs go; default: work_dirs/compare/<config>')
    parser.add_argument('--csv', type=Path, metavar='OUT', help='file for one row per run')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='for every run')
    arguments = parser.parse_args(command_line)
    if arguments.seeds < 1 or arguments.jobs < 1 or (arguments.vary and len(arguments.vary) < 2):
        parser.error('give at least one seed and one job, and after --vary a key and at least one value')
    arguments.sides = sorted(set(arguments.sides))  # the ratio is that of distilled to alone
    return arguments


def variants_of(arguments: argparse.Namespace) -> tuple[str, dict[str, list[str]]]:
    """Return what is varied, and for each variant its name and its overrides of the config."""
    if arguments.vary:
        key, *values = arguments.vary
        return key, {value: [f'{key}={value}'] for value in values}
    if arguments.variant:
        return 'variant', {name: overrides for name, *overrides in arguments.variant}
    return 'value', {'': []}


def command_of(run: Run, config: str, work_dir: Path, options: Sequence[str]) -> list[str]:
    """Return the arguments of `overhaul train` that are the run."""
    # mmengine keeps one log per name in a process, and a process does several runs.
    name = re.sub(r'\W', '_', str(work_dir))
    side = ['--student-only'] if run.side == ALONE else []
    return [config, '--work-dir', str(work_dir), *side, '--cfg-options', *options, f'experiment_name={name}']


def finished(work_dir: Path, setting: str) -> dict[str, float] | None:
    """Return the metrics of the run that is finished in ``work_dir``, or None.

    Raises:
        ValueError: If it is a run of another ``setting``.
    """
    file = work_dir / FINISHED
    if not file.exists():
        return None
    found = json.loads(file.read_text())
    if found.get('setting') != setting:
        raise ValueError(
            f'"{work_dir}" is of another config or other options than this comparison, and its result is not taken '
            'for this one. Give the comparison a folder of its own with --work-dir, or remove that one.')
    return found['metrics']


def train(command: list[str], work_dir: Path, setting: str) -> dict[str, float]:
    """Train once and return the metrics of the last validation, which :func:`finished` then finds.

    It is what ``overhaul train COMMAND`` does, without loading Python's packages once more.

    Raises:
        ChildProcessError: If the training does not come to its end, or has no validation.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    with open(work_dir / 'console.txt', 'w') as console, redirect_stdout(console), redirect_stderr(console):
        try:
            training.main(command)
        except (Exception, SystemExit) as error:
            reason = error if isinstance(error, SystemExit) else traceback.format_exc()
            raise ChildProcessError(f'overhaul train {" ".join(command)}\nstopped: {reason}') from None
    results = list(read_log(work_dir).validation.values())
    if not results:
        raise ChildProcessError(
            f'overhaul train {" ".join(command)}\nended without a validation, so there is nothing to compare.')
    (work_dir / FINISHED).write_text(json.dumps(dict(setting=setting, metrics=results[-1])))
    return results[-1]


class OneGPUEach(SpawnContext):
    """Starts processes that see one of the GPUs each, in turn, where there are any.

    What a process sees must be in its environment before it asks torch for GPUs, as mmengine does when it is imported.
    """

    def __init__(self) -> None:
        super().__init__()
        count = torch.cuda.device_count()
        visible = os.environ.get('CUDA_VISIBLE_DEVICES') or ','.join(map(str, range(count)))
        self._gpus = cycle(visible.split(',')[:count])

    def Process(self, *arguments: object, **keywords: object) -> BaseProcess:
        """Return a process, to be started before the next one."""
        gpu = next(self._gpus, None)
        if gpu is not None:
            os.environ['CUDA_VISIBLE_DEVICES'] = gpu
        return super().Process(*arguments, **keywords)


def table(results: Mapping[Run, float], variants: Sequence[str], sides: Sequence[str]) -> str:
    """Return the mean and 95 % interval of each side in each variant, and a paired test.

    Two sides are tested against each other, one side against the same in the first variant.
    """
    def sample(side: str, variant: str) -> list[float]:
        return [result for run, result in results.items() if (run.side, run.variant) == (side, variant)]

    lines = []
    for variant in variants:
        row = [f'{variant:>12}'] if variant else []
        for side in sides:
            numbers = sample(side, variant)
            row.append(f'{side} {np.mean(numbers):.2f}')
            if len(numbers) > 1:
                row[-1] += f' ± {interval(numbers):.2f} ({min(numbers):.2f} to {max(numbers):.2f})'
        pair = [sample(side, variant) for side in sides] if len(sides) == 2 else [
            sample(sides[0], variants[0]), sample(sides[0], variant)]
        if len(sides) == 2 or variant != variants[0]:
            row.append(f'ratio {np.mean(pair[1]) / np.mean(pair[0]):.2f}')
            if len(pair[0]) > 1:
                row.append(f'paired t-test p = {paired_test(*pair):.1g}')
        lines.append('  '.join(row))
    return '\n'.join(lines)


def run_all(
        arguments: argparse.Namespace, cfg: Config, quote: Callable[[dict[str, float]], list[Result]],
) -> tuple[str, dict[str, list[str]], dict[Run, dict[str, float]]]:
    """Run what is not finished; return what is varied, the variants, and the metrics of each run."""
    key, variants = variants_of(arguments)
    folder = arguments.work_dir or Path('work_dirs/compare', config_name(arguments.config))
    data = ['train_dataloader.dataset.seed'] if 'seed' in cfg.train_dataloader.dataset else []
    config = cfg.to_dict()
    commands, metrics = {}, {}
    for variant, seed, side in product(variants, range(arguments.seeds), arguments.sides):
        name = f'{key}={variant}'.replace('/', '_') if variant else 'as_configured'
        run, work_dir = Run(side, variant, seed), folder / name / f'{side}_seed{seed}'
        seeds = [f'{place}={seed}' for place in (*data, 'randomness.seed')]
        options = [*arguments.cfg_options, *variants[variant], *seeds]
        setting = json.dumps([side, options, config], sort_keys=True, default=str)
        setting = hashlib.sha256(setting.encode()).hexdigest()
        commands[run] = command_of(run, arguments.config, work_dir, options), work_dir, setting
        if (result := finished(work_dir, setting)) is not None:
            metrics[run] = result
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // arguments.jobs)))
    with ProcessPoolExecutor(arguments.jobs, OneGPUEach()) as pool:
        runs = {pool.submit(train, *command): run for run, command in commands.items() if run not in metrics}
        try:
            for future in progress(as_completed(runs), 'Runs', len(runs)):
                run = runs[future]
                metrics[run] = future.result()
                told = ', '.join(map(str, quote(metrics[run])))
                print(f'{run.variant}  {run.side}  seed {run.seed}: {told}'.strip(), flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return key, variants, {run: metrics[run] for run in commands}


def quote_of(arguments: argparse.Namespace) -> Callable[[dict[str, float]], list[Result]]:
    """Return what quotes the metrics of a run, by its task and by what config and ``--cfg-options`` say is better.

    Raises:
        ValueError: If they follow a metric of which nobody knows that.
    """
    command = command_of(Run(DISTILLED, '', 0), arguments.config, Path(), arguments.cfg_options)
    cfg = read_config(arguments.config, training.parse_arguments(command).cfg_options)
    give_rules(cfg)
    task = task_of(build_plain(cfg))
    return lambda metrics: judge_in(cfg, metrics, task).quoted(metrics)


def main(command_line: Sequence[str] | None = None) -> None:
    """Run everything and print the table."""
    arguments = parse_arguments(command_line)
    with one_paragraph_errors():
        if arguments.csv:
            arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        try:
            cfg = read_config(arguments.config)
            student_only(cfg)  # refuses what is no distillation
            quote = quote_of(arguments)
            key, variants, metrics = run_all(arguments, cfg, quote)
        except ChildProcessError as error:
            sys.exit(f'error: {error}')
        quotes = {run: quote(values) for run, values in metrics.items()}
        results = {run: {result.unit: result.value for result in some} for run, some in quotes.items()}
        axes = {result.unit: result.axis for some in quotes.values() for result in some}
        units = list(next(iter(results.values())))
        if any(list(values) != units for values in results.values()) or not units:
            raise ValueError(
                'The runs have no result in common, since their evaluator gave other numbers in some, or none. See '
                'their logs in the work directory.')
    for unit in units:
        seeds = '1 seed: 2 give an interval' if arguments.seeds == 1 else (
            f'{arguments.seeds} seeds: mean ± 95 % interval of the mean (least to most)')
        print(f'{axes[unit]}, of {seeds}')
        print(table({run: values[unit] for run, values in results.items()}, list(variants), arguments.sides))
    if arguments.csv:
        with arguments.csv.open('w', newline='') as file:
            writer = csv.writer(file)
            writer.writerow(['side', key, 'seed', *units])
            writer.writerows([*run, *(f'{value:.4f}' for value in values.values())] for run, values in results.items())
