"""GFL ResNet-34 teaches GFL ResNet-18 with 64 scenes of digits and their boxes. Embedded data, no download.

    python tools/train.py configs/digitdet_gfl_r34_r18.py

configs/digitdet_gfl_r34.py has trained the teacher on 4,000 scenes; its file comes with the package. To train the same
student alone, add --student-only. Other labelled scenes: --cfg-options train_dataloader.dataset.seed=1.

Over five seeds (python tools/compare.py configs/digitdet_gfl_r34_r18.py --seeds 5) the student has 34.16 ± 7.50 % mAP50
alone and 53.06 ± 4.40 % with the teacher, which has 91.80 %. Alpha and the learning rate were chosen in single runs on
300 scenes of training digits. The learning rate was chosen for the student alone.
"""

_base_ = [
    '_base_/datasets/digitdet.py', '_base_/networks/digitdet_gfl.py', '_base_/schedules/digitscenes_600_iterations.py']
default_scope = 'mmdet'

train_dataloader = dict(dataset=dict(length=64))
optim_wrapper = dict(optimizer=dict(lr=3e-3))

model = dict(
    type='overhaul.OverhaulDistiller',
    teacher=_base_.gfl_resnet34,
    teacher_checkpoint='overhaul://digitdet_gfl_r34.pth',
    student=_base_.gfl_resnet18,
    taps=[
        dict(teacher='backbone.layer1.2.relu:input', student='backbone.layer1.1.relu:input', loss_weight=1 / 4),
        dict(teacher='backbone.layer2.3.relu:input', student='backbone.layer2.1.relu:input', loss_weight=1 / 2),
        dict(teacher='backbone.layer3.5.relu:input', student='backbone.layer3.1.relu:input', loss_weight=1),
        dict(teacher='neck.convs.0.activate:input', student='neck.convs.0.activate:input', loss_weight=1),
    ],
    distill_loss=dict(type='PartialL2Loss', loss_weight=1e-2),
    input_size=(64, 64))
default_hooks = dict(checkpoint=dict(save_best='coco/bbox_mAP_50', rule='greater'))
