"""VOC segmentation: DeepLabV3+ ResNet-101 teaches DeepLabV3+ ResNet-18.

    tools/dist_train.sh configs/voc_r101_r18.py 2

mIoU in the paper: teacher 77.89, student 72.07 alone, 73.98 with the teacher.
"""

_base_ = [
    '_base_/datasets/voc_aug.py', '_base_/networks/deeplab_v3_plus.py', '_base_/schedules/voc_50_epochs.py',
    '_base_/runtime.py']
default_scope = 'mmseg'
default_hooks = dict(checkpoint=dict(save_best='mIoU'))

# The official code has no dropout after the pyramid while it distils.
_base_.deeplab_resnet18.decode_head.aspp_dropout_ratio = 0

model = dict(
    type='overhaul.OverhaulDistiller',
    teacher=_base_.deeplab_resnet101,
    teacher_checkpoint='data/teachers/deeplab-resnet.pth.tar',
    student=_base_.deeplab_resnet18,
    taps=[
        dict(teacher='backbone.layer1.2.relu:input', student='backbone.layer1.1.relu:input', loss_weight=1 / 8),
        dict(teacher='backbone.layer2.3.relu:input', student='backbone.layer2.1.relu:input', loss_weight=1 / 4),
        dict(teacher='backbone.layer3.22.relu:input', student='backbone.layer3.1.relu:input', loss_weight=1 / 2),
        dict(teacher='backbone.layer4.2.relu:input', student='backbone.layer4.1.relu:input', loss_weight=1),
        dict(
            teacher='decode_head.bottleneck.activate:input', student='decode_head.bottleneck.activate:input',
            loss_weight=1),
        dict(
            teacher='decode_head.fusion.1.activate:input', student='decode_head.fusion.1.activate:input',
            loss_weight=1 / 16),
    ],
    distill_loss=dict(type='PartialL2Loss', loss_weight=1e-5),
    input_size=(513, 513))
