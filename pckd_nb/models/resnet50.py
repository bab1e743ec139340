"""ResNet-50 for small images: the first convolution is 3×3, and no pooling follows it.

The parameters have the names and shapes of the CIFAR-100 teacher that the code repository RepDistiller published.

References
----------
He et al., "Deep residual learning for image recognition", arXiv 1512.03385.
"""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from .output import Classifier, he_normal_


class Bottleneck(nn.Module):
    """Convolutions of size 1×1, 3×3 and 1×1, and a shortcut. The output has 4 · `width` channels.

    If the shape changes, the shortcut has a 1×1 convolution.
    """

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        out_channels = 4 * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()  # a module, so that hooks can see its input
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map after this block."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return cast(Tensor, self.relu(self.bn3(self.conv3(y)) + self.shortcut(x)))


class ResNet50(Classifier):
    """ResNet-50 for small images.

    Parameters
    ----------
    num_classes, in_channels : int
        Numbers of classes and of image channels.
    """

    head_name = "linear"

    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.layer1 = _stage(64, 64, 3, stride=1)
        self.layer2 = _stage(256, 128, 4, stride=2)
        self.layer3 = _stage(512, 256, 6, stride=2)
        self.layer4 = _stage(1024, 512, 3, stride=2)
        self.linear = nn.Linear(2048, num_classes)
        he_normal_(self)
        self.stages = ("relu", "layer1", "layer2", "layer3", "layer4")
        last_blocks = ("layer1.2", "layer2.3", "layer3.5", "layer4.2")
        self.last_map = "layer4"
        self.preactivations = ("relu", *(f"{block}.relu:input" for block in last_blocks))
        self.norms = tuple(f"{block}.bn3" for block in last_blocks)

    def features(self, x: Tensor) -> Tensor:
        """Return the features of images, shape (N, 2048): the last feature map, averaged over its pixels."""
        x = self.relu(self.bn1(self.conv1(x)))
        return self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))

    def repeat_last_stage(self) -> nn.Module:
        """Return a new last stage without stride, see `Classifier.repeat_last_stage`."""
        return _stage(2048, 512, 3, stride=1)


def _stage(in_channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(in_channels, width, stride)
    return nn.Sequential(first, *(Bottleneck(4 * width, width, 1) for _ in range(blocks - 1)))
