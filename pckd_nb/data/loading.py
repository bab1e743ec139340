"""Load a data set by its name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from .. import downloads
from ..catalogue import DATASETS, NORMALISATIONS, WITH_PATH, check_dataset
from ..config import REBUILD_OPTIONS
from ..paths import user_path
from ..plugs import is_plugin, load_plugin
from ..validation import Seed, checked
from . import shapes
from .dataset import Dataset, Split, doubts, evenly_spread, statistics
from .folders import read_folder, read_imagenet, read_what_fits, reading_notes
from .published import SUPERCLASS_OF_CLASS, SUPERCLASSES, read_cifar, read_fashion_mnist, read_stl10, read_tiny_imagenet
from .streaming import Streamed
from .synthetic import read_digits, read_shapes100

Workers = Annotated[int, Field(ge=0)] | None
Size = int | None  # of a split
ImageSize = Annotated[int, Field(ge=8)] | None


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
) -> Dataset:
    """Load a data set by its name.

    The same arguments give the same data.

    Parameters
    ----------
    name : str
        A key of `DATASETS`, "imagenet:PATH" or "folder:PATH". For a data set of your own: "module:Name" or
        "file.py:Name", a function that returns a `Dataset`.
    root : path, optional
        Folder of downloads and caches. Default: `downloads.default_root()`.
    train_size, test_size : int, optional
        Number of images, at least one per class. shapes100 is drawn with this many images, by default 10,000 and 2,000.
        Of any other data set, a random part is taken, spread as evenly over the classes as possible. Default: all
        images.
    image_size : int, optional
        Side in pixels, at least 8, to which images of stl10, tinyimagenet, imagenet and folders are scaled. Default: 32
        for stl10 and tinyimagenet, 224 for imagenet. For folders see `folders.read_folder`.
    workers : int, optional
        Number of processes that read images that stay in files; 0 means none. Images of imagenet stay in files, and
        those of a folder if they would fill more than a quarter of the memory. Default: one per CPU core, at most 8.
    seed : int
        Decides which images are drawn or taken.
    val : float in [0, 1)
        Share of the training images to hold out for validation, see `Dataset.with_validation`. Default 0: none. Leave
        it out if a folder has validation images of its own, in PATH/val/CLASS.
    val_seed : int
        Decides which images are held out.

    Returns
    -------
    Dataset

    Raises
    ------
    ValueError
        If the name is unknown, a size is impossible, or the folder cannot be used. Also if the data set is your own and
        `train_size`, `test_size`, `image_size` or `workers` is given.
    TypeError
        If a size is not a whole number, or root not a path.
    FileNotFoundError
        If the folder does not exist.
    OSError
        If a download fails or a file is damaged.

    Examples
    --------
    >>> data = load_dataset("shapes100", train_size=4000)
    """
    if is_plugin(name) and not name.startswith(WITH_PATH):
        own = _plugged(name, train_size=train_size, test_size=test_size, image_size=image_size, workers=workers)
        return own.with_validation(val, val_seed) if val else own
    root = downloads.default_root() if root is None else user_path(root, "root")
    seed, workers = checked(Seed, "seed", seed), checked(Workers, "workers", workers)
    train_size, test_size = checked(Size, "train_size", train_size), checked(Size, "test_size", test_size)
    image_size = _image_size(name, image_size)
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
        splits, classes = _load(name, root, image_size, workers)
        notes = reading_notes(*splits.values())
        splits["train"] = _part("train_size", splits["train"], train_size, len(classes), seed)
        splits["test"] = _part("test_size", splits["test"], test_size, len(classes), seed)
        if name.startswith("folder:"):
            splits = read_what_fits({what: part for what, part in splits.items() if isinstance(part, Streamed)})
    mean, std, normalisation = NORMALISATIONS.get(name.split(":")[0]) or statistics(splits["train"])
    data = Dataset(
        name=name,
        **splits,
        classes=classes,
        groups=_groups(name),
        mean=mean,
        std=std,
        normalisation=normalisation,
        default_views=1 if name == "digits" else 4,  # a 6 upside down is a 9
        options={"train_size": train_size, "test_size": test_size, "image_size": image_size, "seed": seed},
        notes=notes,
    )
    for line in doubts(data) if name.startswith("folder:") else ():
        warnings.warn(line, stacklevel=2)
    return data.with_validation(val, val_seed) if val else data


def _plugged(name: str, **sizes: int | None) -> Dataset:
    """Return the data set that your own function makes, given as "module:Name" or "file.py:Name"."""
    if given := [option for option, value in sizes.items() if value is not None]:
        raise ValueError(f"{given[0]} is not for data of your own: let '{name}' make it so")
    make = load_plugin(name)
    if not callable(make):
        raise ValueError(f"'{name}' must be a function that returns a Dataset, got {type(make).__name__}")
    data = make()
    if not isinstance(data, Dataset):
        raise ValueError(f"'{name}' must return a Dataset, got {type(data).__name__}; see Dataset.from_torch")
    return data


def rebuild(
    about: Mapping[str, Any], root: str | Path | None = None, name: str | None = None, **changes: Any
) -> Dataset:
    """Load the data set of a run again, or another one as the run's network takes it.

    Parameters
    ----------
    about : dict
        The entry "data" of the run's run.json.
    root : path, optional
        As in `load_dataset`.
    name : str, optional
        As in `load_dataset`. Another data set is read at the image size of the run, where it can be. Default: the data
        set of the run.
    **changes
        Arguments of `load_dataset` that replace those of the run.

    Returns
    -------
    Dataset

    Raises
    ------
    ValueError
        If the run was trained on your own data. Other errors are those of `load_dataset`.
    """
    recorded = about["name"]
    if name is not None and not same_data(name, recorded):
        return load_dataset(name, root, **{**size_like(about["image_size"], name), **changes})
    options = {**about["options"], **changes}
    if unknown := options.keys() - REBUILD_OPTIONS - {"workers"}:
        raise ValueError(f"{recorded} is data of your own, with option {min(unknown)!r}: hand over the data itself")
    if not str(recorded).startswith(WITH_PATH) and recorded not in DATASETS:
        raise ValueError(f"there is no data set {recorded!r}: if it is data of your own, hand over the data itself")
    try:
        return load_dataset(name or recorded, root, **options)
    except FileNotFoundError as error:
        if name or not recorded.startswith(WITH_PATH) or _path_in(recorded).is_absolute():
            raise
        raise FileNotFoundError(
            f"{error}; the run names its data by this relative path, as seen from where it was trained: go there, or "
            "give the data set"
        ) from None


def same_data(one: str, other: str) -> bool:
    """Return whether two names of data sets mean the same one. A path may be written in several ways."""
    kind = one.partition(":")[0]
    if one == other or not (one.startswith(WITH_PATH) and other.startswith(f"{kind}:")):
        return one == other
    return _path_in(one).resolve() == _path_in(other).resolve()


def size_like(image_size: Sequence[int], name: str) -> dict[str, int]:
    """Return the argument of `load_dataset` by which images have the size that a network was trained at.

    Parameters
    ----------
    image_size : (int, int)
        Height and width.
    name : str
        Name of the data set.

    Returns
    -------
    dict
        Empty if the data set has images of one size only, or if they would not be square.
    """
    height, width = image_size
    any_size = name.startswith(WITH_PATH) or (name in DATASETS and name not in _FIXED_SIZES)
    return {"image_size": height} if any_size and height == width else {}


def _load(
    name: str, root: Path, image_size: int | None, workers: int | None
) -> tuple[dict[str, Split | Streamed], tuple[str, ...]]:
    """Read the splits and the class names of a data set other than shapes100."""
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
        check_dataset(name)  # its error lists the known names
        raise AssertionError(f"{name!r} is known, and not built")
    return {"train": train, "test": test}, classes


def _check_size(what: str, size: int, num_classes: int) -> None:
    """Raise ValueError if there is not at least one image per class."""
    if size < num_classes:
        raise ValueError(f"{what} must be at least {num_classes}, the number of classes, got {size}")


_FIXED_SIZES = {"shapes100": 32, "digits": 16, "cifar10": 32, "cifar100": 32, "fashion_mnist": 28}


def _image_size(name: str, size: int | None) -> int | None:
    """Return `size`, or raise TypeError or ValueError if the data set has no images of this size."""
    size = checked(ImageSize, "image_size", size)
    if size is not None and size != _FIXED_SIZES.get(name, size):
        raise ValueError(f"image_size is {size}: {name} has images of {_FIXED_SIZES[name]} pixels only")
    return size


def _part(what: str, split: Split | Streamed, size: int | None, num_classes: int, seed: int) -> Split | Streamed:
    """Return a random part in the original order, spread as evenly over the classes as the split allows."""
    if size is None:
        return split
    _check_size(what, size, num_classes)
    if size > len(split):
        raise ValueError(f"{what} is {size}: there are only {len(split)} images")
    return split.take(evenly_spread(split.labels, size, num_classes, seed))


def _groups(name: str) -> dict[str, tuple[str, ...]]:
    """Return the groupings of the classes, by name."""
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
        raise ValueError(f"'{name}' lacks a path: write {kind}:PATH")
    return user_path(path, kind)
