"""DeepLabV3+ ResNet-34 teaches DeepLabV3+ ResNet-18 with 64 labelled scenes of digits. Embedded data, no download.

    python tools/train.py configs/digitscenes_r34_r18.py

configs/digitscenes_r34.py has trained the teacher on 4,000 scenes; its file comes with the package. To train the same
student alone, add --student-only. Other labelled scenes: --cfg-options train_dataloader.dataset.seed=1.

Over five seeds (python tools/compare.py configs/digitscenes_r34_r18.py --seeds 5) the student has 18.95 ± 0.80 % mIoU
alone and 41.09 ± 1.80 % with the teacher, which has 67.05 %.
"""

_base_ = [
    '_base_/datasets/digitscenes.py', '_base_/networks/digitscenes_deeplab_v3_plus.py',
    '_base_/schedules/digitscenes_600_iterations.py']
default_scope = 'mmseg'

train_dataloader = dict(dataset=dict(length=64))

model = dict(
    type='overhaul.OverhaulDistiller',
    teacher=_base_.deeplab_resnet34,
    teacher_checkpoint='overhaul://digitscenes_r34.pth',
    student=_base_.deeplab_resnet18,
    taps=[
        dict(teacher='backbone.layer1.2.relu:input', student='backbone.layer1.1.relu:input', loss_weight=1 / 4),
        dict(teacher='backbone.layer2.3.relu:input', student='backbone.layer2.1.relu:input', loss_weight=1 / 2),
        dict(teacher='backbone.layer3.5.relu:input', student='backbone.layer3.1.relu:input', loss_weight=1),
        dict(
            teacher='decode_head.bottleneck.activate:input', student='decode_head.bottleneck.activate:input',
            loss_weight=1),
        dict(
            teacher='decode_head.fusion.1.activate:input', student='decode_head.fusion.1.activate:input',
            loss_weight=1 / 16),
    ],
    distill_loss=dict(type='PartialL2Loss', loss_weight=1e-3),
    input_size=(64, 64))
