"""Draw how trainings went, and what their features are like.

    overhaul plot curves work_dirs/digits_wrn16_2_wrn10_1 work_dirs/digits_wrn16_2_wrn10_1_student_only
    overhaul plot taps work_dirs/digits_wrn16_2_wrn10_1
    overhaul plot budget docs/results/label_budget.csv docs/results/label_budget_unlabelled.csv --teacher 0.44
    overhaul plot features CONFIG CHECKPOINT
    overhaul plot margins CONFIG CHECKPOINT
    overhaul plot predictions CONFIG alone=CHECKPOINT distilled=CHECKPOINT

Each draws one PNG, by default called like the command.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import torch
from matplotlib.figure import Figure
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.runner import Runner, set_random_seed

from overhaul.datasets.transforms import reads_bgr
from overhaul.engine.followed import judge_in
from overhaul.errors import one_paragraph_errors
from overhaul.files.parts import build_plain, student_only, whole_model
from overhaul.files.settings import Overrides, enter_scope, read_config
from overhaul.files.weights import load_distiller, load_weights
from overhaul.registry import build
from overhaul.reports import pictures
from overhaul.reports.logs import Log, read_log, read_results
from overhaul.tasks import task_of
from overhaul.tasks.results import Judge


def parse_arguments(command_line: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line: that of the process by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)

    def command(draw: object, help: str) -> argparse.ArgumentParser:
        subparser = commands.add_parser(draw.__name__, help=help, description=help)
        subparser.set_defaults(draw=draw)
        subparser.add_argument('--out', type=Path, default=Path(f'{draw.__name__}.png'), help='the PNG to write')
        return subparser

    work_dirs = command(curves, 'Draw the validation results and task losses of some trainings.')
    work_dirs.add_argument('work_dir', nargs='+', help='work directories, drawn by their names')
    work_dirs.add_argument('--names', nargs='+', help='other names, one for each')
    command(taps, 'Draw the distillation loss of each tap.').add_argument('work_dir')
    results = command(budget, 'Draw the results of `overhaul compare` --vary KEY VALUE ... --csv CSV.')
    results.add_argument('csv', nargs='+', help='one or several, of the same key')
    results.add_argument('--names', nargs='+', help='what to call each, beside alone and distilled; default: its file')
    results.add_argument('--teacher', type=float, help="the teacher's result, for a line")
    results.add_argument('--label', help='what is varied; default: the last part of the key, in words')
    for draw, help in (
            (features, 'Draw channels of teacher and student before and after a distillation, on a training batch.'),
            (margins, "Draw histograms of the teacher's pre-activations with the margins, on a training batch.")):
        model = command(draw, help)
        model.add_argument('config')
        model.add_argument('checkpoint', help='iter_*.pth or epoch_*.pth of the distillation')
        model.add_argument('--channels', type=int, default=2 if draw is features else 3, help='how many of each tap')
        model.add_argument('--cfg-options', nargs='+', action=Overrides, metavar='KEY=VALUE')
    predicted = command(predictions, 'Draw what students predict, beside test images and the truth.')
    predicted.add_argument('config')
    predicted.add_argument('checkpoints', nargs='+', metavar='NAME=CHECKPOINT', help='title of a column, weights')
    predicted.add_argument('--images', type=int, default=5, help='the first so many of the test data; default: 5')
    arguments = parser.parse_args(command_line)
    if arguments.out.suffix != '.png':
        parser.error(f'--out {arguments.out} is to end in .png')
    if getattr(arguments, 'channels', 1) < 1:
        parser.error('draw at least one of the --channels')
    if getattr(arguments, 'images', 1) < 1:
        parser.error('draw at least one of the --images')
    drawn = getattr(arguments, 'csv', None) or getattr(arguments, 'work_dir', None)
    if getattr(arguments, 'names', None) and len(set(arguments.names)) != len(drawn):
        parser.error(f'give {len(drawn)} different --names, one for each that is drawn')
    if not all('=' in checkpoint for checkpoint in getattr(arguments, 'checkpoints', [])):
        parser.error('give each checkpoint as NAME=CHECKPOINT')
    return arguments


def curves(arguments: argparse.Namespace) -> Figure:
    """Return the learning curves of work directories."""
    logs = [read_log(work_dir) for work_dir in arguments.work_dir]
    names = arguments.names or [Path(work_dir).name for work_dir in arguments.work_dir]
    teacher = next((log.teacher for log in logs if log.teacher), {})
    return pictures.draw_curves(
        [_curve(*run) for run in zip(names, logs, arguments.work_dir)], 'epoch' if logs[0].by_epoch else 'iteration',
        teacher)


def _curve(name: str, log: Log, work_dir: str) -> pictures.Curve:
    judge = _judge_of(work_dir, next(iter(log.validation.values()), {}))
    results = {step: judge.quoted(metrics) for step, metrics in log.validation.items()}
    return pictures.Curve(name, results, log.task_losses, judge.best(log.validation))


def _judge_of(work_dir: str, metrics: Mapping[str, float]) -> Judge:
    """Return what tells results with these ``metrics`` apart, by the config of the last training in ``work_dir``."""
    configs = sorted(Path(work_dir).glob('*/vis_data/config.py'))
    if not configs:
        return Judge()
    try:
        cfg = read_config(configs[-1])
        return judge_in(cfg, metrics, task_of(build_plain(cfg)))
    except Exception as error:  # what it was trained with may not be installed here
        print(f'The config of {work_dir} cannot be used here, and what is better is told by the names of metrics '
              f'alone: {error}')
        return Judge()


def taps(arguments: argparse.Namespace) -> Figure:
    """Return the losses by tap of a work directory."""
    log = read_log(arguments.work_dir)
    return pictures.draw_tap_losses(log.tap_losses, log.task_losses)


def budget(arguments: argparse.Namespace) -> Figure:
    """Return the results of comparisons."""
    files = dict(zip(arguments.names or arguments.csv, map(read_results, arguments.csv)))
    key, *others = dict.fromkeys(results.key for results in files.values())
    if others:
        raise ValueError(
            f'These comparisons vary different keys, {key} and {", ".join(others)}, and have no axis in common. Draw '
            'them one by one.')
    units, named = defaultdict(dict), arguments.names or len(files) > 1
    for name, results in files.items():
        for unit, sides in results.units.items():
            units[unit].update({f'{side}, {name}' if named else side: runs for side, runs in sides.items()})
    return pictures.draw_budget(units, arguments.label or key.rpartition('.')[2].replace('_', ' '), arguments.teacher)


def features(arguments: argparse.Namespace) -> Figure:
    """Return the features at the taps, before and after."""
    before, after = before_and_after(arguments)
    return pictures.draw_features(before, after, channels=arguments.channels)


def margins(arguments: argparse.Namespace) -> Figure:
    """Return the histograms at the taps."""
    _, after = before_and_after(arguments)
    return pictures.draw_pre_activations(after, arguments.channels)


@torch.no_grad()
def predictions(arguments: argparse.Namespace) -> Figure:
    """Return the first images of the test data, their truth, and what the students of the checkpoints predict."""
    cfg = read_config(arguments.config)
    enter_scope(cfg)
    if cfg.get('test_dataloader') is None:
        raise ValueError(
            f'The config "{arguments.config}" has no test_dataloader. Give it one: predictions are drawn on '
            'its images.')
    cfg.test_dataloader.update(batch_size=1, num_workers=0, persistent_workers=False)
    loader = Runner.build_dataloader(cfg.test_dataloader)
    samples = {}
    for name, checkpoint in (argument.split('=', 1) for argument in arguments.checkpoints):
        model = build_plain(cfg).eval()
        load_weights(model, checkpoint)
        samples[name] = [model.test_step(batch)[0] for batch in islice(loader, arguments.images)]
    bgr = reads_bgr(loader.dataset)
    images = [
        pictures.to_rgb(batch['inputs'][0], model.data_preprocessor, bgr) for batch in islice(loader, arguments.images)]
    return pictures.draw_predictions(
        task_of(model), images, samples, loader.dataset.metainfo)


def before_and_after(arguments: argparse.Namespace) -> tuple[list[pictures.TapFeatures], list[pictures.TapFeatures]]:
    """Return the features of a training batch with a student as its config initialises it, and as in the checkpoint."""
    cfg = read_config(arguments.config, arguments.cfg_options)
    student_only(cfg)  # refuses what is no distillation
    MMLogger.get_instance('plot', log_level='WARNING')  # else every weight's initialisation is told
    enter_scope(cfg)
    seed = set_random_seed(cfg.get('randomness', {}).get('seed'))
    model = build(whole_model(cfg), 'model').to(get_device())
    model.init_weights()
    initial = {
        name: value.clone() for name, value in model.state_dict().items()
        if name.startswith(('student.', 'connectors.'))}
    load_distiller(model, arguments.checkpoint)
    data = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=seed)))
    after = pictures.read_features(model, data)
    model.load_state_dict(initial, strict=False)  # margins and alpha, which may come from data, stay
    return pictures.read_features(model, data), after


def main(command_line: Sequence[str] | None = None) -> None:
    """Draw."""
    arguments = parse_arguments(command_line)
    with one_paragraph_errors():
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        figure = arguments.draw(arguments)
        figure.savefig(arguments.out, dpi=150)
    print(f'Wrote {arguments.out}')
