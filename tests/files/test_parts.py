"""The student and the teacher of a config, as models of their own."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

from overhaul.files.parts import model_of, plain_model, student_only, teacher_only, whole_model, without_downloads
from overhaul.files.settings import read_config
from overhaul.registry import MODELS

DIGITS = str(Path(__file__).parents[2] / 'configs/digits_wrn16_2_wrn10_1.py')


@pytest.mark.parametrize(('part', 'depth', 'channels'), [(student_only, 10, 64), (teacher_only, 16, 128)])
def test_one_network_of_a_distillation_is_a_config_of_its_own(part, depth, channels):
    cfg = read_config(DIGITS)
    model = part(cfg)
    assert (model.backbone.depth, model.head.in_channels) == (depth, channels)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        assert type(MODELS.build(model)).__name__ == 'ImageClassifier'


def test_the_one_network_takes_the_common_preprocessor_unless_it_has_its_own():
    common, own = dict(type='Common'), dict(type='Own')
    cfg = Config(dict(model=dict(
        type='overhaul.OverhaulDistiller', data_preprocessor=common, student=dict(type='S'),
        teacher=dict(type='T', data_preprocessor=own))))
    assert student_only(cfg).data_preprocessor == common
    assert teacher_only(cfg).data_preprocessor == own


def test_a_teacher_without_a_preprocessor_has_the_students_as_in_the_distiller():
    own = dict(type='Own')
    cfg = Config(dict(data_preprocessor=dict(type='Beside'), model=dict(
        type='overhaul.OverhaulDistiller', student=dict(type='S', data_preprocessor=own), teacher=dict(type='T'))))
    assert teacher_only(cfg).data_preprocessor == own
    assert plain_model(cfg)['data_preprocessor'] == own
    assert whole_model(cfg)['data_preprocessor'] == dict(type='Beside')


def test_a_config_that_is_no_distillation_has_no_part():
    cfg = Config(dict(model=dict(type='mmpretrain.ImageClassifier')))
    with pytest.raises(ValueError, match='is of type mmpretrain.ImageClassifier, which has no student'):
        student_only(cfg)
    with pytest.raises(ValueError, match='which has no teacher. This is for configs of an overhaul.Overhaul'):
        teacher_only(cfg)


def test_a_model_may_be_the_file_that_trains_it(tmp_path):
    model = dict(type='ResNet', depth=18)
    assert model_of(model) is model
    file = tmp_path / 'some.py'
    file.write_text(f'model = {model}\ndata_preprocessor = dict(mean=[1])\ndefault_scope = "mmseg"\n')
    assert model_of(str(file)) == dict(model, _scope_='mmseg', data_preprocessor=dict(mean=[1]))
    file.write_text('steps = 3\n')
    with pytest.raises(ValueError, match='has no model'):
        model_of(str(file))


def test_a_model_begins_with_random_weights_whatever_was_to_be_loaded():
    pretrained, normal = dict(type='Pretrained', checkpoint='nowhere.pth'), dict(type='Normal', layer='Conv2d')
    model = dict(
        pretrained='nowhere.pth', data_preprocessor=None, backbone=dict(depth=18, init_cfg=pretrained, pretrained=True),
        head=dict(init_cfg=[pretrained, normal, pretrained]))
    without_downloads(model)
    assert model == dict(
        pretrained=None, data_preprocessor=None, backbone=dict(depth=18, pretrained=False),
        head=dict(init_cfg=[normal]))
