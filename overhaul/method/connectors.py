"""The student transform."""

import math

from torch import Tensor, nn

from overhaul.method.memory_format import quickest
from overhaul.registry import MODELS


@MODELS.register_module()
class ConvBNConnector(nn.Module):
    """1x1 convolution without bias and batch norm: student feature (N, Cs, H, W) to (N, Ct, H, W).

    Also called regressor or adaptation layer (paper, section 3.1, student transform). It is trained with the student,
    and not needed afterwards. Used at every tap, also where Cs equals Ct, as in the official code, whose
    initialisation it takes too: normal with standard deviation sqrt(2 / Ct).

    Args:
        student_channels: Cs.
        teacher_channels: Ct.
    """

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=False)
        self.bn = nn.BatchNorm2d(teacher_channels)
        nn.init.normal_(self.conv.weight, std=math.sqrt(2 / teacher_channels))

    def forward(self, feature: Tensor) -> Tensor:
        """Return the student feature in the teacher's channels."""
        return self.bn(self.conv(quickest(feature)))
