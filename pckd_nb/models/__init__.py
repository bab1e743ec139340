"""The networks of the paper, by the names of the published checkpoints, and any other that ends in a linear layer.

Each call of one gives an `Output`.
"""

import ast
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Annotated, Any, Protocol

import torch
from pydantic import BeforeValidator, Field
from torch import nn

from ..catalogue import LIBRARIES, PAIRS, check_library, find_name
from ..messages import one_line
from ..plugs import is_plug, load_plug
from ..validation import Count, checked, plain
from .maps import FeatureMaps
from .mobilenet_v2 import MobileNetV2
from .output import Classifier, Output
from .preprocessing import Preprocessed, match_input, preprocessed, with_preprocessing
from .resnet import ResNet
from .resnet50 import ResNet50
from .shufflenet_v1 import ShuffleNetV1
from .shufflenet_v2 import ShuffleNetV2
from .training_data import TrainingData
from .vgg import CONVOLUTIONS, VGG
from .wide_resnet import WideResNet
from .wrapper import WrappedClassifier, as_classifier, possible_heads

__all__ = [
    "MODELS", "PAIRS", "Classifier", "FeatureMaps", "Output", "Preprocessed", "TrainingData", "WrappedClassifier",
    "as_classifier", "count_flops", "create_model", "flops_of", "match_input", "preprocessed", "with_preprocessing",
]  # fmt: skip

LOADING = ("pretrained", "checkpoint", "weights", "cache_dir", "file")  # what a library's options that load begin with
SIZES = ("num_classes", "in_chans", "in_channels")

NARROW, WIDE = (16, 16, 32, 64), (32, 64, 128, 256)

MODELS: dict[str, Callable[..., Classifier]] = {
    **{f"resnet{depth}": partial(ResNet, depth, NARROW) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(ResNet, depth, WIDE) for depth in (8, 32)},
    "ResNet50": ResNet50,
    **{f"wrn_{depth}_{widen}": partial(WideResNet, depth, widen) for depth in (16, 40) for widen in (1, 2)},
    **{f"vgg{depth}": partial(VGG, depth) for depth in CONVOLUTIONS},
    "MobileNetV2": MobileNetV2,
    "ShuffleV1": ShuffleNetV1,
    "ShuffleV2": ShuffleNetV2,
}


AtLeastTwo = Annotated[int, BeforeValidator(plain), Field(ge=2, le=10**9)]
LongSeed = Annotated[int, BeforeValidator(plain), Field(ge=0, lt=2**63)]


class HasClasses(Protocol):
    """What `create_model` reads of a data set."""

    @property
    def num_classes(self) -> int: ...

    @property
    def channels(self) -> int: ...


def create_model(
    name: str,
    data: HasClasses | None = None,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    seed: int | None = None,
) -> Classifier:
    """A network with fresh weights for `data`, or for the given numbers, which win over the data set's.

    name: a key of `MODELS`, for any image size; or torchvision:NAME or timm:NAME, with that library's own options
    after commas, as in "timm:vit_tiny_patch16_224,img_size=32,patch_size=4", and with head=LAYER where several layers
    could be the last; or "module:Name" or "file.py:Name" of your own, which takes num_classes and in_channels.
    in_channels is 3 unless the data set or caller says otherwise.
    seed: the same seed gives the same weights; None draws them from torch's global generator.
    Raises ValueError for an unknown name (naming the nearest known ones), a missing or impossible number, or a network
    that `as_classifier` can't use; TypeError for a name that is no text.
    """
    if not isinstance(name, str):
        raise TypeError(f"a network is chosen by its name, got {type(name).__name__}; as_classifier takes a module")
    if isinstance(data, str):
        raise TypeError(f"data must be a Dataset, got the name of one: load_dataset('{data}') loads it")
    if isinstance(data, type):
        raise TypeError(f"data must be a Dataset, got the class {data.__name__}")
    num_classes = num_classes if num_classes is not None else getattr(data, "num_classes", None)
    in_channels = in_channels if in_channels is not None else getattr(data, "channels", 3)
    library, colon, rest = name.partition(":")
    builder: Callable[..., Classifier]
    if colon and library not in LIBRARIES and is_plug(name):
        builder = partial(_own, name)
    elif colon:
        builder = _library_builder(library, rest)
    else:
        builder = MODELS[find_name("model", name, MODELS)]
    if num_classes is None:
        raise ValueError(f"create_model('{name}') needs a data set or num_classes=…")
    num_classes = checked(AtLeastTwo, "num_classes", num_classes)
    in_channels = checked(Count, "in_channels", in_channels)
    seed = checked(LongSeed | None, "seed", seed)
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = builder(num_classes=num_classes, in_channels=in_channels)
    model.name = name
    return model


