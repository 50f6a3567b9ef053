"""Detection: detectors of mmdet, a few thousand weights each, on tiny data in the formats of COCO and Pascal VOC."""

import copy
import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from detectors import CLASSES, distillation, loads_without_this_package, run, save_teacher, train_and_resume
from matplotlib.figure import Figure
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.logging import MessageHub
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from PIL import Image
from small_models import build_model, resnet, segmentor
from tiny_data import write_coco, write_voc_boxes
from torch import nn

from overhaul.commands import export, plot, taps, test, train
from overhaul.engine import benchmark
from overhaul.engine.dry_run import RandomImages
from overhaul.errors import one_paragraph_errors
from overhaul.files.onnx_graph import OnnxGraph
from overhaul.files.settings import read_config
from overhaul.method.stages import auto_taps, find_levels
from overhaul.reports import pictures
from overhaul.tasks import Detection, task_of
from overhaul.tasks.boxes import other_truth
from overhaul.tasks.results import Judge

pytestmark = pytest.mark.detection

SIZE = (64, 96)
PREPROCESSOR = dict(
    type='DetDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True,
    pad_size_divisor=32)


def backbone(width=8):
    return dict(type='ResNet', depth=18, base_channels=width, stem_channels=width)


def pyramid(width=8, start=0, levels=4, **more):
    return dict(type='FPN', in_channels=[width, 2 * width, 4 * width, 8 * width], out_channels=8, start_level=start,
                num_outs=levels, **more)


def retinanet(width=8, classes=2):
    return dict(
        _scope_='mmdet', type='RetinaNet', data_preprocessor=PREPROCESSOR, backbone=backbone(width),
        neck=pyramid(width, start=1, levels=5, add_extra_convs='on_input'),
        bbox_head=dict(type='RetinaHead', num_classes=classes, in_channels=8, stacked_convs=1, feat_channels=8),
        train_cfg=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
            sampler=dict(type='PseudoSampler'), allowed_border=-1, pos_weight=-1, debug=False),
        test_cfg=dict(nms_pre=50, min_bbox_size=0, score_thr=0.001, nms=dict(type='nms', iou_threshold=0.5),
                      max_per_img=10))


def mask_rcnn(width=8):
    def stage(positive, add_truth, **more):
        return dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=positive, neg_iou_thr=0.3, min_pos_iou=0.3,
                          ignore_iof_thr=-1),
            sampler=dict(type='RandomSampler', num=16, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=add_truth),
            allowed_border=-1, pos_weight=-1, debug=False, **more)

    def roi(size):
        return dict(type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=size, sampling_ratio=1),
                    out_channels=8, featmap_strides=[4, 8, 16, 32])

    proposals = dict(nms_pre=50, max_per_img=20, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0)
    return dict(
        _scope_='mmdet', type='MaskRCNN', data_preprocessor=dict(PREPROCESSOR, pad_mask=True),
        backbone=backbone(width), neck=pyramid(width, levels=5),
        rpn_head=dict(
            type='RPNHead', in_channels=8, feat_channels=8,
            anchor_generator=dict(type='AnchorGenerator', scales=[8], ratios=[1.0], strides=[4, 8, 16, 32, 64])),
        roi_head=dict(
            type='StandardRoIHead', bbox_roi_extractor=roi(4), mask_roi_extractor=roi(4),
            bbox_head=dict(type='Shared2FCBBoxHead', in_channels=8, fc_out_channels=8, roi_feat_size=4, num_classes=2),
            mask_head=dict(type='FCNMaskHead', num_convs=1, in_channels=8, conv_out_channels=8, num_classes=2)),
        train_cfg=dict(rpn=stage(0.7, False), rpn_proposal=proposals, rcnn=stage(0.5, True, mask_size=8)),
        test_cfg=dict(rpn=proposals, rcnn=dict(score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=5,
                                               mask_thr_binary=0.5)))


