"""Kills trainings at random moments, resumes them, and compares their ends with that of one that nobody killed.

    python tests/kills.py --kills 20 --csv docs/results/kills.csv

That many kills for each of two trainings: the digits distillation with a checkpoint at every iteration; and the Pascal
VOC recipe on a few tiny images, which trains the connectors alone at first, with margins and alpha set from the data,
dropout in student and teacher, and two processes that load. Every second kill waits for a checkpoint to be written and
falls into that. Each training is killed a few times, with SIGKILL. Also called by pytest, with fewer kills.
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from small_models import save_teacher, segmentor
from tiny_data import write_voc

from overhaul.files.checkpoints import latest_checkpoint, read_checkpoint
from overhaul.files.settings import read_config

ROOT = Path(__file__).parents[1]


class Training(NamedTuple):
    """A config file, the name of its last checkpoint, and how many iterations train the connectors alone.

    ``python`` starts those that nobody kills.
    """

    config: Path
    last: str
    connectors_alone: int = 0
    python: str = sys.executable


class Kill(NamedTuple):
    """What a kill left behind.

    ``iteration``: that of the newest whole checkpoint, where the training goes on. ``half_written``: whether it fell
    into the writing of one. ``lost``: whether a newer one was whole before. ``damaged``: how many files ending in .pth
    cannot be read. ``pointed``: whether ``last_checkpoint`` names one that can.
    """

    iteration: int
    half_written: bool
    lost: bool
    damaged: int
    pointed: bool


def digits(folder: Path) -> Training:
    """The digits distillation, which saves each of its 32 iterations."""
    cfg = read_config(ROOT / 'configs/digits_wrn16_2_wrn10_1.py', {
        'train_cfg.max_iters': 32, 'train_cfg.val_interval': 8, 'default_hooks.checkpoint.interval': 1})
    return Training(_dump(cfg, folder / 'digits.py'), 'iter_32.pth')


def voc(folder: Path) -> Training:
    """The recipe of Pascal VOC: six epochs of four iterations, the first three epochs for the connectors alone."""
    write_voc(folder / 'VOC2012', train=4, aug=4)
    cfg = read_config(ROOT / 'configs/voc_r101_r18.py', {
        'train_cfg.max_epochs': 6, 'param_scheduler.end': 6, 'train_dataloader.batch_size': 2,
        'train_dataloader.num_workers': 2, 'val_dataloader.num_workers': 1})
    cfg.custom_hooks[0].epochs = 3
    cfg.train_pipeline[3].scale, cfg.train_pipeline[4].crop_size, cfg.train_pipeline[5].size = (
        [(40, 1000), (90, 1000)], (65, 65), (65, 65))
    cfg.test_pipeline[1].scale, cfg.data_preprocessor.size = (65, 1000), (65, 65)
    datasets = [*cfg.train_dataloader.dataset.datasets, cfg.val_dataloader.dataset]
    for dataset, pipeline in zip(datasets, (cfg.train_pipeline, cfg.train_pipeline, cfg.test_pipeline)):
        dataset.data_root, dataset.pipeline = str(folder / 'VOC2012'), pipeline
    teacher, student = segmentor(8, dropout=0.1), segmentor(4, dropout=0.1)
    for model in (teacher, student):
        model['decode_head']['num_classes'], model['test_cfg'] = 21, dict(mode='whole')
    paths = ('backbone.layer3.1.relu:input', 'backbone.layer4.1.relu:input')
    cfg.model = dict(
        type='overhaul.OverhaulDistiller', teacher=teacher, teacher_checkpoint=save_teacher(folder, teacher),
        student=student, taps=[dict(teacher=path, student=path) for path in paths], input_size=(65, 65),
        teacher_dropout=True, margin=dict(source='data'), distill_loss=dict(loss_weight='auto'))
    return Training(_dump(cfg, folder / 'voc.py'), 'epoch_6.pth', connectors_alone=12)


def _dump(cfg: Config, path: Path) -> Path:
    cfg.dump(path)
    return path


def start(training: Training, work_dir: Path, resume: bool, python: str = sys.executable) -> subprocess.Popen:
    """Start a training."""
    return subprocess.Popen(
        [python, str(ROOT / 'tools/train.py'), str(training.config), '--work-dir', str(work_dir),
         *(['--resume'] if resume else [])],
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(training: Training, work_dir: Path, resume: bool) -> dict:
    """Train to the end and return the last checkpoint."""
    process = start(training, work_dir, resume, training.python)
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f'The training failed: {errors[-2000:]}')
    return read_checkpoint(str(work_dir / training.last))


def kill(training: Training, work_dir: Path, draw: random.Random, while_writing: bool) -> Kill | None:
    """Go on with a training, kill it, and return what that left behind; None if it came to its end before."""
    before = _newest(work_dir)
    process = start(training, work_dir, resume=bool(before))
    # From the first new checkpoint on: the start of a process is long, and a kill there loses nothing.
    while process.poll() is None and _newest(work_dir) <= before:
        time.sleep(0.01)
    time.sleep(draw.uniform(0, 0.8))
    while while_writing and process.poll() is None and not any(work_dir.glob('*.part')):
        pass
    newest = _newest(work_dir)
    process.kill()
    _, errors = process.communicate()
    if process.returncode == 0:
        return None
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f'The training failed: {errors[-2000:]}')
    half_written, damaged = any(work_dir.glob('*.part')), list(_unreadable(work_dir))
    latest, pointer = latest_checkpoint(work_dir), work_dir / 'last_checkpoint'
    pointed = pointer.is_file() and Path(pointer.read_text()) in {*work_dir.glob('*.pth')} - {*damaged}
    return Kill(read_checkpoint(latest)['meta']['iter'], half_written, _number(Path(latest)) < newest, len(damaged),
                pointed)


def killed(
        training: Training, work_dir: Path, while_writing: Sequence[bool], draw: random.Random,
) -> tuple[dict, list[Kill]]:
    """Train to the end through a kill for each of ``while_writing``; return the last checkpoint and what kills left."""
    found = []
    for wait in while_writing:
        left = kill(training, work_dir, draw, wait)
        if left is None:
            return read_checkpoint(str(work_dir / training.last)), found
        found.append(left)
    return finish(training, work_dir, resume=True), found


def same_end(one: dict, other: dict) -> bool:
    """Return whether two trainings ended with the same bits: weights, momentum, schedules, results, all losses."""
    first, second = map(_end, (one, other))
    return first.keys() == second.keys() and all(_same(value, second[name]) for name, value in first.items())


def _end(checkpoint: dict) -> dict[str, object]:
    hub = checkpoint['message_hub']
    scalars = {name: history._log_history.tolist() for name, history in hub['log_scalars'].items()
               if not name.endswith('time')}
    momentum = {name: state['momentum_buffer'] for name, state in checkpoint['optimizer']['state'].items()}
    schedules = [{name: value for name, value in schedule.items() if not name.startswith('_')}
                 for schedule in checkpoint['param_schedulers']]
    return dict(checkpoint['state_dict'], best=hub['runtime_info']['best_result'], schedules=schedules,
                **{f'momentum of {name}': value for name, value in momentum.items()}, **scalars)


def _same(one: object, other: object) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def _unreadable(work_dir: Path) -> Iterator[Path]:
    for path in work_dir.glob('*.pth'):
        try:
            read_checkpoint(str(path))
        except ValueError:
            yield path


def _number(path: Path) -> int:
    return int(path.stem.rpartition('_')[2])


def _newest(work_dir: Path) -> int:
    return max(map(_number, [*work_dir.glob('iter_*.pth'), *work_dir.glob('epoch_*.pth')]), default=0)


def main() -> None:
    """Print a line per killed training, and whether all ended as they should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=20, help='of each training')
    parser.add_argument('--kills-per-training', type=int, default=4)
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    parser.add_argument('--csv', type=Path, help='file for one row per kill')
    arguments = parser.parse_args()
    draw, rows = random.Random(arguments.seed), []
    logging.disable(logging.INFO)  # of the models built here
    for make in (digits, voc):
        with tempfile.TemporaryDirectory() as folder:
            rows += campaign(make(Path(folder)), Path(folder), arguments.kills, arguments.kills_per_training, draw)
    if arguments.csv:
        with arguments.csv.open('w', newline='') as file:
            writer = csv.DictWriter(file, rows[0], lineterminator='\n')
            writer.writeheader()
            writer.writerows(rows)
    sound = all(row['same_end'] and row['pointed'] and not row['lost'] and not row['damaged'] for row in rows)
    print(f'{len(rows)} kills, {sum(row["half_written"] for row in rows)} of them while a checkpoint was written: '
          f'{"nothing was lost, and every end is the same bit by bit" if sound else "SOMETHING WAS LOST"}')
    sys.exit(0 if sound else 1)


def campaign(training: Training, folder: Path, kills: int, at_once: int, draw: random.Random) -> list[dict]:
    """Kill a training ``kills`` times, ``at_once`` on its way to one end, and return a row for each."""
    rows, undisturbed = [], finish(training, folder / 'undisturbed', resume=False)
    while len(rows) < kills:
        while_writing = [number % 2 == 1 for number in range(min(at_once, kills - len(rows)))]
        end, found = killed(training, folder / f'killed{len(rows)}', while_writing, draw)
        same = same_end(undisturbed, end)
        for one in found:
            phase = 'connectors alone' if one.iteration < training.connectors_alone else 'all'
            rows.append(dict(training=training.config.stem, phase=phase, **one._asdict(), same_end=same))
        print(f'{training.config.stem}: killed after iterations {", ".join(str(one.iteration) for one in found)}; '
              f'{sum(one.half_written for one in found)} times while a checkpoint was written; '
              f'end {"the same" if same else "DIFFERS"}', flush=True)
    return rows


if __name__ == '__main__':
    main()
