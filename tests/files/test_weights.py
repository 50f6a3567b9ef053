import json
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmpretrain.models import HuggingFaceClassifier
from mmpretrain.structures import DataSample
from torch.nn.utils import prune

from overhaul.files import weights
from overhaul.files.checkpoints import read_checkpoint
from overhaul.files.names import fits, to_model_keys
from overhaul.files.weights import check_resumable, load_teacher, load_weights, resumed_file, starting_weights
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
    fit, *_ = fits({'': official}, model)
    assert {name: value.shape for name, value in fit.taken.items()} == expected
    assert fit.has_all and fit.prefix == 'module.'


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

    with_auxiliary = MODELS.build(cfg | dict(auxiliary_head=dict(**head, in_channels=32, in_index=2)))
    load_weights(with_auxiliary, save(tmp_path, dict(state_dict=without.state_dict())))
    assert torch.equal(with_auxiliary.decode_head.conv_seg.weight, source.decode_head.conv_seg.weight)
    assert '12 of' in lines[-1] and lines[-1].endswith(
        ': auxiliary_head.conv_seg.weight, auxiliary_head.conv_seg.bias, auxiliary_head.convs.0.conv.weight, .... No '
        'prediction depends on them.')


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
    (dict(add={'conv1.weight': 'text'}), r'1 of another shape \(backbone\.conv1\.weight of type str for \(64, 3,'),
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


# ---------------------------------------------------------------------------------------------------------------------
# Files as other programs write them


def small(width=4, classes=5):
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='mmpretrain.ResNet_CIFAR', depth=18, base_channels=width, stem_channels=width),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(type='mmpretrain.LinearClsHead', num_classes=classes, in_channels=8 * width))


def timm_classifier(classes=5):
    return dict(type='mmpretrain.TimmClassifier', model_name='resnet18', num_classes=classes)


def timm_backbone():
    return dict(
        type='mmpretrain.ImageClassifier', backbone=dict(type='mmpretrain.TIMMBackbone', model_name='resnet18'),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(type='mmpretrain.LinearClsHead', num_classes=5, in_channels=512))


def others(state):
    """Other values under the same names."""
    return {name: value + 1 for name, value in state.items()}


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


@pytest.fixture
def lines(monkeypatch):
    """What is logged."""
    lines = []
    monkeypatch.setattr(weights, 'print_log', lambda line, **_: lines.append(line))
    return lines


@pytest.fixture(scope='module')
def state():
    torch.manual_seed(0)
    return MODELS.build(small()).state_dict()


@pytest.mark.parametrize('prefix', [
    'model.', 'module._orig_mod.', 'architecture.', 'teacher.', 'net.encoder.', 'student.model.'])
def test_a_prefix_that_all_names_share_is_found(tmp_path, lines, state, prefix):
    model = MODELS.build(small())
    load_weights(model, save(tmp_path, dict(state_dict=prefixed(prefix, state))))
    assert same(model.state_dict(), state)
    assert f'what begins with "{prefix}" in "state_dict"' in lines[0]


@pytest.mark.parametrize('wrapper', [
    '_orig_mod.', 'module.', '_fsdp_wrapped_module.', '_checkpoint_wrapped_module.', 'module._orig_mod.'])
def test_wrappers_inside_a_model_leave_no_part_out(tmp_path, lines, state, wrapper):
    wrapped = {name.replace('backbone.', f'backbone.{wrapper}').replace('.conv1', f'.{wrapper}conv1'): value
               for name, value in state.items()}
    for prefix in ('', 'module.'):
        model = MODELS.build(small())
        load_weights(model, save(tmp_path, prefixed(prefix, wrapped)))
        assert same(model.state_dict(), state) and len(lines) == 1
        lines.clear()


@pytest.mark.parametrize('name, taken', [
    ('projector', False), ('projection_head.2', False), ('queue', False), ('fc', True), ('classifier.6', True),
    ('heads.head', True), ('last_linear', True)])
def test_the_last_module_is_taken_under_the_names_of_classifiers(tmp_path, state, name, taken):
    file = save(tmp_path, {key.replace('head.fc', name): value for key, value in state.items()})
    model = MODELS.build(small())
    if taken:
        load_weights(model, file)
        assert same(model.state_dict(), state)
    else:
        with pytest.raises(ValueError, match=r'2 missing \(head\.fc\.weight'):
            load_weights(model, file)


@pytest.mark.parametrize('change, message', [
    (lambda value: value.to(torch.int8), r'quantised.* Take the file from before'),
    (lambda value: value.to(torch.complex64), r'no real numbers.* complex64'),
    (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), r'no real numbers.* qint8'),
    (lambda value: value.to(torch.float8_e4m3fn), r'no real numbers.* float8'),
    (lambda value: value.to('meta'), r'no values \(device "meta"\) or are sparse \('),
    (lambda value: value.to_sparse(), r'no values \(device "meta"\) or are sparse \('),
])
def test_tensors_that_are_no_weights_are_refused(tmp_path, state, change, message):
    file = save(tmp_path, {
        name: change(value) if value.is_floating_point() else value for name, value in state.items()})
    model = MODELS.build(small())
    before = snapshot(model)
    for load in (load_weights, load_teacher, starting_weights):
        with pytest.raises(ValueError, match=message):
            load(model, file)
    assert same(model.state_dict(), before)


