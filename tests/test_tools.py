"""tools/train.py and tools/test.py, run as a user runs them: on the digits, for a few iterations."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch
from mmengine.hooks import RuntimeInfoHook

from overhaul.files.checkpoints import read_checkpoint

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / 'configs/digits_wrn16_2_wrn10_1.py')
TEACHER = ROOT / 'overhaul/weights/digits_wrn16_2.pth'
TAPS = ('block2.0.bn1', 'block3.0.bn1', 'bn1')
QUICK = ['train_cfg.max_iters=36', 'train_cfg.val_interval=12', 'default_hooks.checkpoint.interval=12',
         'default_hooks.logger.interval=1']

numbers = count()


def command(tool, *arguments, options=()):
    # A name of its own, because mmengine keeps one log per name in a process.
    return [str(ROOT / 'tools' / tool), *map(str, arguments), '--cfg-options', f'experiment_name=run{next(numbers)}',
            *options]


def run_in_process(folder, *arguments, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, 'argv', command(*arguments, **options))
        runpy.run_path(sys.argv[0], run_name='__main__')


def run_in_subprocess(python, folder, *arguments, **options):
    return subprocess.run(
        [python, *command(*arguments, **options)], cwd=folder, env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True, text=True, timeout=120)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a tool in an empty folder, in which the test is, too."""
    monkeypatch.chdir(tmp_path)
    return partial(run_in_process, tmp_path)


