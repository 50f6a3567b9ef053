"""Detectors of mmdet that teach each other: which of them train, resume, test and export, on tiny data.

    python tests/detectors.py > docs/detectors.md

Needs the extras ``detection`` and ``onnx``, and takes about ten minutes on two cores. ``python tests/detectors.py
retinanet`` looks at those pairs alone that have this word in their name.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from plain_process import WITHOUT_OVERHAUL
from tiny_data import write_coco

from overhaul.commands import export, plot, test, train
from overhaul.engine.dry_run import without_downloads
from overhaul.files.parts import model_of
from overhaul.registry import build
from overhaul.reports.logs import read_log

CLASSES = ('person', 'bicycle')

PLAIN_PROCESS = f"""{WITHOUT_OVERHAUL}
import torch
from mmdet.apis import init_detector

model = init_detector('student.py', 'student.pth', device='cpu')
with torch.no_grad():
    features = model.extract_feat(torch.load('images.pth'))
torch.save([list(model.dataset_meta['classes']), *features], 'features.pth')
"""


class Pair(NamedTuple):
    """A teacher and a student: configs of mmdet, what is changed in the student's, and the side of the images."""

    teacher: str
    student: str
    narrow: bool = True
    side: int = 128

    @property
    def masks(self) -> bool:
        """Whether the student learns masks."""
        return 'mask' in self.student


SSD, RETINANET = 'ssd/ssd300_coco', 'retinanet/retinanet_r50_fpn_1x_coco'
FASTER, MASK = 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco'
FCOS = 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco'
CONDITIONAL_DETR, DINO = 'conditional_detr/conditional-detr_r50_8xb2-50e_coco', 'dino/dino-4scale_r50_8xb2-12e_coco'
YOLOX, RTMDET = 'yolox/yolox_tiny_8xb8-300e_coco', 'rtmdet/rtmdet_tiny_8xb32-300e_coco'

PAIRS = {
    'SSD300 VGG-16 to ResNet-18': Pair(SSD, SSD, side=300),
    'RetinaNet': Pair(RETINANET, RETINANET),
    'FCOS': Pair(FCOS, FCOS),
    'ATSS': Pair('atss/atss_r50_fpn_1x_coco', 'atss/atss_r50_fpn_1x_coco'),
    'GFL': Pair('gfl/gfl_r50_fpn_1x_coco', 'gfl/gfl_r50_fpn_1x_coco'),
    'YOLOX-s to tiny': Pair('yolox/yolox_s_8xb8-300e_coco', YOLOX, narrow=False),
    'RTMDet-s to tiny': Pair('rtmdet/rtmdet_s_8xb32-300e_coco', RTMDET, narrow=False),
    'Faster R-CNN': Pair(FASTER, FASTER),
    'Mask R-CNN': Pair(MASK, MASK),
    'Conditional DETR': Pair(CONDITIONAL_DETR, CONDITIONAL_DETR),
    'DINO': Pair(DINO, DINO, side=224),
    'Faster R-CNN to RetinaNet': Pair(FASTER, RETINANET),
    'RetinaNet to Mask R-CNN': Pair(RETINANET, MASK),
    'Mask R-CNN to FCOS': Pair(MASK, FCOS),
    'RTMDet-s to YOLOX-tiny': Pair('rtmdet/rtmdet_s_8xb32-300e_coco', YOLOX, narrow=False),
    'DINO to Conditional DETR': Pair(DINO, CONDITIONAL_DETR, side=224),
}


