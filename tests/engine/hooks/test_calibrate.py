"""One of the tests runs this file as a program, in two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_models import batch, build_distiller, resnet, runner, save_teacher, sgd, wide_resnet

from overhaul.engine.hooks import CalibrateHook
from overhaul.method.margins import margin_from_batch_norm
from overhaul.method.probe import measure

FROM_DATA = dict(margin=dict(type='MarginReLU', source='data'), distill_loss=dict(
    type='PartialL2Loss', loss_weight='auto'))
BATCHES = [batch(size=8, seed=seed) for seed in range(4)]


@pytest.fixture(scope='module')
def teacher_file(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp('teacher'), wide_resnet(2))


def calibrated(folder, teacher_file, hook=None, **changes):
    model = build_distiller(teacher_checkpoint=teacher_file, **changes)
    run = runner(folder, model, BATCHES, 1, sgd(0.0), [hook or CalibrateHook()], randomness=dict(seed=0))
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


def test_margins_agree_with_the_closed_form_where_a_batch_norm_gets_normal_data(tmp_path):
    """As the first one does: a convolution of independent normal pixels is normal."""
    model = build_distiller(
        teacher=resnet(16), student=resnet(), teacher_checkpoint=save_teacher(tmp_path, resnet(16)),
        taps=[dict(teacher='backbone.bn1', student='backbone.bn1')], margin=dict(type='MarginReLU', source='data'))
    batches = [batch(size=32, seed=seed, pixels=32) for seed in range(4)]
    runner(tmp_path, model, batches, 1, sgd(0.0), [CalibrateHook()]).train()
    norm = model.teacher.backbone.bn1
    expected = margin_from_batch_norm(norm.weight, norm.bias)
    assert (expected.max() - expected.min()) > 0.5  # the channels differ, and by more than the tolerance
    torch.testing.assert_close(model.margins[0].margin, expected, rtol=0.02, atol=0.01)


@pytest.mark.parametrize('setting', [
    dict(batches=0), dict(batches=-1), dict(batches=1.5), dict(batches='all'), dict(loss_ratio=0),
    dict(loss_ratio=-1.0), dict(loss_ratio=float('nan')), dict(loss_ratio=float('inf')), dict(loss_ratio='high')])
def test_a_setting_that_cannot_be_is_refused(setting):
    (name, value), = setting.items()
    with pytest.raises(ValueError, match=rf'CalibrateHook\({name}={value!r}\): give a '):
        CalibrateHook(**setting)


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


def saved(folder, teacher_file, batches, epochs, **more):
    """The margins and alpha in the last checkpoint of a run, and whether the run estimated them."""
    model = build_distiller(teacher_checkpoint=teacher_file, **FROM_DATA)
    run = runner(folder, model, batches, epochs, sgd(0.0), [CalibrateHook()],
                 default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1), sampler_seed=None), **more)
    unknown = not model.margins[0].known
    run.train()
    state = torch.load(folder / f'epoch_{epochs}.pth', weights_only=False)['state_dict']
    assert unknown
    return [state[name] for name in state if name.startswith(('margins.', 'distill_loss.'))]


def test_estimated_values_are_in_the_checkpoint_and_a_resumed_run_keeps_them(tmp_path, teacher_file):
    first = saved(tmp_path, teacher_file, BATCHES, 1)
    assert len(first) == 4 and all(value.isfinite().all() for value in first) and first[3] > 0
    other_data = [batch(size=8, seed=9)]
    resumed = saved(tmp_path, teacher_file, other_data, 2, load_from=str(tmp_path / 'epoch_1.pth'), resume=True)
    assert all(torch.equal(value, before) for value, before in zip(resumed, first))
    (tmp_path / 'anew').mkdir()
    anew = saved(tmp_path / 'anew', teacher_file, other_data, 1)
    assert not any(torch.equal(value, before) for value, before in zip(anew, first))


def test_all_processes_get_the_values_of_the_data_of_all(tmp_path, teacher_file, python):
    ranks = [dict(os.environ, RANK=str(rank), WORLD_SIZE='2', PYTHONPATH=os.pathsep.join(sys.path))
             for rank in range(2)]
    processes = [subprocess.Popen([python, __file__, tmp_path, teacher_file], env=env) for env in ranks]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    together = calibrated(tmp_path / 'one', teacher_file, **FROM_DATA).state_dict()  # all batches in one process
    for name in (*(f'margins.{i}.margin' for i in range(3)), 'distill_loss.loss_weight'):
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], together[name], rtol=1e-4, atol=1e-5)


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


def one_process_of_two(folder, teacher_file):
    """Calibrate on this process's half of the batches, and write the state."""
    rank = int(os.environ['RANK'])
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
    model = build_distiller(teacher_checkpoint=teacher_file, **FROM_DATA)
    runner(folder / f'rank{rank}', model, BATCHES[rank::2], 1, sgd(0.0), [CalibrateHook()],
           randomness=dict(seed=0)).train()
    torch.save(model.state_dict(), folder / f'{rank}.pth')


if __name__ == '__main__':
    one_process_of_two(Path(sys.argv[1]), sys.argv[2])
