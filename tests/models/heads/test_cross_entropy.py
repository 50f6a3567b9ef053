import pytest
import torch
from mmengine.structures import PixelData
from torch.nn import functional

from overhaul import CrossEntropyPerImage, DeepLabV3PlusHead
from overhaul.models.heads import cross_entropy


def batch(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, 5, 6, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (size, 6, 7), generator=generator)
    labels[:, 0] = 255  # as many in each image
    return logits, labels


def test_it_is_the_mean_over_labelled_pixels_divided_by_the_images():
    logits, labels = batch(4)
    expected = functional.cross_entropy(logits, labels, ignore_index=255) / 4
    assert CrossEntropyPerImage()(logits, labels).item() == pytest.approx(expected.item(), rel=1e-8)
    assert CrossEntropyPerImage(loss_weight=3)(logits, labels).item() == pytest.approx(3 * expected.item(), rel=1e-8)


def test_the_mean_over_processes_is_the_loss_of_the_whole_batch(monkeypatch):
    logits, labels = batch(4)
    whole = CrossEntropyPerImage()(logits, labels)
    monkeypatch.setattr(cross_entropy, 'get_world_size', lambda: 2)
    halves = [CrossEntropyPerImage()(logits[part], labels[part]) for part in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(sum(halves) / 2, whole, rtol=1e-8, atol=0)


def test_a_batch_without_labels_gives_zero_and_not_nan():
    logits, labels = batch(2)
    logits.requires_grad_()
    loss = CrossEntropyPerImage()(logits, torch.full_like(labels, 255))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_a_head_logs_it_as_loss_ce():
    from mmseg.structures import SegDataSample  # mmseg can be imported once overhaul is

    head = DeepLabV3PlusHead(
        in_channels=6, c1_in_channels=3, num_classes=5, loss_decode=dict(type='overhaul.CrossEntropyPerImage'))
    logits, labels = batch(2)
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in labels]
    losses = head.loss_by_feat(logits, samples)
    expected = functional.cross_entropy(logits, labels, ignore_index=255) / 2
    assert losses['loss_ce'].item() == pytest.approx(expected.item(), rel=1e-8)


def test_a_head_takes_the_plain_mean_by_default():
    head = DeepLabV3PlusHead(in_channels=6, c1_in_channels=3, num_classes=5)
    logits, labels = batch(2)
    expected = functional.cross_entropy(logits, labels, ignore_index=255)
    assert head.loss_decode(logits, labels, ignore_index=255).item() == pytest.approx(expected.item(), rel=1e-8)
