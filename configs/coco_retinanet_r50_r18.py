"""COCO detection with mmdet's own networks, schedule and teacher: RetinaNet ResNet-50 teaches RetinaNet ResNet-18.

    tools/dist_train.sh configs/coco_retinanet_r50_r18.py 8

This is no setting of the paper. In mmdet's zoo the teacher has 36.5 % box mAP and the student alone 31.7 %, both after
12 epochs. Put COCO 2017 into data/coco, with annotations, train2017 and val2017. The taps are in both backbones;
tap_neck=True adds the levels of the feature pyramids. Alpha is set from data.
"""

_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'

model = dict(
    _delete_=True,
    type='overhaul.OverhaulDistiller',
    teacher='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    teacher_checkpoint=(
        'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r50_fpn_1x_coco/'
        'retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth'),
    student=_base_.model,
    taps='auto',
    alpha='auto')
default_hooks = dict(
    checkpoint=dict(save_best='coco/bbox_mAP', rule='greater'),
    calibrate=dict(type='overhaul.CalibrateHook'),
    summary=dict(type='overhaul.SummaryHook'),
    health=dict(type='overhaul.HealthHook'))
auto_scale_lr = dict(base_batch_size=16, enable=True)
