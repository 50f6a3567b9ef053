import copy
import math
import warnings
import weakref

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from scipy import stats
from small_models import (
    PATHS,
    TAPS,
    batch,
    build_distiller,
    distiller_config,
    resnet,
    runner,
    save_teacher,
    segmentation_batch,
    segmentor,
    sgd,
    wide_resnet,
)
from torch import nn

from overhaul.registry import MODELS

pytestmark = pytest.mark.quick

ALPHA = 1e-3
SEGMENTATION_TAPS = [
    dict(teacher='backbone.layer2.1.relu:input', student='backbone.layer2.1.relu:input'),
    dict(teacher='decode_head.conv_seg:input', student='decode_head.conv_seg:input',
         margin_norm='decode_head.convs.0.bn'),
]


@pytest.fixture(scope='module')
def teacher_file(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp('teacher'), wide_resnet(2))


def plain_teacher(teacher_file):
    """The teacher without any of the distiller's code."""
    model = MODELS.build(wide_resnet(2))
    model.load_state_dict(torch.load(teacher_file)['state_dict'])
    return model


def wide_features(backbone, images):
    """The three features before a ReLU of a WRN, run by hand."""
    first = backbone.block1(backbone.conv1(images))
    second = backbone.block2(first)
    third = backbone.block3(second)
    return [backbone.block2[0].bn1(first), backbone.block3[0].bn1(second), backbone.bn1(third)]


def reference_losses(model, teacher, student, images, alpha=ALPHA):
    """The distillation losses by hand: scipy's truncated normal for the margin, loops and masks for the distance."""
    losses = []
    connectors = copy.deepcopy(model.connectors)
    norms = [teacher.backbone.block2[0].bn1, teacher.backbone.block3[0].bn1, teacher.backbone.bn1]
    features = zip(norms, wide_features(teacher.backbone, images), wide_features(student.backbone, images), connectors)
    for weight, (norm, target, feature, connector) in zip((1 / 4, 1 / 2, 1), features):
        margins = [
            stats.truncnorm(-math.inf, -bias / abs(scale), loc=bias, scale=abs(scale)).mean()
            for scale, bias in zip(norm.weight.tolist(), norm.bias.tolist())]
        target = torch.max(target.detach(), torch.tensor(margins, dtype=target.dtype).view(1, -1, 1, 1))
        feature = connector(feature)
        counts = (feature > target) | (target > 0)
        losses.append(weight * alpha * ((feature - target)**2 * counts).sum() / len(images))
    return losses


