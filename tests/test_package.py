"""The package as pip installs it: whole, and of use in an environment that has no clone."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Of this file, what becomes of a clone is not packaged.
CLONE = shutil.ignore_patterns('.*', '__pycache__', '*.egg-info', 'work_dirs', 'build', 'dist', 'data', 'site')


def run(*command, cwd, **environment):
    environment = {**{key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}, **environment}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A copy of the repository, with the wheel and the archive of the source in dist."""
    folder = tmp_path_factory.mktemp('source') / 'clone'
    shutil.copytree(ROOT, folder, ignore=CLONE)
    shutil.copytree(ROOT / 'tests/data', folder / 'tests/data', dirs_exist_ok=True)
    run(sys.executable, 'setup.py', '-q', 'bdist_wheel', 'sdist', cwd=folder)
    return folder


@pytest.fixture(scope='module')
def wheel(source):
    return next((source / 'dist').glob('*.whl'))


@pytest.fixture(scope='module')
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return message_from_bytes(archive.read(next(name for name in archive.namelist() if name.endswith('METADATA'))))


def files(folder, below):
    return {path.relative_to(folder) for path in (folder / below).rglob('*') if path.is_file()}


def test_the_wheel_is_whole(source, wheel):
    extension = files(source, 'configs') | files(source, 'tools') | {Path('model-index.yml'), Path('SECURITY.md')}
    with zipfile.ZipFile(wheel) as archive:
        packed = {Path(name) for name in archive.namelist() if '.dist-info/' not in name}
        assert any(name.endswith('LICENSE') for name in archive.namelist())
    assert packed == files(source, 'overhaul') | {Path('overhaul/.mim') / path for path in extension}
    assert {Path('overhaul/py.typed'), Path('overhaul/weights/digits_wrn16_2.pth')} <= packed


def test_the_archive_of_the_source_is_whole(source):
    with tarfile.open(next((source / 'dist').glob('*.tar.gz'))) as archive:
        packed = {Path(*Path(name).parts[1:]) for name in archive.getnames()}
    expected = {path for path in files(source, '.') if path.parts[0] not in ('build', 'dist', 'overhaul.egg-info')}
    assert expected <= packed


def test_what_an_index_shows_of_it(metadata):
    assert metadata['Author'] == 'The Overhaul authors' and metadata['License'] == 'Apache-2.0'
    assert 'Paper, https://arxiv.org/abs/1904.01866' in metadata.get_all('Project-URL')
    assert 'Programming Language :: Python :: 3.14' in metadata.get_all('Classifier')
    page = metadata.get_payload(decode=True).decode()
    assert '# Overhaul' in page and '[arXiv 1904.01866](https://arxiv.org/abs/1904.01866)' in page
    assert 'more in docs/evidence.md' in page or 'docs/evidence.md' in page
    assert not re.findall(r'\]\((?!https?://|#)[^)]*\)', page)


def test_the_links_of_a_repository_with_an_address(source, tmp_path):
    shutil.copytree(source, tmp_path / 'clone', ignore=shutil.ignore_patterns('build', 'dist', 'tests', '*.egg-info'))
    with open(tmp_path / 'clone/CITATION.cff', 'a') as citation:
        citation.write('repository-code: https://example.org/overhaul\n')
    page = run(sys.executable, 'setup.py', '-q', '--long-description', cwd=tmp_path / 'clone')
    assert '[docs/evidence.md](https://example.org/overhaul/blob/main/docs/evidence.md)' in page
    assert '](https://example.org/overhaul/raw/main/docs/data_flow.svg)' in page


def test_no_part_of_the_stack_is_a_requirement(metadata):
    """Else pip would write one of two packages of the same name over the other."""
    needed = {re.match(r'[\w-]+', line)[0]: line for line in metadata.get_all('Requires-Dist')}
    stack = {name: line for name, line in needed.items() if re.search(r'(^|-)mm', name)}
    assert {'mmengine', 'mmcv-lite', 'mmpretrain', 'mmsegmentation', 'onedl-mmengine', 'onedl-mmcv'} <= stack.keys()
    assert all('extra ==' in line for line in stack.values())


def test_installed_without_a_clone_it_trains_in_an_empty_folder(wheel, tmp_path):
    home = tmp_path / 'environment'
    venv.create(home, symlinks=True)
    (packages, ) = home.glob('lib/python*/site-packages')
    (packages / 'stack.pth').write_text(sysconfig.get_path('purelib'))  # the stack, but nothing that is editable
    python = str(home / 'bin/python')
    run(python, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--ignore-installed', wheel, cwd=tmp_path)
    folder = tmp_path / 'empty'
    folder.mkdir()
    options = ['train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2']
    shown = run(home / 'bin/overhaul', 'train', 'overhaul::digits_wrn16_2_wrn10_1.py', '--cfg-options', *options,
                cwd=folder, PYTHONWARNINGS='ignore')
    assert shown.splitlines()[-1].partition('Student: ')[2].startswith('best ')
    assert (folder / 'work_dirs/digits_wrn16_2_wrn10_1/iter_2.pth').is_file()
    where = run(python, '-c', 'import overhaul; print(overhaul.__file__)', cwd=folder)
    assert Path(where.strip()).is_relative_to(packages)
