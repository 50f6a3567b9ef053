"""50 epochs of SGD, polynomial decay from 0.007, head and connectors at ten times that. As the official code.

The first epoch trains the connectors alone, at the plain rate.
"""

optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.007, momentum=0.9, nesterov=True, weight_decay=5e-4),
    paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=10), connectors=dict(lr_mult=10))))
param_scheduler = dict(
    type='overhaul.PolyLR', power=0.9, eta_min=0, begin=0, end=50, by_epoch=True, convert_to_iter_based=True)
custom_hooks = [dict(type='overhaul.ConnectorsFirstHook', epochs=1)]

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=50, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=12, enable=True)
