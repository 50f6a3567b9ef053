"""The teacher of the scenes of digits: a small DeepLabV3+ ResNet-34, trained on 4,000 scenes.

    python tools/train.py configs/digitscenes_r34.py
    cp work_dirs/digitscenes_r34/iter_3000-*.pth overhaul/weights/digitscenes_r34.pth

The second line copies the weights-only file that the run writes at its end. This file comes with the package. It has
67.05 % mIoU on the 500 test scenes.
"""

_base_ = [
    '_base_/datasets/digitscenes.py', '_base_/networks/digitscenes_deeplab_v3_plus.py',
    '_base_/schedules/digitscenes_600_iterations.py']
default_scope = 'mmseg'

model = _base_.deeplab_resnet34

train_cfg = dict(max_iters=3000, val_interval=1000)
param_scheduler = dict(type='CosineAnnealingLR', by_epoch=False, T_max=3000)
default_hooks = dict(checkpoint=dict(interval=3000, published_keys=['meta', 'state_dict']))
