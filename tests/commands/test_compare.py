"""tools/compare.py, as a user runs it, and its table."""

import os
import re
import runpy
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from overhaul.commands.compare import OneGPUEach, Run, parse_arguments, quote_of, table
from overhaul.reports.logs import read_log, read_results

ROOT = Path(__file__).parents[2]
TOOL = str(ROOT / 'tools/compare.py')
CONFIG = str(ROOT / 'configs/digits_wrn16_2_wrn10_1.py')
KEY = 'train_dataloader.dataset.labels_per_class'
QUICK = ['--jobs', '1', '--cfg-options', 'train_cfg.max_iters=2', 'train_cfg.val_interval=1',
         'default_hooks.logger.interval=1', 'default_hooks.checkpoint.interval=2', 'val_dataloader.dataset.indices=20']


def compare(folder, *arguments, extra=()):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv('OMP_NUM_THREADS', '1')
        patch.setattr(sys, 'argv', [TOOL, CONFIG, '--work-dir', 'runs', *arguments, *QUICK, *extra])
        runpy.run_path(TOOL, run_name='__main__')


@pytest.fixture(scope='module')
def compared(tmp_path_factory, quick_spawn):
    folder = tmp_path_factory.mktemp('compared')
    with redirect_stdout(StringIO()) as out:
        compare(folder, '--vary', KEY, '1', 'None', '--seeds', '2', '--csv', 'out.csv')
    return folder, out.getvalue()


def test_every_run_is_a_row(compared):
    folder, _ = compared
    results = read_results(folder / 'out.csv')
    assert (results.key, list(results.units)) == (KEY, ['% error'])
    for side in ('alone', 'distilled'):
        for value in ('1', 'None'):
            logs = [read_log(folder / f'runs/{KEY}={value}/{side}_seed{seed}') for seed in range(2)]
            assert results.units['% error'][side][value] == pytest.approx(
                [100 - log.validation[2]['accuracy/top1'] for log in logs], abs=1e-4)
            assert (logs[0].teacher == {}) == (logs[0].tap_losses == {}) == (side == 'alone')


def test_a_run_is_what_train_makes_of_its_command(compared, tmp_path, python):
    # The third run of its process, against one in a process of its own.
    folder, _ = compared
    options = [*QUICK[3:], f'{KEY}=1', 'randomness.seed=1', 'train_dataloader.dataset.seed=1']
    subprocess.run([python, str(ROOT / 'tools/train.py'), CONFIG, '--work-dir', str(tmp_path), '--cfg-options',
                    *options], check=True, capture_output=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    one, other = (read_log(path) for path in (tmp_path, folder / f'runs/{KEY}=1/distilled_seed1'))
    assert one.task_losses == other.task_losses and one.tap_losses == other.tap_losses
    assert one.validation == other.validation


def test_the_output_is_plain_lines_and_a_table(compared):
    *runs, title, first, second = compared[1].splitlines()
    assert len(runs) == 8
    assert all(re.fullmatch(r'(1|None)  (alone|distilled)  seed [01]: \S+ % error', run) for run in runs)
    assert title == '% error, less is better, of 2 seeds: mean ± 95 % interval of the mean (least to most)'
    assert first.split()[0] == '1' and second.split()[0] == 'None'


def test_finished_runs_are_not_run_again(compared, capsys):
    folder, first = compared
    before = {path: path.stat().st_mtime_ns for path in folder.rglob('*.*')}
    compare(folder, '--vary', KEY, '1', 'None', '--seeds', '2')
    assert capsys.readouterr().out.splitlines() == first.splitlines()[-3:]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob('*.*')} == before


@pytest.mark.parametrize('change', ['options', 'variant', 'config'])
def test_runs_of_another_setting_are_not_taken_for_this_one(change, compared, tmp_path, monkeypatch):
    folder, _ = compared
    options, config = dict(options=['train_cfg.val_interval=2'], variant=[f'{KEY}=2'], config=[])[change], CONFIG
    if change == 'config':  # another one of the same name
        config = str(tmp_path / Path(CONFIG).name)
        Path(config).write_text("_base_ = 'overhaul::digits_wrn16_2_wrn10_1.py'\nmodel = dict(alpha=0.5)\n")
    monkeypatch.setattr(sys.modules[__name__], 'CONFIG', config)
    before = {path: path.read_bytes() for path in folder.rglob('finished.json')}
    with pytest.raises(SystemExit, match=rf'^error: "runs/{KEY}=1/alone_seed0" is of another config or other options'):
        compare(folder, '--vary', KEY, '1', 'None', '--seeds', '2', extra=options)
    assert {path: path.read_bytes() for path in folder.rglob('finished.json')} == before


