"""What distillation costs: seconds and memory of a training step, beside what no distillation can leave out."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import platform
import random
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from torch import nn

from overhaul.engine import dry_run, malloc, modes
from overhaul.files.parts import student_only, teacher_only, whole_model
from overhaul.files.settings import enter_scope
from overhaul.method.distiller import OverhaulDistiller
from overhaul.registry import MODELS
from overhaul.tasks import student_of

FLOOR, STUDENT = 'floor', 'student'
MODES = ('eager', 'channels_last', 'bfloat16', 'bfloat16+channels_last', 'compile', 'compile+bfloat16+channels_last')
WARM_UP = 3


def measure(
        cfg: Config, batch_size: int, device: str, rounds: int, chosen: Sequence[str] = MODES,
        progress: Callable[[str], None] = print) -> dict:
    """Measure training steps of a distillation on random images in the shapes of its config.

    The variants, each with models and an optimizer of its own, and each from a batch of uint8 images in CPU memory to
    updated weights:

    * ``floor``, what no distillation with this teacher can leave out, in float32: the teacher's whole forward pass with
      its batch norms in train mode and without gradient; the student's forward pass, task loss, backward pass and
      update. Plain PyTorch, no distillation at all.
    * ``student``: mmengine's training step of the student alone.
    * Overhaul, in each of ``chosen``: the training step of the config's model, as the runner takes it.

    Speed: after a warm-up all variants take turns in this process, in an order that is shuffled in each round, so that
    whatever else slows the machine down meets all alike. The ratio to the floor is taken within a round. With a single
    thread on a CPU the seconds are those of the processor, which do not count while it runs other programs.

    Memory: each variant takes its steps in a fresh process. On a GPU it is the peak of torch's allocator during steps
    after the warm-up, in which algorithms are tried that need more. On a CPU it is what the peak of resident memory
    adds, during the steps, to what was resident when the models had been built, while freed memory is given back: what
    is in use at a time. A training keeps it and takes somewhat more. With compilation it is left out, since the
    compiler's own memory would be in it.

    Args:
        cfg: Config of a distillation. Not changed.
        batch_size: Images per step.
        device: ``'cpu'`` or ``'cuda'``.
        rounds: Turns of each variant: one step each on a CPU, ten on a GPU.
        chosen: Modes, each some of :data:`MODES` joined by ``+``, or ``'eager'``, none of them.
        progress: Is told what is going on.

    Returns:
        Plain data: the setting, and per variant either ``failed``, why it does not work here, or ``seconds`` (per step,
        one number per round), ``images_per_second`` (median), ``ratio`` to the floor (median and quartiles),
        ``memory`` in bytes, and ``memory_ratio`` to the floor.

    Raises:
        ValueError: If the config is no distillation; if a mode is unknown; if the device is not there.
    """
    if device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('torch sees no GPU here. Measure with --device cpu, or install a torch with CUDA.')
    student_only(cfg), teacher_only(cfg)  # refuse what is no distillation
    for mode in chosen:
        modes.turn_on(copy.deepcopy(cfg), parts(mode))
    if device == 'cpu':
        malloc.keep_freed()  # as a training does
    variants = _speed(cfg, batch_size, device, rounds, chosen, progress)
    if device == 'cuda':
        gc.collect()
        torch.cuda.empty_cache()  # or the processes that follow have so much less
    for name, variant in variants.items():
        if 'failed' in variant:
            continue
        variant['ratio'] = quartiles(np.divide(variant['seconds'], variants[FLOOR]['seconds']))
        if device == 'cuda' or 'compile' not in name:
            progress(f'{name}: memory')
            variant['memory'] = in_fresh_process(memory, cfg, name, batch_size, device)
            variant['memory_ratio'] = variant['memory'] / variants[FLOOR]['memory']
    return {'setting': _setting(cfg, batch_size, device, rounds), 'variants': variants}


def _speed(
        cfg: Config, batch_size: int, device: str, rounds: int, chosen: Sequence[str],
        progress: Callable[[str], None]) -> dict[str, dict]:
    """Return what :func:`measure` does but memory and ratios. Whatever was built is out of use then."""
    steps, variants = {}, {}
    for name in (FLOOR, STUDENT, *chosen):
        progress(f'{name}: building and warming up')
        try:
            step = build_step(cfg, name, batch_size, device)
            for _ in range(WARM_UP):
                step()
            steps[name], variants[name] = step, {}
        except Exception as error:  # whatever a compiler or a device lacks
            if name in (FLOOR, STUDENT, 'eager'):
                raise
            variants[name] = {'failed': f'{type(error).__name__}: {str(error).strip()}'.partition('\n')[0]}
    for name, seconds in take_turns(steps, rounds, device).items():
        variants[name] = {'seconds': seconds, 'images_per_second': batch_size / float(np.median(seconds))}
    return variants


def parts(mode: str) -> list[str]:
    """Return the modes that the name of a variant joins, none for ``'eager'``."""
    return [] if mode == 'eager' else mode.split('+')


def build_step(cfg: Config, variant: str, batch_size: int, device: str) -> Callable[[], None]:
    """Return a function that takes one training step of ``variant`` with ``batch_size`` random images."""
    cfg = copy.deepcopy(cfg)
    cfg.train_dataloader.batch_size = batch_size
    dry_run.prepare(cfg)
    if variant in (FLOOR, STUDENT) and 'unlabelled' in cfg.train_dataloader:  # as many images, all of them with labels
        cfg.train_dataloader.batch_size *= 1 + cfg.train_dataloader.pop('unlabelled').per_image
    enter_scope(cfg)
    cfg.model = whole_model(cfg)
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    batch, annotated = next(iter(loader)), loader.dataset.annotated
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    MMLogger.get_instance('benchmark', log_level='WARNING')  # or there is a line for each weight that is initialised
    for name in ('iter', 'epoch'):  # as a runner does; YOLOX and TOOD ask
        MessageHub.get_current_instance().update_info(name, 0)
    if variant == FLOOR:
        return _floor_step(cfg, batch, device, annotated)
    if variant == STUDENT:
        cfg.model = student_only(cfg)
    else:
        modes.turn_on(cfg, parts(variant))
    model = _build(cfg.model, device)
    if not annotated:
        dry_run.leave_out_task_loss(student_of(model))
    if variant != STUDENT:
        _decide(model)
    if 'channels_last' in variant:
        model.to(memory_format=torch.channels_last)
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    if 'compile' in variant:
        modes.compile_losses(model)
    return lambda: model.train_step(batch, optim_wrapper)


def _decide(model: OverhaulDistiller) -> None:
    """Let margins and alpha that the data would decide be 0: a step costs the same whatever they are."""
    for buffer in (*model.margins.buffers(), *model.distill_loss.buffers()):
        buffer.masked_fill_(buffer.isnan(), 0)


def _floor_step(cfg: Config, batch: dict, device: str, annotated: bool) -> Callable[[], None]:
    teacher, student = _build(teacher_only(cfg), device), _build(student_only(cfg), device)
    if not annotated:
        dry_run.leave_out_task_loss(student)
    optimizer = build_optim_wrapper(student, cfg.optim_wrapper).optimizer

    def step() -> None:
        data = student.data_preprocessor(batch, True)
        with torch.no_grad():
            teacher(**data, mode='tensor')
        total, _ = student.parse_losses(student(**data, mode='loss'))
        total.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _build(model_cfg: dict, device: str) -> nn.Module:
    model = MODELS.build(model_cfg)
    model.init_weights()
    model.to(device)
    model.train()
    return model


def take_turns(steps: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, list[float]]:
    """Return the seconds per step of each variant, one number per round."""
    at_once = 10 if device == 'cuda' else 1  # a single step on a GPU is mostly launching
    alone = device == 'cpu' and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    wait = torch.cuda.synchronize if device == 'cuda' else lambda: None
    seconds = {name: [] for name in steps}
    order, shuffled = list(steps), random.Random(0)
    for _ in range(rounds):
        shuffled.shuffle(order)
        for name in order:
            wait()
            start = clock()
            for _ in range(at_once):
                steps[name]()
            wait()
            seconds[name].append((clock() - start) / at_once)
    return seconds


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the quartiles of ``values``."""
    first, median, third = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return {'median': median, 'first_quartile': first, 'third_quartile': third}


