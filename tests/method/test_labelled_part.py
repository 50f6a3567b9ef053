"""Batches in which some images have no labels: the task's loss is of the others, all else of every image."""

import copy

import pytest
import torch
from mmengine.model import BaseModel
from small_models import (
    batch,
    build_distiller,
    resnet,
    save_teacher,
    segmentation_batch,
    segmentor,
    wide_resnet,
)
from torch import nn

from overhaul.registry import MODELS
from overhaul.tasks import Task, mark_unlabelled

LABELLED, ALL = 3, 8


def without_labels(samples, count=LABELLED):
    """The samples of which only the first ``count`` have labels."""
    blank = [type(sample)(metainfo=dict(sample.metainfo)) for sample in samples[count:]]
    for sample in blank:
        mark_unlabelled(sample)
    return samples[:count] + blank


@pytest.fixture(scope='module')
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp('teachers')
    return dict(
        wide=save_teacher(folder, wide_resnet(2)), segmentor=save_teacher(folder, segmentor(8), seed=8))


def gradients(model, losses):
    model.zero_grad()
    sum(losses).backward()
    return {name: 0 if parameter.grad is None else parameter.grad for name, parameter in model.named_parameters()}


def classification(teachers, **more):
    return build_distiller(teacher_checkpoint=teachers['wide'], **more).double(), batch(ALL)


def segmentation(teachers, taps=('backbone.layer2.1.relu:input', ), **more):
    model = build_distiller(
        teacher=segmentor(8), student=dict(segmentor(4), auxiliary_head=dict(
            type='FCNHead', in_channels=16, in_index=2, channels=8, num_convs=1, num_classes=5, dropout_ratio=0,
            norm_cfg=dict(type='BN'))),
        taps=[dict(teacher=tap, student=tap) for tap in taps], teacher_checkpoint=teachers['segmentor'],
        input_size=(32, 32), **more)
    return model.double(), segmentation_batch(ALL)


HEAD_TAPS = ['backbone.layer2.1.relu:input', 'decode_head.convs.0.bn']


