import inspect
import re
import sys
from pathlib import Path

import pytest
from mmengine.runner import Runner

from overhaul.files.parts import model_of
from overhaul.files.settings import read_config
from overhaul.registry import MODELS

DIGITS = str(Path(__file__).parents[2] / 'configs/digits_wrn16_2_wrn10_1.py')


def written(folder, text, name='some.py'):
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_config_with_its_bases_and_overrides(tmp_path):
    base = written(tmp_path, 'model = dict(type="A", depth=1, width=2)\nsteps = 3\n', 'base.py')
    file = written(tmp_path, '_base_ = "base.py"\nmodel = dict(depth=5)\n')
    assert read_config(file).model == dict(type='A', depth=5, width=2)
    cfg = read_config(file, {'model.width': 7, 'steps': 4, 'model.new.key': 1})
    assert cfg.model == dict(type='A', depth=5, width=7, new=dict(key=1)) and cfg.steps == 4
    assert read_config(base).model.depth == 1


def test_an_override_may_bring_in_what_the_runner_knows_and_the_config_has_not(tmp_path):
    file = written(tmp_path, 'model = dict()\n')
    assert read_config(file, {'randomness.seed': 5}).randomness.seed == 5
    asked = set(re.findall(r"self\.cfg\.get\(\s*'(\w+)'", inspect.getsource(Runner)))
    assert {'sync_bn', 'compile', 'model_wrapper_cfg'} <= asked
    for name in asked:
        assert read_config(file, {name: 'torch'})[name] == 'torch'


def test_a_missing_file_names_those_beside_it(tmp_path):
    for name in ('digits_a.py', 'digits_b.py', 'other.py'):
        written(tmp_path, '', name)
    with pytest.raises(FileNotFoundError, match='no config file ".*digits_aa.py". Nearest there: digits_a.py'):
        read_config(str(tmp_path / 'digits_aa.py'))
    with pytest.raises(FileNotFoundError, match='Nearest beside ".*nowhere", which does not exist: digits_a.py'):
        read_config(str(tmp_path / 'nowhere/digits_a.py'))


def test_a_file_that_is_in_a_folder_is_found_there(tmp_path, monkeypatch):
    (tmp_path / 'configs').mkdir()
    written(tmp_path / 'configs', '', 'digits.py')
    written(tmp_path, '', 'setup.py')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r'no config file "digits.py"\. Nearest there: configs/digits.py\.'):
        read_config('digits.py')


@pytest.mark.parametrize(('path', 'message'), [
    ('digits', 'no config file "digits". Nearest there: configs/digits.py.'),
    ('config/digits.py', 'Nearest beside "config", which does not exist: configs/digits.py.'),
    ('configs/digit.py', 'Nearest there: digits.py.'),
    ('resnet', 'Nothing near has a name like it.'),
    ('configs', '"configs" is a folder. Name a config in it, such as digits.py.'),
    ('work_dirs/iter_200.pth', '"work_dirs/iter_200.pth" is a checkpoint, and the config comes first.')])
def test_what_is_no_config_file_is_told_with_what_may_be_meant(path, message, tmp_path, monkeypatch):
    for folder in ('configs', 'work_dirs/digits'):
        (tmp_path / folder).mkdir(parents=True)
    written(tmp_path / 'configs', '', 'digits.py')
    written(tmp_path, '', 'setup.py')
    monkeypatch.chdir(tmp_path)
    with pytest.raises((FileNotFoundError, ValueError), match=re.escape(message) + '$'):
        read_config(path)


