"""A training that is resumed with another config, other data or another teacher."""

import pytest
import torch
from mmengine.config import Config
from small_models import (
    Lines,
    batch,
    build_distiller,
    build_model,
    distiller_config,
    loader,
    runner,
    save_teacher,
    wide_resnet,
)
from torch.utils.data import DataLoader

from overhaul.engine import same_training
from overhaul.files.checkpoints import read_checkpoint
from overhaul.registry import MODELS

SGD = dict(type='SGD', lr=0.1, momentum=0.9)
BEGUN = dict(
    model=dict(alpha=1, teacher_checkpoint='there.pth', student=dict(pretrained='a.pth'),
               teacher=dict(backbone=dict(init_cfg=dict(checkpoint='t.pth')))),
    train_dataloader=dict(batch_size=4, num_workers=2, dataset=dict(type='Digits', labels_per_class=5)),
    val_dataloader=dict(batch_size=4, dataset=dict(ann_file='val.txt')),
    train_cfg=dict(by_epoch=True, max_epochs=1, val_interval=1), optim_wrapper=dict(optimizer=SGD),
    param_scheduler=[dict(type='CosineAnnealingLR', end=9)], custom_hooks=[dict(type='EMAHook', momentum=1e-3)])


def run(folder, model, epochs=1, classes='abcde', images=4, resume=None, **changes):
    """Train, or go on, with the config above but for what ``changes``; return what was said of a resumed one."""
    cfg = Config(BEGUN)
    cfg.merge_from_dict(changes)
    given = loader([batch(images)])
    training = runner(
        folder, model, [batch()], epochs, dict(type='OptimWrapper', optimizer=dict(cfg.optim_wrapper.optimizer)),
        train_dataloader=DataLoader(Images(given.dataset, classes), 4, collate_fn=given.collate_fn), cfg=cfg,
        resume=resume is not None, load_from=resume, randomness=dict(seed=0),
        default_hooks=dict(sampler_seed=None), experiment_name=f'{folder} {resume} {len(changes)} {epochs}')
    same_training.prepare(training)
    lines = Lines(training)
    training.train()
    return [line for line in lines.messages if 'was begun otherwise' in line]


class Images(list):
    """Images that tell their classes."""

    def __init__(self, images, classes):
        super().__init__(images)
        self.metainfo = dict(classes=tuple(classes))


@pytest.fixture(scope='module')
def begun(tmp_path_factory):
    folder = tmp_path_factory.mktemp('begun')
    assert run(folder, build_model(wide_resnet())) == []
    return str(folder / 'epoch_1.pth')


@pytest.mark.parametrize('changes', [
    {}, {'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 7}, {'train_dataloader.num_workers': 0},
    {'model.teacher_checkpoint': 'moved.pth', 'model.student.pretrained': None}, {'param_scheduler.0.end': 12},
    {'val_dataloader.batch_size': 9}], ids=str)
def test_what_is_no_other_training_is_free(begun, changes, tmp_path):
    assert run(tmp_path, build_model(wide_resnet()), 2, resume=begun, **changes) == []


@pytest.mark.parametrize(('changes', 'told'), [
    ({'train_dataloader.dataset.labels_per_class': 9}, 'train_dataloader.dataset.labels_per_class was 5 and is 9. Fr'),
    ({'optim_wrapper.optimizer.weight_decay': 0.1}, 'optim_wrapper.optimizer.weight_decay was not set and is 0.1'),
    ({'model.alpha': 2, 'param_scheduler.0.T_max': 3}, 'model.alpha was 1 and is 2; param_scheduler.0.T_max was'),
    ({'model.teacher.backbone.init_cfg.checkpoint': 'u.pth'}, "init_cfg.checkpoint was 't.pth' and is 'u.pth'"),
    ({'custom_hooks': []}, "custom_hooks.0.type was 'EMAHook' and is not set; custom_hooks.0.momentum was"),
    ({'val_dataloader.dataset.ann_file': 'x' * 99}, "ann_file was 'val.txt' and is 'xxx")])
def test_what_makes_another_training_is_told_once(begun, changes, told, tmp_path):
    (said, ) = run(tmp_path, build_model(wide_resnet()), 2, resume=begun, **changes)
    assert told in said
    assert run(tmp_path, build_model(wide_resnet()), 3, resume=str(tmp_path / 'epoch_2.pth'), **changes) == []


def test_other_images_of_the_same_config_are_told(begun, tmp_path):
    (said, ) = run(tmp_path, build_model(wide_resnet()), 2, images=6, resume=begun)
    assert 'number of training images was 4 and is 6. From here on' in said


@pytest.mark.parametrize(('classes', 'label'), [('bacde', '0 was "a" and is "b"'), ('abde', '2 was "c" and is "d"')])
def test_labels_of_other_classes_are_refused(begun, classes, label, tmp_path):
    with pytest.raises(ValueError, match=f'the label {label}. Resume with the data of then'):
        run(tmp_path, build_model(wide_resnet()), 2, classes=classes, resume=begun)
    assert run(tmp_path, build_model(wide_resnet()), 2, classes='abcdef', resume=begun) == []  # one more, at the end


def test_a_file_of_mmengine_alone_is_compared_by_its_classes(begun, tmp_path):
    checkpoint = torch.load(begun, weights_only=False)
    del checkpoint['message_hub']['runtime_info'][same_training._KEY]
    torch.save(checkpoint, tmp_path / 'own.pth')
    resume = str(tmp_path / 'own.pth')
    assert run(tmp_path, build_model(wide_resnet()), 2, resume=resume, **{'model.alpha': 2}) == []
    with pytest.raises(ValueError, match='has learnt other classes than these data have'):
        run(tmp_path, build_model(wide_resnet()), 2, classes='bacde', resume=resume)


def test_another_optimizer_is_refused_before_its_state_is_read(begun, tmp_path):
    named = {'optim_wrapper.optimizer.type': 'torch.optim.SGD'}
    with pytest.raises(ValueError, match=r"with the optimizer 'SGD', and this config has 'Adam'"):
        run(tmp_path, build_model(wide_resnet()), 2, resume=begun,
            **{'optim_wrapper.optimizer': dict(_delete_=True, type='Adam', lr=0.1)})
    assert same_training.differences(
        {'optim_wrapper.optimizer.type': "'SGD'"}, {name: repr(value) for name, value in named.items()}).startswith(
            "optim_wrapper.optimizer.type was 'SGD' and is 'torch.optim.SGD'")


def test_another_teacher_is_refused_and_the_same_in_another_file_is_not(tmp_path):
    files = [save_teacher(tmp_path, wide_resnet(2), seed) for seed in (7, 8)]
    weights = torch.load(files[0])['state_dict']
    headless = {name: value for name, value in weights.items() if not name.startswith('head.')}
    torch.save(dict(model=headless, note='of no importance'), tmp_path / 'headless.pth')

    def distil(file, **more):
        return run(tmp_path / 'work', MODELS.build(distiller_config(teacher_checkpoint=str(file))), **more)

    distil(tmp_path / 'headless.pth')
    resume = str(tmp_path / 'work/epoch_1.pth')
    saved = read_checkpoint(resume)['message_hub']['runtime_info'][same_training._KEY]
    assert distil(tmp_path / 'headless.pth', epochs=2, resume=resume) == []  # whatever its head begins with
    assert 'checksum of the teacher' in saved
    with pytest.raises(ValueError, match='was begun with another teacher'):
        distil(files[1], epochs=2, resume=resume)
    with pytest.raises(ValueError, match='was begun with another teacher'):
        run(tmp_path / 'work', build_distiller(), epochs=2, resume=resume)