@pytest.fixture
def refused(run, tmp_path):
    """Run a tool that refuses what it is given: with one paragraph, and before it writes a checkpoint."""
    def refused(*arguments, **options):
        before = checkpoints(tmp_path)
        with pytest.raises(SystemExit) as exit_:
            run(*arguments, **options)
        message = exit_.value.code
        assert isinstance(message, str) and message.startswith('error: ') and '\n' not in message
        assert checkpoints(tmp_path) == before
        return message

    return refused


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The work directory of a distillation, started without --work-dir."""
    folder = tmp_path_factory.mktemp('trained')
    run_in_process(folder, 'train.py', CONFIG, options=QUICK)
    return folder / 'work_dirs/digits_wrn16_2_wrn10_1'


@pytest.fixture(scope='module')
def trained_alone(tmp_path_factory, python):
    """The work directory of its student alone."""
    folder = tmp_path_factory.mktemp('trained_alone')
    result = run_in_subprocess(python, folder, 'train.py', CONFIG, '--student-only', options=QUICK)
    assert result.returncode == 0, result.stderr
    return folder / 'work_dirs/digits_wrn16_2_wrn10_1_student_only'


def checkpoints(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob('*.pth')}


def newest(work_dir, pattern):
    return max(Path(work_dir).glob(pattern), key=lambda path: path.stat().st_mtime_ns)


def log(work_dir):
    return newest(work_dir, '*/*.log').read_text()


def records(work_dir, kind):
    """Return the rows 'train' or 'val' of the newest scalars.json."""
    rows = [json.loads(line) for line in newest(work_dir, '*/vis_data/scalars.json').read_text().splitlines()]
    return [row for row in rows if ('loss' in row) == (kind == 'train')]


def last_error(work_dir):
    return 100 - records(work_dir, 'val')[-1]['accuracy/top1']


# ---------------------------------------------------------------------------------------------------------------------
# tools/train.py


def test_log_begins_with_a_summary(trained):
    text = log(trained)
    assert 'teacher 691,674 parameters, student 77,850 parameters (11.3% of the teacher)' in text
    rows = [line.split() for line in text.splitlines() if line.startswith('backbone.')]
    expected = [('32', '16x16', '16', '0.25'), ('64', '8x8', '32', '0.5'), ('128', '4x4', '64', '1')]
    assert rows == [
        [f'backbone.{tap}', teacher_channels, size, *[f'backbone.{tap}'] * 2, student_channels, size, weight]
        for tap, (teacher_channels, size, student_channels, weight) in zip(TAPS, expected)]
    assert 'Teacher: 0.44 % error' in text  # 2 of 454 images

    first = records(trained, 'train')[0]
    task, distillation = re.search(r'Step 0: task loss (\S+), distillation loss (\S+)', text).groups()
    assert float(task) == pytest.approx(first['loss_task'], rel=1e-3)
    assert float(distillation) == pytest.approx(sum(first[f'distill.loss_{tap}'] for tap in TAPS), rel=1e-3)
    assert first['loss'] == pytest.approx(float(task) + float(distillation), rel=1e-3)


def test_each_line_has_the_time_left_and_the_loss_of_each_tap(trained):
    lines = re.findall(r'Iter\(train\) .*', log(trained))
    assert len(lines) == 36
    for line in lines:
        assert re.search(r'eta: \d+:\d\d:\d\d ', line)
        for tap in TAPS:
            assert float(re.search(rf'distill\.loss_{re.escape(tap)}: (\S+)', line)[1]) > 0


def test_log_ends_with_the_best_and_the_last_error(trained):
    errors = {row['step']: 100 - row['accuracy/top1'] for row in records(trained, 'val')}
    assert list(errors) == [12, 24, 36]
    best = min(errors, key=errors.get)
    last_line = log(trained).strip().splitlines()[-1]
    assert last_line.endswith(
        f'Student: best {errors[best]:.2f} % error (iteration {best}), last {errors[36]:.2f} % error (iteration 36)')


def test_student_only_trains_the_same_student_on_the_same_schedule(trained, trained_alone):
    text = log(trained_alone)
    assert 'Student alone: 77,850 parameters' in text
    assert 'distill.' not in text.split('Student alone')[1]
    distilled, alone = records(trained, 'train'), records(trained_alone, 'train')
    assert [row['lr'] for row in alone] == [row['lr'] for row in distilled]
    assert [row['step'] for row in alone] == list(range(1, 37))

    student = {name.removeprefix('student.'): value.shape
               for name, value in read_checkpoint(trained / 'iter_36.pth')['state_dict'].items()
               if name.startswith('student.')}
    state = read_checkpoint(trained_alone / 'iter_36.pth')['state_dict']
    assert {name: value.shape for name, value in state.items()} == student


def test_options_reach_the_model(run, trained):
    run('train.py', CONFIG, '--work-dir', 'here',
        options=[*QUICK, 'train_cfg.max_iters=1', 'model.distill_loss.loss_weight=2e-2'])
    doubled, first = records('here', 'train')[0], records(trained, 'train')[0]
    for tap in TAPS:
        assert doubled[f'distill.loss_{tap}'] == pytest.approx(2 * first[f'distill.loss_{tap}'], rel=1e-4)
    assert doubled['loss_task'] == pytest.approx(first['loss_task'], rel=1e-4)
    assert not Path('work_dirs').exists()


def test_interrupted_run_goes_on(run, trained, monkeypatch):
    with monkeypatch.context() as patch:
        def interrupt(self, runner, *_, **__):
            if runner.iter == 30:
                raise KeyboardInterrupt

        patch.setattr(RuntimeInfoHook, 'after_train_iter', interrupt)
        with pytest.raises(KeyboardInterrupt):
            run('train.py', CONFIG, options=QUICK)
    work_dir = Path('work_dirs/digits_wrn16_2_wrn10_1')
    assert {path.name for path in checkpoints(work_dir)} == {'iter_12.pth', 'iter_24.pth'}

    run('train.py', CONFIG, '--resume', options=QUICK)
    assert [row['step'] for row in records(work_dir, 'train')] == list(range(25, 37))
    assert {path.name for path in checkpoints(work_dir)} == {'iter_24.pth', 'iter_36.pth'}


def test_resumed_run_ends_as_if_it_had_not_been_interrupted(run, trained):
    run('train.py', CONFIG, '--work-dir', 'resumed', '--resume', trained / 'iter_24.pth', options=QUICK)
    rows = records('resumed', 'train')
    assert [row['step'] for row in rows] == list(range(25, 37))
    assert [row['lr'] for row in rows] == [row['lr'] for row in records(trained, 'train')[24:]]
    resumed = read_checkpoint('resumed/iter_36.pth')['state_dict']
    for name, value in read_checkpoint(trained / 'iter_36.pth')['state_dict'].items():
        assert torch.equal(resumed[name], value)
    # The best result may be one from before the interruption, or of the validation that was due then.
    assert [row['step'] for row in records('resumed', 'val')] == [24, 36]
    assert log('resumed').strip().splitlines()[-1].split('Student:')[1] == (
        log(trained).strip().splitlines()[-1].split('Student:')[1])


def test_a_training_that_is_made_longer_tells_what_becomes_of_its_learning_rate(run, trained):
    run('train.py', CONFIG, '--work-dir', 'longer', '--resume', trained / 'iter_36.pth',
        options=[*QUICK, 'train_cfg.max_iters=38'])
    assert re.search('schedule of the training that is resumed, which ends at 36, .* which ends at 38', log('longer'))
    assert 'that is resumed' not in log(trained)
    assert records('longer', 'train')[-1]['lr'] == pytest.approx(records(trained, 'train')[-1]['lr'], rel=0.1)


def test_resume_without_a_checkpoint_starts_anew(run):
    run('train.py', CONFIG, '--work-dir', 'new', '--resume', options=[*QUICK, 'train_cfg.max_iters=2'])
    assert [row['step'] for row in records('new', 'train')] == [1, 2]
    assert 'No checkpoint to resume in new: the training begins anew.' in log('new')


def test_resume_does_not_run_the_config_in_the_checkpoint(run, trained, tmp_path):
    checkpoint = read_checkpoint(trained / 'iter_24.pth')
    checkpoint['meta']['config'] = f'import os\nos.mkdir({str(tmp_path / "hacked")!r})\n'
    torch.save(checkpoint, 'hostile.pth')
    run('train.py', CONFIG, '--work-dir', 'here', '--resume', 'hostile.pth',
        options=[*QUICK, 'train_cfg.max_iters=25'])
    assert [row['step'] for row in records('here', 'train')] == [25]
    assert not (tmp_path / 'hacked').exists()


# ---------------------------------------------------------------------------------------------------------------------
# tools/test.py


@pytest.mark.parametrize('run_name', ['trained', 'trained_alone'])
def test_test_measures_what_the_training_measured_last(run, request, run_name):
    work_dir = request.getfixturevalue(run_name)
    run('test.py', CONFIG, work_dir / 'iter_36.pth', '--work-dir', 'tested')
    assert log('tested').strip().splitlines()[-1].endswith(f'Student: {last_error(work_dir):.2f} % error')


def test_the_two_students_differ(trained, trained_alone):
    # Else the test above would not notice one checkpoint in the place of the other.
    assert last_error(trained) != last_error(trained_alone)


def test_test_measures_the_teacher(tmp_path, python):
    result = run_in_subprocess(python, tmp_path, 'test.py', CONFIG, '--teacher')
    assert result.returncode == 0, result.stderr
    assert log(tmp_path / 'work_dirs/digits_wrn16_2_wrn10_1').strip().splitlines()[-1].endswith(
        'Teacher: 0.44 % error')
    assert not checkpoints(tmp_path)


@pytest.mark.parametrize(('head', 'reason'), [
    ('model.teacher.head=None', 'it has no head'),
    ('model.teacher.head.num_classes=7', 'it tells 7 classes apart, and the data have 10'),
    ('model.teacher.head.type=MultiLabelLinearClsHead', 'it gives several classes, and the student one class')])
def test_test_refuses_a_teacher_that_the_data_cannot_judge(refused, head, reason):
    message = refused('test.py', CONFIG, '--teacher', options=[head])
    assert f'The teacher cannot be tested on these data, since {reason}. A student can learn' in message


def test_test_measures_a_model_that_is_in_no_distillation(run):
    run('test.py', ROOT / 'configs/digits_wrn16_2.py', TEACHER, '--work-dir', 'tested')
    assert log('tested').strip().splitlines()[-1].endswith('Model: 0.44 % error')


def test_test_asks_for_a_checkpoint(run, capsys):
    with pytest.raises(SystemExit) as exit_:
        run('test.py', CONFIG)
    assert exit_.value.code == 2
    assert 'name the CHECKPOINT to test, or give --teacher' in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Wrong input


def test_refusal_is_one_paragraph_and_status_1(tmp_path, python):
    result = run_in_subprocess(python, tmp_path, 'train.py', CONFIG, options=['model.distil_loss.loss_weight=1'])
    assert result.returncode == 1
    assert result.stderr == (
        'error: The config gives OverhaulDistiller an unknown key "distil_loss". Nearest: distill_loss.\n')
    assert not checkpoints(tmp_path)


@pytest.mark.parametrize('options, expected', [
    # The model
    (['model.taps.0.teacher=backbone.block2.0.bn'],
     r'teacher has no module "backbone.block2.0.bn" .*Nearest: .*backbone\.block2\.0\.bn1'),
    (['model.taps.0.student=backbone.blok2.0.bn1'],
     r'student has no module "backbone.blok2.0.bn1" .*Nearest: .*backbone\.block2\.0\.bn1'),
    (['model.taps.0.student=backbone.block3.0.bn1'],
     r'differ in size at a tap: "backbone.block2.0.bn1" is 16x16 and "backbone.block3.0.bn1" is 8x8'),
    (['model.taps.0.los_weight=1'], r"unknown keys \['los_weight'\]"),
    (['model.type=overhaul.OverhaulDistler'], r'type "overhaul.OverhaulDistler".* Nearest: overhaul.OverhaulDistiller'),
    (['model.student.backbone.type=WideResNet'], r'student asks for the type "WideResNet".* Nearest: overhaul.WideRes'),
    (['model.teacher.type=ImageClasifier'], r'teacher asks for the type "ImageClasifier".*Nearest: .*ImageClassifier'),
    (['model.margin.type=MarginRelu'], r'margin asks for the type "MarginRelu".* Nearest: overhaul.MarginReLU'),
    (['model.tap=1'], r'OverhaulDistiller an unknown key "tap"\. Nearest: taps, task, tap_neck\.'),
    (['model.alhpa=1'], r'OverhaulDistiller an unknown key "alhpa"\. Nearest: alpha\.'),
    (['model.distill_loss.alpha=1'], r'distill_loss gives PartialL2Loss an unknown key "alpha"\. Nearest: loss_weight'),
    (['model.connector.type=ConvBNConnector', 'model.connector.kernel=3'],
     r'connector gives ConvBNConnector an unknown key "kernel"\.'),
    (['model.connector.kernel=3'], r'unknown key "kernel"'),
    (['model.student.backbone.depht=10'], r'student gives WideResNet an unknown key "depht"\. Nearest: depth\.'),
    # The teacher's checkpoint
    (['model.teacher_checkpoint=overhaul://digits_wrn16_3.pth'], r'comes with no weights .*digits_wrn16_2\.pth'),
    (['model.teacher_checkpoint=nowhere/teacher.pth'], r'"nowhere/teacher.pth" does not exist'),
    (['model.teacher.backbone.widen_factor=1', 'model.teacher.head.in_channels=64'],
     r'does not fit the ImageClassifier.* of another shape .*Nothing was loaded'),
    # Everything else
    (['train_dataloader.dataset.labels_per_class=131'], r'asks for more than there is.* Use at most 130'),
    (['train_dataloader.dataset.seeed=1'], r'Digits an unknown key "seeed"\. Nearest: seed'),
    (['train_dataloader.dataset.type=Digts'], r'type "Digts".* Nearest: overhaul\.Digits'),
    (['train_cfg.max_iter=6'], r'IterBasedTrainLoop an unknown key "max_iter"\. Nearest: max_iters'),
    (['default_hooks.chekpoint.interval=1'], r'without a type: .*interval'),
    (['optim_wraper.optimizer.lr=1'], r'config has no "optim_wraper".* Nearest: optim_wrapper'),
    (['model.taps.7.teacher=backbone.bn1'], r'--cfg-options does not fit the config: Index 7'),
])
def test_wrong_option(refused, options, expected):
    assert re.search(expected, refused('train.py', CONFIG, options=[*QUICK, *options]))


@pytest.mark.parametrize('tool, arguments', [('train.py', []), ('test.py', ['any.pth'])])
def test_missing_config(refused, tool, arguments):
    message = refused(tool, CONFIG.replace('wrn10_1', 'wrn10'), *arguments)
    assert re.search(r'There is no config file ".*digits_wrn16_2_wrn10.py"\. Nearest there: .*wrn16_2_wrn10_1', message)


@pytest.mark.parametrize('text, expected', [
    ('model = dict(\n', r"'\(' was never closed in line 1"),
    ('a = 1\nmodel = dict(type=Distiller)\n', r"NameError in line 2 of .*wrong\.py.*'Distiller' is not defined"),
    ("_base_ = 'absent.py'\n", r'No such file or directory: .*absent\.py'),
])
def test_config_that_does_not_run(refused, text, expected):
    Path('wrong.py').write_text(text)
    message = refused('train.py', 'wrong.py')
    assert '"wrong.py" cannot be read' in message and re.search(expected, message)


def test_truncated_teacher(refused):
    Path('teacher.pth').write_bytes(TEACHER.read_bytes()[:100_000])
    assert 'cannot be read to its end' in refused(
        'train.py', CONFIG, options=[*QUICK, 'model.teacher_checkpoint=teacher.pth'])


class Hostile:
    """Unpickles to a call of os.mkdir."""

    def __reduce__(self):
        return os.mkdir, ('hacked',)


@pytest.mark.parametrize('arguments', [
    ['train.py', CONFIG, '--resume', 'hostile.pth'],
    ['test.py', CONFIG, 'hostile.pth'],
    ['test.py', CONFIG, 'hostile.pth', '--teacher'],
])
def test_hostile_checkpoint(refused, arguments):
    torch.save(dict(read_checkpoint(TEACHER), meta=Hostile()), 'hostile.pth')
    assert 'holds more than weights' in refused(*arguments)
    assert not Path('hacked').exists()


@pytest.mark.parametrize('key', ['model.teacher_checkpoint', 'load_from'])
def test_hostile_checkpoint_in_the_config(refused, key):
    torch.save(dict(read_checkpoint(TEACHER), meta=Hostile()), 'hostile.pth')
    assert 'holds more than weights' in refused('train.py', CONFIG, options=[*QUICK, f'{key}=hostile.pth'])
    assert not Path('hacked').exists()


@pytest.mark.parametrize('source, expected', [
    ('nowhere.pth', '"nowhere.pth" does not exist'),
    (str(TEACHER), 'nothing to resume'),
])
def test_nothing_to_resume(refused, source, expected):
    assert expected in refused('train.py', CONFIG, '--resume', source, options=QUICK)


def test_resume_of_another_model(refused, trained, trained_alone):
    last = trained_alone / 'iter_36.pth'
    assert 'is from the training of another model' in refused('train.py', CONFIG, '--resume', last, options=QUICK)
    shutil.copytree(trained, 'work')
    assert 'is from the training of another model' in refused(
        'train.py', CONFIG, '--resume', '--student-only', '--work-dir', 'work', options=QUICK)


def test_checkpoint_that_does_not_fit_the_student(refused):
    assert 'does not fit the ImageClassifier' in refused('test.py', CONFIG, TEACHER)


@pytest.mark.parametrize('arguments', [['train.py', '--student-only'], ['test.py', '--teacher', TEACHER]])
def test_config_without_a_distiller(refused, arguments):
    tool, *arguments = arguments
    message = refused(tool, ROOT / 'configs/digits_wrn16_2.py', *arguments)
    assert 'is of type ImageClassifier, which has no' in message