def conditional_detr(width=8):
    attention = dict(embed_dims=16, num_heads=2)
    return dict(
        _scope_='mmdet', type='ConditionalDETR', num_queries=5, data_preprocessor=PREPROCESSOR,
        backbone=dict(backbone(width), out_indices=(3, )),
        neck=dict(type='ChannelMapper', in_channels=[8 * width], kernel_size=1, out_channels=16, act_cfg=None,
                  num_outs=1),
        encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=dict(
            embed_dims=16, feedforward_channels=16))),
        decoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=dict(
            embed_dims=16, feedforward_channels=16))),
        positional_encoding=dict(num_feats=8, normalize=True),
        bbox_head=dict(type='ConditionalDETRHead', num_classes=2, embed_dims=16,
                       loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0)),
        train_cfg=dict(assigner=dict(type='HungarianAssigner', match_costs=[dict(type='FocalLossCost', weight=2.0)])),
        test_cfg=dict(max_per_img=5))


def ssd():
    channels = (64, 32, 32)
    return dict(
        _scope_='mmdet', type='SingleStageDetector', data_preprocessor=PREPROCESSOR,
        backbone=dict(backbone(), out_indices=(3, )),
        neck=dict(type='SSDNeck', in_channels=channels[:1], out_channels=channels, level_strides=(2, 1),
                  level_paddings=(1, 1), last_kernel_size=1, l2_norm_scale=None),
        bbox_head=dict(type='SSDHead', in_channels=channels, num_classes=2, anchor_generator=dict(
            type='SSDAnchorGenerator', scale_major=False, input_size=300, basesize_ratio_range=(0.2, 0.9),
            strides=[32, 64, 64], ratios=[[2], [2], [2]])),
        train_cfg=dict(retinanet()['train_cfg'], smoothl1_beta=1.0, neg_pos_ratio=3), test_cfg=retinanet()['test_cfg'])


def yolox():
    return dict(
        _scope_='mmdet', type='YOLOX', data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
        backbone=dict(type='CSPDarknet', deepen_factor=0.1, widen_factor=0.125, out_indices=(2, 3, 4)),
        neck=dict(type='YOLOXPAFPN', in_channels=[32, 64, 128], out_channels=8, num_csp_blocks=1),
        bbox_head=dict(type='YOLOXHead', num_classes=2, in_channels=8, feat_channels=8, stacked_convs=1),
        train_cfg=dict(assigner=dict(type='SimOTAAssigner', center_radius=2.5)),
        test_cfg=dict(score_thr=0.0, nms=dict(type='nms', iou_threshold=0.65)))


KINDS = dict(retinanet=retinanet, mask_rcnn=mask_rcnn, conditional_detr=conditional_detr, ssd=ssd, yolox=yolox)
# What the graph of each gives, and how many levels of its neck can be tapped.
GRAPHS = dict(
    retinanet=[f'{name}_{level}' for name in ('cls_scores', 'bbox_preds') for level in range(5)], mask_rcnn=None,
    conditional_detr=None, ssd=[f'{name}_{level}' for name in ('cls_scores', 'bbox_preds') for level in range(3)],
    yolox=[f'{name}_{level}' for name in ('cls_scores', 'bbox_preds', 'objectnesses') for level in range(3)])
LEVELS = dict(retinanet=5, mask_rcnn=4, conditional_detr=1, ssd=2, yolox=3)


@pytest.mark.parametrize('kind', KINDS)
def test_a_detector_learns_from_random_boxes_and_predicts_others(kind):
    cfg = ConfigDict(KINDS[kind]())
    model = build_model(copy.deepcopy(cfg))
    task = task_of(model)
    assert (type(task), task.num_classes, task.channels) == (Detection, 2, 3)
    images = RandomImages(2, SIZE, cfg)
    sample = images[0]['data_samples']
    left, top, right, bottom = sample.gt_instances.bboxes.T
    assert (0 < left).all() and (left < right).all() and (right < SIZE[1]).all() and (bottom < SIZE[0]).all()
    assert ('masks' in sample.gt_instances) == (kind == 'mask_rcnn')
    if 'masks' in sample.gt_instances:
        areas = sample.gt_instances.masks.masks.sum((1, 2))
        assert np.allclose(areas, (right - left) * (bottom - top), rtol=0.2)
    data = pseudo_collate([images[0], images[1]])
    total, _ = model.parse_losses(model(**model.data_preprocessor(copy.deepcopy(data), False), mode='loss'))
    assert total.isfinite() and total > 0
    found = model.eval().test_step(data)[0].pred_instances
    assert len(found.bboxes) == len(found.scores) and found.bboxes.isfinite().all()
    assert len(find_levels(model, SIZE)) == LEVELS[kind]
    graph = task.graph()
    assert (graph and list(graph.outputs)) == GRAPHS[kind]


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'coco'
    write_coco(folder)
    return folder


