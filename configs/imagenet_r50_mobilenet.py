"""ImageNet, setting (b): ResNet-50 teaches MobileNet (v1).

    tools/dist_train.sh configs/imagenet_r50_mobilenet.py 8

Top-1 / top-5 error of the student in the paper: 31.13 / 11.24 % alone, 28.75 / 9.66 % with Overhaul.
"""

_base_ = ['_base_/datasets/imagenet.py', '_base_/schedules/imagenet_100_epochs.py', '_base_/runtime.py']
default_scope = 'mmpretrain'

model = dict(
    type='overhaul.OverhaulDistiller',
    teacher=dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet', depth=50),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=1000, in_channels=2048)),
    teacher_checkpoint='torchvision://resnet50',
    student=dict(
        type='ImageClassifier',
        backbone=dict(type='overhaul.MobileNetV1'),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=1000, in_channels=1024, init_cfg=None)),
    taps=[
        dict(teacher='backbone.layer1.2.relu:input', student='backbone.model.3.4', loss_weight=1 / 8),
        dict(teacher='backbone.layer2.3.relu:input', student='backbone.model.5.4', loss_weight=1 / 4),
        dict(teacher='backbone.layer3.5.relu:input', student='backbone.model.11.4', loss_weight=1 / 2),
        dict(teacher='backbone.layer4.2.relu:input', student='backbone.model.13.4', loss_weight=1),
    ],
    distill_loss=dict(type='PartialL2Loss', loss_weight=1e-4),
    input_size=(224, 224))
