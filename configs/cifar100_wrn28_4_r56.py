"""CIFAR-100, setting (d): WRN-28-4 teaches ResNet-56.

    python tools/train.py configs/cifar100_wrn28_4_r56.py

Top-1 error of the student in the paper: 27.68 % alone, 24.44 % with Overhaul.
"""

_base_ = 'cifar100_wrn28_4_wrn16_4.py'

model = dict(
    student=dict(
        backbone=dict(_delete_=True, type='overhaul.CifarResNet', depth=56),
        head=dict(in_channels=64, init_cfg=None)),
    taps=[
        dict(teacher='backbone.block2.0.bn1', student='backbone.layer1.8.relu:input', loss_weight=1 / 4),
        dict(teacher='backbone.block3.0.bn1', student='backbone.layer2.8.relu:input', loss_weight=1 / 2),
        dict(teacher='backbone.bn1', student='backbone.layer3.8.relu:input', loss_weight=1),
    ])
