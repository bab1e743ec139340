"""Wide residual networks for small images (Zagoruyko & Komodakis 2016).

Depth 6n + 4, three stages of n pre-activation blocks, widened k times. Parameter names and shapes are those of
the CIFAR-100 teachers that RepDistiller publishes. Features: mean over the last, non-negative, feature map.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .output import Classifier, he_normal_


class PreActivationBlock(nn.Module):
    """BatchNorm and ReLU come before each convolution; a shortcut that changes shape starts after the first of them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.convShortcut = None  # the published checkpoints' spelling
        if in_channels != out_channels:
            self.convShortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        return self.conv2(F.relu(self.bn2(self.conv1(activated)))) + shortcut


class Stage(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, blocks: int, stride: int):
        super().__init__()
        first = PreActivationBlock(in_channels, out_channels, stride)
        rest = (PreActivationBlock(out_channels, out_channels, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(Classifier):
    """depth: 6n + 4 · widen: the factor k on 16, 32 and 64 channels."""

    def __init__(self, depth: int, widen: int, num_classes: int, in_channels: int):
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.block1 = Stage(16, 16 * widen, blocks, stride=1)
        self.block2 = Stage(16 * widen, 32 * widen, blocks, stride=2)
        self.block3 = Stage(32 * widen, 64 * widen, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.fc = nn.Linear(64 * widen, num_classes)
        he_normal_(self)
        nn.init.zeros_(self.fc.bias)

    def features(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return F.relu(self.bn1(x)).mean((2, 3))
