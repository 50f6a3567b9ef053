"""What is asked of a task: of the models of mmpretrain and mmseg, of any other, and of a task of one's own."""

import re
from pathlib import Path

import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel, ImgDataPreprocessor
from mmengine.structures import PixelData
from mmpretrain.datasets import CustomDataset
from mmpretrain.models.heads import ClsHead
from mmpretrain.structures import DataSample, MultiTaskDataSample
from mmseg.structures import SegDataSample
from small_models import CLASSES, build_distiller, build_model, resnet, segmentor, wide_resnet
from test_tools import run_in_process
from tiny_data import write_images
from torch import nn

from overhaul.files.export import export_student
from overhaul.files.onnx_graph import OnnxGraph
from overhaul.files.parts import task_name
from overhaul.registry import MODELS, TASKS
from overhaul.tasks import Classification, Segmentation, Task, classes_of, names_of, student_of, task_of
from overhaul.tasks.results import Judge

PAGE = (Path(__file__).parents[2] / 'docs/tasks.md').read_text()
SIZE = (32, 32)


def with_head(**head):
    return dict(wide_resnet(), head={'in_channels': 64, **head})


def cascade():
    """OCRNet in small: the second decode head works on what the first gives."""
    first = segmentor()
    ocr = dict(type='OCRHead', in_channels=32, in_index=3, channels=8, ocr_channels=4, num_classes=CLASSES,
               norm_cfg=dict(type='BN'))
    return dict(first, type='CascadeEncoderDecoder', num_stages=2, decode_head=[first['decode_head'], ocr])


def with_decode_head(**head):
    return dict(segmentor(), test_cfg=ConfigDict(mode='whole'), decode_head=dict(
        dict(in_channels=32, in_index=3, channels=8, num_classes=CLASSES, norm_cfg=dict(type='BN')), **head))


def point_rend():
    """PointRend in small, whose last head takes points and so has no ``mode='tensor'``."""
    neck = dict(type='FPN', in_channels=[4, 8, 16, 32], out_channels=8, num_outs=4)
    head = dict(channels=8, num_classes=CLASSES)
    heads = [
        dict(head, type='FPNHead', in_channels=[8] * 4, in_index=[0, 1, 2, 3], feature_strides=[4, 8, 16, 32],
             norm_cfg=dict(type='BN')),
        dict(head, type='PointHead', in_channels=[8], in_index=[0], num_fcs=1)]
    return dict(
        segmentor(), type='CascadeEncoderDecoder', num_stages=2, neck=neck, decode_head=heads,
        train_cfg=ConfigDict(num_points=16, oversample_ratio=3, importance_sample_ratio=0.75),
        test_cfg=ConfigDict(mode='whole', subdivision_steps=2, subdivision_num_points=16, scale_factor=2))


TWO_TASKS = dict(
    colour=dict(type='LinearClsHead', num_classes=2), shape=dict(type='MultiLabelLinearClsHead', num_classes=3))
NESTED = dict(inside=dict(type='MultiTaskHead', task_heads=TWO_TASKS), size=dict(type='LinearClsHead', num_classes=4))


@MODELS.register_module(force=True)
class NumberHead(ClsHead):
    """A head without classes: it learns the label as a number."""

    def __init__(self, in_channels, count=1):
        super(ClsHead, self).__init__()
        self.last = nn.Linear(in_channels, count)

    def forward(self, feats):
        return self.last(feats[-1])

    def loss(self, feats, data_samples):
        numbers = torch.cat([sample.gt_label for sample in data_samples])
        return dict(loss=nn.functional.mse_loss(self(feats)[:, 0], numbers.float()))


KINDS = {
    'a label': (wide_resnet(), Classification, CLASSES),
    'several labels': (with_head(type='MultiLabelLinearClsHead', num_classes=3), Classification, 3),
    'several tasks': (with_head(type='MultiTaskHead', task_heads=TWO_TASKS), Classification, None),
    'tasks within a task': (with_head(type='MultiTaskHead', task_heads=NESTED), Classification, None),
    'a number': (with_head(type='overhaul.NumberHead'), Classification, None),
    'timm': (dict(_scope_='mmpretrain', type='TimmClassifier', model_name='resnet10t', num_classes=7),
             Classification, 7),
    'masks': (segmentor(), Segmentation, CLASSES),
    'masks by several heads': (cascade(), Segmentation, CLASSES),
}


