"""Action recognition: 2D recognizers of mmaction2, a few thousand weights each, on clips of a few images."""

import copy
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from detectors import run, save_teacher, train_and_resume, two_iterations
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from plain_process import WITHOUT_OVERHAUL
from small_models import build_model
from tiny_data import write_clips

from overhaul.commands import export, taps, test, train
from overhaul.engine import benchmark
from overhaul.engine.dry_run import RandomImages
from overhaul.files.settings import read_config
from overhaul.method.normalization import Renormalize
from overhaul.tasks import Action, task_of
from overhaul.tasks.results import Judge

pytest.importorskip('mmaction', reason='mmaction2 is not installed: docs/tasks.md')

SIZE, CLASSES = (32, 32), 2
# The package of 1.2.0 lacks a folder that it imports: see overhaul/compat.py.
PLAIN_PROCESS = f"""{WITHOUT_OVERHAUL}
if {not Path(find_spec('mmaction').origin).with_name('models').joinpath('localizers/drn').is_dir()}:
    for name in ('mmaction.models.localizers.drn', 'mmaction.models.localizers.drn.drn'):
        sys.modules[name] = ModuleType(name)
    sys.modules[name].DRN = None
import torch
from mmaction.apis import init_recognizer

model = init_recognizer('student.py', 'student.pth', device='cpu')
with torch.no_grad():
    print(model(torch.load('images.pth'), mode='tensor', stage='head').tolist())
"""


def recognizer(depth=18, width=8, **backbone):
    return dict(
        _scope_='mmaction', type='Recognizer2D',
        backbone=dict(type='mmpretrain.ResNet', depth=depth, base_channels=width, stem_channels=width, **backbone),
        cls_head=dict(type='TSNHead', num_classes=CLASSES, in_channels=width * (8 if depth == 18 else 32),
                      dropout_ratio=0.4, average_clips='prob', topk=(1, )),
        data_preprocessor=dict(type='ActionDataPreprocessor', mean=[123.675, 116.28, 103.53],
                               std=[58.395, 57.12, 57.375], format_shape='NCHW'))


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """The config of a ResNet-18 that learns from a ResNet-50, on three images of a clip."""
    folder = tmp_path_factory.mktemp('action')
    write_clips(folder)
    teacher, student = recognizer(50), recognizer()

    def loader(split):
        return dict(
            batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=split == 'train'),
            dataset=dict(
                type='RawframeDataset', ann_file=f'{folder}/{split}.txt', data_prefix=dict(img=f'{folder}/clips'),
                test_mode=split != 'train', pipeline=[
                    dict(type='SampleFrames', clip_len=1, frame_interval=1, num_clips=3, test_mode=split != 'train'),
                    dict(type='RawFrameDecode'), dict(type='Resize', scale=SIZE[::-1], keep_ratio=False),
                    dict(type='FormatShape', input_format='NCHW'), dict(type='PackActionInputs')]))

    evaluator = dict(type='AccMetric', metric_options=dict(top_k_accuracy=dict(topk=(1, ))))
    model = dict(teacher=teacher, student=student, input_size=SIZE,
                 teacher_checkpoint=save_teacher(ConfigDict(teacher), str(folder / 'teacher.pth')))
    two_iterations(
        'mmaction', model, loader('train'), loader('val'), evaluator, dict(type='SGD', lr=1e-3),
    ).dump(folder / 'config.py')
    return folder / 'config.py'


@pytest.fixture(scope='module')
def checkpoint(config):
    """What came of two iterations, of which the second was resumed as well."""
    assert train_and_resume(config, config.parent) == (4, True)
    return config.parent / 'whole/iter_2.pth'