ANNOTATIONS = 'annotations/instances_train2017.json'
XML = 'VOC2012/Annotations/trainval_000000.xml'


def edited(change):
    """What makes another text of an annotation file in COCO's format."""
    def edit(text):
        content = json.loads(text)
        change(content)
        return json.dumps(content)
    return edit


def set_boxes(*box):
    return edited(lambda content: [annotation.update(bbox=box) for annotation in content['annotations']])


def change_annotations(change):
    return edited(lambda content: [annotation.update(change(annotation)) for annotation in content['annotations']])


def corners(left, top, width, height):
    return left, top, left + width, top + height


def rename(**names):
    return edited(lambda content: [
        category.update(name=names.get(category['name'], category['name'])) for category in content['categories']])


@pytest.mark.parametrize(('edit', 'expected'), [
    (None, r'There is no ".+train2017.json". If data is meant, put it there'),
    (lambda _: '', r'CocoDataset cannot read its annotations, ".+train2017.json": JSONDecodeError'),
    (lambda _: '<annotation/>', 'CocoDataset cannot read .+ has not the format that a CocoDataset takes'),
    (lambda _: '[]', 'AssertionError, annotation file format <class .list.> not supported. It'),
    (edited(lambda content: content.pop('categories')), "KeyError, 'categories'. It has not the format"),
    (edited(lambda content: content.update(images=[], annotations=[])), 'CocoDataset has no image: .+ names none'),
    (set_boxes(1, 2, 3), r'ValueError, not enough values to unpack \(expected 4, got 3\)'),
    (set_boxes('a', 'b', 'c', 'd'), 'TypeError, .<. not supported'),
    (set_boxes(500, 500, 20, 20),
     '8 of its 8 boxes, as 500, 500, 20, 20 of "000000000000.jpg", of 96x64 pixels, have no part of their image'),
    (set_boxes(5, 5, 0, 20), '8 of its 8 boxes, as 5, 5, 0, 20 .+ COCO they are left, top, width and height in pixels'),
    (change_annotations(lambda annotation: dict(area=0)), 'or an area of 0, and mmdet leaves them out'),
    (change_annotations(lambda annotation: dict(bbox=corners(*annotation['bbox']))),
     'of its 8 boxes, .+ reach far out of their image. .+ COCO they are left, top, width and height in pixels'),
    (change_annotations(lambda annotation: dict(bbox=[side / 100 for side in annotation['bbox']])),
     'no number in its boxes is above 1, as .+ COCO they are left, top, width and height in pixels'),
    (edited(lambda content: content['images'][1].update(id=0)),
     'several of its images have the id 0, among them "000000000000.jpg" and "000000000001.jpg"'),
    (edited(lambda content: content['annotations'][1].update(id=1)), 'Annotation ids in .+ not unique.+ Correct it'),
    (change_annotations(lambda annotation: dict(category_id=annotation['category_id'] - 1)),
     'annotations of the category_id 0, and its categories are 1, 2'),
    (change_annotations(lambda annotation: dict(image_id=str(annotation['image_id']))),
     "annotations are of none of its images, as that of the image_id '0'"),
    (edited(lambda content: content.pop('annotations')), 'not one of their images has a box'),
    (rename(person='zebra'), 'classes that the file has not, as "person", 1 of 2. Those of it are zebra, bicycle'),
    (edited(lambda content: content['categories'].append(dict(id=3, name='person'))),
     'several categories that are called "person"'),
    (edited(lambda content: content['categories'].reverse()),
     'in the order person, bicycle, and mmdet gives labels in that of the file, bicycle, person'),
])
def test_annotations_that_are_none_are_told_in_one_paragraph(edit, expected, coco, tmp_path):
    cfg = distillation(retinanet(), retinanet(), SIZE, tmp_path)
    shutil.copytree(coco, tmp_path, dirs_exist_ok=True)
    if edit is None:
        (tmp_path / ANNOTATIONS).unlink()
    else:
        (tmp_path / ANNOTATIONS).write_text(edit((tmp_path / ANNOTATIONS).read_text()))
    assert re.search(expected, refusal(cfg))


