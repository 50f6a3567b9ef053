"""Small DeepLabV3+ for scenes of digits: ResNet without its last stage, of a quarter and of an eighth of its width.

The output stride is 8: an image of 64x64 becomes a map of 8x8, and is decoded at 16x16.
"""

# Teacher, 600,523 parameters.
deeplab_resnet34 = dict(
    type='mmseg.EncoderDecoder',
    backbone=dict(
        type='mmseg.ResNet', depth=34, stem_channels=16, base_channels=16, num_stages=3, strides=(1, 2, 1),
        dilations=(1, 1, 2), out_indices=(0, 2)),
    decode_head=dict(
        type='overhaul.DeepLabV3PlusHead', in_channels=64, c1_in_channels=16, channels=32, c1_channels=8,
        in_index=1, dilations=(1, 2, 3, 4), num_classes=11, aspp_dropout_ratio=0, fusion_dropout_ratio=0,
        align_corners=False),
    test_cfg=dict(mode='whole'))

# Student, 66,795 parameters.
deeplab_resnet18 = dict(
    type='mmseg.EncoderDecoder',
    backbone=dict(
        type='mmseg.ResNet', depth=18, stem_channels=8, base_channels=8, num_stages=3, strides=(1, 2, 1),
        dilations=(1, 1, 2), out_indices=(0, 2)),
    decode_head=dict(
        type='overhaul.DeepLabV3PlusHead', in_channels=32, c1_in_channels=8, channels=16, c1_channels=4,
        in_index=1, dilations=(1, 2, 3, 4), num_classes=11, aspp_dropout_ratio=0, fusion_dropout_ratio=0,
        align_corners=False),
    test_cfg=dict(mode='whole'))
