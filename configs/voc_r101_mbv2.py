"""VOC segmentation: DeepLabV3+ ResNet-101 teaches DeepLabV3+ MobileNetV2.

    tools/dist_train.sh configs/voc_r101_mbv2.py 2

mIoU in the paper: teacher 77.89, student 68.46 alone, 71.19 with the teacher.
"""

_base_ = 'voc_r101_r18.py'

# The official code has no dropout after the pyramid while it distils.
_base_.deeplab_mobilenetv2.decode_head.aspp_dropout_ratio = 0

model = dict(
    student=dict(_delete_=True, **_base_.deeplab_mobilenetv2),
    taps=[
        dict(teacher='backbone.layer1.2.relu:input', student='backbone.layer3.0.conv.0.bn', loss_weight=1 / 8),
        dict(teacher='backbone.layer2.3.relu:input', student='backbone.layer4.0.conv.0.bn', loss_weight=1 / 4),
        dict(teacher='backbone.layer3.22.relu:input', student='backbone.layer6.0.conv.0.bn', loss_weight=1 / 2),
        dict(teacher='backbone.layer4.2.relu:input', student='backbone.layer7.0.conv.2.bn', loss_weight=1),
        dict(
            teacher='decode_head.bottleneck.activate:input', student='decode_head.bottleneck.activate:input',
            loss_weight=1),
        dict(
            teacher='decode_head.fusion.1.activate:input', student='decode_head.fusion.1.activate:input',
            loss_weight=1 / 16),
    ])
