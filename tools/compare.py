"""Compare a student alone with the same student distilled, over several seeds.

    python tools/compare.py configs/digits_wrn16_2_wrn10_1.py --seeds 10

Runs tools/train.py with and without --student-only once per seed, and prints the mean of the last validation result,
its 95 % interval and a paired test. The seed sets `randomness.seed`, and the `seed` of the training dataset where its
config has one, so that both sides of a pair see the same labelled images. With --vary all this is done for each value
of one key of the config:

    python tools/compare.py configs/digits_wrn16_2_wrn10_1.py --vary train_dataloader.dataset.labels_per_class 1 2 5 10

A run that is finished in the work directory is not run again, so an interrupted comparison goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmengine.config import Config
from scipy import stats

from overhaul.errors import one_paragraph_errors
from overhaul.hooks.summary import headline, main_metric
from overhaul.settings import read_config

TRAIN = Path(__file__).with_name('train.py')
ALONE, DISTILLED = 'alone', 'distilled'


class Run(NamedTuple):
    """One training: a side of the comparison at a value of the varied key, with a seed."""

    side: str
    value: str
    seed: int


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of a distillation')
    parser.add_argument('--seeds', type=int, default=10, help='number of seeds, from 0 on; default: 10')
    parser.add_argument('--vary', nargs='+', metavar=('KEY', 'VALUE'), default=['', ''],
                        help='a key of the config, and the values to compare at')
    parser.add_argument('--sides', nargs='+', choices=[ALONE, DISTILLED], default=[ALONE, DISTILLED])
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='runs at a time; default: one per core')
    parser.add_argument('--work-dir', help='where the runs go; default: work_dirs/compare/<name of the config>')
    parser.add_argument('--csv', type=Path, metavar='OUT', help='file for one row per run')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='for every run')
    arguments = parser.parse_args()
    if arguments.seeds < 1 or len(arguments.vary) < 2:
        parser.error('give at least one seed, and after --vary a key and at least one value')
    return arguments


def train(run: Run, cfg: Config, arguments: argparse.Namespace) -> dict[str, float]:
    """Train once, unless that is done, and return the metrics of the last validation."""
    key = arguments.vary[0]
    name = f'{key}={run.value}'.replace('/', '_') if key else 'as_configured'
    work_dir = Path(arguments.work_dir or f'work_dirs/compare/{Path(arguments.config).stem}', name,
                    f'{run.side}_seed{run.seed}')
    finished = work_dir / 'finished.json'
    if not finished.exists():
        options = [*arguments.cfg_options, f'randomness.seed={run.seed}']
        if 'seed' in cfg.train_dataloader.dataset:
            options.append(f'train_dataloader.dataset.seed={run.seed}')
        if key:
            options.append(f'{key}={run.value}')
        command = [sys.executable, str(TRAIN), arguments.config, '--work-dir', str(work_dir), '--cfg-options', *options]
        if run.side == ALONE:
            command.append('--student-only')
        threads = str(max(1, (os.cpu_count() or 1) // arguments.jobs))
        result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': threads})
        if result.returncode:
            raise RuntimeError(f'{" ".join(command)} failed:\n{result.stderr[-2000:]}')
        finished.write_text(json.dumps(last_metrics(work_dir)))
    metrics = json.loads(finished.read_text())
    print(f'{name}  {run.side}  seed {run.seed}: {headline(metrics)}', flush=True)
    return metrics


def last_metrics(work_dir: Path) -> dict[str, float]:
    """Return the metrics of the last validation in the newest log of a work directory."""
    log = max(work_dir.glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    metrics = [line for line in lines if 'loss' not in line][-1]
    return {name: value for name, value in metrics.items() if name not in ('time', 'data_time', 'step')}


def table(results: dict[Run, float], values: Sequence[str], sides: Sequence[str]) -> str:
    """Return the mean and 95 % interval of each side at each value, and the paired comparison of the two sides."""
    lines = []
    for value in values:
        sample = {side: np.array([result for run, result in results.items() if run.side == side and run.value == value])
                  for side in sides}
        row = [f'{value:>12}'] if value else []
        for side, numbers in sample.items():
            row.append(f'{side} {numbers.mean():.2f} ± {interval(numbers):.2f} '
                       f'({numbers.min():.2f} to {numbers.max():.2f})')
        if len(sides) == 2:
            alone, distilled = sample[ALONE], sample[DISTILLED]
            row.append(f'ratio {distilled.mean() / alone.mean():.2f}')
            if len(alone) > 1:
                row.append(f'paired t-test p = {stats.ttest_rel(alone, distilled).pvalue:.1g}')
        lines.append('  '.join(row))
    return '\n'.join(lines)


def interval(numbers: np.ndarray) -> float:
    """Return half the width of the 95 % interval of the mean."""
    if len(numbers) < 2:
        return float('nan')
    return stats.t.ppf(0.975, len(numbers) - 1) * numbers.std(ddof=1) / len(numbers)**0.5


def main() -> None:
    """Run everything and print the table."""
    arguments = parse_arguments()
    with one_paragraph_errors():
        cfg = read_config(arguments.config)
    _, *values = arguments.vary
    runs = [Run(side, value, seed) for value in values for seed in range(arguments.seeds) for side in arguments.sides]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        metrics = list(pool.map(lambda run: train(run, cfg, arguments), runs))
    results = {run: main_metric(metrics)[1] for run, metrics in zip(runs, metrics)}
    unit, _ = main_metric(metrics[0])
    print(f'\n{unit} of {arguments.seeds} seeds: mean ± 95 % interval of the mean (least to most)')
    print(table(results, values, arguments.sides))
    if arguments.csv:
        with arguments.csv.open('w', newline='') as file:
            writer = csv.writer(file)
            writer.writerow(['side', arguments.vary[0] or 'value', 'seed', unit])
            writer.writerows([*run, f'{value:.4f}'] for run, value in results.items())


if __name__ == '__main__':
    main()
