"""CIFAR-100, batches of 128. Downloaded on first use to data/cifar100, or unpacked from cifar-100-python.tar.gz there.

Augmentation and normalisation of the official code: its constants are neither CIFAR-100's own nor mmpretrain's.
"""

data_preprocessor = dict(
    type='mmpretrain.ClsDataPreprocessor', num_classes=100,
    mean=[125.3, 123.0, 113.9], std=[63.0, 62.1, 66.7], to_rgb=False)  # the dataset gives RGB

train_pipeline = [
    # Mirrored by 4 pixels on each side. With `padding=4` mmpretrain 1.2.0 takes zeros, whatever the padding_mode.
    dict(type='mmpretrain.RandomCrop', crop_size=40, pad_if_needed=True, padding_mode='reflect'),
    dict(type='mmpretrain.RandomCrop', crop_size=32),
    dict(type='mmpretrain.RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='mmpretrain.PackInputs'),
]
test_pipeline = [dict(type='mmpretrain.PackInputs')]

train_dataloader = dict(
    batch_size=128, num_workers=2, persistent_workers=True, pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='overhaul.CIFAR100', data_root='data/cifar100', split='train', pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=256, num_workers=2, persistent_workers=True, pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='overhaul.CIFAR100', data_root='data/cifar100', split='test', pipeline=test_pipeline, test_mode=True))
test_dataloader = val_dataloader

val_evaluator = dict(type='mmpretrain.Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
