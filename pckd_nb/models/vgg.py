"""VGG for small images, with BatchNorm and only one linear layer.

There are five blocks of 3×3 convolutions. The parameters have the names and shapes of the CIFAR-100 teachers that the
code repository RepDistiller published.

References
----------
Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", arXiv 1409.1556.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .output import Classifier, he_normal_

WIDTHS = (64, 128, 256, 512, 512)
# depth → number of convolutions in each block
CONVOLUTIONS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(Classifier):
    """VGG for small images.

    Parameters
    ----------
    depth : {8, 11, 13, 16, 19}
        Number of convolutions plus 3. The original VGG has three linear layers. This network has one.
    num_classes, in_channels : int
        Numbers of classes and of image channels.
    """

    head_name = "classifier"

    def __init__(self, depth: int, num_classes: int, in_channels: int):
        super().__init__()
        counts = CONVOLUTIONS[depth]
        self.block0 = _block(in_channels, WIDTHS[0], counts[0])
        self.pool0 = nn.MaxPool2d(2)
        self.block1 = _block(WIDTHS[0], WIDTHS[1], counts[1])
        self.pool1 = nn.MaxPool2d(2)
        self.block2 = _block(WIDTHS[1], WIDTHS[2], counts[2])
        self.pool2 = nn.MaxPool2d(2)
        self.block3 = _block(WIDTHS[2], WIDTHS[3], counts[3])
        self.block4 = _block(WIDTHS[3], WIDTHS[4], counts[4])
        self.classifier = nn.Linear(WIDTHS[4], num_classes)
        he_normal_(self, linear_std=0.01)
        self.stages = ("block0", "block1", "block2", "block3", "block4")
        self.norms = tuple(f"block{i}.{3 * counts[i] - 2}" for i in range(1, 5))
        self.last_map = "block4"
        self.preactivations = ("block0", *(f"block{i}.{3 * counts[i] - 1}:input" for i in range(1, 5)))

    def features(self, x: Tensor) -> Tensor:
        """Return the features of images, shape (N, 512): the last feature map, averaged over its pixels."""
        x = self.pool1(self.block1(self.pool0(self.block0(x))))
        x = self.block3(self.pool2(self.block2(x)))
        if min(x.shape[2:]) >= 8:  # as in the published networks: three poolings for 32×32 images, four for 64×64
            x = F.max_pool2d(x, 2)
        return self.block4(x).mean((2, 3))

    def repeat_last_stage(self) -> nn.Module:
        """Return new last stages, see `Classifier.repeat_last_stage`: two blocks, as in HSAKD."""
        counts = [len(block) // 3 for block in (self.block3, self.block4)]
        return nn.Sequential(*(_block(WIDTHS[4], WIDTHS[4], count) for count in counts))


def _block(in_channels: int, out_channels: int, count: int) -> nn.Sequential:
    """Return `count` convolutions, each followed by BatchNorm and ReLU."""
    layers = []
    for channels in [in_channels, *[out_channels] * (count - 1)]:
        layers += [nn.Conv2d(channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU()]
    return nn.Sequential(*layers)
