"""CIFAR-100, setting (f): PyramidNet-200 (240) teaches PyramidNet-110 (84).

    python tools/train.py configs/cifar100_pyramid200_pyramid110.py

Top-1 error of the student in the paper: 22.58 % alone, 18.89 % with Overhaul.
"""

_base_ = 'cifar100_pyramid200_wrn28_4.py'

model = dict(
    student=dict(
        backbone=dict(_delete_=True, type='overhaul.PyramidNet', depth=110, alpha=84, bottleneck=False),
        head=dict(in_channels=100, init_cfg=None)),
    taps=[
        dict(teacher='backbone.layer2.0.bn2', student='backbone.layer2.0.bn1', loss_weight=1 / 4),
        dict(teacher='backbone.layer3.0.bn2', student='backbone.layer3.0.bn1', loss_weight=1 / 2),
        dict(teacher='backbone.bn_final', student='backbone.bn_final', loss_weight=1),
    ])
