"""Trainings that start from a file, run by mmengine's runner with a learning rate of 0."""

import itertools

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from mmpretrain.structures import DataSample

from overhaul.engine import starting_weights
from overhaul.files import weights
from overhaul.files.weights import check_resumable, load_weights
from overhaul.registry import MODELS

numbers = itertools.count()


def resnet(width, classes=5):
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='mmpretrain.ResNet_CIFAR', depth=18, base_channels=width, stem_channels=width),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(type='mmpretrain.LinearClsHead', num_classes=classes, in_channels=8 * width))


TEACHER, STUDENT = resnet(8), resnet(4)
TIMM = dict(type='mmpretrain.TimmClassifier', model_name='resnet18', num_classes=5,
            loss=dict(type='mmpretrain.CrossEntropyLoss'))
TAPS = [dict(teacher=f'backbone.layer{i}', student=f'backbone.layer{i}') for i in (3, 4)]


@pytest.fixture(scope='module')
def teacher_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    torch.save(dict(state_dict=MODELS.build(TEACHER).state_dict()), path)
    return str(path)


def distiller(teacher_file, **changes):
    return MODELS.build(dict(dict(
        type='overhaul.OverhaulDistiller', teacher=TEACHER, teacher_checkpoint=teacher_file, student=STUDENT, taps=TAPS,
        alpha=1e-3, input_size=(32, 32)), **changes))


def train(folder, model, rate=0., prepare=starting_weights.prepare, **changes):
    samples = [dict(inputs=torch.randn(3, 32, 32), data_samples=DataSample().set_gt_label(i)) for i in range(4)]
    runner = Runner(
        model=model, work_dir=str(folder / 'run'), train_cfg=dict(by_epoch=True, max_epochs=1),
        train_dataloader=dict(dataset=samples, batch_size=2, sampler=dict(type='DefaultSampler', shuffle=False),
                              collate_fn=dict(type='pseudo_collate')),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=rate)), default_scope='mmpretrain',
        experiment_name=f'starting_weights_{next(numbers)}', **changes)
    if runner._load_from and not runner._resume:
        prepare(runner)
    runner.train()
    return runner


def save(folder, model, prefix='', name='file.pth'):
    torch.save(dict(state_dict={prefix + n: value for n, value in model.state_dict().items()}), folder / name)
    return str(folder / name)


def same_parameters(model, other):
    parameters, others = dict(model.named_parameters()), dict(other.named_parameters())
    return parameters.keys() == others.keys() and all(torch.equal(parameters[name], others[name]) for name in others)


@pytest.mark.parametrize('prefix', ['', 'module.', 'model.', 'student.'])
def test_a_students_file_starts_the_student_of_a_distillation_and_its_average(tmp_path, teacher_file, prefix):
    source = MODELS.build(STUDENT)
    file = save(tmp_path, source, prefix)
    runner = train(tmp_path, distiller(teacher_file), load_from=file, custom_hooks=[dict(type='EMAHook')])
    assert same_parameters(runner.model.student, source)
    average = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook').ema_model
    assert same_parameters(average.module.student, source)


def test_a_distillation_starts_another_one_and_its_student_alone(tmp_path, teacher_file):
    source = distiller(teacher_file)
    source.init_weights()
    own = [margin.margin.clone() for margin in source.margins]
    for margin in source.margins:
        margin.margin.fill_(-123)  # as of another teacher
    file = save(tmp_path, source)
    same_kind = train(tmp_path, distiller(teacher_file), load_from=file).model
    assert all(torch.equal(margin.margin, expected) for margin, expected in zip(same_kind.margins, own))
    assert same_parameters(same_kind.student, source.student)
    assert same_parameters(same_kind.connectors, source.connectors)
    other_taps = train(tmp_path, distiller(teacher_file, taps=TAPS[:1]), load_from=file).model
    assert same_parameters(other_taps.student, source.student)
    assert same_parameters(train(tmp_path, MODELS.build(STUDENT), load_from=file).model, source.student)


