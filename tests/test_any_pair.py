"""Teachers and students from config files, with other sizes and other normalisation than each other."""

import pytest
import torch
from small_models import batch, build_distiller, save_teacher, wide_resnet
from torch.nn import functional

from overhaul.method.losses import partial_l2
from overhaul.registry import MODELS


@pytest.fixture(scope='module')
def teacher_file(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp('teacher'), wide_resnet(2))


@pytest.mark.parametrize(('teacher_tap', 'student_tap', 'resize'), [
    ('backbone.block3.0.bn1', 'backbone.bn1', lambda feature: functional.avg_pool2d(feature, 2)),
    ('backbone.bn1', 'backbone.block3.0.bn1', lambda feature: functional.interpolate(
        feature, scale_factor=2, mode='bilinear')),
    ('backbone.bn1', 'backbone.bn1', lambda feature: feature),
], ids=['larger teacher', 'smaller teacher', 'equal'])
def test_sizes_that_differ_are_matched_where_asked(teacher_file, teacher_tap, student_tap, resize):
    model = build_distiller(teacher_checkpoint=teacher_file, match_sizes=True, taps=[
        dict(teacher=teacher_tap, student=student_tap, loss_weight=3)])
    images, samples = batch()
    with torch.no_grad():
        feature, = model.teacher_features(images)
        model.student_taps.start(model.student)
        model.student(images)
        expected = 3e-3 * partial_l2(
            model.connectors[0](model.student_taps.take()[0]), resize(model.margins[0](feature)))
        loss = model(images, samples, mode='loss')[model.loss_names[0]]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_teacher_and_student_from_config_files(tmp_path):
    """One of a package, and one of the user's own project, which inherits from the package."""
    own = tmp_path / 'my_resnet.py'
    own.write_text("_base_ = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'\nmodel = dict(head=dict(num_classes=7))\n")
    packaged = 'mmpretrain::resnet/resnet34_8xb16_cifar10.py'
    with pytest.warns(UserWarning, match='no teacher_checkpoint'):
        model = MODELS.build(dict(
            type='overhaul.OverhaulDistiller', teacher=packaged, student=str(own), taps='auto', input_size=(32, 32)))
    assert model.teacher.backbone.depth == 34 and model.teacher.head.num_classes == 10
    assert model.student.backbone.depth == 18 and model.student.head.num_classes == 7
    assert [tap.path for tap in model.teacher_taps] == [
        'backbone.layer1.2.relu:input', 'backbone.layer2.3.relu:input', 'backbone.layer3.5.relu:input',
        'backbone.layer4.2.relu:input']
    # Normalised as in CIFAR-10, for both.
    assert model.student.data_preprocessor.mean.flatten().tolist() == pytest.approx([125.307, 122.961, 113.8575])
    assert model.renormalize is None


def test_a_teacher_that_normalises_otherwise_sees_what_it_would_see_alone(teacher_file):
    def preprocessor(**changes):
        return dict(dict(type='mmpretrain.ClsDataPreprocessor', mean=[10.0, 20, 30], std=[50.0, 60, 70]), **changes)

    model = build_distiller(
        teacher=dict(wide_resnet(2), data_preprocessor=preprocessor(mean=[100.0, 120, 140], std=[55.0] * 3,
                                                                    to_rgb=True)),
        student=dict(wide_resnet(1), data_preprocessor=preprocessor()), teacher_checkpoint=teacher_file)
    images = torch.randint(0, 256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    seen = model.data_preprocessor(dict(inputs=images))['inputs']
    alone = model.teacher.data_preprocessor(dict(inputs=images))['inputs']
    with torch.no_grad():
        features = model.teacher_features(seen)
        expected = model.teacher_taps.read(model.teacher, alone)
    for feature, twin in zip(features, expected):
        torch.testing.assert_close(feature, twin, rtol=1e-3, atol=1e-4)
