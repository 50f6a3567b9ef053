"""Pascal VOC detection: SSD300 ResNet-50 teaches SSD300 ResNet-18.

    python tools/train.py configs/voc_ssd300_r50_r18.py

This is one of the paper's pairs for detection (its Table 5). Their code and teachers were not published. Ours are the
details of the networks (_base_/networks/ssd300.py), the schedule (_base_/schedules/voc_120k_iterations.py), the taps
and alpha. The taps are the last features before a ReLU at strides 4 to 32, as in the paper's other settings. Alpha is
set from data.

voc_ssd300_r50.py trains the teacher, and says how to put its file into data/teachers.
"""

_base_ = [
    '_base_/datasets/voc_0712.py', '_base_/networks/ssd300.py', '_base_/schedules/voc_120k_iterations.py']
default_scope = 'mmdet'

model = dict(
    type='overhaul.OverhaulDistiller',
    teacher=_base_.ssd_resnet50,
    teacher_checkpoint='data/teachers/ssd300_r50_voc0712.pth',
    student=_base_.ssd_resnet18,
    taps=[
        dict(teacher='backbone.layer1.2.relu:input', student='backbone.layer1.1.relu:input', loss_weight=1 / 8),
        dict(teacher='backbone.layer2.3.relu:input', student='backbone.layer2.1.relu:input', loss_weight=1 / 4),
        dict(teacher='backbone.layer3.5.relu:input', student='backbone.layer3.1.relu:input', loss_weight=1 / 2),
        dict(teacher='backbone.layer4.2.relu:input', student='backbone.layer4.1.relu:input', loss_weight=1),
    ],
    alpha='auto',
    input_size=(300, 300))