@pytest.mark.parametrize(('edit', 'classes', 'expected'), [
    (None, 2, None), (rename(person='zebra'), 2, 'classes that the file has not, as "person", 1 of 2'),
    (None, 3, 'they have 2 classes, and the RetinaNet has num_classes=3')])
def test_data_on_which_the_evaluator_would_fail_are_refused_before_the_training(
        edit, classes, expected, coco, config, tmp_path):
    shutil.copytree(coco, tmp_path / 'coco')
    file = tmp_path / 'coco/annotations/instances_val2017.json'
    if edit is not None:
        file.write_text(edit(file.read_text()))
    cfg = distillation(retinanet(16), retinanet(classes=classes), SIZE, tmp_path / 'coco')
    init_default_scope('mmdet')
    dataset = Runner.build_dataloader(cfg.val_dataloader).dataset
    reason = task_of(build_model(cfg.model.student)).cannot_be_judged_on(dataset)
    assert reason is expected is None or re.search(expected, reason)
    if expected is not None:
        cfg.experiment_name = f'refused_{classes}'
        cfg.dump(tmp_path / 'config.py')
        with pytest.raises(ValueError, match=expected):
            run(train, tmp_path / 'config.py', '--work-dir', tmp_path / 'work')
        save_teacher(cfg.model.student, str(tmp_path / 'some.pth'))
        with pytest.raises(ValueError, match=expected):
            run(test, tmp_path / 'config.py', tmp_path / 'some.pth', '--work-dir', tmp_path / 'test')


@pytest.mark.parametrize(('edit', 'expected'), [
    (rename(person='zebra'), 'another file, which has not the class "person". Name the file of the data as ann_file'),
    (edited(lambda content: [image.update(id=image['id'] + 9) for image in content['images']]),
     'another file, in which "000000000000.jpg" has not the id 0. Name the file of the data as ann_file'),
    (edited(lambda content: [image.update(file_name='other.jpg') for image in content['images']]),
     'another file, in which "000000000000.jpg" has not the id 0'),
    (edited(lambda content: (content['images'].append(dict(content['images'][0], id=77)),
                             content['annotations'].append(dict(content['annotations'][0], id=777, image_id=77)))),
     'would count the boxes of 1 image that the data have not, such as the one with the id 77, as missed')])
def test_an_evaluator_of_another_file_is_told_before_the_training(edit, expected, coco, tmp_path):
    (tmp_path / 'other.json').write_text(edit((coco / 'annotations/instances_val2017.json').read_text()))
    cfg = distillation(retinanet(), retinanet(), SIZE, coco)
    cfg.val_evaluator.ann_file = cfg.test_evaluator.ann_file = str(tmp_path / 'other.json')
    cfg.dump(tmp_path / 'config.py')
    save_teacher(cfg.model.student, str(tmp_path / 'some.pth'))
    for command, arguments in ((train, ()), (test, (tmp_path / 'some.pth', ))):
        with pytest.raises(ValueError, match=expected):
            run(command, tmp_path / 'config.py', *arguments, '--work-dir', tmp_path / 'work', '--cfg-options',
                f'experiment_name={tmp_path.name}{command.__name__}')
    assert not list(tmp_path.glob('work/*.pth'))


