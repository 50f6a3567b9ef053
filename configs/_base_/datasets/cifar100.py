"""CIFAR-100, batches of 128. Downloaded on first use to data/cifar100, or unpacked from cifar-100-python.tar.gz there.

Augmentation and normalisation are those of the official code. Its constants are neither CIFAR-100's own nor
mmpretrain's. The training images stay in memory, and the device of the model crops and flips whole batches. The
official code does this image by image. The distribution is the same, with other random numbers.
"""

data_preprocessor = dict(
    type='overhaul.CropFlipPreprocessor', num_classes=100,  # crops by up to 4 pixels, and flips every second image
    mean=[125.3, 123.0, 113.9], std=[63.0, 62.1, 66.7], to_rgb=False)  # the dataset gives RGB

pipeline = [dict(type='mmpretrain.PackInputs')]
collate = dict(type='default_collate')  # one tensor, and so one copy to a GPU

train_dataloader = dict(
    batch_size=128, num_workers=0, persistent_workers=False, pin_memory=True, collate_fn=collate,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='overhaul.InMemory', dataset=dict(
            type='overhaul.CIFAR100', data_root='data/cifar100', split='train', pipeline=pipeline)))
val_dataloader = dict(
    batch_size=256, num_workers=2, persistent_workers=True, pin_memory=True, collate_fn=collate,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='overhaul.CIFAR100', data_root='data/cifar100', split='test', pipeline=pipeline, test_mode=True))
test_dataloader = val_dataloader

val_evaluator = dict(type='mmpretrain.Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
