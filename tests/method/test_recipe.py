"""Every parameter of the student has in the distiller what it has without a teacher, whatever the recipe."""

import copy
import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import DefaultOptimWrapperConstructor, build_optim_wrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, init_default_scope
from small_models import build_distiller, of_each, wide_resnet
from torch import nn

from overhaul.files.parts import student_only, without_downloads
from overhaul.files.settings import read_config
from overhaul.method.connectors import ConvBNConnector
from overhaul.method.recipe import _as_keys_of_student, as_student
from overhaul.registry import MODELS

CONFIGS = Path(__file__).parents[2] / 'configs'
ADAMW = dict(type='AdamW', lr=1.0, weight_decay=0.05)
VIT = dict(
    _scope_='mmpretrain', type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer', arch=dict(embed_dims=8, num_layers=3, num_heads=2, feedforward_channels=16),
        img_size=32, patch_size=16),
    head=dict(type='VisionTransformerClsHead', num_classes=5, in_channels=8))
BEIT = dict(
    _scope_='mmseg', type='EncoderDecoder',
    backbone=dict(
        type='BEiT', img_size=(32, 32), patch_size=16, embed_dims=8, num_layers=3, num_heads=2, mlp_ratio=2,
        out_indices=(2,), qv_bias=True),
    decode_head=dict(type='FCNHead', in_channels=8, channels=4, num_convs=1, num_classes=3))
CONVNEXT = dict(
    _scope_='mmseg', type='EncoderDecoder',
    backbone=dict(
        type='mmpretrain.ConvNeXt', arch=dict(depths=[1, 1, 3, 1], channels=[4, 4, 8, 8]), out_indices=[3],
        gap_before_final_norm=False),
    decode_head=dict(type='FCNHead', in_channels=8, channels=4, num_convs=1, num_classes=3))
DISTILLER = {
    'wrn': {}, 'vit': dict(teacher=VIT, student=VIT, input_size=(32, 32), taps=[
        dict(teacher='backbone.layers.2', student='backbone.layers.2')]),
    'beit': dict(teacher=BEIT, student=BEIT, input_size=(32, 32), taps=[
        dict(teacher='backbone.layers.2', student='backbone.layers.2')]),
    'convnext': dict(teacher=CONVNEXT, student=CONVNEXT, input_size=(32, 32), taps=[
        dict(teacher='backbone.stages.3', student='backbone.stages.3')])}
STUDENTS = dict(wrn=wide_resnet(1), vit=VIT, beit=BEIT, convnext=CONVNEXT)


@pytest.fixture(scope='module')
def models():
    """By name: a student alone, and a distiller of the same student."""
    made = {}

    def models(name):
        if name not in made:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                made[name] = MODELS.build(copy.deepcopy(STUDENTS[name])), build_distiller(**DISTILLER[name])
        init_default_scope(STUDENTS[name]['_scope_'])
        return made[name]

    return models


def options(model, **cfg):
    """For each parameter, the options of its group: {name: {option: value}}."""
    cfg = ConfigDict(copy.deepcopy({'optimizer': ADAMW, **cfg}))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        groups = build_optim_wrapper(model, cfg).optimizer.param_groups
    return {
        names[id(parameter)]: {key: value for key, value in group.items() if key not in ('params', 'param_names')}
        for group in groups for parameter in group['params']}


def of_student(given):
    return {name.removeprefix('student.'): value for name, value in given.items() if name.startswith('student.')}


def of_connectors(given):
    return {name: value for name, value in given.items() if not name.startswith('student.')}


class ByFirstName(DefaultOptimWrapperConstructor):
    """As other packages have them: goes by how names begin, and by what the model is."""

    def add_params(self, params, module, **_):
        assert type(module).__name__ == 'ImageClassifier' and module.backbone.block1 is not None
        for name, parameter in module.named_parameters():
            first = name.partition('.')[0]
            params.append(dict(params=[parameter], lr=dict(backbone=0.1, head=2.0).get(first, 5.0), part=first))


