"""tools/*.sh as a user runs them: in two processes and on two machines, which here are both this one."""

import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from small_models import batch, build_distiller, of_each, runner, sgd
from torch import nn

from overhaul import compat
from overhaul.engine import same_start
from overhaul.files.checkpoints import read_checkpoint

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / 'tools'
CONFIG = ROOT / 'configs/digits_wrn16_2_wrn10_1.py'
TEACHER = ROOT / 'overhaul/weights/digits_wrn16_2.pth'
STEPS = 8
ENDLESS = 10**6

TRAINING = f"""
_base_ = [{str(CONFIG)!r}]
custom_imports = dict(imports=['recording'])
custom_hooks = [dict(type='RecordStatisticsHook'), dict(type='RecordHook', folder='.', step={STEPS})]
# Half the images in each of two processes; a warm-up and a rate of their own for the connectors.
train_dataloader = dict(batch_size=50, unlabelled=dict(dataset=dict(type='overhaul.Digits'), per_image=1))
optim_wrapper = dict(optimizer=dict(lr=0.01), paramwise_cfg=dict(custom_keys=dict(connectors=dict(lr_mult=10))))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=4),
    dict(type='MultiStepLR', milestones=[6], by_epoch=False)]
train_cfg = dict(max_iters={STEPS}, val_interval={STEPS})
default_hooks = dict(checkpoint=dict(interval={STEPS}), summary=dict(validate_teacher=False))
randomness = dict(seed=1)
"""


def write(path, text, executable=False):
    path.write_text(text)
    if executable:
        path.chmod(0o755)
    return path


@pytest.fixture(scope='module')
def programs(tmp_path_factory):
    """A folder of programs to be found first."""
    return tmp_path_factory.mktemp('programs')