@pytest.mark.parametrize('kind', KINDS)
def test_a_model_learns_from_the_annotations_that_its_task_makes_and_its_graph_is_the_model(kind, tmp_path):
    pytest.importorskip('timm')
    cfg, task_class, num_classes = KINDS[kind]
    model = build_model(dict(cfg))
    task = task_of(model)
    assert (type(task), task.num_classes, task.channels) == (task_class, num_classes, 3)
    generator = torch.Generator().manual_seed(0)
    samples = [task.random_sample(SIZE, generator) for _ in range(4)]
    total, _ = model.parse_losses(model(torch.rand(4, 3, *SIZE, generator=generator), samples, mode='loss'))
    assert total.isfinite() and total > 0
    path = tmp_path / 'graph.onnx'
    told = OnnxGraph(task_of(model.eval()), SIZE).write(path)
    assert path.is_file() and ' of the model. Normalise' in told
    assert kind != 'several tasks' or 'colour (N, classes), shape (N, classes)' in told
    assert kind != 'tasks within a task' or 'inside_colour (N, classes), inside_shape (N, classes), size (N, ' in told
    assert kind != 'a number' or 'logits (N, values)' in told


def test_a_model_whose_head_has_no_plain_pass_is_distilled_by_what_lies_before_it():
    model = build_distiller(
        teacher=point_rend(), student=point_rend(), taps='auto', input_size=(64, 64), alpha=1e-3, tap_neck=True)
    assert [tap.path for tap in model.student_taps][3:5] == ['backbone.layer4.1.relu:input', 'neck.fpn_convs.0.conv']
    for margin in model.margins[4:]:  # those of convolutions
        margin.margin.fill_(-0.1)
    task, generator = task_of(model), torch.Generator().manual_seed(0)
    samples = [task.random_sample((64, 64), generator) for _ in range(2)]
    losses = model(torch.rand(2, 3, 64, 64, generator=generator), samples, mode='loss')
    assert all(losses[name].isfinite() for name in model.loss_names)
    head = 'decode_head.1.fcs.0'
    with pytest.raises(ValueError, match=r"failed on one image .* forward\(mode='tensor'\), which does not get as far"):
        build_distiller(teacher=point_rend(), student=point_rend(), taps=[dict(teacher=head, student=head)],
                        input_size=(64, 64))


@pytest.mark.parametrize('head', [
    dict(type='DAHead', pam_channels=4),
    dict(type='EncHead', in_channels=[8, 16, 32], in_index=[1, 2, 3], num_codes=4)])
def test_the_graph_of_a_segmentor_gives_what_is_predicted_alone(head):
    model = build_model(with_decode_head(**head)).eval()
    images = torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        predicted = model(images, mode='predict')
        logits = task_of(model).graph().module(images)
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(
        logits, (sample.seg_logits.data for sample in predicted), strict=True))


def test_channels_are_those_of_the_preprocessor_or_the_first_convolution():
    model = build_model(wide_resnet())
    assert task_of(model).channels == 3
    model.data_preprocessor = ImgDataPreprocessor(mean=[0.5], std=[1.0])  # one for all
    assert task_of(model).channels == 3
    assert task_of(build_model(resnet(in_channels=1))).channels == 1
    bands = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(ValueError, match='How many channels .* mean and a std'):
        _ = task_of(bands).channels
    bands.data_preprocessor = nn.Module()
    bands.data_preprocessor.mean = torch.zeros(12, 1, 1)
    assert task_of(bands).channels == 12
    bands.data_preprocessor.mean, bands.data_preprocessor.std = torch.zeros(1), torch.ones(4, 1, 1)
    assert task_of(bands).channels == 4


def test_channels_are_those_of_the_trunk_whatever_is_registered_before_it():
    model = nn.Module()
    model.guide, model.backbone = nn.Conv2d(1, 1, 1), nn.Conv2d(5, 1, 1)
    assert task_of(model).channels == 5


