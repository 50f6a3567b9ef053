"""``overhaul::name.py``, from a checkout and from an installed wheel."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from mmengine.config import Config

from overhaul.files.settings import read_config

ROOT = Path(__file__).parents[1]
NAME = 'overhaul::voc_r101_r18.py'

# Run where the wheel is unpacked and the checkout is not to be found.
PROCESS = """
import json, sys
checkout = sys.argv[1]
sys.path = [path for path in sys.path if path and path != checkout]
sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in str(finder)]
import overhaul
from mmengine.config import Config
from overhaul.files.settings import read_config
print(json.dumps(dict(
    file=overhaul.__file__, path=read_config('overhaul::voc_r101_r18.py').to_dict(),
    base=Config.fromfile('inherited.py').to_dict())))
"""


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """The wheel as pip builds it, unpacked as pip does."""
    pytest.importorskip('wheel')
    source, target = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('site-packages')
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'model-index.yml', 'CITATION.cff', 'SECURITY.md'):
        shutil.copy(ROOT / name, source)
    for name in ('overhaul', 'configs', 'tools'):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    command = [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--no-index', '-w', '.', '.']
    build = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert build.returncode == 0, build.stdout + build.stderr
    wheel, = source.glob('overhaul-*.whl')
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


@pytest.fixture
def inherited(tmp_path):
    """A config of another project that inherits from one of this package."""
    path = tmp_path / 'inherited.py'
    path.write_text(f'_base_ = {NAME!r}\nmodel = dict(distill_loss=dict(loss_weight=3e-5))\n')
    return path


def check(path, base):
    """What was read by its name and as a base is the file of the checkout, in the base with another alpha."""
    expected = plain(Config.fromfile(ROOT / 'configs/voc_r101_r18.py'))
    assert path == expected
    expected['model']['distill_loss']['loss_weight'] = 3e-5
    assert base == expected


def plain(cfg):
    return json.loads(json.dumps(cfg.to_dict()))


def test_a_config_of_the_checkout_by_name_and_as_a_base(inherited):
    check(plain(read_config(NAME)), plain(read_config(inherited)))


def test_a_config_of_the_wheel_by_name_and_as_a_base(installed, inherited):
    process = subprocess.run(
        [sys.executable, '-c', PROCESS, str(ROOT)], cwd=inherited.parent, capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': str(installed)})
    assert process.returncode == 0, process.stderr
    read = json.loads(process.stdout.splitlines()[-1])
    assert Path(read['file']).is_relative_to(installed)
    check(read['path'], read['base'])


def test_the_wheel_has_what_mim_looks_for(installed):
    for name in ('configs', 'tools', 'model-index.yml'):
        files = [ROOT / name] if (ROOT / name).is_file() else [
            path for path in (ROOT / name).rglob('*') if path.is_file() and '__pycache__' not in path.parts]
        for file in files:
            assert (installed / 'overhaul/.mim' / file.relative_to(ROOT)).read_bytes() == file.read_bytes()


@pytest.mark.parametrize('by', ['name', 'base'])
def test_a_name_that_there_is_not_is_an_error_that_says_so(tmp_path, by):
    wrong = 'overhaul::voc_r101_r19.py'
    (tmp_path / 'inherited.py').write_text(f'_base_ = {wrong!r}\n')
    with pytest.raises((FileNotFoundError, ValueError), match=r'voc_r101_r19\.py') as error:
        read_config(wrong if by == 'name' else tmp_path / 'inherited.py')
    if by == 'name':
        assert 'Nearest there: voc_r101_r18.py' in str(error.value)