def checksum(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def unchanged(module, before):
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize('statistics', ['batch', 'running'])
def test_losses_and_gradients_are_those_of_the_method_by_hand(teacher_file, statistics):
    model = build_distiller(teacher_checkpoint=teacher_file, teacher_batch_norm=statistics).double()
    teacher, student = plain_teacher(teacher_file).double(), copy.deepcopy(model.student)
    teacher.train(statistics == 'batch')
    images, samples = batch(6)
    images = images.double()

    expected = reference_losses(model, teacher, student, images)
    task = student.head.loss(student.extract_feat(images), samples)['loss']
    (task + sum(expected)).backward()

    losses = model(images, samples, mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    assert losses['loss_task'].item() == pytest.approx(task.item(), rel=1e-12)
    for name, value in zip(model.loss_names, expected):
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-6)  # margins are float32
    for (name, parameter), reference in zip(model.student.named_parameters(), student.parameters()):
        assert torch.allclose(parameter.grad, reference.grad, rtol=1e-5, atol=1e-8), name


def test_batch_and_running_statistics_of_the_teacher_give_different_losses(teacher_file):
    images, samples = batch()
    batch_losses, running_losses = (
        build_distiller(teacher_checkpoint=teacher_file, teacher_batch_norm=statistics)(images, samples, mode='loss')
        for statistics in ('batch', 'running'))
    assert batch_losses['loss_task'] == running_losses['loss_task']
    differences = [
        abs(batch_losses[name].item() / running_losses[name].item() - 1) for name in list(batch_losses)[1:]]
    assert min(differences) > 1e-4 and max(differences) > 0.01


def test_batch_statistics_are_the_default(teacher_file):
    images, samples = batch()
    default = build_distiller(teacher_checkpoint=teacher_file)(images, samples, mode='loss')
    named = build_distiller(teacher_checkpoint=teacher_file, teacher_batch_norm='batch')(images, samples, mode='loss')
    assert default == named


def test_names_of_the_losses_and_their_logged_sum():
    model = build_distiller()
    losses = model(*batch(), mode='loss')
    assert list(losses) == [
        'loss_task', 'distill.loss_block2.0.bn1', 'distill.loss_block3.0.bn1', 'distill.loss_bn1']
    total, logged = model.parse_losses(losses)
    assert total.item() == pytest.approx(sum(value.item() for value in losses.values()))
    assert logged['loss'].item() == total.item()
    assert all(value.item() > 0 for value in losses.values())


def test_a_student_tap_for_two_teacher_taps_gives_two_losses():
    taps = [dict(teacher=path, student='backbone.layer1.1.relu:input')
            for path in ('backbone.layer1.0.relu:input', 'backbone.layer1.1.relu:input')]
    model = build_distiller(teacher=resnet(), student=resnet(), taps=taps)
    losses = model(*batch(), mode='loss')
    assert list(losses) == ['loss_task', 'distill.loss_layer1.1.relu#0', 'distill.loss_layer1.1.relu#1']


def test_no_loss_takes_the_name_of_another():
    taps = [dict(teacher='backbone.layer1', student=f'backbone.{path}') for path in ('layer1', 'layer1', 'layer1.0')]
    model = build_distiller(teacher=resnet(), student=resnet(), taps=taps)
    assert len(model(*batch(), mode='loss')) == 1 + len(taps)


def test_weights_of_taps_and_alpha_scale_the_losses(teacher_file):
    images, samples = batch()
    plain = [dict(teacher=path, student=path) for path in PATHS]  # weight 1
    alpha_one = dict(type='PartialL2Loss', loss_weight=1)
    default = build_distiller(teacher_checkpoint=teacher_file)(images, samples, mode='loss')
    unit = build_distiller(teacher_checkpoint=teacher_file, taps=plain, distill_loss=alpha_one)(
        images, samples, mode='loss')
    for name, weight in zip(list(default)[1:], (1 / 4, 1 / 2, 1)):
        assert default[name].item() == pytest.approx(1e-3 * weight * unit[name].item(), rel=1e-5)


def test_a_part_without_a_type_is_the_default_one(teacher_file):
    model = build_distiller(
        teacher_checkpoint=teacher_file, margin=dict(source='zero'), distill_loss=dict(loss_weight=2))
    assert str(model.distill_loss) == 'PartialL2Loss(loss_weight=2)'
    assert all(margin.margin.eq(0).all() for margin in model.margins)


def test_predict_and_tensor_are_the_student_alone(teacher_file):
    model = build_distiller(teacher_checkpoint=teacher_file).eval()
    student = copy.deepcopy(model.student)
    images, samples = batch()
    calls = []
    model.teacher.backbone.conv1.register_forward_hook(lambda *_: calls.append('teacher'))
    with torch.no_grad():
        assert torch.equal(model(images), student(images))
        ours = model(images, copy.deepcopy(samples), mode='predict')
        alone = student(images, samples, mode='predict')
    assert all(torch.equal(a.pred_score, b.pred_score) for a, b in zip(ours, alone))
    assert not calls


def test_the_teacher_is_no_part_of_the_module(teacher_file):
    model = build_distiller(teacher_checkpoint=teacher_file)
    parts = {name.partition('.')[0] for name in model.state_dict()}
    assert parts == {'student', 'connectors', 'margins'}
    assert [name for name, _ in model.named_children()] == [
        'data_preprocessor', 'student', 'connectors', 'margins', 'distill_loss']
    teacher = {id(parameter) for parameter in model.teacher.parameters()}
    assert len(teacher) > 10
    assert not teacher & {id(parameter) for parameter in model.parameters()}
    assert not {id(m) for m in model.teacher.modules()} & {id(m) for m in model.modules()}
    optimizer = build_optim_wrapper(model, sgd()).optimizer
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group['params']}
    trained = [*model.student.parameters(), *model.connectors.parameters()]
    assert optimized == {id(parameter) for parameter in trained}
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())


def test_twenty_steps_leave_the_teacher_and_only_the_teacher_as_it_was(teacher_file, tmp_path):
    model = build_distiller(teacher_checkpoint=teacher_file)
    assert unchanged(model.teacher, checksum(plain_teacher(teacher_file)))
    teacher, student, connectors = (
        checksum(part) for part in (model.teacher, model.student, model.connectors))
    batches = [batch(seed=seed) for seed in range(4)]
    run = runner(tmp_path, model, batches, epochs=5, optim_wrapper=sgd(lr=0.01))
    run.train()  # init_weights, then 20 steps
    assert run.iter == 20
    assert unchanged(model.teacher, teacher)
    moved = [name for name, value in model.student.state_dict().items() if not torch.equal(value, student[name])]
    assert set(moved) == set(student)  # weights and running statistics
    assert not any(torch.equal(value, connectors[name]) for name, value in model.connectors.state_dict().items())
    assert all(parameter.grad is None for parameter in model.teacher.parameters())


