"""WRN-16-2 teaches WRN-10-1 with five labelled digits per class. Embedded data, no download.

    python tools/train.py configs/digits_wrn16_2_wrn10_1.py

configs/digits_wrn16_2.py has trained the teacher on all labels of the training split; its file comes with the package.
To train the same student alone, add --student-only. Other labelled images: --cfg-options
train_dataloader.dataset.seed=1.
"""

_base_ = ['_base_/datasets/digits.py', '_base_/schedules/digits_200_iterations.py']
default_scope = 'mmpretrain'

train_dataloader = dict(dataset=dict(labels_per_class=5))

model = dict(
    type='overhaul.OverhaulDistiller',
    teacher=dict(
        type='ImageClassifier',
        backbone=dict(type='overhaul.WideResNet', depth=16, widen_factor=2),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=128)),
    teacher_checkpoint='overhaul://digits_wrn16_2.pth',
    student=dict(
        type='ImageClassifier',
        backbone=dict(type='overhaul.WideResNet', depth=10, widen_factor=1),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=64)),
    taps=[
        dict(teacher='backbone.block2.0.bn1', student='backbone.block2.0.bn1', loss_weight=1 / 4),
        dict(teacher='backbone.block3.0.bn1', student='backbone.block3.0.bn1', loss_weight=1 / 2),
        dict(teacher='backbone.bn1', student='backbone.bn1', loss_weight=1),
    ],
    distill_loss=dict(type='PartialL2Loss', loss_weight=1e-2),
    input_size=(16, 16))
