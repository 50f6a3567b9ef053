"""SSD300 on other backbones than VGG-16, for the 20 classes of Pascal VOC, in parts of mmdet.

These details are ours. The last features at strides 8, 16 and 32 go to the head without a change, as 38x38, 19x19 and
10x10. Three extra layers make 5x5, 3x3 and 1x1 from the last feature. Anchors and loss are those of mmdet's
ssd300_voc0712.py. Features are not normalised; conv4_3 of VGG-16 needs this because it has no batch norm. All batch
norms are trained, and use the statistics of the batch.
"""

anchors = dict(
    type='mmdet.SSDAnchorGenerator', scale_major=False, input_size=300, basesize_ratio_range=(0.2, 0.9),
    strides=[8, 16, 32, 64, 100, 300], ratios=[[2], [2, 3], [2, 3], [2, 3], [2], [2]])
boxes = dict(
    type='mmdet.DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[0.1, 0.1, 0.2, 0.2])
extra_layers = dict(type='mmdet.SSDNeck', level_strides=(2, 1, 1), level_paddings=(1, 0, 0), l2_norm_scale=None)
learning = dict(
    assigner=dict(
        type='mmdet.MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.0, ignore_iof_thr=-1,
        gt_max_assign_all=False),
    sampler=dict(type='mmdet.PseudoSampler'), smoothl1_beta=1.0, allowed_border=-1, pos_weight=-1, neg_pos_ratio=3,
    debug=False)
predicting = dict(
    nms_pre=1000, nms=dict(type='nms', iou_threshold=0.45), min_bbox_size=0, score_thr=0.02, max_per_img=200)

# Teacher, 30,136,750 parameters.
ssd_resnet50 = dict(
    type='mmdet.SingleStageDetector',
    backbone=dict(
        type='mmdet.ResNet', depth=50, out_indices=(1, 2, 3), norm_eval=False,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')),
    neck=dict(in_channels=(512, 1024, 2048), out_channels=(512, 1024, 2048, 256, 256, 256), **extra_layers),
    bbox_head=dict(
        type='mmdet.SSDHead', num_classes=20, in_channels=(512, 1024, 2048, 256, 256, 256), anchor_generator=anchors,
        bbox_coder=boxes),
    train_cfg=learning, test_cfg=predicting)

# Student, 14,152,622 parameters.
ssd_resnet18 = dict(
    type='mmdet.SingleStageDetector',
    backbone=dict(
        type='mmdet.ResNet', depth=18, out_indices=(1, 2, 3), norm_eval=False,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=(128, 256, 512), out_channels=(128, 256, 512, 256, 256, 256), **extra_layers),
    bbox_head=dict(
        type='mmdet.SSDHead', num_classes=20, in_channels=(128, 256, 512, 256, 256, 256), anchor_generator=anchors,
        bbox_coder=boxes),
    train_cfg=learning, test_cfg=predicting)

# Student, 7,400,622 parameters.
ssd_mobilenet = dict(
    type='mmdet.SingleStageDetector',
    backbone=dict(type='overhaul.MobileNetV1', out_indices=(5, 11, 13)),
    neck=dict(in_channels=(256, 512, 1024), out_channels=(256, 512, 1024, 256, 256, 256), **extra_layers),
    bbox_head=dict(
        type='mmdet.SSDHead', num_classes=20, in_channels=(256, 512, 1024, 256, 256, 256), anchor_generator=anchors,
        bbox_coder=boxes),
    train_cfg=learning, test_cfg=predicting)
