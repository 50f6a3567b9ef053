import json

import pytest

from overhaul.reports.logs import read_log, read_results


def write(work_dir, time, *rows, cut='', text=''):
    folder = work_dir / time / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join([json.dumps(row) for row in rows] + [cut]))
    (work_dir / time / f'{time}.log').write_text(text)


def train(step, task, **taps):
    return {'loss': task + sum(taps.values()), 'loss_task': task, 'lr': 0.1, 'time': 1.0, 'step': step,
            **{f'distill.loss_{tap}': value for tap, value in taps.items()}}


def test_a_log_has_task_taps_results_and_the_teacher(tmp_path):
    write(tmp_path, '20260101_000000', train(5, 2.0, bn1=3.0, bn2=1.0), {'accuracy/top1': 60.0, 'step': 5},
          train(10, 1.0, bn1=2.0, bn2=0.5), {'accuracy/top1': 75.5, 'step': 10}, text='x\nTeacher: 0.44 % error\ny')
    log = read_log(tmp_path)
    assert log.task_losses == {5: 2.0, 10: 1.0}
    assert log.tap_losses == {'bn1': {5: 3.0, 10: 2.0}, 'bn2': {5: 1.0, 10: 0.5}}
    assert log.teacher == {'% error': 0.44} and not log.by_epoch
    assert log.validation[10] == {'accuracy/top1': 75.5}


def test_a_resumed_training_goes_on_and_one_started_anew_takes_the_place(tmp_path):
    write(tmp_path, '1', train(1, 9.0), {'mIoU': 1.0, 'step': 1}, train(2, 8.0), train(3, 7.0), cut='{"loss": 6, "st')
    write(tmp_path, '2', train(3, 5.0), train(4, 4.0), {'mIoU': 2.0, 'step': 2})
    write(tmp_path, '3')  # stopped before its first line
    log = read_log(tmp_path)
    assert log.task_losses == {1: 9.0, 2: 8.0, 3: 5.0, 4: 4.0} and log.tap_losses == {}
    assert log.validation == {1: {'mIoU': 1.0}, 2: {'mIoU': 2.0}} and log.teacher == {}
    write(tmp_path, '4', train(1, 3.0), {'mIoU': 3.0, 'step': 1})
    assert read_log(tmp_path).task_losses == {1: 3.0} and read_log(tmp_path).validation == {1: {'mIoU': 3.0}}


def test_epochs_are_told_from_iterations(tmp_path):
    write(tmp_path, '1', {**train(25, 1.0), 'epoch': 1, 'iter': 25}, {'mIoU': 1.0, 'step': 1})
    assert read_log(tmp_path).by_epoch


def test_a_folder_without_a_log_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='has no log of a training .* Name the work directory'):
        read_log(tmp_path)


def test_results_by_side_and_value(tmp_path):
    file = tmp_path / 'a.csv'
    file.write_text('side,a.b,seed,% error\nalone,1,0,9.0\ndistilled,1,0,5\nalone,None,0,2\ndistilled,None,0,1\n'
                    'alone,1,1,8\n')
    assert read_results(file) == (
        'a.b', {'% error': {'alone': {'1': [9.0, 8.0], 'None': [2.0]}, 'distilled': {'1': [5.0], 'None': [1.0]}}})
    file.write_text('side,a.b,seed,% error of a,% error of b\nalone,1,0,9,8\n')
    assert read_results(file).units == {
        '% error of a': {'alone': {'1': [9.0]}}, '% error of b': {'alone': {'1': [8.0]}}}


@pytest.mark.parametrize('text', [
    '', 'side,a,seed\n', 'side,a,seed,% error\n', 'x,a,seed,u\nalone,1,0,2\n', 'side,a,seed,u\nalone,1,0,x\n',
    'side,a,seed,u\nalone,1,0\n', 'side,a,seed,u\nalone,1,0,2\ndistilled,2,0,1\n'])
def test_what_is_no_result_is_refused(tmp_path, text):
    file = tmp_path / 'a.csv'
    file.write_text(text)
    with pytest.raises(ValueError, match='is no result of `overhaul compare` --csv'):
        read_results(file)
    with pytest.raises(FileNotFoundError, match='There is no file'):
        read_results(tmp_path / 'b.csv')
