import mmcv
import mmengine
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.dataset import default_collate
from mmengine.hooks import CheckpointHook
from mmengine.model import PretrainedInit
from mmengine.registry import DefaultScope
from mmpretrain.engine import EMAHook
from torch import nn

import overhaul
from overhaul import ConvBNConnector, registry
from overhaul.registry import MODELS, build, is_type, nearest, short_name, type_name


def test_nearest_names_come_best_first():
    assert nearest('bn2', ['conv1', 'bn1', 'bn12']) == 'bn12, bn1'
    assert nearest('xyz', ['b', 'a']) == 'a, b'
    assert nearest('xyz', [f'{i:02d}' for i in range(99)]).split(', ') == [f'{i:02d}' for i in range(20)]


def test_build_hands_arguments_on():
    connector = build(dict(type='ConvBNConnector'), 'connector', scope='overhaul',
                      student_channels=2, teacher_channels=3)
    assert connector(torch.rand(1, 2, 4, 4)).shape == (1, 3, 4, 4)


@pytest.mark.parametrize('default_scope', ['mmpretrain', 'mmseg', 'mmengine'])
def test_a_type_without_prefix_is_looked_up_in_the_given_scope(default_scope):
    with DefaultScope.overwrite_default_scope(default_scope):
        for cfg in (dict(type='ConvBNConnector'), dict(type='overhaul.ConvBNConnector')):
            connector = build(cfg, 'connector', scope='overhaul', student_channels=2, teacher_channels=3)
            assert type(connector) is ConvBNConnector
            assert list(cfg) == ['type']  # the config is left as it was


def test_the_scope_of_the_config_file_decides_where_none_is_given():
    from mmpretrain.models import ResNet as Classified
    from mmseg.models import ResNet as Segmented
    for scope, expected in (('mmpretrain', Classified), ('mmseg', Segmented)):
        with DefaultScope.overwrite_default_scope(scope):
            assert type(build(dict(type='ResNet', depth=18), 'student')) is expected


def test_an_unknown_type_deep_inside_is_the_one_that_is_named():
    student = dict(
        _scope_='mmpretrain', type='ImageClassifier', backbone=dict(type='overhaul.WideResnet', depth=10))
    with pytest.raises(ValueError, match='The student asks for the type "overhaul.WideResnet".*overhaul.WideResNet'):
        build(student, 'student')


@pytest.mark.parametrize('cfg, expected', [
    (dict(type='nowhere.PartialL2Loss'), 'asks for the type "nowhere.PartialL2Loss".*overhaul.PartialL2Loss'),
    (dict(type='PartialL2'), 'The loss asks for the type "PartialL2", which no package has registered. '
                             'Nearest: overhaul.PartialL2Loss'),
    (dict(type='mmpretrain.WideResNet'), 'asks for the type "mmpretrain.WideResNet".*Nearest: overhaul.WideResNet'),
    (dict(type='PartialL2Loss', wait=1), '^The loss gives PartialL2Loss an unknown key "wait". '
                                         'Nearest: loss_weight.$'),
    (dict(loss_weight=1), "^The loss has a part without a type: {.*'loss_weight': 1.*}"),
    (dict(type='overhaul.WideResNet', widen_factor=1), "^The loss gives WideResNet no 'depth', which"),
    (dict(type='overhaul.WideResNet', deep=10, depth=10), 'WideResNet an unknown key "deep". Nearest: depth.'),
])
def test_mistakes_are_named(cfg, expected):
    with pytest.raises(ValueError, match=expected):
        build(cfg, 'loss', scope='overhaul')


def test_arguments_that_are_not_the_users_are_no_advice():
    with pytest.raises(ValueError, match='unknown key "channels". It takes none.'):
        build(dict(type='ConvBNConnector', channels=1), 'connector', scope='overhaul',
              student_channels=2, teacher_channels=3)


@pytest.fixture
def register():
    classes = []

    def register(cls):
        classes.append(cls)
        return MODELS.register_module(module=cls)

    yield register
    for cls in classes:
        del MODELS._module_dict[cls.__name__]


def test_keys_of_the_base_are_accepted_too(register):
    class TestBase(nn.Module):
        def __init__(self, base_key=0):
            super().__init__()

    class TestChild(TestBase):
        def __init__(self, child_key=0, **kwargs):
            super().__init__(**kwargs)

    register(TestChild)
    assert isinstance(build(dict(type='TestChild', base_key=1), 'model', scope='overhaul'), TestChild)
    with pytest.raises(ValueError, match='^The model gives TestChild an unknown key "base_kez". Nearest: base_key'):
        build(dict(type='TestChild', base_kez=1), 'model', scope='overhaul')


