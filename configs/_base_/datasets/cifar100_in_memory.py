"""CIFAR-100 for a fast GPU: as cifar100.py, but the images stay in memory, and the GPU crops and flips whole batches.

Goes in the place of cifar100.py in the _base_ of a config. The distribution is the same, the random numbers are not.
"""

_base_ = 'cifar100.py'

data_preprocessor = dict(type='overhaul.CropFlipPreprocessor')  # by up to 4 pixels, and every second image
train_dataloader = dict(
    num_workers=0, persistent_workers=False,
    dataset=dict(
        _delete_=True, type='overhaul.InMemory', dataset=dict(
            type='overhaul.CIFAR100', data_root='data/cifar100', split='train',
            pipeline=[dict(type='mmpretrain.PackInputs')])))
