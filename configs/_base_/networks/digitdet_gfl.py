"""Small GFL for scenes of digits: the ResNets of digitscenes_deeplab_v3_plus.py, a neck of one convolution, and a head.

All digits have about the same size, so there is one level of features, 8x8 for an image of 64x64, and no pyramid.
"""

# Teacher, 564,607 parameters.
gfl_resnet34 = dict(
    type='mmdet.GFL',
    backbone=dict(
        type='mmdet.ResNet', depth=34, stem_channels=16, base_channels=16, num_stages=3, strides=(1, 2, 1),
        dilations=(1, 1, 2), out_indices=(2, ), norm_eval=False),
    neck=dict(
        type='mmdet.ChannelMapper', in_channels=[64], out_channels=32, kernel_size=3, norm_cfg=dict(type='BN'),
        num_outs=1),
    bbox_head=dict(
        type='mmdet.GFLHead', num_classes=10, in_channels=32, feat_channels=32, stacked_convs=1,
        norm_cfg=dict(type='BN'), reg_max=8,
        anchor_generator=dict(
            type='mmdet.AnchorGenerator', ratios=[1.0], octave_base_scale=4, scales_per_octave=1, strides=[8]),
        loss_cls=dict(type='mmdet.QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_dfl=dict(type='mmdet.DistributionFocalLoss', loss_weight=0.25),
        loss_bbox=dict(type='mmdet.GIoULoss', loss_weight=2.0)),
    train_cfg=dict(assigner=dict(type='mmdet.ATSSAssigner', topk=9), allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(
        nms_pre=100, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.6), max_per_img=20))

# Student, 60,983 parameters.
gfl_resnet18 = dict(
    gfl_resnet34,
    backbone=dict(gfl_resnet34['backbone'], depth=18, stem_channels=8, base_channels=8),
    neck=dict(gfl_resnet34['neck'], in_channels=[32], out_channels=16),
    bbox_head=dict(gfl_resnet34['bbox_head'], in_channels=16, feat_channels=16))
