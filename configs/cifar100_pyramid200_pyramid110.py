"""CIFAR-100, setting (f): PyramidNet-200 (240) teaches PyramidNet-110 (84).

    python tools/train.py configs/cifar100_pyramid200_pyramid110.py

Top-1 error of the student in the paper: 22.58 % alone, 18.89 % with Overhaul.
"""

_base_ = ['_base_/datasets/cifar100.py', '_base_/schedules/cifar100_200_epochs.py', '_base_/runtime.py']
default_scope = 'mmpretrain'

# The batch size of the paper's settings (e) and (f), at the same learning rate.
train_dataloader = dict(batch_size=64)
auto_scale_lr = dict(base_batch_size=64)

model = dict(
    type='overhaul.OverhaulDistiller',
    teacher=dict(
        type='ImageClassifier',
        backbone=dict(type='overhaul.PyramidNet', depth=200, alpha=240, bottleneck=True),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=100, in_channels=1024)),
    teacher_checkpoint='data/teachers/pyramid200_mixup_15.6.pt',
    student=dict(
        type='ImageClassifier',
        backbone=dict(type='overhaul.PyramidNet', depth=110, alpha=84, bottleneck=False),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=100, in_channels=100, init_cfg=None)),
    taps=[
        dict(teacher='backbone.layer2.0.bn2', student='backbone.layer2.0.bn1', loss_weight=1 / 4),
        dict(teacher='backbone.layer3.0.bn2', student='backbone.layer3.0.bn1', loss_weight=1 / 2),
        dict(teacher='backbone.bn_final', student='backbone.bn_final', loss_weight=1),
    ],
    distill_loss=dict(type='PartialL2Loss', loss_weight=1e-3),
    input_size=(32, 32))
