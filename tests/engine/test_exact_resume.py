"""Trainings that are interrupted: by a kill, by a full disk, by a damaged file."""

import json
import os
import random
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from kills import ROOT, digits, finish, killed, same_end
from mmengine.hooks import CheckpointHook
from small_models import batch, build_distiller, runner, sgd
from torch.utils.data import DataLoader

from overhaul.engine import exact_resume
from overhaul.files.checkpoints import latest_checkpoint, read_checkpoint

# Epochs, workers that stay, dropout-like randomness in the forward pass, what is set from data, and the phases of the
# VOC recipe.
BY_EPOCH = """
_base_ = '{base}'
train_dataloader = dict(num_workers={workers}, persistent_workers={workers} > 0, dataset=dict(labels_per_class=20),
                        sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True))
model = dict(student=dict(train_cfg=dict(augments=dict(type='Mixup', alpha=0.8))),
             margin=dict(source='data'), distill_loss=dict(loss_weight='auto'))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(connectors=dict(lr_mult=10))))
custom_hooks = [dict(type='overhaul.ConnectorsFirstHook', epochs=2)]
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=4, val_interval=2)
log_processor = dict(by_epoch=True)
default_hooks = dict(checkpoint=dict(by_epoch=True, interval=1, max_keep_ckpts=9), logger=dict(interval=1))
"""


def train(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [str(ROOT / 'tools/train.py'), *map(str, arguments)])
        runpy.run_path(sys.argv[0], run_name='__main__')


