"""Trainings with images without labels: one line of a config, resumed, with garbage for labels, in faster modes."""

import re
from pathlib import Path

import pytest
from kills import same_end
from mmengine.runner import Runner
from test_tools import CONFIG, records, run_in_process
from tiny_data import write_images

from overhaul.engine import benchmark, dry_run
from overhaul.files.checkpoints import read_checkpoint
from overhaul.files.settings import read_config

BESIDE = CONFIG.replace('.py', '_unlabelled.py')
SHORT = ['train_cfg.max_iters=4', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2',
         'default_hooks.logger.interval=1', 'default_hooks.summary.validate_teacher=False',
         'train_dataloader.batch_size=6', 'train_dataloader.unlabelled.per_image=2',
         'optim_wrapper.accumulative_counts=2']
# Gradients accumulated, an average of the weights, and labels mixed: all that a step has to do with a batch.
ALL_AT_ONCE = f"""
_base_ = '{BESIDE}'
custom_hooks = [dict(type='EMAHook')]
model = dict(student=dict(train_cfg=dict(augments=dict(type='Mixup', alpha=0.8))))
"""


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    (folder / 'config.py').write_text(ALL_AT_ONCE)
    run_in_process(folder, 'train.py', 'config.py', '--work-dir', 'work', '--amp', options=SHORT)
    return folder


def end(folder, iteration=4):
    return read_checkpoint(str(folder / f'work/iter_{iteration}.pth'))


def test_resumed_it_ends_with_the_same_bits(whole, tmp_path):
    run_in_process(
        tmp_path, 'train.py', whole / 'config.py', '--work-dir', 'work', '--amp', '--resume',
        whole / 'work/iter_2.pth', options=[*SHORT, 'train_dataloader.num_workers=1'])
    assert same_end(end(whole), end(tmp_path))


def test_labels_that_are_garbage_change_no_bit(whole, tmp_path):
    run_in_process(
        tmp_path, 'train.py', whole / 'config.py', '--work-dir', 'work', '--amp',
        options=[*SHORT, 'train_dataloader.unlabelled.dataset.type=overhaul.GarbageDigits'])
    assert same_end(end(whole), end(tmp_path))


def test_other_images_change_it(whole, tmp_path):
    run_in_process(
        tmp_path, 'train.py', whole / 'config.py', '--work-dir', 'work', '--amp',
        options=[*SHORT, 'train_dataloader.unlabelled.dataset.split=test'])
    assert not same_end(end(whole), end(tmp_path))


def test_the_student_alone_trains_as_if_they_were_not_there(tmp_path):
    def alone(config, name, *options):
        run_in_process(tmp_path / name, 'train.py', config, '--student-only', '--work-dir', 'work', options=[
            *(option for option in SHORT if 'unlabelled' not in option), *options])
        return end(tmp_path / name)

    for name in ('beside', 'plain'):
        (tmp_path / name).mkdir()
    loss = 'model.student.head.loss'
    assert same_end(alone(BESIDE, 'beside'), alone(
        CONFIG, 'plain', 'auto_scale_lr.base_batch_size=10', 'param_scheduler.T_max=400',
        f'{loss}.type=LabelSmoothLoss', f'{loss}.label_smooth_val=0.2'))


def test_a_folder_is_enough(tmp_path):
    write_images(tmp_path / 'images', 9)
    run_in_process(
        tmp_path, 'train.py', CONFIG, '--work-dir', 'work',
        options=[*[option for option in SHORT if 'per_image' not in option], 'train_dataloader.unlabelled=images'])
    assert len(records(tmp_path / 'work', 'train')) == 4


@pytest.mark.parametrize(('options', 'expected'), [
    (['unlabelled=nowhere'], r'no folder "nowhere"'),
    (['unlabelled=3'], r'unlabelled is 3\. Give it the path of a folder with images, or a dict'),
    (['unlabelled.per_image=1'], r"unlabelled is \{'per_image': 1\}\. Give it the path"),
    (['unlabelled.data_root=damaged', 'unlabelled.pipe=3'], r'key "pipe"\. Nearest: pipeline'),
    (['unlabelled=empty'], r'"empty" has no image in it'),
    (['unlabelled=damaged'], r'"damaged/more/03\.png" cannot be read'),
])
def test_what_cannot_be_is_refused_in_one_paragraph(tmp_path, monkeypatch, options, expected):
    monkeypatch.chdir(tmp_path)
    Path('empty').mkdir()
    write_images('damaged', 6)
    Path('damaged/more/03.png').write_bytes(b'PNG')
    with pytest.raises(SystemExit) as exit_:
        run_in_process(tmp_path, 'train.py', CONFIG, options=[
            *(option for option in SHORT if 'unlabelled' not in option),
            *(f'train_dataloader.{option}' for option in options)])
    message = exit_.value.code
    assert message.startswith('error: ') and '\n' not in message and re.search(expected, message), message


def test_a_dry_run_and_a_benchmark_have_as_many_images(tmp_path):
    cfg = read_config(BESIDE)
    cfg.train_dataloader.batch_size, cfg.train_dataloader.unlabelled.per_image = 4, 1
    dry_run.prepare(cfg)
    batch = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
    assert len(batch['inputs']) == 8 and sum('gt_label' in sample for sample in batch['data_samples']) == 4

    for variant in (benchmark.FLOOR, benchmark.STUDENT, 'eager'):
        benchmark.build_step(read_config(BESIDE), variant, 2, 'cpu')()