@pytest.mark.parametrize(('cfg', 'features', 'head'), [
    (wide_resnet(), 'backbone.conv1.weight', 'head.fc.weight'),
    (dict(_scope_='mmpretrain', type='TimmClassifier', model_name='resnet10t', num_classes=7),
     'conv1.0.weight', 'fc.weight')])
def test_a_tensor_of_the_trunk_is_known_by_its_name(cfg, features, head):
    pytest.importorskip('timm')
    model = build_model(dict(cfg))
    assert {features, head} <= model.state_dict().keys()
    assert task_of(model).is_of_trunk(features) and not task_of(model).is_of_trunk(head)


class Data:
    def __init__(self, *names):
        self.metainfo = dict(classes=names)


def judge(teacher, student=None, data=None, names=None):
    """Why a teacher of that config cannot be validated where a student of the other one is."""
    teacher, student = build_model(dict(teacher)), build_model(dict(student or teacher))
    if names:
        teacher.dataset_meta = dict(classes=tuple(names))
    return task_of(teacher).cannot_judge(data or object(), task_of(student))


@pytest.mark.parametrize('kind', KINDS)
def test_a_teacher_of_the_kind_of_the_student_is_judged_by_its_data(kind):
    pytest.importorskip('timm')
    cfg, _, classes = KINDS[kind]
    assert judge(cfg) is None
    assert judge(cfg, data=Data(*map(str, range(classes or 4)))) is None


def test_the_number_of_labels_is_what_the_head_gives_where_it_does_not_tell():
    model = build_model(dict(CSRA_OF_9))
    task, generator = task_of(model), torch.Generator().manual_seed(0)
    assert task.num_classes == 9
    losses = model(torch.rand(2, 3, *SIZE), [task.random_sample(SIZE, generator) for _ in range(2)], mode='loss')
    assert losses['loss'].isfinite()


def test_tasks_in_another_order_are_the_same_tasks():
    cfg, turned = (with_head(type='MultiTaskHead', task_heads=dict(tasks)) for tasks in (
        TWO_TASKS.items(), reversed(TWO_TASKS.items())))
    assert judge(cfg, turned) is None


SEVERAL = with_head(type='MultiLabelLinearClsHead', num_classes=CLASSES)
CSRA_OF_9 = dict(with_head(type='CSRAClsHead', num_classes=9, num_heads=1, lam=0.1), neck=None)
TIMM = dict(_scope_='mmpretrain', type='TimmClassifier', model_name='resnet10t')


def test_a_model_with_a_student_of_its_own_is_no_distiller():
    """As those of mmdet that learn from images without labels."""
    model, inner = build_model(wide_resnet()), build_model(segmentor())
    model.student, model.teacher = inner, inner
    assert task_of(model).model is student_of(model) is model
    distiller = build_distiller(teacher_checkpoint=None)
    assert task_of(distiller).model is student_of(distiller) is distiller.student


@pytest.mark.parametrize(('teacher', 'student', 'reason'), [
    (dict(wide_resnet(), head=None), wide_resnet(), 'it has no head'),
    (dict(TIMM, num_classes=0), wide_resnet(), 'it has no head'),
    (with_head(type='LinearClsHead', num_classes=9), wide_resnet(), 'it tells 9 classes apart, and the data have 5'),
    (wide_resnet(), SEVERAL, 'it gives one class, and the student several classes'),
    (SEVERAL, wide_resnet(), 'it gives several classes, and the student one class'),
    (with_head(type='MultiTaskHead', task_heads=TWO_TASKS), wide_resnet(),
     'it gives one class of 2 for "colour", several classes of 3 for "shape", and the student one class'),
    (CSRA_OF_9, SEVERAL, 'it tells 9 classes apart, and the data have 5'),
    (with_head(type='overhaul.NumberHead', count=3), with_head(type='overhaul.NumberHead'),
     'it gives 3 numbers, and the student 1 number'),
    (segmentor(), wide_resnet(), 'it has another task: it is of type EncoderDecoder, and the student of type Image'),
    (wide_resnet(), segmentor(), 'it has another task: it is of type ImageClassifier, and the student of type Enco'),
])
def test_a_teacher_that_cannot_be_judged_by_the_data_of_the_student_is_told(teacher, student, reason):
    if teacher['type'] == 'TimmClassifier':
        pytest.importorskip('timm')
    assert judge(teacher, student).startswith(reason)  # the data name no classes
    assert judge(teacher, student, Data(*'abcde')).startswith(reason)