def test_mmengine_alone_starts_a_distillation_from_one_and_not_from_a_students_file(tmp_path, teacher_file):
    source = distiller(teacher_file)
    source.init_weights()
    alone, whole = save(tmp_path, source.student, name='alone.pth'), save(tmp_path, source, name='whole.pth')
    average = torch.optim.swa_utils.AveragedModel(source)
    for load in (
            lambda: train(tmp_path, distiller(teacher_file), prepare=lambda runner: None, load_from=alone),
            lambda: source.load_state_dict(source.student.state_dict()),
            lambda: average.load_state_dict({f'module.{n}': v for n, v in source.student.state_dict().items()})):
        with pytest.raises(ValueError, match=r'none of whose names .*backbone\.conv1\.weight.* student_checkpoint'):
            load()
    started = train(tmp_path, distiller(teacher_file), prepare=lambda runner: None, load_from=whole,
                    custom_hooks=[dict(type='EMAHook')]).model
    assert same_parameters(started, source)
    average.load_state_dict(torch.optim.swa_utils.AveragedModel(started).state_dict())
    source.load_state_dict({}, strict=False)


def test_a_key_and_a_prefix_are_heard(tmp_path):
    source, other = MODELS.build(STUDENT), MODELS.build(STUDENT)
    torch.save(dict(state_dict=source.state_dict(), ema={f'net.{n}': v for n, v in other.state_dict().items()}),
               tmp_path / 'file.pth')
    load_from = dict(file=str(tmp_path / 'file.pth'), key='ema', prefix='net')
    assert same_parameters(train(tmp_path, MODELS.build(STUDENT), load_from=load_from).model, other)


@pytest.mark.parametrize('hook', ['EMAHook', 'mmengine.EMAHook'])
def test_of_an_averaged_training_that_is_taken_which_the_log_names(tmp_path, teacher_file, hook):
    average, plain = distiller(teacher_file), distiller(teacher_file)
    for margin in plain.margins:
        margin.margin.fill_(-123)  # as of another teacher
    file = str(tmp_path / 'file.pth')
    torch.save(dict(state_dict=average.state_dict(), ema_state_dict={
        'steps': torch.tensor(1), **{f'module.{name}': value for name, value in plain.state_dict().items()}}), file)
    hooks = dict(custom_hooks=[dict(type=hook)])
    for source, load_from in ((average, file), (plain, dict(file=file, key='ema_state_dict'))):
        runner = train(tmp_path, distiller(teacher_file), load_from=load_from, **hooks)
        assert same_parameters(runner.model.student, source.student)
        assert not any((margin.margin == -123).any() for margin in runner.model.margins)
        averaged = next(hook for hook in runner.hooks if isinstance(hook, EMAHook)).ema_model
        assert same_parameters(averaged.module.student, source.student)
    assert same_parameters(train(tmp_path, MODELS.build(STUDENT), load_from=file, **hooks).model, average.student)


def test_an_averaged_training_is_not_resumed_without_its_hook(tmp_path, teacher_file):
    train(tmp_path, MODELS.build(STUDENT), rate=0.1, custom_hooks=[dict(type='EMAHook')])
    file = str(tmp_path / 'run/epoch_1.pth')
    check_resumable(MODELS.build(STUDENT), file)
    with pytest.raises(ValueError, match='it would go on from the average. Resume with that hook'):
        check_resumable(MODELS.build(STUDENT), file, averages=False)


def test_the_teachers_file_is_no_start(tmp_path, teacher_file):
    with pytest.raises(ValueError, match='It fits the teacher: name it as teacher_checkpoint'):
        train(tmp_path, distiller(teacher_file), load_from=teacher_file)
    with pytest.raises(ValueError, match='It fits the teacher: name it as teacher_checkpoint'):
        distiller(teacher_file, student_checkpoint=teacher_file)


