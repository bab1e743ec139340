"""Names of data sets, networks, methods, recipes and strategies, and the text form of an arm.

An arm of an experiment is one method with its settings, such as "pckd-beta_cc=0.02".

This module does not import torch, so the command line can show help and errors at once. Other modules create the
objects with these names. Tests check that they have the same names.
"""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .paths import user_path
from .plugins import is_plugin

DATASETS = {
    "shapes100": "100 categories of drawn shapes, 32×32 RGB, with a known difficulty per image; generated, no download",
    "digits": "10 handwritten digits, 16×16 grey (the 8×8 images of scikit-learn, enlarged); no download",
    "cifar10": "10 categories of photographs, 32×32 RGB, 50,000 training and 10,000 test images; 170 MB download",
    "cifar100": "100 categories of photographs in 20 superclasses, 32×32 RGB, 50,000 training and 10,000 test images; "
    "169 MB download",
    "fashion_mnist": "10 categories of clothing, 28×28 grey, 60,000 training and 10,000 test images; 31 MB download",
    "stl10": "10 categories of photographs, 96×96 RGB scaled to 32×32, 5,000 training and 8,000 test images; 2.6 GB "
    "download",
    "tinyimagenet": "200 categories of photographs, 64×64 RGB scaled to 32×32, 100,000 training and 10,000 test "
    "images; 248 MB download",
    "imagenet": "photographs, cropped to 224×224 RGB; download them yourself, into the folder ROOT/imagenet, or "
    "into any folder PATH and use the name imagenet:PATH",
    "folder:PATH": "your own images: PATH/train/CLASS/*.jpg and PATH/test/CLASS/*.jpg; if you have a validation "
    "split, also PATH/val/CLASS/*.jpg",
}
TABLE_FORMATS = ("text", "markdown", "latex", "csv")  # of comparisons
NOISE_KINDS = ("uniform", "confusable")  # `Dataset.with_label_noise` makes them
PATH_PREFIXES = ("imagenet:", "folder:")  # of names that contain the path of a folder
NORMALISATIONS = {  # name → mean and std per channel, for pixels in [0, 1], and their source
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "CIFAR-10, the usual published values"),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), "CIFAR-100, as in RepDistiller"),
    "tinyimagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262), "TinyImageNet, as in mdistiller"),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "ImageNet, as torchvision's published networks"),
}


class Network(NamedTuple):
    """Size and cost of a network with 100 classes and images of 3×32×32.

    Attributes
    ----------
    parameters : int
        Number of trainable parameters.
    flops : int
        Floating-point operations of a forward pass with one image. A multiplication and an addition count as two.
    feature_width : int
        Number of penultimate features.
    """

    parameters: int
    flops: int
    feature_width: int


NETWORKS = {  # `models.MODELS` builds them
    "resnet8": Network(83_892, 25_014_784, 64),
    "resnet14": Network(181_108, 53_326_336, 64),
    "resnet20": Network(278_324, 81_637_888, 64),
    "resnet32": Network(472_756, 138_260_992, 64),
    "resnet44": Network(667_188, 194_884_096, 64),
    "resnet56": Network(861_620, 251_507_200, 64),
    "resnet110": Network(1_736_564, 506_311_168, 64),
    "resnet8x4": Network(1_233_540, 354_142_208, 256),
    "resnet32x4": Network(7_433_860, 2_166_081_536, 256),
    "ResNet50": Network(23_705_252, 2_596_028_416, 2048),
    "wrn_16_1": Network(180_916, 53_326_336, 64),
    "wrn_16_2": Network(703_284, 202_236_928, 128),
    "wrn_40_1": Network(569_780, 166_572_544, 64),
    "wrn_40_2": Network(2_255_156, 655_221_760, 128),
    "vgg8": Network(3_965_028, 192_385_024, 512),
    "vgg11": Network(9_277_284, 418_877_440, 512),
    "vgg13": Network(9_462_180, 569_872_384, 512),
    "vgg16": Network(14_774_436, 796_364_800, 512),
    "vgg19": Network(20_086_692, 1_022_857_216, 512),
    "MobileNetV2": Network(812_836, 13_047_296, 1280),
    "ShuffleV1": Network(949_258, 77_382_912, 960),
    "ShuffleV2": Network(1_355_528, 89_008_896, 1024),
}
LIBRARIES = ("torchvision", "timm")  # their networks have names of the form LIBRARY:NAME

