"""Measure where the time of a distillation goes, how its cost grows, how it starts, and what its data cost.

    OMP_NUM_THREADS=2 python docs/speed.py growth

Prints a table of docs/speed.md. The page says with how many threads; its first tables are made by tools/benchmark.py.
The setting is (c) of CIFAR-100, without its images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import default_collate, pseudo_collate
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler
from torch.utils.flop_counter import FlopCounterMode

from overhaul import InMemory
from overhaul.engine import benchmark, malloc
from overhaul.engine.exact_resume import NumberedBatches, SeededDataset
from overhaul.files.settings import read_config
from overhaul.registry import MODELS

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / 'configs/cifar100_wrn28_4_wrn16_2.py'
DIGITS = ROOT / 'configs/digits_wrn16_2_wrn10_1.py'
ROUNDS = 5


def growth() -> None:
    """Time and memory against batch size, image size and number of taps."""
    table('batch size', [(size, size, 32, 3) for size in (16, 32, 64, 128)])
    table('pixels', [(side**2, 32, side, 3) for side in (16, 32, 48, 64)])
    table('taps', [(taps, 64, 32, taps) for taps in (1, 2, 3)])


def table(what: str, settings: Sequence[tuple[int, int, int, int]]) -> None:
    """Print time and memory per setting: its number in the table, batch size, side of the image, taps."""
    print(f'| {what} | floor, ms | Overhaul, ms | ratio | floor, MiB | Overhaul, MiB | ratio |\n|{"---|" * 7}')
    numbers, columns = [], []
    for number, batch_size, side, taps in settings:
        cfg = read_config(CONFIG)
        cfg.model.input_size = (side, side)
        cfg.model.taps = cfg.model.taps[-taps:]
        result = benchmark.measure(cfg, batch_size, 'cpu', ROUNDS, ['eager'], progress=lambda _: None)
        floor, ours = (result['variants'][name] for name in ('floor', 'eager'))
        times = [1000 * float(np.median(variant['seconds'])) for variant in (floor, ours)]
        memory = [variant['memory'] / 2**20 for variant in (floor, ours)]
        print(f'| {number} | {times[0]:.0f} | {times[1]:.0f} | {ours["ratio"]["median"]:.3f} | {memory[0]:.0f} '
              f'| {memory[1]:.0f} | {ours["memory_ratio"]:.3f} |', flush=True)
        numbers.append(number)
        columns.append([*times, *memory])
    slopes = [np.polyfit(numbers, column, 1)[0] for column in zip(*columns)]
    fit = [np.corrcoef(numbers, column)[0, 1]**2 for column in zip(*columns)]
    print(f'| slope, R² | {slopes[0]:.3g}, {fit[0]:.3f} | {slopes[1]:.3g}, {fit[1]:.3f} | | {slopes[2]:.3g}, '
          f'{fit[2]:.3f} | {slopes[3]:.3g}, {fit[3]:.3f} | |\n')


def unlabelled() -> None:
    """Time and memory of a step of 60 images, of which some have no labels, beside one whose images all have some."""
    images, settings, steps = 60, {}, {}
    malloc.keep_freed()  # as a training does
    for per_image in (0, 1, 4):
        cfg = read_config(CONFIG)
        if per_image:
            cfg.train_dataloader.unlabelled = dict(data_root='any', per_image=per_image)
        settings[per_image] = cfg, 'eager', images // (1 + per_image), 'cpu'
        steps[per_image] = benchmark.build_step(*settings[per_image])
        for _ in range(benchmark.WARM_UP):
            steps[per_image]()
    seconds = benchmark.take_turns(steps, 4 * ROUNDS, 'cpu')
    memory = {number: benchmark.in_fresh_process(benchmark.memory, *setting) for number, setting in settings.items()}
    print('| without labels for each with labels | with labels, without | ms per image | ratio (quartiles) | '
          f'MiB per image | ratio |\n|{"---|" * 6}')
    for number, (_, _, labelled, _) in settings.items():
        ratio = benchmark.quartiles(np.divide(seconds[number], seconds[0]))
        print(f'| {number} | {labelled}, {images - labelled} | {1000 * np.median(seconds[number]) / images:.2f} | '
              '{median:.3f} ({first_quartile:.3f} to {third_quartile:.3f}) | '.format(**ratio) +
              f'{memory[number] / images / 2**20:.2f} | {memory[number] / memory[0]:.3f} |', flush=True)
    print()


def arithmetic() -> None:
    """Floating-point operations of a step, counted by torch: what the connectors add, if all take the same time."""
    print('| | floor, Gflop per image | Overhaul | ratio |\n|---|---|---|---|')
    for config in ('cifar100_wrn28_4_wrn16_2', 'imagenet_r50_mobilenet', 'voc_r101_r18'):
        # Torch's counter counts one backward pass, but none inside the forward pass.
        cfg, counts = read_config(ROOT / f'configs/{config}.py', {'model.at_once': False}), []
        for variant in ('floor', 'eager'):
            step = benchmark.build_step(cfg, variant, 2, 'cpu')
            # Only shapes are computed. Where the code asks for a number, any number will do.
            shapes = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
            with shapes, patch.object(torch.Tensor, 'item', lambda _: 0), \
                    FlopCounterMode(display=False) as counter:
                step()
            counts.append(counter.get_total_flops() / 2e9)
        print(f'| `{config}` | {counts[0]:.2f} | {counts[1]:.2f} | {counts[1] / counts[0]:.3f} |', flush=True)
    print()


def where() -> None:
    """Milliseconds per step of each operation, of the floor and of a distillation, by torch's profiler."""
    malloc.keep_freed()  # as a training does
    cfg, spent = read_config(CONFIG), {}
    for variant in ('floor', 'eager'):
        step = benchmark.build_step(cfg, variant, 64, 'cpu')
        for _ in range(3):
            step()
        with torch.profiler.profile() as profile:
            for _ in range(10):
                step()
        spent[variant] = Counter({event.key: event.self_cpu_time_total / 10_000 for event in profile.key_averages()})
    print('| operation | floor, ms | Overhaul, ms | more |\n|---|---|---|---|')
    more = {name: spent['eager'][name] - spent['floor'][name] for name in spent['floor'] | spent['eager']}
    most = sorted(more, key=lambda name: abs(more[name]))[-10:]
    for name in sorted(most, key=more.get, reverse=True):
        print(f'| `{name}` | {spent["floor"][name]:.1f} | {spent["eager"][name]:.1f} | {more[name]:.1f} |')
    floor, ours = (sum(counter.values()) for counter in spent.values())
    print(f'| all | {floor:.1f} | {ours:.1f} | {ours - floor:.1f} |\n')


