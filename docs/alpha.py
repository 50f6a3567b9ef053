"""Measure how strong the distillation of each config is beside its task, at step 0.

    OMP_NUM_THREADS=2 python docs/alpha.py

Prints the table of docs/alpha.md. Weights are initial ones. A teacher whose file comes with this package is also
measured with its weights. Images are the real ones for the digits and their scenes. For the others they are crops of
the two photographs of scikit-learn, with random labels.
"""

from __future__ import annotations

import sys
import warnings
from functools import cache
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.runner import Runner, set_random_seed
from sklearn.datasets import load_sample_images
from torch.nn import functional

from overhaul.engine import dry_run
from overhaul.files.parts import plain_model, whole_model, without_downloads
from overhaul.files.settings import read_config
from overhaul.method.distiller import OverhaulDistiller
from overhaul.method.probe import Strength, measure
from overhaul.registry import build, is_type

CONFIGS = Path(__file__).parents[1] / 'configs'
SEEDS = 3  # one for large images, which take minutes


@cache
def photographs() -> list[torch.Tensor]:
    """Return the two (1, 3, H, W), RGB."""
    return [torch.tensor(image).permute(2, 0, 1)[None].float() for image in load_sample_images().images]


class Photographs(dry_run.RandomImages):
    """Square crops of photographs, of random place and size, with random labels."""

    def __getitem__(self, index: int) -> dict:
        """Return one as ``dry_run.RandomImages`` does."""
        item = super().__getitem__(index)
        generator = torch.Generator().manual_seed(index)
        photograph = photographs()[index % 2]
        height, width = photograph.shape[2:]
        edge = int(torch.randint(height // 3, height + 1, (), generator=generator))
        top, left = (int(torch.randint(0, length - edge + 1, (), generator=generator)) for length in (height, width))
        crop = photograph[:, :, top:top + edge, left:left + edge]
        crop = functional.interpolate(crop, self.size, mode='bilinear', antialias=True)
        return dict(item, inputs=crop[0].round().to(torch.uint8))


def batch_of(cfg: Config, seed: int) -> dict:
    """Return a batch of the config: digits, or 32 small or 2 large photographs in place of its data."""
    if is_type(cfg.train_dataloader.dataset, 'overhaul.Digits', 'overhaul.DigitScenes'):
        cfg.train_dataloader.dataset.seed = seed
        return next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=seed)))
    head = cfg.model.student.get('decode_head') or cfg.model.student.head
    size = tuple(cfg.model.input_size)
    count = 32 if max(size) < 100 else 2
    if 'loss_decode' in head:  # it divides by the images of a step, which are fewer here
        head.loss_decode.loss_weight = count / cfg.auto_scale_lr.base_batch_size
    crops = Photographs(count * (seed + 1), size, plain_model(cfg))
    return pseudo_collate([crops[count * seed + i] for i in range(count)])


def strength_of(path: Path, seed: int, trained: bool) -> tuple[Strength, OverhaulDistiller]:
    """Measure the config with a seed for weights and images, and with the shipped teacher if it is ``trained``."""
    cfg = read_config(path)
    without_downloads(cfg.model)
    if not trained:
        cfg.model.teacher_checkpoint = None
    set_random_seed(seed)
    data = batch_of(cfg, seed)
    model = build(whole_model(cfg), 'model')
    model.init_weights()
    return measure(model.train(), data), model


def main() -> None:
    """Measure and print."""
    warnings.simplefilter('ignore')
    MMLogger.get_instance('alpha', log_level='ERROR')  # else a line of the log says how each weight is initialised
    # The configs whose alpha is a number.
    names = sys.argv[1:] or [
        path.stem for path in sorted(CONFIGS.glob('*.py')) if "alpha='auto'" not in path.read_text()]
    print('| config | teacher | alpha | terms, in thousands | task loss | distillation / task | gradients |')
    print('|---|---|---|---|---|---|---|')
    for name in names:
        cfg = read_config(CONFIGS / f'{name}.py')
        if 'teacher' not in cfg.model:
            continue
        seeds = range(SEEDS if max(cfg.model.input_size) < 100 else 1)
        shipped = cfg.model.teacher_checkpoint.startswith('overhaul://')
        for trained in (False, True)[:1 + shipped]:
            results = [strength_of(CONFIGS / f'{name}.py', seed, trained) for seed in seeds]
            model = results[0][1]
            terms = sum(weight * tap.channels * tap.size[0] * tap.size[1]
                        for weight, tap in zip(model.tap_weights, model.teacher_taps))
            columns = [[strength.task_loss for strength, _ in results],
                       [strength.loss_ratio for strength, _ in results],
                       [strength.gradient_ratio for strength, _ in results]]
            print(f'| {name} | {"trained" if trained else "initial"} | {model.distill_loss.loss_weight:g} | '
                  f'{terms / 1000:.0f} | ' + ' | '.join(spread(column) for column in columns) + ' |', flush=True)


def spread(values: list[float]) -> str:
    """Return least and most, or the one value."""
    return ' to '.join(dict.fromkeys(f'{value:.3g}' for value in (min(values), max(values))))


if __name__ == '__main__':
    main()