@pytest.mark.parametrize(('more', 'told'), [
    ({}, True), (dict(iscrowd=1), False), (dict(image_id=78), False), (dict(category_id='of another class'), False)])
def test_boxes_that_an_evaluator_does_not_count_are_none_that_the_data_lack(more, told, coco, tmp_path):
    from mmdet.evaluation import CocoMetric
    from mmdet.registry import DATASETS
    content = json.loads((coco / 'annotations/instances_val2017.json').read_text())
    content['images'].append(dict(content['images'][0], id=77))
    content['categories'].append(dict(content['categories'][0], id='of another class', name='unicorn'))
    content['annotations'].append(dict(content['annotations'][0], id=777, image_id=77) | more)
    (tmp_path / 'other.json').write_text(json.dumps(content))
    data = distillation(retinanet(), retinanet(), SIZE, coco).val_dataloader.dataset
    dataset = DATASETS.build(dict(data, pipeline=[]))
    assert bool(other_truth(dataset, [CocoMetric(str(tmp_path / 'other.json'))])) == told


@pytest.mark.parametrize(('edit', 'expected'), [
    (lambda text: '{}', r'VOCDataset cannot read .+: ParseError, not well-formed'),
    (lambda text: re.sub(r'<xmin>\d+', '<xmin>500', re.sub(r'<xmax>\d+', '<xmax>520', text)),
     r'the box 499, \d+, 519, \d+ of ".+trainval_000000.jpg", of 96x64 pixels, has no part of the image in it')])
def test_the_same_of_pascal_voc(edit, expected, tmp_path):
    write_voc_boxes(tmp_path)
    (tmp_path / XML).write_text(edit((tmp_path / XML).read_text()))
    cfg = of_pascal_voc(distillation(retinanet(), retinanet(), SIZE, 'nowhere'), tmp_path)
    assert re.search(expected, refusal(cfg))


def refusal(cfg):
    """What is said of the training data of a config before a training."""
    init_default_scope('mmdet')
    with pytest.raises(SystemExit) as exit_, one_paragraph_errors():
        loader = cfg.train_dataloader
        loader.dataset = dict(type='RepeatDataset', times=2, dataset=loader.dataset)
        dataset = Runner.build_dataloader(loader).dataset
        sys.exit(task_of(build_model(ConfigDict(retinanet()))).cannot_learn_from(dataset))
    assert '\n' not in exit_.value.code
    return exit_.value.code


def of_pascal_voc(cfg, root):
    """The config with data in the format of Pascal VOC."""
    for loader, year, split in ((cfg.train_dataloader, 'VOC2012', 'trainval'), (cfg.val_dataloader, 'VOC2007', 'test')):
        loader.dataset.update(
            type='VOCDataset', data_root=str(root), ann_file=f'{year}/ImageSets/Main/{split}.txt',
            data_prefix=dict(sub_data_root=f'{year}/'), metainfo=dict(classes=('aeroplane', 'bicycle')))
    cfg.val_evaluator = dict(type='VOCMetric', metric='mAP', eval_mode='11points')
    return cfg


@pytest.fixture(scope='module')
def config(coco, tmp_path_factory):
    """The config of a RetinaNet that learns from one twice as wide, also from its neck."""
    folder = tmp_path_factory.mktemp('retinanet')
    teacher = retinanet(16)
    cfg = distillation(
        teacher, retinanet(), SIZE, coco, tap_neck=True,
        teacher_checkpoint=save_teacher(ConfigDict(teacher), str(folder / 'teacher.pth')))
    cfg.dump(folder / 'config.py')
    return folder / 'config.py'


@pytest.fixture(scope='module')
def trained(config):
    """What came of resuming it, and the folder with whole/iter_2.pth."""
    return train_and_resume(config, config.parent), config.parent