def detector(name: str, narrow: bool = False) -> dict:
    """Return the config of a detector of mmdet with the classes of the tiny data; on a ResNet-18 if ``narrow``."""
    model = copy.deepcopy(model_of(f'mmdet::{name}.py'))
    without_downloads(model)
    model['data_preprocessor'].pop('batch_augments', None)  # of YOLOX, images of 480 to 800 pixels
    _set_classes(model)
    if narrow and name == SSD:
        model['backbone'] = dict(type='ResNet', depth=18, out_indices=(1, 2, 3))
        channels = (128, 256, 512, 256, 256, 256)
        model['neck'].update(
            in_channels=channels[:3], out_channels=channels, level_strides=(2, 1, 1), level_paddings=(1, 0, 0),
            l2_norm_scale=None)
        model['bbox_head']['in_channels'] = channels
    elif narrow:
        model['backbone']['depth'] = 18
        model['neck']['in_channels'] = [channels // 4 for channels in model['neck']['in_channels']]
    return model


def _set_classes(part: object) -> None:
    if isinstance(part, dict):
        if 'num_classes' in part:
            part['num_classes'] = len(CLASSES)
        part = list(part.values())
    for child in part if isinstance(part, list | tuple) else ():
        _set_classes(child)


def distillation(teacher: dict, student: dict, size: tuple[int, int], data: str, masks: bool = False, **more) -> Config:
    """Return the config of a distillation of two iterations on the tiny data in the folder ``data``."""
    load = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=size[::-1], keep_ratio=False),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=masks), dict(type='PackDetInputs')]

    def loader(split: str, pipeline: list) -> dict:
        return dict(
            batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=split == 'train'),
            dataset=dict(type='CocoDataset', data_root=f'{data}/', ann_file=f'annotations/instances_{split}2017.json',
                         data_prefix=dict(img=f'{split}2017/'), metainfo=dict(classes=CLASSES), pipeline=pipeline,
                         test_mode=split != 'train'))

    evaluator = dict(
        type='CocoMetric', ann_file=f'{data}/annotations/instances_val2017.json',
        metric=['bbox', 'segm'] if masks else 'bbox')
    model = dict(teacher=teacher, student=student, input_size=size, **more)
    train = loader('train', [load[0], load[2], load[1], load[3]])
    return two_iterations('mmdet', model, train, loader('val', load), evaluator, dict(type='SGD', lr=1e-5))


def two_iterations(scope: str, model: dict, train: dict, val: dict, evaluator: dict, optimizer: dict) -> Config:
    """Return the config of a distillation of two iterations, each with a checkpoint, and a validation after them."""
    return Config(dict(
        default_scope=scope,
        model=dict(type='overhaul.OverhaulDistiller', taps='auto', alpha='auto', **model),
        train_dataloader=train, val_dataloader=val, test_dataloader=val, val_evaluator=evaluator,
        test_evaluator=evaluator, val_cfg={}, test_cfg={}, train_cfg=dict(by_epoch=False, max_iters=2, val_interval=2),
        optim_wrapper=dict(optimizer=optimizer), randomness=dict(seed=0), log_level='INFO',
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False),
            logger=dict(type='LoggerHook', interval=1), calibrate=dict(type='overhaul.CalibrateHook', batches=2),
            summary=dict(type='overhaul.SummaryHook'), health=dict(type='overhaul.HealthHook'))))


def save_teacher(cfg: dict, path: str) -> str:
    """Write weights of a teacher as it is initialised."""
    model = build(copy.deepcopy(cfg), 'teacher')  # building edits a config
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=CLASSES))), path)
    return path


def run(command: object, *arguments: object) -> str:
    """Run a command of the package in this process and return what it prints; its own errors become ValueErrors."""
    DefaultScope._instance_dict.clear()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            command.main([str(argument) for argument in arguments])
        except SystemExit as error:
            raise ValueError(error.code) from None
    return printed.getvalue()


def train_and_resume(config: Path, folder: Path) -> tuple[int, bool]:
    """Train two iterations, and one and the other apart; return the taps, and whether the weights are the same."""
    name = config.parent.name
    options = ['--cfg-options', f'experiment_name={name}{os.urandom(4).hex()}']
    run(train, config, '--work-dir', folder / 'whole', *options)
    (folder / 'halves').mkdir()
    shutil.copy(folder / 'whole/iter_1.pth', folder / 'halves')
    (folder / 'halves/last_checkpoint').write_text(str(folder / 'halves/iter_1.pth'))
    options = ['--cfg-options', f'experiment_name={name}{os.urandom(4).hex()}']
    run(train, config, '--work-dir', folder / 'halves', '--resume', *options)
    whole, resumed = (torch.load(folder / part / 'iter_2.pth')['state_dict'] for part in ('whole', 'halves'))
    log = read_log(folder / 'whole')
    for losses in (log.task_losses, *log.tap_losses.values()):
        if not all(0 < loss < float('inf') for loss in losses.values()):
            raise ValueError(f'Not finite, or 0: {losses}')
    return len(log.tap_losses), all(torch.equal(value, resumed[key]) for key, value in whole.items())


