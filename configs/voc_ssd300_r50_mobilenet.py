"""Pascal VOC detection: SSD300 ResNet-50 teaches SSD300 MobileNet.

    python tools/train.py configs/voc_ssd300_r50_mobilenet.py

One of the paper's pairs for detection (its Table 5), whose code and teachers were not published. Ours are the details
of the networks (_base_/networks/ssd300.py), the schedule (_base_/schedules/voc_120k_iterations.py), the taps, the
last features before a ReLU at strides 4 to 32, as in the paper's other settings, and alpha, which is set from data.

The teacher is trained by voc_ssd300_r50.py, which says how it comes to data/teachers.

The student begins with the MobileNet of an ImageNet training: what tools/export_student.py makes of
imagenet_r50_mobilenet.py, as data/teachers/mobilenet_imagenet.pth.
"""

_base_ = [
    '_base_/datasets/voc_0712.py', '_base_/networks/ssd300.py', '_base_/schedules/voc_120k_iterations.py']
default_scope = 'mmdet'

model = dict(
    type='overhaul.OverhaulDistiller',
    teacher=_base_.ssd_resnet50,
    teacher_checkpoint='data/teachers/ssd300_r50_voc0712.pth',
    student=_base_.ssd_mobilenet,
    student_checkpoint='data/teachers/mobilenet_imagenet.pth',
    taps=[
        dict(teacher='backbone.layer1.2.relu:input', student='backbone.model.3.4', loss_weight=1 / 8),
        dict(teacher='backbone.layer2.3.relu:input', student='backbone.model.5.4', loss_weight=1 / 4),
        dict(teacher='backbone.layer3.5.relu:input', student='backbone.model.11.4', loss_weight=1 / 2),
        dict(teacher='backbone.layer4.2.relu:input', student='backbone.model.13.4', loss_weight=1),
    ],
    alpha='auto',
    input_size=(300, 300))
