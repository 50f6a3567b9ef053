import copy

import torch
from small_models import batch, build_model, runner, sgd, wide_resnet

LR = 0.05


def new_optimizer(model):
    return torch.optim.SGD(model.parameters(), LR, momentum=0.9, nesterov=True, weight_decay=5e-4)


def train_by_hand(model, batches, epochs, new_at):
    """Plain torch, with a new optimizer at the start of the epochs ``new_at``, as the official code has it."""
    for epoch in range(epochs):
        if epoch == 0 or epoch in new_at:
            optimizer = new_optimizer(model)
        for images, samples in batches:
            optimizer.zero_grad()
            model(images, samples, mode='loss')['loss'].backward()
            optimizer.step()
    return model


def weights_equal(model, other):
    return all(
        torch.allclose(value, theirs, rtol=1e-4, atol=1e-6)
        for value, theirs in zip(model.state_dict().values(), other.state_dict().values()))


def test_momentum_starts_afresh_at_the_epochs_named_as_with_a_new_optimizer(tmp_path):
    batches = [batch(seed=seed) for seed in range(2)]
    start = build_model(wide_resnet()).train()
    hook = dict(type='overhaul.ResetMomentumHook', epochs=[2, 3])
    run = runner(tmp_path, copy.deepcopy(start), batches, epochs=4, optim_wrapper=sgd(LR), hooks=[hook])
    run.train()
    assert weights_equal(run.model, train_by_hand(copy.deepcopy(start), batches, 4, new_at=(2, 3)))
    assert not weights_equal(run.model, train_by_hand(copy.deepcopy(start), batches, 4, new_at=()))
    assert not weights_equal(run.model, train_by_hand(copy.deepcopy(start), batches, 4, new_at=(2, )))
