"""Wide residual networks (WRN) for small images.

A network of depth 6n + 4 has three stages of n pre-activation blocks, with k times the channels of a ResNet. The
parameters have the names and shapes of the CIFAR-100 teachers that the code repository RepDistiller published.

References
----------
Zagoruyko and Komodakis, "Wide residual networks", arXiv 1605.07146.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .output import Classifier, he_normal_


class PreActivationBlock(nn.Module):
    """Two convolutions and a shortcut. BatchNorm and ReLU come before each convolution.

    If the number of channels changes, the shortcut has a 1×1 convolution. The input of this convolution is the output
    of the first ReLU.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.convShortcut = None  # spelled as in the published checkpoints
        if in_channels != out_channels:
            self.convShortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map after this block."""
        activated = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        return self.conv2(F.relu(self.bn2(self.conv1(activated)))) + shortcut


class ResidualStage(nn.Module):
    """Several pre-activation blocks. The first block uses `stride`, the others stride 1."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, stride: int):
        super().__init__()
        first = PreActivationBlock(in_channels, out_channels, stride)
        rest = (PreActivationBlock(out_channels, out_channels, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map after this stage."""
        return self.layer(x)


class WideResNet(Classifier):
    """Wide ResNet for small images.

    Parameters
    ----------
    depth : int
        Number of layers, 6n + 4 for n blocks per stage.
    widen : int
        Factor k. The stages have 16k, 32k and 64k channels.
    num_classes, in_channels : int
        Numbers of classes and of image channels.
    """

    def __init__(self, depth: int, widen: int, num_classes: int, in_channels: int):
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.block1 = ResidualStage(16, 16 * widen, blocks, stride=1)
        self.block2 = ResidualStage(16 * widen, 32 * widen, blocks, stride=2)
        self.block3 = ResidualStage(32 * widen, 64 * widen, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(64 * widen, num_classes)
        he_normal_(self)
        nn.init.zeros_(self.fc.bias)
        self.stages = ("conv1", "block1", "block2", "block3")
        self.norms = ("block2.layer.0.bn1", "block3.layer.0.bn1", "bn1")
        self.last_map = "relu"
        self.preactivations = ("conv1", "block2.layer.0.bn1", "block3.layer.0.bn1", "bn1")

    def features(self, x: Tensor) -> Tensor:
        """Return the features of images, shape (N, 64k): the last feature map, averaged over its pixels."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.relu(self.bn1(x)).mean((2, 3))

    def repeat_last_stage(self) -> nn.Module:
        """Return a new last stage without stride, see `Classifier.repeat_last_stage`."""
        return ResidualStage(self.feature_width, self.feature_width, len(self.block3.layer), stride=1)