def loads_without_this_package(student: torch.nn.Module, folder: Path, size: tuple[int, int]) -> bool:
    """Whether plain mmdet loads ``student.pth`` of the folder and gives the features of the student bit by bit."""
    images = torch.randn(1, 3, *size)
    torch.save(images, folder / 'images.pth')
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    process = subprocess.run(
        [sys.executable, '-c', PLAIN_PROCESS], cwd=folder, env=environment, capture_output=True, text=True)
    if process.returncode:
        raise ValueError(process.stderr.strip().splitlines()[-1])
    classes, *features = torch.load(folder / 'features.pth')
    with torch.no_grad():
        expected = student.eval().extract_feat(images)
    return classes == list(CLASSES) and all(map(torch.equal, features, expected))


def look_at(name: str, pair: Pair, folder: Path) -> list[str]:
    """Return the row of a pair; what is refused has the first sentence of the refusal."""
    torch.manual_seed(0)
    size = (pair.side, pair.side)
    teacher, student = detector(pair.teacher), detector(pair.student, pair.narrow)
    cfg = distillation(
        teacher, student, size, str(folder.parent / 'coco'), pair.masks, tap_neck=True,
        teacher_checkpoint=save_teacher(teacher, str(folder / 'teacher.pth')))
    config = folder / 'config.py'
    cfg.dump(config)

    cells, checkpoint = [name], folder / 'work/whole/iter_2.pth'
    (folder / 'work').mkdir()
    try:
        taps, same = train_and_resume(config, folder / 'work')
        cells += [str(taps), 'yes' if same else 'differs']
    except ValueError as error:
        return [*cells, _refusal(error), '', '', '', '', '']

    def check(look: object) -> None:
        try:
            cells.append(look())
        except ValueError as error:
            cells.append(_refusal(error))

    options = ['--cfg-options', f'experiment_name={folder.name}{os.urandom(4).hex()}']
    check(lambda: re.findall(
        r'Student: (.+)', run(test, config, checkpoint, '--work-dir', folder / 'test', *options))[-1])
    check(lambda: 'yes' * bool(run(plot, 'predictions', config, f'a={checkpoint}', '--out', folder / 'out.png')))
    run(export, config, checkpoint, folder / 'student.pth')
    model = build(copy.deepcopy(student), 'student')
    model.load_state_dict(torch.load(folder / 'student.pth')['state_dict'])
    check(lambda: 'yes' if loads_without_this_package(model, folder, size) else 'differs')
    graph = [folder / 'student.pth', '--onnx', folder / 'student.onnx', '--size', *size]
    check(lambda: re.search(r'within (\S+) of', run(export, config, checkpoint, *graph))[1])
    return cells


def _refusal(error: ValueError) -> str:
    return 'refused: ' + re.split(r'(?<=\.) ', ' '.join(str(error).removeprefix('error: ').split()))[0]


HEADER = """\
# Detectors

These are pairs of mmdet 3.3.0, trained on a few images in COCO's format, with random weights and two classes. Images
have 128x128 pixels, or the smallest size that the detector takes. Without backbones or sizes in its name, a pair goes
from ResNet-50 to ResNet-18. Made by `python tests/detectors.py`, with mmcv-lite and the operators of torchvision, and
with the versions of `constraints.txt`.

*taps*: how many taps `taps='auto'` with `tap_neck=True` finds in backbones and necks together. *resumes*: whether one
iteration, a new start with `--resume` and one more iteration end with the same weights, bit by bit, as two iterations
without a stop. *test*: the result of `test.py`, which means nothing after two iterations. *drawn*: whether
`plot.py predictions` draws it. *loads*: whether `mmdet.apis.init_detector` loads the exported student without this
package, and it gives the same features bit by bit. *ONNX*: the largest difference between onnxruntime and the model.

| pair | taps | resumes | test | drawn | loads | ONNX |
|---|---|---|---|---|---|---|"""


def main() -> None:
    """Print the page."""
    warnings.filterwarnings('ignore')
    MMLogger.get_instance('detectors', log_level='WARNING')  # else every weight's initialisation is told
    print(HEADER)
    with tempfile.TemporaryDirectory() as folder:
        write_coco(Path(folder, 'coco'), classes=CLASSES)
        for number, (name, pair) in enumerate(PAIRS.items()):
            if len(sys.argv) == 1 or any(word.lower() in name.lower() for word in sys.argv[1:]):
                place = Path(folder, f'pair{number}')
                place.mkdir()
                print('| ' + ' | '.join(look_at(name, pair, place)) + ' |', flush=True)
                gc.collect()


if __name__ == '__main__':
    main()
