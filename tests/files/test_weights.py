import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from mmengine.runner import Runner
from mmpretrain.structures import DataSample

from overhaul.files import weights
from overhaul.files.checkpoints import read_checkpoint
from overhaul.files.weights import load_weights, to_model_keys
from overhaul.registry import MODELS

KEYS = Path(__file__).parents[1] / 'data' / 'checkpoint_keys'


def classifier(backbone, channels, classes):
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=backbone,
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(type='mmpretrain.LinearClsHead', in_channels=channels, num_classes=classes))


def resnet18(classes=5):
    return MODELS.build(classifier(dict(type='mmpretrain.ResNet', depth=18), 512, classes))


def deeplab(backbone, channels, c1_channels):
    return dict(
        type='mmseg.EncoderDecoder',
        backbone=dict(**backbone, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
        decode_head=dict(
            type='overhaul.DeepLabV3PlusHead', in_channels=channels, in_index=3, c1_in_channels=c1_channels,
            num_classes=21))


WRN10 = classifier(dict(type='overhaul.WideResNet', depth=10, widen_factor=1), 64, 10)
WRN16_2 = classifier(dict(type='overhaul.WideResNet', depth=16, widen_factor=2), 128, 100)

OFFICIAL = {
    'wrn16_2': WRN16_2,
    'wrn16_4': classifier(dict(type='overhaul.WideResNet', depth=16, widen_factor=4), 256, 100),
    'wrn28_2': classifier(dict(type='overhaul.WideResNet', depth=28, widen_factor=2), 128, 100),
    'wrn28_4': classifier(dict(type='overhaul.WideResNet', depth=28, widen_factor=4), 256, 100),
    'cifar_resnet56': classifier(dict(type='overhaul.CifarResNet', depth=56), 64, 100),
    'pyramid110': classifier(dict(type='overhaul.PyramidNet', depth=110, alpha=84, bottleneck=False), 100, 100),
    'pyramid200': classifier(dict(type='overhaul.PyramidNet', depth=200, alpha=240, bottleneck=True), 1024, 100),
    'mobilenet_v1': classifier(dict(type='overhaul.MobileNetV1'), 1024, 1000),
    'resnet50': classifier(dict(type='mmpretrain.ResNet', depth=50), 2048, 1000),
    'resnet152': classifier(dict(type='mmpretrain.ResNet', depth=152), 2048, 1000),
    'deeplab_resnet18': deeplab(dict(type='overhaul.DilatedResNet', depth=18), 512, 64),
    'deeplab_resnet101': deeplab(dict(type='mmseg.ResNet', depth=101), 2048, 256),
}


def manifest(network):
    return {name: tuple(shape) for name, shape, _ in json.loads((KEYS / f'manifest_{network}.json').read_text())}


def official_state(network):
    """Every tensor holds other numbers, so that no two can be taken for each other."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator) for name, shape in manifest(network).items()}


def save(tmp_path, content, name='checkpoint.pth', **kwargs):
    path = tmp_path / name
    torch.save(content, path, **kwargs)
    return str(path)


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------------------------------------------------------------
# Formats


@pytest.mark.parametrize('network', OFFICIAL)
def test_official_names_become_those_of_our_model(network):
    model = MODELS.build(OFFICIAL[network])
    official = {f'module.{name}': torch.empty(shape, device='meta') for name, shape in manifest(network).items()}
    expected = {name: value.shape for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in to_model_keys(official).items()} == expected


@pytest.mark.parametrize('network, official, ours', [
    ('wrn16_2', 'block2.layer.0.convShortcut.weight', 'backbone.block2.0.shortcut.weight'),
    ('wrn16_2', 'block2.layer.1.conv2.weight', 'backbone.block2.1.conv2.weight'),
    ('wrn16_2', 'bn1.running_mean', 'backbone.bn1.running_mean'),
    ('wrn16_2', 'fc.bias', 'head.fc.bias'),
    ('mobilenet_v1', 'model.13.4.bias', 'backbone.model.13.4.bias'),
    ('deeplab_resnet18', 'backbone.layer4.1.bn2.bias', 'backbone.layer4.1.bn2.bias'),
    ('deeplab_resnet18', 'aspp.aspp1.atrous_conv.weight', 'decode_head.aspp_modules.0.conv.weight'),
    ('deeplab_resnet18', 'aspp.aspp4.bn.bias', 'decode_head.aspp_modules.3.bn.bias'),
    ('deeplab_resnet18', 'aspp.global_avg_pool.1.weight', 'decode_head.image_pool.1.conv.weight'),
    ('deeplab_resnet18', 'aspp.global_avg_pool.2.weight', 'decode_head.image_pool.1.bn.weight'),
    ('deeplab_resnet18', 'aspp.bn1.weight', 'decode_head.bottleneck.bn.weight'),
    ('deeplab_resnet18', 'decoder.conv1.weight', 'decode_head.c1_bottleneck.conv.weight'),
    ('deeplab_resnet18', 'decoder.last_conv.1.bias', 'decode_head.fusion.0.bn.bias'),
    ('deeplab_resnet18', 'decoder.last_conv.5.bias', 'decode_head.fusion.1.bn.bias'),
    ('deeplab_resnet18', 'decoder.last_conv.8.bias', 'decode_head.conv_seg.bias'),
])
def test_official_values_arrive_under_their_own_name(network, official, ours):
    state = official_state(network)
    assert to_model_keys(state)[ours] is state[official]


def test_names_of_our_models_are_left_alone():
    state = MODELS.build(WRN16_2).state_dict()
    assert list(to_model_keys(state)) == list(state)


def test_two_names_for_one_tensor_are_refused():
    with pytest.raises(ValueError, match=r'both "fc.weight" and "head.fc.weight"'):
        to_model_keys({'fc.weight': torch.zeros(1), 'head.fc.weight': torch.zeros(1)})


@pytest.mark.parametrize('new_format', [True, False])
def test_official_wide_resnet_file(tmp_path, new_format):
    state = official_state('wrn16_2')
    file = save(tmp_path, {'model': state, 'epoch': 200}, _use_new_zipfile_serialization=new_format)
    model = MODELS.build(WRN16_2)
    load_weights(model, file)
    assert torch.equal(model.head.fc.weight, state['fc.weight'])
    assert torch.equal(model.backbone.block3[0].shortcut.weight, state['block3.layer.0.convShortcut.weight'])


def test_official_deeplab_file_with_its_numpy_scalar(tmp_path):
    state = official_state('deeplab_resnet18')
    file = save(tmp_path, {'epoch': 1, 'state_dict': state, 'best_pred': np.float64(0.7789)})
    model = MODELS.build(OFFICIAL['deeplab_resnet18'])
    load_weights(model, file)
    assert torch.equal(model.decode_head.conv_seg.weight, state['decoder.last_conv.8.weight'])
    assert read_checkpoint(file)['best_pred'] == 0.7789


def test_torchvision_file_gives_the_same_outputs(tmp_path):
    torch.manual_seed(0)
    reference = torchvision.models.resnet18(num_classes=5).eval()
    model = resnet18().eval()
    load_weights(model, save(tmp_path, reference.state_dict()))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.head(model.extract_feat(images)), reference(images))


def test_own_checkpoint_written_by_a_real_runner(tmp_path):
    teacher = MODELS.build(WRN10)
    distiller = MODELS.build(dict(
        type='overhaul.OverhaulDistiller', teacher=WRN10, student=WRN10, input_size=(32, 32),
        teacher_checkpoint=save(tmp_path, dict(state_dict=teacher.state_dict()), 'teacher.pth'),
        taps=[dict(teacher='backbone.bn1', student='backbone.bn1')]))
    assert same(distiller.teacher.state_dict(), teacher.state_dict())

    samples = [
        dict(inputs=torch.randn(3, 32, 32), data_samples=DataSample().set_gt_label(label)) for label in range(4)]
    Runner(
        model=distiller, work_dir=str(tmp_path / 'run'), train_cfg=dict(by_epoch=True, max_epochs=1),
        train_dataloader=dict(
            dataset=samples, batch_size=2, sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate')),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)), default_scope='mmpretrain').train()

    file = str(tmp_path / 'run' / 'epoch_1.pth')
    assert 'message_hub' in read_checkpoint(file)  # the history buffers came through too
    trained = snapshot(distiller.student)
    student, other = MODELS.build(WRN10), MODELS.build(WRN10)
    assert not same(student.state_dict(), trained)
    load_weights(student, file)
    assert same(student.state_dict(), trained)

    connectors = snapshot(distiller.connectors)
    load_weights(distiller, save(tmp_path, other.state_dict()))  # a distiller takes them as its student
    assert same(distiller.student.state_dict(), other.state_dict())
    assert same(distiller.connectors.state_dict(), connectors)


def test_zoo_file_with_parts_that_the_model_lacks(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(weights, 'print_log', lambda line, **_: lines.append(line))
    head = dict(type='mmseg.FCNHead', channels=8, num_classes=3, num_convs=1, norm_cfg=dict(type='BN'))
    cfg = dict(
        type='mmseg.EncoderDecoder', backbone=dict(type='mmseg.ResNet', depth=18, base_channels=8),
        decode_head=dict(**head, in_channels=64), auxiliary_head=dict(**head, in_channels=32, in_index=2))
    source = MODELS.build(cfg)
    state = {**source.state_dict(), 'data_preprocessor.mean': torch.zeros(3), 'ema_backbone_conv1': torch.ones(1)}
    file = save(tmp_path, dict(state_dict=state, meta=dict(CLASSES=('a', 'b', 'c'), PALETTE=np.uint8([[1, 2, 3]]))))

    with_auxiliary = MODELS.build(cfg)
    load_weights(with_auxiliary, file)
    assert same(with_auxiliary.state_dict(), source.state_dict())

    del cfg['auxiliary_head']
    without = MODELS.build(cfg)
    load_weights(without, file)
    assert torch.equal(without.decode_head.conv_seg.weight, source.decode_head.conv_seg.weight)
    auxiliary = sum(name.startswith('auxiliary_head.') for name in source.state_dict())
    assert f'Left out {auxiliary + 2} tensors' in lines[-1] and 'auxiliary_head.' in lines[-1]

    with pytest.raises(ValueError, match=r'12 missing \(auxiliary_head\.conv_seg\.weight \(3, 8, 1, 1\)'):
        load_weights(with_auxiliary, save(tmp_path, dict(state_dict=without.state_dict())))


# ---------------------------------------------------------------------------------------------------------------------
# What does not fit


def test_absent_counters_are_left_as_they_are(tmp_path):
    model, reference = resnet18(), torchvision.models.resnet18(num_classes=5)
    model.backbone.bn1.num_batches_tracked.fill_(7)
    state = {name: value for name, value in reference.state_dict().items() if 'num_batches_tracked' not in name}
    load_weights(model, save(tmp_path, state))
    assert model.backbone.bn1.num_batches_tracked == 7
    assert torch.equal(model.backbone.bn1.weight, reference.bn1.weight)


@pytest.mark.parametrize('change, message', [
    (dict(remove='bn1.running_mean'), r'1 missing \(backbone\.bn1\.running_mean \(64,\)\)\. Nothing was loaded'),
    (dict(remove='layer4.'), r'25 missing \(backbone\.layer4\.0\.conv1\.weight \(512, 256, 3, 3\), .+, \.\.\.\)'),
    (dict(add={'layer5.weight': torch.zeros(2, 3)}), r'1 unexpected \(backbone\.layer5\.weight \(2, 3\)\)'),
    (dict(add={'layer5.weight': 'text'}), r'1 unexpected \(backbone\.layer5\.weight of type str\)'),
    (dict(add={'fc.bias': torch.zeros(9)}), r'1 of another shape \(head\.fc\.bias \(9,\) for \(5,\) in the model\)'),
])
def test_misfit_is_told_and_changes_nothing(tmp_path, change, message):
    state = torchvision.models.resnet18(num_classes=5).state_dict()
    if 'remove' in change:
        state = {name: value for name, value in state.items() if not name.startswith(change['remove'])}
    model = resnet18()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        load_weights(model, save(tmp_path, {**state, **change.get('add', {})}))
    assert same(model.state_dict(), before)


def test_checkpoint_of_another_network_is_refused(tmp_path):
    file = save(tmp_path, {'model': official_state('wrn16_2')})
    with pytest.raises(ValueError, match=r'fit the ImageClassifier: \d+ missing .+; \d+ unexpected .+; 7 of another'):
        load_weights(resnet18(), file)
