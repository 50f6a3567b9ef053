"""ImageNet, setting (a): ResNet-152 teaches ResNet-50.

    tools/dist_train.sh configs/imagenet_r152_r50.py 8

Top-1 / top-5 error of the student in the paper: 23.72 / 6.97 % alone, 21.65 / 5.83 % with Overhaul.
"""

_base_ = ['_base_/datasets/imagenet.py', '_base_/schedules/imagenet_100_epochs.py', '_base_/runtime.py']
default_scope = 'mmpretrain'

model = dict(
    type='overhaul.OverhaulDistiller',
    teacher=dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet', depth=152),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=1000, in_channels=2048)),
    teacher_checkpoint='torchvision://resnet152',
    student=dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet', depth=50, zero_init_residual=False),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=1000, in_channels=2048, init_cfg=None)),
    taps=[
        dict(teacher='backbone.layer1.2.relu:input', student='backbone.layer1.2.relu:input', loss_weight=1 / 8),
        dict(teacher='backbone.layer2.7.relu:input', student='backbone.layer2.3.relu:input', loss_weight=1 / 4),
        dict(teacher='backbone.layer3.35.relu:input', student='backbone.layer3.5.relu:input', loss_weight=1 / 2),
        dict(teacher='backbone.layer4.2.relu:input', student='backbone.layer4.2.relu:input', loss_weight=1),
    ],
    distill_loss=dict(type='PartialL2Loss', loss_weight=1e-4),
    input_size=(224, 224))
