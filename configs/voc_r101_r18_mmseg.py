"""VOC segmentation with mmseg's own networks and teacher: its DeepLabV3+ ResNet-101-D8 teaches ResNet-18-D8.

    tools/dist_train.sh configs/voc_r101_r18_mmseg.py 2

This is no setting of the paper. Networks, data pipelines and teacher are those of mmseg's
deeplabv3plus_r101-d8_4xb4-20k_voc12aug-512x512.py (mIoU 77.22) and deeplabv3plus_r18-d8_*.py. So the student's weights
can be used in place of mmseg's. Taps, losses and schedule are those of voc_r101_r18.py. mmseg's auxiliary head, which
is only for training, is left out. The batch norms are plain ones, which also run without a GPU and take the same
weights. For synchronised batch norms in the student, as in mmseg, set sync_bn = 'torch'.
"""

_base_ = ['_base_/datasets/voc_aug_mmseg.py', '_base_/schedules/voc_50_epochs.py', '_base_/runtime.py']
default_scope = 'mmseg'
default_hooks = dict(checkpoint=dict(save_best='mIoU'))

norm_cfg = dict(type='BN')

model = dict(
    type='overhaul.OverhaulDistiller',
    teacher=dict(
        type='EncoderDecoder',
        backbone=dict(
            type='ResNetV1c', depth=101, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True,
            norm_cfg=norm_cfg),
        decode_head=dict(
            type='DepthwiseSeparableASPPHead', in_channels=2048, in_index=3, channels=512, dilations=(1, 12, 24, 36),
            c1_in_channels=256, c1_channels=48, num_classes=21, norm_cfg=norm_cfg),
        test_cfg=dict(mode='whole')),
    teacher_checkpoint=(
        'https://download.openmmlab.com/mmsegmentation/v0.5/deeplabv3plus/deeplabv3plus_r101-d8_512x512_20k_voc12aug/'
        'deeplabv3plus_r101-d8_512x512_20k_voc12aug_20200617_102345-c7ff3d56.pth'),
    student=dict(
        type='EncoderDecoder',
        backbone=dict(
            type='ResNetV1c', depth=18, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True,
            norm_cfg=norm_cfg, init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet18_v1c')),
        decode_head=dict(
            type='DepthwiseSeparableASPPHead', in_channels=512, in_index=3, channels=128, dilations=(1, 12, 24, 36),
            c1_in_channels=64, c1_channels=12, num_classes=21, norm_cfg=norm_cfg,
            loss_decode=dict(type='overhaul.CrossEntropyPerImage')),
        test_cfg=dict(mode='whole')),
    taps=[
        dict(teacher='backbone.layer1.2.relu:input', student='backbone.layer1.1.relu:input', loss_weight=1 / 8),
        dict(teacher='backbone.layer2.3.relu:input', student='backbone.layer2.1.relu:input', loss_weight=1 / 4),
        dict(teacher='backbone.layer3.22.relu:input', student='backbone.layer3.1.relu:input', loss_weight=1 / 2),
        dict(teacher='backbone.layer4.2.relu:input', student='backbone.layer4.1.relu:input', loss_weight=1),
        dict(
            teacher='decode_head.bottleneck.activate:input', student='decode_head.bottleneck.activate:input',
            loss_weight=1),
        dict(
            teacher='decode_head.sep_bottleneck.1.pointwise_conv.activate:input',
            student='decode_head.sep_bottleneck.1.pointwise_conv.activate:input', loss_weight=1 / 16),
    ],
    distill_loss=dict(type='PartialL2Loss', loss_weight=1e-5),
    input_size=(512, 512))
