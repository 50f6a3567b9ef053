"""voc_aug.py as the official code has it: padding is background, and mIoU is measured at the input size."""

_base_ = 'voc_aug.py'

for dataset in _base_.train_dataloader.dataset.datasets:
    dataset.pipeline[5].pad_val.seg = 0
del dataset

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmseg.LoadAnnotations'),
    dict(type='mmseg.Resize', scale=(513, _base_.any_size), keep_ratio=True, backend='pillow'),
    dict(type='overhaul.EvaluateAtInputSize'),
    dict(type='mmseg.PackSegInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
