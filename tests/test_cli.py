"""The command `overhaul`, which tools/ has in a clone."""

import runpy
import subprocess
import sys
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from overhaul import cli

ROOT = Path(__file__).parents[1]


def test_each_command_has_a_module_and_a_tool():
    folder = ROOT / 'overhaul/commands'
    assert {path.stem for path in folder.glob('[!_]*.py')} == cli.COMMANDS.keys()
    tools = {path.stem: path.read_text() for path in (ROOT / 'tools').glob('*.py')}
    for command in cli.COMMANDS:
        assert any(f'from overhaul.commands.{command} import main' in text for text in tools.values()), command
    assert len(tools) == len(cli.COMMANDS)


def test_the_help_fits_a_screen_and_loads_no_torch():
    script = (
        "import sys; from overhaul.cli import main\ntry: main(['--help'])\nexcept SystemExit: "
        "print('torch' in sys.modules)")
    run = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True)
    *shown, torch_is_loaded = run.stdout.splitlines()
    assert torch_is_loaded == 'False', run.stderr
    assert len(shown) <= 24 and max(map(len, shown)) <= 100
    for command, what in cli.COMMANDS.items():
        assert any(line.split(maxsplit=1) == [command, what] for line in shown)


@pytest.mark.parametrize(('words', 'said'), [
    (['trian'], 'there is no command "trian". Nearest: train'),
    (['benchmarks', 'config.py'], 'Nearest: benchmark'),
    (['train'], 'usage: overhaul train '),
])
def test_what_is_wrong_is_said_by_the_command_it_is_meant_for(words, said, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['overhaul', *words])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2 and said in capsys.readouterr().err


def test_what_is_installed_is_that_command(monkeypatch):
    declared = {}
    monkeypatch.setattr('setuptools.setup', lambda **given: declared.update(given))
    runpy.run_path(str(ROOT / 'setup.py'))
    lines = declared['entry_points']['console_scripts']
    entry_points = [EntryPoint(*map(str.strip, line.split('=')), 'console_scripts') for line in lines]
    assert {entry_point.name: entry_point.load() for entry_point in entry_points} == {'overhaul': cli.main}


def test_a_command_gets_the_other_words(monkeypatch):
    got = []
    monkeypatch.setattr(import_module('overhaul.commands.plot'), 'main', got.append)
    monkeypatch.setattr(sys, 'argv', ['overhaul'])
    cli.main(['plot', 'curves', 'work_dirs/one'])
    assert got == [['curves', 'work_dirs/one']]
