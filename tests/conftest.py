"""What all tests share. This file also makes pytest put its folder on the import path, for `from golden import ...`."""

import os

# Each of several pytest processes has a core; before torch is imported, and for the processes that the tests start.
if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True)
def no_default_scope():
    """Begin as a new process does: a runner of an earlier test has left its scope."""
    DefaultScope._instance_dict.clear()
