"""tools/benchmark.py on the digits: what it measures is there, and is of what it says. No time is judged."""

import json
import runpy
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_tools import CONFIG, ROOT

from overhaul.engine import benchmark
from overhaul.files.settings import read_config
from overhaul.method.distiller import OverhaulDistiller


@pytest.fixture(scope='module')
def measured(tmp_path_factory, quick_spawn):
    """What the tool prints and writes for one mode, three rounds, batches of 4."""
    out = tmp_path_factory.mktemp('benchmark') / 'out.json'
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('builtins.print', lambda *text, **_: lines.append(' '.join(map(str, text))))
        patch.setattr(sys, 'argv', [
            'benchmark.py', CONFIG, '--batch-size', '4', '--rounds', '3', '--device', 'cpu', '--modes',
            'bfloat16', '--json', str(out)])
        runpy.run_path(str(ROOT / 'tools/benchmark.py'), run_name='__main__')
    return lines, json.loads(out.read_text())


def test_every_variant_has_time_ratio_and_memory(measured):
    lines, result = measured
    assert list(result['variants']) == ['floor', 'student', 'bfloat16']
    floor = result['variants']['floor']
    for name, variant in result['variants'].items():
        assert len(variant['seconds']) == 3 and min(variant['seconds']) > 0
        ratios = np.divide(variant['seconds'], floor['seconds'])
        assert variant['ratio']['median'] == pytest.approx(np.median(ratios))
        assert variant['ratio']['first_quartile'] <= variant['ratio']['median'] <= variant['ratio']['third_quartile']
        assert variant['images_per_second'] == pytest.approx(4 / np.median(variant['seconds']))
        assert variant['memory_ratio'] == pytest.approx(variant['memory'] / floor['memory'])
        assert any(line.startswith(name) and f'{variant["ratio"]["median"]:.3f}' in line
                   for line in '\n'.join(lines).splitlines())


def test_a_place_where_nothing_can_be_written_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    monkeypatch.setattr(benchmark, 'measure', None)
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', CONFIG, '--json', str(tmp_path / 'file/out.json')])
    with pytest.raises(SystemExit, match=r'^error: .*file'):
        runpy.run_path(str(ROOT / 'tools/benchmark.py'), run_name='__main__')


def test_the_setting_is_told(measured):
    setting = measured[1]['setting']
    assert setting['config'] == 'digits_wrn16_2_wrn10_1.py' and setting['torch'] == torch.__version__
    assert (setting['batch_size'], setting['image_size'], setting['rounds']) == (4, [16, 16], 3)


def test_variants_take_turns_in_a_new_order_each_round():
    calls = []
    seconds = benchmark.take_turns({name: lambda name=name: calls.append(name) for name in 'abcd'}, 6, 'cpu')
    rounds = [tuple(calls[i:i + 4]) for i in range(0, 24, 4)]
    assert all(sorted(order) == list('abcd') for order in rounds) and len(set(rounds)) > 1
    assert {name: len(turns) for name, turns in seconds.items()} == dict.fromkeys('abcd', 6)


