import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_installed_package_is_whole(tmp_path):
    """Builds a copy as pip does before it installs; what the copy has not, no installation has."""
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'model-index.yml'):
        shutil.copy(ROOT / name, tmp_path)
    for name in ('overhaul', 'configs', 'tools', 'tests'):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns('__pycache__'))
    source = {path.relative_to(tmp_path) for path in (tmp_path / 'overhaul').rglob('*') if path.is_file()}
    packaged = [path for name in ('configs', 'tools') for path in (tmp_path / name).rglob('*') if path.is_file()]
    packaged.append(tmp_path / 'model-index.yml')
    source |= {Path('overhaul/.mim') / path.relative_to(tmp_path) for path in packaged}

    result = subprocess.run(
        [sys.executable, 'setup.py', '-q', 'build', '--build-lib', 'built'], cwd=tmp_path, capture_output=True,
        text=True)
    assert result.returncode == 0, result.stderr
    built = {path.relative_to(tmp_path / 'built') for path in (tmp_path / 'built').rglob('*') if path.is_file()}
    assert built == source
    assert {Path('overhaul/py.typed'), Path('overhaul/weights/digits_wrn16_2.pth')} <= built
