import pytest
import torch
from mmpretrain.models import ClsDataPreprocessor
from mmseg.models import SegDataPreProcessor
from small_models import build_distiller, save_teacher, wide_resnet

from overhaul.method.normalization import Renormalize

IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
CAFFE = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0])
PREPROCESSORS = {
    'rgb': ClsDataPreprocessor(**IMAGENET, to_rgb=True),
    'bgr': ClsDataPreprocessor(**CAFFE, to_rgb=False),
    'none': ClsDataPreprocessor(to_rgb=False),
    'one value': ClsDataPreprocessor(mean=[127.5], std=[127.5], to_rgb=True),
}


def normalized(preprocessor, images):
    return preprocessor(dict(inputs=list(images)), training=True)['inputs']


@pytest.mark.parametrize('source', PREPROCESSORS)
@pytest.mark.parametrize('target', PREPROCESSORS)
def test_images_become_what_the_other_preprocessor_makes_of_them(source, target):
    images = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    source, target = PREPROCESSORS[source], PREPROCESSORS[target]
    renormalize = Renormalize(source, target)
    assert renormalize.is_identity == (source is target)
    ours = renormalize(normalized(source, images))
    assert torch.allclose(ours, normalized(target, images).float(), rtol=1e-4, atol=1e-4)
    assert not renormalize.state_dict()


def test_mmseg_and_mmpretrain_understand_each_other():
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seg = SegDataPreProcessor(**IMAGENET, bgr_to_rgb=True)
    assert Renormalize(seg, PREPROCESSORS['rgb']).is_identity
    assert torch.allclose(
        Renormalize(PREPROCESSORS['bgr'], seg)(normalized(PREPROCESSORS['bgr'], images)),
        normalized(PREPROCESSORS['rgb'], images), rtol=1e-4, atol=1e-4)


def test_twelve_channels_are_normalised_anew_each_by_its_own_numbers():
    channels = torch.arange(12.0)
    source = ClsDataPreprocessor(mean=(10 * channels).tolist(), std=(1 + channels).tolist(), to_rgb=True)
    target = SegDataPreProcessor(mean=[5.0] * 12, std=[4.0] * 12)
    renormalize = Renormalize(source, target)
    assert not renormalize.is_identity
    seen = torch.ones(2, 12, 3, 3)  # of pixels 1 + c + 10 c; twelve channels are in no order that turns round
    for channel, image in enumerate(renormalize(seen)[0]):
        assert image.unique().item() == pytest.approx((1 + channel + 10 * channel - 5) / 4)
    with pytest.raises(ValueError, match='a mean or std for 3 and 12 channels'):
        Renormalize(source, PREPROCESSORS['rgb'])


def test_a_teacher_of_another_normalisation_gives_the_features_that_it_gives_alone(tmp_path):
    teacher_file = save_teacher(tmp_path, wide_resnet(2))
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    student, teacher = (dict(type='ClsDataPreprocessor', **values) for values in (
        dict(**IMAGENET, to_rgb=True), dict(**CAFFE, to_rgb=False)))
    model = build_distiller(
        teacher_checkpoint=teacher_file, student=dict(wide_resnet(), data_preprocessor=student),
        teacher=dict(wide_resnet(2), data_preprocessor=teacher))
    alike = build_distiller(
        teacher_checkpoint=teacher_file, student=dict(wide_resnet(), data_preprocessor=student), teacher=wide_resnet(2))
    assert alike.renormalize is None and model.renormalize is not None
    with torch.no_grad():
        ours = model.teacher_features(normalized(model.data_preprocessor, images))
        alone = model.teacher_taps.read(model.teacher, normalized(model.teacher.data_preprocessor, images))
        unaware = model.teacher_taps.read(model.teacher, normalized(model.data_preprocessor, images))
    for mine, expected, wrong in zip(ours, alone, unaware):
        assert torch.allclose(mine, expected, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(wrong, expected, rtol=1e-1, atol=1e-1)
