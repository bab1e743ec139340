"""MobileNetV2 for small images, with half as many channels as in the paper.

The parameters have the names and shapes of the network in the code repository RepDistiller, which trains it on
CIFAR-100.

References
----------
Sandler et al., "MobileNetV2: Inverted residuals and linear bottlenecks", arXiv 1801.04381.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .output import Classifier, he_normal_

WIDTH_MULTIPLIER = 0.5  # for all channels except those of the last convolution
# for each stage: expansion factor, channels in the paper, number of blocks, stride of the first block
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
LAST_CHANNELS = 1280


class InvertedResidual(nn.Module):
    """Block with three convolutions: 1×1, depthwise 3×3, and 1×1 without ReLU.

    The first convolution increases the number of channels by the factor `expansion`. The depthwise convolution filters
    each channel separately. There is a shortcut if input and output have the same shape.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int):
        super().__init__()
        hidden = in_channels * expansion
        self.shortcut = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            *_conv(in_channels, hidden, 1),
            *_conv(hidden, hidden, 3, stride, groups=hidden),
            *_conv(hidden, out_channels, 1)[:2],  # without ReLU
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map after this block."""
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(Classifier):
    """MobileNetV2 for small images, with half as many channels as in the paper.

    Parameters
    ----------
    num_classes, in_channels : int
        Numbers of classes and of image channels.
    """

    head_name = "classifier.0"

    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        widths = [int(width * WIDTH_MULTIPLIER) for width in (32, *(full_channels for _, full_channels, *_ in STAGES))]
        self.conv1 = nn.Sequential(*_conv(in_channels, widths[0], 3, stride=2))
        stages = (
            _stage(widths[i], widths[i + 1], count, stride, expansion)
            for i, (expansion, _, count, stride) in enumerate(STAGES)
        )
        self.blocks = nn.Sequential(*stages)
        self.conv2 = nn.Sequential(*_conv(widths[-1], LAST_CHANNELS, 1))
        self.classifier = nn.Sequential(nn.Linear(LAST_CHANNELS, num_classes))
        he_normal_(self, linear_std=0.01)
        self.stages = ("conv1", "blocks.1", "blocks.2", "blocks.4", "blocks.6")
        self.norms = tuple(f"blocks.{i}.{STAGES[i][2] - 1}.conv.7" for i in (1, 2, 4, 6))
        self.last_map = "conv2"
        self.preactivations = self.stages  # the blocks have no ReLU at their end

    def features(self, x: Tensor) -> Tensor:
        """Return the features of images, shape (N, 1280): the last feature map, averaged over its pixels."""
        x = self.conv2(self.blocks(self.conv1(x)))
        return F.adaptive_avg_pool2d(x, 1).flatten(1)

    def repeat_last_stage(self) -> nn.Module:
        """Return a new last stage without stride, see `Classifier.repeat_last_stage`."""
        (expansion, middle, count, _), (_, last, last_count, _) = STAGES[-2:]
        middle, last = int(middle * WIDTH_MULTIPLIER), int(last * WIDTH_MULTIPLIER)
        return nn.Sequential(_stage(last, middle, count, 1, expansion), _stage(middle, last, last_count, 1, expansion))


def _stage(in_channels: int, out_channels: int, count: int, stride: int, expansion: int) -> nn.Sequential:
    first = InvertedResidual(in_channels, out_channels, stride, expansion)
    rest = (InvertedResidual(out_channels, out_channels, 1, expansion) for _ in range(count - 1))
    return nn.Sequential(first, *rest)


def _conv(in_channels: int, out_channels: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a convolution, BatchNorm and ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]
