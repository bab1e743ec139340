"""ShuffleNet (Zhang et al. 2018) with 3 groups for small images.

Grouped 1×1 convolutions whose channels are shuffled between groups. Parameter names and shapes are those of the
networks that RepDistiller trains on CIFAR-100. Features: mean over the last, non-negative, feature map, 960 wide.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .output import Classifier

GROUPS = 3


class Bottleneck(nn.Module):
    """Grouped 1×1, shuffle, 3×3 depthwise, grouped 1×1; the first of a stage halves the image and concatenates."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, first_groups: int):
        super().__init__()
        self.stride, self.first_groups = stride, first_groups
        middle = out_channels // 4
        self.conv1 = nn.Conv2d(in_channels, middle, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, padding=1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, out_channels, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.channel_shuffle(F.relu(self.bn1(self.conv1(x))), self.first_groups)
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.stride == 1:
            return F.relu(x + y)
        return F.relu(torch.cat([y, F.avg_pool2d(x, 3, stride=2, padding=1)], 1))


class ShuffleNetV1(Classifier):
    """ShuffleNet (arXiv 1707.01083) as published for CIFAR-100: no stride in the stem."""

    head_name = "linear"

    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.layer1 = _stage(24, 240, 4)
        self.layer2 = _stage(240, 480, 8)
        self.layer3 = _stage(480, 960, 4)
        self.linear = nn.Linear(960, num_classes)

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x))).mean((2, 3))


def _stage(in_channels: int, out_channels: int, blocks: int) -> nn.Sequential:
    """The first block learns what the pooled input, `in_channels` wide, leaves of `out_channels`."""
    first_groups = 1 if in_channels == 24 else GROUPS  # too few channels to divide, as in the paper
    first = Bottleneck(in_channels, out_channels - in_channels, 2, first_groups)
    return nn.Sequential(first, *(Bottleneck(out_channels, out_channels, 1, GROUPS) for _ in range(blocks - 1)))
