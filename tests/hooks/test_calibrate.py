import pytest
import torch
from small_models import batch, build_distiller, runner, save_teacher, sgd, wide_resnet

from overhaul.hooks import CalibrateHook
from overhaul.probe import measure

BATCHES = [batch(size=8, seed=seed) for seed in range(3)]


@pytest.fixture(scope='module')
def teacher_file(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp('teacher'), wide_resnet(2))


def calibrated(folder, teacher_file, hook=None, **changes):
    model = build_distiller(teacher_checkpoint=teacher_file, **changes)
    run = runner(folder, model, BATCHES, 1, sgd(0.0), [hook or CalibrateHook()])
    run.train()
    return run.model


def test_margins_are_the_mean_of_the_negative_responses_of_the_data(tmp_path, teacher_file):
    model = calibrated(tmp_path, teacher_file, margin=dict(type='MarginReLU', source='data'))
    with torch.no_grad():
        features = [model.teacher_features(images) for images, _ in BATCHES]
    for i, margin in enumerate(model.margins):
        channels = torch.cat([feature[i].transpose(0, 1).flatten(1) for feature in features], dim=1)
        expected = [channel[channel < 0].double().mean().nan_to_num().item() for channel in channels]
        assert margin.margin.tolist() == pytest.approx(expected, rel=1e-5)


def test_only_the_batches_asked_for_are_read(tmp_path, teacher_file):
    model = calibrated(tmp_path, teacher_file, CalibrateHook(batches=1), margin=dict(type='MarginReLU', source='data'))
    with torch.no_grad():
        feature = model.teacher_features(BATCHES[0][0])[0][:, 3]
    assert model.margins[0].margin[3].item() == pytest.approx(feature[feature < 0].mean().item(), rel=1e-5)


def test_known_margins_and_a_given_alpha_stay(tmp_path, teacher_file):
    before = build_distiller(teacher_checkpoint=teacher_file)
    model = calibrated(tmp_path, teacher_file)
    assert model.distill_loss.loss_weight == before.distill_loss.loss_weight == 1e-3
    assert all(torch.equal(a.margin, b.margin) for a, b in zip(model.margins, before.margins))


def test_estimated_values_travel_in_the_checkpoint(tmp_path, teacher_file):
    changes = dict(margin=dict(type='MarginReLU', source='data'), distill_loss=dict(
        type='PartialL2Loss', loss_weight='auto'))
    model = calibrated(tmp_path, teacher_file, **changes)
    other = build_distiller(teacher_checkpoint=teacher_file, **changes)
    other.load_state_dict(model.state_dict())
    values = other.margins[1].margin.clone(), other.distill_loss.loss_weight.clone()
    assert values[1] > 0
    run = runner(tmp_path, other, [batch(size=8, seed=9)], 1, sgd(0.0), [CalibrateHook()])
    run.train()
    assert torch.equal(other.margins[1].margin, values[0]) and other.distill_loss.loss_weight == values[1]


@pytest.mark.parametrize('ratio', [1.0, 20.0])
def test_alpha_gives_the_losses_the_ratio(tmp_path, teacher_file, ratio):
    torch.manual_seed(0)
    hook = CalibrateHook(batches=1, loss_ratio=ratio)
    model = calibrated(tmp_path, teacher_file, hook, distill_loss=dict(type='PartialL2Loss', loss_weight='auto'))
    images, samples = BATCHES[0]
    strength = measure(model, dict(inputs=images, data_samples=samples))
    assert strength.loss_ratio == pytest.approx(ratio, rel=1e-4)


def test_without_the_hook_the_first_step_says_what_is_missing(teacher_file):
    model = build_distiller(teacher_checkpoint=teacher_file, margin=dict(type='MarginReLU', source='data'))
    with pytest.raises(ValueError, match=r'backbone.block2.0.bn1, .* to be estimated .*CalibrateHook'):
        model(*batch(), mode='loss')
    model = build_distiller(
        teacher_checkpoint=teacher_file, distill_loss=dict(type='PartialL2Loss', loss_weight='auto'))
    with pytest.raises(ValueError, match=r'loss_weight="auto".*CalibrateHook'):
        model(*batch(), mode='loss')
