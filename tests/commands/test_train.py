"""What a training goes on from, or starts from, as the command line and the config have it."""

import pytest
import torch
from test_tools import CONFIG

from overhaul.commands.train import main, parse_arguments, prepare_config
from overhaul.files.parts import build_plain, task_name
from overhaul.tasks import Task, task_of


def start(folder, *words, options=()):
    overrides = ['--cfg-options', *options] if options else []
    cfg = prepare_config(parse_arguments([str(CONFIG), '--work-dir', str(folder), *words, *overrides]))
    return cfg.load_from, cfg.resume


@pytest.mark.parametrize(('words', 'options', 'expected'), [
    ([], [], (None, False)),
    ([], ['load_from=start.pth'], ('start.pth', False)),
    (['--resume'], ['load_from=start.pth'], ('start.pth', False)),  # there is nothing to resume yet
    (['--resume'], ['resume=True', 'load_from=start.pth'], ('start.pth', False)),
    (['--student-only'], ['model.student_checkpoint=student.pth'], ('student.pth', False)),
    (['--student-only', '--resume'], ['model.student_checkpoint=student.pth'], ('student.pth', False)),
    (['--student-only'], ['model.student_checkpoint=student.pth', 'resume=True'], ('student.pth', False)),
    (['--resume', 'old.pth'], ['load_from=start.pth'], ('old.pth', True)),
    ([], ['resume=True', 'load_from=old.pth'], ('old.pth', True)),
])
def test_what_it_starts_from(words, options, expected, tmp_path):
    assert start(tmp_path, *words, options=options) == expected


@pytest.mark.parametrize(('words', 'error'), [
    (['--resume', ''], '--resume names an empty path'),
    (['--cfg-options', 'load_from='], "load_from is a file, a URL or None, not ''"),
    (['--cfg-options', 'load_from=0'], 'load_from is a file, a URL or None, not 0'),
    (['--student-only', '--cfg-options', 'model.student_checkpoint='], "not ''")])
def test_an_empty_start_is_none(words, error, tmp_path):
    *words, last = words
    with pytest.raises(SystemExit, match=error):
        main([str(CONFIG), '--work-dir', str(tmp_path), *words, last, *(
            ['--cfg-options'] if last == '' else []), f'experiment_name={tmp_path}'])
    assert not list(tmp_path.rglob('*.pth'))


def test_the_student_alone_is_of_the_task_that_the_distillation_names(tmp_path):
    command_line = [str(CONFIG), '--student-only', '--cfg-options', 'model.task=any']
    cfg = prepare_config(parse_arguments(command_line))
    assert task_name(cfg) == 'any' and type(task_of(build_plain(cfg))) is Task
    with pytest.raises(SystemExit, match=r'model\.task="clasification" is no task .* Nearest: classification'):
        main([*command_line[:-1], 'model.task=clasification', '--work-dir', str(tmp_path), '--cfg-options',
              'model.task=clasification', f'experiment_name={tmp_path}', 'train_cfg.max_iters=1'])


def test_data_of_other_classes_are_refused_whatever_hooks_there_are(tmp_path):
    with pytest.raises(SystemExit, match='has num_classes=5, and the training data have 10 classes'):
        main([str(CONFIG), '--work-dir', str(tmp_path), '--cfg-options', 'default_hooks.health=None',
              f'experiment_name={tmp_path}', 'model.student.head.num_classes=5', 'train_cfg.max_iters=1'])


def test_a_checkpoint_that_is_there_comes_before_any_start(tmp_path):
    torch.save(dict(state_dict=dict(weight=torch.zeros(1))), tmp_path / 'iter_5.pth')
    options = ['model.student_checkpoint=student.pth', 'load_from=start.pth']
    for words in (['--resume'], ['--resume', '--student-only']):
        assert start(tmp_path, *words, options=options) == (str(tmp_path / 'iter_5.pth'), True)
