"""Every way from a file to a training or a test, with files that nobody should read."""

import hashlib
import resource

import numpy as np
import pytest
import strangers_files
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from test_tools import CONFIG, QUICK, run_in_process

from overhaul.files.checkpoints import read_checkpoint

DOORS = {
    'teacher_checkpoint': ('train.py', [], ['model.teacher_checkpoint={}']),
    'load_from': ('train.py', [], ['load_from={}']),
    'resume': ('train.py', ['--resume', '{}'], []),
    'resume_in_the_config': ('train.py', [], ['resume=True', 'load_from={}']),
    'init_cfg_of_the_student': ('train.py', [], ['model.student.init_cfg.type=Pretrained',
                                                 'model.student.init_cfg.checkpoint={}']),
    'init_cfg_of_its_backbone': ('train.py', ['--student-only'], [
        'model.student.backbone.init_cfg.type=Pretrained', 'model.student.backbone.init_cfg.checkpoint={}']),
    'test_the_student': ('test.py', ['{}'], []),
    'test_the_teacher': ('test.py', ['{}', '--teacher'], []),
    'test_the_teacher_of_the_config': ('test.py', ['--teacher'], ['model.teacher_checkpoint={}']),
}
AT_EACH_DOOR = ['calls_os_system', 'bytes_of_gigabytes']  # behind it all are alike
GIGABYTE = 2**30


@pytest.fixture
def stranger(tmp_path):
    """Write a file by name, and check afterwards that reading it changed no file and took no memory."""
    folder = tmp_path / 'strangers'
    folder.mkdir()
    path = folder / 'file.pth'
    before = []

    def write(name):
        getattr(strangers_files, name)(path)
        before.extend([contents(folder), peak_memory()])
        return path

    yield write
    assert contents(folder) == before[0]
    assert peak_memory() - before[1] < GIGABYTE


def contents(folder):
    return {path.name: path.is_file() and hashlib.sha256(path.read_bytes()).digest() for path in folder.iterdir()}


def peak_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize('name', [writer.__name__ for writer in strangers_files.WRITERS])
@pytest.mark.parametrize('read', [read_checkpoint, CheckpointLoader.load_checkpoint])
def test_file_is_refused(stranger, read, name):
    path = stranger(name)
    limit = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises((ValueError, FileNotFoundError)) as refusal:
        read(str(path))
    message = str(refusal.value)
    assert message.startswith(f'"{path}"') and '\n' not in message and message.endswith('.')
    assert 'weights_only' not in message  # advice to read it without protection
    assert resource.getrlimit(resource.RLIMIT_AS) == limit


@pytest.mark.parametrize('name', AT_EACH_DOOR)
@pytest.mark.parametrize('door', DOORS)
def test_door_is_closed(stranger, tmp_path, door, name):
    tool, arguments, options = DOORS[door]
    path = stranger(name)
    with pytest.raises(SystemExit) as exit_:
        run_in_process(tmp_path, tool, CONFIG, *(argument.format(path) for argument in arguments),
                       options=[*QUICK, *(option.format(path) for option in options)])
    message = exit_.value.code
    assert message.startswith(f'error: "{path}"') and '\n' not in message
    assert not list(tmp_path.glob('work_dirs/**/*.pth'))


@pytest.mark.parametrize('variable', [None, 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'])
def test_no_variable_opens_a_door(stranger, monkeypatch, variable):
    if variable:
        monkeypatch.setenv(variable, '1')
    with pytest.raises(ValueError, match='holds more than weights'):
        CheckpointLoader.load_checkpoint(str(stranger('calls_os_system')))


@pytest.mark.parametrize('meta', [
    {'epoch': 12, 'iter': 3456, 'mmengine_version': '0.10.7', 'cfg': 'model = dict()\n', 'seed': None, 'lr': [0.1]},
    {'CLASSES': ['a', 'b'], 'PALETTE': [[0, 0, 0], [128, 0, 0]]},
    {'dataset_meta': {'classes': ('a', 'b'), 'palette': np.uint8([[0, 0, 0], [128, 0, 0]])}},
    {'best': np.float64(77.3), 'counts': np.arange(3), 'flags': np.array([True, False]), 'half': np.float16([1, 2])},
    {'ids': {1, 2}, 'size': torch.Size([2]), 'dtype': torch.float16, 'raw': b'abc', 'complex': 1j},
    {'history': HistoryBuffer([1., 2.], [1, 1])},
], ids=['numbers and text', 'lists', 'palette', 'numpy', 'python and torch', 'history'])
@pytest.mark.parametrize('new_format', [True, False], ids=['zip', 'old'])
def test_file_as_published_is_read(tmp_path, meta, new_format):
    path = tmp_path / 'published.pth'
    torch.save({'meta': meta, **strangers_files.WEIGHTS}, path, _use_new_zipfile_serialization=new_format)
    for read in (read_checkpoint, CheckpointLoader.load_checkpoint):
        content = read(str(path))
        assert torch.equal(content['state_dict']['weight'], strangers_files.WEIGHTS['state_dict']['weight'])
        assert content['meta'].keys() == meta.keys()


def test_file_of_a_training_is_read(tmp_path):
    run_in_process(tmp_path, 'train.py', CONFIG, options=[
        *QUICK, 'train_cfg.max_iters=2', 'default_hooks.checkpoint.interval=1', 'train_cfg.val_interval=1'])
    (path, ) = tmp_path.rglob('iter_2.pth')
    assert {'meta', 'state_dict', 'optimizer', 'message_hub'} <= read_checkpoint(str(path)).keys()
    run_in_process(tmp_path, 'train.py', CONFIG, '--resume', path, options=[*QUICK, 'train_cfg.max_iters=3'])
