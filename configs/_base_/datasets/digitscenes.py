"""Scenes of digits, 64x64, each resized, moved and cut anew: 4,000 to train and 500 to test on. No download."""

data_preprocessor = dict(
    type='mmseg.SegDataPreProcessor', mean=[99.0] * 3, std=[54.0] * 3, size=(64, 64))  # of the training images

train_pipeline = [
    dict(
        type='RandomResize', scale=(64, 64), ratio_range=(0.8, 1.25), keep_ratio=True, resize_type='mmseg.Resize'),
    dict(type='mmseg.RandomCrop', crop_size=(64, 64)),
    dict(type='mmseg.PackSegInputs'),  # a smaller one is filled up by the preprocessor, unlabelled
]
test_pipeline = [dict(type='mmseg.LoadImageFromNDArray'), dict(type='mmseg.PackSegInputs')]

train_dataloader = dict(
    batch_size=16, num_workers=0, persistent_workers=False,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type='overhaul.DigitScenes', split='train', length=4000, seed=0, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=50, num_workers=0, persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='overhaul.DigitScenes', split='test', length=500, test_mode=True, pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='mmseg.IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
