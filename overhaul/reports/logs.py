"""Reads what trainings have logged, and the results that `overhaul compare` writes."""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple


class Log(NamedTuple):
    """What a training has logged.

    Attributes:
        training: By iteration, the losses and what else is logged with them.
        validation: By epoch where the training counts these, else by iteration, the metrics.
        by_epoch: Whether it does.
        teacher: The teacher's results by their units; empty where none is logged.
    """

    training: dict[int, dict[str, float]]
    validation: dict[int, dict[str, float]]
    by_epoch: bool
    teacher: dict[str, float]

    @property
    def task_losses(self) -> dict[int, float]:
        """By iteration, the loss of the student's own task."""
        return {step: row['loss'] - sum(value for name, value in row.items() if name.startswith('distill.'))
                for step, row in self.training.items()}

    @property
    def tap_losses(self) -> dict[str, dict[int, float]]:
        """By the student's tap and iteration, the distillation loss; empty for a student alone."""
        losses = defaultdict(dict)
        for step, row in self.training.items():
            for name, value in row.items():
                if name.startswith('distill.loss_'):
                    losses[name.removeprefix('distill.loss_')][step] = value
        return dict(losses)


def read_log(work_dir: str | Path) -> Log:
    """Read all logs in a work directory. One that was resumed, or started anew, takes the place of what it repeats.

    Raises:
        FileNotFoundError: If there is none.
    """
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    if not files:
        raise FileNotFoundError(
            f'"{work_dir}" has no log of a training (TIME/vis_data/scalars.json). Name the work directory of one: '
            'work_dirs/<config>, or what was given as --work-dir.')
    training, validation, teacher = {}, {}, {}
    for file in files:
        rows = [json.loads(line) for line in file.read_text().splitlines() if line.endswith('}')]  # one may be cut off
        for kept, new in ((training, [row for row in rows if 'loss' in row]),
                          (validation, [row for row in rows if 'loss' not in row])):
            for step in [step for step in kept if new and step >= new[0]['step']]:
                del kept[step]
            kept.update({row['step']: row for row in new})
        for log in file.parents[1].glob('*.log'):
            for line in re.findall(r'Teacher: (-?\d.*)', log.read_text())[:1]:
                teacher = {unit: float(value) for value, _, unit in (part.partition(' ') for part in line.split(', '))}
    for rows in (training, validation):
        for row in rows.values():
            for name in ('step', 'time', 'data_time'):
                row.pop(name, None)
    return Log(training, validation, any('epoch' in row for row in training.values()), teacher)


class Results(NamedTuple):
    """What `overhaul compare` found: what is varied, and by unit, side and value one result per seed."""

    key: str
    units: dict[str, dict[str, dict[str, list[float]]]]


def read_results(path: str | Path) -> Results:
    """Read a CSV that `overhaul compare` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is something else, or has nothing in it.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'There is no file "{path}". `overhaul compare` writes one with --csv "{path}".')
    with open(path, newline='') as file:
        header, *rows = list(csv.reader(file)) or [[]]
    try:
        side, key, seed, *units = header
        results = {unit: defaultdict(lambda: defaultdict(list)) for unit in units}
        for side_of_row, value, _, *numbers in rows:
            for unit, number in zip(units, numbers, strict=True):
                results[unit][side_of_row][value].append(float(number))
        values = {tuple(values) for sides in results.values() for values in sides.values()}
        if (side, seed) != ('side', 'seed') or len(values) != 1:
            raise ValueError
    except ValueError:
        raise ValueError(
            f'"{path}" is no result of `overhaul compare` --csv, which has the columns side, KEY, seed, UNIT, and a '
            'row for each run, of the same values on each side. Write one anew.') from None
    return Results(key, {
        unit: {side: dict(values) for side, values in sides.items()} for unit, sides in results.items()})
