"""Kills trainings at random moments, resumes them, and compares their ends with that of one that nobody killed.

    python tests/kills.py --kills 20

The training is the digits distillation with a checkpoint at every iteration, so that some of the kills fall into the
writing of one. Each training is killed a few times, with SIGKILL. Also called by pytest, with fewer kills.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

from overhaul.checkpoints import latest_checkpoint, read_checkpoint

ROOT = Path(__file__).parents[1]
ITERATIONS = 24


class Kill(NamedTuple):
    """What was found after a kill: the iteration of the last whole checkpoint, and what lay half written beside it."""

    iteration: int
    half_written: int


def start(config: Path, work_dir: Path, resume: bool) -> subprocess.Popen:
    """Start a training."""
    options = [f'train_cfg.max_iters={ITERATIONS}', 'train_cfg.val_interval=8', 'default_hooks.checkpoint.interval=1']
    return subprocess.Popen(
        [sys.executable, str(ROOT / 'tools/train.py'), str(config), '--work-dir', str(work_dir),
         *(['--resume'] if resume else []), '--cfg-options', *options],
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(config: Path, work_dir: Path, resume: bool) -> dict:
    """Train to the end and return the last checkpoint."""
    process = start(config, work_dir, resume)
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f'The training failed: {errors[-2000:]}')
    return read_checkpoint(str(work_dir / f'iter_{ITERATIONS}.pth'))


def killed(config: Path, work_dir: Path, kills: int, draw: random.Random) -> tuple[dict, list[Kill]]:
    """Train to the end through ``kills`` kills; return the last checkpoint and what each kill left behind."""
    found = []
    for _ in range(kills):
        process = start(config, work_dir, resume=bool(found))
        before = found[-1].iteration if found else 0
        # From the first new checkpoint on: the start of a process is long, and a kill there loses nothing.
        while process.poll() is None and _newest(work_dir) <= before:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.8))
        process.kill()
        process.communicate()
        latest = latest_checkpoint(work_dir)
        found.append(Kill(read_checkpoint(latest)['meta']['iter'], len(list(work_dir.glob('*.part')))))
    return finish(config, work_dir, resume=True), found


def same_end(one: dict, other: dict) -> bool:
    """Return whether two trainings ended with the same bits, in the weights and in the optimizer."""
    def tensors(checkpoint: dict) -> list[torch.Tensor]:
        states = checkpoint['optimizer']['state'].values()
        return [*checkpoint['state_dict'].values(), *(state['momentum_buffer'] for state in states)]

    results = [checkpoint['message_hub']['runtime_info']['best_result'] for checkpoint in (one, other)]
    return results[0] == results[1] and all(torch.equal(*pair) for pair in zip(tensors(one), tensors(other)))


def _newest(work_dir: Path) -> int:
    return max((int(path.stem.removeprefix('iter_')) for path in work_dir.glob('iter_*.pth')), default=0)


def main() -> None:
    """Print a line per killed training, and whether all ended as they should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--kills-per-training', type=int, default=4)
    parser.add_argument('--config', type=Path, default=ROOT / 'configs/digits_wrn16_2_wrn10_1.py')
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    arguments = parser.parse_args()
    draw, done, ends = random.Random(arguments.seed), 0, []
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = finish(arguments.config, Path(folder, 'undisturbed'), resume=False)
        while done < arguments.kills:
            count = min(arguments.kills_per_training, arguments.kills - done)
            end, found = killed(arguments.config, Path(folder, f'killed{done}'), count, draw)
            ends.append(same_end(undisturbed, end))
            done += count
            print(f'killed after iterations {", ".join(str(kill.iteration) for kill in found)}; '
                  f'{sum(kill.half_written for kill in found)} times while a checkpoint was written; '
                  f'end {"the same" if ends[-1] else "DIFFERS"}', flush=True)
    print(f'{done} kills, {sum(ends)} of {len(ends)} trainings ended bit by bit as the undisturbed one')
    sys.exit(0 if all(ends) else 1)


if __name__ == '__main__':
    main()
