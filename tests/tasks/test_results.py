"""Which metrics are quoted, and which of two validations is the better one."""

import math

import pytest

from overhaul.registry import TASKS
from overhaul.tasks import Quote, Task
from overhaul.tasks.results import Judge, Result, less_is_better


@pytest.mark.parametrize(('metrics', 'line'), [
    ({'accuracy/top1': 79.11, 'accuracy/top5': 95.0}, '20.89 % error'),
    ({'aAcc': 93.0, 'mIoU': 73.98, 'mAcc': 80.0}, '73.98 % mIoU'),
    ({'multi-label/precision': 60.0, 'multi-label/mAP': 55.5}, '55.50 % mAP'),
    ({'colour_accuracy/top1': 75.0, 'shape_accuracy/top1': 50.0}, '25.00 % error of colour, 50.00 % error of shape'),
    ({'aAcc': None, 'coco/other_mAP': 0.5}, '0.50 coco/other_mAP'),
    ({'other': 1.0, 'val/mIoU': 50.0}, '50.00 % mIoU of val'),
    ({'classwise': [1.0, 2.0], 'mae': 1.5, 'more': 2.0}, '1.50 mae'),
    ({}, 'no result: the evaluator gave no number'),
])
def test_the_headline_is_what_the_task_quotes(metrics, line):
    assert Judge().headline(metrics) == line


@pytest.mark.parametrize(('metric', 'less'), [
    *((name, True) for name in (
        'MAPE', 'top1_error', 'mae', 'rmse', 'val_loss', 'accuracy_error', 'abs_rel', 'val/abs_rel', 'EPE', 'bbox/MAPE',
        'mIoU_loss', 'log10', 'kitti/abs_rel')),
    *((name, False) for name in (
        'AP50', 'Bleu_4', 'AR@100', 'accuracy/top1', 'acc/mean1', 'single-label/f1-score', 'mIoU', 'coco/bbox_mAP_50',
        'coco/bbox_mAP_s', 'Recall@1', 'd1', 'val/d1', 'PCK')),
    *((name, None) for name in (
        'stillness', 'acceleration', 'stop_distance', 'D1-all', 'loss_iou', 'recall_error_2', 'accuracy_drop',
        'accuracy/std', '1-accuracy', 'top1_inaccuracy', 'fpr_at_recall_95', 'time_to_accuracy', 'mean_rank_top1',
        'neg_mean_squared_error', 'kitti/d1', 'bad_d3', 'snr_log10', 'likelihood_log10'))])
def test_the_name_of_a_metric_tells_what_is_better_or_nothing_does(metric, less):
    assert less_is_better(metric) is less


def test_what_a_task_says_of_its_metric_comes_before_words(monkeypatch):
    class Reversed(Task):
        quotes = {'stillness': Quote('mm', less_is_better=True), 'iou': Quote('gap', less_is_better=True)}

    monkeypatch.setitem(TASKS.module_dict, 'reversed', Reversed)
    assert less_is_better('stillness') is True and less_is_better('left_iou') is True
    assert less_is_better('mIoU') is False and less_is_better('restlessness') is None


def test_the_quotes_of_the_task_of_the_model_come_first(monkeypatch):
    class Mine(Task):
        quotes = {'aAcc': Quote('mm', less_is_better=True)}

    class Other(Task):
        quotes = {'aAcc': Quote('km', less_is_better=False), 'mIoU': Quote('share')}

    for name, task in dict(mine=Mine, other=Other).items():
        monkeypatch.setitem(TASKS.module_dict, name, task)
    metrics = {'mIoU': 50.0, 'val/aAcc': 2.0}
    # Of the one that was registered last.
    assert Judge().quoted(metrics) == [Result('val/aAcc', 2.0, 'km of val', False)]
    assert Judge(task=Mine).quoted(metrics) == [Result('val/aAcc', 2.0, 'mm of val', True)]
    assert Judge(task=Mine).deciding({'aAcc': 2.0}) == Result('aAcc', 2.0, 'mm', True)
    assert less_is_better('aAcc', Mine) is True and less_is_better('aAcc') is False


def test_the_best_step_is_the_first_of_the_best_where_it_is_known():
    validations = {step: {'mIoU': value} for step, value in enumerate([1.0, 3.0, 3.0, 2.0])}
    assert Judge().best(validations) == 1 and Judge({'mIoU': 'less'}).best(validations) == 0
    assert Judge({'other': 'less'}).best(validations) is None and Judge().best({}) is None


@pytest.mark.parametrize(('value', 'other', 'better'), [
    (1, math.nan, True), (math.nan, 1, False), (math.nan, math.nan, False)])
def test_what_is_no_number_is_never_the_better_one(value, other, better):
    (first, ), (second, ) = Judge().quoted({'mIoU': value}), Judge().quoted({'mIoU': other})
    assert first.better_than(second) is better


def test_a_quoted_error_is_better_when_it_is_less():
    (first, ), (second, ) = Judge().quoted({'accuracy/top1': 90.0}), Judge().quoted({'accuracy/top1': 80.0})
    assert first.better_than(second) and not second.better_than(first)
    assert (first.value, first.less_is_better) == (10.0, True)


@pytest.mark.parametrize(('metrics', 'rules', 'decides'), [
    ({'rmse': 0.4}, {}, Result('rmse', 0.4, 'rmse', True)),
    ({'stillness': 0.4}, {}, None),
    ({'stillness': 0.4}, {'stillness': 'less'}, Result('stillness', 0.4, 'stillness', True)),
    ({'mIoU': 50.0, 'aAcc': 90.0}, {'aAcc': 'greater'}, Result('aAcc', 90.0, '% of pixels', False)),
    ({'mIoU': 50.0, 'aAcc': 90.0}, {'other': 'greater'}, None),
    ({'mIoU': 50.0, 'aAcc': 90.0}, {'other': 'greater', 'aAcc': 'greater'}, Result('aAcc', 90.0, '% of pixels', False)),
    ({'accuracy/top1': 90.0}, {'accuracy/top1': 'less'}, Result('accuracy/top1', 10.0, '% error', False)),
    ({'rmse': 0.4}, {'rmse': 'greater'}, Result('rmse', 0.4, 'rmse', False)),
    ({'accuracy/top1': 90.0}, {'accuracy/top1': 'greater'}, Result('accuracy/top1', 10.0, '% error', True)),
    ({'a_accuracy/top1': 90.0, 'b_accuracy/top1': 80.0}, {}, None),
    ({'a_accuracy/top1': 90.0, 'b_accuracy/top1': 80.0}, {'b_accuracy/top1': 'greater'},
     Result('b_accuracy/top1', 20.0, '% error of b', True)),
    ({}, {'mIoU': 'greater'}, None),
])
def test_what_decides_is_said_or_known_and_never_guessed(metrics, rules, decides):
    assert Judge(rules).deciding(metrics) == decides
