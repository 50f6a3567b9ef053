"""A config of each kind trained as on a GPU, without one: nothing is on the wrong device, and little waits.

The configs that are left out differ from these in their networks alone, and take minutes:
python tests/gpu/simulation.py configs/*.py
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIGS = ['digits_wrn16_2_wrn10_1', 'digitscenes_r34_r18', 'cifar100_wrn28_4_wrn16_2', 'imagenet_r50_mobilenet',
           'voc_r101_r18']


@pytest.fixture(scope='module')
def simulated():
    script, *configs = ROOT / 'tests/gpu/simulation.py', *(ROOT / f'configs/{name}.py' for name in CONFIGS)
    run = subprocess.run([sys.executable, script, *configs], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return {result.pop('config'): result for result in map(json.loads, run.stdout.splitlines())}


@pytest.mark.parametrize('name', CONFIGS)
def test_everything_is_on_the_gpu(simulated, name):
    assert 'failed' not in simulated[name], simulated[name]
    assert simulated[name]['not_on_gpu'] == []


@pytest.mark.parametrize('name', CONFIGS)
def test_of_this_package_only_the_health_of_a_step_waits(simulated, name):
    waits = {what: count for what, count in simulated[name]['waits'].items() if ' in overhaul/' in what}
    assert waits == {'item, bool or float in overhaul/engine/hooks/health.py, after_train_iter': 1}


@pytest.mark.parametrize('name', CONFIGS)
def test_a_batch_goes_to_the_gpu_in_one_copy(simulated, name):
    (copies, ) = [count for what, count in simulated[name]['waits'].items() if what.endswith('cast_data')]
    assert copies == (2 if name.startswith('digit') else 1)  # of two images
