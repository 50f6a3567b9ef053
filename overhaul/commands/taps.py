"""List where the features of a network can be tapped, and pair a teacher's with a student's.

    overhaul taps configs/imagenet_r50_mobilenet.py
    overhaul taps mmpretrain::resnet/resnet50_8xb32_in1k.py mmpretrain::vgg/vgg11bn_8xb32_in1k.py

The first takes teacher and student from the config of a distillation, the second from the configs that train the one
and the other. The last lines are to be pasted into a config.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from fractions import Fraction

from mmengine.logging import MMLogger
from torch import nn

from overhaul.errors import one_paragraph_errors
from overhaul.files.parts import model_of, plain_model, task_name, teacher_only, whole_model, without_downloads
from overhaul.files.settings import read_config
from overhaul.files.weights import Source, lacking, load_teacher
from overhaul.method.margins import margin_from_batch_norm
from overhaul.method.stages import auto_taps, find_levels, find_stages, head_taps
from overhaul.method.taps import Tap, Taps
from overhaul.registry import build
from overhaul.reports.columns import in_columns
from overhaul.tasks import name_task, task_of


def parse_arguments(command_line: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line: that of the process by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of a distillation, or any other that trains a network')
    parser.add_argument('student', nargs='?', help="the student's config, where the first is the teacher's")
    parser.add_argument(
        '--size', nargs=2, type=int, metavar=('HEIGHT', 'WIDTH'),
        help='of the image; default: input_size of the distillation, or 224 224')
    arguments = parser.parse_args(command_line)
    if arguments.size and min(arguments.size) < 1:
        parser.error('argument --size: give a height and a width of 1 or more')
    return arguments


def networks(config: str, student: str | None) -> tuple[dict[str, nn.Module], str, dict]:
    """Return the models by what they are, a line on the weights of the first, and the config of the distillation."""
    cfg = read_config(config)
    if student is not None:
        parts = {'teacher': whole_model(cfg), 'student': model_of(student)}
    elif 'teacher' in cfg.model:
        parts = {'teacher': whole_model(cfg, teacher_only(cfg)), 'student': plain_model(cfg)}
    else:
        parts = {'network': whole_model(cfg)}
    models = {}
    for name, part in parts.items():
        without_downloads(part)
        models[name] = build(part, name)
    for model in models.values():
        name_task(model, task_name(cfg), models.get('student'))
    return models, _load(models, cfg.model.get('teacher_checkpoint')), cfg.model


def _load(models: dict[str, nn.Module], checkpoint: str | None) -> str:
    initial = 'Margins are those of initial weights'
    if checkpoint is None:
        return f'{initial}: the config names no teacher_checkpoint.'
    teacher, file = models['teacher'], Source.of(checkpoint).file
    try:
        missing = load_teacher(teacher, checkpoint, [name for name, _ in teacher.named_children()])
    except FileNotFoundError as error:
        return f"{initial}, since the teacher's are not here. {error}"
    task = task_of(teacher)
    missing = [name for name in missing if task.is_of_trunk(name)]
    if missing:
        raise lacking(missing, f'its {_network(teacher)}')
    return f'Margins of the teacher are those of {file}, margins of the student those of initial weights.'


def _network(model: nn.Module) -> str:
    return type(model.get_submodule(task_of(model).trunk)).__name__


def table(model: nn.Module, owner: str, size: tuple[int, int]) -> str:
    """Return a row for each tap of ``model``: of its stages, of the levels of its neck, and of a head of the paper."""
    stages, levels = ([stage.path for stage in find(model, size)] for find in (find_stages, find_levels))
    heads = [tap['teacher'] for tap in head_taps(model, model)]
    places = [*map(str, range(1, len(stages) + 1)), *['neck'] * len(levels), *['head'] * len(heads)]
    taps = Taps(model, stages + levels + heads, owner)
    taps.dry_run(model, size, stop_after_last=False)
    rows = [('tap', 'stage', 'channels', 'stride', 'size', 'margin from', 'margin')]
    for place, tap in zip(places, taps):
        rows.append((
            tap.path, place, str(tap.channels), str(round(size[0] / tap.size[0])),
            '{}x{}'.format(*tap.size), tap.norm_path or 'data', _margin_range(model, tap)))
    return in_columns(rows)


def _margin_range(model: nn.Module, tap: Tap) -> str:
    if tap.norm_path is None:
        return 'estimated by overhaul.CalibrateHook'
    norm = model.get_submodule(tap.norm_path)
    margin = margin_from_batch_norm(norm.weight, norm.bias)
    return f'{margin.min():.3f} to {margin.max():.3f}'


def block(taps: Sequence[dict]) -> str:
    """Return ``taps`` as the lines of a config."""
    lines = ['    taps=[']
    for tap in taps:
        paths = f"teacher='{tap['teacher']}', student='{tap['student']}',"
        weight = f'loss_weight={Fraction(tap["loss_weight"])}'.replace('/', ' / ')
        line = f'        dict({paths} {weight}),'
        lines += [line] if len(line) <= 120 else ['        dict(', f'            {paths}', f'            {weight}),']
    return '\n'.join([*lines, '    ],'])


def main(command_line: Sequence[str] | None = None) -> None:
    """List."""
    arguments = parse_arguments(command_line)
    MMLogger.get_instance('list_taps', log_level='WARNING')
    with one_paragraph_errors():
        models, weights, cfg = networks(arguments.config, arguments.student)
        size = tuple(arguments.size or cfg.get('input_size', (224, 224)))
        tables = [
            f'\n{name.capitalize()}, {_network(model)}:\n{table(model, name, size)}'
            for name, model in models.items()]
        print('Images of {}x{}. '.format(*size) + weights, *tables, sep='\n')
        pair = models if 'student' in models else dict(teacher=models['network'], student=models['network'])
        options = {name: cfg.get(name, False) for name in ('match_sizes', 'tap_neck')}
        taps = auto_taps(**pair, input_size=size, **options)
        print('\nFor the config' + ('' if 'student' in models else ' of a teacher and a student of this kind')
              + f':\n\n{block(taps)}')
