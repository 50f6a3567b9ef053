"""The distillation of digits_wrn16_2_wrn10_1.py, which also sees the other 1,293 training images, without their labels.

    python tools/train.py configs/digits_wrn16_2_wrn10_1_unlabelled.py

Another number of labelled images per class: --cfg-options train_dataloader.dataset.labels_per_class=1.
"""

_base_ = 'digits_wrn16_2_wrn10_1.py'

train_dataloader = dict(unlabelled=dict(dataset=dict(type='overhaul.Digits', split='train'), per_image=1))