@pytest.mark.parametrize('prefix', ['', 'backbone.model.', 'module.encoder_q.'])
def test_a_backbone_alone_is_a_teacher_without_a_head(tmp_path, state, prefix):
    backbone = {name.removeprefix('backbone.'): value for name, value in state.items() if name.startswith('backbone.')}
    model = MODELS.build(small())
    before = snapshot(model)
    file = save(tmp_path, prefixed(prefix, backbone))
    assert load_teacher(model, file) == ['head.fc.weight', 'head.fc.bias']
    assert same(model.state_dict(), {**state, 'head.fc.weight': before['head.fc.weight'],
                                     'head.fc.bias': before['head.fc.bias']})
    with pytest.raises(ValueError, match=r'2 missing \(head\.fc\.weight'):
        load_weights(MODELS.build(small()), file)


def test_sets_that_fit_equally_well_are_a_choice(tmp_path, state):
    file = save(tmp_path, dict(state_dict={**prefixed('architecture.', others(state)), **prefixed('teacher.', state)}))
    model = MODELS.build(small())
    before = snapshot(model)
    with pytest.raises(ValueError, match='2 sets of weights') as error:
        load_teacher(model, file)
    assert f"teacher_checkpoint=dict(file='{file}', prefix='teacher.')" in str(error.value)
    assert same(model.state_dict(), before)
    for prefix in ('teacher.', 'teacher'):
        load_teacher(model, dict(file=file, prefix=prefix))
        assert same(model.state_dict(), state)

    file = save(tmp_path, dict(teacher=prefixed('module.', state), student=prefixed('module.', others(state)), epoch=3))
    with pytest.raises(ValueError, match=r"key='teacher', prefix='module\.'\), or .+key='student'"):
        load_teacher(model, file)
    for more in ({}, dict(prefix='module')):
        load_teacher(model, dict(file=file, key='student', **more))
        assert same(model.state_dict(), others(state))
    load_teacher(model, dict(file=save(tmp_path, prefixed('net.module.', state)), prefix='net'))
    assert same(model.state_dict(), state)


@pytest.mark.parametrize('first, second', [
    ('state_dict', 'model'), ('model', 'weights_of_the_average'), (None, 'model')])
def test_the_line_that_takes_another_set_takes_it(tmp_path, lines, state, first, second):
    """Also where neither is under the name of an average, and where one is at the top of the file."""
    content = {second: others(state), **({first: state} if first else state)}
    file = save(tmp_path, content)
    model = MODELS.build(small())
    load_teacher(model, file)
    taken = same(model.state_dict(), state)
    load_teacher(model, eval(lines[1].partition('To take that: teacher_checkpoint=')[2].removesuffix('.')))
    assert same(model.state_dict(), others(state) if taken else state)


@pytest.mark.parametrize('plain, average', [('state_dict', 'state_dict_ema'), ('model', 'model_ema')])
def test_the_average_beside_the_weights_is_told_and_taken_where_it_is_asked_for(tmp_path, lines, state, plain, average):
    file = save(tmp_path, {average: others(state), plain: state, 'epoch': 3})
    model = MODELS.build(small())
    load_teacher(model, file)
    assert same(model.state_dict(), state)
    advice = f"teacher_checkpoint=dict(file='{file}', key='{average}')"
    assert lines == [f'Loaded {len(state)} tensors of {file} into the teacher.',
                     f'{file} also holds "{average}". To take that: {advice}.']
    load_teacher(model, eval(advice.partition('=')[2]))
    assert same(model.state_dict(), others(state))
    assert lines[-1] == f'Loaded {len(state)} tensors of {file} into the teacher, from "{average}".'


@pytest.mark.parametrize('beginning, dot, prefix', [
    ('ema_', '_', ''), ('model_ema.', '', ''), ('model_ema.', '', 'model.')], ids=['mmcv', 'LDM', 'LDM with a prefix'])
def test_an_average_among_the_weights_under_names_without_dots(tmp_path, lines, state, beginning, dot, prefix):
    """It is of the parameters alone; running statistics belong to both."""
    averaged = {name: state[name] + 1 for name, _ in MODELS.build(small()).named_parameters()}
    within = {beginning + name.replace('.', dot): value for name, value in averaged.items()}
    counters = {f'{beginning}num_updates': torch.tensor(3), f'{beginning}decay': torch.tensor(0.9)}
    file = save(tmp_path, dict(state_dict={**prefixed(prefix, state), **within, **counters}))
    model = MODELS.build(small())
    load_teacher(model, file)
    assert same(model.state_dict(), state)
    load_teacher(model, eval(lines[-1].partition('To take that: teacher_checkpoint=')[2].removesuffix('.')))
    assert same(model.state_dict(), {**state, **averaged})