def test_a_config_that_was_copied_away_from_its_bases_learns_where_they_are(tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text(Path(DIGITS).read_text())
    with pytest.raises(ValueError, match=r'_base_/datasets/digits.py.*"overhaul::_base_/datasets/digits.py"') as error:
        read_config(str(file))
    text = re.sub("'_base_/", "'overhaul::_base_/", file.read_text())
    file.write_text(text)
    assert read_config(str(file)).model == read_config(DIGITS).model
    assert 'Its folder' not in str(error.value)


@pytest.mark.parametrize(('config', 'message'), [
    ('overhaul::digits_wrn16.py', 'Nearest there: digits_wrn16_2.py'),
    ('mmpretrain::lenet5_mnst.py', 'mmpretrain has no config "lenet5_mnst.py". Nearest: lenet/lenet5_mnist.py'),
    ('mmpretrain::lenet/lenet5_mnst.py', 'Nearest: lenet/lenet5_mnist.py'),
    ('mmpretrain::nothing_like_it.py', 'mmpretrain has no config'),
    ('mmpretrian::lenet/lenet5_mnist.py', 'no package "mmpretrian" with configs is installed here'),
    ('torch::x.py', 'no package "torch" with configs'),
    ('a-b::x.py', 'no package "a-b" with configs'),
])
def test_a_missing_file_of_a_package_names_the_nearest(config, message):
    with pytest.raises(FileNotFoundError, match=message):
        read_config(config)


def test_a_hook_that_is_none_is_switched_off(tmp_path):
    off = {f'default_hooks.{name}': None for name in ('health', 'summary', 'calibrate', 'average_statistics', 'timer')}
    cfg = read_config(DIGITS, {**off, 'work_dir': str(tmp_path), 'model.teacher_checkpoint': None})
    runner = Runner.from_cfg(cfg)
    assert {'CheckpointHook', 'LoggerHook'} == {
        type(hook).__name__ for hook in runner.hooks} - {
            'RuntimeInfoHook', 'DistSamplerSeedHook', 'ParamSchedulerHook'}


@pytest.mark.parametrize(('text', 'overrides', 'message'), [
    ('model = dict(\n', {}, 'some.py" cannot be read'),
    ('steps = 1 / 0\n', {}, 'cannot be read: ZeroDivisionError'),
    ('model = dict(depth=1)\n', {'modle.depth': 2}, '--cfg-options sets "modle.depth", and the config has no "modle"'),
    ('model = dict(depth=1)\n', {'modle.depth': 2}, 'Nearest: model'),
    ('model = dict()\ntrain_cfg = dict(max_iters=3)\n', {'max_iters': 2}, 'Nearest: train_cfg.max_iters.'),
    ('model = [dict(depth=1)]\n', {'model.3.depth': 2}, '--cfg-options does not fit the config'),
    ('model = dict()\nrandomness = dict(seed="abc")\n', {}, "randomness.seed is 'abc'. Give a whole number from 0 to"),
    ('model = dict()\n', {'randomness.seed': -1}, 'randomness.seed is -1'),
    ('model = dict()\n', {'train_cfg.val_interval': 0}, 'train_cfg.val_interval is 0. Give a whole number of 1 or'),
    ('_base_ = "overhaul::digits_wrn16.py"\n', {}, 'Nearest there: digits_wrn16_2.py'),
    ('_base_ = "mmpretrain::lenet/lenet5_mnst.py"\n', {}, 'Nearest there: lenet5_mnist.py'),
])
def test_what_is_wrong_is_told(tmp_path, text, overrides, message):
    with pytest.raises(ValueError) as error:
        read_config(written(tmp_path, text), overrides)
    assert message in str(error.value)


@pytest.mark.parametrize('name', [
    'dinov2/vit-small-p14_dinov2-pre_headless.py', 'eva/eva-l-p14_headless.py', 'eva02/eva02-tiny-p14_headless.py',
    'sam/vit-base-p16_sam_headless.py'])
def test_a_config_of_a_package_that_names_no_scope_has_that_of_the_package(name, tmp_path):
    path = f'mmpretrain::{name}'
    assert model_of(path)['_scope_'] == 'mmpretrain' == read_config(path).default_scope
    assert read_config(path, {'default_scope': 'mmseg'}).default_scope == 'mmseg'
    network = MODELS.build(model_of(dict(model_of(path), backbone=dict(type='LeNet5'))))  # found without a runner
    assert type(network).__name__ == 'ImageClassifier'
    assert 'default_scope' not in read_config(written(tmp_path, "model = dict(type='Strange')\n"))


def test_a_config_that_comes_with_a_package():
    model = model_of('mmpretrain::resnet/resnet18_8xb32_in1k.py')
    assert model['_scope_'] == 'mmpretrain' and model['backbone']['depth'] == 18


def test_a_module_beside_a_config_is_imported_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'path', sys.path[:])
    (tmp_path / 'beside_the_config.py').write_text('NUMBER = 3\n')
    config = written(tmp_path, f"_base_ = {DIGITS!r}\ncustom_imports = dict(imports=['beside_the_config'])\n")
    assert read_config(config) and sys.modules['beside_the_config'].NUMBER == 3