def test_a_run_that_fails_is_told_with_its_command(tmp_path, quick_spawn):
    with pytest.raises(SystemExit) as exit_:
        compare(tmp_path, '--variant', 'typo', 'model.margin.source=zeroo', '--seeds', '1', '--sides', 'distilled')
    command, reason = exit_.value.code.splitlines()
    assert re.match(r'error: overhaul train .* model.margin.source=zeroo ', command)
    assert reason.startswith('stopped: error: The source of the margins is ')


@pytest.mark.parametrize('visible, expected', [(None, ['0', '1']), ('4,7', ['4', '7'])])
def test_runs_are_spread_over_the_gpus(visible, expected, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible) if visible else monkeypatch.delenv(
        'CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    jobs = parse_arguments([CONFIG]).jobs
    with ProcessPoolExecutor(jobs, OneGPUEach()) as pool:
        tells = [pool.submit(subprocess.check_output, 'sleep 1; echo $CUDA_VISIBLE_DEVICES', shell=True, text=True)
                 for _ in range(jobs)]
        assert sorted(tell.result().strip() for tell in tells) == expected


def test_without_a_gpu_there_is_a_run_for_each_core(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    assert parse_arguments([CONFIG]).jobs == os.cpu_count()


def test_a_config_that_is_no_distillation_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', [TOOL, str(ROOT / 'configs/digits_wrn16_2.py')])
    message = '^error: The model of this config is of type ImageClassifier, which has no student'
    with pytest.raises(SystemExit, match=message):
        runpy.run_path(TOOL, run_name='__main__')


def test_table_against_scipy():
    random = np.random.RandomState(0)
    sample = {side: random.normal(mean, 2, 6) for side, mean in (('alone', 17), ('distilled', 6))}
    results = {Run(side, '5', seed): value for side in sample for seed, value in enumerate(sample[side])}
    row = table(results, ['5'], ['alone', 'distilled']).split('  ')[-4:]
    for side, cell in zip(sample, row):
        mean, low, high = sample[side].mean(), *stats.ttest_1samp(sample[side], 0).confidence_interval()
        assert cell == (f'{side} {mean:.2f} ± {(high - low) / 2:.2f} '
                        f'({sample[side].min():.2f} to {sample[side].max():.2f})')
    assert row[2] == f'ratio {sample["distilled"].mean() / sample["alone"].mean():.2f}'
    t = stats.ttest_1samp(sample['alone'] - sample['distilled'], 0)
    assert row[3] == f'paired t-test p = {t.pvalue:.1g}'


def test_one_seed_has_no_interval():
    results = {Run(side, '', 0): value for side, value in (('alone', 17.0), ('distilled', 6.8))}
    assert table(results, [''], ['alone', 'distilled']) == 'alone 17.00  distilled 6.80  ratio 0.40'


def test_one_side_is_tested_against_the_first_variant():
    values = {'default': [6.0, 7.0, 8.0], 'L2': [6.5, 8.0, 8.2]}
    results = {Run('distilled', name, seed): values[name][seed] for name in values for seed in range(3)}
    first, second = table(results, list(values), ['distilled']).splitlines()
    assert 'ratio' not in first and 'p =' not in first
    assert f'p = {stats.ttest_rel(*values.values()).pvalue:.1g}' in second and 'ratio 1.08' in second


def test_what_is_better_is_known_before_anything_runs():
    saved = 'default_hooks.checkpoint.save_best=stillness'
    with pytest.raises(ValueError, match="save_best='stillness', and the name does not tell"):
        quote_of(parse_arguments([CONFIG, '--cfg-options', saved]))
    told = parse_arguments([CONFIG, '--cfg-options', saved, 'default_hooks.checkpoint.rule=less'])
    (result, ) = quote_of(told)({'stillness': 2.0})
    assert (result.value, result.axis) == (2.0, 'stillness, less is better')
