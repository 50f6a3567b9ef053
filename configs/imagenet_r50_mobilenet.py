"""ImageNet, setting (b): ResNet-50 teaches MobileNet (v1).

    tools/dist_train.sh configs/imagenet_r50_mobilenet.py 8

Top-1 / top-5 error of the student in the paper: 31.13 / 11.24 % alone, 28.75 / 9.66 % with Overhaul.
"""

_base_ = 'imagenet_r152_r50.py'

model = dict(
    teacher=dict(backbone=dict(depth=50)),
    teacher_checkpoint='torchvision://resnet50',
    student=dict(
        backbone=dict(_delete_=True, type='overhaul.MobileNetV1'),
        head=dict(in_channels=1024)),
    taps=[
        dict(teacher='backbone.layer1.2.relu:input', student='backbone.model.3.4', loss_weight=1 / 8),
        dict(teacher='backbone.layer2.3.relu:input', student='backbone.model.5.4', loss_weight=1 / 4),
        dict(teacher='backbone.layer3.5.relu:input', student='backbone.model.11.4', loss_weight=1 / 2),
        dict(teacher='backbone.layer4.2.relu:input', student='backbone.model.13.4', loss_weight=1),
    ])
