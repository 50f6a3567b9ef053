"""CIFAR-100, setting (b): WRN-28-4 teaches WRN-28-2.

    python tools/train.py configs/cifar100_wrn28_4_wrn28_2.py

Top-1 error of the student in the paper: 24.88 % alone, 21.98 % with Overhaul.
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
        backbone=dict(type='overhaul.WideResNet', depth=28, widen_factor=2),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=100, in_channels=128,
                  # PyTorch's own range for the weights, and no bias.
                  init_cfg=dict(type='Uniform', layer='Linear', a=-128**-0.5, b=128**-0.5))),
    taps=[
        dict(teacher='backbone.block2.0.bn1', student='backbone.block2.0.bn1', loss_weight=1 / 4),
        dict(teacher='backbone.block3.0.bn1', student='backbone.block3.0.bn1', loss_weight=1 / 2),
        dict(teacher='backbone.bn1', student='backbone.bn1', loss_weight=1),
    ],
    distill_loss=dict(type='PartialL2Loss', loss_weight=1e-3),
    input_size=(32, 32))
