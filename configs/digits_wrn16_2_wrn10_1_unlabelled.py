"""The distillation of digits_wrn16_2_wrn10_1.py, which also sees the other 1,293 training images, without their labels.

    python tools/train.py configs/digits_wrn16_2_wrn10_1_unlabelled.py

Another number of labelled images per class: --cfg-options train_dataloader.dataset.labels_per_class=1.

A batch has 50 images, as in that config, and there are twice as many batches. docs/evidence.md says how this was
chosen.
"""

_base_ = 'digits_wrn16_2_wrn10_1.py'

train_dataloader = dict(
    batch_size=10, unlabelled=dict(dataset=dict(type='overhaul.Digits', split='train'), per_image=4))
auto_scale_lr = dict(base_batch_size=10)
train_cfg = dict(max_iters=400)
param_scheduler = dict(T_max=400)

model = dict(student=dict(head=dict(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.2))))