# (teacher, student). For CIFAR-100: the paper's seven pairs, with one architecture family per pair; then six pairs with
# two families per pair, which many papers use since CRD (arXiv 1910.10699). For ImageNet: the last pair.
PAIRS = (
    ("wrn_40_2", "wrn_16_2"), ("wrn_40_2", "wrn_40_1"), ("resnet56", "resnet20"), ("resnet110", "resnet20"),
    ("resnet110", "resnet32"), ("resnet32x4", "resnet8x4"), ("vgg13", "vgg8"),
    ("vgg13", "MobileNetV2"), ("ResNet50", "MobileNetV2"), ("ResNet50", "vgg8"), ("resnet32x4", "ShuffleV1"),
    ("resnet32x4", "ShuffleV2"), ("wrn_40_2", "ShuffleV1"),
    ("torchvision:resnet34", "torchvision:resnet18"),
)  # fmt: skip

METHODS = ("supervised", "kd", "pckd")  # `methods.METHODS` builds them
BASELINES = (  # `methods.BASELINES`
    "FitNet", "AT", "NST", "SP", "CC", "VID", "RKD", "PKT", "FSP", "AB", "FT", "KDSVD", "CRD", "SRRL", "OFD",
    "ReviewKD", "WKDF", "CATKD", "SimKD", "DKD", "DIST", "MLKD", "LSKD", "WTTM", "WKDL", "SKD", "SSKD", "HSAKD",
)  # fmt: skip
REGISTERED: set[str] = set()  # names that `methods.register_method` has added
RECIPES = ("classroom", "cifar100_paper", "imagenet_paper")  # `recipes.RECIPES` has their settings
STRATEGIES = (  # `preview.STRATEGIES` computes their weights
    "preview", "uniform", "constant", "curriculum", "constant_curriculum", "focal", "constant_focal",
)  # fmt: skip


