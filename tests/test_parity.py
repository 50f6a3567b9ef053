import json
import os
import re
import subprocess

import parity
import pytest
from golden import DATA

GOLDEN = DATA / 'golden'
ROW = re.compile(r'(.{45}) ([ -]\S+) ([ -]\S+) (\d\S+)(  <-- differs)?')


def table(output):
    """Name -> ours, golden, relative difference, verdict, from what the tool prints."""
    rows = filter(None, map(ROW.fullmatch, output.splitlines()))
    return {row[1].strip(): (float(row[2]), float(row[3]), float(row[4]), bool(row[5])) for row in rows}


@pytest.mark.parametrize('setting', ['cifar_a', 'cifar_f', 'imagenet_b', 'voc_resnet18'])
def test_the_config_of_a_setting_agrees_with_the_official_code(setting, capsys):
    assert parity.main([str(GOLDEN / f'{setting}.json')]) == 0
    output = capsys.readouterr().out
    assert output.startswith(f'{setting}: configs/{parity.CONFIGS[setting]}.py\n')
    assert output.endswith('\nparity: ok\n')
    rows = table(output)
    assert not any(differs for *_, differs in rows.values())
    # What is compared is what was asked for.
    golden = json.loads((GOLDEN / f'{setting}.json').read_text())
    taps = len(golden['taps'])
    assert taps == {'voc_resnet18': 6, 'imagenet_b': 4}.get(setting, 3)
    for tap in range(1, taps + 1):
        recorded = golden['taps'][tap - 1]
        for name, value in (
                ('teacher feature mean', recorded['teacher_feat']['mean']), ('margin sum', recorded['margin']['sum']),
                ('student feature std', recorded['student_feat']['std']), ('raw loss', recorded['raw_loss']),
                ('connector output mean', recorded['connector_out']['mean'])):
            assert rows[f'tap {tap} {name}'][1] == pytest.approx(value, rel=1e-12)
    for name, key in (('distillation loss', 'loss_distill'), ('total loss', 'total_loss')):
        ours, theirs, difference, _ = rows[name]
        assert theirs == pytest.approx(golden[key], rel=1e-12)
        assert ours == pytest.approx(theirs, rel=1e-9) and difference <= 1e-9
    assert rows['gradient of the student'][0] == pytest.approx(golden['grad_l2']['student_all_params_l2'], rel=1e-7)
    assert rows['teacher parameters with a gradient'][:2] == (0, 0)


def test_one_wrong_digit_fails_the_tool_and_all_else_of_that_setting_agrees(tmp_path, python):
    golden = json.loads((GOLDEN / 'cifar_d.json').read_text())
    golden['taps'][1]['raw_loss'] *= 1 + 1e-8  # the tolerance is 1e-9
    tampered = tmp_path / 'tampered.json'
    tampered.write_text(json.dumps(golden))
    run = subprocess.run(
        [python, '-W', 'ignore', 'tests/parity.py', str(tampered)], cwd=parity.ROOT,
        env={**os.environ, 'PYTHONPATH': str(parity.ROOT)}, capture_output=True, text=True)
    assert run.returncode == 1, run.stderr
    assert run.stdout.endswith('\nparity: FAILED\n')
    rows = table(run.stdout)
    assert len(rows) > 100
    assert [name for name, row in rows.items() if row[3]] == ['tap 2 raw loss']


def test_margin_cases_are_compared_too(tmp_path, capsys):
    assert parity.main([str(GOLDEN / 'margin_cases.json')]) == 0
    rows = table(capsys.readouterr().out)
    cases = json.loads((GOLDEN / 'margin_cases.json').read_text())
    assert len(rows) == sum(case['margin_float64'] is not None for case in cases) > 10
    cases[0]['margin_float64'] *= 1 + 1e-5
    (tmp_path / 'tampered.json').write_text(json.dumps(cases))
    assert parity.main([str(tmp_path / 'tampered.json')]) == 1
    assert capsys.readouterr().out.endswith('\nparity: FAILED\n')


@pytest.mark.parametrize(('content', 'message'), [
    ('{"setting": "cifar_z"}', 'no config belongs to the setting "cifar_z" of ".*". Known: cifar_a, cifar_b'),
    ('{}', 'no config belongs to the setting "None"'), ('{"setting"', 'is no golden file'),
    (None, 'is no golden file')])
def test_a_file_that_is_none_is_told(tmp_path, content, message):
    file = tmp_path / 'golden.json'
    if content is not None:
        file.write_text(content)
    with pytest.raises(SystemExit, match=message):
        parity.main([str(file)])


def test_every_setting_has_a_config_file():
    assert all((parity.ROOT / f'configs/{name}.py').is_file() for name in parity.CONFIGS.values())
