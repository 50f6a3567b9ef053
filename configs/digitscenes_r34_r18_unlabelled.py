"""The distillation of digitscenes_r34_r18.py, which also sees 1,000 other scenes, without their masks.

    python tools/train.py configs/digitscenes_r34_r18_unlabelled.py

A batch has two scenes with masks and six without, instead of 16 with masks. There are 2,000 batches instead of 600, and
alpha is 16 times as large. docs/evidence.md says how this was chosen, and has the results over five seeds.
"""

_base_ = 'digitscenes_r34_r18.py'

train_dataloader = dict(
    batch_size=2, unlabelled=dict(dataset=dict(type='overhaul.DigitScenes', length=1000, seed=1000), per_image=3))
auto_scale_lr = dict(base_batch_size=2)
train_cfg = dict(max_iters=2000, val_interval=500)
param_scheduler = dict(T_max=2000)

model = dict(distill_loss=dict(loss_weight=16e-3))