OPTIM_WRAPPER_CONSTRUCTORS.register_module(module=ByFirstName)
LAYER_WISE = dict(num_layers=3, decay_rate=0.5, decay_type='layer_wise')
RECIPES = {
    'plain': ('wrn', {}),
    'fused': ('wrn', dict(optimizer=dict(ADAMW, fused=True))),
    'foreach': ('wrn', dict(optimizer=dict(ADAMW, foreach=True))),
    'norms and biases': ('wrn', dict(paramwise_cfg=dict(norm_decay_mult=0, bias_decay_mult=0, bias_lr_mult=2))),
    'flat': ('wrn', dict(paramwise_cfg=dict(flat_decay_mult=0, bypass_duplicate=True))),
    'by name': ('wrn', dict(paramwise_cfg=dict(custom_keys={
        'backbone.block1': dict(lr_mult=0.1), '.bn': dict(decay_mult=0), 'head': dict(lr_mult=10, betas=(0.5, 0.9))}))),
    'of another package': ('wrn', dict(constructor='ByFirstName', paramwise_cfg=dict(any=1))),
    'by class': ('wrn', dict(constructor=ByFirstName, paramwise_cfg=dict(any=1))),
    'layers of mmpretrain': ('vit', dict(
        constructor='LearningRateDecayOptimWrapperConstructor', paramwise_cfg=dict(
            layer_decay_rate=0.5, norm_decay_mult=0, custom_keys={'.cls_token': dict(decay_mult=0)}))),
    'layers of mmseg': ('beit', dict(constructor='LearningRateDecayOptimizerConstructor', paramwise_cfg=LAYER_WISE)),
    'layers of mmseg, as before': ('beit', dict(
        constructor='LayerDecayOptimizerConstructor', paramwise_cfg=dict(num_layers=3, layer_decay_rate=0.5))),
    'layers of a ConvNeXt': ('convnext', dict(
        constructor='LearningRateDecayOptimizerConstructor', paramwise_cfg=LAYER_WISE)),
    'stages of a ConvNeXt': ('convnext', dict(
        constructor='LearningRateDecayOptimizerConstructor', paramwise_cfg=dict(LAYER_WISE, decay_type='stage_wise'))),
    'forced': ('beit', dict(
        constructor='ForceDefaultOptimWrapperConstructor', paramwise_cfg=dict(
            force_default_settings=True, norm_decay_mult=0, custom_keys={'backbone': dict(lr_mult=0.1)}))),
}


@pytest.mark.parametrize('name', RECIPES)
def test_the_student_gets_what_it_gets_without_a_teacher(name, models):
    (alone, distiller), recipe = models(RECIPES[name][0]), RECIPES[name][1]
    expected, given = options(alone, **recipe), options(distiller, **recipe)
    assert of_student(given) == expected and expected.keys() == dict(alone.named_parameters()).keys()
    assert of_connectors(given).keys() == {f'connectors.{path}' for path, _ in distiller.connectors.named_parameters()}
    if name not in ('plain', 'fused', 'foreach'):
        assert len({str(value) for value in expected.values()}) > 1  # the recipe does make a difference


RESNET = dict(
    _scope_='mmpretrain', type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, base_channels=4, stem_channels=4), neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=5, in_channels=32))


@pytest.mark.parametrize('recipe, cfg', [
    (dict(constructor='LearningRateDecayOptimWrapperConstructor', paramwise_cfg=dict(layer_decay_rate=0.5)), RESNET),
    (dict(constructor='LearningRateDecayOptimWrapperConstructor', paramwise_cfg=dict(layer_decay_rate=0.5)),
     wide_resnet(1)),
    (dict(constructor='mmseg.LearningRateDecayOptimizerConstructor', paramwise_cfg=LAYER_WISE), RESNET)])
def test_a_backbone_whose_layers_no_constructor_knows_is_refused_in_words(recipe, cfg):
    init_default_scope('mmpretrain')
    model = MODELS.build(copy.deepcopy(cfg))
    distiller = build_distiller(
        teacher=cfg, student=cfg, taps='auto', input_size=(32, 32)) if cfg is RESNET else build_distiller()
    for each in (model, distiller):
        with pytest.raises(ValueError, match='does not know which parameter of a .*ResNet.* leave the constructor out'):
            options(each, **recipe)
    by_name = options(model, paramwise_cfg=dict(custom_keys={'backbone.layer1': dict(lr_mult=0.25)}))
    assert cfg is not RESNET or {value['lr'] for value in by_name.values()} == {1.0, 0.25}


@pytest.mark.parametrize(('kind', 'paramwise', 'what'), [
    ('Learning', dict(decay_rate=0.5, decay_type='layer_wise'), 'TypeError'),
    ('Learning', dict(num_layers=3, decay_type='layer_wise'), 'TypeError'),
    ('Learning', dict(num_layers=3, decay_rate=0.5, decay_type='layers'), 'UnboundLocalError'),
    ('Layer', dict(num_layers=3, decay_rate=0.5), 'TypeError')])
