"""1,343 training and 454 test digits, enlarged from 8x8 to 16x16; batches of 50. No download."""

data_preprocessor = dict(
    type='mmpretrain.ClsDataPreprocessor', num_classes=10, mean=[78.0] * 3, std=[96.0] * 3)  # of the training images

enlarge = dict(type='mmpretrain.Resize', scale=(16, 16), interpolation='bilinear')
train_pipeline = [
    enlarge,
    dict(type='mmpretrain.RandomCrop', crop_size=16, padding=2),  # shifts by up to two pixels; a flip is another sign
    dict(type='mmpretrain.PackInputs'),
]
test_pipeline = [enlarge, dict(type='mmpretrain.PackInputs')]

train_dataloader = dict(
    batch_size=50, num_workers=0, persistent_workers=False,
    # Goes on across the end of the data, where mmengine would warn and pause for two seconds with any other sampler.
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type='overhaul.Digits', split='train', labels_per_class=None, seed=0, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=250, num_workers=0, persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='overhaul.Digits', split='test', test_mode=True, pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='mmpretrain.Accuracy', topk=(1,))
test_evaluator = val_evaluator
