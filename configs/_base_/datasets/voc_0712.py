"""Pascal VOC 2007 and 2012 trainval (16,551 images) to train on, 2007 test (4,952) to test on, at 300x300 pixels.

Unpack VOCtrainval_06-Nov-2007.tar, VOCtest_06-Nov-2007.tar and VOCtrainval_11-May-2012.tar from
http://host.robots.ox.ac.uk/pascal/VOC, so that there are data/VOCdevkit/VOC2007 and data/VOCdevkit/VOC2012.

The augmentation is that of SSD (Liu et al., ECCV 2016), in the numbers of mmdet: colours, expansion up to four times,
crops of a least overlap, flips. The training leaves out boxes that are marked as difficult.
"""

data_root = 'data/VOCdevkit'
size = (300, 300)
mean = [123.675, 116.28, 103.53]

data_preprocessor = dict(
    type='mmdet.DetDataPreprocessor', mean=mean, std=[58.395, 57.12, 57.375], bgr_to_rgb=True, pad_size_divisor=1)

# A transform without a scope is mmcv's.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmdet.LoadAnnotations', with_bbox=True),
    dict(type='mmdet.Expand', mean=mean, to_rgb=True, ratio_range=(1, 4)),
    dict(type='mmdet.MinIoURandomCrop', min_ious=(0.1, 0.3, 0.5, 0.7, 0.9), min_crop_size=0.3),
    dict(type='mmdet.Resize', scale=size, keep_ratio=False),
    dict(type='mmdet.RandomFlip', prob=0.5),
    dict(
        type='mmdet.PhotoMetricDistortion', brightness_delta=32, contrast_range=(0.5, 1.5),
        saturation_range=(0.5, 1.5), hue_delta=18),
    dict(type='mmdet.PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmdet.Resize', scale=size, keep_ratio=False),
    dict(type='mmdet.LoadAnnotations', with_bbox=True),  # after the resize: predictions are in pixels of the file
    dict(type='mmdet.PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]

voc_2007 = dict(
    type='mmdet.VOCDataset', data_root=data_root, ann_file='VOC2007/ImageSets/Main/trainval.txt',
    data_prefix=dict(sub_data_root='VOC2007/'), filter_cfg=dict(filter_empty_gt=True, min_size=32),
    pipeline=train_pipeline)
voc_2012 = dict(
    type='mmdet.VOCDataset', data_root=data_root, ann_file='VOC2012/ImageSets/Main/trainval.txt',
    data_prefix=dict(sub_data_root='VOC2012/'), filter_cfg=dict(filter_empty_gt=True, min_size=32),
    pipeline=train_pipeline)

train_dataloader = dict(
    batch_size=32, num_workers=4, persistent_workers=True, pin_memory=True,
    collate_fn=dict(type='default_collate'),  # one tensor, and so one copy to a GPU
    sampler=dict(type='DefaultSampler', shuffle=True),
    # The two tell which year they are of, and would else not be joined.
    dataset=dict(type='mmdet.ConcatDataset', datasets=[voc_2007, voc_2012], ignore_keys=['dataset_type']))
val_dataloader = dict(
    batch_size=1, num_workers=4, persistent_workers=True, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmdet.VOCDataset', data_root=data_root, ann_file='VOC2007/ImageSets/Main/test.txt',
        data_prefix=dict(sub_data_root='VOC2007/'), test_mode=True, pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='mmdet.VOCMetric', metric='mAP', eval_mode='11points')  # as the challenge of 2007 has it
test_evaluator = val_evaluator
