"""The paper's three segmentation networks: DeepLabV3+ at output stride 16 for the 21 classes of Pascal VOC.

MobileNetV2 is that of mmseg, where each convolution pads its input. The official one pads each block's input before the
expansion, so zeros go through a batch norm there. The weights are the same; values near the borders differ.
"""

# Teacher, 59,344,309 parameters. Its weights come from a checkpoint.
deeplab_resnet101 = dict(
    type='mmseg.EncoderDecoder',
    backbone=dict(
        type='mmseg.ResNet', depth=101, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), multi_grid=(2, 4, 8),
        out_indices=(0, 3)),
    decode_head=dict(type='overhaul.DeepLabV3PlusHead', in_channels=2048, c1_in_channels=256, num_classes=21),
    test_cfg=dict(mode='whole'))

# Student, 16,608,181 parameters.
deeplab_resnet18 = dict(
    type='mmseg.EncoderDecoder',
    backbone=dict(
        type='overhaul.DilatedResNet', depth=18, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), out_indices=(0, 3),
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    decode_head=dict(
        type='overhaul.DeepLabV3PlusHead', in_channels=512, c1_in_channels=64, num_classes=21,
        loss_decode=dict(type='overhaul.CrossEntropyPerImage')),
    test_cfg=dict(mode='whole'))

# Student, 5,816,053 parameters.
deeplab_mobilenetv2 = dict(
    type='mmseg.EncoderDecoder',
    backbone=dict(
        type='mmseg.MobileNetV2', strides=(1, 2, 2, 2, 1, 1, 1), dilations=(1, 1, 1, 1, 1, 1, 2), out_indices=(1, 6),
        init_cfg=dict(type='Pretrained', checkpoint='mmcls://mobilenet_v2')),
    decode_head=dict(
        type='overhaul.DeepLabV3PlusHead', in_channels=320, c1_in_channels=24, num_classes=21,
        loss_decode=dict(type='overhaul.CrossEntropyPerImage')),
    test_cfg=dict(mode='whole'))
