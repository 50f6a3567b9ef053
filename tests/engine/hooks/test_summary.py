import copy
import re

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from small_models import (
    TAPS,
    Lines,
    batch,
    build_distiller,
    build_model,
    loader,
    resnet,
    runner,
    save_teacher,
    sgd,
    wide_resnet,
)
from torch.utils.data import DataLoader

from overhaul.engine.hooks import SummaryHook
from overhaul.engine.hooks.summary import count_parameters, describe
from overhaul.engine.runner import validate
from overhaul.tasks.results import Judge


@pytest.fixture(scope='module')
def teacher_file(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp('teacher'), wide_resnet(2))


def validating(folder, model, epochs=1, batches=2, hook=None, **more):
    train, val = ([batch(seed=seed) for seed in seeds] for seeds in (range(batches), range(20, 30)))
    return runner(
        folder, model, train, epochs, sgd(0.01), [hook or SummaryHook()], val_dataloader=loader(val), val_cfg=dict(),
        val_evaluator=dict(type='Accuracy'), train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=1), **more)


def error_of(model, seeds=range(20, 30)):
    """Top-1 error in per cent, by hand."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        wrong = [
            model(images).argmax(1) != torch.cat([sample.gt_label for sample in samples])
            for images, samples in (batch(seed=seed) for seed in seeds)]
    return 100 * torch.cat(wrong).double().mean().item()


def test_a_run_logs_the_models_the_taps_and_both_results(tmp_path, teacher_file):
    run = validating(tmp_path, build_distiller(teacher_checkpoint=teacher_file))
    lines = Lines(run)
    run.train()
    teacher, student = build_model(wide_resnet(2)), build_model(wide_resnet(1))
    sizes = [sum(p.numel() for p in model.parameters()) for model in (teacher, student)]
    teacher.load_state_dict(torch.load(teacher_file)['state_dict'])

    summary = lines.one('Distillation: ')
    assert f'teacher {sizes[0]:,} parameters, student {sizes[1]:,} parameters ({sizes[1] / sizes[0]:.1%}' in summary
    connectors = sum(16 * n * 32 * n + 2 * 32 * n for n in (1, 2, 4))
    assert f'connectors {connectors:,}' in summary
    rows = [line.split() for line in summary.splitlines()[2:]]
    assert rows == [
        [tap['teacher'], channels[0], size, tap['teacher'], tap['student'], channels[1], size, weight]
        for tap, channels, size, weight in zip(
            TAPS, (('32', '16'), ('64', '32'), ('128', '64')), ('16x16', '8x8', '4x4'), ('0.25', '0.5', '1'))]
    assert lines.one('Teacher: ') == f'Teacher: {error_of(teacher):.2f} % error'
    error = f'{error_of(run.model.student):.2f} % error (epoch 1)'
    assert lines.one('Student: ') == f'Student: best {error}, last {error}'


def test_the_strength_of_the_distillation_is_logged_once_before_training(tmp_path, teacher_file):
    model = build_distiller(teacher_checkpoint=teacher_file)
    model.init_weights()
    reference = copy.deepcopy(model).train()
    losses = reference(*batch(seed=0), mode='loss')
    task = losses.pop('loss_task').item()
    distillation = sum(value.item() for value in losses.values())
    run = validating(tmp_path, model, epochs=2)
    lines = Lines(run)
    run.train()
    numbers = re.findall(r'[\d.]+(?:e[+-]\d+)?(?= times|,| \()', lines.one('Step 0: '))[:3]
    assert [float(number) for number in numbers] == pytest.approx([task, distillation, distillation / task], rel=0.05)


def test_a_resumed_training_tells_the_strength_where_it_goes_on(tmp_path, teacher_file):
    run = validating(tmp_path, build_distiller(teacher_checkpoint=teacher_file), epochs=2)
    run._train_loop = run.build_train_loop(run._train_loop)
    run._train_loop._iter = 7
    run.optim_wrapper = run.build_optim_wrapper(run.optim_wrapper)
    lines = Lines(run)
    SummaryHook(validate_teacher=False).before_train(run)
    assert lines.one('Step ').startswith('Step 7: task loss')


def test_validation_of_the_teacher_can_be_left_out_and_does_not_change_the_training(tmp_path, teacher_file):
    results = []
    for validate_teacher in (True, False):
        model = build_distiller(teacher_checkpoint=teacher_file)
        folder = tmp_path / str(validate_teacher)
        run = validating(folder, model, hook=SummaryHook(validate_teacher), randomness=dict(seed=0))
        lines = Lines(run)
        run.train()
        assert any(message.startswith('Teacher: ') for message in lines.messages) == validate_teacher
        results.append(run.model.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


class Items(list):
    metainfo = dict(classes='abcde')


def test_a_teacher_that_cannot_be_judged_is_not_validated_and_nothing_is_doubted(tmp_path):
    def lines(name, teacher, checkpoint):
        path = tmp_path / f'{name}.pth'
        torch.save(checkpoint, path)
        model = build_distiller(teacher=teacher, teacher_checkpoint=str(path))
        run = validating(tmp_path / name, model, custom_hooks=[
            SummaryHook(), dict(type='overhaul.HealthHook', on_doubt='stop', largest_ratio=1e9)])
        items = Items(run._val_dataloader.dataset)
        run._val_dataloader = DataLoader(items, batch_size=4, collate_fn=pseudo_collate)
        lines = Lines(run)
        run.train()
        assert lines.one('Student: ')
        return lines.one('Teacher: ')

    state = build_model(wide_resnet(2)).state_dict()
    without_head = {key: value for key, value in state.items() if not key.startswith('head.')}
    headless = dict(wide_resnet(2), head=None)
    other = dict(state_dict=state, meta=dict(dataset_meta=dict(classes=list('edcba'))))
    told = 'Teacher: not validated, since '
    assert lines('headless', headless, dict(state_dict=without_head)) == told + 'it has no head'
    assert lines('part', wide_resnet(2), dict(state_dict=without_head)) == (
        told + 'its teacher_checkpoint has not all of it')
    assert lines('order', wide_resnet(2), other).startswith(told + 'its classes are in another order: "e" is')


def test_validation_leaves_the_modes_of_the_teacher(tmp_path, teacher_file):
    model = build_distiller(teacher_checkpoint=teacher_file)
    run = validating(tmp_path, model)
    run._val_loop = run.build_val_loop(run._val_loop)
    modes = {name: module.training for name, module in model.teacher.named_modules()}
    assert set(modes.values()) == {True, False}
    metrics = validate(run, model.teacher)
    assert metrics['accuracy/top1'] == pytest.approx(100 - error_of(model.teacher), abs=1e-4)
    assert {name: module.training for name, module in model.teacher.named_modules()} == modes


class Replace(Hook):
    """Puts new modules in the place of tapped ones before the first step, as a user's hook may."""

    priority = 'VERY_HIGH'

    def before_train(self, runner):
        backbone = runner.model.student.backbone
        backbone.bn1, old = torch.nn.BatchNorm2d(backbone.bn1.num_features), backbone.bn1
        backbone.bn1.load_state_dict(old.state_dict())


