"""Pascal VOC detection: SSD300 ResNet-50 teaches SSD300 MobileNet.

    python tools/train.py configs/voc_ssd300_r50_mobilenet.py

It differs from voc_ssd300_r50_r18.py only in the student. That config says which details are ours.

The student begins with the MobileNet of an ImageNet training. To make its file, train imagenet_r50_mobilenet.py, and
export the student with tools/export_student.py to data/teachers/mobilenet_imagenet.pth.
"""

_base_ = 'voc_ssd300_r50_r18.py'

model = dict(
    student=dict(_delete_=True, **_base_.ssd_mobilenet),
    student_checkpoint='data/teachers/mobilenet_imagenet.pth',
    taps=[
        dict(teacher='backbone.layer1.2.relu:input', student='backbone.model.3.4', loss_weight=1 / 8),
        dict(teacher='backbone.layer2.3.relu:input', student='backbone.model.5.4', loss_weight=1 / 4),
        dict(teacher='backbone.layer3.5.relu:input', student='backbone.model.11.4', loss_weight=1 / 2),
        dict(teacher='backbone.layer4.2.relu:input', student='backbone.model.13.4', loss_weight=1),
    ])
