"""CIFAR-100, setting (d): WRN-28-4 teaches ResNet-56.

    python tools/train.py configs/cifar100_wrn28_4_r56.py

Top-1 error of the student in the paper: 27.68 % alone, 24.44 % with Overhaul.
"""

_base_ = ['_base_/datasets/cifar100.py', '_base_/schedules/cifar100_200_epochs.py', '_base_/runtime.py']
default_scope = 'mmpretrain'

model = dict(
    type='overhaul.OverhaulDistiller',
    teacher=dict(
        type='ImageClassifier',
        backbone=dict(type='overhaul.WideResNet', depth=28, widen_factor=4),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=100, in_channels=256)),
    teacher_checkpoint='data/teachers/WRN28-4_21.09.pt',
    student=dict(
        type='ImageClassifier',
        backbone=dict(type='overhaul.CifarResNet', depth=56),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=100, in_channels=64, init_cfg=None)),
    taps=[
        dict(teacher='backbone.block2.0.bn1', student='backbone.layer1.8.relu:input', loss_weight=1 / 4),
        dict(teacher='backbone.block3.0.bn1', student='backbone.layer2.8.relu:input', loss_weight=1 / 2),
        dict(teacher='backbone.bn1', student='backbone.layer3.8.relu:input', loss_weight=1),
    ],
    distill_loss=dict(type='PartialL2Loss', loss_weight=1e-3),
    input_size=(32, 32))
