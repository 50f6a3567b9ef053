"""200 epochs of SGD, learning rate 0.1, divided by 10 at epochs 100 and 150. As the official code."""

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4))
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[100, 150], gamma=0.1)
# The official code makes a new optimizer whenever it lowers the learning rate.
custom_hooks = [dict(type='overhaul.ResetMomentumHook', epochs=[100, 150])]

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=200, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=128, enable=True)