def test_each_variant_steps_what_it_says(monkeypatch):
    seen = []
    build = benchmark._build
    monkeypatch.setattr(benchmark, '_build', lambda *arguments: seen.append(build(*arguments)) or seen[-1])
    cfg = read_config(CONFIG)
    for variant in ('floor', 'eager', 'channels_last'):
        seen.clear()
        step = benchmark.build_step(cfg, variant, 4, 'cpu')
        student = seen[-1].student if variant != 'floor' else seen[-1]
        weight = student.backbone.conv1.weight
        before = weight.detach().clone()
        step()
        assert not torch.equal(weight, before)  # a whole step, up to the update
        assert [isinstance(model, OverhaulDistiller) for model in seen] == (
            [False, False] if variant == 'floor' else [True])
        channels_last = student.backbone.block2[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
        assert channels_last == (variant == 'channels_last')
    assert cfg.train_dataloader.batch_size == 50  # left as it was


def test_what_data_would_decide_hinders_no_step(monkeypatch):
    seen = []
    build = benchmark._build
    monkeypatch.setattr(benchmark, '_build', lambda *arguments: seen.append(build(*arguments)) or seen[-1])
    cfg = read_config(CONFIG, {
        'model.distill_loss': dict(type='PartialL2Loss', loss_weight='auto'), 'model.margin': dict(source='data')})
    step = benchmark.build_step(cfg, 'eager', 4, 'cpu')
    weight = seen[0].student.backbone.conv1.weight
    before = weight.detach().clone()
    step()
    assert weight.isfinite().all() and not torch.equal(weight, before)


@pytest.mark.parametrize('config, kind', [('digits_wrn16_2_wrn10_1', list), ('cifar100_wrn28_4_wrn16_2', torch.Tensor)])
def test_a_batch_is_put_together_as_the_config_has_it(config, kind, monkeypatch):
    batches = []
    monkeypatch.setattr(OverhaulDistiller, 'train_step', lambda model, batch, _: batches.append(batch))
    benchmark.build_step(read_config(ROOT / f'configs/{config}.py'), 'eager', 4, 'cpu')()
    assert isinstance(batches[0]['inputs'], kind) and len(batches[0]['inputs']) == 4


def test_the_floor_is_a_forward_pass_of_the_teacher_and_a_step_of_the_student(monkeypatch):
    models, passes = [], []
    build = benchmark._build
    monkeypatch.setattr(benchmark, '_build', lambda *arguments: models.append(build(*arguments)) or models[-1])
    step = benchmark.build_step(read_config(CONFIG), 'floor', 4, 'cpu')
    for model in models:
        model.backbone.bn1.register_forward_hook(lambda module, args, out, model=model: passes.append(
            (models.index(model), module.training, out.requires_grad)))
    step()
    assert passes == [(0, True, False), (1, True, True)]


def test_memory_grows_with_the_batch(quick_spawn):
    small, large = (benchmark.in_fresh_process(benchmark.memory, read_config(CONFIG), 'floor', size, 'cpu')
                    for size in (50, 200))
    assert 1.5 * small < large < 4 * small


@pytest.fixture
def gpu(monkeypatch):
    """Stands in for a GPU: its allocator, which knows what is in use, and the most that was, and keeps what is freed.

    The steps that are built from now on take 100 when they warm up, and 10 later.
    """
    memory = SimpleNamespace(peak=0, kept=0, steps=weakref.WeakSet())

    def build_step(cfg, variant, batch_size, device):
        taken = iter([100] * benchmark.WARM_UP)

        def step():
            memory.peak = max(memory.peak, next(taken, 10))
            memory.kept += 1
        memory.steps.add(step)
        return step

    monkeypatch.setattr(benchmark, 'build_step', build_step)
    for name, action in dict(
            is_available=lambda: True, synchronize=lambda: None, max_memory_allocated=lambda: memory.peak,
            reset_peak_memory_stats=lambda: setattr(memory, 'peak', 0),
            empty_cache=lambda: setattr(memory, 'kept', 0), get_device_name=lambda: 'GPU').items():
        monkeypatch.setattr(torch.cuda, name, action)
    return memory


def test_the_peak_on_a_gpu_is_not_that_of_the_warm_up(gpu):
    assert benchmark.memory(None, 'eager', 4, 'cuda') == 10


def test_nothing_is_left_on_the_gpu_while_a_fresh_process_measures_its_memory(gpu, monkeypatch):
    def in_fresh_process(*_):
        assert not gpu.steps and gpu.kept == 0
        return 1

    monkeypatch.setattr(benchmark, 'in_fresh_process', in_fresh_process)
    result = benchmark.measure(read_config(CONFIG), 4, 'cuda', 1, ['eager'], progress=lambda _: None)
    assert [variant['memory'] for variant in result['variants'].values()] == [1, 1, 1]


def test_a_mode_that_does_not_work_here_is_told_and_the_others_are_measured(monkeypatch):
    monkeypatch.setattr('shutil.which', lambda name: None)
    monkeypatch.setattr(benchmark, 'in_fresh_process', lambda *_: 2**20)
    result = benchmark.measure(read_config(CONFIG), 2, 'cpu', 1, ['compile'], progress=lambda _: None)
    assert result['variants']['compile']['failed'].startswith('ValueError: torch compiles with a C++ compiler, and')
    assert 'compile                         does not work here: ValueError: torch compiles' in benchmark.table(result)
    assert result['variants']['student']['memory_ratio'] == 1


@pytest.mark.parametrize('config, device, modes, message', [
    ('digits_wrn16_2_wrn10_1', 'cpu', ['bfloat'], 'There is no mode "bfloat". Nearest: bfloat16'),
    ('digits_wrn16_2', 'cpu', ['eager'], 'which has no student'),
    ('digits_wrn16_2_wrn10_1', 'cuda', ['eager'], 'torch sees no GPU here'),
])
def test_what_cannot_be_measured_is_refused(config, device, modes, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ValueError, match=message):
        benchmark.measure(read_config(ROOT / f'configs/{config}.py'), 2, device, 1, modes)


@pytest.mark.parametrize('variant', ['floor', 'student', 'eager'])
def test_a_model_whose_annotations_are_not_known_is_measured_without_its_task_loss(variant, monkeypatch):
    monkeypatch.setattr('overhaul.tasks.Classification.random_sample', lambda *_: None)
    benchmark.build_step(read_config(CONFIG), variant, 2, 'cpu')()