def check_dataset(name: str) -> None:
    """Check that there is a data set of this name. Whether a folder in the name exists is not checked.

    Parameters
    ----------
    name : str
        A key of `DATASETS`, `imagenet:PATH`, `folder:PATH`, or the name of a plugin: `module:NAME` or `file.py:NAME`.

    Raises
    ------
    ValueError
        If the name is unknown. The message contains similar names.
    """
    if isinstance(name, str) and (name in DATASETS or name.startswith(PATH_PREFIXES) or is_plugin(name)):
        return
    near = difflib.get_close_matches(str(name).lower(), DATASETS, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    shown = repr(name) if isinstance(name, str | int | None) else f"of type {type(name).__name__}"
    raise ValueError(f"unknown data set {shown}: {hint}known: {', '.join(DATASETS)}")


def read_normalisation(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and std with which pixels are normalised.

    Parameters
    ----------
    text : str
        A key of `NORMALISATIONS`, or MEAN/STD with one number per channel, such as "0.5,0.5,0.5/0.25,0.25,0.25".

    Returns
    -------
    mean, std : tuple of float
        One number per channel.

    Raises
    ------
    ValueError
        If the text cannot be read, if a mean is not in [0, 1], or if a std is not in (0, 1].

    Examples
    --------
    >>> from pckd_nb.catalogue import read_normalisation
    >>> read_normalisation("0.5/0.25")
    ((0.5,), (0.25,))
    """
    if text in NORMALISATIONS:
        return NORMALISATIONS[text][:2]
    try:
        mean, std = (tuple(map(float, part.split(","))) for part in text.split("/"))
    except ValueError:
        mean, std = (), ()
    if not mean or len(mean) != len(std) or not all(map(math.isfinite, mean + std)) or not all(x > 0 for x in std):
        raise ValueError(
            f"a normalisation must be one of {', '.join(NORMALISATIONS)}, or MEAN/STD such as "
            f"0.5,0.5,0.5/0.25,0.25,0.25, got {text!r}"
        )
    check_normalisation(mean, std)
    return mean, std


def check_noise(kind: str) -> None:
    """Check that there is label noise of this kind.

    Parameters
    ----------
    kind : str

    Raises
    ------
    ValueError
        If it is not in `NOISE_KINDS`.
    """
    if not isinstance(kind, str) or kind not in NOISE_KINDS:
        shown = repr(kind) if isinstance(kind, str | int | float | None) else type(kind).__name__
        raise ValueError(f"noise must be {' or '.join(NOISE_KINDS)}, got {shown}")


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    """Check that mean and std can be those of pixels in [0, 1].

    Parameters
    ----------
    mean, std : sequence of float

    Raises
    ------
    ValueError
        If a mean is outside [0, 1] or a std is greater than 1, as for pixels from 0 to 255.
    """
    if not all(0 <= value <= 1 for value in mean) or any(value > 1 for value in std):
        raise ValueError(
            f"mean must be in [0, 1] and std at most 1, got {tuple(mean)} and {tuple(std)}: if pixels are in [0, 255], "
            "divide both by 255"
        )


def check_outside_images(folder: str | Path, name: str) -> None:
    """Check that an output folder is not inside the image folders of a data set such as folder:PATH.

    Parameters
    ----------
    folder : path
        The output folder, such as a run folder. It does not have to exist.
    name : str
        Name of the data set.

    Raises
    ------
    ValueError
        If the folder is PATH/train, PATH/val, PATH/test or inside one of them. There it would look like a class.
    """
    kind, _, path = name.partition(":")
    if f"{kind}:" in PATH_PREFIXES and path:
        place = user_path(folder).resolve()
        for part in ("train", "val", "test"):
            images = (user_path(path) / part).resolve()
            if place.is_relative_to(images):
                raise ValueError(f"'{folder}' is among the images of {name}, in '{images}': choose a folder elsewhere")


def is_own_network(name: str) -> bool:
    """Return whether a name is that of a network of the user: a plugin, and not a network of `LIBRARIES`.

    Parameters
    ----------
    name : str

    Returns
    -------
    bool
    """
    return name.partition(":")[0] not in LIBRARIES and is_plugin(name)


def check_network(name: str) -> None:
    """Check that there is a network of this name.

    For a network of torchvision or timm, only the name of the library is checked.

    Parameters
    ----------
    name : str
        A key of `NETWORKS`, `torchvision:NAME`, `timm:NAME`, or a plugin as in `check_dataset`.

    Raises
    ------
    ValueError
        If the name is unknown. The message contains similar names.
    """
    if is_own_network(name):
        return
    library, colon, _ = name.partition(":")
    if colon:
        check_library(library)
    else:
        find_name("model", name, NETWORKS)


def read_pairs(text: str) -> list[tuple[str, str]]:
    """Return the teacher-student pairs that a text lists.

    Parameters
    ----------
    text : str
        TEACHER:STUDENT, comma-separated. "paper" means the 13 usual pairs on CIFAR-100, see `PAIRS`.

    Returns
    -------
    list of (str, str)
        Names of teacher and student.

    Raises
    ------
    ValueError
        If the text does not have this form, or if a network is unknown.
    TypeError
        If it is not a string.

    Examples
    --------
    >>> from pckd_nb.catalogue import read_pairs
    >>> read_pairs("resnet56:resnet20,torchvision:resnet34:torchvision:resnet18")
    [('resnet56', 'resnet20'), ('torchvision:resnet34', 'torchvision:resnet18')]
    >>> len(read_pairs("paper"))
    13
    """
    if not isinstance(text, str):
        raise TypeError(f"pairs must be text, got {type(text).__name__}")
    if text == "paper":
        return [pair for pair in PAIRS if ":" not in "".join(pair)]
    pairs = []
    for part in text.split(","):
        words = part.split(":")  # the name of a network may contain a colon too
        splits = [(":".join(words[:count]), ":".join(words[count:])) for count in range(1, len(words))]
        if not splits or not part.strip(":"):
            raise ValueError(f"pairs must be TEACHER:STUDENT, comma-separated, or paper, got {text!r}")
        pair = next((pair for pair in splits if all(map(_is_network, pair))), splits[0])
        for name in pair:
            check_network(name)
        pairs.append(pair)
    return pairs


def _is_network(name: str) -> bool:
    try:
        check_network(name)
    except ValueError:
        return False
    return True


def check_library(name: str) -> None:
    """Check that networks of this library can be used.

    Parameters
    ----------
    name : str

    Raises
    ------
    ValueError
        If the name is not in `LIBRARIES`.
    """
    if name not in LIBRARIES:
        raise ValueError(f"unknown library '{name}'; known: {', '.join(f'{library}:NAME' for library in LIBRARIES)}")


def find_name(kind: str, name: str, names: Iterable[str]) -> str:
    """Return `name` if it is one of `names`.

    Parameters
    ----------
    kind : str
        The kind of object, for the error message, such as "model".
    name : str
        The name to find.
    names : iterable of str
        All known names.

    Returns
    -------
    str
        `name`.

    Raises
    ------
    ValueError
        If `name` is not one of them. The message contains similar names.
    """
    names = list(names)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:24]
        raise ValueError(f"unknown {kind} '{name}'; nearest known: {', '.join(near)}")
    return name


def find_method(name: str) -> str:
    """Return the name of a method or baseline with the right upper and lower case.

    Parameters
    ----------
    name : str
        A name in `METHODS`, `BASELINES` or `REGISTERED`, in upper or lower case, or a plugin as in `check_dataset`.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If the name is unknown.

    Examples
    --------
    >>> from pckd_nb.catalogue import find_method
    >>> find_method("reviewkd")
    'ReviewKD'
    """
    if is_plugin(name):
        return name
    known_names = (*METHODS, *BASELINES, *REGISTERED)
    found = {known_name.lower(): known_name for known_name in known_names}.get(name.lower())
    if found is None:
        raise ValueError(f"unknown method {name!r}; known: {', '.join([*METHODS, *BASELINES])}")
    return found


def check_table_format(format: str, pivot: bool = False) -> None:
    """Check that comparisons can be written in this format.

    Parameters
    ----------
    format : str
        An element of `TABLE_FORMATS`.
    pivot : bool
        Whether the table has one column per pair.

    Raises
    ------
    ValueError
        If the format is unknown, or cannot be pivoted.
    TypeError
        If `pivot` is not a bool.
    """
    if format not in TABLE_FORMATS:
        raise ValueError(f"format must be {', '.join(TABLE_FORMATS[:-1])} or {TABLE_FORMATS[-1]}, got {format!r}")
    if not isinstance(pivot, bool):
        raise TypeError(f"pivot must be True or False, got {type(pivot).__name__}")
    if pivot and format == "csv":
        raise ValueError("pivot needs format text, markdown or latex: csv always has one row per arm and pair")


def check_strategy(name: str) -> None:
    """Check that there is a strategy of this name.

    Parameters
    ----------
    name : str

    Raises
    ------
    ValueError
        If the name is not in `STRATEGIES`.
    """
    if name not in STRATEGIES:
        raise ValueError(f"unknown strategy {name!r}; known: {', '.join(STRATEGIES)}")


def read_arm(text: str) -> tuple[str, dict[str, Any]]:
    """Return the method and the settings of an arm.

    Parameters
    ----------
    text : str
        `METHOD` or `METHOD-SETTING=VALUE-SETTING=VALUE`, with any number of settings.

    Returns
    -------
    method : str
        The name of the method, with the right upper and lower case. An unknown name is returned unchanged.
    settings : dict
        Name → value, in the order given.

    Raises
    ------
    TypeError
        If `text` is not a string.
    ValueError
        If the text cannot be read, or if it contains a setting twice.

    Examples
    --------
    >>> from pckd_nb.catalogue import read_arm
    >>> read_arm("pckd-beta_cc=0.02-views=1")
    ('pckd', {'beta_cc': 0.02, 'views': 1})
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be an arm as a string, got {type(text).__name__}")
    method, *parts = re.split(r"-(?=\w+=)", text.strip())
    if not re.fullmatch(r"\w+", method) and not is_plugin(method):
        raise ValueError(f"{text!r} is not an arm: write METHOD or METHOD-SETTING=VALUE, such as pckd-beta_cc=0.02")
    method = {name.lower(): name for name in (*METHODS, *BASELINES)}.get(method.lower(), method)
    settings = [part.split("=", 1) for part in parts]
    found = {name: parse_value(value) for name, value in settings}
    if len(found) != len(settings):
        raise ValueError(f"{text!r} contains a setting twice: write it once")
    return method, found


def check_arm(text: str) -> None:
    """Check the method of an arm, and its strategy if it has one.

    `experiments.Arm.build` checks the other settings, because that needs the method itself.

    Parameters
    ----------
    text : str
        See `read_arm`.

    Raises
    ------
    TypeError
        If `text` is not a string.
    ValueError
        If the arm cannot be read, or if its method or strategy is unknown.
    """
    method, settings = read_arm(text)
    if find_method(method) == "pckd" and isinstance(strategy := settings.get("strategy"), str):
        check_strategy(strategy)


def parse_value(text: str) -> int | float | str:
    """Return a text as an int if possible, otherwise as a float if possible, otherwise unchanged.

    Parameters
    ----------
    text : str

    Returns
    -------
    int, float or str

    Raises
    ------
    TypeError
        If `text` is not a string.
    """
    if not isinstance(text, str):
        raise TypeError(f"a value must be a string, got {type(text).__name__}")
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