@pytest.mark.parametrize('kind', KINDS)
def test_images_without_boxes_beside_those_with_boxes_leave_its_loss_as_it_is(coco, kind):
    student = dict(KINDS[kind](), data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[0.0] * 3, std=[60.0] * 3, pad_size_divisor=32, pad_mask=True,
        batch_augments=[dict(type='BatchSyncRandomResize', random_size_range=(64, 64), size_divisor=32)]))
    cfg = distillation(
        retinanet(16), student, SIZE, coco, masks=kind == 'mask_rcnn', tap_neck=kind == 'mask_rcnn',
        margin=dict(source='zero'))
    cfg.model.alpha = 1
    init_default_scope('mmdet')
    MessageHub.get_current_instance().update_info('iter', 0)  # by which a batch is resized
    pipeline = cfg.train_dataloader.dataset.pipeline
    pipeline[-1:-1] = [dict(type='RandomCrop', crop_size=SIZE[::-1]), dict(type='FilterAnnotations')]
    cfg.train_dataloader.update(
        unlabelled=dict(data_root=f'{coco}/val2017', per_image=2), sampler=dict(type='DefaultSampler', shuffle=False))
    model = build_model(cfg.model)
    batch = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
    assert len(batch['inputs']) == 6 and all(
        len(sample.gt_instances) == 0 for sample in batch['data_samples'][2:])
    data = model.data_preprocessor(batch, True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # no image counts for another
    torch.manual_seed(0)
    losses = model(**data, mode='loss')
    torch.manual_seed(0)
    alone = model.student(data['inputs'][:2], data['data_samples'][:2], mode='loss')
    expected, found = (model.parse_losses(part)[0].item() for part in (
        alone, {name: loss for name, loss in losses.items() if name not in model.loss_names}))
    assert found == pytest.approx(expected, rel=1e-4)
    assert all(losses[name] > 0 for name in model.loss_names)


def test_it_is_distilled_and_goes_on_bit_by_bit_after_an_interruption(trained):
    assert trained[0] == (4 + 5, True)


def test_its_results_are_quoted_and_its_boxes_drawn(trained, config):
    checkpoint = trained[1] / 'whole/iter_2.pth'
    told = run(test, config, checkpoint, '--work-dir', trained[1] / 'test')
    assert re.search(r'Student: (\d+\.\d+ % box mAP|no result)', told)
    out = trained[1] / 'out.png'
    run(plot, 'predictions', config, f'distilled={checkpoint}', '--images', '1', '--out', out)
    assert out.stat().st_size > 5_000


@pytest.mark.parametrize('bgr_to_rgb', [False, True])
def test_its_images_are_drawn_in_the_colours_of_their_files(coco, tmp_path, monkeypatch, bgr_to_rgb):
    student = dict(retinanet(), data_preprocessor=dict(PREPROCESSOR, bgr_to_rgb=bgr_to_rgb))
    distillation(student, student, SIZE, coco).dump(tmp_path / 'config.py')
    save_teacher(ConfigDict(student), str(tmp_path / 'some.pth'))
    drawn = []
    monkeypatch.setattr(pictures, 'draw_predictions', lambda _, images, *rest: drawn.extend(images) or Figure())
    run(plot, 'predictions', tmp_path / 'config.py', f'a={tmp_path}/some.pth', '--out', tmp_path / 'out.png')
    for image, file in zip(drawn, sorted((coco / 'val2017').glob('*.jpg')), strict=True):
        np.testing.assert_allclose(image, np.asarray(Image.open(file)), atol=60)  # as another library decodes it
        assert np.abs(image.astype(int) - np.asarray(Image.open(file))).mean() < 5


def test_it_is_exported_for_mmdet_alone_and_as_the_graph_of_its_head(trained, config):
    folder = trained[1]
    told = run(export, config, folder / 'whole/iter_2.pth', folder / 'student.pth', '--onnx', folder / 'student.onnx',
               '--size', *SIZE)
    assert re.search(r'to cls_scores_0 \(N, C, h, w\), .* bbox_preds_4 .* in onnxruntime within', told)
    assert f"To load: mmdet.apis.init_detector('{folder}/student.py', '{folder}/student.pth')" in told
    assert 'Overhaul need not be installed there.' in told and 'names of 2 classes' in told
    student = build_model(ConfigDict(retinanet()))
    student.load_state_dict(torch.load(folder / 'student.pth')['state_dict'])
    assert loads_without_this_package(student, folder, SIZE)


def test_a_detector_of_two_stages_has_no_graph():
    with pytest.raises(ValueError, match='What an ONNX graph of the MaskRCNN would give is not known'):
        OnnxGraph(task_of(build_model(ConfigDict(mask_rcnn()))), SIZE)


def test_outputs_that_nobody_has_named_are_refused():
    cfg = ConfigDict(retinanet(), type='VFNet', bbox_head=dict(  # which gives more in training
        type='VFNetHead', num_classes=2, in_channels=8, feat_channels=8, stacked_convs=1,
        norm_cfg=dict(type='GN', num_groups=4)))
    graph = OnnxGraph(task_of(build_model(cfg)), SIZE)
    with pytest.raises(ValueError, match='Out of the VFNet come 10 tensors, and of these 15 would be expected: cls_sc'):
        graph.write('nowhere.onnx')


def test_a_dry_run_reads_no_file_of_the_data(coco, tmp_path):
    cfg = distillation(retinanet(16), mask_rcnn(), SIZE, 'nowhere', masks=True, tap_neck=True)
    cfg.train_dataloader.batch_sampler = dict(type='AspectRatioBatchSampler')  # as most configs of mmdet have it
    cfg.dump(tmp_path / 'config.py')
    told = run(train, tmp_path / 'config.py', '--dry-run', '--cfg-options', 'experiment_name=dry_run_of_boxes')
    assert 'Dry run: ok. 2 training steps and 1 validation step' in told
    assert re.search(r'neck\.fpn_convs\.0\.conv +8 +8x12 +data +neck\.fpn_convs\.1\.conv +8 +8x12 +0\.25', told)


def test_the_list_of_taps_has_the_levels_of_the_neck(config):
    told = run(taps, config)
    assert re.search(r'neck\.fpn_convs\.3\.conv +neck +8 +64 +1x2 +data +estimated by overhaul.CalibrateHook', told)
    assert told.count("student='neck.fpn_convs.") == 5


@pytest.mark.parametrize('variant', [benchmark.FLOOR, benchmark.STUDENT, 'eager'])
def test_a_step_can_be_measured(config, variant):
    benchmark.build_step(read_config(config), variant, 2, 'cpu')()


def yolox_that_asks_for_the_iteration():
    return dict(yolox(), data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32, batch_augments=[
        dict(type='BatchSyncRandomResize', random_size_range=(64, 64), size_divisor=32)]))


