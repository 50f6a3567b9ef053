"""CIFAR-100, setting (e): PyramidNet-200 (240) teaches WRN-28-4.

    python tools/train.py configs/cifar100_pyramid200_wrn28_4.py

Top-1 error of the student in the paper: 21.09 % alone, 17.80 % with Overhaul.
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
        backbone=dict(type='overhaul.WideResNet', depth=28, widen_factor=4),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=100, in_channels=256,
                  # PyTorch's own range for the weights, and no bias.
                  init_cfg=dict(type='Uniform', layer='Linear', a=-1 / 16, b=1 / 16))),
    taps=[
        dict(teacher='backbone.layer2.0.bn2', student='backbone.block2.0.bn1', loss_weight=1 / 4),
        dict(teacher='backbone.layer3.0.bn2', student='backbone.block3.0.bn1', loss_weight=1 / 2),
        dict(teacher='backbone.bn_final', student='backbone.bn1', loss_weight=1),
    ],
    distill_loss=dict(type='PartialL2Loss', loss_weight=1e-3),
    input_size=(32, 32))
