"""Pascal VOC detection: SSD300 VGG-16 teaches SSD300 MobileNet.

    python tools/train.py configs/voc_ssd300_vgg16_mobilenet.py

One of the paper's pairs for detection (its Table 5), whose code and teachers were not published. Ours are the details
of the networks (_base_/networks/ssd300.py), the schedule (_base_/schedules/voc_120k_iterations.py), the taps, the
last features before a ReLU at strides 4 to 32, that of VGG-16 at stride 32 is in its first extra layer, and its
margins come from data, and alpha, which is set from data.

The teacher is mmdet's SSD300, for which its zoo has no weights of Pascal VOC. To train it:

    python tools/train.py mmdet::pascal_voc/ssd300_voc0712.py --work-dir work_dirs/ssd300_vgg16
    mkdir -p data/teachers && cp work_dirs/ssd300_vgg16/epoch_24.pth data/teachers/ssd300_vgg16_voc0712.pth

The student begins with the MobileNet of an ImageNet training: what tools/export_student.py makes of
imagenet_r50_mobilenet.py, as data/teachers/mobilenet_imagenet.pth.
"""

_base_ = [
    '_base_/datasets/voc_0712.py', '_base_/networks/ssd300.py', '_base_/schedules/voc_120k_iterations.py']
default_scope = 'mmdet'

model = dict(
    type='overhaul.OverhaulDistiller',
    teacher='mmdet::pascal_voc/ssd300_voc0712.py',
    teacher_checkpoint='data/teachers/ssd300_vgg16_voc0712.pth',
    student=_base_.ssd_mobilenet,
    student_checkpoint='data/teachers/mobilenet_imagenet.pth',
    taps=[
        dict(teacher='backbone.features.15:input', student='backbone.model.3.4', loss_weight=1 / 8),
        dict(teacher='backbone.features.22:input', student='backbone.model.5.4', loss_weight=1 / 4),
        dict(teacher='backbone.features.34:input', student='backbone.model.11.4', loss_weight=1 / 2),
        dict(teacher='neck.extra_layers.0.1.activate:input', student='backbone.model.13.4', loss_weight=1),
    ],
    alpha='auto',
    input_size=(300, 300))