@pytest.fixture(scope='module')
def start(programs, python):
    """Start a script of tools/ in a folder; what still runs when the tests are over is ended."""
    started = []

    def start(folder, script, *arguments, **environment):
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(('MASTER_', 'SLURM_'))}
        process = subprocess.Popen(
            ['bash', str(TOOLS / script), *map(str, arguments)], cwd=folder, start_new_session=True, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**inherited, 'PATH': f'{programs}:{Path(python).parent}:{os.environ["PATH"]}', 'PYTHON_EXEC': python,
                 'PYTHONPATH': str(ROOT / 'tests'), 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1', **environment})
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def finish(process):
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output[-3000:]
    return output


def two_machines(start, folder, script, *arguments):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    return port, [
        start(folder, script, *arguments, NNODES='2', NODE_RANK=str(rank), MASTER_ADDR='127.0.0.1', PORT=port)
        for rank in range(2)]


def wait_for(path, processes):
    for _ in range(1200):
        if path.is_file():
            return torch.load(path)
        ended = [process for process in processes if process.poll() is not None]
        assert not ended, ended[0].communicate()[0][-3000:]
        time.sleep(0.1)
    raise AssertionError(f'{path} does not come')


class Training:
    """Where a training was, what its two processes recorded, and what the script printed."""

    def __init__(self, folder, output=''):
        self.folder, self.output = folder, output
        self.records = [torch.load(folder / f'{rank}.pth') for rank in range(2)]


@pytest.fixture(scope='module')
def trained(tmp_path_factory, start):
    """Two processes on one machine."""
    folder = tmp_path_factory.mktemp('processes')
    config = write(folder / 'training.py', TRAINING)
    return Training(folder, finish(start(folder, 'dist_train.sh', config, 2, '--work-dir', 'out')))


@pytest.fixture(scope='module')
def killed(tmp_path_factory, start):
    """Two machines with a process each, of which the second is killed after the steps that are recorded."""
    folder = tmp_path_factory.mktemp('machines')
    config = write(folder / 'training.py', TRAINING)
    port, machines = two_machines(
        start, folder, 'dist_train.sh', config, 1, '--work-dir', 'out', '--cfg-options',
        f'train_cfg.max_iters={ENDLESS}', f'train_cfg.val_interval={ENDLESS}')
    records = [wait_for(folder / f'{rank}.pth', machines) for rank in range(2)]
    os.kill(records[1]['pid'], signal.SIGKILL)
    since = time.monotonic()
    output, _ = [machine.communicate(timeout=60)[0] for machine in machines]
    training = Training(folder, output)
    training.port, training.status = port, [machine.returncode for machine in machines]
    training.seconds = time.monotonic() - since
    return training


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_student_and_connectors_end_the_same_in_all_processes(trained):
    first, second = (record['model'] for record in trained.records)
    assert any(name.startswith('student.') for name in first) and any(name.startswith('connectors.') for name in first)
    assert same(first, second)
    assert same(first, read_checkpoint(str(trained.folder / f'out/iter_{STEPS}.pth'))['state_dict'])


def test_two_machines_train_as_two_processes(trained, killed):
    assert same(trained.records[0]['model'], killed.records[0]['model'])
    assert same(killed.records[0]['model'], killed.records[1]['model'])
    assert [record['world_size'] for record in killed.records] == [2, 2]
    assert [record['port'] for record in killed.records] == [killed.port] * 2


def test_teacher_is_not_touched(trained, killed):
    file = read_checkpoint(str(TEACHER))['state_dict']
    for record in (*trained.records, *killed.records):
        assert same(record['teacher'], file)


def test_each_process_has_its_own_images_without_labels(trained):
    first, second = (record['unlabelled'] for record in trained.records)
    assert len(first) == len(second) == STEPS
    for step, (one, other) in enumerate(zip(first, second)):
        assert one.shape == other.shape == (50, 3, 16, 16)
        assert not torch.equal(one, other) and not (step and torch.equal(one, first[step - 1]))


def test_running_statistics_are_the_mean_of_those_of_all_processes(trained):
    first, second = (record['own_statistics'] for record in trained.records)
    assert len(first) == 2 * (7 + 3)  # of the student and the connectors
    for name in first:
        assert not torch.equal(first[name], second[name])
        mean = (first[name] + second[name]) / 2
        for record in trained.records:
            torch.testing.assert_close(record['model'][name], mean)


def close(one, other, tolerance):
    return all((one[name] - other[name]).norm() <= tolerance * other[name].norm() + 1e-7 for name in other)


def test_gradient_is_that_of_one_process_with_the_whole_batch(trained):
    first, second = (record['without_norm'] for record in trained.records)
    assert first['whole'].keys() == {name for name in first['own']} and len(first['whole']) > 30
    assert same(first['together'], second['together'])
    assert close(first['together'], first['whole'], 1e-5)
    assert not close(first['own'], first['whole'], 1e-1)


def test_synchronised_batch_norm_is_of_student_and_connectors_and_never_of_the_teacher(trained):
    first, second = (record['synchronised'] for record in trained.records)
    assert first['converted'] == first['plain'] and len(first['converted']) == 7 + 3
    assert sum(name.startswith('connectors.') for name in first['converted']) == 3
    assert set(first['teacher']) == {'BatchNorm2d'}
    # With it batch norms are no exception, and the taps are read from what they were replaced by.
    assert same(first['together'], second['together'])
    assert close(first['together'], first['whole'], 1e-3)


def test_rate_follows_the_total_batch_through_the_warm_up(trained):
    for record in trained.records:
        rates = record['rates']
        assert len(rates) == STEPS
        for name, rate in (('student.', 0.02), ('connectors.', 0.2)):  # 0.01 for 50 images, and there are 100
            of_groups = [{step[group] for group in step if group.startswith(name)} for step in rates]
            assert all(len(group) == 1 for group in of_groups)
            expected = [rate * factor for factor in (0.1, 0.4, 0.7, 1, 1, 1, 0.1, 0.1)]
            assert [group.pop() for group in of_groups] == pytest.approx(expected)


def run_in_process(folder, tool, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(ROOT / 'tests'))
        patch.setattr(sys, 'argv', [str(TOOLS / tool), *map(str, arguments)])
        runpy.run_path(sys.argv[0], run_name='__main__')


def top1(output):
    return re.findall(r'accuracy/top1: ([\d.]+)', output)


def test_two_machines_test_what_the_training_measured(trained, start, tmp_path, capfd):
    checkpoint = trained.folder / f'out/iter_{STEPS}.pth'
    _, machines = two_machines(start, tmp_path, 'dist_test.sh', CONFIG, checkpoint, 1, '--work-dir', 'out')
    first, second = map(finish, machines)
    run_in_process(tmp_path, 'test.py', CONFIG, checkpoint, '--work-dir', 'alone', '--cfg-options',
                   'experiment_name=tested_alone')
    alone = top1(''.join(capfd.readouterr()))
    assert len(alone) == 1 and top1(first) == top1(trained.output) == alone
    assert top1(second) == []  # told once


def test_training_ends_when_a_process_is_killed(killed):
    assert all(status != 0 for status in killed.status)
    assert killed.seconds < 60
    (error, ) = [line for line in killed.output.splitlines() if line.startswith('error: ')]
    assert error.startswith('error: Process 0 of this training has lost another one') and '--resume' in error


def resume(trained, tmp_path, name, *options):
    run_in_process(
        tmp_path, 'train.py', CONFIG, '--work-dir', 'out', '--resume', trained.folder / f'out/iter_{STEPS}.pth',
        '--cfg-options', f'experiment_name={name}', f'train_cfg.max_iters={STEPS + 1}', 'randomness.seed=1',
        'optim_wrapper.optimizer.lr=0.01', 'optim_wrapper.paramwise_cfg.custom_keys.connectors.lr_mult=10', *options)


def test_resume_on_another_number_of_gpus(trained, tmp_path):
    with pytest.raises(SystemExit, match=r'began with a learning rate of 0.02, and this one would with 0.01\. .* '
                                         'Resume on as many GPUs'):
        resume(trained, tmp_path, 'other_rate')
    assert not list(tmp_path.rglob('*.pth'))
    resume(trained, tmp_path, 'same_rate', 'train_dataloader.batch_size=100')
    assert (tmp_path / f'out/iter_{STEPS + 1}.pth').is_file()


@pytest.mark.parametrize('path', of_each(sorted((ROOT / 'configs').glob('[!f]*.py'))), ids=lambda path: path.stem)
def test_rates_of_all_configs_follow_the_total_batch(path):
    cfg = Config.fromfile(path)
    data = path.stem.replace('voc_ssd300', 'ssd300').split('_')[0]
    # What the learning rate of the paper or its official code belongs to.
    batches = dict(cifar100=128, imagenet=256, voc=12, digits=50, digitscenes=16, digitdet=16, ssd300=32, coco=16)
    others = dict(pyramid200=64, wrn10_1_unlabelled=10, r18_unlabelled=2)  # of the data, one setting has another
    paper = next((size for name, size in others.items() if name in path.stem), batches[data])
    gpus = dict(cifar100=1, imagenet=8, voc=2, digits=1, digitscenes=1, digitdet=1, ssd300=1, coco=8)[data]
    if path.stem != 'voc_r101_r18_mmseg':
        assert cfg.train_dataloader.batch_size * gpus == paper
    assert cfg.auto_scale_lr == dict(base_batch_size=paper, enable=True)


# Slurm, played by two scripts.

SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" > srun.txt
for last; do :; done
while [[ $1 == --* ]]; do
    if [[ $1 == --ntasks=* ]]; then count=${1#*=}; fi
    shift
done
export SLURM_NODELIST='node[1-2]' SLURM_NTASKS=$count
for ((i = 0; i < count; i++)); do
    SLURM_PROCID=$i SLURM_LOCALID=$i "$@" > task$i.txt 2>&1 &
done
status=0
for job in $(jobs -p); do wait "$job" || status=$?; done
exit $status
"""
SCONTROL = '#!/bin/sh\n[ "$*" = "show hostname node[1-2]" ] && printf "127.0.0.1\\nnode2\\n"\n'
# As if one machine had another version of the config.
DIFFERENT = f"""
_base_ = [{str(CONFIG)!r}]
model = dict(distill_loss=dict(loss_weight=0.25 + {{{{'$SLURM_PROCID:0'}}}}))
"""


def test_slurm_starts_a_process_per_gpu_and_these_refuse_different_configs(start, programs, tmp_path):
    write(programs / 'srun', SRUN, executable=True)
    write(programs / 'scontrol', SCONTROL, executable=True)
    config = write(tmp_path / 'different.py', DIFFERENT)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    process = start(tmp_path, 'slurm_train.sh', 'part', 'name', config, 'out', '--cfg-options', 'log_level=ERROR',
                    GPUS='2', SRUN_ARGS='--time=1 --exclude=node3', PORT=str(port))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output

    arguments = (tmp_path / 'srun.txt').read_text().splitlines()
    assert arguments[:9] == [
        '--partition=part', '--job-name=name', '--ntasks=2', '--ntasks-per-node=2', '--gres=gpu:2', '--cpus-per-task=5',
        '--kill-on-bad-exit=1', '--time=1', '--exclude=node3']
    assert arguments[-7:] == [
        str(config), '--work-dir', 'out', '--cfg-options', 'log_level=ERROR', '--launcher', 'slurm']
    errors = [(tmp_path / f'task{rank}.txt').read_text().splitlines()[-1] for rank in range(2)]
    assert errors[0] == errors[1]
    host = socket.gethostname()
    assert errors[0].startswith(
        'error: The processes of this training do not begin with the same: "model.distill_loss.loss_weight" is 0.25 '
        f'in process 0 on {host} and 1.25 in process 1 on {host}.')
    assert not list(tmp_path.rglob('*.pth'))


def test_slurm_environment(monkeypatch, programs):
    write(programs / 'scontrol', SCONTROL, executable=True)
    monkeypatch.setattr(os, 'environ', dict(
        PATH=f'{programs}:{os.environ["PATH"]}', SLURM_NODELIST='node[1-2]', SLURM_PROCID='5', SLURM_LOCALID='1',
        SLURM_NTASKS='8', MASTER_PORT='4000', LOCAL_RANK='0'))
    compat._slurm_environment()
    told = {name: os.environ[name] for name in ('MASTER_ADDR', 'MASTER_PORT', 'RANK', 'LOCAL_RANK', 'WORLD_SIZE')}
    assert told == dict(MASTER_ADDR='127.0.0.1', MASTER_PORT='4000', RANK='5', LOCAL_RANK='1', WORLD_SIZE='8')


# What the scripts ask of torchrun, and what they refuse.

@pytest.fixture
def shell(tmp_path):
    """Run a script with a ``python`` that only says what it is called with and where it is to look for packages."""
    write(tmp_path / 'python', '#!/bin/sh\necho "$@"\necho "$PYTHONPATH" "$OMP_NUM_THREADS"\n', executable=True)

    def shell(script, *arguments, **environment):
        known = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', **environment}
        return subprocess.run(['bash', TOOLS / script, *arguments], env=known, capture_output=True, text=True)

    return shell


@pytest.mark.parametrize('environment, meeting_point', [
    ({}, '--standalone --local-addr=127.0.0.1'),
    (dict(MASTER_ADDR='elsewhere'), '--standalone --local-addr=127.0.0.1'),
    (dict(PORT='4000'), '--nnodes=1 --node-rank=0 --master-addr=127.0.0.1 --master-port=4000'),
    (dict(MASTER_PORT='4000'), '--nnodes=1 --node-rank=0 --master-addr=127.0.0.1 --master-port=4000'),
    (dict(MASTER_PORT='4000', PORT='5000'), '--nnodes=1 --node-rank=0 --master-addr=127.0.0.1 --master-port=5000'),
    (dict(NNODES='3', NODE_RANK='2', MASTER_ADDR='first'),
     '--nnodes=3 --node-rank=2 --master-addr=first --master-port=29500'),
    (dict(NNODES='3', NODE_RANK='0', MASTER_ADDR='first', PORT='4000'),
     '--nnodes=3 --node-rank=0 --master-addr=first --master-port=4000'),
    (dict(MAX_RESTARTS='3'), '--standalone --local-addr=127.0.0.1 --max-restarts=3'),
    (dict(MAX_RESTARTS='3', NNODES='3', NODE_RANK='2', MASTER_ADDR='first'),
     '--nnodes=3 --rdzv-backend=c10d --rdzv-endpoint=first:29500 --rdzv-conf=is_host=0 --max-restarts=3'),
    (dict(MAX_RESTARTS='3', PORT='4000'),
     '--nnodes=1 --rdzv-backend=c10d --rdzv-endpoint=127.0.0.1:4000 --rdzv-conf=is_host=1 --max-restarts=3'),
])
@pytest.mark.parametrize('script, arguments, tool', [
    ('dist_train.sh', ['configs/some.py', '8', '--resume'], 'train.py configs/some.py --resume'),
    ('dist_test.sh', ['configs/some.py', 'some.pth', '8', '--tta'], 'test.py configs/some.py some.pth --tta')])
def test_torchrun_is_asked_for(shell, script, arguments, tool, environment, meeting_point):
    run = shell(script, *arguments, **environment)
    called, paths = run.stdout.splitlines()
    assert called == (
        f'-m torch.distributed.run {meeting_point} --nproc-per-node=8 {TOOLS}/{tool} --launcher pytorch')
    assert paths == f'{TOOLS}/.. 1' and run.returncode == 0


def test_environment_is_kept(shell):
    assert shell('dist_train.sh', 'some.py', '1', PYTHONPATH='/mine', OMP_NUM_THREADS='4').stdout.splitlines()[1] == (
        f'{TOOLS}/..:/mine 4')


@pytest.mark.parametrize('gpus', ['0', '-1', 'two', '1.5', '', '--resume'])
@pytest.mark.parametrize('script, before', [('dist_train.sh', ['a.py']), ('dist_test.sh', ['a.py', 'a.pth'])])
def test_wrong_number_of_gpus(shell, script, before, gpus):
    run = shell(script, *before, gpus)
    assert (run.returncode, run.stdout) == (2, '')
    assert run.stderr == (
        f'error: GPUS is the number of processes on this machine, 1 or more, and not "{gpus}".\n')


@pytest.mark.parametrize('environment', [dict(NODE_RANK='1'), dict(MASTER_ADDR='first'), {}])
def test_machines_that_do_not_know_each_other(shell, environment):
    run = shell('dist_train.sh', 'a.py', '8', NNODES='2', **environment)
    assert (run.returncode, run.stdout) == (2, '')
    assert run.stderr.startswith('error: on NNODES=2 machines, give each its NODE_RANK, 0 to 1, and')


@pytest.mark.parametrize('environment, message', [
    (dict(NNODES='two'), 'error: NNODES is the number of machines, 1 or more, and not "two".\n'),
    (dict(NNODES='0'), 'error: NNODES is the number of machines, 1 or more, and not "0".\n'),
    (dict(NNODES='2', NODE_RANK='2'), 'error: NODE_RANK is the number of this machine, 0 to 1, and not "2".\n'),
    (dict(NNODES='2', NODE_RANK='-1'), 'error: NODE_RANK is the number of this machine, 0 to 1, and not "-1".\n'),
    (dict(NNODES='2', NODE_RANK='08'), 'error: NODE_RANK is the number of this machine, 0 to 1, and not "08".\n'),
    (dict(NODE_RANK='1'), 'error: NODE_RANK is the number of this machine, 0 to 0, and not "1".\n')])
def test_wrong_number_of_machines(shell, environment, message):
    run = shell('dist_train.sh', 'a.py', '8', MASTER_ADDR='first', **environment)
    assert (run.returncode, run.stdout, run.stderr) == (2, '', message)


@pytest.mark.skipif(shutil.which('srun') is not None, reason='Slurm is there.')
def test_slurm_that_is_not_there(shell):
    run = shell('slurm_train.sh', 'part', 'name', 'a.py')
    assert (run.returncode, run.stdout) == (2, '')
    assert run.stderr.startswith('error: there is no srun') and run.stderr.count('\n') == 1


@pytest.mark.parametrize('script, arguments', [
    ('dist_train.sh', ['a.py']), ('dist_test.sh', ['a.py', '8']), ('slurm_train.sh', ['part', 'name'])])
def test_missing_arguments(shell, script, arguments):
    run = shell(script, *arguments)
    assert (run.returncode, run.stdout) == (2, '') and run.stderr.startswith(f'usage: {script} ')


@pytest.mark.parametrize('launcher, rank, place', [
    ('pytorch', 'RANK', 'LOCAL_RANK'), ('slurm', 'SLURM_PROCID', 'SLURM_LOCALID')])
@pytest.mark.parametrize('visible, expected', [
    (2, 'This is process 3 on this machine, which has 2 GPUs for one process each. Ask for 2,'), (3, None)])
def test_more_processes_than_gpus(monkeypatch, visible, expected, launcher, rank, place):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: visible)
    monkeypatch.setenv('LOCAL_RANK', '0')  # as train.py sets it where the launcher does not
    monkeypatch.setenv(rank, '2')
    monkeypatch.setenv(place, '2')
    cfg = Config(dict(launcher=launcher))
    if expected is None:
        compat.prepare_launcher(cfg)
        assert 'device_ids' not in cfg.model_wrapper_cfg  # mmengine gives each process its own
    else:
        with pytest.raises(ValueError, match=expected):
            compat.prepare_launcher(cfg)


@pytest.mark.parametrize('gpus', [0, 1])
@pytest.mark.parametrize('given, expected', [
    ({}, dict(broadcast_buffers=False, find_unused_parameters=False)),
    (dict(find_unused_parameters=True), dict(broadcast_buffers=False, find_unused_parameters=True)),
    (dict(model_wrapper_cfg=dict(static_graph=True), find_unused_parameters=True),
     dict(broadcast_buffers=False, find_unused_parameters=True, static_graph=True)),
    (dict(model_wrapper_cfg=dict(broadcast_buffers=True, find_unused_parameters=True)),
     dict(broadcast_buffers=True, find_unused_parameters=True)),
    (dict(model_wrapper_cfg=dict(type='MMSeparateDistributedDataParallel')),
     dict(type='MMSeparateDistributedDataParallel', broadcast_buffers=False, find_unused_parameters=False)),
    (dict(model_wrapper_cfg=dict(type='MMFullyShardedDataParallel')), dict(type='MMFullyShardedDataParallel'))])
def test_settings_of_ddp_are_the_same_on_all_devices(monkeypatch, given, expected, gpus):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda backend: None)
    for name in ('RANK', 'LOCAL_RANK'):
        monkeypatch.setenv(name, '0')
    cfg = Config(dict(given, launcher='pytorch'))
    compat.prepare_launcher(cfg)
    if not gpus and 'broadcast_buffers' in expected:  # of DDP
        expected = dict(expected, device_ids=None)
    assert cfg.model_wrapper_cfg == dict(dict(type='MMDistributedDataParallel'), **expected)


def test_gradients_accumulated_in_a_static_graph_are_refused(monkeypatch):
    monkeypatch.setenv('RANK', '0')
    cfg = dict(launcher='pytorch', model_wrapper_cfg=dict(static_graph=True), optim_wrapper=dict(accumulative_counts=2))
    with pytest.raises(ValueError, match='static_graph=True .* does not go with .* accumulative_counts'):
        compat.prepare_launcher(Config(cfg))


@pytest.mark.parametrize('launcher, script', [('pytorch', 'dist_train.sh'), ('slurm', 'slurm_train.sh')])
def test_launcher_that_did_not_launch(monkeypatch, launcher, script):
    for name in ('RANK', 'SLURM_PROCID'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=f'--launcher {launcher} is for processes that .* tools/{script} does it'):
        compat.prepare_launcher(Config(dict(launcher=launcher)))


def test_synchronised_batch_norm_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setenv('RANK', '0')
    with pytest.raises(ValueError, match='sync_bn needs GPUs'):
        compat.prepare_launcher(Config(dict(launcher='pytorch', sync_bn='torch')))


# What the processes of a training compare.

class LookHook(Hook):
    """Keeps the start of a training, as its processes see it."""

    def before_train(self, runner):
        self.start = same_start.start_of(runner)


def start_of(folder, model, images=4, **changes):
    hook = LookHook()
    runner(folder, model, [batch(images)], 1, sgd(), hooks=[hook], randomness=dict(seed=0), **changes).train()
    return hook.start


def test_start_tells_weights_teacher_data_and_config(tmp_path):
    def start(name, change=None, images=4, **changes):
        model = build_distiller()
        with torch.no_grad():
            if change:
                change(model)
        return start_of(tmp_path / name, model, images, **changes)

    def differ(one, other):
        return [name for name in one if one[name] != other[name]]

    usual = start('usual')
    assert differ(usual, start('again')) == []
    # By the least that a number can change by.
    assert differ(usual, start('teacher', lambda model: next(model.teacher.buffers()).view(torch.int32).add_(1))) == [
        'checksum of the teacher']
    assert differ(usual, start('margin', lambda model: model.margins[0].margin.view(torch.int32).add_(1))) == [
        'checksum of the weights']
    assert differ(usual, start('data', images=6)) == ['number of training images']


def test_first_difference_is_told():
    starts = [('a', dict(rate=0.1, iteration=0)), ('b', dict(rate=0.1, iteration=0)), ('c', dict(rate=0.1))]
    same_start.check_same(starts[:2])
    with pytest.raises(ValueError, match=r'"iteration" is 0 in process 0 on a and None in process 2 on c\. Give all'):
        same_start.check_same(starts)


def test_checksum_takes_any_weights():
    model = nn.Module()
    model.register_buffer('scalar', torch.tensor(3))
    model.register_buffer('transposed', torch.ones(2, 3, dtype=torch.bfloat16).t())
    before = same_start.checksum(model)
    model.transposed[0, 1] = 2
    assert same_start.checksum(model) != before and len(before) == 12


def test_single_process_compares_nothing(tmp_path):
    alone = runner(tmp_path, build_distiller(), [batch()], 1, sgd())
    before = len(alone.hooks)
    same_start.prepare(alone)
    assert len(alone.hooks) == before and isinstance(alone, Runner)
