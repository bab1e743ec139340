"""ResNets for small images, such as those of CIFAR-100.

A network of depth 6n + 2 has three stages of n residual blocks. The parameters have the names and shapes of the
CIFAR-100 teachers that the code repository RepDistiller published, so those checkpoints can be loaded.

References
----------
He et al., "Deep residual learning for image recognition", section 4.2, arXiv 1512.03385.
"""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from .output import Classifier, he_normal_


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut. If the shape changes, the shortcut has a 1×1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()  # a module, so that hooks can see its input
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map after this block."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return cast(Tensor, self.relu(self.bn2(self.conv2(x)) + shortcut))


class ResNet(Classifier):
    """ResNet for small images.

    Parameters
    ----------
    depth : int
        Number of layers, 6n + 2 for n blocks per stage.
    widths : tuple of four int
        Numbers of channels of the first convolution and of the three stages.
    num_classes, in_channels : int
        Numbers of classes and of image channels.
    """

    def __init__(self, depth: int, widths: tuple[int, int, int, int], num_classes: int, in_channels: int):
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.layer1 = _stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = _stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = _stage(widths[2], widths[3], blocks, stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        he_normal_(self)
        self.stages = ("relu", "layer1", "layer2", "layer3")
        self.norms = tuple(f"layer{i}.{blocks - 1}.bn2" for i in (1, 2, 3))
        self.last_map = "layer3"
        self.preactivations = ("relu", *(f"layer{i}.{blocks - 1}.relu:input" for i in (1, 2, 3)))

    def features(self, x: Tensor) -> Tensor:
        """Return the features of images, shape (N, widths[3]): the last feature map, averaged over its pixels."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return x.mean((2, 3))

    def repeat_last_stage(self) -> nn.Module:
        """Return a new last stage without stride, see `Classifier.repeat_last_stage`."""
        return _stage(self.feature_width, self.feature_width, len(self.layer3), stride=1)


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))
