"""Pascal VOC detection: SSD300 VGG-16 teaches SSD300 ResNet-18.

    python tools/train.py configs/voc_ssd300_vgg16_r18.py

It differs from voc_ssd300_r50_r18.py only in the teacher. That config says which details are ours. The teacher's
feature at stride 32 is in its first extra layer, and its margins come from data.

The teacher is mmdet's SSD300. mmdet's zoo has no weights of it for Pascal VOC. To train it:

    python tools/train.py mmdet::pascal_voc/ssd300_voc0712.py --work-dir work_dirs/ssd300_vgg16
    mkdir -p data/teachers && cp work_dirs/ssd300_vgg16/epoch_24.pth data/teachers/ssd300_vgg16_voc0712.pth
"""

_base_ = 'voc_ssd300_r50_r18.py'

model = dict(
    teacher='mmdet::pascal_voc/ssd300_voc0712.py',
    teacher_checkpoint='data/teachers/ssd300_vgg16_voc0712.pth',
    taps=[
        dict(teacher='backbone.features.15:input', student='backbone.layer1.1.relu:input', loss_weight=1 / 8),
        dict(teacher='backbone.features.22:input', student='backbone.layer2.1.relu:input', loss_weight=1 / 4),
        dict(teacher='backbone.features.34:input', student='backbone.layer3.1.relu:input', loss_weight=1 / 2),
        dict(teacher='neck.extra_layers.0.1.activate:input', student='backbone.layer4.1.relu:input', loss_weight=1),
    ])
