"""100 epochs of SGD, learning rate 0.1, divided by 10 after epochs 29, 59 and 89. As the official code.

The official code numbers epochs from 1 and lowers the rate where that number reaches 30, 60 and 90.
"""

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4))
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[29, 59, 89], gamma=0.1)

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=100, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=256, enable=True)
