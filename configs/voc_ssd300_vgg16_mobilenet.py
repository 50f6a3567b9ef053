"""Pascal VOC detection: SSD300 VGG-16 teaches SSD300 MobileNet.

    python tools/train.py configs/voc_ssd300_vgg16_mobilenet.py

It differs from voc_ssd300_vgg16_r18.py only in the student. That config says how to train the teacher.

The student begins with the MobileNet of an ImageNet training. To make its file, train imagenet_r50_mobilenet.py, and
export the student with tools/export_student.py to data/teachers/mobilenet_imagenet.pth.
"""

_base_ = 'voc_ssd300_vgg16_r18.py'

model = dict(
    student=dict(_delete_=True, **_base_.ssd_mobilenet),
    student_checkpoint='data/teachers/mobilenet_imagenet.pth',
    taps=[
        dict(teacher='backbone.features.15:input', student='backbone.model.3.4', loss_weight=1 / 8),
        dict(teacher='backbone.features.22:input', student='backbone.model.5.4', loss_weight=1 / 4),
        dict(teacher='backbone.features.34:input', student='backbone.model.11.4', loss_weight=1 / 2),
        dict(teacher='neck.extra_layers.0.1.activate:input', student='backbone.model.13.4', loss_weight=1),
    ])
