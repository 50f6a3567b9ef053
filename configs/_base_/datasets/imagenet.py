"""ImageNet-1k in data/imagenet, in mmpretrain's layout: train/<wnid>/*.JPEG, val/*.JPEG and meta/val.txt, or folders.

Random resized crop and flip for training, resize to 256 and centre crop of 224 for validation. Batches of 32 for each
of 8 GPUs; with fewer or more GPUs, auto_scale_lr scales the learning rate.
"""

data_preprocessor = dict(
    type='mmpretrain.ClsDataPreprocessor', num_classes=1000,
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)  # images are read as BGR

# Pillow's resampling, as torchvision uses it: OpenCV's does not smooth when it shrinks.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmpretrain.RandomResizedCrop', scale=224, backend='pillow', interpolation='bilinear'),
    dict(type='mmpretrain.RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='mmpretrain.PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmpretrain.ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bilinear'),
    dict(type='mmpretrain.CenterCrop', crop_size=224),
    dict(type='mmpretrain.PackInputs'),
]

collate = dict(type='default_collate')  # one tensor, and so one copy to a GPU

train_dataloader = dict(
    batch_size=32, num_workers=4, persistent_workers=True, pin_memory=True, collate_fn=collate,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='overhaul.ImageNet', data_root='data/imagenet', split='train', pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=32, num_workers=4, persistent_workers=True, pin_memory=True, collate_fn=collate,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='overhaul.ImageNet', data_root='data/imagenet', split='val', pipeline=test_pipeline, test_mode=True))
test_dataloader = val_dataloader

val_evaluator = dict(type='mmpretrain.Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