def _own(name: str, num_classes: int, in_channels: int) -> Classifier:
    """A network of your own, "module:Name" or "file.py:Name", as a classifier."""
    build = load_plug(name)
    try:
        made = build(num_classes=num_classes, in_channels=in_channels)
    except TypeError as error:
        raise ValueError(f"'{name}' must take num_classes and in_channels: {error}") from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"'{name}' must make an nn.Module, got {type(made).__name__}")
    return as_classifier(made)


def count_flops(model: nn.Module, shape: tuple[int, int, int] = (3, 32, 32)) -> int:
    """Floating point operations of one image's forward pass, a multiplication and an addition counting as two.

    shape: (C, H, W). Convolutions and matrix products are counted, by torch's own counter.
    """
    from torch.utils.flop_counter import FlopCounterMode  # slow to import: only when asked for

    counter = FlopCounterMode(display=False)
    example = torch.zeros(1, *shape, device=next(model.parameters()).device)
    was_training = model.training
    with torch.no_grad(), counter:
        model.eval()(example)
    model.train(was_training)
    return counter.get_total_flops()


@cache
def flops_of(name: str, num_classes: int, shape: tuple[int, int, int]) -> int:
    """`count_flops` of the network that `create_model` makes of a name. Raises what that raises."""
    return count_flops(create_model(name, num_classes=num_classes, in_channels=shape[0], seed=0), shape)


def _library_builder(library: str, rest: str) -> Callable[..., Classifier]:
    """A function of num_classes and in_channels that builds torchvision's or timm's network."""
    check_library(library)
    name, *options = (part.strip() for part in rest.split(","))
    settings = dict(_option(option) for option in options)
    head = settings.pop("head", None)
    build = _from_torchvision if library == "torchvision" else _from_timm

    def builder(num_classes: int, in_channels: int) -> Classifier:
        model, size = build(name, settings, num_classes, in_channels)
        unclear = head is None and len(possible_heads(model)) > 1
        return as_classifier(model, head and str(head), torch.zeros(1, in_channels, *size) if unclear else None)

    return builder


def _from_torchvision(
    name: str, settings: dict[str, Any], num_classes: int, in_channels: int
) -> tuple[nn.Module, Sequence[int]]:
    """A network, and the size of images that it takes."""
    from torchvision import models

    find_name("torchvision network", name, models.list_models(module=models))
    if name in ("googlenet", "inception_v3"):  # auxiliary heads have no part in distillation
        settings = {"aux_logits": False, "init_weights": True, **settings}
    model = _build(partial(models.get_model, name), settings, num_classes=num_classes)
    if in_channels != 3:  # torchvision has no option for it
        first, old = next((name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d))
        kernel: Any = dict(kernel_size=old.kernel_size, stride=old.stride, padding=old.padding, dilation=old.dilation)
        model.set_submodule(first, nn.Conv2d(in_channels, old.out_channels, bias=old.bias is not None, **kernel))
    return model, 2 * [settings.get("image_size", 224)]


def _from_timm(
    name: str, settings: dict[str, Any], num_classes: int, in_channels: int
) -> tuple[nn.Module, Sequence[int]]:
    """A network, and the size of images that it takes."""
    try:
        import timm
    except ImportError:
        raise ValueError(f"'timm:{name}' needs the package timm: pip install 'pckd_nb[timm]'") from None
    find_name("timm network", name, timm.list_models())
    model: Any = _build(partial(timm.create_model, name), settings, num_classes=num_classes, in_chans=in_channels)
    size = settings.get("img_size", model.pretrained_cfg.get("input_size", (3, 224, 224))[1:])
    return model, 2 * [size] if isinstance(size, int) else size


def _build(builder: partial[nn.Module], settings: dict[str, Any], **sizes: int) -> nn.Module:
    try:
        return builder(**settings, **sizes)
    except Exception as error:  # the library decides what goes wrong with an option
        if not settings:
            raise
        shown = ", ".join(f"{key}={value}" for key, value in settings.items())
        raise ValueError(f"'{builder.args[0]}' does not take the options {shown}: {one_line(error)}") from error


def _option(text: str) -> tuple[str, Any]:
    """ "img_size=32" → ("img_size", 32); what is no Python literal stays text."""
    key, equals, value = text.partition("=")
    if not (key.isidentifier() and equals):
        raise ValueError(f"'{text}' is not an option: expected name=value, as in timm:vit_tiny_patch16_224,img_size=32")
    if key.startswith(LOADING):  # timm unpickles what it loads, and a run.json may come from anywhere
        raise ValueError(f"'{text}' is not an option: weights are fresh; load_checkpoint reads a file or an address")
    if key in SIZES:
        raise ValueError(f"'{text}' is not an option: the numbers of classes and channels are those of the data set")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value
