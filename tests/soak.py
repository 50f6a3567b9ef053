"""Trains the digits distillation for very long and watches from outside whether it gathers memory or file handles.

    python tests/soak.py --steps 50000 --csv docs/results/soak.csv

It validates and saves a checkpoint every 1,000 steps. Each row of the CSV is a look at the process, by Linux's /proc.
At the end the script prints by how much the resident memory grew in 10,000 steps, and how many file handles were open,
both without the first tenth of the steps. With --minutes it ends earlier, and tells of the steps it came to.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]
LOOK_EVERY = 250  # steps


class Look(NamedTuple):
    """What the training looked like after so many steps."""

    step: int
    seconds: float
    resident_mb: float
    handles: int


class Growth(NamedTuple):
    """What came of it: growth of the resident memory, what it was at the end, the fewest and most handles."""

    mb_per_10000_steps: float
    resident_mb: float
    fewest_handles: int
    most_handles: int


def watch(work_dir: Path, steps: int, minutes: float) -> Iterator[Look]:
    """Train for ``steps`` steps or ``minutes``, and look at the process whenever it has logged."""
    options = [f'train_cfg.max_iters={steps}', f'param_scheduler.T_max={steps}', 'train_cfg.val_interval=1000',
               'default_hooks.checkpoint.interval=1000', f'default_hooks.logger.interval={LOOK_EVERY}']
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / 'tools/train.py'), str(ROOT / 'configs/digits_wrn16_2_wrn10_1.py'),
         '--work-dir', str(work_dir), '--cfg-options', *options], stdout=subprocess.DEVNULL)
    seen = 0
    while process.poll() is None and time.monotonic() - begin < 60 * minutes:
        time.sleep(0.2)
        step = _last_step(work_dir)
        if step > seen:
            seen = step
            handles = len(os.listdir(f'/proc/{process.pid}/fd'))
            yield Look(step, round(time.monotonic() - begin, 1), round(_resident_mb(process.pid), 2), handles)
    if process.poll() is None:
        process.terminate()
        process.wait()
    elif process.returncode:
        raise RuntimeError(f'The training ended with status {process.returncode}.')


def growth(looks: list[Look]) -> Growth:
    """Return what came of it after the first tenth of the steps, by least squares."""
    settled = [look for look in looks if look.step >= looks[-1].step / 10]
    slope = np.polyfit([look.step for look in settled], [look.resident_mb for look in settled], 1)[0]
    handles = [look.handles for look in settled]
    return Growth(1e4 * slope, looks[-1].resident_mb, min(handles), max(handles))


def read(path: Path) -> list[Look]:
    """Return the looks that were written to a CSV."""
    with path.open() as file:
        return [Look(int(row['step']), float(row['seconds']), float(row['resident_mb']), int(row['handles']))
                for row in csv.DictReader(file)]


def _last_step(work_dir: Path) -> int:
    logs = list(work_dir.glob('*/vis_data/scalars.json'))
    rows = logs[0].read_text().splitlines() if logs else []
    try:
        return max((json.loads(row)['step'] for row in rows[-3:]), default=0)
    except json.JSONDecodeError:  # in the middle of a line
        return 0


def _resident_mb(process: int) -> float:
    pages = int(Path(f'/proc/{process}/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 1e6


def main() -> None:
    """Train, write the CSV as it comes, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=50_000)
    parser.add_argument('--minutes', type=float, default=float('inf'))
    parser.add_argument('--csv', type=Path, default=ROOT / 'docs/results/soak.csv')
    arguments = parser.parse_args()
    looks = []
    with tempfile.TemporaryDirectory() as folder, arguments.csv.open('w', newline='') as file:
        rows = csv.writer(file, lineterminator='\n')
        rows.writerow(Look._fields)
        for look in watch(Path(folder), arguments.steps, arguments.minutes):
            rows.writerow(look)
            file.flush()
            looks.append(look)
    end = growth(looks)
    print(f'{looks[-1].step} steps in {looks[-1].seconds / 60:.0f} minutes: {end.mb_per_10000_steps:+.2f} MB per '
          f'10,000 steps, {end.resident_mb:.0f} MB at the end; {end.fewest_handles} to {end.most_handles} file handles')


if __name__ == '__main__':
    main()