@pytest.mark.parametrize('at_once', [True, False])
def test_a_classifier_by_hand(teachers, at_once):
    model, (images, samples) = classification(teachers, at_once=at_once)
    images = images.double()
    student = copy.deepcopy(model.student)
    whole = model(images, samples, mode='loss')  # of labels for all
    logits = student.head.fc(student.neck(student.backbone(images))[-1])
    task = nn.functional.cross_entropy(
        logits[:LABELLED], torch.cat([sample.gt_label for sample in samples[:LABELLED]]))

    losses = model(images, without_labels(samples), mode='loss')
    assert losses['loss_task'].item() == pytest.approx(task.item(), rel=1e-12)
    assert losses['loss_task'] != whole['loss_task']
    for name in model.loss_names:
        assert losses[name].item() == pytest.approx(whole[name].item(), rel=1e-12)  # of all images
    ours = gradients(model, losses.values())
    losses = model(images, samples, mode='loss')
    distillation = gradients(model, [losses[name] for name in model.loss_names])
    task.backward()
    for name, parameter in student.named_parameters():
        expected = parameter.grad + distillation[f'student.{name}']
        torch.testing.assert_close(ours[f'student.{name}'], expected, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize('taps', [HEAD_TAPS[:1], HEAD_TAPS])
def test_a_segmentor_by_hand(teachers, taps):
    model, (images, samples) = segmentation(teachers, taps)
    images = images.double()
    student = copy.deepcopy(model.student)
    whole = model(images, samples, mode='loss')
    losses = model(images, without_labels(samples), mode='loss')
    for name in model.loss_names:
        assert losses[name].item() == pytest.approx(whole[name].item(), rel=1e-12)

    features = student.backbone(images)
    if len(taps) == 1:  # left out at the end of the backbone
        features = [feature[:LABELLED] for feature in features]
    truth = torch.cat([sample.gt_sem_seg.data for sample in samples[:LABELLED]])
    for head, name, factor in ((student.decode_head, 'decode', 1), (student.auxiliary_head, 'aux', 1)):
        logits = nn.functional.interpolate(
            head(features)[:LABELLED], size=(32, 32), mode='bilinear', align_corners=head.align_corners)
        expected = nn.functional.cross_entropy(logits, truth)
        assert losses[f'{name}.loss_ce'].item() == pytest.approx(factor * expected.item(), rel=1e-9)


def test_batch_norms_up_to_where_the_images_are_left_out_see_all(teachers):
    model, (images, samples) = classification(teachers)
    images = images.double()
    running = copy.deepcopy(model.student)
    running(images)  # train mode: moves the statistics
    model(images, without_labels(samples), mode='loss')
    for name, value in model.student.state_dict().items():
        assert torch.equal(value, running.state_dict()[name]), name


def test_a_copy_leaves_them_out_too_and_batches_of_labels_alone_stay_as_they_are(teachers):
    model, (images, samples) = classification(teachers)
    images = images.double()
    before = model(images, samples, mode='loss')
    part = model(images, without_labels(samples), mode='loss')
    after = model(images, samples, mode='loss')
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = copy.deepcopy(model)(images, without_labels(samples), mode='loss')
    assert all(torch.equal(part[name], again[name]) for name in part)
    assert model.student(images).shape[0] == ALL  # nothing is left out of a prediction


def test_a_step_that_is_compiled(teachers):
    model, (images, samples) = classification(teachers, at_once=False)
    images = images.double()
    expected = model(images, without_labels(samples), mode='loss')
    model.loss = torch.compile(model.loss, backend='eager')
    ours = model(images, without_labels(samples), mode='loss')
    for name, value in expected.items():
        assert ours[name].item() == pytest.approx(value.item(), rel=1e-9)


def test_mixup_is_of_the_images_with_labels(teachers):
    student = dict(wide_resnet(1), train_cfg=dict(augments=dict(type='Mixup', alpha=0.8)), data_preprocessor=dict(
        type='ClsDataPreprocessor', num_classes=5, mean=[0.0] * 3, std=[1.0] * 3))
    model = build_distiller(teacher_checkpoint=teachers['wide'], student=student)
    images, samples = batch(ALL)
    data = model.data_preprocessor(dict(inputs=list(images), data_samples=without_labels(samples)), True)
    assert torch.equal(data['inputs'][LABELLED:], images[LABELLED:])
    assert not torch.equal(data['inputs'][:LABELLED], images[:LABELLED])
    assert all(sample.gt_score.sum() == pytest.approx(1) for sample in data['data_samples'][:LABELLED])
    assert not any('gt_score' in sample for sample in data['data_samples'][LABELLED:])
    model(**data, mode='loss')


def test_images_of_two_sizes_are_refused(teachers):
    model, (images, samples) = classification(teachers)
    inputs = [*images[:LABELLED], *torch.zeros(ALL - LABELLED, 3, 8, 8)]
    with pytest.raises(ValueError, match=r'labels come out of their pipeline as \(3, 16, 16\), and .+ \(3, 8, 8\)'):
        model.data_preprocessor(dict(inputs=inputs, data_samples=without_labels(samples)), True)


def test_a_network_that_is_its_own_trunk():
    student = dict(
        _scope_='mmpretrain', type='TimmClassifier', model_name='resnet18', num_classes=5, with_cp=False,
        loss=dict(type='CrossEntropyLoss'))
    tap = dict(teacher='backbone.layer4.1.relu:input', student='model.layer4.1.act2:input')
    model = build_distiller(teacher=resnet(8), student=student, taps=[tap], input_size=(32, 32), match_sizes=True)
    images, samples = batch(ALL, pixels=32)
    logits = copy.deepcopy(model.student)(images)
    expected = nn.functional.cross_entropy(
        logits[:LABELLED], torch.cat([sample.gt_label for sample in samples[:LABELLED]]))
    assert model(images, without_labels(samples), mode='loss')['loss_task'].item() == pytest.approx(expected.item())


class Turn(nn.Module):
    def forward(self, features):
        return features.transpose(0, 1)


@MODELS.register_module()
class Regressor(BaseModel):
    """A model of no package, with or without a backbone, which may give its features channel by channel."""

    def __init__(self, inside='backbone', turned=False):
        super().__init__()
        self.add_module(inside, nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Turn() if turned else nn.Identity()))
        self.inside, self.turned = inside, turned
        self.last = nn.Conv2d(4, 1, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        features = getattr(self, self.inside)(inputs)
        values = self.last(features.transpose(0, 1) if self.turned else features).mean((1, 2, 3))
        if mode != 'loss':
            return values
        return dict(loss=(values - torch.stack([sample.gt_label[0] for sample in data_samples])).square().mean())


def regressor(**more):
    inside = more.get('inside', 'backbone')
    return build_distiller(
        teacher=dict(type='overhaul.Regressor', **more), student=dict(type='overhaul.Regressor', **more),
        taps=[dict(teacher=f'{inside}.1', student=f'{inside}.1')])


def test_any_model_with_a_backbone():
    images, samples = batch(ALL)
    model = regressor()
    values = copy.deepcopy(model.student)(images)[:LABELLED]
    expected = (values - torch.tensor([sample.gt_label.item() for sample in samples[:LABELLED]])).square().mean()
    losses = model(images, without_labels(samples), mode='loss')
    assert losses['loss_task'].item() == pytest.approx(expected.item())


def test_a_loss_that_cannot_be_taken_over_a_part_is_refused(teachers):
    images, samples = batch(ALL)
    with pytest.raises(ValueError, match='Regressor cannot be taken over a part of a batch: it has no backbone'):
        regressor(inside='part')(images, without_labels(samples), mode='loss')
    with pytest.raises(ValueError, match='features do not come, image by image, out of the module'):
        regressor(turned=True)(images, without_labels(samples), mode='loss')


def test_a_tap_behind_where_they_are_left_out_is_refused(teachers):
    images, samples = batch(ALL)
    model = build_distiller(
        teacher=dict(type='overhaul.Regressor'), student=dict(type='overhaul.Regressor'),
        taps=[dict(teacher='last', student='last')])
    with pytest.raises(ValueError, match='tap "last" of the student is behind its backbone, where the images without'):
        model(images, without_labels(samples), mode='loss')


@pytest.mark.parametrize('taps', [['backbone'], ['backbone', 'neck:input']])
def test_where_the_images_are_left_out_is_behind_the_taps(taps):
    model = nn.Module()
    model.backbone, model.neck = nn.Identity(), nn.Identity()
    Task(model).cut_loss(lambda features: features, taps)
    hooked = [name for name, module in model.named_children() if module._forward_hooks]
    assert hooked == [taps[-1].partition(':')[0]]