def config(folder, workers):
    path = folder / f'by_epoch_{workers}.py'
    path.write_text(BY_EPOCH.format(base=ROOT / 'configs/digits_wrn16_2_wrn10_1.py', workers=workers))
    return path


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The work directory of four epochs without interruption, loaded by two workers."""
    folder = tmp_path_factory.mktemp('whole')
    train(config(folder, 2), '--work-dir', folder / 'work', '--cfg-options', f'experiment_name={folder}')
    return folder / 'work'


def test_training_killed_while_it_writes_a_checkpoint_ends_as_one_that_was_not(tmp_path, python):
    training = digits(tmp_path)._replace(python=python)
    end, (found, ) = killed(training, tmp_path / 'killed', [True], random.Random(0))
    assert found.iteration > 0 and found.pointed and not found.lost and not found.damaged
    assert same_end(finish(training, tmp_path / 'undisturbed', resume=False), end)


@pytest.mark.parametrize(('epoch', 'workers'), [(1, 2), (2, 0), (3, 1), (4, 2)], ids=[
    'in the first phase', 'between phases, without workers', 'in the second phase, with fewer workers', 'at the end'])
def test_epochs_resume_exactly_whoever_loads_the_data(whole, tmp_path, epoch, workers):
    train(config(tmp_path, workers), '--work-dir', tmp_path / 'work', '--resume', whole / f'epoch_{epoch}.pth',
          '--cfg-options', f'experiment_name={tmp_path}')
    if epoch < 4:
        end = read_checkpoint(str(tmp_path / 'work/epoch_4.pth'))
        assert same_end(read_checkpoint(str(whole / 'epoch_4.pth')), end)

    def validations(work_dir):
        rows = [json.loads(row) for row in next(work_dir.glob('*/vis_data/scalars.json')).read_text().splitlines()]
        return {row['step']: row['accuracy/top1'] for row in rows if 'accuracy/top1' in row}

    # Also the one that was due when the checkpoint was saved.
    assert validations(tmp_path / 'work') == {
        step: accuracy for step, accuracy in validations(whole).items() if step >= 4 * epoch}


@pytest.mark.quick
@pytest.mark.parametrize('skips', [False, True], ids=['mmengine', 'onedl-mmengine'])
def test_a_loop_that_leaves_out_what_was_trained_on_begins_with_the_next_batch(monkeypatch, skips):
    base = exact_resume._InfiniteDataloaderIterator
    if skips:
        monkeypatch.setattr(base, 'skip_iter', lambda self, count: None, raising=False)
    else:
        monkeypatch.delattr(base, 'skip_iter', raising=False)
    batches = exact_resume._FromHere(DataLoader([5, 6, 7], batch_size=None), 2)
    if skips:
        batches.skip_iter(2)
    else:
        next(batches), next(batches)
    assert [next(batches) for _ in range(3)] == [5, 6, 7]


def test_images_of_different_epochs_and_places_are_augmented_differently(whole):
    hub = read_checkpoint(str(whole / 'epoch_2.pth'))['message_hub']
    losses = hub['log_scalars']['train/loss_task']._log_history.tolist()
    assert len(set(losses)) == len(losses) == 8


def test_the_newest_whole_checkpoint_is_taken_and_the_damaged_named(whole, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('overhaul.files.checkpoints.print_log', lambda text, *_: said.append(text))
    work = tmp_path / 'work'
    shutil.copytree(whole, work)
    (work / 'last_checkpoint').write_text(str(work / 'epoch_4.pth'))
    assert latest_checkpoint(work) == str(work / 'epoch_4.pth')
    (work / 'last_checkpoint').write_text('')  # interrupted when it was written
    assert latest_checkpoint(work) == str(work / 'epoch_4.pth')
    content = (work / 'epoch_4.pth').read_bytes()
    (work / 'epoch_4.pth').write_bytes(content[:len(content) // 2])
    (work / 'epoch_3.pth').write_bytes(b'')
    assert latest_checkpoint(work) == str(work / 'epoch_2.pth')
    assert len(said) == 2 and 'epoch_4.pth' in said[0] and 'epoch_3.pth' in said[1]
    for epoch in (1, 2):
        (work / f'epoch_{epoch}.pth').write_bytes(content[:100])
    with pytest.raises(ValueError, match='None of the 4 checkpoints in .* can be read'):
        latest_checkpoint(work)
    assert latest_checkpoint(tmp_path / 'elsewhere') is None


def test_epochs_and_iterations_in_one_work_directory(whole, tmp_path):
    for name in ('epoch_2.pth', 'epoch_1.pth', 'iter_9.pth'):
        shutil.copy(whole / 'epoch_2.pth', tmp_path / name)
    for last, latest in (('epoch_1.pth', 'epoch_2.pth'), ('iter_9.pth', 'iter_9.pth')):
        (tmp_path / 'last_checkpoint').write_text(str(tmp_path / last))
        assert latest_checkpoint(tmp_path) == str(tmp_path / latest)


def test_a_copy_of_a_work_directory_goes_on_from_its_own_checkpoints(whole, tmp_path):
    copied, moved = tmp_path / 'copied', tmp_path / 'moved'
    copied.mkdir()
    moved.mkdir()
    shutil.copy(whole / 'epoch_2.pth', copied)
    (copied / 'last_checkpoint').write_text(str(whole / 'epoch_2.pth'))  # which has gone on to epoch 4
    assert latest_checkpoint(copied) == str(copied / 'epoch_2.pth')
    (moved / 'last_checkpoint').write_text(str(whole / 'epoch_2.pth'))  # as with an out_dir
    assert latest_checkpoint(moved) == str(whole / 'epoch_4.pth')


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs a device that is always full')
@pytest.mark.parametrize(('full', 'latest'), [('epoch_3.pth.part', 2), ('last_checkpoint.part', 3)])
def test_full_disk_is_told_and_leaves_what_was_there_before(whole, tmp_path, full, latest):
    def resume(number):
        train(config(tmp_path, 0), '--work-dir', work, '--resume', '--cfg-options',
              f'experiment_name={tmp_path}{number}', 'default_hooks.checkpoint.max_keep_ckpts=1')

    work = tmp_path / 'work'
    work.mkdir()
    shutil.copy(whole / 'epoch_2.pth', work)
    (work / 'last_checkpoint').write_text(str(work / 'epoch_2.pth'))
    before = (work / 'epoch_2.pth').read_bytes()
    os.symlink('/dev/full', work / full)
    with pytest.raises(SystemExit) as exit_:
        resume(1)
    assert exit_.value.code.startswith('error: No space left on device')
    assert 'go on with --resume' in exit_.value.code
    # Although one is to be kept: only when the next one is there and pointed to.
    assert (work / 'epoch_2.pth').read_bytes() == before
    assert (work / 'last_checkpoint').read_text() == str(work / 'epoch_2.pth')
    assert latest_checkpoint(work) == str(work / f'epoch_{latest}.pth')
    resume(2)
    assert (work / 'last_checkpoint').read_text() == str(work / 'epoch_4.pth')
    assert same_end(read_checkpoint(str(whole / 'epoch_4.pth')), read_checkpoint(str(work / 'epoch_4.pth')))
    assert not (work / 'epoch_3.pth').exists()


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs a device that is always full')
def test_best_checkpoint_is_kept_until_there_is_a_better_one(tmp_path):
    hook = CheckpointHook(interval=1, save_best='score', rule='greater')
    run = runner(tmp_path, build_distiller(), [batch()], 1, sgd(), hooks=[hook])
    run.train()
    hook.after_val_epoch(run, dict(score=0.5))
    assert (tmp_path / 'best_score_epoch_1.pth').is_file()
    run.train_loop._epoch = 2
    hook.after_val_epoch(run, dict(score=0.75))
    assert [path.name for path in tmp_path.glob('best*')] == ['best_score_epoch_2.pth']

    run.train_loop._epoch = 3
    os.symlink('/dev/full', tmp_path / 'best_score_epoch_3.pth.part')
    with pytest.raises(OSError, match='No space left'):
        hook.after_val_epoch(run, dict(score=0.875))
    assert [path.name for path in tmp_path.glob('best*')] == ['best_score_epoch_2.pth']


def test_work_directory_that_cannot_be_written_to_is_told(tmp_path):
    cfg = config(tmp_path, 0)
    files, nobodys = [cfg, cfg / 'work'], [Path('/sys/work')] if Path('/sys').is_dir() else []
    for work_dir in files + nobodys:
        with pytest.raises(SystemExit) as exit_:
            train(cfg, '--work-dir', work_dir, '--cfg-options', f'experiment_name={tmp_path}')
        assert 'error: ' in exit_.value.code and f'at "{work_dir}' in exit_.value.code
