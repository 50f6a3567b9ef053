import copy

import numpy as np
import pytest
import torch
from mmpretrain.models import ClsDataPreprocessor
from small_models import TAPS, batch, build_distiller
from torch import nn

from overhaul.method.losses import partial_l2
from overhaul.reports.pictures import (
    Curve,
    draw_budget,
    draw_curves,
    draw_features,
    draw_pre_activations,
    draw_predictions,
    draw_tap_losses,
    read_features,
    to_array,
    to_rgb,
)
from overhaul.tasks import Segmentation, Task
from overhaul.tasks.results import Result


def data(seed=0, size=4):
    images, samples = batch(seed=seed, size=size)
    return dict(inputs=list(images), data_samples=samples)


@pytest.fixture(scope='module')
def model():
    return build_distiller(teacher_batch_norm='running')


@pytest.fixture(scope='module')
def features(model):
    return read_features(model, data())


def test_features_are_those_of_the_losses(model, features):
    losses = model(**model.data_preprocessor(data(), True), mode='loss')
    for tap, feature in zip(TAPS, features):
        assert feature.name == tap['student']
        loss = tap['loss_weight'] * model.distill_loss.loss_weight * partial_l2(feature.student, feature.teacher)
        assert loss.item() == pytest.approx(losses[f'distill.loss_{feature.name.removeprefix("backbone.")}'].item())
        assert feature.raw.min() < feature.margin.min()
        assert feature.teacher.equal(torch.maximum(feature.raw, feature.margin[:, None, None]))


def test_reading_leaves_the_model_as_it_was_and_keeps_no_hook(model):
    before = copy.deepcopy(model.state_dict())
    read_features(model, data(size=40))
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert not model.distill_loss._forward_pre_hooks
    assert not any(margin._forward_pre_hooks for margin in model.margins)


def test_reading_features_draws_no_random_number_of_the_training():
    model = build_distiller(teacher_dropout=True)
    model.teacher.backbone.bn1 = nn.Sequential(nn.Dropout(0.5), model.teacher.backbone.bn1)
    model.train()
    features = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        features.append(read_features(model, data())[-1].raw)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(features[0], features[1]) and not torch.equal(features[0], features[2])


def test_no_more_images_than_a_picture_needs(model):
    feature = read_features(model, data(size=40))[0]
    assert {len(maps) for maps in (feature.raw, feature.teacher, feature.student)} == {32}
    assert feature.of_image(1).student.equal(feature.student[1:2])


@pytest.mark.parametrize('margin', [dict(source='none'), dict(type='Identity')])
def test_teacher_transforms_without_a_margin(margin):
    from overhaul.registry import MODELS

    @MODELS.register_module(name='Identity', force=True)
    class Identity(torch.nn.Module):
        def __init__(self, channels, norm):
            super().__init__()

        def forward(self, feature):
            return feature

    features = read_features(build_distiller(margin=margin), data())
    assert all(feature.margin is None and feature.teacher.equal(feature.raw) for feature in features)
    labels = [line.get_label() for line in draw_pre_activations(features).axes[0].lines]
    assert labels == ["mean of the teacher's negative responses"]


def errors(value):
    return [Result('accuracy/top1', value, '% error', True)]


def test_curves_show_each_run_and_the_teacher():
    curves = [Curve('alone', {50: errors(20.0), 100: errors(10.0)}, {10: 1.0, 20: 0.5}),
              Curve('distilled', {50: errors(9.0)}, {10: 1.5})]
    left, right = draw_curves(curves, 'iteration', {'% error': 0.5}).axes
    assert [line.get_label() for line in left.lines] == ['alone', 'distilled', 'teacher, 0.5']
    assert left.lines[0].get_xydata().tolist() == [[50, 20], [100, 10]]
    assert list(left.lines[2].get_ydata()) == [0.5, 0.5]
    assert right.lines[0].get_xydata().tolist() == [[10, 1], [20, 0.5]]
    assert (left.get_xlabel(), left.get_ylabel()) == ('iteration', 'validation, % error, less is better')
    assert left.get_ylim()[0] == 0


def test_each_result_has_a_panel_and_a_star_marks_the_best_step():
    several = [*errors(20.0), Result('r2', -3.0, 'R2', False)], [*errors(10.0), Result('r2', -4.0, 'R2', False)]
    first, second, losses = draw_curves([Curve('a', dict(enumerate(several)), {0: 1.0}, best=1)], 'epoch').axes
    assert [axes.get_ylabel() for axes in (first, second)] == [
        'validation, % error, less is better', 'validation, R2, more is better']
    for axes, value in ((first, 10), (second, -4)):
        curve, star = axes.lines
        assert star.get_marker() == '*' and star.get_xydata().tolist() == [[1, value]]
    assert second.get_ylim()[0] < -4