def tood_that_asks_for_the_epoch():
    head = dict(
        type='TOODHead', num_classes=2, in_channels=8, feat_channels=8, stacked_convs=1, anchor_type='anchor_free',
        norm_cfg=dict(type='GN', num_groups=4), anchor_generator=dict(
            type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, scales_per_octave=1,
            strides=[8, 16, 32, 64, 128]),
        initial_loss_cls=dict(type='FocalLoss', use_sigmoid=True, activated=True),
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, activated=True),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0))
    return dict(retinanet(), type='TOOD', bbox_head=head, train_cfg=dict(
        initial_epoch=4, initial_assigner=dict(type='ATSSAssigner', topk=9),
        assigner=dict(type='TaskAlignedAssigner', topk=13), alpha=1, beta=6, allowed_border=-1, pos_weight=-1))


@pytest.mark.parametrize(('student', 'hooks'), [
    (yolox_that_asks_for_the_iteration, [dict(type='YOLOXModeSwitchHook', num_last_epochs=1)]),
    (tood_that_asks_for_the_epoch, [])])
def test_what_mmdet_asks_of_a_runner_and_of_its_detectors_is_there(student, hooks, coco, tmp_path):
    cfg = distillation(retinanet(), student(), SIZE, coco)
    cfg.train_cfg, cfg.custom_hooks = dict(by_epoch=True, max_epochs=1), list(map(ConfigDict, hooks))
    cfg.dump(tmp_path / 'config.py')
    options = ['--dry-run', '--cfg-options', f'experiment_name={student.__name__}']
    assert 'Dry run: ok.' in run(train, tmp_path / 'config.py', *options)
    for variant in (benchmark.FLOOR, benchmark.STUDENT, 'eager'):
        MessageHub._instance_dict.clear()  # as in a process in which no runner was
        benchmark.build_step(read_config(tmp_path / 'config.py'), variant, 2, 'cpu')()


