"""Pascal VOC 2012 train with the SBD masks (10,582 images) and val (1,449), as the paper uses them.

Unpack VOC2012 into data/VOCdevkit and SBD (its folder dataset) into data/VOCdevkit/VOCaug. Then mmseg converts the
masks of SBD to VOC2012/SegmentationClassAug and lists those beyond VOC's own in ImageSets/Segmentation/aug.txt:

    python $(python -c "import mmseg; print(*mmseg.__path__)")/.mim/tools/dataset_converters/voc_aug.py \
        data/VOCdevkit data/VOCdevkit/VOCaug

The test set, for overhaul test --voc-submission, is VOC2012test.tar unpacked over the same folders.

Two choices differ from the official code. Padded pixels are unlabelled here, and background there. mIoU is measured at
each image's own size here, and at the size of the network's input there. voc_aug_official.py is as the official code.
"""

data_root = 'data/VOCdevkit/VOC2012'
crop_size = (513, 513)
# The size of a resized image is given by its short side; this one leaves the long side free. Pillow, because it smooths
# when it shrinks, as the official transforms do and OpenCV does not.
any_size = 100000

data_preprocessor = dict(
    type='mmseg.SegDataPreProcessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True,
    size=crop_size)

# A transform without a scope is mmcv's: under mmseg's name it is not found where default_scope is mmseg.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmseg.LoadAnnotations'),
    dict(type='mmseg.RandomFlip', prob=0.5),
    dict(
        type='RandomResize', scale=[(256, any_size), (1026, any_size)], keep_ratio=True,
        resize_type='mmseg.Resize', backend='pillow'),
    dict(type='mmseg.RandomCrop', crop_size=crop_size),
    dict(type='Pad', size=crop_size, pad_val=dict(img=0, seg=255)),
    # The radius is uniform in 0..1.
    dict(type='mmpretrain.GaussianBlur', prob=0.5, magnitude_range=(0, 1), magnitude_std='inf'),
    dict(type='mmseg.PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmseg.Resize', scale=(513, any_size), keep_ratio=True, backend='pillow'),
    dict(type='mmseg.LoadAnnotations'),  # after the resize, which leaves the mask alone
    dict(type='mmseg.PackSegInputs'),
]

voc_train = dict(
    type='overhaul.PascalVOC', data_root=data_root, ann_file='ImageSets/Segmentation/train.txt',
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'), pipeline=train_pipeline)
sbd_train = dict(
    type='overhaul.PascalVOC', data_root=data_root, ann_file='ImageSets/Segmentation/aug.txt',
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassAug'), pipeline=train_pipeline)

# 6 images on each of 2 GPUs, as the official README has it.
train_dataloader = dict(
    batch_size=6, num_workers=4, persistent_workers=True, pin_memory=True,
    collate_fn=dict(type='default_collate'),  # one tensor, and so one copy to a GPU
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='ConcatDataset', datasets=[voc_train, sbd_train]))
val_dataloader = dict(
    batch_size=1, num_workers=4, persistent_workers=True, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='overhaul.PascalVOC', data_root=data_root, ann_file='ImageSets/Segmentation/val.txt',
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'), test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='mmseg.IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