@pytest.mark.parametrize(('names', 'reason'), [
    ('abcde', None), ('ABCDE', None), ('abcdx', None), (None, None),
    ('abc', None),  # of something else than this model
    ('bacde', 'its classes are in another order: "b" is the one with the label 0, and 1 in the data'),
    ('vwxyz', 'its classes are others: the label 0 is "v", and "a" in the data')])
@pytest.mark.parametrize('cfg', [wide_resnet(), segmentor()])
def test_classes_of_other_names_or_in_another_order_are_told(cfg, names, reason):
    assert judge(cfg, data=Data(*'abcde'), names=names) == reason


def test_names_of_classes_may_be_an_array():
    data = Data()
    data.metainfo = dict(classes=np.array(list('bacde')))
    assert classes_of(data) == 5
    assert judge(wide_resnet(), data=data, names='abcde').startswith('its classes are in another order')


@pytest.mark.parametrize(('learnt', 'label'), [
    ('abcde', None), ('ABCDE', None), ('abcdx', None), ('', None),
    ('abcdef', None), ('abc', None),  # the labels of those that there are, are right
    ('xabcd', '0 is "x" there, and "a"'), ('abdef', '2 is "d" there, and "c"'), ('abcxdef', '3 is "x" there, and "d"'),
    ('bacde', '0 is "b" there, and "a"')])
def test_data_of_other_classes_than_the_training_judge_nothing(learnt, label):
    told = task_of(build_model(wide_resnet())).cannot_be_judged_on(Data(*'abcde'), tuple(learnt))
    assert told is None if label is None else f'the label {label} here. Let both have' in told


def test_a_class_whose_name_another_has_too_is_in_no_other_order():
    learnt, names = ('crane', 'ox', 'bag', 'crane'), ('crane bird', 'ox', 'bag', 'crane')  # as two of ImageNet have
    task = task_of(build_model(with_head(type='LinearClsHead', num_classes=4)))
    assert task.cannot_be_judged_on(Data(*names), learnt) is None
    assert task.cannot_be_judged_on(Data(*learnt), names) is None


def test_a_folder_of_a_class_that_only_the_training_has_is_refused(tmp_path):
    for split, names in (('train', 'abc'), ('val', 'bc')):
        for name in names:
            write_images(tmp_path / split / name, 2)
    model = build_model(with_head(type='LinearClsHead', num_classes=3))
    datasets = [CustomDataset(str(tmp_path / split), pipeline=[]) for split in ('train', 'val')]
    reason = task_of(model).cannot_be_judged_on(datasets[1], trained_on=names_of(datasets[0]))
    assert 'the label 0 is "a" there, and "b" here' in reason and 'both need a folder for each' in reason


def depth_estimator():
    return dict(segmentor(), type='DepthEstimator', test_cfg=dict(mode='whole'))


