"""Networks of the paper, and any other network that ends in a linear layer.

The networks of the paper have the names of their published checkpoints, such as "resnet20".

Calling a network returns an `Output`: logits, penultimate features and category centers.

Examples
--------
>>> import torch
>>> import pckd_nb as pckd
>>> "resnet20" in pckd.models.MODELS
True
>>> model = pckd.models.create_model("resnet8", num_classes=10)
>>> model(torch.zeros(2, 3, 32, 32)).logits.shape
torch.Size([2, 10])
"""

import ast
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Annotated, Any, Protocol

import torch
from pydantic import BeforeValidator, Field
from torch import nn

from ..catalogue import PAIRS, check_library, find_name, is_own_network
from ..deprecation import renamed
from ..messages import one_line
from ..plugins import load_plugin
from ..validation import Count, checked, plain
from .maps import FeatureMaps
from .mobilenet_v2 import MobileNetV2
from .output import Classifier, Output
from .preprocessing import Preprocessed, match_input, restore_preprocessing, with_preprocessing
from .resnet import ResNet
from .resnet50 import ResNet50
from .shufflenet_v1 import ShuffleNetV1
from .shufflenet_v2 import ShuffleNetV2
from .simkd import SimKDNetwork
from .training_data import TrainingData
from .vgg import CONVOLUTIONS, VGG
from .wide_resnet import WideResNet
from .wrapper import WrappedClassifier, as_classifier, possible_heads

__all__ = [
    "MODELS", "PAIRS", "Classifier", "FeatureMaps", "Output", "Preprocessed", "SimKDNetwork", "TrainingData",
    "WrappedClassifier", "as_classifier", "count_flops", "count_flops_by_name", "create_model", "match_input",
    "restore_preprocessing", "with_preprocessing",
]  # fmt: skip

# options of torchvision and timm that begin with one of these words load weights, and are refused
LOADING_PREFIXES = ("pretrained", "checkpoint", "weights", "cache_dir", "file")
# options that would contradict the data set are refused, too
SIZE_OPTIONS = ("num_classes", "in_chans", "in_channels")

# channels of the first convolution and of the three stages
RESNET_WIDTHS, RESNET_X4_WIDTHS = (16, 16, 32, 64), (32, 64, 128, 256)

MODELS: dict[str, Callable[..., Classifier]] = {
    **{f"resnet{depth}": partial(ResNet, depth, RESNET_WIDTHS) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(ResNet, depth, RESNET_X4_WIDTHS) for depth in (8, 32)},
    "ResNet50": ResNet50,
    **{f"wrn_{depth}_{widen}": partial(WideResNet, depth, widen) for depth in (16, 40) for widen in (1, 2)},
    **{f"vgg{depth}": partial(VGG, depth) for depth in CONVOLUTIONS},
    "MobileNetV2": MobileNetV2,
    "ShuffleV1": ShuffleNetV1,
    "ShuffleV2": ShuffleNetV2,
}


ClassCount = Annotated[int, BeforeValidator(plain), Field(ge=2, le=10**9)]
TorchSeed = Annotated[int, BeforeValidator(plain), Field(ge=0, lt=2**63)]


class HasClasses(Protocol):
    """The part of a data set that `create_model` needs."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""

    @property
    def channels(self) -> int:
        """Number of image channels."""


def create_model(
    name: str,
    data: HasClasses | None = None,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    seed: int | None = None,
) -> Classifier:
    """Return a network with random weights.

    Parameters
    ----------
    name : str
        One of:

        - a key of `models.MODELS`, such as "resnet8". It takes images of any size.
        - "torchvision:NAME" or "timm:NAME". Options of that library follow after commas:
          "timm:vit_tiny_patch16_224,img_size=32,patch_size=4". If it is not clear which layer is the last one, add
          ",head=LAYER".
        - "module:Name" or "file.py:Name", where Name is your own class or function. It must take the keyword
          arguments num_classes and in_channels.
    data : Dataset, optional
        Sets num_classes and in_channels.
    num_classes, in_channels : int, optional
        They override the values of `data`. Without `data`, in_channels is 3 by default.
    seed : int, optional
        The same seed gives the same weights. Default: weights come from the global random generator of torch.

    Returns
    -------
    Classifier

    Raises
    ------
    TypeError
        If `name` is not a string, or `data` is not a data set.
    ValueError
        If the name is unknown, if the number of classes is missing, if a number is out of range, or if
        `as_classifier` cannot use the network.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> model = pckd.create_model("resnet8", num_classes=10, seed=0)
    >>> model.num_classes, model.num_features
    (10, 64)
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {type(name).__name__}; for an nn.Module use as_classifier")
    if isinstance(data, str):
        raise TypeError(f"data must be a Dataset, got the string {data!r}: write load_dataset({data!r})")
    if isinstance(data, type):
        raise TypeError(f"data must be a Dataset, got the class {data.__name__}: use load_dataset(NAME)")
    num_classes = num_classes if num_classes is not None else getattr(data, "num_classes", None)
    in_channels = in_channels if in_channels is not None else getattr(data, "channels", 3)
    library, colon, name_and_options = name.partition(":")
    builder: Callable[..., Classifier]
    if is_own_network(name):
        builder = partial(_build_plugin, name)
    elif colon:
        builder = _library_builder(library, name_and_options)
    else:
        builder = MODELS[find_name("model", name, MODELS)]
    if num_classes is None:
        raise ValueError(f"create_model('{name}') needs the number of classes: give data or num_classes")
    num_classes = checked(ClassCount, "num_classes", num_classes)
    in_channels = checked(Count, "in_channels", in_channels)
    seed = checked(TorchSeed | None, "seed", seed)
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = builder(num_classes=num_classes, in_channels=in_channels)
    model.name = name
    return model


