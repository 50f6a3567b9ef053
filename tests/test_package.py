"""The package as pip installs it: whole, and of use without a clone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A copy, built as pip does before it installs; what the copy has not, no installation has."""
    folder = tmp_path_factory.mktemp('source')
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'model-index.yml'):
        shutil.copy(ROOT / name, folder)
    for name in ('overhaul', 'configs', 'tools', 'tests'):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__'))
    result = subprocess.run(
        [sys.executable, 'setup.py', '-q', 'build', '--build-lib', 'built'], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder


def files(folder, below):
    return {path.relative_to(folder) for path in (folder / below).rglob('*') if path.is_file()}


def test_installed_package_is_whole(source):
    packaged = files(source, 'configs') | files(source, 'tools') | {Path('model-index.yml')}
    built = files(source / 'built', '.')
    assert built == files(source, 'overhaul') | {Path('overhaul/.mim') / path for path in packaged}
    assert {Path('overhaul/py.typed'), Path('overhaul/weights/digits_wrn16_2.pth')} <= built


def test_installed_package_trains_in_an_empty_folder(source, tmp_path):
    options = ['train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2']
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', 'overhaul', 'train', 'overhaul::digits_wrn16_2_wrn10_1.py',
         '--cfg-options', *options], cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(source / 'built')},
        capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].partition('Student: ')[2].startswith('best ')
    assert (tmp_path / 'work_dirs/digits_wrn16_2_wrn10_1/iter_2.pth').is_file()