class Strange(BaseModel):
    """A model of no package: it tells the mean of an image."""

    def __init__(self, width=4):
        super().__init__()
        self.conv, self.bn, self.last = nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.Conv2d(width, 1, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        outputs = self.last(self.bn(self.conv(inputs)).relu())
        return dict(loss_mean=outputs.mean().square()) if mode == 'loss' else outputs


@pytest.fixture
def strange_pair():
    MODELS.register_module(name='Strange', module=Strange, force=True)
    yield dict(teacher=dict(type='Strange', width=8), student=dict(type='Strange'),
               taps=[dict(teacher='bn', student='bn')])
    del MODELS.module_dict['Strange']


def test_a_model_of_no_task_is_distilled_and_the_log_says_what_is_left_out(strange_pair, monkeypatch):
    said = []
    monkeypatch.setattr('overhaul.tasks.task.print_log', lambda line, *_: said.append(line))
    model = build_distiller(**strange_pair)
    assert type(task_of(model)) is Task
    (line, ) = said
    assert re.match('The Strange is of no task .* Left out are the labels of a dry run, the ONNX graph .*TASKS', line)
    losses = model(torch.rand(2, 3, *SIZE), [None, None], mode='loss')
    assert set(losses) == {'loss_mean', 'distill.loss_bn'}
    with pytest.raises(ValueError, match='What an ONNX graph of the Strange would give is not known'):
        OnnxGraph(task_of(model), SIZE)


def test_a_task_is_named_and_a_wrong_name_tells_the_nearest(strange_pair):
    assert type(task_of(build_distiller(**strange_pair, task='segmentation'))) is Segmentation
    with pytest.raises(ValueError, match='model.task="segmentatoin" is no task .* Nearest: segmentation'):
        build_distiller(**strange_pair, task='segmentatoin')


def test_the_task_that_is_named_is_that_of_a_teacher_that_looks_like_the_student(strange_pair):
    model = build_distiller(**strange_pair, task='segmentation')
    assert type(task_of(model.teacher)) is Segmentation
    assert task_of(model.teacher).cannot_judge(Data(), task_of(model)) is None
    strange_pair.update(teacher=wide_resnet(), taps=[dict(teacher='backbone.block1', student='bn')])
    assert type(task_of(build_distiller(**strange_pair, match_sizes=True, task='any').teacher)) is Classification


def test_a_task_that_is_no_name_is_refused(strange_pair):
    with pytest.raises((TypeError, ValueError), match='task.*the name of a task'):
        build_distiller(**strange_pair, task=['segmentation'])


def test_the_argument_task_of_a_plain_model_is_its_own():
    assert task_name(Config(dict(model=dict(type='OFA', task='caption')))) is None
    assert task_name(Config(dict(model=dict(student={}, task='segmentation')))) == 'segmentation'


def test_a_model_of_no_classes_that_is_named_a_segmentation_is_without_labels_and_has_a_graph():
    task = Segmentation(Strange())
    assert task.random_sample(SIZE, torch.Generator()) is None
    assert task.graph().module(torch.rand(2, 3, *SIZE)).shape == (2, 1, *SIZE)


@pytest.mark.parametrize('scope', ['mmseg', None])
def test_the_line_that_loads_a_model_of_no_task_gives_the_model(scope, tmp_path, strange_pair):
    cfg = dict(type='Strange') if scope is None else depth_estimator()
    model = build_model(dict(cfg))
    config, weights = tmp_path / 'model.py', tmp_path / 'model.pth'
    cfg.pop('_scope_', None)
    named = dict(type='overhaul.Strange') if scope is None else cfg
    Config(dict(model=named, **({'default_scope': scope} if scope else {}))).dump(config)
    torch.save(dict(state_dict=model.state_dict()), weights)
    names = dict(mmengine=mmengine, torch=torch)
    exec(Task(model).loading(config, weights), names)
    assert type(names['model']) is type(model)
    assert all(value.equal(names['model'].state_dict()[name]) for name, value in model.state_dict().items())


@pytest.fixture
def task_of_the_page():
    known = dict(TASKS.module_dict)
    exec(re.search(r'## A task of your own.*?```python\n(.*?)```', PAGE, re.DOTALL)[1], {})
    yield
    TASKS.module_dict.clear()
    TASKS.module_dict.update(known)


def test_the_task_of_the_page_makes_the_depth_estimators_of_mmseg_known(task_of_the_page):
    cfg = depth_estimator()
    cfg['decode_head'] = dict(cfg['decode_head'], num_classes=1, out_channels=1, threshold=0.3)
    task = task_of(build_model(cfg))
    assert type(task).__name__ == 'Depth'
    assert task.random_sample(SIZE, torch.Generator()).gt_depth_map.data.shape == (1, *SIZE)
    assert Judge().deciding(dict(d1=0.9, rmse=0.5, abs_rel=0.1))[1:] == (0.1, 'mean relative error', True)
    assert task.graph().outputs == {'depth': '(N, 1, H, W)'}
    assert type(task_of(build_model(segmentor()))) is Segmentation


DEPTH_CONFIG = """
default_scope = 'mmseg'
model = dict(
    type='overhaul.OverhaulDistiller', teacher={model}, student={model}, taps='auto', alpha=1e-3, input_size=(32, 32))
data = dict(type='NYUDataset', data_root='nowhere')
train_dataloader = dict(batch_size=2, dataset=data, sampler=dict(type='InfiniteSampler'))
val_dataloader = dict(batch_size=1, dataset=data, sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator, val_cfg = dict(type='DepthMetric'), dict()
train_cfg = dict(by_epoch=False, max_iters=10, val_interval=10)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
default_hooks = dict(summary=dict(type='overhaul.SummaryHook'))
"""


def test_the_task_of_the_page_is_tried_and_exported(task_of_the_page, tmp_path, capsys):
    head = dict(
        type='VPDDepthHead', in_channels=[16, 32, 64, 128], embed_dim=4, feature_dim=32, num_deconv_layers=1,
        num_deconv_filters=(8, ))
    cfg = dict(
        segmentor(base_channels=16), type='DepthEstimator', test_cfg=dict(mode='whole'), decode_head=head,
        data_preprocessor=dict(type='SegDataPreProcessor', mean=[0] * 3, std=[255] * 3, size=SIZE))
    config, weights = tmp_path / 'config.py', tmp_path / 'weights.pth'
    config.write_text(DEPTH_CONFIG.format(model=cfg))
    run_in_process(tmp_path, 'train.py', config, '--dry-run')
    printed = capsys.readouterr().out
    assert 'Dry run: ok. 2 training steps and 1 validation step, ' in printed
    assert 'mean relative error (iteration 2)' in printed
    torch.save(build_model(cfg).state_dict(), weights)
    told = export_student(
        str(config), str(weights), str(tmp_path / 'student.pth'), str(tmp_path / 'student.onnx'), SIZE)
    assert 'images (N, 3, 32, 32) to depth (N, 1, H, W), in onnxruntime within ' in told
    assert f"To load: mmseg.apis.init_model('{tmp_path / 'student.py'}', " in told


def test_without_it_they_are_of_no_task_that_is_known():
    assert type(task_of(build_model(depth_estimator()))) is Task


def test_a_task_that_is_no_task_is_refused_with_what_to_do():
    TASKS.register_module(name='foreign', module=type('Foreign', (), {}))
    try:
        with pytest.raises(ValueError, match='Foreign is registered .* no subclass of overhaul.tasks.Task'):
            task_of(nn.Identity())
        assert Judge().headline({'mIoU': 50.0}) == '50.00 % mIoU'
    finally:
        del TASKS.module_dict['foreign']


def test_a_prediction_is_drawn_where_no_truth_is_known_and_of_classes_without_names():
    image = np.zeros((4, 5, 3), np.uint8)
    sample = SegDataSample(pred_sem_seg=PixelData(data=torch.ones(1, 4, 5, dtype=torch.long)))
    metainfo = dict(classes=('a', 'b'), palette=np.array([[0, 0, 0], [9, 8, 7]]))
    task = Segmentation(nn.Identity())
    assert task.draw(image, sample, metainfo, truth=True) == (image, 'no mask')
    assert (task.draw(image, sample, metainfo, truth=False)[0] == [9, 8, 7]).all()
    assert [name for name, _ in task.legend([sample], metainfo)] == ['b']
    labelled = DataSample().set_pred_label([1, 4])
    task = Classification(nn.Identity())
    assert task.draw(image, labelled, metainfo, truth=False)[1] == 'b, 4'
    assert task.draw(image, labelled, {}, truth=False)[1] == '1, 4'
    several = MultiTaskDataSample()
    several.set_field(labelled, 'shape')
    several.set_field(DataSample(), 'colour')
    assert task.draw(image, several, {}, truth=False)[1] == 'colour: not known\nshape: 1, 4'