@pytest.mark.parametrize('several', [False, True])
def test_a_recognizer_learns_from_random_clips_and_tells_of_others(several):
    cfg = ConfigDict(recognizer())
    if several:
        cfg.cls_head.update(multi_class=True, loss_cls=dict(type='BCELossWithLogits'))
    model = build_model(copy.deepcopy(cfg))
    task = task_of(model)
    assert (type(task), task.num_classes, task.input_shape(SIZE)) == (Action, CLASSES, (3, 3, *SIZE))
    images = RandomImages(2, SIZE, cfg)
    data = pseudo_collate([images[0], images[1]])
    total, _ = model.parse_losses(model(**model.data_preprocessor(copy.deepcopy(data), False), mode='loss'))
    assert total.isfinite() and total > 0
    assert model.eval().test_step(data)[0].pred_score.shape == (CLASSES, )


def test_it_is_tested_and_quoted(config, checkpoint):
    assert re.search(r'Student: \d+\.00 % error\n', run(test, config, checkpoint, '--work-dir', config.parent / 'test'))
    assert Judge().headline({'acc/top1': 0.7283, 'acc/top5': 0.9}) == '27.17 % error'


def test_a_dry_run_reads_no_file_of_the_data(config):
    told = run(train, config, '--dry-run', '--cfg-options', 'experiment_name=dry_run_of_action')
    assert 'Dry run: ok. 2 training steps and 1 validation step' in told and 'of no task' not in told
    assert run(taps, config).count('student=') == 4
    for variant in (benchmark.FLOOR, 'eager'):
        benchmark.build_step(read_config(config), variant, 2, 'cpu')()


def test_it_is_exported_for_mmaction_alone_and_as_a_graph(config, checkpoint):
    folder = config.parent
    told = run(export, config, checkpoint, folder / 'student.pth', '--onnx', folder / 'student.onnx')
    assert 'images (N, 3, 3, 32, 32) to scores (N, classes), in onnxruntime within' in told
    assert f"To load: mmaction.apis.init_recognizer('{folder}/student.py', '{folder}/student.pth')" in told
    assert 'Overhaul need not be installed there.' in told
    images = torch.randn(2, 3, 3, *SIZE)
    torch.save(images, folder / 'images.pth')
    plain = subprocess.run([sys.executable, '-c', PLAIN_PROCESS], cwd=folder, capture_output=True, text=True)
    student = build_model(ConfigDict(recognizer()))
    student.load_state_dict(torch.load(folder / 'student.pth')['state_dict'])
    with torch.no_grad():
        expected = student.eval()(images, mode='tensor', stage='head')
    assert plain.stdout.strip().endswith(str(expected.tolist())), plain.stderr


def test_clips_are_normalised_anew_for_a_teacher_that_takes_them_otherwise():
    rgb, bgr = (build_model(ConfigDict(recognizer())).data_preprocessor for _ in range(2))
    bgr.to_rgb, clip = True, torch.randint(0, 256, (3, 3, *SIZE))
    taken, expected = (preprocessor.preprocess([clip.clone()], None)[0] for preprocessor in (rgb, bgr))
    torch.testing.assert_close(Renormalize(rgb, bgr)(taken), expected)


def test_clips_without_labels_are_refused(config):
    cfg = read_config(config)
    cfg.train_dataloader.unlabelled = dict(dataset=cfg.val_dataloader.dataset, per_image=1)
    cfg.dump(config.parent / 'unlabelled.py')
    with pytest.raises(ValueError, match="A transform asks for 'total_frames' of an image without labels"):
        run(train, config.parent / 'unlabelled.py', '--work-dir', config.parent / 'unlabelled')


def test_a_recognizer_without_a_head_is_not_judged():
    cfg = recognizer()
    del cfg['cls_head']
    task, student = task_of(build_model(ConfigDict(cfg))), task_of(build_model(ConfigDict(recognizer())))
    assert (task.has_loss, task.graph(), task.random_sample(SIZE, torch.Generator())) == (False, None, None)
    assert task.cannot_judge(object(), student) == 'it has no head' and student.cannot_judge(object(), task) is None
