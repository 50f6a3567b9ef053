"""600 iterations of AdamW with a cosine learning rate; mIoU is measured every 300, and a checkpoint is kept."""

_base_ = '../runtime.py'

optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.05))
param_scheduler = dict(type='CosineAnnealingLR', by_epoch=False, T_max=600)

train_cfg = dict(type='IterBasedTrainLoop', max_iters=600, val_interval=300)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=16, enable=True)
log_processor = dict(by_epoch=False)
default_hooks = dict(logger=dict(log_metric_by_epoch=False), checkpoint=dict(by_epoch=False, interval=300))