def test_data_of_pascal_voc_are_learned_from_and_tested_on(tmp_path):
    write_voc_boxes(tmp_path / 'voc')
    cfg = of_pascal_voc(distillation(retinanet(16), ssd(), SIZE, 'nowhere'), tmp_path / 'voc')
    cfg.dump(tmp_path / 'config.py')
    told = run(train, tmp_path / 'config.py', '--work-dir', tmp_path / 'work')
    assert re.search(r'Student: best \d+\.\d+ % mAP \(iteration 2\)', told)


def test_a_neck_without_a_level_is_told():
    models = [build_model(ConfigDict(kind())) for kind in (retinanet, retinanet)]
    assert len(auto_taps(*models, SIZE)) == 4
    with pytest.raises(ValueError, match='tap_neck=True found no level in a neck of the student'):
        auto_taps(models[0], build_model(resnet()), SIZE, tap_neck=True)


@pytest.mark.parametrize(('teacher', 'reason'), [
    (retinanet, 'it gives boxes, and the student masks as well'), (mask_rcnn, None),
    (lambda: retinanet(classes=5), 'it tells 5 classes apart, and the data have 2'),
    (segmentor, 'it has another task: it is of type EncoderDecoder, and the student of type MaskRCNN')])
def test_a_teacher_is_judged_where_it_gives_what_the_student_does(teacher, reason):
    teacher, student = (task_of(build_model(ConfigDict(kind()))) for kind in (teacher, mask_rcnn))
    assert teacher.cannot_judge(object(), student) == reason


@pytest.mark.parametrize(('metrics', 'line'), [
    ({'coco/bbox_mAP': 0.374, 'coco/segm_mAP': 0.3}, '37.40 % box mAP'), ({'coco/segm_mAP': 0.3}, '30.00 % mask mAP'),
    ({'pascal_voc/AP50': 0.9, 'pascal_voc/mAP': 0.772}, '77.20 % mAP')])
def test_shares_are_quoted_in_percent(metrics, line):
    assert Judge().headline(metrics) == line


def test_boxes_are_drawn_in_the_size_of_the_file_and_only_those_that_are_sure():
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    task = task_of(build_model(ConfigDict(mask_rcnn())))
    metainfo = dict(classes=CLASSES, palette=[(255, 0, 0), (0, 0, 255)])
    mask = np.zeros((1, 60, 80), np.uint8)
    mask[0, 20:40, 20:60] = 1
    sample = DetDataSample(metainfo=dict(ori_shape=(60, 80)))
    boxes = torch.tensor([[20.0, 20, 60, 40], [2, 2, 78, 58]])
    sample.pred_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1, 0]), scores=torch.tensor([0.9, 0.1]))
    sample.gt_instances = InstanceData(bboxes=boxes[:1], labels=torch.tensor([1]), masks=BitmapMasks(mask, 60, 80))
    black = np.zeros((30, 40, 3), np.uint8)
    (predicted, _), (truth, _) = (task.draw(black, sample, metainfo, truth) for truth in (False, True))
    assert predicted.shape == truth.shape == (60, 80, 3)
    assert predicted[20, 40, 2] > 150 and not predicted[..., 0].any()  # the edge is blue, and nothing red
    assert not predicted[30, 40].any() and truth[30, 40, 2] > 100  # the mask fills the box
    assert task.legend([sample], metainfo) == [('bicycle', (0.0, 0.0, 1.0))]
    assert task.draw(black, DetDataSample(), metainfo, truth=True) == (black, 'no boxes')
