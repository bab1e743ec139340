"""ShuffleNet with three groups, for small images.

Its 1×1 convolutions divide the channels into groups, and each output channel depends on one group only. Shuffling the
channels mixes the groups. The parameters have the names and shapes of the network in the code repository RepDistiller,
which trains it on CIFAR-100.

References
----------
Zhang et al., "ShuffleNet: An extremely efficient convolutional neural network for mobile devices", arXiv 1707.01083.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .output import Classifier

GROUPS = 3


class Bottleneck(nn.Module):
    """Block with three convolutions: grouped 1×1, depthwise 3×3, and grouped 1×1.

    The channels are shuffled after the first convolution. The depthwise convolution filters each channel separately.
    With stride 1, the input is added to the result. With stride 2, in the first block of a stage, the input is
    average-pooled and concatenated with the result.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, first_groups: int):
        super().__init__()
        self.stride, self.first_groups = stride, first_groups
        hidden = out_channels // 4
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, out_channels, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()  # a module, so that hooks can see its input

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map after this block."""
        y = F.channel_shuffle(F.relu(self.bn1(self.conv1(x))), self.first_groups)
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.stride == 1:
            return cast(Tensor, self.relu(x + y))
        return cast(Tensor, self.relu(torch.cat([y, F.avg_pool2d(x, 3, stride=2, padding=1)], 1)))


class ShuffleNetV1(Classifier):
    """ShuffleNet for small images: the first convolution is 1×1 without stride.

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
        self.layer1 = _stage(24, 240, 4)
        self.layer2 = _stage(240, 480, 8)
        self.layer3 = _stage(480, 960, 4)
        self.linear = nn.Linear(960, num_classes)
        self.stages = ("relu", "layer1", "layer2", "layer3")
        self.last_map = "layer3"
        self.preactivations = ("relu", "layer1.3.relu:input", "layer2.7.relu:input", "layer3.3.relu:input")

    def features(self, x: Tensor) -> Tensor:
        """Return the features of images, shape (N, 960): the last feature map, averaged over its pixels."""
        x = self.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x))).mean((2, 3))

    def repeat_last_stage(self) -> nn.Module:
        """Return a new last stage without stride, see `Classifier.repeat_last_stage`."""
        return nn.Sequential(*(Bottleneck(960, 960, 1, GROUPS) for _ in range(4)))


def _stage(in_channels: int, out_channels: int, blocks: int) -> nn.Sequential:
    """Return a stage.

    The first block concatenates its input with the output of its convolutions. Therefore its convolutions return only
    out_channels − in_channels channels.
    """
    first_groups = 1 if in_channels == 24 else GROUPS  # as in the paper: 24 channels are too few to divide
    first = Bottleneck(in_channels, out_channels - in_channels, 2, first_groups)
    return nn.Sequential(first, *(Bottleneck(out_channels, out_channels, 1, GROUPS) for _ in range(blocks - 1)))
