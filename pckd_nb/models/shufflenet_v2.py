"""ShuffleNetV2 for small images, with the channels that the paper calls "1×".

The convolutions of a block change only half of the channels. At the end of the block, all channels are shuffled. The
parameters have the names and shapes of the network in the code repository RepDistiller, which trains it on CIFAR-100.

References
----------
Ma et al., "ShuffleNet V2: Practical guidelines for efficient CNN architecture design", arXiv 1807.11164.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .output import Classifier

LAST_CHANNELS = 1024


class Block(nn.Module):
    """Block with three convolutions: 1×1, depthwise 3×3, and 1×1. They take only the second half of the channels.

    The depthwise convolution filters each channel separately. The last block of a stage passes all channels before its
    last ReLU through `preactivation`, which changes nothing, so that a hook can see them.
    """

    def __init__(self, channels: int, last: bool = False):
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.preactivation = nn.Identity() if last else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map after this block."""
        unchanged, y = x.chunk(2, 1)
        y = F.relu(self.bn1(self.conv1(y)))
        y = self.bn2(self.conv2(y))
        y = self.bn3(self.conv3(y))
        if self.preactivation is not None:
            self.preactivation(torch.cat([unchanged, y], 1))
        return F.channel_shuffle(torch.cat([unchanged, F.relu(y)], 1), 2)


class FirstBlock(nn.Module):
    """First block of a stage: two branches take all channels. With stride 2, they halve height and width."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        half = out_channels // 2
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, stride, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map after this block."""
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = F.relu(self.bn3(self.conv3(x)))
        right = F.relu(self.bn5(self.conv5(self.bn4(self.conv4(right)))))
        return F.channel_shuffle(torch.cat([left, right], 1), 2)


class ShuffleNetV2(Classifier):
    """ShuffleNetV2 for small images: the first convolution is 1×1 without stride.

    Parameters
    ----------
    num_classes, in_channels : int
        Numbers of classes and of image channels.
    """

    head_name = "linear"

    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.relu = nn.ReLU()
        self.layer1 = _stage(24, 116, 4)
        self.layer2 = _stage(116, 232, 8)
        self.layer3 = _stage(232, 464, 4)
        self.conv2 = nn.Conv2d(464, LAST_CHANNELS, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(LAST_CHANNELS)
        self.relu2 = nn.ReLU()
        self.linear = nn.Linear(LAST_CHANNELS, num_classes)
        self.stages = ("relu", "layer1", "layer2", "layer3")
        self.last_map = "relu2"
        self.preactivations = ("relu", *(f"layer{i}.{last}.preactivation" for i, last in ((1, 3), (2, 7), (3, 3))))

    def features(self, x: Tensor) -> Tensor:
        """Return the features of images, shape (N, 1024): the last feature map, averaged over its pixels."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.relu2(self.bn2(self.conv2(x))).mean((2, 3))

    def repeat_last_stage(self) -> nn.Module:
        """Return a new last stage without stride, see `Classifier.repeat_last_stage`."""
        return _stage(464, 464, 4, stride=1)


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int = 2) -> nn.Sequential:
    first = FirstBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(Block(out_channels, last=i == blocks - 1) for i in range(1, blocks)))
