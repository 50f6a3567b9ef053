"""What all tests share. This file also makes pytest put its folder on the import path, for `from golden import ...`."""

import os

# Each of several pytest processes has a core; before torch is imported, and for the processes that the tests start.
if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ.setdefault('OMP_NUM_THREADS', '1')

import functools
import gc
import sys
from contextlib import suppress
from importlib.util import find_spec
from multiprocessing import resource_tracker, set_executable
from types import SimpleNamespace

import pytest
import quick_python
import torch
from mmengine.dataset import base_dataset
from mmengine.registry import DefaultScope


def pytest_collection_modifyitems(items):
    if find_spec('mmdet') is None:
        for item in items:
            if item.get_closest_marker('detection'):
                item.add_marker(pytest.mark.skip(reason='mmdet is not installed: pip install "overhaul[detection]"'))


@pytest.fixture(scope='session', autouse=True)
def garbage_is_collected_when_there_is_much():
    """Spare each dataset the collection that mmengine calls for, and every collection all that was imported."""
    base_dataset.gc = SimpleNamespace(collect=lambda: None)
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


@pytest.fixture(scope='session', autouse=True)
def operators_of_onnx_are_listed_once():
    """Spare each graph that is written the list of what a graph can hold, which takes more than a small graph."""
    with suppress(ImportError):
        from torch.onnx._internal.exporter._registration import onnxscript_apis
        onnxscript_apis.get_torchlib_ops = functools.cache(onnxscript_apis.get_torchlib_ops)


@pytest.fixture(scope='session')
def onnxruntime():
    """The package, where this torch can write graphs for it."""
    if torch.__version__ < (2, 7):
        pytest.skip('writing ONNX needs torch 2.7')
    pytest.importorskip('onnxscript')
    return pytest.importorskip('onnxruntime')


@pytest.fixture(autouse=True)
def no_default_scope():
    """Begin as a new process does: a runner of an earlier test has left its scope."""
    DefaultScope._instance_dict.clear()


@pytest.fixture(scope='session')
def python(tmp_path_factory):
    """The path of a python that begins at once."""
    with quick_python.started(tmp_path_factory.mktemp('python')) as program:
        yield str(program)


@pytest.fixture(scope='session')
def quick_spawn(python):
    """Let that python be what multiprocessing spawns."""
    resource_tracker.ensure_running()
    set_executable(python)
    yield
    set_executable(sys.executable)
