"""tools/list_taps.py, run as a user runs it."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from small_models import save_teacher, wide_resnet
from torch import nn

from overhaul.files.checkpoints import read_checkpoint
from overhaul.files.parts import model_of
from overhaul.method.margins import margin_from_batch_norm

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / 'configs/digits_wrn16_2_wrn10_1.py')
RESNET18 = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'


@pytest.fixture
def list_taps(monkeypatch, capsys):
    """Run the tool and return what it prints."""
    def list_taps(*arguments):
        monkeypatch.setattr(sys, 'argv', [str(ROOT / 'tools/list_taps.py'), *map(str, arguments)])
        runpy.run_path(sys.argv[0], run_name='__main__')
        return capsys.readouterr().out

    return list_taps


def rows(output):
    """The cells of each row of each table, by what stands above it."""
    tables = re.findall(r'^(\w+), (\w+):\n(tap .*\n)((?:.+\n)+)', output, re.MULTILINE)
    return {name: [re.split(r'  +', line) for line in body.splitlines()] for name, _, _, body in tables}


def pasted(output):
    """The taps of the last lines, as Python reads them in a config."""
    return eval(output[output.index('    taps=['):].strip().removeprefix('taps=').removesuffix(','))


def test_a_distillation_with_its_teacher(list_taps):
    output = list_taps(DIGITS)
    assert 'Images of 16x16. Margins of the teacher are those of overhaul://digits_wrn16_2.pth' in output
    tables = rows(output)
    weights = read_checkpoint('overhaul://digits_wrn16_2.pth')['state_dict']
    for i, (path, channels, size) in enumerate((
            ('block2.0.bn1', 32, 16), ('block3.0.bn1', 64, 8), ('bn1', 128, 4))):
        norm = f'backbone.{path}'
        margin = margin_from_batch_norm(weights[f'{norm}.weight'], weights[f'{norm}.bias'])
        assert tables['Teacher'][i] == [
            norm, str(i + 1), str(channels), str(2**i), f'{size}x{size}', norm,
            f'{margin.min():.3f} to {margin.max():.3f}']
        assert tables['Student'][i][:5] == [norm, str(i + 1), str(channels // 2), str(2**i), f'{size}x{size}']
        assert tables['Student'][i][6] == '-0.798 to -0.798'  # -sqrt(2 / pi): scale 1, shift 0
    assert pasted(output) == [dict(tap) for tap in model_of(DIGITS)['taps']]


def test_without_the_teachers_file_the_margins_are_those_of_initial_weights(list_taps, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = {DIGITS!r}\nmodel = dict(teacher_checkpoint='{tmp_path}/nowhere.pth')\n")
    output = list_taps(config)
    assert f"initial weights, since the teacher's are not here. \"{tmp_path}/nowhere.pth\" does not exist" in output
    assert {row[6] for row in rows(output)['Teacher']} == {'-0.798 to -0.798'}


def test_a_network_on_its_own(list_taps):
    output = list_taps(RESNET18, '--size', 32, 32)
    assert 'the config names no teacher_checkpoint' in output
    assert [row[:6] for row in rows(output)['Network']] == [
        [f'backbone.layer{i + 1}.1.relu:input', str(i + 1), str(64 * 2**i), str(2**i), f'{32 // 2**i}x{32 // 2**i}',
         f'backbone.layer{i + 1}.1.bn2'] for i in range(4)]
    assert 'of a teacher and a student of this kind' in output
    assert [(tap['teacher'], tap['loss_weight']) for tap in pasted(output)] == [
        (f'backbone.layer{i + 1}.1.relu:input', 2.0**(i - 3)) for i in range(4)]


def test_a_network_that_is_no_backbone_is_named(list_taps, tmp_path):
    pytest.importorskip('timm')
    config = tmp_path / 'config.py'
    config.write_text(
        "default_scope = 'mmpretrain'\n"
        "model = dict(type='TimmClassifier', model_name='resnet10t', in_chans=4, num_classes=5)\n")
    output = list_taps(config, '--size', 32, 32)
    assert '\nNetwork, ResNet:\n' in output
    assert [row[0] for row in rows(output)['Network']][-1] == 'model.layer3.0.act2:input'


def test_two_networks(list_taps):
    """One of which has no batch norms, and each of which is in its own package."""
    output = list_taps(
        'mmpretrain::convnext_v2/convnext-v2-atto_32xb32_in1k.py',
        'mmseg::unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64.py', '--size', 64, 64)
    assert [row[5:] for row in rows(output)['Teacher']] == 4 * [['data', 'estimated by overhaul.CalibrateHook']]
    assert [(tap['teacher'], tap['student']) for tap in pasted(output)] == [
        ('backbone.stages.0.1', 'backbone.decoder.2.conv_block.convs.1.activate:input'),
        ('backbone.stages.1.1', 'backbone.decoder.3.conv_block.convs.1.activate:input'),
        ('backbone.stages.2.5', 'backbone.encoder.4.1.convs.1.activate:input')]


def test_heads_of_the_paper_are_listed(list_taps):
    output = list_taps(ROOT / 'configs/voc_r101_r18.py', '--size', 65, 65)
    assert [row[:2] for row in rows(output)['Teacher'][-2:]] == [
        ['decode_head.bottleneck.activate:input', 'head'], ['decode_head.fusion.1.activate:input', 'head']]


@pytest.mark.parametrize(('arguments', 'message'), [
    ((f'{ROOT}/configs/digits_wrn16_2_wrn10.py', ), 'There is no config file .*Nearest there: digits_wrn16_2_wrn10_1'),
    ((f'{ROOT}/configs/_base_/runtime.py', ), 'has no model'),
    (('mmpretrain::resnet/resnet18_8xb16_cifar11.py', ), 'has no config .*Nearest: resnet/resnet18_8xb16_cifar10'),
    ((RESNET18, 'mmpretrain::lenet/lenet5_mnist.py', '--size', 8, 8),
     r'The model with the LeNet5 failed on one image \(1, 8, 8\)'),
])
def test_what_is_wrong_is_said_in_one_paragraph(list_taps, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        list_taps(*arguments)
    assert re.match(f'error: .*{message}', exit_.value.code) and '\n' not in exit_.value.code


@pytest.mark.parametrize('size', [(0, 0), (16, -1), ('a', 16)])
def test_a_size_that_no_image_has_is_refused(list_taps, capsys, size):
    with pytest.raises(SystemExit) as exit_:
        list_taps(DIGITS, '--size', *size)
    assert exit_.value.code == 2
    assert 'argument --size' in capsys.readouterr().err


def test_a_teacher_that_does_not_fit_is_refused(list_taps, tmp_path):
    checkpoint = save_teacher(tmp_path, wide_resnet(2))
    config = tmp_path / 'config.py'
    config.write_text(f'_base_ = {DIGITS!r}\nmodel = dict(teacher_checkpoint={checkpoint!r})\n')
    with pytest.raises(SystemExit, match='lacks .* on which its WideResNet depends'):
        list_taps(config)


def test_what_a_file_lacks_of_a_trunk_is_told_by_whole_names(monkeypatch):
    from overhaul.commands import taps
    monkeypatch.setattr(taps, 'load_teacher', lambda *_: ['backbone2.weight'])
    teacher = nn.Module()
    teacher.backbone, teacher.backbone2 = nn.Linear(1, 1), nn.Linear(1, 1)
    assert taps._load(dict(teacher=teacher, student=teacher), 'a.pth').startswith('Margins of the teacher are those')
    timm = nn.Module()
    timm.model = nn.Linear(1, 1)
    timm.state_dict = lambda: dict(weight=timm.model.weight)  # without the trunk, as TimmClassifier has it
    monkeypatch.setattr(taps, 'load_teacher', lambda *_: ['weight'])
    with pytest.raises(ValueError, match='lacks 1 tensor .weight., on which its Linear depends'):
        taps._load(dict(teacher=timm, student=timm), 'a.pth')