def test_losses_by_tap_stand_beside_the_task():
    (axes, ) = draw_tap_losses({'bn1': {5: 3.0, 10: 2.0}}, {5: 1.0, 10: 0.5}).axes
    assert {line.get_label(): list(line.get_ydata()) for line in axes.lines} == {'bn1': [3, 2], 'task': [1, 0.5]}


def test_a_budget_shows_every_run_the_mean_and_its_interval():
    results = {'alone': {'1': [8.0, 10.0, 12.0], 'None': [2.0, 2.5, 3.0]},
               'distilled': {'1': [4.0, 5.0, 6.0], 'None': [1.0, 1.1, 1.2]}}
    (axes, ) = draw_budget({'% error': results}, 'labels', teacher=0.5).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ['1', 'all']
    (line, caps, (bars, )) = axes.containers[0]
    assert list(line.get_ydata()) == [10, 2.5]
    low, high = bars.get_segments()[0][:, 1]
    half_width = 4.30265 * 2 / np.sqrt(3)  # t of 2 degrees of freedom at 97.5 %
    assert (low, high) == pytest.approx((10 - half_width, 10 + half_width), rel=1e-4)
    dots = sorted(value for line in axes.lines if line.get_marker() == '.' for value in line.get_ydata())
    assert dots == sorted(value for side in results.values() for sample in side.values() for value in sample)
    assert axes.get_legend().get_title().get_text() == 'mean and its 95 % interval, 3 seeds'


def test_variants_are_joined_by_no_line_and_their_names_lean():
    results = {'distilled': {name: [4.0, 5.0, 6.0] for name in ('default', 'running_statistics', 'L2')}}
    (axes, ) = draw_budget({'% error': results}, 'variant').axes
    assert axes.containers[0].lines[0].get_linestyle() == 'None'
    assert {(name.get_rotation(), name.get_ha()) for name in axes.get_xticklabels()} == {(30, 'right')}


def test_a_side_is_drawn_at_the_budgets_that_it_has():
    results = {'alone': {'1': [8.0], '2': [4.0], '5': [2.0]}, 'distilled': {'5': [1.0], '1': [3.0]}}
    (axes, ) = draw_budget({'% error': results}, 'labels').axes
    places = [bars.lines[0].get_xdata().round() for bars in axes.containers]
    assert [list(of_side) for of_side in places] == [[0, 1, 2], [2, 0]]


def test_one_budget_without_a_name_is_drawn():
    results = {'alone': {'': [8.0, 10.0]}, 'distilled': {'': [4.0, 5.0]}}
    (axes, ) = draw_budget({'% error': results}, 'labels').axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ['']


def test_a_budget_has_a_panel_for_each_result_and_errors_alone_are_drawn_by_their_ratio():
    sides = {'alone': {'1': [8.0, 10.0], '2': [4.0, 5.0]}}
    first, second = draw_budget({'% error of a': sides, '% mIoU': sides}, 'labels', teacher=0.5).axes
    assert (first.get_ylabel(), second.get_ylabel()) == ('% error of a', '% mIoU')
    assert (first.get_yscale(), second.get_yscale()) == ('log', 'linear')
    assert [any(line.get_linestyle() == '--' for line in axes.lines) for axes in (first, second)] == [True, False]


def test_features_are_drawn_as_they_are(features):
    other = [feature._replace(student=feature.teacher) for feature in features]  # that has learnt everything
    figure = draw_features(features, other, channels=2)
    first, row = features[0], figure.axes[:5]
    channel = first.teacher[0].flatten(1).std(1).argmax()
    teacher, student = first.teacher[0, channel].numpy(), first.student[0, channel].numpy()
    shown = [axes.images[0].get_array() for axes in row]
    for picture, expected in zip(shown, [teacher, student, student - teacher, teacher, 0 * teacher]):
        assert np.allclose(picture, expected)
    assert len({axes.images[0].get_clim() for axes in row}) == 1
    assert row[0].get_ylabel() == f'{first.name}\nchannel {channel}'
    assert row[2].get_xlabel() == f'rms {np.sqrt(((student - teacher)**2).mean()):.2f}'
    assert row[4].get_xlabel() == 'rms 0.00'
    assert len([axes for axes in figure.axes if axes.get_label() != '<colorbar>']) == 3 * 2 * 5