def memory(cfg: Config, variant: str, batch_size: int, device: str) -> int:
    """Return the bytes that the training steps of ``variant`` take, see :func:`measure`. For a fresh process."""
    step = build_step(cfg, variant, batch_size, device)
    gc.collect()
    if device == 'cuda':
        for _ in ('warm-up', 'measured'):
            torch.cuda.reset_peak_memory_stats()
            for _ in range(WARM_UP):
                step()
            torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    malloc.give_back_freed()  # also what building left behind, which would take some of the growth in
    Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew
    before = _resident('VmRSS')
    for _ in range(WARM_UP):
        step()
    return _resident('VmHWM') - before


def _resident(field: str) -> int:
    status = Path('/proc/self/status').read_text()
    return int(re.search(rf'{field}:\s+(\d+) kB', status)[1]) * 1024


def in_fresh_process(function: Callable, *arguments: object) -> object:
    """Return what ``function`` gives in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        return pool.submit(function, *arguments).result()


def _setting(cfg: Config, batch_size: int, device: str, rounds: int) -> dict:
    prepared = copy.deepcopy(cfg)
    dry_run.prepare(prepared)
    return {
        'batch_size': batch_size, 'image_size': list(prepared.train_dataloader.dataset.size), 'rounds': rounds,
        'device': torch.cuda.get_device_name() if device == 'cuda' else _processor(),
        'threads': torch.get_num_threads(), 'torch': torch.__version__, 'python': platform.python_version()}


def _processor() -> str:
    information = Path('/proc/cpuinfo')
    found = re.search(r'model name\s*: (.+)', information.read_text()) if information.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def table(result: dict) -> str:
    """Return what :func:`measure` found, one line per variant."""
    setting = result['setting']
    lines = [
        '{device}, {threads} threads, torch {torch}, float32 but where said; batch {batch_size} of {size}, '
        '{rounds} rounds'.format(size='x'.join(map(str, setting['image_size'])), **setting),
        f'{"variant":32}{"ms/step":>9}{"images/s":>10}  {"time / floor (quartiles)":26}{"memory MiB":>10}'
        f'{"/ floor":>9}']
    for name, variant in result['variants'].items():
        if 'failed' in variant:
            lines.append(f'{name:32}does not work here: {variant["failed"]}')
            continue
        ratio = '{median:.3f} ({first_quartile:.3f} to {third_quartile:.3f})'.format(**variant['ratio'])
        line = (f'{name:32}{1000 * float(np.median(variant["seconds"])):9.1f}{variant["images_per_second"]:10.1f}  '
                f'{ratio:26}')
        if 'memory' in variant:
            line += f'{variant["memory"] / 2**20:10.0f}{variant["memory_ratio"]:9.3f}'
        lines.append(line)
    return '\n'.join(lines)
