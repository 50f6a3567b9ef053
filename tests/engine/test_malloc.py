"""Freed memory is kept, or given back, as a program sees it that does one of the two."""

import os
import platform
import subprocess
import sys

import pytest
from test_tools import CONFIG, run_in_process

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='is about the C library of GNU')

# Allocates maps of 64 MiB, which the library maps by themselves, and of 4 MiB, and frees them.
PROGRAM = """
import numpy as np
from overhaul.engine import malloc
resident = lambda: int(open('/proc/self/statm').read().split()[1])
{call}
before = resident()
maps = [np.ones(2**size, np.float32) for size in [24] + 16 * [20]]
during = resident()
del maps
print((resident() - before) / (during - before))
"""


def share_kept(call, **environment):
    """Which share of the memory of the maps stays resident when they are freed."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(('MALLOC_', 'GLIBC_'))}
    process = subprocess.run([sys.executable, '-c', PROGRAM.format(call=call)], check=True, text=True,
                             capture_output=True, env={**inherited, **environment})
    return float(process.stdout)


@pytest.mark.parametrize('calls, environment, least, most', [
    (['keep_freed'], {}, 0.95, 1.05),
    (['give_back_freed'], {}, -0.05, 0.05),
    (['keep_freed', 'give_back_freed'], {}, -0.05, 0.05),
    (['keep_freed'], {'MALLOC_TRIM_THRESHOLD_': '131072'}, -0.05, 0.05)])
def test_what_is_freed(calls, environment, least, most):
    assert least < share_kept('; '.join(f'malloc.{call}()' for call in calls), **environment) < most


def test_a_training_on_a_cpu_keeps_it(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr('overhaul.engine.malloc.keep_freed', lambda: calls.append(True))
    for gpu in (False, True):
        monkeypatch.setattr('overhaul.commands.train.is_cuda_available', lambda gpu=gpu: gpu)
        with pytest.raises(SystemExit, match='does not exist'):  # it goes on to the weights, which are not there
            run_in_process(tmp_path, 'train.py', CONFIG, options=['model.teacher_checkpoint=none.pth'])
        assert calls == [True]