def _build_plugin(name: str, num_classes: int, in_channels: int) -> Classifier:
    """Build the user's network "module:Name" or "file.py:Name"."""
    build = load_plugin(name)
    try:
        network = build(num_classes=num_classes, in_channels=in_channels)
    except TypeError as error:
        raise ValueError(f"'{name}' must take num_classes and in_channels: {error}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"'{name}' must return an nn.Module, got {type(network).__name__}")
    return as_classifier(network)


def count_flops(model: nn.Module, shape: tuple[int, int, int] = (3, 32, 32)) -> int:
    """Return the number of floating point operations (FLOPs) of one forward pass.

    Only convolutions and matrix products are counted. A multiplication and an addition count as two operations.

    Parameters
    ----------
    model : nn.Module
    shape : (int, int, int)
        Channels, height and width of the image.

    Returns
    -------
    int
    """
    from torch.utils.flop_counter import FlopCounterMode  # imported here because it is slow to import

    counter = FlopCounterMode(display=False)
    example = torch.zeros(1, *shape, device=next(model.parameters()).device)
    was_training = model.training
    with torch.no_grad(), counter:
        model.eval()(example)
    model.train(was_training)
    return counter.get_total_flops()


@cache
def count_flops_by_name(name: str, num_classes: int, shape: tuple[int, int, int]) -> int:
    """Create a network, and return the number of FLOPs of one forward pass.

    The result is stored, so a second call with the same arguments is fast.

    Parameters
    ----------
    name : str
        Name of the network, as in `create_model`.
    num_classes : int
    shape : (int, int, int)
        Channels, height and width of the image.

    Returns
    -------
    int

    Raises
    ------
    TypeError, ValueError
        If `create_model` raises them.
    """
    return count_flops(create_model(name, num_classes=num_classes, in_channels=shape[0], seed=0), shape)


def _library_builder(library: str, name_and_options: str) -> Callable[..., Classifier]:
    """Return a function of num_classes and in_channels that builds a network of torchvision or timm."""
    check_library(library)
    name, *options = (part.strip() for part in name_and_options.split(","))
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
    """Return a network, and the height and width of its images."""
    from torchvision import models

    find_name("torchvision network", name, models.list_models(module=models))
    if name in ("googlenet", "inception_v3"):  # distillation does not use auxiliary heads
        settings = {"aux_logits": False, "init_weights": True, **settings}
    model = _build(partial(models.get_model, name), settings, num_classes=num_classes)
    if in_channels != 3:  # torchvision has no option for this, so the first convolution is replaced
        name_of_first, first = next(
            (layer_name, layer) for layer_name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)
        )
        kernel: Any = dict(
            kernel_size=first.kernel_size, stride=first.stride, padding=first.padding, dilation=first.dilation
        )
        new = nn.Conv2d(in_channels, first.out_channels, bias=first.bias is not None, **kernel)
        model.set_submodule(name_of_first, new)
    return model, 2 * [settings.get("image_size", 224)]


def _from_timm(
    name: str, settings: dict[str, Any], num_classes: int, in_channels: int
) -> tuple[nn.Module, Sequence[int]]:
    """Return a network, and the height and width of its images."""
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
    except Exception as error:  # an option can fail in any way in the library
        if not settings:
            raise
        shown = ", ".join(f"{key}={value}" for key, value in settings.items())
        raise ValueError(f"'{builder.args[0]}' does not take the options {shown}: {one_line(error)}") from error


def _option(text: str) -> tuple[str, Any]:
    """Return ("img_size", 32) for "img_size=32". A value that is not a Python literal stays a string."""
    key, equals, value = text.partition("=")
    if not (key.isidentifier() and equals):
        raise ValueError(f"'{text}' is not an option: expected name=value, as in timm:vit_tiny_patch16_224,img_size=32")
    # timm loads files by pickle, which can run code, and the option may come from the run.json of an unknown person
    if key.startswith(LOADING_PREFIXES):
        raise ValueError(
            f"'{text}' is not an option: create_model gives random weights; use load_checkpoint to load weights"
        )
    if key in SIZE_OPTIONS:
        raise ValueError(f"'{text}' is not an option: the numbers of classes and channels are taken from the data set")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


__getattr__ = renamed(__name__)
