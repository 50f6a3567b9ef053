"""Scenes of digits and their boxes, 64x64, each resized and cut anew: 4,000 to train, 500 to test. No download."""

classes = tuple('0123456789')
data_preprocessor = dict(
    type='mmdet.DetDataPreprocessor', mean=[99.0] * 3, std=[54.0] * 3, pad_size_divisor=64)  # of the training images

train_pipeline = [
    dict(type='mmdet.LoadAnnotations', with_bbox=True),
    dict(
        type='RandomResize', scale=(64, 64), ratio_range=(0.8, 1.25), keep_ratio=True, resize_type='mmdet.Resize'),
    dict(type='mmdet.RandomCrop', crop_size=(64, 64)),
    dict(type='mmdet.FilterAnnotations', min_gt_bbox_wh=(8, 8)),  # not what the cut has left of a digit
    dict(type='mmdet.PackDetInputs'),  # a smaller one is filled up by the preprocessor
]
test_pipeline = [
    dict(type='mmdet.Resize', scale=(64, 64)),  # which tells the scale
    dict(type='mmdet.LoadAnnotations', with_bbox=True),  # to draw them
    dict(
        type='mmdet.PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances')),  # for the evaluator
]

train_dataloader = dict(
    batch_size=16, num_workers=0, persistent_workers=False,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='overhaul.DigitScenes', split='train', length=4000, seed=0, metainfo=dict(classes=classes),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=50, num_workers=0, persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='overhaul.DigitScenes', split='test', length=500, metainfo=dict(classes=classes), test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='mmdet.CocoMetric', metric='bbox')  # with the boxes of the data, and no file
test_evaluator = val_evaluator
