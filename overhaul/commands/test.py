"""Test the student of a config, or its teacher, on the test data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmengine.config import Config, ConfigDict
from torch import nn

from overhaul import compat
from overhaul.datasets import voc_submission
from overhaul.engine.runner import bare_model
from overhaul.engine.terminal import TerminalRunner
from overhaul.errors import one_paragraph_errors
from overhaul.files.parts import build_plain, student_only, task_name, teacher_only
from overhaul.files.settings import Overrides, config_name, read_config
from overhaul.files.weights import load_weights
from overhaul.tasks import name_task, student_of, task_of
from overhaul.tasks.results import Judge


def parse_arguments(command_line: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line: that of the process by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, as configs/digits_wrn16_2_wrn10_1.py')
    parser.add_argument('checkpoint', nargs='?', help='weights of the student; not needed with --teacher')
    parser.add_argument('--teacher', action='store_true', help='test the teacher, with its teacher_checkpoint')
    parser.add_argument('--work-dir', help='where logs go; default: work_dirs/<name of the config>')
    parser.add_argument(
        '--tta', action='store_true', help='augment at test time, by the tta_model and tta_pipeline of the config')
    parser.add_argument(
        '--voc-submission', metavar='DIR',
        help='segment the test set of Pascal VOC instead, and write DIR/results.tgz for its evaluation server')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none',
                        help='what started several processes; the shell scripts of tools give it')
    parser.add_argument('--cfg-options', nargs='+', action=Overrides, metavar='KEY=VALUE')
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args(command_line)  # CHECKPOINT may come after the options too
    if not arguments.teacher and arguments.checkpoint is None:
        parser.error('name the CHECKPOINT to test, or give --teacher')
    return arguments


def augment(cfg: Config) -> None:
    """Make the config test each image in several variants, as ``--tta`` of mmpretrain and mmseg does."""
    missing = [key for key in ('tta_model', 'tta_pipeline') if key not in cfg]
    if missing:
        raise ValueError(
            f'--tta needs {" and ".join(missing)} in the config, as the base configs of mmseg have them, for example '
            'tta_model=dict(type="mmpretrain.AverageClsScoreTTA") and a tta_pipeline that ends in a TestTimeAug.')
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def check_teacher(teacher: nn.Module, student: nn.Module, dataset: object) -> None:
    """Refuse a teacher that gives something else than what the evaluator of its student compares.

    Raises:
        ValueError: Says why it cannot be tested.
    """
    reason = task_of(teacher).cannot_judge(dataset, task_of(student))
    if reason is not None:
        raise ValueError(
            f'The teacher cannot be tested on these data, since {reason}. A student can learn from its features all '
            'the same. Test it with the config and the data that it was trained with.')


def main(command_line: Sequence[str] | None = None) -> None:
    """Test."""
    test(parse_arguments(command_line))
    compat.leave_launcher()


def test(arguments: argparse.Namespace) -> None:
    """Test as the command line has it."""
    with one_paragraph_errors():
        cfg = read_config(arguments.config, arguments.cfg_options)
        cfg.launcher = arguments.launcher
        cfg.work_dir = arguments.work_dir or cfg.get('work_dir') or f'work_dirs/{config_name(arguments.config)}'
        checkpoint, part, task, student = arguments.checkpoint, 'Model', task_name(cfg), None
        if arguments.teacher:
            checkpoint = checkpoint or cfg.model.get('teacher_checkpoint')
            if checkpoint is None:
                raise ValueError('The config names no teacher_checkpoint. Give the file as CHECKPOINT.')
            student, cfg.model, part = build_plain(cfg), teacher_only(cfg), 'Teacher'
        elif 'student' in cfg.model:
            cfg.model, part = student_only(cfg), 'Student'
        if arguments.tta:
            augment(cfg)
        if arguments.voc_submission is not None:
            voc_submission.prepare(cfg, arguments.voc_submission)
        cfg.custom_hooks = []
        compat.prepare_launcher(cfg)
        runner = TerminalRunner.from_cfg(cfg)
        model = bare_model(runner).module if arguments.tta else bare_model(runner)
        name_task(model, task, student)
        if arguments.teacher:
            check_teacher(model, student, runner.test_dataloader.dataset)
        load_weights(model, checkpoint)
        reason = task_of(model).cannot_be_judged_on(
            runner.test_dataloader.dataset, student_of(model).dataset_meta['classes'],
            getattr(runner.test_evaluator, 'metrics', ()))
        if reason is not None:
            raise ValueError(reason)
        metrics = runner.test()
        if arguments.voc_submission is None:
            runner.logger.info(f'{part}: {Judge(task=task_of(model)).headline(metrics)}')
