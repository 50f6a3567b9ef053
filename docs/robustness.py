"""Write docs/robustness.md from docs/results.

    python tests/kills.py --kills 20 --csv docs/results/kills.csv
    python tests/soak.py --minutes 120 --csv docs/results/soak.csv
    python docs/robustness.py --tests

With --tests the tests of the page are run first, for some minutes. Their counts go to docs/results/refusals.csv.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / 'docs/results'
sys.path.insert(0, str(ROOT / 'tests'))

import soak  # noqa: E402
import strangers_files  # noqa: E402

TESTS = ('test_strangers_files.py', 'test_bad_input.py', 'test_faults.py', 'test_properties.py')

PAGE = """# Robustness

This page says what happens to a training that is killed, and to a tool that gets a wrong or hostile file. It is written
by `docs/robustness.py` from [results](results). The machine was two cores of an AMD EPYC, with the versions of
`constraints.txt`.

| what was done | how often | what was lost, or went wrong |
|---|---|---|
{rows}

## Killed trainings

Each kill is a SIGKILL at a random moment; every second one waits until a checkpoint is being written. The training is
resumed with `--resume`, killed again, and finally finishes. Its end is compared with the end of the same training
without a kill: weights, running statistics, connectors, margins, alpha, momentum, schedules, the best result, and the
losses of every step. All must be the same bit by bit. On the CPU they are. On a GPU this holds as far as its operators
are deterministic. A kill costs the time since the last checkpoint.

A checkpoint is written to another name, flushed to disk, and then renamed. Older checkpoints, and `last_checkpoint`,
which names the newest one, are not changed until then. So there is always a checkpoint, also with `max_keep_ckpts=1`.
`--resume` takes the newest one that can be read, and names those that it skips. If the disk is full or the folder
cannot be written to, the training ends with one paragraph, and the files that were there before are not damaged.

## Killed processes

When one of several processes dies, the others end with a message. With gloo they end at once. With NCCL, which has not
been tried, they end after its timeout at the latest. `MAX_RESTARTS=3 tools/dist_train.sh CONFIG 8 --resume` starts all
of them again from the last checkpoint, up to three times. Processes with different configs, weights, teachers or
numbers of images do not begin.

## Files and inputs

A file that is not a valid checkpoint is refused in one paragraph. It runs no code and changes nothing: see
[SECURITY.md](../SECURITY.md). A wrong input ends the tool with one paragraph and a status that is not 0, and no file is
overwritten. The cases are in `tests/test_strangers_files.py` and `tests/test_bad_input.py`.

## Faults that users report

Users of distillation tools report these kinds of faults. The tests that a row names check it.

| kind | cases | what happens now |
|---|---|---|
{reported}

## Memory

The growth above is that of the resident memory, without the first tenth of the steps. mmengine keeps the logged numbers
of each step, 16 bytes per number, and saves them with each checkpoint.

## Reproduce

```bash
python tests/kills.py --kills 20 --csv docs/results/kills.csv
python tests/soak.py --minutes 120 --csv docs/results/soak.csv
python docs/robustness.py --tests                               # the tests of this page, and the page
```
"""


class Count:
    """A plugin of pytest that counts, by file and test, the cases and those that passed."""

    def __init__(self) -> None:
        self.cases, self.passed = Counter(), Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a case when it is through."""
        if report.when == 'call':
            test = Path(report.location[0]).name, report.location[2].partition('[')[0]
            self.cases[test] += 1
            self.passed[test] += report.passed


def run_tests(path: Path) -> None:
    """Run the tests and write a row for each to the CSV."""
    count = Count()
    pytest.main(['-q', '--no-header', *(str(ROOT / 'tests' / name) for name in TESTS)], plugins=[count])
    with path.open('w', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(['file', 'test', 'cases', 'passed'])
        writer.writerows([*test, cases, count.passed[test]] for test, cases in count.cases.items())


def page() -> str:
    """Return the page."""
    rows = [*killed(read('kills.csv')), *refused(read('refusals.csv')), soaked(soak.read(RESULTS / 'soak.csv'))]
    told = [(row['kind'], row['cases'], f'{row["now"]} (`{row["tests"].replace(", ", "`, `")}`)')
            for row in read('reported.csv')]
    return PAGE.format(rows=lines(rows), reported=lines(told))


def lines(rows: Sequence[Sequence[str]]) -> str:
    """Return the lines of a table."""
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def read(name: str) -> list[dict[str, str]]:
    """Return the rows of a CSV."""
    with (RESULTS / name).open() as file:
        return list(csv.DictReader(file))


def killed(kills: list[dict[str, str]]) -> list[tuple[str, str, str]]:
    """Return the rows about killed trainings."""
    rows = []
    for what, training, phase in (
            ('digits distillation killed, a checkpoint at each step', 'digits', 'all'),
            ('Pascal VOC recipe killed while the connectors train alone', 'voc', 'connectors alone'),
            ('Pascal VOC recipe killed afterwards', 'voc', 'all')):
        some = [row for row in kills if (row['training'], row['phase']) == (training, phase)]
        writing = sum(row['half_written'] == 'True' for row in some)
        rows.append((what, f'{len(some)} kills, {writing} of them while a checkpoint was written', wrong({
            'came to another end': sum(row['same_end'] != 'True' for row in some),
            'lost a checkpoint': sum(row['lost'] != 'False' for row in some),
            'left a damaged one': sum(row['damaged'] != '0' for row in some),
            'left a `last_checkpoint` that names none': sum(row['pointed'] != 'True' for row in some)})))
    return rows


def refused(tests: list[dict[str, str]]) -> list[tuple[str, str, str]]:
    """Return the rows about files, inputs, processes and properties."""
    def row(what: str, often: str, file: str, *left_out: str) -> tuple[str, str, str]:
        some = [test for test in tests if test['file'] == file and test['test'] not in left_out]
        cases, passed = (sum(int(test[column]) for test in some) for column in ('cases', 'passed'))
        return what, often.format(cases), wrong({'were not as they should be': cases - passed})

    return [
        row('hostile or damaged file given to a tool', f'{len(strangers_files.WRITERS)} files, {{}} attempts',
            'test_strangers_files.py', 'test_file_as_published_is_read', 'test_file_of_a_training_is_read'),
        row('wrong config, command line or data given to a tool', '{} inputs', 'test_bad_input.py',
            'test_the_right_input_is_not_refused'),
        row('process that dies or differs from the others', '{} cases', 'test_faults.py'),
        row('property of margins, loss, taps and distiller tried on random examples', '{} properties',
            'test_properties.py')]


def wrong(numbers: dict[str, int]) -> str:
    """Return what went wrong and how often, or "nothing"."""
    return ', '.join(f'{number} {what}' for what, number in numbers.items() if number) or 'nothing'


def soaked(looks: list[soak.Look]) -> tuple[str, str, str]:
    """Return the row about the long training."""
    end = soak.growth(looks)
    handles = {end.fewest_handles, end.most_handles}
    return ('digits distillation, validated and saved every 1,000 steps',
            f'{looks[-1].step:,} steps in {looks[-1].seconds / 60:.0f} minutes',
            f'memory {end.mb_per_10000_steps:+.1f} MB per 10,000 steps, of {end.resident_mb:.0f} MB; '
            f'{" to ".join(map(str, sorted(handles)))} open file handles')


def main() -> None:
    """Run the tests if asked to, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tests', action='store_true', help='run the tests first')
    arguments = parser.parse_args()
    if arguments.tests:
        run_tests(RESULTS / 'refusals.csv')
    (ROOT / 'docs/robustness.md').write_text(page())


if __name__ == '__main__':
    main()
