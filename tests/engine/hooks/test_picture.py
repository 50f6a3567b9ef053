import cv2
import pytest
import torch
from small_models import TAPS, batch, build_distiller, build_model, runner, sgd, wide_resnet

from overhaul.engine.hooks import PictureHook

pytest.importorskip('tensorboard')
PATHS = [f'distill.loss_{tap["student"].removeprefix("backbone.")}' for tap in TAPS]


def train(folder, model=None, hooks=(), epochs=2, **more):
    run = runner(folder, model or build_distiller(), [batch(seed=seed) for seed in range(3)], epochs, sgd(0.01), hooks,
                 randomness=dict(seed=0), visualizer=dict(type='Visualizer', vis_backends=[
                     dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]),
                 default_hooks=dict(logger=dict(type='LoggerHook', interval=1), checkpoint=None, sampler_seed=None),
                 **more)
    run.train()
    return run


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('trained')
    return train(folder, hooks=[PictureHook(interval=4)]), folder


def test_local_backend_gets_pictures_at_the_interval_and_at_the_end(trained):
    files = {path.name: path for path in trained[1].rglob('vis_image/*.png')}
    assert set(files) == {f'{name}_{step}.png' for name in ('features', 'pre_activations') for step in (4, 6)}
    for path in files.values():
        assert min(cv2.imread(str(path)).shape[:2]) > 300


def test_tensorboard_gets_the_same_and_a_scalar_per_tap(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    (file, ) = trained[1].rglob('events.out.tfevents*')
    events = EventAccumulator(str(file), size_guidance={'images': 0, 'scalars': 0})
    events.Reload()
    for name in ('features', 'pre_activations'):
        images = events.Images(name)
        assert [image.step for image in images] == [4, 6]
        file = next(trained[1].rglob(f'vis_image/{name}_6.png'))
        decoded = cv2.imdecode(_bytes(images[1].encoded_image_string), cv2.IMREAD_COLOR)
        assert (decoded == cv2.imread(str(file))).all()
    for path in PATHS:
        values = events.Scalars(path)
        assert [value.step for value in values] == [1, 2, 3, 4, 5, 6] and all(value.value > 0 for value in values)


def _bytes(text):
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).numpy()


def test_the_training_is_the_same_with_and_without(trained, tmp_path):
    run = train(tmp_path)
    for (name, value), other in zip(run.model.state_dict().items(), trained[0].model.state_dict().values()):
        assert value.equal(other), name
    assert not list(tmp_path.rglob('*.png'))


def test_nothing_is_drawn_of_a_student_alone(tmp_path):
    train(tmp_path, build_model(wide_resnet(1)), [PictureHook(interval=1)], epochs=1)
    assert not list(tmp_path.rglob('*.png'))


@pytest.mark.parametrize('interval', [0, -1, 2.5, '10'])
def test_an_interval_that_is_none_is_refused(interval):
    with pytest.raises(ValueError, match='interval is 1 or more, not'):
        PictureHook(interval)