def test_initialisation_is_the_students_and_leaves_teacher_and_connectors(teacher_file):
    model = build_distiller(teacher_checkpoint=teacher_file)
    before, connectors = checksum(model.teacher), checksum(model.connectors)
    for parameter in model.student.parameters():
        parameter.data.fill_(3)
    model.init_weights()
    weight = model.student.backbone.conv1.weight
    assert weight.std().item() == pytest.approx((2 / (16 * 9))**0.5, rel=0.15)  # the backbone's own init_cfg
    assert unchanged(model.teacher, before) and unchanged(model.connectors, connectors)


def test_initialisation_that_reaches_the_teacher_is_refused(teacher_file):
    model = build_distiller(teacher_checkpoint=teacher_file)
    model.student.init_weights = lambda: model.teacher.backbone.conv1.weight.data.fill_(1)
    with pytest.raises(RuntimeError, match='changed the teacher: they share parameters'):
        model.init_weights()


def test_a_teacher_with_nan_shares_no_parameters_for_that():
    model = build_distiller()
    model.teacher.backbone.conv1.weight.data.fill_(math.nan)
    model.init_weights()


@pytest.mark.parametrize('statistics', ['batch', 'running'])
def test_train_and_eval_leave_the_teacher_in_its_own_mode(teacher_file, statistics):
    model = build_distiller(teacher_checkpoint=teacher_file, teacher_batch_norm=statistics)
    images, samples = batch()
    model.train()
    before = model(images, samples, mode='loss')
    assert model.eval() is model
    assert not any(module.training for module in (*model.modules(), *model.teacher.modules()))
    assert model.train() is model
    assert all(module.training for module in model.modules())
    norms = {m for m in model.teacher.modules() if isinstance(m, nn.BatchNorm2d)}
    assert {m for m in model.teacher.modules() if m.training} == (norms if statistics == 'batch' else set())
    after = model(images, samples, mode='loss')
    assert {name: value.item() for name, value in after.items()} == {name: v.item() for name, v in before.items()}


def test_the_teacher_alone_in_eval_mode_uses_its_running_statistics(teacher_file):
    model = build_distiller(teacher_checkpoint=teacher_file).eval()
    images, _ = batch()
    assert torch.equal(model.teacher(images), plain_teacher(teacher_file).eval()(images))


@pytest.mark.parametrize('live', [False, True])
def test_dropout_of_the_teacher(tmp_path, live):
    model = build_distiller(
        teacher=segmentor(8, dropout=0.5), student=segmentor(4, dropout=0), taps=SEGMENTATION_TAPS,
        input_size=(32, 32), teacher_dropout=live,
        teacher_checkpoint=save_teacher(tmp_path, segmentor(8)))
    images, samples = segmentation_batch()
    name = 'distill.loss_decode_head.conv_seg'
    first, second = (model(images, samples, mode='loss')[name].item() for _ in range(2))
    assert (first != second) == live
    model.eval()
    assert not any(module.training for module in model.teacher.modules())


def test_dropout_of_the_teacher_is_off_by_default():
    model = build_distiller(teacher=segmentor(8, dropout=0.5), student=segmentor(4), taps=SEGMENTATION_TAPS,
                            input_size=(32, 32))
    dropouts = [module for module in model.teacher.modules() if isinstance(module, nn.Dropout2d)]
    assert dropouts and not any(module.training for module in dropouts)


def test_a_segmentor_keeps_its_own_loss_names_and_sums_up():
    model = build_distiller(teacher=segmentor(8), student=segmentor(4), taps=SEGMENTATION_TAPS, input_size=(32, 32))
    losses = model(*segmentation_batch(), mode='loss')
    assert list(losses) == [
        'decode.loss_ce', 'decode.acc_seg', 'distill.loss_layer2.1.relu', 'distill.loss_decode_head.conv_seg']
    total, logged = model.parse_losses(losses)
    counted = sum(value.item() for name, value in losses.items() if name != 'decode.acc_seg')
    assert logged['loss'].item() == total.item() == pytest.approx(counted)


def test_no_graph_is_built_on_the_teacher(teacher_file, monkeypatch):
    model = build_distiller(teacher_checkpoint=teacher_file)
    seen, inside = [], []
    model.distill_loss.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    model.teacher.backbone.block1.register_forward_hook(lambda module, inputs, output: inside.append(output))
    images, samples = batch()
    model(images.requires_grad_(), samples, mode='loss')
    assert [(student.requires_grad, teacher.requires_grad) for student, teacher in seen] == [(True, False)] * 3
    assert not inside[0].requires_grad