def test_the_average_of_a_callback_and_one_beside_a_whole_model(tmp_path, lines, state):
    model = MODELS.build(small())
    callback = {"EMA{'decay': 0.9}": dict(ema_state_dict=prefixed('model.', others(state)))}
    optimizers = [dict(state={0: dict(exp_avg=torch.zeros(3))})]
    for content in (
            dict(state_dict=prefixed('model.', state), callbacks=callback, optimizer_states=optimizers),
            dict(state_dict={**prefixed('ema_model.module.', others(state)), **state}),
            {**state, **prefixed('teacher.', others(state)), 'epoch': 3, 'arch': 'resnet18'}):
        file = save(tmp_path, content)
        load_teacher(model, file)
        assert same(model.state_dict(), state)
        load_teacher(model, eval(lines[-1].partition('To take that: teacher_checkpoint=')[2].removesuffix('.')))
        assert same(model.state_dict(), others(state))


def test_an_average_of_the_counters_too_is_no_better_fit(tmp_path, state):
    model = MODELS.build(small())
    average = {name: value + 1. for name, value in state.items()}
    load_teacher(model, save(tmp_path, dict(state_dict=state, ema=average)))
    assert same(model.state_dict(), state)


def test_of_an_average_without_running_statistics_the_log_says_what_it_lacks(tmp_path, lines, state):
    average = {name: value for name, value in others(state).items() if 'running' not in name}
    model = MODELS.build(small())
    load_teacher(model, save(tmp_path, {**state, **prefixed('ema.', average)}))
    assert same(model.state_dict(), state)
    assert 'what begins with "ema." in the top of the file. It lacks 40 of these tensors (backbone.bn1.r' in lines[-1]


def test_an_average_in_a_list_is_told_and_refused_alone(tmp_path, lines, state):
    model, average = MODELS.build(small()), dict(decay=0.9, shadow_params=[value + 1. for value in state.values()])
    load_weights(model, save(tmp_path, dict(state_dict=state, ema=average)))
    assert same(model.state_dict(), state)
    assert f'a list of {len(state)} tensors, "ema.shadow_params", which has no names and was left out' in lines[-1]
    with pytest.raises(ValueError, match='with tensors in a list, where they have no names'):
        load_weights(model, save(tmp_path, average))


def test_averages_of_openmmlab(tmp_path, lines, state):
    model = MODELS.build(small())
    file = save(tmp_path, dict(
        state_dict=state, ema_state_dict={**prefixed('module.', others(state)), 'steps': torch.tensor(1)}))
    load_weights(model, file)
    assert same(model.state_dict(), state)
    assert 'also holds what begins with "module." in "ema_state_dict" (the weights before' in lines[-1]


@pytest.mark.parametrize('source, message', [
    (dict(file='{}', key='ema'), 'has no weights under the key "ema". It has "state_dict".'),
    (dict(file='{}', prefix='teacher.'), r'No name in .+ begins with "teacher\.". Nearest: backbone, head\.$'),
    (dict(file='{}', prefix='back'), r'No name in .+ begins with "back\.". Nearest: backbone'),
    (dict(file='{}', keys='ema'), 'teacher_checkpoint has an unknown key "keys". Nearest: key'),
    (dict(key='ema'), 'teacher_checkpoint names no file'),
    (dict(file='{}', prefix=3), 'prefix=3, where a text is expected'),
    (['{}'], r'teacher_checkpoint is a file, a URL or None, not \['),
])
def test_a_source_that_is_none_is_told(tmp_path, state, source, message):
    file = save(tmp_path, dict(state_dict=state))
    if isinstance(source, dict) and 'file' in source:
        source = dict(source, file=file)
    with pytest.raises(ValueError, match=message):
        load_teacher(MODELS.build(small()), source)


@pytest.mark.parametrize('inner', ['state_dict', 'weights'])
def test_weights_a_level_deeper(tmp_path, lines, state, inner):
    momentum = dict(optimizer=dict(state={0: dict(momentum_buffer=torch.zeros(3))}, param_groups=[]))
    file = save(tmp_path, dict(model={inner: state}, average={inner: others(state)}, epoch=3, **momentum))
    model = MODELS.build(small())
    with pytest.raises(ValueError, match=rf"key='model\.{inner}'\), or .+key='average\.{inner}'"):
        load_teacher(model, file)
    load_teacher(model, dict(file=file, key=f'average.{inner}'))
    assert same(model.state_dict(), others(state))
    load_weights(model, save(tmp_path, dict(model={inner: state}, **momentum)))
    assert same(model.state_dict(), state) and f'from "model.{inner}"' in lines[-1]


@pytest.mark.parametrize('source', ['', dict(file='')])
def test_no_file_at_all_is_told(source):
    with pytest.raises(ValueError, match="^The checkpoint (is a file, a URL or None, not ''|names no file)"):
        load_weights(MODELS.build(small()), source)


