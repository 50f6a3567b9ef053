"""The layout of feature maps in memory."""

import torch
from torch import Tensor


def quickest(feature: Tensor) -> Tensor:
    """Return the map (N, C, H, W) in the layout in which its device normalises and convolves it quickest.

    On a CPU that is channels-last, whatever the layout of the weights: a batch norm with the statistics of the batch
    takes a quarter of the time. Elsewhere it depends on the precision, and the map is returned as it is.
    """
    return feature.contiguous(memory_format=torch.channels_last) if feature.device.type == 'cpu' else feature
