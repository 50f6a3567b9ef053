"""Pose: top-down estimators of mmpose, a few thousand weights each, on tiny data in COCO's format."""

import copy
import re
import subprocess
import sys

import pytest
from detectors import run, save_teacher, train_and_resume, two_iterations
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from plain_process import WITHOUT_OVERHAUL
from small_models import build_model
from tiny_data import write_poses

from overhaul.commands import export, plot, taps, test, train
from overhaul.engine import benchmark
from overhaul.engine.dry_run import RandomImages
from overhaul.files.settings import read_config
from overhaul.tasks import Pose, task_of
from overhaul.tasks.results import Judge

pytest.importorskip('mmpose', reason='mmpose is not installed: docs/tasks.md')

SIZE = (64, 32)  # H, W
PLAIN_PROCESS = f"""{WITHOUT_OVERHAUL}
from mmpose.apis import inference_topdown, init_model

model = init_model('student.py', 'student.pth', device='cpu')
print(inference_topdown(model, 'coco/val2017/000000000000.jpg')[0].pred_instances.keypoints.shape)
"""


def estimator(depth=18, keypoints=17, width=8, codec='MSRAHeatmap'):
    return dict(
        _scope_='mmpose', type='TopdownPoseEstimator',
        data_preprocessor=dict(type='PoseDataPreprocessor', mean=[123.675, 116.28, 103.53],
                               std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
        backbone=dict(type='ResNet', depth=depth, base_channels=width, stem_channels=width),
        head=dict(type='HeatmapHead', in_channels=width * (8 if depth == 18 else 32), out_channels=keypoints,
                  deconv_out_channels=(8, 8, 8), loss=dict(type='KeypointMSELoss', use_target_weight=True),
                  decoder=dict(type=codec, input_size=SIZE[::-1], heatmap_size=(SIZE[1] // 4, SIZE[0] // 4), sigma=2)),
        test_cfg=dict(flip_test=True, flip_mode='heatmap', shift_heatmap=True))


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """The config of a ResNet-18 that learns from a ResNet-50."""
    folder = tmp_path_factory.mktemp('pose')
    write_poses(folder / 'coco')
    teacher, student = estimator(50), estimator()
    first, last = [dict(type='LoadImage'), dict(type='GetBBoxCenterScale'),
                   dict(type='TopdownAffine', input_size=SIZE[::-1])], dict(type='PackPoseInputs')

    def loader(split, pipeline):
        return dict(
            batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=split == 'train'),
            dataset=dict(
                type='CocoDataset', data_root=f'{folder}/coco/', data_mode='topdown', test_mode=split != 'train',
                ann_file=f'annotations/person_keypoints_{split}2017.json', data_prefix=dict(img=f'{split}2017/'),
                pipeline=pipeline))

    train = loader('train', [*first, dict(type='GenerateTarget', encoder=student['head']['decoder']), last])
    evaluator = dict(type='CocoMetric', ann_file=f'{folder}/coco/annotations/person_keypoints_val2017.json')
    model = dict(teacher=teacher, student=student, input_size=SIZE,
                 teacher_checkpoint=save_teacher(ConfigDict(teacher), str(folder / 'teacher.pth')))
    two_iterations(
        'mmpose', model, train, loader('val', [*first, last]), evaluator, dict(type='Adam', lr=5e-4),
    ).dump(folder / 'config.py')
    return folder / 'config.py'


@pytest.fixture(scope='module')
def checkpoint(config):
    """What came of two iterations, of which the second was resumed as well."""
    assert train_and_resume(config, config.parent) == (4, True)
    return config.parent / 'whole/iter_2.pth'


@pytest.mark.parametrize('codec', ['MSRAHeatmap', 'UDPHeatmap'])
def test_an_estimator_learns_from_random_keypoints_of_any_size_and_finds_others(codec):
    cfg = ConfigDict(estimator(keypoints=5, codec=codec))
    model = build_model(copy.deepcopy(cfg))
    assert type(task_of(model)) is Pose
    for size in (SIZE, (96, 128)):
        images = RandomImages(2, size, cfg)
        data = pseudo_collate([images[0], images[1]])
        total, told = model.parse_losses(model(**model.data_preprocessor(copy.deepcopy(data), False), mode='loss'))
        assert total.isfinite() and total > 0 and told['loss_kpt'] > 0
        found = model.eval().test_step(data)[0].pred_instances
        assert found.keypoints.shape == (1, 5, 2)


def test_it_is_tested_and_quoted(config, checkpoint):
    told = run(test, config, checkpoint, '--work-dir', config.parent / 'test')
    assert re.search(r'Student: -?\d+\.\d+ % AP\n', told)
    assert Judge().headline({'coco/AP': 0.718, 'coco/AR': 0.8}) == '71.80 % AP'
    assert Judge().headline({'PCK': 0.9}) == '90.00 % PCK'


def test_a_dry_run_reads_no_file_of_the_data(config):
    told = run(train, config, '--dry-run', '--cfg-options', 'experiment_name=dry_run_of_pose')
    assert 'Dry run: ok. 2 training steps and 1 validation step' in told and 'of no task' not in told
    assert run(taps, config).count('student=') == 4
    for variant in (benchmark.FLOOR, 'eager'):
        benchmark.build_step(read_config(config), variant, 2, 'cpu')()


def test_it_is_exported_for_mmpose_alone_and_as_a_graph(config, checkpoint):
    folder = config.parent
    told = run(export, config, checkpoint, folder / 'student.pth', '--onnx', folder / 'student.onnx')
    assert 'images (N, 3, 64, 32) to heatmaps (N, keypoints, h, w), in onnxruntime within' in told
    assert f"To load: mmpose.apis.init_model('{folder}/student.py', '{folder}/student.pth')" in told
    assert 'Overhaul need not be installed there.' in told
    plain = subprocess.run([sys.executable, '-c', PLAIN_PROCESS], cwd=folder, capture_output=True, text=True)
    assert '(1, 17, 2)' in plain.stdout, plain.stderr


def test_pictures_of_it_are_refused(config, checkpoint):
    with pytest.raises(ValueError, match='How a prediction of the TopdownPoseEstimator is drawn is not known'):
        run(plot, 'predictions', config, f'a={checkpoint}', '--out', config.parent / 'out.png')


def test_other_numbers_of_keypoints_are_told():
    few, many = (task_of(build_model(ConfigDict(estimator(keypoints=keypoints)))) for keypoints in (5, 17))
    assert many.cannot_judge(object(), few) == 'it finds 17 keypoints and the student 5'.replace(' and', ', and')
    data = RandomImages(1, SIZE, estimator(keypoints=5))
    assert few.cannot_learn_from(data) is None
    assert 'has out_channels=17, and the training data have 5 keypoints' in many.cannot_learn_from(data)


def test_a_head_of_another_kind_is_that_of_any_model(config):
    cfg = read_config(config)
    cfg.model.student.update(neck=dict(type='GlobalAveragePooling'), test_cfg={})
    cfg.model.student.head = dict(
        type='RegressionHead', in_channels=64, num_joints=17, loss=dict(type='SmoothL1Loss'))
    cfg.dump(config.parent / 'regression.py')
    told = run(train, config.parent / 'regression.py', '--dry-run', '--cfg-options', 'experiment_name=regression')
    assert "Dry run: ok. 2 training steps without the task's loss and without validation" in told
    assert type(task_of(build_model(cfg.model.student))) is not Pose
