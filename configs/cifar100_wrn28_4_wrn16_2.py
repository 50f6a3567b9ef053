"""CIFAR-100, setting (c): WRN-28-4 teaches WRN-16-2.

    python tools/train.py configs/cifar100_wrn28_4_wrn16_2.py

Top-1 error of the student in the paper: 27.32 % alone, 24.08 % with Overhaul.
"""

_base_ = 'cifar100_wrn28_4_wrn16_4.py'

model = dict(
    student=dict(
        backbone=dict(widen_factor=2),
        head=dict(in_channels=128, init_cfg=dict(a=-128**-0.5, b=128**-0.5))))