def test_a_training_is_not_resumed_from_a_part_of_a_file(tmp_path, state):
    file = save(tmp_path, dict(state_dict=state))
    assert resumed_file(file) == resumed_file(dict(file=file)) == file
    with pytest.raises(ValueError, match='load_from names a part of .+ Name the file alone'):
        check_resumable(MODELS.build(small()), dict(file=file, key='state_dict'))
    with pytest.raises(ValueError, match='holds weights and not the state of a training'):
        check_resumable(MODELS.build(small()), dict(file=file))


def test_the_fits_of_a_file_are_found_once(tmp_path, monkeypatch, state):
    calls = []
    monkeypatch.setattr(weights, 'fits', lambda sets, model, prefix: calls.append(model) or fits(sets, model, prefix))
    model = MODELS.build(small())
    load_weights(model, save(tmp_path, state))
    assert calls == [model]


def test_a_safetensors_file(tmp_path, state, monkeypatch):
    safetensors = pytest.importorskip('safetensors.torch')
    safetensors.save_file(state, tmp_path / 'model.safetensors')
    model = MODELS.build(small())
    load_weights(model, str(tmp_path / 'model.safetensors'))
    assert same(model.state_dict(), state)
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(ModuleNotFoundError, match='is a file of safetensors.+: pip install safetensors'):
        load_weights(model, str(tmp_path / 'model.safetensors'))


@pytest.mark.parametrize('cfg', [timm_classifier, timm_backbone], ids=['TimmClassifier', 'TIMMBackbone'])
@pytest.mark.parametrize('name', ['resnet18.pth', 'resnet18.safetensors'])
def test_a_file_of_timm(tmp_path, cfg, name):
    timm, safetensors = pytest.importorskip('timm'), pytest.importorskip('safetensors.torch')
    torch.manual_seed(0)
    reference, model = timm.create_model('resnet18', num_classes=5).eval(), MODELS.build(cfg()).eval()
    if name.endswith('.pth'):
        save(tmp_path, dict(state_dict=reference.state_dict(), epoch=3), name)
    else:
        safetensors.save_file(reference.state_dict(), tmp_path / name)
    load_weights(model, str(tmp_path / name))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        answer = model(images) if not hasattr(model, 'head') else model.head(model.extract_feat(images))
        torch.testing.assert_close(answer, reference(images))


def test_a_head_of_other_classes(tmp_path, state):
    """The same rule for each kind of network: not for a test, but for a teacher whose features do not ask for it."""
    pytest.importorskip('timm')
    for cfg, head in ((small(), 'head.fc'), (timm_classifier(), 'fc'), (timm_backbone(), 'head.fc')):
        torch.manual_seed(0)
        model = MODELS.build(cfg)
        file = save(tmp_path, MODELS.build({**cfg, 'head': dict(cfg['head'], num_classes=7)} if 'head' in cfg else
                                           {**cfg, 'num_classes': 7}).state_dict())
        with pytest.raises(ValueError, match='of another shape'):
            load_weights(model, file)
        assert load_teacher(model, file) == [f'{head}.weight', f'{head}.bias']
    timm_file = save(tmp_path, pytest.importorskip('timm').create_model('resnet18', num_classes=7).state_dict())
    assert load_teacher(MODELS.build(timm_backbone()), timm_file) == ['head.fc.weight', 'head.fc.bias']


def test_a_negative_variance_is_refused(tmp_path, state):
    state = {**state, 'backbone.bn1.running_var': -torch.ones_like(state['backbone.bn1.running_var'])}
    for load in (load_weights, load_teacher, starting_weights):
        with pytest.raises(ValueError, match=r'negative variances in 1 tensor \(backbone\.bn1\.running_var\)'):
            load(MODELS.build(small()), save(tmp_path, state))


@pytest.mark.parametrize(('tapped', 'taken'), [((), 0), (['backbone.layer4'], 0), (['decode_head.convs.0.bn'], 6)])
def test_a_head_that_the_file_does_not_fill_is_taken_where_it_is_tapped_and_else_not_at_all(
        tmp_path, lines, tapped, taken):
    cfg = dict(type='mmseg.EncoderDecoder', backbone=dict(type='mmseg.ResNet', depth=18, base_channels=8),
               decode_head=dict(type='mmseg.FCNHead', in_channels=64, channels=4, num_convs=1, num_classes=3,
                                concat_input=False, norm_cfg=dict(type='BN')))
    model = MODELS.build(cfg)
    before = snapshot(model.decode_head)
    cfg['decode_head']['num_classes'] = 7
    other = {name: torch.rand_like(value) if value.is_floating_point() else value + 1
             for name, value in MODELS.build(cfg).state_dict().items()}
    missing = load_teacher(model, save(tmp_path, other), tapped)
    assert sum(not torch.equal(value, before[name]) for name, value in model.decode_head.state_dict().items()) == taken
    assert len(missing) == (2 if taken else 7) and all(name.startswith('decode_head.') for name in missing)
    assert f'{len(missing)} of ' in lines[1] and 'of one layer or head' in lines[1]
    assert torch.equal(model.backbone.conv1.weight, other['backbone.conv1.weight'])