def test_what_a_layer_decay_lacks_is_told(models, kind, paramwise, what):
    kind += 'DecayOptimizerConstructor' if kind == 'Layer' else 'RateDecayOptimizerConstructor'
    for model in models('beit'):
        with pytest.raises(ValueError, match=rf'{kind} .* fails with paramwise_cfg=.*{what}.* need num_layers'):
            options(model, constructor=kind, paramwise_cfg=paramwise)


@pytest.mark.parametrize('name', ['layers of mmpretrain', 'layers of mmseg', 'layers of a ConvNeXt'])
def test_a_connector_learns_at_the_rate_of_a_head_where_layers_differ(name, models):
    (_, distiller), recipe = models(RECIPES[name][0]), RECIPES[name][1]
    assert {value['lr'] for value in of_connectors(options(distiller, **recipe)).values()} == {1.0}
    assert min(value['lr'] for value in options(distiller, **recipe).values()) < 0.2


def test_connectors_have_a_key_of_their_own_and_what_holds_for_all_modules_holds_for_them(models):
    _, distiller = models('wrn')
    given = of_connectors(options(distiller, paramwise_cfg=dict(
        norm_decay_mult=0, custom_keys={'connectors.1': dict(lr_mult=10), 'backbone': dict(lr_mult=0.1)})))
    assert {name: value['lr'] for name, value in given.items()} == {
        name: 10.0 if name.startswith('connectors.1') else 1.0 for name in given}
    assert {name for name, value in given.items() if value['weight_decay'] == 0} == {
        f'connectors.{index}.{name}' for index in (0, 2) for name in ('bn.weight', 'bn.bias')}


def test_names_that_begin_with_student_go_on_to_mean_it(models):
    _, distiller = models('wrn')
    by_path = options(distiller, paramwise_cfg=dict(custom_keys={
        'student.backbone': dict(lr_mult=0.1), 'student.head.': dict(lr_mult=3)}))
    assert {value['lr'] for name, value in by_path.items() if 'backbone' in name} == {0.1}
    assert {value['lr'] for name, value in by_path.items() if 'head' in name} == {3.0}
    for key in ('student', 'student.'):
        whole = options(distiller, paramwise_cfg=dict(custom_keys={
            key: dict(lr_mult=0.1), 'backbone.bn1': dict(lr_mult=7), 'head': dict(lr_mult=5)}))
        assert whole['student.backbone.bn1.weight']['lr'] == 7
        assert {value['lr'] for name, value in whole.items() if 'backbone.block' in name} == {0.1}
        assert {value['lr'] for value in of_connectors(whole).values()} == {1.0}


@pytest.mark.parametrize('keys', [['backbone'], {'backbone': 0.1}])
def test_keys_that_are_no_dicts_by_name_are_refused(keys, models):
    with pytest.raises(ValueError, match=r'custom_keys is .*Give a dict by the name of each part'):
        options(models('wrn')[1], paramwise_cfg=dict(custom_keys=keys))


@pytest.mark.parametrize('key, near', [
    ('student.backbone.blok1', 'student.backbone.block1'), ('student.hed', 'student.head'),
    ('connectors.7', 'connectors.0'), ('margins', '')])
def test_a_key_that_begins_as_a_part_of_the_distiller_and_means_no_parameter_is_refused(models, key, near):
    with pytest.raises(ValueError, match=rf'"{key}", which is in the name of no parameter\. Nearest: .*{near}'):
        options(models('wrn')[1], paramwise_cfg=dict(custom_keys={key: dict(lr_mult=3)}))


def test_a_name_of_the_student_reaches_no_parameter_whose_name_holds_it(models):
    _, distiller = models('wrn')
    distiller = copy.deepcopy(distiller)
    distiller.student.aux_head = copy.deepcopy(distiller.student.head)
    keys = {'student.head': dict(lr_mult=3)}
    with pytest.raises(ValueError, match=r'find it in aux_head\.fc\.weight too.*"aux_head\.fc": dict\(lr_mult=1\)'):
        options(distiller, paramwise_cfg=dict(bias_lr_mult=2, custom_keys=keys))
    for paramwise in (
            dict(custom_keys=keys), dict(bias_lr_mult=2, custom_keys={**keys, 'aux_head.fc': dict(lr_mult=1)})):
        rates = options(distiller, paramwise_cfg=paramwise)
        assert {name: value['lr'] for name, value in rates.items() if 'head' in name} == {
            f'student.{head}.fc.{part}': rate for head, rate in (('head', 3.0), ('aux_head', 1.0))
            for part in ('weight', 'bias')}


