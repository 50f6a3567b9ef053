"""Files that an init_cfg names: what comes of them, whatever code reads them."""

import itertools

import pytest
import torch
from mmengine.runner import Runner
from small_models import resnet

from overhaul.engine.starting_weights import watch_initialisation
from overhaul.files.initial import initialise
from overhaul.registry import MODELS

SWIN = dict(type='mmseg.SwinTransformer', embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1])
numbers = itertools.count()


def classifier(backbone):
    return dict(_scope_='mmpretrain', type='ImageClassifier', backbone=backbone)


def file_of(tmp_path, cfg):
    model = MODELS.build(cfg)
    state = {name: torch.rand(value.shape) if value.is_floating_point() else value
             for name, value in model.state_dict().items()}
    path = tmp_path / f'{next(numbers)}.pth'
    torch.save(state, path)
    return str(path), state


def beginning_with(cfg, file, **changes):
    return {**cfg, 'backbone': {**cfg['backbone'], 'init_cfg': dict(type='Pretrained', checkpoint=file, **changes)}}


def test_a_whole_model_for_a_backbone_is_refused_with_the_prefix_that_loads_it(tmp_path):
    file, state = file_of(tmp_path, resnet())
    model = MODELS.build(beginning_with(resnet(), file))
    with pytest.raises(ValueError, match=rf'"{file}", as the init_cfg of "backbone" says, .* only 0 of ') as error:
        initialise(model, model.init_weights)
    assert str(error.value).endswith('give the init_cfg prefix="backbone.".')
    model = MODELS.build(beginning_with(resnet(), file, prefix='backbone.'))
    initialise(model, model.init_weights)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items() if 'backbone' in name)


@pytest.mark.parametrize(('cfg', 'other', 'message'), [
    (resnet(), dict(depth=50), r'\d+ of its layers have another shape there \(layer1.0.conv1, .*of another network'),
    (resnet(), dict(base_channels=32), 'only .* came from there. It is the file of another network'),
    (classifier(SWIN), dict(SWIN, embed_dims=16), 'only .* file of another network'),
    (classifier(SWIN), resnet()['backbone'], 'only 0 .* file of another network'),
], ids=['deeper', 'wider', 'own code', 'own code, another kind'])
def test_the_file_of_another_network_is_refused(tmp_path, cfg, other, message):
    file, _ = file_of(tmp_path, classifier({**cfg['backbone'], **other} if 'type' not in other else other))
    changes = dict(prefix='backbone') if cfg['backbone'] is not SWIN else {}
    model = MODELS.build(beginning_with(cfg, file, **changes))
    with pytest.raises(ValueError, match=message):
        initialise(model, model.init_weights)


def test_backbones_with_code_of_their_own_go_on(tmp_path):
    file, state = file_of(tmp_path, classifier(SWIN))
    model = MODELS.build(beginning_with(classifier(SWIN), file))
    initialise(model, model.init_weights)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_prefix_that_nothing_has_is_refused(tmp_path):
    file, _ = file_of(tmp_path, resnet())
    model = MODELS.build(beginning_with(resnet(), file, prefix='backbon'))
    with pytest.raises(ValueError, match=r'No name in ".*" begins with "backbon\.". Nearest: backbone'):
        initialise(model, model.init_weights)


def test_more_than_half_of_a_backbone_is_a_beginning(tmp_path):
    file, state = file_of(tmp_path, resnet())
    state = {name: value for name, value in state.items() if 'layer4' not in name}
    torch.save({**state, 'net.version': 'of no tensor', 'nothing': torch.zeros(0), 'count': torch.ones(2).int()}, file)
    model = MODELS.build(beginning_with(resnet(), file, prefix='backbone.'))
    initialise(model, model.init_weights)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items() if 'backbone' in name)
    model.init_weights()  # a second time is none
    initialise(model, model.init_weights)


def test_teacher_student_and_student_alone_are_asked(tmp_path):
    file, _ = file_of(tmp_path, resnet())
    wrong = beginning_with(resnet(), file)
    taps = [dict(teacher='backbone.layer4', student='backbone.layer4')]
    cfg = dict(type='overhaul.OverhaulDistiller', taps=taps, input_size=(64, 64), alpha=1.)
    with pytest.raises(ValueError, match='init_cfg of "backbone" says'), pytest.warns(UserWarning, match='nothing to'):
        MODELS.build(dict(cfg, teacher=wrong, student=resnet()))
    distiller = MODELS.build(dict(cfg, teacher=resnet(), student=wrong, teacher_checkpoint=file))
    with pytest.raises(ValueError, match='init_cfg of "student.backbone" says'):
        distiller.init_weights()
    runner = Runner(model=MODELS.build(wrong), work_dir=str(tmp_path / 'run'), experiment_name='initial')
    watch_initialisation(runner)
    with pytest.raises(ValueError, match='init_cfg of "backbone" says'):
        runner._init_model_weights()