def test_weights_in_parts_are_refused_with_what_undoes_it(tmp_path):
    for change, part in (
            (lambda layer: prune.l1_unstructured(layer, 'weight', 0.5), 'weight_orig'),
            (torch.nn.utils.parametrizations.weight_norm, 'original0'), (torch.nn.utils.weight_norm, 'weight_g')):
        source = MODELS.build(small())
        change(source.backbone.conv1)
        for load in (load_weights, load_teacher, starting_weights):
            with pytest.raises(ValueError, match=f'{part}.* in parts, .*prune.remove or '):
                load(MODELS.build(small()), save(tmp_path, source.state_dict()))


def test_a_table_of_timm_for_another_window(tmp_path):
    timm = pytest.importorskip('timm')
    name, sizes = 'swin_tiny_patch4_window7_224', dict(num_classes=5, depths=(1, 1, 1, 1), embed_dim=12)
    source = timm.create_model(name, img_size=56, **sizes)
    model = MODELS.build(dict(type='mmpretrain.TimmClassifier', model_name=name, img_size=64, window_size=4, **sizes))
    load_weights(model, save(tmp_path, source.state_dict()))
    assert torch.equal(model.model.patch_embed.proj.weight, source.patch_embed.proj.weight)
    table, large = (net.layers[0].blocks[0].attn.relative_position_bias_table for net in (model.model, source))
    torch.testing.assert_close(table[24], large[84])  # the middle


