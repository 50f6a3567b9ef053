"""Trainings in two processes of which one dies, or learns from another teacher, started as a user starts them."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import torch
from kills import same_end
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from overhaul.errors import one_paragraph_errors
from overhaul.files.checkpoints import read_checkpoint

ROOT = Path(__file__).parents[1]
TEACHER = ROOT / 'overhaul/weights/digits_wrn16_2.pth'
EPOCHS = 4  # of two iterations

TRAINING = f"""
_base_ = [{str(ROOT / 'configs/digits_wrn16_2_wrn10_1.py')!r}]
custom_imports = dict(imports=['test_faults'])
train_dataloader = dict(batch_size=25, dataset=dict(labels_per_class=10),
                        sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True))
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs={EPOCHS}, val_interval=2)
log_processor = dict(by_epoch=True)
default_hooks = dict(checkpoint=dict(by_epoch=True, interval=1), logger=dict(interval=1))
"""
DIES = "custom_hooks = [dict(type='DieHook', iteration=5)]\n"


@HOOKS.register_module()
class DieHook(Hook):
    """Kills process 1 before an iteration, once."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        killed = Path(runner.work_dir, 'killed')
        if dist.get_rank() == 1 and runner.iter == self.iteration and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def train(python):
    """Run tools/dist_train.sh in two processes: on one machine, or on two with a folder each. Return what they say."""
    started = []

    def train(config, *folders, **environment):
        environment = {
            **os.environ, 'PATH': f'{Path(python).parent}:{os.environ["PATH"]}', 'PYTHON_EXEC': python,
            'PYTHONPATH': str(ROOT / 'tests'), 'CUDA_VISIBLE_DEVICES': '', **environment}
        if len(folders) == 2:
            with socket.socket() as free:
                free.bind(('127.0.0.1', 0))
                environment.update(NNODES='2', MASTER_ADDR='127.0.0.1', PORT=str(free.getsockname()[1]))
        outputs = [folder / 'output' for folder in folders]
        for rank, (folder, output) in enumerate(zip(folders, outputs)):
            command = ['bash', str(ROOT / 'tools/dist_train.sh'), config, str(2 // len(folders)), '--work-dir', 'work']
            with output.open('w') as file:
                started.append(subprocess.Popen(
                    [*command, '--resume'], cwd=folder, start_new_session=True, stdin=subprocess.DEVNULL, stdout=file,
                    stderr=subprocess.STDOUT, env={**environment, 'NODE_RANK': str(rank)}))
        status = [machine.wait(timeout=200) for machine in started[-len(folders):]]
        return [output.read_text() for output in outputs], status

    yield train
    for machine in started:
        if machine.poll() is None:
            os.killpg(machine.pid, signal.SIGKILL)


def test_after_a_kill_all_begin_again_from_the_last_checkpoint_and_come_to_the_same_end(train, tmp_path):
    ends = []
    for name, hooks in (('dies', DIES), ('undisturbed', '')):
        folder = tmp_path / name
        folder.mkdir()
        (folder / 'training.py').write_text(TRAINING + hooks)
        (said, ), status = train('training.py', folder, MAX_RESTARTS='1')
        assert status == [0], said[-3000:]
        assert ('exitcode: -9' in said, 'epoch_2.pth' in said) == (bool(hooks), bool(hooks))
        ends.append(read_checkpoint(str(folder / f'work/epoch_{EPOCHS}.pth')))
    assert ends[0]['meta']['iter'] == 2 * EPOCHS and same_end(*ends)


def test_machines_with_different_teachers_do_not_begin(train, tmp_path):
    """Under one name: as if an older file had stayed on one of them."""
    teacher = read_checkpoint(str(TEACHER))
    for name in ('first', 'second'):
        (tmp_path / name).mkdir()
        torch.save(teacher, tmp_path / name / 'teacher.pth')
        teacher['state_dict']['head.fc.bias'] += 1e-3
    (tmp_path / 'training.py').write_text(TRAINING + "model = dict(teacher_checkpoint='teacher.pth')\n")
    said, status = train('../training.py', tmp_path / 'first', tmp_path / 'second')
    assert status == [1, 1]
    for output in said:
        (error, ) = [line for line in output.splitlines() if line.startswith('error: ')]
        assert error.startswith('error: The processes of this training do not begin with the same: "checksum of the '
                                'teacher" is ') and error.endswith('the work directory of process 0.')
    assert not list(tmp_path.glob('*/work/*.pth'))


@pytest.mark.parametrize(('distributed', 'text', 'told'), [
    (True, 'gloo/transport/tcp/pair.cc:538] Read error [::1]:30600: Connection reset by peer', 'Connection reset'),
    (True, 'NCCL error: remote process exited or there was a network error', 'remote process exited'),
    (True, 'Timed out waiting 1800000ms for recv operation to complete', 'Timed out'),
    (True, 'CUDA error: an illegal memory access was encountered', None),
    (False, 'Connection reset by peer', None)])
def test_lost_process_is_told_from_other_errors(monkeypatch, distributed, text, told):
    monkeypatch.setattr(dist, 'is_distributed', lambda: distributed)
    with pytest.raises(SystemExit if told else RuntimeError) as raised, one_paragraph_errors():
        raise RuntimeError(text)
    if told:
        assert f'has lost another one ({told})' in raised.value.code