def start() -> None:
    """Processor seconds from the command to the first step."""
    print('| | seconds |\n|---|---|')
    for name, command in (
            ('`import overhaul`', ['-c', 'import overhaul']),
            ('`import torch, mmengine.runner`', ['-c', 'import torch, mmengine.runner']),
            ('`import overhaul.method.distiller`', ['-c', 'import overhaul.method.distiller']),
            ('`import mmpretrain.models`', ['-c', 'import mmpretrain.models']),
            ('`tools/train.py` on the digits with `--dry-run`, all of it', [
                str(ROOT / 'tools/train.py'), str(DIGITS), '--dry-run'])):
        before = os.times()
        subprocess.run([sys.executable, '-W', 'ignore', *command], check=True, capture_output=True, cwd=ROOT)
        after = os.times()
        print(f'| {name} | {sum(after[2:4]) - sum(before[2:4]):.1f} |', flush=True)
    print()


class Noise(Dataset):
    """Images (H, W, 3) that go through a pipeline as those of CIFAR-100 do."""

    metainfo = {}

    def __init__(self, pipeline: Sequence[dict]) -> None:
        self.images = np.random.RandomState(0).randint(0, 256, (1024, 32, 32, 3), dtype=np.uint8)
        self.pipeline = Compose(pipeline)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        return self.pipeline(dict(img=self.images[index], gt_label=index % 100, img_shape=(32, 32), ori_shape=(32, 32)))


def data() -> None:
    """Processor time per batch of 128, from the dataset to what enters the model, by one process without workers."""
    cfg = Config.fromfile(ROOT / 'configs/_base_/datasets/cifar100.py')
    pack = cfg.train_dataloader.dataset.dataset.pipeline
    by_image = [
        dict(type='mmpretrain.RandomCrop', crop_size=40, pad_if_needed=True, padding_mode='reflect'),
        dict(type='mmpretrain.RandomCrop', crop_size=32), dict(type='mmpretrain.RandomFlip', prob=0.5)]
    plain = {name: cfg.data_preprocessor[name] for name in ('mean', 'std', 'num_classes')}
    print('| | loading, ms | preprocessor, ms |\n|---|---|---|')
    for name, source, collate, preprocessor in (
            ('image by image', Noise(by_image + pack), pseudo_collate, dict(type='ClsDataPreprocessor', **plain)),
            ('`cifar100.py`', InMemory(dict(type=Noise, pipeline=pack)), default_collate, cfg.data_preprocessor)):
        preprocessor = MODELS.build(dict(preprocessor, _scope_='mmpretrain'))
        loading, preparing = [], []
        for _ in range(5):
            # As in a training: the random draws depend on the place of an image in it.
            places = NumberedBatches(BatchSampler(RandomSampler(source), 128, False), (0, 0), first=0, skip=0)
            batches = iter(DataLoader(SeededDataset(source), batch_sampler=places, collate_fn=collate))
            for _ in range(len(source) // 128):
                times = [time.process_time()]
                batch = next(batches)
                times.append(time.process_time())
                preprocessor(batch, True)
                times.append(time.process_time())
                loading.append(times[1] - times[0])
                preparing.append(times[2] - times[1])
        print(f'| {name} | {1000 * np.median(loading):.1f} | {1000 * np.median(preparing):.1f} |', flush=True)
    print()


def processes() -> None:
    """Time per step of the digits by one process, and by two with a batch each, on a core each."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1',
                   'PATH': os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])}
    print('| processes | images per step | ms per step | images/s |\n|---|---|---|---|')
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                ['bash', str(ROOT / 'tools/dist_train.sh'), str(DIGITS), str(count), '--work-dir', folder,
                 '--cfg-options', 'train_cfg.max_iters=200', 'default_hooks.logger.interval=1'],
                check=True, capture_output=True, cwd=ROOT, env=environment)
            rows = next(Path(folder).glob('*/vis_data/scalars.json')).read_text().splitlines()
        seconds = np.median([row['time'] for row in map(json.loads, rows) if 'loss' in row][20:])
        print(f'| {count} | {50 * count} | {1000 * seconds:.1f} | {50 * count / seconds:.0f} |', flush=True)


TABLES = {function.__name__: function for function in (unlabelled, arithmetic, where, growth, start, data, processes)}

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('table', nargs='+', choices=TABLES)
    for name in parser.parse_args().table:
        TABLES[name]()
