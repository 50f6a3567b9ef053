"""120,000 iterations of SGD in batches of 32, the rate 0.001 until 80,000, a tenth until 100,000, then a hundredth.

This is the schedule of SSD (Liu et al., ECCV 2016) on Pascal VOC 07+12, with a warm-up of 500 iterations as in mmdet.
"""

_base_ = '../runtime.py'

optim_wrapper = dict(optimizer=dict(type='SGD', lr=1e-3, momentum=0.9, weight_decay=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=120000, milestones=[80000, 100000], gamma=0.1),
]

train_cfg = dict(type='IterBasedTrainLoop', max_iters=120000, val_interval=10000)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=32, enable=True)
log_processor = dict(by_epoch=False)
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=10000, save_best='pascal_voc/mAP', rule='greater'))
