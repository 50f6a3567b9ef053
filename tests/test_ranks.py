"""Two processes that train end with the same weights, and with those of one process that sees the images of both.

The tests start this file as a program, in two processes, once for all trainings.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from mmengine import dist
from mmengine.hooks import Hook
from recording import synchronised_on_cpu
from small_models import batch, build_distiller, resnet, runner, sgd
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from overhaul.engine.hooks import AverageStatisticsHook, CalibrateHook, HealthHook, PictureHook, SummaryHook
from overhaul.engine.runner import bare_model
from overhaul.errors import one_paragraph_errors
from overhaul.reports import pictures
from overhaul.tasks import mark_unlabelled

BATCHES = [batch(8, seed) for seed in range(3)]
FROM_DATA = dict(type='MarginReLU', source='data')

# The settings of DDP, and what else of a training differs from the first.
TRAININGS = dict(
    plain=dict(),
    static_graph=dict(ddp=dict(static_graph=True)),
    bucket_view=dict(ddp=dict(gradient_as_bucket_view=True)),
    find_unused=dict(ddp=dict(find_unused_parameters=True), unused=True),
    accumulation=dict(accumulate=2),
    calibrated=dict(ddp=dict(static_graph=True), model=dict(margin=FROM_DATA, alpha='auto')),
    checkpointing=dict(ddp=dict(static_graph=True), model=dict(
        teacher=resnet(), student=resnet(4, with_cp=True),
        taps=[dict(teacher='backbone.layer2', student='backbone.layer2')])),
    synchronised=dict(synchronised=True),
    no_labels=dict(ddp=dict(find_unused_parameters=True), labels=False),
)


class BatchNormsOfEval(Hook):
    """Lets no image count for another, so that half a batch is half of the whole one."""

    priority = 'LOWEST'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        for module in bare_model(runner).modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def without_labels(samples):
    samples = [sample.new() for sample in samples]
    for sample in samples:
        mark_unlabelled(sample)
    return samples


def train(folder, hooks, ddp=None, model=None, unused=False, accumulate=1, synchronised=False, labels=True):
    """The weights, margins and alpha after a training with the images of this process."""
    distiller = build_distiller(teacher_batch_norm='running', **(model or {}))
    if unused:
        distiller.student.unused = nn.Linear(2, 2)
    mine = slice(dist.get_rank(), None, dist.get_world_size())
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False, **(ddp or {}))
    run = runner(
        folder, distiller,
        [(images[mine], samples[mine] if labels else without_labels(samples[mine])) for images, samples in BATCHES], 1,
        dict(sgd(0.01), accumulative_counts=accumulate), hooks if synchronised else [*hooks, BatchNormsOfEval()],
        randomness=dict(seed=0), launcher='pytorch' if dist.is_distributed() else 'none', log_level='ERROR',
        cfg=dict(model_wrapper_cfg=wrapper, sync_bn='torch' if synchronised else None))
    run.train()
    statistics = ('running_mean', 'running_var', 'num_batches_tracked')
    return {name: tensor for name, tensor in distiller.state_dict().items() if not name.endswith(statistics)}


def in_each_process(folder):
    """Run all trainings, with every hook of ours that runs the model, and write what came out."""
    rank = int(os.environ['RANK'])
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
    # Both refuse the CPU.
    nn.SyncBatchNorm.forward = synchronised_on_cpu
    DistributedDataParallel._passing_sync_batchnorm_handle = lambda *_: None
    pictures.draw_features = pictures.draw_pre_activations = lambda *_: Figure()  # which takes longer than all else
    states = {}
    for name, settings in TRAININGS.items():
        hooks = [CalibrateHook(), SummaryHook(), PictureHook(interval=1), HealthHook(), AverageStatisticsHook()]
        states[name] = train(folder / f'{name}_{rank}', hooks, **settings)
    try:
        with one_paragraph_errors():
            train(folder / f'refused_{rank}', [], labels=False)
    except SystemExit as refused:
        states['refused'] = refused.code
    torch.save(states, folder / f'{rank}.pth')


@pytest.fixture(scope='module')
def of_ranks(tmp_path_factory, python):
    folder = tmp_path_factory.mktemp('ranks')
    environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join(sys.path))
    processes = [
        subprocess.Popen([python, __file__, folder], stdout=subprocess.DEVNULL,
                         env=dict(environment, RANK=str(rank), LOCAL_RANK=str(rank))) for rank in range(2)]
    assert [process.wait(timeout=200) for process in processes] == [0, 0]
    return [torch.load(folder / f'{rank}.pth') for rank in range(2)]


def distance(state, other):
    """The largest difference of two states."""
    return max((value - other[name]).abs().max().item() for name, value in state.items())


@pytest.mark.parametrize('name', TRAININGS)
def test_two_processes_end_with_the_weights_of_one_that_sees_all_images(of_ranks, tmp_path, name):
    first, second = (states[name] for states in of_ranks)
    assert all(torch.equal(first[key], second[key]) for key in first), distance(first, second)
    settings = {key: value for key, value in TRAININGS[name].items() if key != 'ddp'}
    hooks = []
    if name == 'calibrated':  # alpha is of the losses of half a batch, and its mean another than that of whole ones
        settings['model'] = dict(margin=FROM_DATA, alpha=first.pop('distill_loss.loss_weight').item())
        hooks = [CalibrateHook()]
    alone = train(tmp_path, hooks, **settings)
    assert distance(first, alone) < 1e-5


def test_a_head_that_learns_nothing_is_told_of(of_ranks):
    assert all('Set find_unused_parameters=True in the config; or' in states['refused'] for states in of_ranks)


def test_without_the_other_half_the_weights_are_others(of_ranks, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], 'BATCHES', [(images[::2], samples[::2]) for images, samples in BATCHES])
    assert distance(of_ranks[0]['plain'], train(tmp_path, [])) > 1e-3


if __name__ == '__main__':
    in_each_process(Path(sys.argv[1]))
