"""Train the model of a config: a distillation, its student alone, or a plain model."""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.device import is_cuda_available
from mmengine.hooks import EMAHook
from mmengine.runner import Runner

from overhaul import compat
from overhaul.engine import (
    data_classes,
    dry_run,
    exact_resume,
    followed,
    malloc,
    modes,
    same_start,
    same_training,
    starting_weights,
)
from overhaul.engine.runner import bare_model
from overhaul.engine.terminal import TerminalRunner
from overhaul.errors import one_paragraph_errors
from overhaul.files.checkpoints import latest_checkpoint
from overhaul.files.parts import student_only, task_name
from overhaul.files.settings import Overrides, config_name, read_config
from overhaul.files.weights import check_resumable, resumed_file
from overhaul.tasks import name_task, student_of


def parse_arguments(command_line: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line: that of the process by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, as configs/digits_wrn16_2_wrn10_1.py')
    parser.add_argument('--work-dir', help='where logs and checkpoints go; default: work_dirs/<name of the config>')
    parser.add_argument(
        '--student-only', action='store_true', help='train the student on the same schedule without a teacher')
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        '--resume', nargs='?', const='auto', metavar='PATH',
        help='go on from the latest checkpoint of the work directory, or from PATH')
    start.add_argument(
        '--dry-run', action='store_true',
        help='try the config: two training steps and one validation step on random data, without dataset and teacher')
    parser.add_argument(
        '--amp', action='store_true', help='compute in bfloat16 where that does no harm, on a GPU or CPU')
    parser.add_argument('--channels-last', action='store_true', help='keep features and convolutions channels last')
    parser.add_argument('--compile', action='store_true', help='compile the losses; the first step takes minutes')
    parser.add_argument(
        '--verbose', action='store_true', help='show the environment, the config and the order of the hooks too')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none',
                        help='what started several processes; the shell scripts of tools give it')
    parser.add_argument(
        '--cfg-options', nargs='+', action=Overrides, metavar='KEY=VALUE',
        help='override parts of the config, as model.distill_loss.loss_weight=1e-2 randomness.seed=1')
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(command_line)


def prepare_config(arguments: argparse.Namespace) -> Config:
    """Return the config with the command line merged in."""
    cfg = read_config(arguments.config, arguments.cfg_options)
    followed.give_rules(cfg)
    cfg.launcher = arguments.launcher
    name = config_name(arguments.config)
    if arguments.dry_run:
        dry_run.prepare(cfg)
    start = None
    if arguments.student_only:
        start, cfg.task = cfg.model.get('student_checkpoint'), task_name(cfg)
        cfg.model = student_only(cfg)
        cfg.train_dataloader.pop('unlabelled', None)  # there is nothing to learn from them without a teacher
        name += '_student_only'
    asked_for = {'bfloat16': arguments.amp, 'channels_last': arguments.channels_last, 'compile': arguments.compile}
    modes.turn_on(cfg, [mode for mode, wanted in asked_for.items() if wanted])
    cfg.work_dir = arguments.work_dir or cfg.get('work_dir') or f'work_dirs/{name}'
    if arguments.resume == '':
        raise ValueError('--resume names an empty path. Name a checkpoint, or leave the path out to take the latest.')
    resume = arguments.resume or (cfg.get('resume') and (cfg.get('load_from') or 'auto'))
    found = latest_checkpoint(cfg.work_dir) if resume == 'auto' else resume
    cfg.resume = bool(found)
    cfg.load_from = resumed_file(found) if found else start if cfg.get('load_from') is None else cfg.load_from
    return cfg


def check_start(runner: Runner, cfg: Config) -> None:
    """Read the checkpoint that the training goes on from, or starts from, and refuse it where it is of no use."""
    source = cfg.get('load_from')
    if source is not None and cfg.get('resume'):
        averages = any(isinstance(hook, EMAHook) for hook in runner.hooks)
        check_resumable(bare_model(runner), source, averages)
    elif source is not None:
        starting_weights.prepare(runner)


def main(command_line: Sequence[str] | None = None) -> None:
    """Train."""
    train(parse_arguments(command_line))
    compat.leave_launcher()


def train(arguments: argparse.Namespace) -> None:
    """Train as the command line has it."""
    os.environ.setdefault('LOCAL_RANK', str(arguments.local_rank))
    with one_paragraph_errors():
        cfg = prepare_config(arguments)
        compat.prepare_launcher(cfg)
        if not is_cuda_available():
            malloc.keep_freed()
        # mmengine looks for garbage with each dataset. What is imported is none, and need not be looked through again.
        gc.collect()
        gc.freeze()
        with tempfile.TemporaryDirectory() as scratch:
            if arguments.dry_run:
                cfg.work_dir = scratch
            runner = (Runner if arguments.verbose else TerminalRunner).from_cfg(cfg)
            if not arguments.dry_run:
                log = Path(runner.log_dir, f'{runner.timestamp}.log')
                runner.logger.info(f'All that is said here, the environment and the config are in {log}')
            compat.save_names_that_load(bare_model(runner))
            name_task(student_of(bare_model(runner)), task_name(cfg))
            starting_weights.watch_initialisation(runner)
            check_start(runner, cfg)
            if arguments.resume and not cfg.resume:
                runner.logger.info(f'No checkpoint to resume in {cfg.work_dir}: the training begins anew.')
            compat.never_run_checkpoints(runner)
            compat.never_change_rate(runner)
            compat.refuse_endless_epochs(runner)
            exact_resume.prepare(runner)
            same_start.prepare(runner)
            same_training.prepare(runner)
            data_classes.prepare(runner)
            followed.prepare(runner)
            runner.train()
