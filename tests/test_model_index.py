"""model-index.yml and configs/metafile.yml: valid, complete, and claiming no more than was measured."""

import csv
import json
from pathlib import Path
from statistics import mean

import mmengine
import pytest
from mmengine.runner import Runner
from small_models import of_each

from overhaul.engine.hooks.summary import count_parameters
from overhaul.files.parts import student_only
from overhaul.files.settings import read_config
from overhaul.files.weights import load_weights
from overhaul.registry import build
from overhaul.tasks.results import Judge

ROOT = Path(__file__).parents[1]
CONFIGS = {path.stem: path for path in sorted((ROOT / 'configs').glob('*.py'))}
MODELS = {model['Name']: model for file in mmengine.load(ROOT / 'model-index.yml')['Import']
          for model in mmengine.load(ROOT / file)['Models']}


def student(name):
    """The model of a config that training makes, and the config."""
    cfg = read_config(CONFIGS[name])
    model = student_only(cfg) if 'student' in cfg.model else cfg.model
    return build(model, 'student', scope=cfg.default_scope), cfg


def test_the_index_is_valid(monkeypatch, capsys):
    modelindex = pytest.importorskip('modelindex')
    monkeypatch.chdir(ROOT)  # paths in it are from there
    index = modelindex.load('model-index.yml')
    index.check()
    assert capsys.readouterr().out.strip() == 'All good!'
    assert {model.name for model in index.models} >= set(MODELS)


def test_every_config_has_an_entry_and_every_entry_a_config():
    assert MODELS.keys() == CONFIGS.keys()
    for name, model in MODELS.items():
        assert model['Config'] == f'configs/{name}.py'


@pytest.mark.parametrize('name', of_each(MODELS))
def test_the_entry_says_what_the_config_does(name):
    metadata = MODELS[name]['Metadata']
    model, cfg = student(name)
    assert metadata['Parameters'] == count_parameters(model)
    assert metadata['Batch Size'] == cfg.auto_scale_lr.base_batch_size
    assert metadata.get('Epochs') == cfg.train_cfg.get('max_epochs')
    assert metadata.get('Iterations') == cfg.train_cfg.get('max_iters')
    assert ('Teacher' in metadata) == ('teacher' in cfg.model)


RESULTS = {name: model['Results'] for name, model in MODELS.items() if 'Results' in model}


def test_only_what_ran_has_results():
    assert RESULTS.keys() <= {name for name in CONFIGS if name.startswith('digit')}


def metrics(name, mean_of_seeds):
    """The results of an entry that are means, or those that are not."""
    found = RESULTS[name][0]['Metrics'].items()
    return {metric: value for metric, value in found if ('mean of' in metric) == mean_of_seeds}


@pytest.mark.parametrize('name', of_each(RESULTS))
def test_the_result_of_weights_is_what_they_give_and_what_the_log_of_their_training_ends_with(name, tmp_path):
    result, = metrics(name, mean_of_seeds=False).values()
    *_, last = (row for row in map(json.loads, (ROOT / MODELS[name]['Training Log']).open()) if 'loss' not in row)
    assert round(Judge().quoted(last)[0].value, 2) == result
    cfg = read_config(CONFIGS[name], dict(work_dir=str(tmp_path), log_level='ERROR', custom_hooks=[], load_from=None))
    if 'student' in cfg.model:
        cfg.model = student_only(cfg)
    runner = Runner.from_cfg(cfg)
    load_weights(runner.model, MODELS[name]['Weights'])
    assert round(Judge().quoted(runner.test())[0].value, 2) == result


@pytest.mark.parametrize('name', [name for name in RESULTS if metrics(name, mean_of_seeds=True)])
def test_a_mean_is_that_of_the_runs_in_the_file_and_the_weights_are_of_the_first(name):
    with (ROOT / f'docs/results/{name}.csv').open() as file:
        runs = list(csv.DictReader(file))
    measure = list(runs[0])[-1]
    distilled = [float(run[measure]) for run in runs if run['side'] == 'distilled']
    (metric, result), = metrics(name, mean_of_seeds=True).items()
    assert result == round(mean(distilled), 2) and f'mean of {len(distilled)} seeds' in metric
    assert round(distilled[0], 2) in metrics(name, mean_of_seeds=False).values()