@pytest.mark.parametrize('prefix', ['', 'student.'])
def test_the_students_file_is_no_teacher(tmp_path, prefix):
    state = MODELS.build(STUDENT).state_dict()
    file = str(tmp_path / 'student.pth')
    torch.save(dict(state_dict={prefix + name: value for name, value in state.items()}), file)
    with pytest.raises(ValueError, match='It fits the student: name it as student_checkpoint'):
        distiller(file)


def test_a_student_checkpoint_outlives_the_initialisation_and_a_resumed_training_outlives_it(tmp_path, teacher_file):
    source = MODELS.build(STUDENT)
    file = save(tmp_path, source)
    runner = train(tmp_path, distiller(teacher_file, student_checkpoint=file), rate=0.1)
    trained = str(tmp_path / 'run/epoch_1.pth')
    assert not same_parameters(runner.model.student, source)
    fresh = distiller(teacher_file, student_checkpoint=file)
    fresh.init_weights()
    assert same_parameters(fresh.student, source)
    check_resumable(fresh, trained)
    resumed = train(tmp_path, fresh, load_from=trained, resume=True).model
    assert same_parameters(resumed.student, runner.model.student)


def test_the_log_says_what_went_into_the_student_and_what_into_the_teacher(tmp_path, teacher_file, monkeypatch):
    lines = []
    monkeypatch.setattr(weights, 'print_log', lambda line, **_: lines.append(line))
    file = save(tmp_path, MODELS.build(STUDENT))
    distiller(teacher_file, student_checkpoint=file)
    assert lines == [
        f'Loaded 122 tensors of {file} into the student.', f'Loaded 122 tensors of {teacher_file} into the teacher.']


def test_what_a_student_checkpoint_lacks_is_initialised(tmp_path, teacher_file):
    source = MODELS.build(resnet(4, classes=7))
    model = distiller(teacher_file, student_checkpoint=save(tmp_path, source))
    torch.nn.init.constant_(model.student.head.fc.bias, 9)
    model.init_weights()
    assert same_parameters(model.student.backbone, source.backbone)
    assert not (model.student.head.fc.bias == 9).any()


def test_a_teacher_is_whole_or_has_what_its_taps_need(tmp_path, teacher_file):
    assert distiller(teacher_file).teacher_is_whole
    state = MODELS.build(TEACHER).state_dict()

    def lacking(*parts):
        torch.save({name: value for name, value in state.items() if not name.startswith(parts)}, tmp_path / 'part.pth')
        return str(tmp_path / 'part.pth')

    model = distiller(lacking('head.'))
    assert not model.teacher_is_whole
    assert all(parameter.isfinite().all() for parameter in model.teacher.parameters())
    assert not distiller(lacking('head.', 'backbone.layer4.'), taps=TAPS[:1]).teacher_is_whole
    for part in ('backbone.layer4.', 'backbone.layer4.1.bn2.running_var'):
        with pytest.raises(ValueError, match=r'lacks .+ on which the tap backbone\.layer4 depends'):
            distiller(lacking(part))
    assert distiller(teacher_file, teacher_checkpoint=dict(file=teacher_file)).teacher_is_whole


@pytest.mark.parametrize('average', [False, True])
def test_a_timm_classifier_reads_what_it_has_written(tmp_path, teacher_file, average):
    pytest.importorskip('timm')
    changes = dict(student=TIMM, taps=[dict(teacher='backbone.layer4', student='model.layer3')], match_sizes=True)
    hooks = dict(custom_hooks=[dict(type='EMAHook')]) if average else {}
    trained = train(tmp_path, distiller(teacher_file, **changes), rate=0.1, **hooks).model
    file = str(tmp_path / 'run/epoch_1.pth')
    fresh = distiller(teacher_file, **changes)
    check_resumable(fresh, file)
    resumed = train(tmp_path, fresh, load_from=file, resume=True, **hooks).model
    assert same_parameters(resumed, trained)
    alone = MODELS.build(TIMM)
    load_weights(alone, file)
    assert same_parameters(alone, trained.student) != average
