"""docs/*.py: what a script makes is what its page has, and what pages name is there."""

import contextlib
import csv
import io
import logging
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_what_holds_a_row_of_what_is_reported_is_there():
    with (ROOT / 'docs/results/reported.csv').open() as file:
        named = [name for row in csv.DictReader(file) for name in row['tests'].split(', ')]
    assert named and all((ROOT / name).is_file() for name in named)


@pytest.mark.parametrize('script, arguments, page', [
    ('alpha.py', ['digits_wrn16_2_wrn10_1'], 'alpha.md'),
    ('backbones.py', ['resnet/resnet18_8xb16_cifar10'], 'backbones.md'),
    ('robustness.py', [], 'robustness.md'),
    ('speed.py', ['arithmetic', 'data'], 'speed.md')])
def test_a_script_makes_the_table_of_its_page(script, arguments, page, monkeypatch):
    published = (ROOT / 'docs' / page).read_text()
    monkeypatch.setattr(sys, 'argv', [str(ROOT / 'docs' / script), *arguments])
    monkeypatch.syspath_prepend(str(ROOT / 'tests'))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(sys.argv[0], run_name='__main__')
    logging.disable(logging.NOTSET)
    assert (ROOT / 'docs' / page).read_text() == published
    rows = [line.split('|')[1] for line in printed.getvalue().splitlines() if line.startswith('|')]
    assert bool(rows) == (script != 'robustness.py') and all(f'|{row}|' in published for row in rows)


def test_the_api_reference_builds_without_a_warning(tmp_path, python):
    pytest.importorskip('pdoc')
    command = [python, '-W', 'error:::pdoc', str(ROOT / 'docs/api.py'), str(tmp_path)]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0 and 'pdoc/' not in process.stderr, process.stderr
    assert (tmp_path / 'index.html').is_file()
    for module in (path.stem for path in (ROOT / 'overhaul').glob('[a-z]*.py')):
        assert (tmp_path / f'overhaul/{module}.html').is_file(), module
    page = (tmp_path / 'overhaul/method/distiller.html').read_text()
    assert 'teacher_checkpoint' in page and ':func:' not in re.sub(r'<pre>.*?</pre>', '', page, flags=re.DOTALL)