def test_groups_are_in_the_order_of_the_parameters_so_that_older_checkpoints_fit(models):
    _, distiller = models('wrn')
    for paramwise in (None, dict(norm_decay_mult=0)):
        wrapper = build_optim_wrapper(distiller, ConfigDict(optimizer=ADAMW, paramwise_cfg=paramwise))
        groups = wrapper.optimizer.param_groups
        assert len(groups) == (1 if paramwise is None else len(list(distiller.parameters())))
        flat = [parameter for group in groups for parameter in group['params']]
        assert all(a is b for a, b in zip(flat, distiller.parameters(), strict=True))


class OddStudent(nn.Module):
    """Has a parameter of its own, and a part that is called as one of the distiller is."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.connectors = nn.Linear(2, 2)


class OddDistiller(nn.Module):
    def __init__(self):
        super().__init__()
        self.student, self.connectors = OddStudent(), nn.ModuleList([ConvBNConnector(2, 3)])


def test_a_student_may_have_a_part_of_the_same_name():
    distiller = OddDistiller()
    names = [name for name, _ in as_student(distiller).named_parameters()]
    assert names[:3] == ['scale', 'connectors.weight', 'connectors.bias']
    assert names[3:] and all(name.startswith('distiller.connectors.0.') for name in names[3:])
    assert OrderedDict(distiller.student.named_children()).keys() >= {'connectors'}
    assert len(list(distiller.student.parameters())) == 3  # the student itself stays as it was


def test_a_model_that_is_no_distiller_is_left_to_its_constructor():
    model = nn.Sequential(OrderedDict(backbone=nn.Linear(2, 2), student=nn.Linear(2, 2)))
    given = options(model, paramwise_cfg=dict(custom_keys={'student.weight': dict(lr_mult=3)}))
    assert {name for name, value in given.items() if value['lr'] == 3} == {'student.weight'}


@pytest.mark.parametrize('path', of_each(sorted(CONFIGS.glob('*.py'))), ids=lambda path: path.stem)
def test_in_every_config_that_ships_the_student_gets_what_it_gets_without_a_teacher(path):
    cfg = read_config(path)
    if 'student' not in cfg.model:
        pytest.skip('trains one network')
    init_default_scope(cfg.default_scope)
    without_downloads(cfg.model)
    # Of the teacher the optimizer sees nothing, so it may be as small as the student, and so may the image.
    taps = cfg.model.taps if cfg.model.taps == 'auto' else [dict(tap, teacher=tap.student) for tap in cfg.model.taps]
    cfg.model = dict(
        cfg.model, teacher=cfg.model.student, teacher_checkpoint=None, student_checkpoint=None, taps=taps,
        input_size=cfg.model.input_size if 'ssd300' in path.stem else (64, 64))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        alone, distiller = MODELS.build(student_only(cfg)), MODELS.build(cfg.model)
    expected, given = options(alone, **cfg.optim_wrapper), options(distiller, **cfg.optim_wrapper)
    assert of_student(given) == expected
    connectors = {name: value['lr'] for name, value in given.items() if name.startswith('connectors.')}
    base = cfg.optim_wrapper.optimizer.lr
    tenfold = path.stem.startswith('voc') and cfg.default_scope == 'mmseg'
    assert set(connectors.values()) == {10 * base if tenfold else base}


def test_a_name_that_begins_with_student_means_no_other_that_has_it_within():
    distiller = nn.Module()
    distiller.student = nn.ModuleDict(dict(
        neck=nn.Linear(1, 1), decode_head=nn.ModuleDict(dict(bottleneck=nn.Linear(1, 1))), backbone=nn.Linear(1, 1)))
    low, high = dict(lr_mult=0.1), dict(lr_mult=7)
    assert _as_keys_of_student(dict(custom_keys={'student.neck': low}), distiller) == {
        'neck.weight': low, 'neck.bias': low, 'decode_head.bottleneck.weight': {}, 'decode_head.bottleneck.bias': {}}
    # The longest key decides, as in mmengine.
    keys = {'student.backbone': low, 'backbone': high, 'student.backbone.weight': high}
    assert _as_keys_of_student(dict(custom_keys=keys), distiller) == {
        'backbone': high, 'backbone.weight': high, 'backbone.bias': low}
