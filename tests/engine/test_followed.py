"""What mmengine's hooks and schedules that follow a metric are told of it."""

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import Evaluator
from mmengine.hooks import CheckpointHook, EarlyStoppingHook
from mmengine.registry import HOOKS
from small_models import Lines, batch, build_distiller, build_model, loader, runner, sgd, wide_resnet

from overhaul.engine import followed
from overhaul.engine.hooks import SummaryHook
from overhaul.files.checkpoints import read_checkpoint
from overhaul.files.settings import read_config

DIGITS = 'overhaul::digits_wrn16_2_wrn10_1.py'


def saving(**keys):
    return Config(dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', **keys))))


def told(cfg):
    cfg.setdefault('model', wide_resnet())
    followed.give_rules(cfg)
    return followed.judge_in(cfg).rules


@pytest.mark.parametrize(('keys', 'rules'), [
    (dict(save_best='accuracy/top1'), {'accuracy/top1': 'greater'}),
    (dict(save_best='MAPE'), {'MAPE': 'less'}),  # has 'mAP' in it
    (dict(save_best='abs_rel'), {'abs_rel': 'less'}),
    (dict(save_best='top1_error'), {'top1_error': 'less'}),  # has 'top' in it
    (dict(save_best=['mIoU', 'rmse']), {'mIoU': 'greater', 'rmse': 'less'}),
    (dict(save_best=['mIoU', 'rmse'], rule='less'), {'mIoU': 'less', 'rmse': 'less'}),
    (dict(save_best='rmse', rule='greater'), {'rmse': 'greater'}),
    (dict(save_best='stillness', rule='less'), {'stillness': 'less'}),
    (dict(save_best='stillness', less_keys=['still']), {'stillness': 'less'}),
    (dict(save_best='auto'), {}),
    (dict(), {}),
])
def test_the_rule_is_what_the_config_says_or_the_name_tells(keys, rules):
    cfg = saving(**keys)
    assert told(cfg) == rules
    hook = CheckpointHook(**{key: value for key, value in cfg.default_hooks.checkpoint.items() if key != 'type'})
    if rules:
        assert dict(zip(hook.key_indicators, hook.rules)) == rules


@pytest.mark.parametrize('part', [
    dict(custom_hooks=[dict(type='EarlyStoppingHook', monitor='MAPE')]),
    dict(param_scheduler=dict(type='ReduceOnPlateauLR', monitor='MAPE')),
    dict(param_scheduler=dict(backbone=[dict(type='ConstantLR'), dict(type='ReduceOnPlateauLR', monitor='MAPE')]))])
def test_all_that_follows_a_metric_is_told(part):
    assert told(Config(part)) == {'MAPE': 'less'}


def test_a_hook_that_is_derived_from_one_that_follows_is_told(monkeypatch):
    class PatientHook(EarlyStoppingHook):
        pass

    monkeypatch.setitem(HOOKS.module_dict, 'PatientHook', PatientHook)
    assert told(Config(dict(custom_hooks=[dict(type='PatientHook', monitor='MAPE')]))) == {'MAPE': 'less'}


@pytest.mark.parametrize('asked', [True, 3, ['mIoU', None]])
def test_what_is_no_name_is_refused(asked):
    with pytest.raises(ValueError, match='A metric to follow is its name, or for save_best a list of names, not'):
        told(saving(save_best=asked))


def test_a_schedule_that_follows_an_accuracy_waits_for_more_of_it():
    """mmengine's has rule='less' whatever it follows."""
    cfg = Config(dict(param_scheduler=[dict(type='ReduceOnPlateauLR', monitor='accuracy/top1')]))
    assert told(cfg) == {'accuracy/top1': 'greater'}


@pytest.mark.parametrize('part', [
    dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', save_best='stillness'))),
    dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', save_best=['mIoU', 'stillness']))),
    dict(custom_hooks=[dict(type='mmengine.hooks.EarlyStoppingHook', monitor='stillness')]),
    dict(param_scheduler=[dict(type='ReduceOnPlateauLR', monitor='stillness')])])
def test_what_nobody_knows_is_refused_with_the_line_to_add(part):
    with pytest.raises(ValueError, match=r"has (save_best|monitor)='stillness'.+='stillness', rule='less', or rule='"):
        told(Config(part))


def test_a_monitor_of_something_else_is_left_alone():
    cfg = Config(dict(custom_hooks=[dict(type='MemoryHook', monitor='stillness')]))
    followed.give_rules(cfg)
    assert 'rule' not in cfg.custom_hooks[0]


def test_the_recipes_of_this_package_are_told():
    assert told(read_config('overhaul::voc_r101_r18.py')) == {'mIoU': 'greater'}
    assert told(read_config(DIGITS)) == {}


class Given(Evaluator):
    """Gives the metrics of a list, one validation after another."""

    def __init__(self, results):
        super().__init__([])
        self.results = iter(results)

    def evaluate(self, size):
        return next(self.results)


class Validations:
    """A training whose validations give the metrics of a list, one after another."""

    def __init__(self, folder, results, model=None, summary=None, schedule=None, resume=None, **keys):
        checkpoint = dict(type='CheckpointHook', interval=1, **keys)
        self.run = runner(
            folder, model or build_model(wide_resnet()), [batch()], len(results), sgd(), [summary or SummaryHook()],
            schedule,
            val_dataloader=loader([batch()]), val_cfg=dict(), val_evaluator=Given(results),
            train_cfg=dict(by_epoch=True, max_epochs=len(results) + 2 * bool(resume), val_interval=1),
            default_hooks=dict(sampler_seed=None, checkpoint=checkpoint),
            cfg=ConfigDict(default_hooks=dict(checkpoint=checkpoint), param_scheduler=schedule or []),
            resume=bool(resume), load_from=resume, experiment_name=f'{folder} {resume}')
        followed.prepare(self.run)
        self.folder, self.lines = folder, Lines(self.run)

    def train(self):
        self.run.train()
        return self

    @property
    def best(self):
        return sorted(path.name for path in self.folder.glob('best_*.pth'))

    def warnings(self, start):
        return [line for line in self.lines.messages if line.startswith(start)]


@pytest.mark.parametrize(('metric', 'best', 'epoch'), [('MAPE', 1.0, 2), ('accuracy/top1', 99.0, 3)])
def test_the_first_metric_is_taken_in_its_own_direction(tmp_path, metric, best, epoch):
    """As in the config, so in the summary."""
    results = [{'classwise': [1, 2], metric: value} for value in (4.0, 1.0, 99.0, 2.0)]
    training = Validations(tmp_path, results, save_best='auto').train()
    assert training.best == [f'best_{metric.replace("/", "_")}_epoch_{epoch}.pth']
    assert training.run.message_hub.get_info('best_score') == best
    assert f'(epoch {epoch}), last' in training.lines.one('Student: ')


def test_a_first_metric_of_which_nobody_knows_costs_no_training(tmp_path):
    training = Validations(tmp_path, [{'stillness': 1.0}, {'stillness': 2.0}], save_best='auto').train()
    assert training.best == [] and (tmp_path / 'epoch_2.pth').is_file()
    assert len(training.warnings("save_best='auto' takes the first metric, stillness")) == 2
    assert 'best not known' in training.lines.one('Student: ')


def test_with_the_rule_of_the_config_it_is_saved(tmp_path):
    results = [{'stillness': value} for value in (3.0, 1.0, 2.0)]
    training = Validations(tmp_path, results, save_best='auto', rule='less').train()
    assert training.best == ['best_stillness_epoch_2.pth']
    assert training.lines.one('Student: ').startswith('Student: best 1.00 stillness (epoch 2)')


def test_a_metric_that_is_not_given_is_told_and_costs_no_checkpoint(tmp_path):
    results = [{'aAcc': 1.0, 'mIoU': 2.0}] * 2
    training = Validations(tmp_path, results, save_best=['mIou', 'aAcc'], rule='greater').train()
    assert training.best == ['best_aAcc_epoch_1.pth'] and (tmp_path / 'epoch_2.pth').is_file()
    line, _ = training.warnings('The CheckpointHook')
    assert "save_best='mIou'" in line and line.endswith('Nearest of what it gave: mIoU.')


@pytest.mark.parametrize(('monitor', 'rate'), [('mIoU', 0.001), ('mIou', 0.1)])
def test_a_schedule_passes_over_a_metric_that_is_not_given(tmp_path, monitor, rate):
    schedule = [dict(type='ReduceOnPlateauLR', monitor=monitor, rule='greater', patience=0, factor=0.1)]
    # mmengine lowers the rate twice here, since it does not count the first validation.
    training = Validations(tmp_path, [{'mIoU': value} for value in (3.0, 2.0, 1.0, 0.5)], schedule=schedule).train()
    assert training.run.optim_wrapper.get_lr()['lr'] == pytest.approx([rate])
    assert len(training.run.param_schedulers) == 1


def test_a_schedule_without_a_monitor_follows_the_loss_and_tells_that_none_is_given(tmp_path):
    training = Validations(
        tmp_path, [{'mIoU': 1.0}], schedule=[dict(type='ReduceOnPlateauLR', patience=0, factor=0.1)]).train()
    (line, ) = training.warnings('The ReduceOnPlateauLR')
    assert "has monitor='loss', and this validation gave no such metric" in line


def test_it_is_told_before_the_first_step_where_the_teacher_was_validated(tmp_path):
    class Judged(SummaryHook):
        """Has validated the teacher."""

        def before_train(self, runner):
            self.teacher_metrics = {'mIoU': 2.0}

    training = Validations(tmp_path, [{'mIoU': 1.0}] * 2, build_distiller(), Judged(), save_best='mIou', rule='greater')
    training.train()
    first, second, _ = (
        index for index, line in enumerate(training.lines.messages) if line.startswith('The CheckpointHook'))
    steps = [index for index, line in enumerate(training.lines.messages) if line.startswith('Saving checkpoint')]
    assert first < steps[0] < second


def test_nothing_found_is_no_result_and_not_the_one_before(tmp_path):
    """A detector that finds nothing has no metrics, and a metric beside it may have."""
    results = [{}, {'speed': 9.0}, {'speed': 9.0, 'bbox_mAP': 0.5}, {'speed': 9.0, 'bbox_mAP': 0.2}, {}]
    training = Validations(tmp_path, results, save_best='bbox_mAP', rule='greater').train()
    assert training.best == ['best_bbox_mAP_epoch_3.pth']
    best, last = training.lines.one('Student: ').split(', last ')
    assert best == 'Student: best 0.50 bbox_mAP, 9.00 speed (epoch 3)'
    assert last == 'no result: the evaluator gave no number (epoch 5)'


AT_FIRST = [{'mIoU': 60.0, 'MAPE': 4.0}, {'mIoU': 70.0, 'MAPE': 5.0}]
LATER = [{'mIoU': 65.0, 'MAPE': 4.5}, {'mIoU': 60.0, 'MAPE': 6.0}]
MOST, LEAST = dict(save_best='mIoU', rule='greater'), dict(save_best='MAPE', rule='less')
BOTH = dict(save_best=['mIoU', 'MAPE'], rule=['greater', 'less'])


@pytest.mark.parametrize(('before', 'after', 'ours', 'best', 'said'), [
    (MOST, LEAST, True, ['best_MAPE_epoch_3.pth', 'best_mIoU_epoch_2.pth'], 'by mIoU (the most of it)'),
    (MOST, LEAST, False, ['best_MAPE_epoch_3.pth', 'best_mIoU_epoch_2.pth'], 'by mIoU, and stays'),
    (MOST, dict(MOST, rule='less'), True, ['best_mIoU_epoch_2.pth', 'best_mIoU_epoch_4.pth'], 'by mIoU (the most of'),
    (MOST, dict(save_best='auto', rule='greater'), True, ['best_mIoU_epoch_2.pth'], None),
    (MOST, MOST, False, ['best_mIoU_epoch_2.pth'], None),
    (BOTH, BOTH, True, ['best_MAPE_epoch_1.pth', 'best_mIoU_epoch_2.pth'], None),
    (BOTH, dict(BOTH, rule='less'), True,
     ['best_MAPE_epoch_1.pth', 'best_mIoU_epoch_2.pth', 'best_mIoU_epoch_4.pth'], 'by mIoU (the most of it)'),
])
def test_a_resumed_training_with_another_metric_begins_anew(tmp_path, before, after, ours, best, said):
    Validations(tmp_path, AT_FIRST, **before).train()
    file = tmp_path / 'epoch_2.pth'
    if not ours:  # as mmengine alone writes it
        checkpoint = read_checkpoint(file)
        known = checkpoint['message_hub']['runtime_info']
        for key in [key for key in known if key.startswith('best_by')]:
            del known[key]
        torch.save(checkpoint, file)
    again = Validations(tmp_path, LATER, resume=str(file), **after).train()
    assert again.best == best
    assert [said in line for line in again.warnings('The best checkpoint so far')] == [True] * bool(said)


def test_a_resumed_schedule_follows_what_the_config_names(tmp_path):
    schedule = [dict(type='ReduceOnPlateauLR', monitor='mIoU', rule='greater', patience=0, factor=0.1, end=9)]
    Validations(tmp_path, AT_FIRST, schedule=schedule).train()
    schedule = [dict(schedule[0], monitor='MAPE', rule='less')]
    again = Validations(tmp_path, [{'MAPE': 3.0, 'mIoU': 1.0}], schedule=schedule, resume=str(tmp_path / 'epoch_2.pth'))
    again.train()
    line, = again.warnings('The ReduceOnPlateauLR has followed mIoU (the most of it); from here on it follows MAPE')
    schedule, = again.run.param_schedulers
    assert (schedule.monitor, schedule.best, schedule.num_bad_epochs) == ('MAPE', 3.0, 0)