@pytest.mark.parametrize('replaced', ['synchronised', 'by a hook'])
def test_taps_on_modules_that_the_runner_or_a_hook_replaces_are_read(tmp_path, replaced):
    """A runner makes plain batch norms of synchronised ones where there is one process."""
    def strength(name, kind, *hooks):
        model = build_distiller(
            teacher=resnet(), student=resnet(4, norm_cfg=dict(type=kind)),
            taps=[dict(teacher=path, student=path) for path in ('backbone.layer3.0.bn1', 'backbone.bn1')])
        summary = SummaryHook(validate_teacher=False)
        runner(tmp_path / name, model, [batch()], 1, sgd(), [summary, *hooks], randomness=dict(seed=0)).train()
        return summary.strength

    changed = strength('other', 'SyncBN') if replaced == 'synchronised' else strength('other', 'BN', Replace())
    assert changed == strength('plain', 'BN')


def test_a_student_alone_gets_its_size_and_its_result(tmp_path):
    run = validating(tmp_path, build_model(wide_resnet()))
    lines = Lines(run)
    run.train()
    assert lines.one('Student alone') == f'Student alone: {count_parameters(run.model):,} parameters'
    assert lines.one('Student: ').startswith(f'Student: best {error_of(run.model):.2f} % error')
    assert not any(message.startswith(('Teacher', 'Step 0', 'Distillation')) for message in lines.messages)


class Given(Hook):
    """Feeds a summary one result after each epoch, in place of a validation."""

    def __init__(self, summary, results):
        self.summary, self.results = summary, list(results)

    def before_train(self, runner):
        run_epoch = runner.train_loop.run_epoch

        def run_and_give():
            run_epoch()
            self.summary.after_val_epoch(runner, self.results[runner.epoch - 1])

        runner.train_loop.run_epoch = run_and_give