def test_the_margin_is_drawn_into_the_histogram(features):
    figure = draw_pre_activations(features, channels=3)
    axes = figure.axes[1]
    shares = (features[0].raw < 0).float().mean((0, 2, 3))
    channel = shares.argsort()[len(shares) // 2]
    assert axes.get_title() == f'{features[0].name}, channel {channel}'
    lines = {line.get_label(): line.get_xdata()[0] for line in axes.lines}
    assert lines['margin'] == pytest.approx(features[0].margin[channel].item())
    raw = features[0].raw[:, channel]
    assert lines["mean of the teacher's negative responses"] == pytest.approx(raw[raw < 0].mean().item(), rel=1e-5)


def test_predictions_stand_beside_image_and_truth_in_the_colours_of_the_dataset():
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    rng = np.random.default_rng(0)
    images = list(rng.integers(256, size=(2, 5, 7, 3), dtype=np.uint8))
    masks = torch.from_numpy(rng.integers(3, size=(3, 2, 1, 5, 7)))  # truth, and two predictions of two images
    samples = {name: [
        SegDataSample(gt_sem_seg=PixelData(data=truth), pred_sem_seg=PixelData(data=predicted))
        for truth, predicted in zip(masks[0], masks[index])] for index, name in enumerate(['alone', 'distilled'], 1)}
    palette = np.array([[0, 0, 0], [255, 0, 9], [1, 2, 3]])
    task = Segmentation(nn.Identity())
    figure = draw_predictions(task, images, samples, dict(classes=('a', 'b', 'c'), palette=palette.tolist()))
    assert [axes.get_title() for axes in figure.axes[:4]] == ['image', 'truth', 'alone', 'distilled']
    for row, image, truth, *predicted in zip((figure.axes[:4], figure.axes[4:]), images, *masks[:, :, 0]):
        panels = [axes.images[0].get_array() for axes in row]
        np.testing.assert_array_equal(panels, [image, *palette[torch.stack([truth, *predicted])]])
    assert [text.get_text() for text in figure.legends[0].texts] == ['a', 'b', 'c']
    with pytest.raises(ValueError, match='no palette'):
        draw_predictions(task, images, samples, dict(classes=('a', 'b', 'c')))
    with pytest.raises(ValueError, match='How a prediction of the Identity is drawn is not known'):
        draw_predictions(Task(nn.Identity()), images, samples, {})


@pytest.mark.parametrize(('channels', 'turned', 'expected'), [
    (1, True, [0, 0, 0]), (2, True, [0, 0, 0]), (3, False, [0, 10, 20]), (3, True, [20, 10, 0]),
    (4, True, [0, 10, 20]), (12, True, [0, 10, 20])])
def test_images_of_any_channels_are_looked_at_as_rgb(channels, turned, expected):
    image = (10 * torch.arange(channels, dtype=torch.uint8)).view(-1, 1, 1).expand(-1, 2, 3)
    picture = to_rgb(image, ClsDataPreprocessor(to_rgb=turned))
    assert picture.dtype == np.uint8 and picture.shape == (2, 3, 3)
    assert (picture == expected).all()
    taken_as_it_is = to_rgb(image, ClsDataPreprocessor(to_rgb=False), bgr=turned)
    assert (taken_as_it_is == expected).all()


def test_images_of_other_numbers_are_stretched():
    image = torch.tensor([0.0, 10000, 5000, 1e9]).view(-1, 1, 1).expand(-1, 2, 3)  # the fourth is not shown
    assert (to_rgb(image, ClsDataPreprocessor()) == [0, 255, 127]).all()
    deep = np.array([0, 65535, 32768], np.uint16).reshape(3, 1, 1)
    assert (to_rgb(torch.from_numpy(deep), ClsDataPreprocessor()) == [0, 255, 127]).all()
    assert (to_rgb(torch.tensor([False, True, True]).view(3, 1, 1), ClsDataPreprocessor()) == [0, 255, 255]).all()


def test_a_picture_is_rgb():
    image = to_array(draw_tap_losses({'bn1': {1: 2.0}}, {1: 1.0}), dpi=50)
    assert image.shape == (200, 350, 3) and image.dtype == np.uint8 and image[0, 0].tolist() == [255, 255, 255]
