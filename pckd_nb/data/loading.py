"""Functions that load a data set by its name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import downloads
from ..catalogue import DATASETS, NORMALISATIONS, PATH_PREFIXES, check_dataset, check_noise
from ..config import REBUILD_OPTIONS
from ..deprecation import renamed_arguments
from ..paths import user_path
from ..plugins import is_plugin, load_plugin
from ..validation import Fraction, Seed, check, checked
from . import shapes
from .checks import find_problems
from .dataset import Dataset
from .folders import load_if_memory_allows, read_folder, read_imagenet, reading_notes
from .own import ImageSize, Workers
from .published import SUPERCLASS_OF_CLASS, SUPERCLASSES, read_cifar, read_fashion_mnist, read_stl10, read_tiny_imagenet
from .split import Split, balanced_sample, channel_statistics
from .streaming import Streamed
from .synthetic import read_digits, read_shapes100

SplitSize = int | None
# Height and width, in pixels, of images that are not resized.
_FIXED_SIZES = {"shapes100": 32, "digits": 16, "cifar10": 32, "cifar100": 32, "fashion_mnist": 28}


def load_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    train_size: int | None = None,
    test_size: int | None = None,
    image_size: int | None = None,
    workers: int | None = None,
    seed: int = 0,
    val: float = 0,
    val_seed: int = 0,
    label_noise: float = 0,
    noise: str = "uniform",
    noise_seed: int = 0,
    test: bool = True,
) -> Dataset:
    """Load a data set by its name.

    The same arguments always give the same images in the same order.

    Parameters
    ----------
    name : str
        One of these names:

        - "shapes100" or "digits". They need no download.
        - "cifar10", "cifar100", "fashion_mnist", "stl10" or "tinyimagenet". They are downloaded once.
        - "imagenet" or "imagenet:PATH". You have to download it by hand.
        - "folder:PATH" for your own images in PATH/train/CLASS/ and PATH/test/CLASS/.
        - "file.py:NAME" or "module:NAME" for your own function that returns a `Dataset`.
    root : path, optional
        Folder for downloads and caches. Default: `downloads.default_root()`.
    train_size, test_size : int, optional
        Number of images, at least one per class. A random sample has about the same number of images per class.
        Default: all images, but 10,000 and 2,000 for shapes100.
    image_size : int, optional
        Height and width in pixels, at least 8, to which images are resized. Only for stl10 and tinyimagenet (default
        32), imagenet (default 224) and folders (default: see `folders.read_folder`).
    workers : int, optional
        Number of processes that read images that do not fit into memory. 0 means that the main process reads them.
        Default: one per CPU core, at most 8.
    seed : int
        Seed of the random sample, and of the images that shapes100 generates.
    val : float, in [0, 1)
        Share of the training images that become a validation split. See `Dataset.with_validation`. A folder may have
        its own validation images in PATH/val/CLASS/ instead.
    val_seed : int
        Decides which training images become the validation split.
    label_noise : float, in [0, 1)
        Share of the training images that get a wrong label. See `Dataset.with_label_noise`. Test and validation images
        keep their true labels.
    noise : {"uniform", "confusable"}
        Which wrong labels they get: any other class, or a class that looks similar.
    noise_seed : int
        Decides which labels are wrong.
    test : bool
        False leaves out the test images, see `Dataset.without_test`.

    Returns
    -------
    Dataset

    Raises
    ------
    ValueError
        If the name is unknown, the folder cannot be used, or a size is not possible for this data set.
    TypeError
        If an argument has another type.
    FileNotFoundError
        If the folder does not exist.
    OSError
        If a download fails or a file is damaged.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> pckd.load_dataset("digits", train_size=32, test_size=16)
    Dataset('digits': 32 + 16 images of 1×16×16, 10 classes)
    """
    check(bool, test=test)
    label_noise, noise_seed = checked(Fraction, "label_noise", label_noise), checked(Seed, "noise_seed", noise_seed)
    check_noise(noise)
    if is_plugin(name) and not name.startswith(PATH_PREFIXES):
        sizes = {"train_size": train_size, "test_size": test_size, "image_size": image_size}
        data = _call_own_function(name, **sizes, workers=workers)
        data = data.with_validation(val, val_seed) if val else data
        data = data.with_label_noise(label_noise, noise, noise_seed) if label_noise else data
        return data if test else data.without_test()
    root = downloads.default_root() if root is None else user_path(root, "root")
    seed, workers = checked(Seed, "seed", seed), checked(Workers, "workers", workers)
    train_size, test_size = checked(SplitSize, "train_size", train_size), checked(SplitSize, "test_size", test_size)
    image_size = _checked_image_size(name, image_size)
    splits: dict[str, Split | Streamed]
    notes: dict[str, str] = {}
    if name == "shapes100":
        classes = shapes.CLASSES
        train_size = 10_000 if train_size is None else train_size
        test_size = 2_000 if test_size is None else test_size
        _check_size("train_size", train_size, len(classes))
        _check_size("test_size", test_size, len(classes))
        splits = dict(zip(("train", "test"), read_shapes100(root, train_size, test_size, seed), strict=True))
    else:
        splits, classes = _read_splits(name, root, image_size, workers)
        notes = reading_notes(*splits.values())
        splits["train"] = _sample("train_size", splits["train"], train_size, len(classes), seed)
        splits["test"] = _sample("test_size", splits["test"], test_size, len(classes), seed)
        if name.startswith("folder:"):
            streamed = {split_name: split for split_name, split in splits.items() if isinstance(split, Streamed)}
            splits = load_if_memory_allows(streamed)
    mean, std, normalisation = NORMALISATIONS.get(name.split(":")[0]) or channel_statistics(splits["train"])
    data = Dataset(
        name=name,
        **splits,
        classes=classes,
        groups=_class_groups(name),
        mean=mean,
        std=std,
        normalisation=normalisation,
        default_views=1 if name == "digits" else 4,  # a rotated 6 is a 9
        options={"train_size": train_size, "test_size": test_size, "image_size": image_size, "seed": seed},
        notes=notes,
    )
    if name.startswith("folder:"):
        for problem in find_problems(data):
            warnings.warn(problem, stacklevel=2)
    data = data.with_validation(val, val_seed) if val else data
    data = data.with_label_noise(label_noise, noise, noise_seed) if label_noise else data
    return data if test else data.without_test()


def _call_own_function(name: str, **options: int | None) -> Dataset:
    """Return the data set that the user's function "module:NAME" or "file.py:NAME" returns."""
    if given := [option for option, value in options.items() if value is not None]:
        raise ValueError(f"{given[0]} cannot be used with your own data set: set it in '{name}' instead")
    function = load_plugin(name)
    if not callable(function):
        raise ValueError(f"'{name}' must be a function that returns a Dataset, got {type(function).__name__}")
    data = function()
    if not isinstance(data, Dataset):
        raise ValueError(f"'{name}' must return a Dataset, got {type(data).__name__}; see Dataset.from_torch")
    return data