@pytest.mark.parametrize(('name', 'values', 'best', 'last'), [
    ('accuracy/top1', (60, 80, 70, 80), '20.00 % error (epoch 2)', '20.00 % error (epoch 4)'),
    ('mIoU', (60, 80, 70, 75), '80.00 % mIoU (epoch 2)', '75.00 % mIoU (epoch 4)'),
])
def test_best_and_last_of_several_results(tmp_path, name, values, best, last):
    results = [{'accuracy/top5': 99.0, name: float(value), 'zzz': 1.0} for value in values]
    summary = SummaryHook()
    run = runner(tmp_path, build_model(wide_resnet()), [batch()], 4, sgd(), [Given(summary, results), summary])
    lines = Lines(run)
    run.train()
    assert lines.one('Student: ') == f'Student: best {best}, last {last}'


NONE = 'no result: the evaluator gave no number'


@pytest.mark.parametrize(('shares', 'best', 'last'), [
    ((None, None), f'{NONE} (epoch 1)', f'{NONE} (epoch 2)'),
    ((None, 0.1, None), '10.00 % box mAP (epoch 2)', f'{NONE} (epoch 3)')])
def test_a_detector_that_finds_nothing_has_no_result_to_choose_from(tmp_path, shares, best, last):
    summary = SummaryHook()
    given = Given(summary, [{} if share is None else {'coco/bbox_mAP': share} for share in shares])
    run = runner(tmp_path, build_model(wide_resnet()), [batch()], len(shares), sgd(), [given, summary])
    lines = Lines(run)
    run.train()
    assert lines.one('Student: ') == f'Student: best {best}, last {last}'


def test_the_best_result_survives_a_resumption(tmp_path):
    def training(epochs, values, resume, images=4):
        results = [{'accuracy/top1': float(value)} for value in values]
        summary = SummaryHook()
        run = runner(
            tmp_path, build_model(wide_resnet()), [batch(images)], epochs, sgd(), [Given(summary, results), summary],
            train_dataloader=DataLoader(loader([batch(images)]).dataset, 4, collate_fn=pseudo_collate),
            default_hooks=dict(sampler_seed=None, checkpoint=dict(type='CheckpointHook', interval=1)), resume=resume,
            experiment_name=f'{tmp_path}{epochs}')
        lines = Lines(run)
        run.train()
        return lines.one('Student: ')

    # The checkpoint of an epoch is written before its result is known, as it is with a real validation.
    assert training(3, (90, 60, 50), resume=False).startswith('Student: best 10.00 % error (epoch 1), last 50.00')
    resumed = training(4, (0, 0, 0, 70), resume=True)
    assert resumed == 'Student: best 10.00 % error (epoch 1), last 30.00 % error (epoch 4)'
    more_images = training(5, (0, 0, 0, 0, 80), resume=True, images=12)
    assert more_images == 'Student: best 10.00 % error (epoch 1), last 20.00 % error (epoch 5)'


def test_without_a_validation_there_is_no_result(tmp_path):
    run = runner(tmp_path, build_model(wide_resnet()), [batch()], 1, sgd(), [SummaryHook()])
    lines = Lines(run)
    run.train()
    assert not any(message.startswith('Student: ') for message in lines.messages)


def test_headline_takes_the_metric_that_is_there():
    assert Judge().headline({'accuracy/top1': 79.11, 'accuracy/top5': 95.0}) == '20.89 % error'
    assert Judge().headline({'aAcc': 93.0, 'mIoU': 73.98}) == '73.98 % mIoU'
    assert Judge().headline({'other': 1.5, 'more': 2.0}) == '1.50 other'


def test_description_names_the_batch_norm_that_was_given(teacher_file):
    taps = [dict(TAPS[0], margin_norm='backbone.block2.0.bn1'), dict(TAPS[1], margin_norm='backbone.block2.0.bn2')]
    text = describe(build_distiller(teacher_checkpoint=teacher_file, taps=taps))
    assert [line.split()[3] for line in text.splitlines()[2:]] == ['backbone.block2.0.bn1', 'backbone.block2.0.bn2']


def test_description_says_where_margins_are_from_data(teacher_file):
    """As they are where no batch norm comes before the tap."""
    text = describe(build_distiller(teacher_checkpoint=teacher_file, taps=[
        dict(teacher='backbone.conv1', student='backbone.conv1')]))
    assert text.splitlines()[-1].split()[:4] == ['backbone.conv1', '16', '16x16', 'data']
