"""The networks of the paper, by the names of the published checkpoints; each call of one gives an `Output`."""

import difflib
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch

from .output import Classifier, Output
from .resnet import ResNet
from .wide_resnet import WideResNet

__all__ = ["MODELS", "Classifier", "Output", "create_model"]

NARROW, WIDE = (16, 16, 32, 64), (32, 64, 128, 256)

MODELS: dict[str, Callable[..., Classifier]] = {
    **{f"resnet{depth}": partial(ResNet, depth, NARROW) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(ResNet, depth, WIDE) for depth in (8, 32)},
    **{f"wrn_{depth}_{widen}": partial(WideResNet, depth, widen) for depth in (16, 40) for widen in (1, 2)},
}


class HasClasses(Protocol):
    """What `create_model` reads of a data set."""

    num_classes: int
    channels: int


def create_model(
    name: str,
    data: HasClasses | None = None,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    seed: int | None = None,
) -> Classifier:
    """A network with fresh weights for `data`, or for the given numbers, which win over the data set's.

    name: a key of `MODELS`. Any image size works; in_channels is 3 unless the data set or caller says otherwise.
    seed: the same seed gives the same weights; None draws them from torch's global generator.
    Raises ValueError for an unknown name (naming the nearest known ones) or a missing or impossible number.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.4) or list(MODELS)
        raise ValueError(f"unknown model '{name}'; nearest known: {', '.join(near)}")
    num_classes = num_classes if num_classes is not None else getattr(data, "num_classes", None)
    in_channels = in_channels if in_channels is not None else getattr(data, "channels", 3)
    if num_classes is None:
        raise ValueError(f"create_model('{name}') needs a data set or num_classes=…")
    if num_classes < 2 or in_channels < 1:
        raise ValueError(f"a classifier needs 2 classes and 1 channel at least, got {num_classes} and {in_channels}")
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = MODELS[name](num_classes=num_classes, in_channels=in_channels)
    model.name = name
    return model