@pytest.mark.parametrize(('old', 'new'), [(32, 64), (64, 32), (32, (32, 64)), ((32, 64), 32)])
def test_positions_of_timm_for_images_of_another_size(tmp_path, lines, old, new):
    timm = pytest.importorskip('timm')
    cfg = dict(type='mmpretrain.TimmClassifier', model_name='vit_small_patch14_reg4_dinov2', patch_size=8, depth=1,
               num_classes=5, embed_dim=12, num_heads=2)
    source, model = (MODELS.build(dict(cfg, img_size=size)) for size in (old, new))
    size, was = ([length // 8 for length in net.model.patch_embed.img_size] for net in (model, source))
    file = save(tmp_path, source.model.state_dict())
    if old == (32, 64):  # 32 patches are no square, and nothing tells what they are
        with pytest.raises(ValueError, match=r'pos_embed'):
            load_weights(model, file)
        return
    load_weights(model, file)
    truth = timm.layers.resample_abs_pos_embed(source.model.pos_embed, size, was, num_prefix_tokens=0)
    assert torch.equal(model.model.pos_embed, truth)
    assert same({**model.state_dict(), 'pos_embed': 0 * truth}, {**source.state_dict(), 'pos_embed': 0 * truth})
    assert '1 of them adapted to it (pos_embed)' in lines[0]


class OfTorchvision(BaseModel):
    def __init__(self, size):
        super().__init__()
        self.backbone = torchvision.models.VisionTransformer(
            size, 8, num_layers=1, num_heads=2, hidden_dim=12, mlp_dim=12, num_classes=5)
        torch.nn.init.normal_(self.backbone.encoder.pos_embedding)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.backbone(inputs)


def test_positions_of_torchvision_for_images_of_another_size(tmp_path, lines):
    source, model = OfTorchvision(32), OfTorchvision(64)
    load_weights(model, save(tmp_path, source.backbone.state_dict()))
    truth = torchvision.models.vision_transformer.interpolate_embeddings(64, 8, source.backbone.state_dict())
    assert same(model.backbone.state_dict(), truth)


def test_a_deeper_or_wider_teacher_is_refused(tmp_path, state):
    deeper = {**state, 'backbone.layer3.2.conv1.weight': torch.zeros(16, 16, 3, 3)}
    with pytest.raises(ValueError, match=r'1 unexpected \(backbone\.layer3\.2'):
        load_teacher(MODELS.build(small()), save(tmp_path, deeper))
    with pytest.raises(ValueError, match='does not fit the ImageClassifier'):
        load_teacher(MODELS.build(small(8)), save(tmp_path, state))


# ---------------------------------------------------------------------------------------------------------------------
# What mmpretrain adapts while it loads


def transformer(kind, size, **changes):
    backbone = dict(dict(
        type=f'mmpretrain.{kind}', img_size=size, patch_size=16,
        arch=dict(embed_dims=12, num_layers=1, num_heads=2, feedforward_channels=24)), **changes)
    return dict(type='mmpretrain.ImageClassifier', backbone=backbone)


def swin(size=64, window=4, **changes):
    arch = dict(embed_dims=8, depths=[1, 2], num_heads=[1, 2])
    return transformer(
        'SwinTransformer', size, arch=arch, patch_size=4, window_size=window, out_indices=(1, ), **changes)


def beit(size):
    return transformer('BEiTViT', size, use_abs_pos_emb=True, use_rel_pos_bias=False)


def as_version_1(state):
    """Before mmpretrain numbered the last norm, and when it still saved masks."""
    old = {name.replace('backbone.norm1.', 'backbone.norm.'): value for name, value in state.items()}
    return old | {'backbone.stages.1.blocks.1.attn.attn_mask': torch.zeros(4, 16, 16)}


@pytest.mark.parametrize('cfg, other, change', [
    (transformer('VisionTransformer', 64), transformer('VisionTransformer', (96, 64)), dict),
    (transformer('VisionTransformer', 64), transformer('VisionTransformer', 64, with_cls_token=False,
                                                       out_type='featmap'), dict),
    (transformer('DistilledVisionTransformer', 64), transformer('DistilledVisionTransformer', 96), dict),
    (transformer('DeiT3', 64), transformer('DeiT3', 96), dict),
    (beit(64), beit(96), dict), (swin(use_abs_pos_embed=True), swin(96, use_abs_pos_embed=True), dict),
    (swin(), swin(), as_version_1)],
    ids=['ViT', 'without class token', 'DeiT', 'DeiT 3', 'BEiT', 'Swin', 'Swin of version 1'])
def test_what_mmpretrain_loads_is_loaded_as_mmpretrain_loads_it(tmp_path, lines, cfg, other, change):
    torch.manual_seed(0)
    source, truth, teacher, model = (MODELS.build(c) for c in (cfg, other, other, other))
    for parameter in source.parameters():
        parameter.data.normal_()  # some begin at 0
    state, before = change(source.state_dict()), snapshot(truth)
    wrong = truth.load_state_dict({
        name: value for name, value in state.items() if name != 'backbone.cls_token' or name in before}, strict=False)
    assert not wrong.unexpected_keys and all('position_index' in name for name in wrong.missing_keys)
    if 'backbone.cls_token' not in before:
        state = {name: value for name, value in state.items() if name != 'backbone.cls_token'}
    file = save(tmp_path, dict(state_dict=state))
    load_weights(model, file)
    assert same(model.state_dict(), truth.state_dict())
    assert [load_teacher(teacher, file), same(teacher.state_dict(), truth.state_dict())] == [[], True]
    assert not same(before, truth.state_dict())
    assert 'of them adapted to it (backbone.' in lines[0]
    student = MODELS.build(other)
    assert {**student.state_dict(), **starting_weights(student, file)}.keys() == before.keys()


def mmseg_transformer(kind, **backbone):
    return dict(
        type='mmseg.EncoderDecoder', backbone=dict(type=f'mmseg.{kind}', **backbone),
        decode_head=dict(type='mmseg.FCNHead', in_channels=8, in_index=0, channels=4, num_convs=1, num_classes=3))


def mmseg_vit(size):
    return mmseg_transformer(
        'VisionTransformer', img_size=size, embed_dims=8, num_layers=1, num_heads=2, patch_size=16, out_indices=(0, ))


def mmseg_swin(window):
    return mmseg_transformer('SwinTransformer', pretrain_img_size=64, embed_dims=8, depths=(1, 2), num_heads=(1, 2),
                             strides=(4, 2), out_indices=(0, ), window_size=window)


@pytest.mark.parametrize('cfg, other', [
    (mmseg_vit(64), mmseg_vit((96, 32))), (mmseg_swin(4), mmseg_swin(7)), (mmseg_swin(7), mmseg_swin(4))])
def test_what_mmseg_resizes_where_it_initialises_is_resized_where_it_loads(tmp_path, lines, cfg, other):
    torch.manual_seed(0)
    source, model = MODELS.build(cfg), MODELS.build(other)
    for parameter in source.parameters():
        parameter.data.normal_()
    backbone = save(tmp_path, {  # mmseg would take an index of another size for weights
        name: value for name, value in source.backbone.state_dict().items() if value.is_floating_point()}, 'part.pth')
    truth = MODELS.build(dict(other['backbone'], init_cfg=dict(type='Pretrained', checkpoint=backbone)))
    truth.init_weights()
    load_weights(model, save(tmp_path, source.state_dict()))
    torch.testing.assert_close(model.backbone.state_dict(), truth.state_dict())
    assert 'of them adapted to it (backbone.' in lines[0]


@pytest.mark.parametrize('kind', ['SwinTransformer', 'BEiTViT'])
def test_tables_of_another_window_go_into_a_model_of_mmpretrain(tmp_path, kind):
    """The middle stays in the middle; scipy has no more what mmpretrain would resize them with."""
    def cfg(window):
        return swin(window=window) if kind == 'SwinTransformer' else transformer(kind, 16 * window)

    def tables(model):
        return {name: value for name, value in model.state_dict().items() if name.endswith('bias_table')}

    source, model = MODELS.build(cfg(4)), MODELS.build(cfg(6))
    for table in tables(source).values():
        rows = torch.arange(7.).repeat_interleave(7) - 3
        table[:49], table[49:] = rows[:, None], 9
    load_weights(model, save(tmp_path, source.state_dict()))
    assert tables(model)
    for table in tables(model).values():
        middle = table[:121].reshape(11, 11, -1)
        assert (table[121:] == 9).all() and middle[5].abs().max() < 1e-5
        assert (middle.diff(dim=0) > 0).all() and middle.diff(dim=1).abs().max() < 1e-5


def test_what_a_convolution_computes_of_its_weights_is_computed(tmp_path):
    def cfg(**conv):
        return dict(type='mmseg.EncoderDecoder',
                    backbone=dict(type='mmseg.ResNet', depth=18, base_channels=8, **conv),
                    decode_head=dict(type='mmseg.FCNHead', in_channels=64, channels=4, num_convs=1, num_classes=3))

    plain, model, truth = (MODELS.build(cfg(**conv)) for conv in ({}, *2 * [dict(conv_cfg=dict(type='ConvAWS'))]))
    truth.load_state_dict(plain.state_dict(), strict=False)
    load_weights(model, save(tmp_path, plain.state_dict()))
    assert same(model.state_dict(), truth.state_dict())
    torch.testing.assert_close(model.backbone.conv1.weight_beta.flatten(), plain.backbone.conv1.weight.mean((1, 2, 3)))


def test_what_mmpretrain_cannot_adapt_is_refused(tmp_path):
    state = MODELS.build(transformer('VisionTransformer', (96, 64))).state_dict()  # not to be told from its 25 tokens
    model = MODELS.build(transformer('VisionTransformer', 64))
    before = snapshot(model)
    for load in (load_weights, load_teacher):
        with pytest.raises(ValueError, match=r'1 of another shape \(backbone\.pos_embed \(1, 25, 12\) for'):
            load(model, save(tmp_path, state))
    assert same(model.state_dict(), before)


# ---------------------------------------------------------------------------------------------------------------------
# Weights to start a training from


def test_what_a_training_can_start_from(tmp_path, lines, state):
    model = MODELS.build(small(classes=7))
    given = starting_weights(model, save(tmp_path, dict(state_dict=state)))
    assert given.keys() == {name for name in state if name.startswith('backbone.')}
    assert all(given[name] is not None and torch.equal(given[name], state[name]) for name in given)
    assert lines[1].startswith('2 of ') and lines[1].endswith('stay as initialised: head.fc.weight, head.fc.bias.')

    first = {**state, 'backbone.conv1.weight': torch.zeros(4, 4, 3, 3)}  # for other channels
    assert len(starting_weights(MODELS.build(small()), save(tmp_path, first))) == len(state) - 1


@pytest.mark.parametrize('change', [
    {'weight': torch.zeros(5, 16)}, {'weight_orig': torch.zeros(5, 32), 'weight_mask': torch.zeros(5, 32)}, {}])
def test_no_layer_starts_from_half_of_it(tmp_path, lines, state, change):
    content = {name: value for name, value in state.items() if name != 'head.fc.weight'}
    content |= {f'head.fc.{name}': value for name, value in change.items()}
    given = starting_weights(MODELS.build(small()), save(tmp_path, content))
    assert given.keys() == {name for name in state if name.startswith('backbone.')}
    assert any(line.startswith('2 of ') and line.endswith('stay as initialised: head.fc.weight, head.fc.bias.')
               for line in lines)


def test_a_norm_in_a_head_may_start_without_its_statistics(tmp_path, state):
    model = MODELS.build(small())
    model.head.norm = torch.nn.BatchNorm1d(32)
    content = {name: value for name, value in model.state_dict().items() if 'head.norm.running' not in name}
    assert starting_weights(model, save(tmp_path, content)).keys() == content.keys()


def without(*parts):
    return lambda state: {name: value for name, value in state.items() if not name.startswith(parts)}


@pytest.mark.parametrize('content, what', [
    (lambda state: {name: value for name, value in state.items() if name.startswith('head.')}, '100 missing'),
    (without('backbone.layer1', 'backbone.layer2'), '45 missing'),
    (without('backbone.layer4.1.bn2.running_var'), r'1 missing \(backbone\.layer4\.1\.bn2\.running_var \(32,\)\)'),
    (without('backbone.bn1.', 'head.'), '4 missing'),
    (lambda state: MODELS.build(small(8)).state_dict(), 'of another shape'),
    (lambda state: {**state, 'backbone.layer9.0.weight': torch.zeros(1)}, r'1 unexpected \(backbone\.layer9\.0'),
    (lambda state: {**state, 'backbone.conv1.weight': torch.zeros(4, 3, 5, 5)}, '1 of another shape'),
    (lambda state: {**state, 'backbone.layer1.0.conv1.weight': torch.zeros(4, 3, 3, 3)}, '1 of another shape'),
    (lambda state: {'something.else': torch.zeros(3)}, 'missing'),
], ids=['head', 'half', 'but one', 'but a norm', 'wider', 'deeper', 'larger kernel', 'channels within', 'nothing'])
def test_what_a_training_cannot_start_from(tmp_path, state, content, what):
    """A backbone is filled whole, and by the file of that backbone."""
    with pytest.raises(ValueError, match=f'does not fit the ImageClassifier: .*{what}') as error:
        starting_weights(MODELS.build(small()), save(tmp_path, content(state)))
    assert '\n' not in str(error.value) and 'head.fc' not in str(error.value)


@pytest.mark.parametrize('beginning', ['backbone.', 'module.backbone.', 'net.', ''])
def test_what_a_refused_start_advises_takes_what_fits(tmp_path, state, beginning):
    file = save(tmp_path, dict(state_dict={
        name.replace('backbone.', beginning): value for name, value in state.items() if 'layer4.1.' not in name}))
    with pytest.raises(ValueError, match='10 missing .*give the backbone init_cfg=') as error:
        starting_weights(MODELS.build(small()), file)
    cfg = small()
    cfg['backbone']['init_cfg'] = eval(str(error.value).partition('init_cfg=')[2].removesuffix(' instead.'))
    model = MODELS.build(cfg)
    model.init_weights()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items()
               if name.startswith('backbone.') and 'layer4.1.' not in name)


def test_what_is_no_weight_may_be_absent_or_too_much(tmp_path):
    """Whole numbers, and the norm of an output that the one gives and the other does not."""
    several, last = dict(swin(), backbone=dict(swin()['backbone'], out_indices=(0, 1))), swin()
    for cfg, other in ((several, last), (last, several)):
        model, source = MODELS.build(cfg), MODELS.build(other).state_dict()
        indices = [name for name in source if name.endswith('relative_position_index')]
        for name in indices:
            del source[name]
        given = starting_weights(model, save(tmp_path, {**source, 'n_averaged': torch.tensor(3)}))
        absent = model.state_dict().keys() - given.keys()
        norms = {'backbone.norm0.weight', 'backbone.norm0.bias'} if cfg is several else set()
        assert indices and absent - set(indices) == norms


def hugging_face(monkeypatch, network):
    """A config of a network that answers as those of transformers do, which need not be installed."""
    transformers = types.ModuleType('transformers')
    transformers.AutoConfig = SimpleNamespace(from_pretrained=lambda name: None)
    transformers.AutoModelForImageClassification = SimpleNamespace(from_config=lambda config: network())
    monkeypatch.setitem(sys.modules, 'transformers', transformers)
    init = HuggingFaceClassifier.__init__
    # mmpretrain looked for the package when it was imported.
    monkeypatch.setattr(HuggingFaceClassifier, '__init__', getattr(init, '__wrapped__', init))
    return dict(type='mmpretrain.HuggingFaceClassifier', model_name='network')


def test_positions_of_hugging_face_for_images_of_another_size(tmp_path, monkeypatch):
    """The modules and tensors as transformers names them in its ViT."""
    class Network(torch.nn.Module):
        def __init__(self, size=64):
            super().__init__()
            patches = torch.nn.Module()
            patches.projection = torch.nn.Conv2d(3, 12, 8, 8)
            patches.image_size, patches.patch_size = (size, size), (8, 8)
            embeddings = torch.nn.Module()
            embeddings.patch_embeddings = patches
            embeddings.cls_token = torch.nn.Parameter(torch.randn(1, 1, 12))
            embeddings.position_embeddings = torch.nn.Parameter(torch.randn(1, 1 + (size // 8) ** 2, 12))
            self.vit = torch.nn.ModuleDict(dict(embeddings=embeddings))
            self.classifier = torch.nn.Linear(12, 5)

    reference, model = Network(32), MODELS.build(hugging_face(monkeypatch, Network))
    load_weights(model, save(tmp_path, reference.state_dict(), 'pytorch_model.bin'))
    old, new = (net.vit.embeddings.position_embeddings for net in (reference, model.model))
    grid = old[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    truth = torch.nn.functional.interpolate(grid, (8, 8), mode='bicubic').flatten(2).transpose(1, 2)
    torch.testing.assert_close(new, torch.cat([old[:, :1], truth], 1))


def test_a_file_of_hugging_face_with_a_stand_in_for_its_network(tmp_path, monkeypatch):
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.resnet = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
            self.classifier = torch.nn.Linear(4, 5)

    cfg = hugging_face(monkeypatch, Network)
    reference, model = Network(), MODELS.build(cfg)
    load_weights(model, save(tmp_path, reference.state_dict(), 'pytorch_model.bin'))
    assert same(model.model.state_dict(), reference.state_dict())
    bare = reference.resnet.state_dict()
    pooled = bare | {'pooler.dense.weight': torch.randn(4, 4), 'pooler.dense.bias': torch.randn(4)}  # of a ViTModel
    for content in (bare, pooled):
        assert load_teacher(MODELS.build(cfg), save(tmp_path, content)) == ['classifier.weight', 'classifier.bias']
