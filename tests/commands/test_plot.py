"""tools/plot.py, on a training of a few iterations."""

import runpy
import sys
from pathlib import Path

import cv2
import pytest
import torch
from matplotlib.figure import Figure

from overhaul.files.parts import student_only
from overhaul.files.settings import read_config
from overhaul.registry import build
from overhaul.reports import pictures

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / 'configs/digits_wrn16_2_wrn10_1.py')
SCENES, BOXES = (str(ROOT / f'configs/{name}_r34_r18.py') for name in ('digitscenes', 'digitdet_gfl'))
RESULTS = 'side,train_dataloader.dataset.labels_per_class,seed,% error\n' + ''.join(
    f'{side},{value},{seed},{error + seed}\n'
    for side, error in (('alone', 20), ('distilled', 7)) for value in (1, 'None') for seed in range(3))


def run(tool, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [str(ROOT / 'tools' / tool), *map(str, arguments)])
        runpy.run_path(sys.argv[0], run_name='__main__')


def refused(*arguments):
    with pytest.raises(SystemExit) as exit_:
        run('plot.py', *arguments)
    assert '\n' not in exit_.value.code
    return exit_.value.code


@pytest.fixture(scope='module')
def work_dirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('work_dirs')
    for name, more in (('distilled', []), ('alone', ['--student-only'])):
        run('train.py', CONFIG, '--work-dir', folder / name, *more, '--cfg-options', f'experiment_name=plot_{name}',
            'train_cfg.max_iters=4', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=4',
            'default_hooks.logger.interval=1', 'default_hooks.pictures.type=overhaul.PictureHook',
            'default_hooks.pictures.interval=2')
    return folder


@pytest.mark.parametrize('arguments, least', [
    (['curves', 'distilled', 'alone', '--names', 'Overhaul', 'alone'], (500, 1400)),
    (['taps', 'distilled'], (500, 1000)),
    (['budget', 'results.csv', '--teacher', '0.44'], (500, 1000)),
    (['features', CONFIG, 'distilled/iter_4.pth'], (1000, 1600)),
    (['predictions', CONFIG, 'a=distilled/iter_4.pth', '--images', '2'], (500, 600)),
    (['margins', CONFIG, 'distilled/iter_4.pth', '--channels', '2'], (1000, 1000))])
def test_each_command_draws_a_png(work_dirs, monkeypatch, capsys, arguments, least):
    monkeypatch.chdir(work_dirs)
    Path('results.csv').write_text(RESULTS)
    run('plot.py', *arguments)
    picture = cv2.imread(f'{arguments[0]}.png')
    assert all(size >= limit for size, limit in zip(picture.shape, least))
    assert capsys.readouterr().out.endswith(f'Wrote {arguments[0]}.png\n')


def test_comparisons_are_drawn_together_by_their_names(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, 'draw_budget', lambda *of: drawn.append(of) or Figure())
    monkeypatch.chdir(tmp_path)
    Path('a.csv').write_text('side,x.per_class,seed,u\nalone,1,0,9\ndistilled,1,0,5\nalone,2,0,4\ndistilled,2,0,3\n')
    Path('b.csv').write_text('side,x.per_class,seed,u\ndistilled,1,0,2\n')
    run('plot.py', 'budget', 'a.csv', 'b.csv', '--names', 'few', 'more')
    run('plot.py', 'budget', 'a.csv', 'b.csv')
    alone, distilled, more = {'1': [9], '2': [4]}, {'1': [5], '2': [3]}, {'1': [2]}
    assert drawn == [
        ({'u': {'alone, few': alone, 'distilled, few': distilled, 'distilled, more': more}}, 'per class', None),
        ({'u': {'alone, a.csv': alone, 'distilled, a.csv': distilled, 'distilled, b.csv': more}}, 'per class', None)]
    Path('b.csv').write_text('side,y,seed,u\ndistilled,1,0,2\n')
    assert 'vary different keys, x.per_class and y,' in refused('budget', 'a.csv', 'b.csv')
    with pytest.raises(SystemExit):
        run('plot.py', 'budget', 'a.csv', 'b.csv', '--names', 'one', 'one')


def test_features_are_of_images_that_are_normalised_as_in_the_training(work_dirs, monkeypatch, tmp_path):
    seen = []
    read_features = pictures.read_features
    monkeypatch.setattr(pictures, 'read_features', lambda model, data: seen.append(
        model.data_preprocessor(data)['inputs']) or read_features(model, data))
    run('plot.py', 'features', CONFIG, work_dirs / 'distilled/iter_4.pth', '--out', tmp_path / 'features.png')
    for images in seen:  # pixels of 0 to 255
        assert images.min().item() == pytest.approx((0 - 78) / 96)
        assert 1 < images.max().item() <= (255 - 78) / 96


@pytest.mark.parametrize(('config', 'package'), [
    (SCENES, 'mmseg'), pytest.param(BOXES, 'mmdet', marks=pytest.mark.detection)])
def test_predictions_are_drawn_a_row_per_image(config, package, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    student = build(student_only(read_config(config)), 'student', scope=package)
    torch.save(student.state_dict(), 'some.pth')
    run('plot.py', 'predictions', config, 'first=some.pth', 'second=some.pth', '--images', '2')
    picture = cv2.imread('predictions.png')
    assert 1.5 < picture.shape[1] / picture.shape[0] < 2  # two rows of four, titles and a legend


def test_pictures_come_with_one_line_of_options(work_dirs):
    assert len(list(work_dirs.glob('distilled/*/vis_data/vis_image/features_[24].png'))) == 2


@pytest.mark.parametrize('arguments, message', [
    (['curves', 'distilled', 'nowhere'], 'error: "nowhere" has no log of a training'),
    (['taps', 'alone'], 'error: That training was of a student alone'),
    (['budget', 'nothing.csv'], 'error: There is no file "nothing.csv"'),
    (['features', CONFIG, 'alone/iter_4.pth'], 'error: "alone/iter_4.pth" is not from the distillation of this config'),
    (['margins', CONFIG, 'nowhere.pth'], 'error: "nowhere.pth" does not exist'),
    (['features', str(ROOT / 'configs/digits_wrn16_2.py'), 'x.pth'],
     'error: The model of this config is of type ImageClassifier, which has no student')])
def test_what_cannot_be_drawn_is_refused(work_dirs, monkeypatch, arguments, message):
    monkeypatch.chdir(work_dirs)
    assert refused(*arguments).startswith(message)


def test_predictions_of_no_image_or_of_no_test_data_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run('plot.py', 'predictions', CONFIG, 'a=some.pth', '--images', '0')
    assert 'at least one of the --images' in capsys.readouterr().err
    config = tmp_path / 'config.py'
    config.write_text(f'_base_ = {str(CONFIG)!r}\ntest_dataloader = None\n')
    assert 'has no test_dataloader' in refused('predictions', config, 'a=some.pth')
