"""CIFAR-100, setting (b): WRN-28-4 teaches WRN-28-2.

    python tools/train.py configs/cifar100_wrn28_4_wrn28_2.py

Top-1 error of the student in the paper: 24.88 % alone, 21.98 % with Overhaul.
"""

_base_ = 'cifar100_wrn28_4_wrn16_4.py'

model = dict(
    student=dict(
        backbone=dict(depth=28, widen_factor=2),
        head=dict(in_channels=128, init_cfg=dict(a=-128**-0.5, b=128**-0.5))))