@pytest.mark.parametrize('mistake', [lambda: nn.ReLU(slope=1), lambda: {}['key']])
def test_a_bug_in_a_component_is_no_mistake_of_the_config(register, mistake):
    class TestBuggy(nn.Module):
        def __init__(self):
            super().__init__()
            mistake()

    register(TestBuggy)
    with pytest.raises((TypeError, KeyError)):
        build(dict(type='TestBuggy'), 'model', scope='overhaul')


@pytest.mark.parametrize(('asked', 'name'), [
    ('ResNet', 'ResNet'),
    ('mmpretrain.ResNet', 'mmpretrain.ResNet'),
    ('mmpretrain.models.backbones.ResNet', 'mmpretrain.ResNet'),
    ('mmengine.hooks.CheckpointHook', 'mmengine.CheckpointHook'),
    ('torch.optim.SGD', 'torch.optim.sgd.SGD'),
    ('torch.optim.NoSuch', 'torch.optim.NoSuch'),
    ('torch.nn.functional', 'torch.nn.functional'),  # a module, and no type
    (CheckpointHook, 'mmengine.CheckpointHook'),
    (PretrainedInit, 'mmengine.Pretrained'),  # registered under another name than its own
    (EMAHook, 'mmpretrain.EMAHook'),
    (mmcv.transforms.Resize, 'mmengine.Resize'),
    (default_collate, 'mmengine.default_collate'),
    (overhaul.CalibrateHook, 'overhaul.CalibrateHook'),
    (overhaul.OverhaulDistiller, 'overhaul.OverhaulDistiller'),
    (LazyObject('overhaul', 'CalibrateHook'), 'overhaul.CalibrateHook'),
    (LazyAttr('ResNet', LazyObject('mmpretrain.models')), 'mmpretrain.ResNet'),
    (nn.GELU, 'torch.nn.modules.activation.GELU'),
    (None, None),
    (3, None),
])
def test_a_type_has_one_name_however_a_config_asks_for_it(asked, name):
    assert type_name(dict(type=asked)) == name
    assert type_name(ConfigDict(type=asked)) == name


@pytest.mark.parametrize(('name', 'short'), [
    ('mmpretrain.ResNet', 'ResNet'), ('mmengine.Resize', 'Resize'), ('mmseg.LoadAnnotations', 'mmseg.LoadAnnotations'),
    ('mmengine.EMAHook', 'mmengine.EMAHook'),  # of which mmpretrain has its own
    ('EMAHook', 'EMAHook'), ('torch.optim.sgd.SGD', 'torch.optim.sgd.SGD')])
def test_a_name_is_short_where_the_scope_finds_the_same(name, short):
    assert short_name(name, 'mmpretrain') == short


def test_what_asks_for_nothing_has_no_type():
    assert type_name({}) is None
    assert not any(is_type(part, 'mmengine.EMAHook') for part in (None, {}, [], 'mmengine.EMAHook', dict(type=None)))


@pytest.mark.parametrize(('asked', 'expected'), [
    ('EMAHook', True), ('mmengine.EMAHook', True), ('mmengine.hooks.EMAHook', True), (mmengine.hooks.EMAHook, True),
    ('mmengine.IterTimerHook', False), ('mmpretrain.EMAHook', False), (EMAHook, False),
])
def test_a_type_is_known_by_its_package_too(asked, expected):
    assert is_type(dict(type=asked), 'mmengine.EMAHook') == expected
    assert is_type(dict(type=asked), 'overhaul.CalibrateHook', 'mmengine.EMAHook') == expected


@pytest.mark.parametrize(
    'asked', [CheckpointHook, PretrainedInit, EMAHook, overhaul.WideResNet, nn.GELU, default_collate])
def test_a_registry_finds_the_class_under_its_name(asked):
    registries = [value for value in vars(mmengine.registry).values() if isinstance(value, mmengine.registry.Registry)]
    assert any(each.get(type_name(dict(type=asked))) is asked for each in registries)


def test_a_type_of_a_package_that_an_extra_brings_is_told_with_it(monkeypatch):
    monkeypatch.setitem(registry._EXTRAS, 'poses', ('mmpose', ))
    with pytest.raises(ValueError, match='type "mmpose.Estimator" of mmpose, which is not installed here: pip install '
                                         '"overhaul.poses." brings mmpose'):
        build(dict(type='mmpose.Estimator'), 'student')
