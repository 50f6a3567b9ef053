"""The distillation of digitdet_gfl_r34_r18.py, which also sees 1,000 other scenes, without their boxes.

    python tools/train.py configs/digitdet_gfl_r34_r18_unlabelled.py

A batch has two scenes with boxes and six without, instead of 16 with boxes. There are 1,200 batches instead of 600, so
the number of scenes is the same. All else is as in that config. The results are in docs/evidence.md.
"""

_base_ = 'digitdet_gfl_r34_r18.py'

train_dataloader = dict(
    batch_size=2, unlabelled=dict(dataset=dict(type='overhaul.DigitScenes', length=1000, seed=1000), per_image=3))
auto_scale_lr = dict(base_batch_size=2)
train_cfg = dict(max_iters=1200, val_interval=600)
param_scheduler = dict(T_max=1200)