@renamed_arguments(about="info")
def rebuild(
    info: Mapping[str, Any], root: str | Path | None = None, name: str | None = None, **changes: Any
) -> Dataset:
    """Load the data set of a run again, or another data set with the image size of the run.

    Parameters
    ----------
    info : dict
        The entry "data" of the file run.json.
    root : path, optional
        As in `load_dataset`.
    name : str, optional
        Name of another data set, as in `load_dataset`. Its images are resized to the image size of the run if this is
        possible. Default: the data set of the run.
    **changes
        Arguments of `load_dataset` that replace those of the run.

    Returns
    -------
    Dataset

    Raises
    ------
    ValueError
        If the run was trained on a data set that you built yourself, or `load_dataset` raises it.
    TypeError, OSError
        As in `load_dataset`.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> info = {"name": "digits", "options": {"train_size": 32, "test_size": 16}, "image_size": [16, 16]}
    >>> pckd.data.rebuild(info)
    Dataset('digits': 32 + 16 images of 1×16×16, 10 classes)
    """
    recorded = info["name"]
    if name is not None and not is_same_dataset(name, recorded):
        return load_dataset(name, root, **{**image_size_option(info["image_size"], name), **changes})
    options = {**info["options"], **changes}
    if unknown := options.keys() - REBUILD_OPTIONS - {"workers"}:
        raise ValueError(
            f"{recorded} cannot be loaded by its name, because load_dataset has no option {min(unknown)!r}: if it is "
            "your own, pass the data set itself"
        )
    if not str(recorded).startswith(PATH_PREFIXES) and recorded not in DATASETS:
        raise ValueError(f"unknown data set {recorded!r}: if it is your own, pass the data set itself")
    try:
        return load_dataset(name or recorded, root, **options)
    except FileNotFoundError as error:
        if name or not recorded.startswith(PATH_PREFIXES) or _path_in(recorded).is_absolute():
            raise
        raise FileNotFoundError(
            f"{error}; the path is relative to the folder where the run was trained: change to that folder, or pass "
            "the data set"
        ) from None