@pytest.mark.parametrize('case', ['wide_resnet', 'resnet', 'segmentor'])
def test_gradients_at_once_are_those_of_a_backward_pass_through_everything(case, monkeypatch):
    settings, inputs = dict(
        wide_resnet=({}, batch()),
        resnet=(dict(teacher=resnet(16), student=resnet(8), taps='auto'), batch()),
        segmentor=(dict(teacher=segmentor(8), student=segmentor(4), taps=SEGMENTATION_TAPS, input_size=(32, 32)),
                   segmentation_batch()))[case]
    results = []
    for at_once in (True, False):
        monkeypatch.setattr('overhaul.method.distiller.possible', lambda device, at_once=at_once: at_once)
        model = build_distiller(**settings).double()
        losses = model(inputs[0].double(), inputs[1], mode='loss')
        model.parse_losses(losses)[0].backward()
        results.append((losses, {name: parameter.grad for name, parameter in model.named_parameters()}))
    (losses, gradients), (expected_losses, expected) = results
    assert losses == expected_losses and list(losses) == list(expected_losses)
    assert list(gradients) == list(expected)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-12, msg=name)


def test_a_student_whose_backbone_is_compiled_learns_the_same():
    results = []
    for compiled in (False, True):
        model = build_distiller()
        if compiled:
            model.student.backbone.forward = torch.compile(model.student.backbone.forward, backend='eager')
        losses = model(*batch(), mode='loss')
        model.parse_losses(losses)[0].backward()
        results.append((
            {name: loss.item() for name, loss in losses.items()}, [parameter.grad for parameter in model.parameters()]))
    (losses, gradients), (expected_losses, expected) = results
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    for ours, theirs in zip(gradients, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@MODELS.register_module()
class ScaledL2(nn.Module):
    """A distance that learns, and gives a number for each image."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, student, teacher):
        return self.scale * (student - teacher).square().sum((1, 2, 3))


def test_a_distance_of_ones_own_learns_and_may_give_a_number_for_each_image():
    model = build_distiller(distill_loss=dict(type='ScaledL2'))
    losses = model(*batch(), mode='loss')
    distillation = sum(losses[name] for name in model.loss_names)
    distillation.backward()
    assert model.distill_loss.scale.grad.item() == pytest.approx(2 * distillation.item(), rel=1e-5)


def test_losses_are_of_the_taps_that_they_are_named_after():
    images, samples = batch()
    losses = build_distiller()(images, samples, mode='loss')
    other_way_round = build_distiller(taps=TAPS[::-1])
    connectors = build_distiller().connectors
    for connector, theirs in zip(other_way_round.connectors, reversed(connectors)):
        connector.load_state_dict(theirs.state_dict())
    found = other_way_round(images, samples, mode='loss')
    assert {name: loss.item() for name, loss in found.items()} == pytest.approx(
        {name: loss.item() for name, loss in losses.items()})
    assert len({loss.item() for loss in found.values()}) == 4


def test_what_a_hook_asks_of_the_student_is_found_at_the_distiller():
    model = build_distiller()
    assert model.head is model.student.head and model.extract_feat == model.student.extract_feat
    assert model.data_preprocessor is model.student.data_preprocessor and not hasattr(model, 'bbox_head')
    with pytest.raises(AttributeError, match="'OverhaulDistiller' object has no attribute 'bbox_head'"):
        print(model.bbox_head)
    assert not any(name.startswith(('head.', 'backbone.')) for name in model.state_dict())


def test_a_student_whose_loss_needs_two_passes_takes_the_last_where_told_so():
    class TwoPasses(nn.Module):
        def __init__(self, student):
            super().__init__()
            self.student = student

        def forward(self, inputs, data_samples=None, mode='tensor'):
            if mode == 'loss':
                self.student(inputs, data_samples, mode='loss')
            return self.student(inputs, data_samples, mode=mode)

    for at_once in (True, False):
        model = build_distiller(at_once=at_once)
        model.student = TwoPasses(model.student)
        if at_once:
            with pytest.raises(ValueError, match='runs 2 times .* ran 1 time in the dry run.*at_once=False'):
                model(*batch(), mode='loss')
        else:
            model.parse_losses(model(*batch(), mode='loss'))[0].backward()
            assert model.connectors[0].conv.weight.grad.abs().sum() > 0


def test_a_hook_on_a_gradient_runs_once():
    gradients = []
    for factor in (1, 0.5):
        model = build_distiller()
        weight = model.connectors[0].conv.weight
        if factor != 1:
            weight.register_hook(lambda gradient: 0.5 * gradient)
        model.parse_losses(model(*batch(), mode='loss'))[0].backward()
        gradients.append(weight.grad)
    torch.testing.assert_close(gradients[1], 0.5 * gradients[0])


def test_a_map_of_the_teacher_is_gone_before_the_student_runs_on():
    model, maps, alive = build_distiller(), [], []
    for margin in model.margins:
        margin.register_forward_hook(lambda module, inputs, output: maps.append(weakref.ref(output)))
    for block in ('block2', 'block3'):
        model.student.backbone.get_submodule(block).register_forward_hook(
            lambda *_: alive.append([teacher_map() is not None for teacher_map in maps]))
    model(*batch(), mode='loss')
    # The first tap is in the second block, the last one behind the third.
    assert alive == [[False, True, True], [False, False, True]]


def test_of_the_distillation_only_the_gradient_is_kept_for_the_backward_pass():
    model, maps = build_distiller(), []
    for part in (*model.connectors, *model.margins):
        part.register_forward_hook(lambda module, inputs, output: maps.append(weakref.ref(output)))
    losses = model(*batch(), mode='loss')
    assert len(maps) == 6 and [output() for output in maps] == [None] * 6
    model.parse_losses(losses)[0].backward()
    assert model.connectors[0].conv.weight.grad.abs().sum() > 0


def test_the_teacher_stops_after_its_last_tap_and_the_student_does_not():
    model = build_distiller(taps=TAPS[:1])
    ran = []
    for owner in ('teacher', 'student'):
        backbone = getattr(model, owner).backbone
        for name in ('block1', 'block3'):
            getattr(backbone, name).register_forward_hook(lambda *_, what=f'{owner} {name}': ran.append(what))
    model(*batch(), mode='loss')
    assert ran == ['teacher block1', 'student block1', 'student block3']


def test_a_student_that_fails_is_not_read_afterwards():
    model = build_distiller()
    hook = model.student.neck.register_forward_hook(lambda *_: torch.zeros(2) + torch.zeros(3))
    with pytest.raises(RuntimeError, match='must match the size'):
        model(*batch(), mode='loss')
    hook.remove()
    model(*batch(), mode='predict')
    assert [tap._feature for tap in model.student_taps] == [None] * 3


def test_losses_in_inference_mode_are_those_without_gradient():
    model = build_distiller()
    with torch.no_grad():
        expected = model(*batch(), mode='loss')
    with torch.inference_mode():
        assert model(*batch(), mode='loss') == expected


def test_checkpoint_round_trip(teacher_file, tmp_path):
    model = build_distiller(teacher_checkpoint=teacher_file)
    for seed in range(3):
        total, _ = model.parse_losses(model(*batch(seed=seed), mode='loss'))
        total.backward()
        torch.optim.SGD(model.parameters(), 0.05).step()
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    other = build_distiller(teacher_checkpoint=teacher_file)
    images, samples = batch(seed=9)
    assert other(images, samples, mode='loss')['loss_task'] != model(images, samples, mode='loss')['loss_task']
    other.load_state_dict(torch.load(tmp_path / 'model.pth'), strict=True)
    model.load_state_dict(torch.load(tmp_path / 'model.pth'), strict=True)  # the line above moved its statistics
    assert other(images, samples, mode='loss') == model(images, samples, mode='loss')
    student = MODELS.build(wide_resnet(1))
    weights = torch.load(tmp_path / 'model.pth')
    student.load_state_dict(
        {name.removeprefix('student.'): value for name, value in weights.items() if name.startswith('student.')})


def test_moving_takes_the_teacher_along(teacher_file):
    model = build_distiller(teacher_checkpoint=teacher_file)
    assert model.double() is model
    images, samples = batch()
    losses = model(images.double(), samples, mode='loss')
    assert {value.dtype for value in losses.values()} == {torch.float64}
    model.to('meta')
    tensors = [*model.teacher.parameters(), *model.teacher.buffers(), *model.student.parameters()]
    assert {tensor.device.type for tensor in tensors} == {'meta'}
    assert model.teacher.data_preprocessor.device.type == model.data_preprocessor.device.type == 'meta'


def test_conversion_to_synchronised_batch_norm_is_the_students_alone(teacher_file):
    images, samples = batch()
    plain = build_distiller(teacher_checkpoint=teacher_file)
    expected = plain(images, samples, mode='loss')
    model = nn.SyncBatchNorm.convert_sync_batchnorm(build_distiller(teacher_checkpoint=teacher_file)).train()
    assert isinstance(model.student.backbone.bn1, nn.SyncBatchNorm)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.teacher.modules())
    losses = model(images, samples, mode='loss')
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-5)


def test_teacher_of_synchronised_batch_norms_becomes_a_plain_one():
    model = build_distiller(
        teacher=resnet(8, norm_cfg=dict(type='SyncBN')), student=resnet(4),
        taps=[dict(teacher='backbone.layer4.1.relu:input', student='backbone.layer4.1.relu:input')])
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.teacher.modules())
    norms = [module for module in model.teacher.modules() if hasattr(module, 'running_mean')]
    assert len(norms) == 20 and all(module.training for module in norms)
    assert model(*batch(), mode='loss')['distill.loss_layer4.1.relu'].item() > 0


@pytest.mark.parametrize('copied', [False, True])
def test_modules_that_a_hook_replaces_are_read_and_treated_as_those_before_them(teacher_file, copied):
    model, expected = (build_distiller(teacher_checkpoint=teacher_file) for _ in range(2))
    model(*batch(), mode='loss')
    original, model = model, copy.deepcopy(model) if copied else model  # as EMA does
    for side in ('teacher', 'student'):
        for path in ('block2.0', ''):
            mine, theirs = (getattr(each, side).backbone.get_submodule(path) for each in (model, expected))
            new = nn.BatchNorm2d(mine.bn1.num_features)
            new.weight.data.uniform_(0.5, 2)
            new.bias.data.normal_()
            theirs.bn1.load_state_dict(new.state_dict())
            mine.bn1 = new
    for each in (original, model, expected):
        each.train()
    statistics = checksum(model.teacher)
    assert model(*batch(), mode='loss') == expected(*batch(), mode='loss')
    assert unchanged(model.teacher, statistics)


def test_moving_average_copies_the_distiller(teacher_file):
    model = build_distiller(teacher_checkpoint=teacher_file)
    average = ExponentialMovingAverage(model, momentum=0.5, update_buffers=True)
    start = checksum(model)
    total, _ = model.parse_losses(model(*batch(), mode='loss'))
    total.backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    average.update_parameters(model)  # the first takes the weights over
    now = checksum(model)
    for parameter in model.parameters():
        parameter.data.add_(2)
    average.update_parameters(model)
    name = 'student.backbone.conv1.weight'
    assert not torch.equal(now[name], start[name])
    assert torch.allclose(average.module.state_dict()[name], now[name] + 1, atol=1e-6)
    assert average.module.teacher is model.teacher
    # Where the copy goes, the teacher does not follow.
    average.module.to('meta')
    assert not any(tensor.is_meta for tensor in model.teacher.state_dict().values())
    average.module.to_empty(device='cpu').load_state_dict(model.state_dict())
    # The copy is complete: its loss is that of its own weights, and the original's taps are not disturbed.
    images, samples = batch(seed=5)
    average.module.train()
    expected = build_distiller(teacher_checkpoint=teacher_file)
    expected.load_state_dict(average.module.state_dict())
    assert average.module(images, samples, mode='loss') == expected(images, samples, mode='loss')
    model(images, samples, mode='loss')


def test_the_mode_of_a_copy_is_not_that_of_the_shared_teacher():
    model = build_distiller().train()
    modes = [module.training for module in model.teacher.modules()]
    copied = copy.deepcopy(model).eval()
    assert not any(module.training for module in copied.modules())
    assert [module.training for module in model.teacher.modules()] == modes and any(modes)


def test_a_run_with_the_moving_average_hook(teacher_file, tmp_path):
    model = build_distiller(teacher_checkpoint=teacher_file)
    before = checksum(model.teacher)
    run = runner(tmp_path, model, [batch()] * 2, epochs=1, optim_wrapper=sgd(), hooks=[EMAHook()])
    assert isinstance(run, Runner)
    run.train()
    assert unchanged(model.teacher, before)


def test_data_preprocessor_goes_to_both_models_where_they_have_none():
    given = dict(type='mmpretrain.ClsDataPreprocessor', mean=[1.0] * 3, std=[2.0] * 3)
    own = dict(given, mean=[5.0] * 3)
    model = build_distiller(data_preprocessor=given, teacher=dict(wide_resnet(2), data_preprocessor=own))
    assert model.data_preprocessor is model.student.data_preprocessor
    assert model.data_preprocessor.mean.flatten().tolist() == [1.0] * 3
    assert model.teacher.data_preprocessor.mean.flatten().tolist() == [5.0] * 3


def test_margins_come_from_the_loaded_teacher(teacher_file, tmp_path):
    model = build_distiller(teacher_checkpoint=teacher_file)
    norm = plain_teacher(teacher_file).backbone.block3[0].bn1
    scale, bias = norm.weight[3].item(), norm.bias[3].item()
    expected = stats.truncnorm(-math.inf, -bias / abs(scale), loc=bias, scale=abs(scale)).mean()
    assert model.margins[1].margin[3].item() == pytest.approx(expected, rel=1e-5)
    taps = [dict(teacher='backbone.layer1.1.relu:input', student='backbone.layer1.1.relu:input', **named)
            for named in ({}, {'margin_norm': 'backbone.layer1.0.bn1'})]
    file = save_teacher(tmp_path, resnet())
    found = build_distiller(teacher=resnet(), student=resnet(), teacher_checkpoint=file, taps=taps[:1])
    named = build_distiller(teacher=resnet(), student=resnet(), teacher_checkpoint=file, taps=taps[1:])
    assert list(found.teacher_taps)[0].norm_path == 'backbone.layer1.1.bn2'
    assert list(named.teacher_taps)[0].norm_path == 'backbone.layer1.0.bn1'
    assert not torch.equal(found.margins[0].margin, named.margins[0].margin)


@pytest.mark.parametrize('part', ['weight', 'bias'])
def test_a_margin_comes_from_no_batch_norm_that_the_file_lacks(teacher_file, tmp_path, part):
    state = torch.load(teacher_file)['state_dict']
    del state[f'backbone.bn1.{part}']
    file = tmp_path / 'part.pth'
    torch.save(state, file)
    paths = dict(teacher='backbone.block3.0.bn2', student='backbone.block3.0.bn2')
    with pytest.raises(ValueError, match=rf'backbone\.bn1\.{part}.*the margin of the tap backbone\.block3\.0\.bn2 dep'):
        build_distiller(teacher_checkpoint=str(file), taps=[dict(paths, margin_norm='backbone.bn1')])
    build_distiller(teacher_checkpoint=str(file), taps=[dict(paths, margin_norm='backbone.block3.0.bn2')])


def test_no_teacher_checkpoint_warns():
    with pytest.warns(UserWarning, match='The teacher has no teacher_checkpoint'):
        MODELS.build(distiller_config())


def test_a_teacher_checkpoint_does_not_warn(teacher_file):
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        MODELS.build(distiller_config(teacher_checkpoint=teacher_file))


def tap(**changes):
    return [dict(TAPS[0], **changes)]


ERRORS = {
    'sizes differ': (
        dict(taps=tap(teacher='backbone.block3.0.bn1')),
        '"backbone.block3.0.bn1" is 8x8 and "backbone.block2.0.bn1" is 16x16 for an image of 16x16'),
    'sizes of another image': (
        dict(taps=tap(teacher='backbone.block3.0.bn1'), input_size=(24, 32)), 'is 12x16 and "backbone.block2.0.bn1" is '
        '24x32 for an image of 24x32'),
    'no taps': (dict(taps=[]), 'taps is []: name at least one pair'),
    'unknown way to find taps': (dict(taps='all'), "taps is 'all': name at least one pair"),
    'taps that are a number': (dict(taps=5), 'taps is 5: name at least one pair'),
    'taps that are one': (dict(taps=TAPS[0]), 'name at least one pair'),
    'a tap that is a path': (dict(taps=['backbone.bn1']), "The tap 'backbone.bn1' is no dict. A tap has the keys"),
    'a tap that is a pair': (dict(taps=[('a', 'b')]), "The tap ('a', 'b') is no dict"),
    'a tap of nothing': (dict(taps=tap(student=None)), 'has student=None, where the path of a module is expected'),
    'a weight that is no number': (dict(taps=tap(loss_weight=math.nan)), 'has loss_weight=nan, where a number of 0'),
    'a weight below 0': (dict(taps=tap(loss_weight=-1)), 'has loss_weight=-1, where a number of 0 or more is expected'),
    'a model that is a number': (dict(student=3), 'student is a dict, or the path of a config file, not 3'),
    'no model': (dict(teacher=None), 'teacher is a dict, or the path of a config file, not None'),
    'a loss that is a name': (
        dict(distill_loss='PartialL2Loss'), "distill_loss is a dict, as in dict(type=\"...\"), not 'PartialL2Loss'"),
    'a connector that is a name': (dict(connector='ConvBNConnector'), 'connector is a dict'),
    'a margin that is a name': (dict(margin='MarginReLU'), 'margin is a dict'),
    'teacher_dropout that is a word': (dict(teacher_dropout='yes'), "teacher_dropout is True or False, not 'yes'"),
    'match_sizes that is a number': (dict(match_sizes=1), 'match_sizes is True or False, not 1'),
    'no checkpoint': (dict(teacher_checkpoint=''), "teacher_checkpoint is a file, a URL or None, not ''"),
    'unknown key in a tap': (dict(taps=tap(wieght=2)), "has unknown keys ['wieght']. A tap has the keys teacher, stud"),
    'tap without student': (dict(taps=[dict(teacher=PATHS[0])]), "lacks ['student']"),
    'unknown teacher tap': (dict(taps=tap(teacher='backbone.block2.0.bn7')), 'The teacher has no module'),
    'unknown student tap': (dict(taps=tap(student='backbone.block2.0.bn7')), 'The student has no module'),
    'bad teacher_batch_norm': (
        dict(teacher_batch_norm='eval'), 'teacher_batch_norm is "batch" or "running", not \'eval\''),
    'no batch norm before the tap': (
        dict(taps=[dict(teacher='backbone.conv1', student='backbone.conv1')],
             margin=dict(type='MarginReLU', source='batch_norm')),
        'No batch norm of 16 channels feeds the teacher tap'),
    'margin_norm is no batch norm': (
        dict(taps=tap(margin_norm='backbone.block2.0.conv1')), 'is no batch norm of the teacher. Nearest: backbone.bl'),
    'margin_norm of other channels': (
        dict(taps=tap(margin_norm='backbone.bn1')),
        'margin_norm="backbone.bn1" has 128 channels and the teacher tap "backbone.block2.0.bn1" has 32'),
    'unknown teacher type': (
        dict(teacher=dict(wide_resnet(2), type='ImageClasifier')),
        'The teacher asks for the type "ImageClasifier"'),
    'unknown type inside the student': (
        dict(student=dict(wide_resnet(1), backbone=dict(type='overhaul.WideResnet', depth=10, widen_factor=1))),
        'The student asks for the type "overhaul.WideResnet", which no package has registered. Nearest: '),
    'unknown connector': (dict(connector=dict(type='ConvBNConector')), 'The connector asks for the type "ConvBNConec'),
    'unknown margin': (dict(margin=dict(type='MarginRelu')), 'The margin asks for the type "MarginRelu"'),
    'unknown loss': (dict(distill_loss=dict(type='PartialL2')), 'The distill_loss asks for the type "PartialL2"'),
}


@pytest.mark.parametrize(('changes', 'message'), ERRORS.values(), ids=ERRORS)
def test_what_is_wrong_in_a_config_is_told(teacher_file, changes, message):
    with pytest.raises(ValueError) as error:
        build_distiller(**dict(dict(teacher_checkpoint=teacher_file), **changes))
    assert message in str(error.value)


@pytest.mark.parametrize(('changes', 'name'), [
    (dict(student=dict(wide_resnet(1), backbone=dict(type='overhaul.WideResnet'))), 'WideResNet'),
    (dict(connector=dict(type='ConvBNConector')), 'ConvBNConnector'),
    (dict(distill_loss=dict(type='PartialL2')), 'PartialL2Loss'),
])
def test_unknown_types_name_the_nearest_one_first(teacher_file, changes, name):
    with pytest.raises(ValueError, match=rf'registered\. Nearest: (overhaul\.)?{name}\b'):
        build_distiller(teacher_checkpoint=teacher_file, **changes)


def test_a_component_of_the_users_own_takes_part(teacher_file):
    @MODELS.register_module(name='PlainConnector', force=True)
    class PlainConnector(nn.Conv2d):
        def __init__(self, student_channels, teacher_channels):
            super().__init__(student_channels, teacher_channels, 1)

    model = build_distiller(teacher_checkpoint=teacher_file, connector=dict(type='PlainConnector'))
    assert [type(connector) for connector in model.connectors] == [PlainConnector] * 3
    assert model(*batch(), mode='loss')['distill.loss_bn1'].item() > 0


def test_networks_of_different_families_pair_at_taps_of_one_size():
    taps = [dict(teacher='backbone.layer1.1.relu:input', student='backbone.block2.0.bn1'),
            dict(teacher='backbone.layer3.1.relu:input', student='backbone.bn1')]
    model = build_distiller(teacher=resnet(8), taps=taps)
    losses = model(*batch(), mode='loss')
    assert [losses[name].item() > 0 for name in model.loss_names] == [True, True]


@pytest.mark.parametrize('distill_loss', [None, dict(type='L2Loss', loss_weight=3.0)])
def test_alpha_is_short_for_the_weight_of_the_distillation(distill_loss):
    assert build_distiller(alpha=0.25, distill_loss=distill_loss).distill_loss.loss_weight == 0.25
    assert build_distiller(alpha='auto', distill_loss=distill_loss).distill_loss.loss_weight.isnan()
    with pytest.raises(ValueError, match='loss_weight of .* is a number of 0 or more, or "auto"'):
        build_distiller(alpha=-1, distill_loss=distill_loss)


@pytest.mark.parametrize('at_once', [True, False])
def test_a_tap_before_all_that_learns_is_told_once(at_once, monkeypatch):
    told = []
    monkeypatch.setattr('overhaul.method.distiller.print_log', lambda text, *_: told.append(text))
    taps = [dict(teacher=f'backbone.layer{i}', student=f'backbone.layer{i}') for i in (1, 2, 3)]
    model = build_distiller(teacher=resnet(), student=resnet(4, frozen_stages=2), taps=taps, at_once=at_once)
    told.clear()
    for _ in range(2):
        sum(model(*batch(), mode='loss').values()).backward()
    assert [text.partition('"')[2].partition('"')[0] for text in told] == ['backbone.layer1', 'backbone.layer2']
    assert 'teaches its connector alone' in told[0]
    assert all(parameter.grad is not None for parameter in model.student.backbone.layer3.parameters())
    with torch.no_grad():
        build_distiller(teacher=resnet(), student=resnet(4, frozen_stages=2), taps=taps)(*batch(), mode='loss')
    assert len(told) == 2
