"""DINOv2 ViT-S/14 teaches ResNet-18 on a folder of images without labels.

    python tools/train.py configs/folder_vits14_r18.py --cfg-options train_dataloader.dataset.data_root=data/images

The teacher has 22 M parameters, trained on 142 M images, and is downloaded automatically. Its tokens become maps. Their
margins come from the data, and they are resized to the student's maps. The result is the student's backbone:

    python tools/export_student.py configs/folder_vits14_r18.py CHECKPOINT r18.pth --backbone
"""

_base_ = '_base_/runtime.py'
default_scope = 'mmpretrain'

data_preprocessor = dict(
    type='mmpretrain.ClsDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, crop_ratio_range=(0.2, 1.0), backend='pillow'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64, num_workers=4, persistent_workers=True, pin_memory=True, collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True), drop_last=True,
    dataset=dict(type='overhaul.ImageFolder', data_root='data/images', pipeline=train_pipeline))

model = dict(
    type='overhaul.OverhaulDistiller',
    teacher='mmpretrain::dinov2/vit-small-p14_dinov2-pre_headless.py',
    teacher_checkpoint=(
        'https://download.openmmlab.com/mmpretrain/v1.0/dinov2/vit-small-p14_dinov2-pre_3rdparty_20230426-5641ca5a.pth'),
    student=dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18), head=None),
    taps=[
        dict(teacher='backbone.layers.8', student='backbone.layer3.1.relu:input', loss_weight=1 / 2),
        dict(teacher='backbone.ln1', student='backbone.layer4.1.relu:input', loss_weight=1),
    ],
    match_sizes=True,
    alpha='auto')

optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=5, end=100, T_max=95, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=100)
auto_scale_lr = dict(base_batch_size=64, enable=True)