def is_same_dataset(one: str, other: str) -> bool:
    """Return whether two names mean the same data set. For example, a path may be absolute or relative.

    Parameters
    ----------
    one, other : str
        As in `load_dataset`.

    Returns
    -------
    bool

    Examples
    --------
    >>> from pckd_nb.data.loading import is_same_dataset
    >>> is_same_dataset("folder:images", "folder:./images")
    True
    """
    if one == other:
        return True
    kind = one.partition(":")[0]
    both_have_paths = one.startswith(PATH_PREFIXES) and other.startswith(f"{kind}:")
    return both_have_paths and _path_in(one).resolve() == _path_in(other).resolve()


def image_size_option(image_size: Sequence[int], name: str) -> dict[str, int]:
    """Return the option of `load_dataset` that resizes images to a given size.

    Parameters
    ----------
    image_size : (int, int)
        Height and width in pixels.
    name : str
        As in `load_dataset`.

    Returns
    -------
    dict of str to int
        It is empty if the images of this data set cannot be resized, or the size is not square.

    Examples
    --------
    >>> from pckd_nb.data.loading import image_size_option
    >>> image_size_option((64, 64), "stl10")
    {'image_size': 64}
    >>> image_size_option((64, 64), "cifar10")
    {}
    """
    height, width = image_size
    can_resize = name.startswith(PATH_PREFIXES) or (name in DATASETS and name not in _FIXED_SIZES)
    return {"image_size": height} if can_resize and height == width else {}


def _read_splits(
    name: str, root: Path, image_size: int | None, workers: int | None
) -> tuple[dict[str, Split | Streamed], tuple[str, ...]]:
    """Read the splits and the class names of any data set except shapes100."""
    train: Split | Streamed
    test: Split | Streamed
    if isinstance(name, str) and name.startswith("folder:"):
        splits, classes = read_folder(_path_in(name), image_size, workers)
        return {**splits}, classes
    if name == "digits":
        train, test, classes = read_digits()
    elif name in ("cifar10", "cifar100"):
        train, test, classes = read_cifar(name, root)
    elif name == "fashion_mnist":
        train, test, classes = read_fashion_mnist(root)
    elif name == "stl10":
        train, test, classes = read_stl10(root, image_size or 32)
    elif name == "tinyimagenet":
        train, test, classes = read_tiny_imagenet(root, image_size or 32)
    elif name == "imagenet":
        train, test, classes = read_imagenet(root / "imagenet", image_size or 224, workers)
    elif isinstance(name, str) and name.startswith("imagenet:"):
        train, test, classes = read_imagenet(_path_in(name), image_size or 224, workers)
    else:
        check_dataset(name)  # raises an error that lists the known names
        raise AssertionError(f"no function reads {name!r}")
    return {"train": train, "test": test}, classes


def _check_size(option: str, size: int, num_classes: int) -> None:
    """Raise ValueError if there are fewer images than classes."""
    if size < num_classes:
        raise ValueError(f"{option} must be at least {num_classes}, the number of classes, got {size}")


def _checked_image_size(name: str, size: int | None) -> int | None:
    """Return `size`. Raise TypeError or ValueError if the images of the data set cannot have it."""
    size = checked(ImageSize, "image_size", size)
    if size is not None and size != _FIXED_SIZES.get(name, size):
        raise ValueError(f"image_size of {name} must be {_FIXED_SIZES[name]}, got {size}: leave it out")
    return size


def _sample(option: str, split: Split | Streamed, size: int | None, num_classes: int, seed: int) -> Split | Streamed:
    """Return a random sample of a split, in the original order. If `size` is None, return the split."""
    if size is None:
        return split
    _check_size(option, size, num_classes)
    if size > len(split):
        raise ValueError(f"{option} must be at most {len(split)}, the number of images, got {size}")
    return split.take(balanced_sample(split.labels, size, num_classes, seed))


def _class_groups(name: str) -> dict[str, tuple[str, ...]]:
    """Return `Dataset.groups` of a data set."""
    if name == "shapes100":
        return {
            "shape": tuple(shape for shape in shapes.SHAPES for _ in shapes.PATTERNS),
            "pattern": tuple(pattern for _ in shapes.SHAPES for pattern in shapes.PATTERNS),
        }
    if name == "cifar100":
        return {"superclass": tuple(SUPERCLASSES[coarse] for coarse in SUPERCLASS_OF_CLASS)}
    return {}


def _path_in(name: str) -> Path:
    """Return the path in a name such as "folder:PATH"."""
    kind, _, path = name.partition(":")
    if not path:
        raise ValueError(f"'{name}' has no path: write {kind}:PATH")
    return user_path(path, kind)
