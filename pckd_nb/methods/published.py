"""Settings that were published for a pair of networks. They replace the defaults of a method.

Sources:

- DKD: the configurations in megvii-research/mdistiller. It has β = 8 for other pairs, where this package has β = 2.
- ReviewKD: the script for CIFAR-100 in dvlab-research/ReviewKD.
- LSKD: the names of the published logs in sunshangquan/logit-standardization-KD, which contain T and the weight.
- CAT-KD: the configurations in GzyAftermath/CAT-KD.
- HSAKD: the networks in winycg/HSAKD.
- WKDL and WKDF: the configurations in JiamingLv/WKD.
"""

from collections.abc import Mapping
from typing import Any

Pair = tuple[str, str]  # names of teacher and student

_CATKD = {
    ("resnet56", "resnet20"): (0.7, 2, False),
    ("resnet110", "resnet32"): (1.8, 2, False),
    ("resnet32x4", "resnet8x4"): (15, 2, False),
    ("wrn_40_2", "wrn_16_2"): (12, 2, False),
    ("wrn_40_2", "wrn_40_1"): (1.5, 2, False),
    ("vgg13", "vgg8"): (4.5, 2, False),
    ("vgg13", "MobileNetV2"): (15, 2, True),
    ("ResNet50", "MobileNetV2"): (40, 2, True),
    ("resnet32x4", "ShuffleV1"): (600, 4, True),
    ("resnet32x4", "ShuffleV2"): (600, 4, True),
    ("wrn_40_2", "ShuffleV1"): (80, 4, True),
}

# class of the method → pair → settings
PUBLISHED_SETTINGS: Mapping[str, Mapping[Pair, Mapping[str, Any]]] = {
    "DKD": {
        ("resnet56", "resnet20"): {"beta": 2},
        ("resnet110", "resnet32"): {"beta": 2},
        ("resnet32x4", "resnet8x4"): {"beta": 8},
        ("wrn_40_2", "wrn_16_2"): {"beta": 6},
        ("wrn_40_2", "wrn_40_1"): {"beta": 6},
        ("vgg13", "vgg8"): {"beta": 6},
        ("vgg13", "MobileNetV2"): {"beta": 6},
        ("ResNet50", "MobileNetV2"): {"beta": 8},
        ("resnet32x4", "ShuffleV1"): {"beta": 8},
        ("resnet32x4", "ShuffleV2"): {"beta": 8},
        ("wrn_40_2", "ShuffleV1"): {"beta": 8},
    },
    "ReviewKD": {
        ("resnet56", "resnet20"): {"weight": 0.6},
        ("resnet110", "resnet32"): {"weight": 1},
        ("resnet32x4", "resnet8x4"): {"weight": 5},
        ("wrn_40_2", "wrn_16_2"): {"weight": 5},
        ("wrn_40_2", "wrn_40_1"): {"weight": 5},
        ("wrn_40_2", "ShuffleV1"): {"weight": 5},
        ("resnet32x4", "ShuffleV1"): {"weight": 5},
        ("resnet32x4", "ShuffleV2"): {"weight": 8},
    },
    "LSKD": {
        ("resnet56", "resnet20"): {"temperature": 2, "weight": 9},
        ("resnet110", "resnet20"): {"temperature": 4, "weight": 12},
        ("resnet110", "resnet32"): {"temperature": 2, "weight": 9},
        ("resnet32x4", "resnet8x4"): {"temperature": 2, "weight": 9},
        ("wrn_40_2", "wrn_16_2"): {"temperature": 2, "weight": 9},
        ("wrn_40_2", "wrn_40_1"): {"temperature": 2, "weight": 9},
        ("vgg13", "vgg8"): {"temperature": 3, "weight": 9},
        ("vgg13", "MobileNetV2"): {"temperature": 3, "weight": 9},
        ("ResNet50", "MobileNetV2"): {"temperature": 3, "weight": 1},
        ("resnet32x4", "ShuffleV2"): {"temperature": 2, "weight": 9},
    },
    "CATKD": {
        pair: {"weight": weight, "resolution": resolution, "normalize": normalize}
        for pair, (weight, resolution, normalize) in _CATKD.items()
    },
    "HSAKD": {
        ("vgg13", "MobileNetV2"): {"teacher_layers": ("block0", "block1", "block2", "block4")},
    },
    "WKDL": {
        ("resnet32x4", "resnet8x4"): {"weight": 600, "temperature": 8},
        ("wrn_40_2", "ShuffleV1"): {"weight": 200, "temperature": 6},
    },
    "WKDF": {
        ("resnet32x4", "resnet8x4"): {"weight": 0.08, "grid": 1, "mean_ratio": 4},
        ("wrn_40_2", "ShuffleV1"): {"weight": 0.3, "grid": 4, "mean_ratio": 3},
    },
}
