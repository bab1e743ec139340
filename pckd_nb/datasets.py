"""Data sets as plain tensors: every image of a split in one uint8 tensor, ready to be moved to a device.

What is too big for that stays in files (`streams.Streamed`); both kinds of splits are read in the same way.

`load_dataset(name)` is the one door. shapes100 and digits need no download; the others are kept under `root`,
by default the folder named in the environment variable PCKD_DATA, else data/downloads.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import math
import operator
import os
import pickle
import shutil
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pckd_nb import downloads, shapes
from pckd_nb.catalogue import DATASETS as DATASETS
from pckd_nb.catalogue import WITH_PATH, check_dataset
from pckd_nb.plugs import is_plug, load_plug
from pckd_nb.provenance import code_fingerprint
from pckd_nb.streams import Streamed, fit, open_image, read_image


@dataclass(frozen=True, eq=False)
class Split:
    """Images, uint8 (N, C, H, W); labels, int64 (N,); where known, difficulty, float32 (N,) in [0, 1], and ids, (N,):
    what each image is called, such as its file name."""

    images: torch.Tensor
    labels: torch.Tensor
    difficulty: torch.Tensor | None = None
    ids: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.images, torch.Tensor) or self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise TypeError(f"images must be a uint8 tensor of shape (N, C, H, W), got {_kind(self.images)}")
        object.__setattr__(self, "labels", _checked_labels(self.labels, len(self.images)))
        if self.ids is not None and len(self.ids) != len(self.images):
            raise ValueError(f"there must be one id per image: {len(self.images)} images, {len(self.ids)} ids")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def device(self) -> torch.device:
        return self.labels.device

    @property
    def padding(self) -> int:
        """By how many pixels to pad for the random crop: 4 of 32."""
        return min(self.shape[1:]) // 8

    def read(
        self, batches: Iterable[torch.Tensor], *, seed: int | None = None, epoch: int | None = None
    ) -> Iterator[torch.Tensor]:
        """For every index tensor, int64 (B,), its images on `device`: uint8 (B, C, H, W), in that order.

        seed and epoch matter only to images that are cropped while they are read, see `Streamed`.
        """
        return (self.images[index.to(self.images.device)].to(self.device, non_blocking=True) for index in batches)

    def to(self, device: torch.device | str) -> Split:
        """The same split with its tensors on `device`. Images that do not fit into the memory of a GPU stay where they
        are: `read` then brings them there batch by batch."""
        difficulty = None if self.difficulty is None else self.difficulty.to(device)
        images = self.images.to(device) if self.images.nbytes <= device_memory(device) else self.images
        return dataclasses.replace(self, images=images, labels=self.labels.to(device), difficulty=difficulty)

    def take(self, rows: np.ndarray) -> Split:
        """The part of the split at `rows`, int64 (n,), in that order."""
        difficulty = None if self.difficulty is None else self.difficulty[rows]
        ids = None if self.ids is None else self.ids[rows]
        return dataclasses.replace(
            self, images=self.images[rows], labels=self.labels[rows], difficulty=difficulty, ids=ids
        )

    def feed(self, digest: Any) -> None:
        """Update a hashlib `digest` with every pixel and label, and with the code of a class of your own."""
        if code := code_fingerprint(type(self)):
            digest.update(code.encode())
        for tensor in (self.images, self.labels):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.cpu().contiguous().numpy())


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A training and a test split, and what has to be known about them.

    `groups` maps the name of a grouping to the coarse name of every class. `mean` and `std` are per channel,
    of pixels scaled to [0, 1]; `normalisation` says where they are from. `default_views` is 4 where a quarter
    turn leaves the class as it is, else 1. `options` is what `load_dataset` needs, besides name and root, to
    build the same data again.
    """

    name: str
    train: Split | Streamed
    test: Split | Streamed
    classes: tuple[str, ...]
    groups: dict[str, tuple[str, ...]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    normalisation: str
    default_views: int = 4
    options: dict = field(default_factory=dict)
    val: Split | Streamed | None = None

    def __post_init__(self) -> None:
        if doubled := [name for name, count in Counter(self.classes).items() if count > 1]:
            raise ValueError(f"two classes are called {doubled[0]!r}")
        for name in ("train", *self.held_out):
            if not len(getattr(self, name)):
                raise ValueError(f"{name} of {self.name} has no images")
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std must be positive, got {self.std}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(f"{name} must have one number per channel, {self.channels}, got {len(values)}")
        for name in ("train", *self.held_out):
            labels = getattr(self, name).labels
            if (
                labels.device.type == "cpu"
                and len(labels)
                and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes
            ):
                found = f"{int(labels.min())} to {int(labels.max())}"
                raise ValueError(f"labels of {name} must be from 0 to {self.num_classes - 1}, got {found}")
        try:
            json.dumps(self.options)
        except (TypeError, ValueError) as error:
            raise TypeError(f"options of a data set are recorded as JSON: {error}") from error
        if wrong := self.options.keys() & {"name", "root", "workers"}:
            raise ValueError(f"options of a data set can't have {min(wrong)!r}: they go with the run to other machines")

    @classmethod
    def from_arrays(cls, train: tuple[Any, Any], test: tuple[Any, Any], **options: Any) -> Dataset:
        """A data set of images and labels in memory.

        Parameters
        ----------
        train, test : pair (images, labels)
            images: array or tensor of shape (N, H, W), (N, C, H, W) or (N, H, W, C), uint8 or floats in [0, 1];
            labels: N whole numbers, or N names of classes.
        val : pair, optional
            A validation split.
        classes : sequence of str, optional
            Names of the classes. Default: the labels themselves if they are text, else their numbers.
        name : str
        mean, std : sequence of float, optional
            Per channel, of pixels in [0, 1]. Default: computed on the training images.
        default_views : int
            4 where a quarter turn leaves the class as it is, else 1. Images that are not square have 1.
        ids : sequence of str, optional
            What every training image is called. It is kept with the run.

        Raises
        ------
        TypeError, ValueError
            For what is of another kind, does not fit together, or has been normalised.

        Examples
        --------
        >>> data = Dataset.from_arrays((x_train, y_train), (x_test, y_test), classes=["cat", "dog"])
        """
        from .own_data import from_arrays

        return from_arrays(train, test, **options)

    @classmethod
    def from_torch(cls, train: Any, test: Any, **options: Any) -> Dataset:
        """A data set of two `torch.utils.data.Dataset`, read once into memory.

        Parameters
        ----------
        train, test : torch.utils.data.Dataset
            Items (image, label): a PIL image, an array or a tensor, all of one size, uint8 or floats in [0, 1]. Random
            transforms belong into `distill(..., augment=...)`.
        val : torch.utils.data.Dataset, optional
            A validation split.
        classes, name, mean, std, default_views
            As in `from_arrays`. Default of classes: `train.classes`, if there are such.

        Raises
        ------
        TypeError, ValueError
            For what is of another kind, or images of different sizes.

        Examples
        --------
        >>> data = Dataset.from_torch(FashionMNIST("data"), FashionMNIST("data", train=False))
        """
        from .own_data import from_torch

        return from_torch(train, test, **options)

    @classmethod
    def from_table(cls, table: Any, **options: Any) -> Dataset:
        """A data set of image files that a table lists: one row per image, with its path, class and split.

        Parameters
        ----------
        table : path of a CSV file, or DataFrame
        image, label, split : str
            Names of the columns, by default "path", "class" and "split". The last one has "train", "test" or "val".
        root : path, optional
            The folder that the paths start from. Default: the folder of the CSV file.
        image_size : int
            Side in pixels to which images are scaled and cut. Default 32.
        workers : int, optional
            Processes that read images where these do not fit into memory.
        classes, name, mean, std, default_views
            As in `from_arrays`.

        Raises
        ------
        FileNotFoundError
            If the table or an image is missing.
        ValueError
            For a column that is missing, or empty cells.

        Examples
        --------
        >>> data = Dataset.from_table("birds.csv", image="file", label="species", image_size=64)
        """
        from .own_data import from_table

        return from_table(table, **options)

    @property
    def held_out(self) -> tuple[str, ...]:
        """The names of the splits that no network learns from: "test", and "val" if there is one."""
        return ("test",) if self.val is None else ("test", "val")

    def with_validation(self, share: float, seed: int = 0) -> Dataset:
        """The same data set with a part of its training images held out as `val`.

        Parameters
        ----------
        share : float in (0, 1)
            Of the training images; classes are as evenly spread as possible.
        seed : int
            Decides which.

        Raises
        ------
        ValueError
            If there is a validation split already, or one of the parts would have fewer images than classes.
        """
        if self.val is not None:
            raise ValueError(f"{self.name} has a validation split already, of {len(self.val):,} images")
        if isinstance(share, bool) or not isinstance(share, float) or not 0 < share < 1:
            raise ValueError(f"val must be a share of the training images between 0 and 1, got {share!r}")
        count = round(share * len(self.train))
        if min(count, len(self.train) - count) < self.num_classes:
            fewer = f"{len(self.train) - count} + {count} images for {self.num_classes} classes"
            raise ValueError(f"val={share:g} of {self.name} leaves {fewer}: each part needs one per class")
        chosen = _spread(self.train.labels, count, self.num_classes, seed)
        rest = np.setdiff1d(np.arange(len(self.train)), chosen)
        options = {**self.options, "val": share, "val_seed": seed}
        return dataclasses.replace(self, train=self.train.take(rest), val=self.train.take(chosen), options=options)

    def __repr__(self) -> str:
        height, width = self.size
        images = f"{len(self.train):,} + {len(self.test):,} images of {self.channels}×{height}×{width}"
        return f"Dataset({self.name!r}: {images}, {self.num_classes} classes)"

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def channels(self) -> int:
        return self.train.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.train.shape[1:]

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any pixel, label or class name.

        Of a streamed data set they are taken from file names within the folder, file sizes in bytes, labels, class
        names and image size instead: another image of the same name and size is not seen, and the same images in
        memory have another fingerprint.
        """
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for name in ("train", *self.held_out):
            getattr(self, name).feed(digest)
        return digest.hexdigest()[:16]

    def to(self, device: torch.device | str) -> Dataset:
        """The same data set with its tensors on `device`."""
        moved = {name: getattr(self, name).to(device) for name in ("train", *self.held_out)}
        return dataclasses.replace(self, **moved)


def device_memory(device: torch.device | str) -> float:
    """How many bytes of images a device may keep: half of what is free on a GPU, all that there are elsewhere."""
    device = torch.device(device)
    return torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else math.inf


def _checked_labels(labels: Any, count: int) -> torch.Tensor:
    """Labels as int64. Raises TypeError or ValueError unless there is one whole number per image."""
    labels = torch.as_tensor(labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool or labels.ndim != 1:
        hint = ": one-hot labels become numbers by labels.argmax(1)" * (labels.ndim == 2)
        raise TypeError(f"labels must be whole numbers of shape (N,), got {_kind(labels)}{hint}")
    if len(labels) != count:
        raise ValueError(f"there must be one label per image: {count} images, {len(labels)} labels")
    numbers: torch.Tensor = labels.long()
    return numbers


def _kind(value: Any) -> str:
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    return f"{getattr(value, 'dtype', type(value).__name__)}{shape}"


def default_root() -> Path:
    """Where downloads and caches live: the folder in $PCKD_DATA; else data/downloads, in the clone of the repository
    that this package runs from, wherever a notebook or command is started, or without one under the current folder."""
    clone = Path(__file__).resolve().parents[1]
    here = clone if (clone / "pyproject.toml").is_file() else Path()
    return Path(os.environ.get("PCKD_DATA") or here / "data" / "downloads").expanduser()


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
    """Load one of `DATASETS`.

    shapes100 is drawn with `train_size` and `test_size` images (10,000 and 2,000 unless said); of any other
    data set these take a random part with its classes as evenly spread as possible. `seed` decides what is
    drawn or taken: the same arguments give the same data. `image_size` is the side in pixels, at least 8, to which
    stl10, tinyimagenet, imagenet and folders are scaled. imagenet, and a folder that would fill more than a quarter
    of the memory, stay in files, which `workers` processes read (None: one a CPU core, at most 8; 0: none).
    `val` and `val_seed`: see `Dataset.with_validation`.

    Raises ValueError (unknown name, impossible size, unusable folder), FileNotFoundError (no such folder) or
    OSError (failed download, damaged file); the message says what would be right.
    """
    if is_plug(name) and not name.startswith(WITH_PATH):
        return _plugged(name, train_size=train_size, test_size=test_size, image_size=image_size, workers=workers)
    root = default_root() if root is None else Path(root).expanduser()
    seed = _whole("seed", seed, least=0)
    workers = None if workers is None else _whole("workers", workers, least=0)
    image_size = _image_size(name, image_size)
    train: Split | Streamed
    test: Split | Streamed
    if name == "shapes100":
        classes = shapes.CLASSES
        train_size = _size("train_size", 10_000 if train_size is None else train_size, len(classes))
        test_size = _size("test_size", 2_000 if test_size is None else test_size, len(classes))
        train, test = _shapes100(root, train_size, test_size, seed)
    else:
        train, test, classes = _load(name, root, image_size, workers)
        train = _part("train_size", train, train_size, len(classes), seed)
        test = _part("test_size", test, test_size, len(classes), seed)
        if name.startswith("folder:") and (len(train) + len(test)) * math.prod(train.shape) <= memory_limit():
            assert isinstance(train, Streamed) and isinstance(test, Streamed)  # as folders are
            train, test = in_memory(train), in_memory(test)
    mean, std, normalisation = _PUBLISHED_STATISTICS.get(name.split(":")[0]) or statistics(train)
    data = Dataset(
        name=name,
        train=train,
        test=test,
        classes=classes,
        groups=_groups(name),
        mean=mean,
        std=std,
        normalisation=normalisation,
        default_views=1 if name == "digits" else 4,  # a 6 upside down is a 9
        options={"train_size": train_size, "test_size": test_size, "image_size": image_size, "seed": seed},
    )
    return data.with_validation(val, val_seed) if val else data


def _plugged(name: str, **sizes: int | None) -> Dataset:
    """The data set that a function of your own makes, "module:Name" or "file.py:Name"."""
    if given := [option for option, value in sizes.items() if value is not None]:
        raise ValueError(f"{given[0]} is not for data of your own: let '{name}' make it so")
    data = load_plug(name)()
    if not isinstance(data, Dataset):
        raise ValueError(f"'{name}' must return a Dataset, got {type(data).__name__}; see Dataset.from_torch")
    return data


def rebuild(about: Mapping[str, Any], root: str | Path | None = None, **changes: Any) -> Dataset:
    """The data set of a run once more.

    Parameters
    ----------
    about : dict
        "data" of its run.json.
    root, **changes
        As in `load_dataset`, in place of what the run had.

    Raises
    ------
    ValueError
        If the run was trained on data of your own; and what `load_dataset` raises.
    """
    options = {**about["options"], **changes}
    known = {"train_size", "test_size", "image_size", "workers", "seed", "val", "val_seed"}
    if unknown := options.keys() - known:
        raise ValueError(
            f"{about['name']} is data of your own, with option {min(unknown)!r}: hand over the data itself"
        )
    if not str(about["name"]).startswith(WITH_PATH) and about["name"] not in DATASETS:
        raise ValueError(
            f"there is no data set {about['name']!r}: if it is data of your own, hand over the data itself"
        )
    return load_dataset(about["name"], root, **options)


def memory_limit() -> float:
    """How many bytes the images of a folder may fill: a quarter of the machine's memory."""
    if not hasattr(os, "sysconf"):  # Windows
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 4


def _load(
    name: str, root: Path, image_size: int | None, workers: int | None
) -> tuple[Split | Streamed, Split | Streamed, tuple[str, ...]]:
    if name == "digits":
        return _digits()
    if name in ("cifar10", "cifar100"):
        return _cifar(name, root)
    if name == "fashion_mnist":
        return _fashion_mnist(root)
    if name == "stl10":
        return _stl10(root, image_size or 32)
    if name == "tinyimagenet":
        return _tiny_imagenet(root, image_size or 32)
    if name == "imagenet":
        return _imagenet(root / "imagenet", image_size or 224, workers)
    if isinstance(name, str) and name.startswith("imagenet:"):
        return _imagenet(_path_in(name), image_size or 224, workers)
    if isinstance(name, str) and name.startswith("folder:"):
        return _folder(_path_in(name), image_size, workers)
    check_dataset(name)  # says which names are known
    raise AssertionError(f"{name!r} is known, and not built")


# -------------------------------------------------------------------------------------- what all of them need


def _whole(what: str, value: int, least: int, why: str = "") -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{what} is {value!r}: it has to be a whole number") from None
    if number < least:
        raise ValueError(f"{what} is {number}: it has to be at least {least}{why}")
    return number


def _size(what: str, value: int, num_classes: int) -> int:
    return _whole(what, value, num_classes, " (the number of classes)")


_FIXED_SIZES = {"shapes100": 32, "digits": 16, "cifar10": 32, "cifar100": 32, "fashion_mnist": 28}


def _image_size(name: str, size: int | None) -> int | None:
    if size is None:
        return None
    size = _whole("image_size", size, least=8)
    if size != _FIXED_SIZES.get(name, size):
        raise ValueError(f"image_size is {size}: {name} has images of {_FIXED_SIZES[name]} pixels only")
    return size


def _part(what: str, split: Split | Streamed, size: int | None, num_classes: int, seed: int) -> Split | Streamed:
    """A random part in the original order, classes as evenly spread as the split allows."""
    if size is None:
        return split
    size = _size(what, size, num_classes)
    if size > len(split):
        raise ValueError(f"{what} is {size}: there are only {len(split)} images")
    return split.take(_spread(split.labels, size, num_classes, seed))


def _spread(labels: torch.Tensor, count: int, num_classes: int, seed: int) -> np.ndarray:
    """The places of `count` random samples, in order, with classes as evenly spread as there are samples."""
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = labels.cpu().numpy()[order]
    turn = np.empty(len(labels), np.int64)  # a sample's place among those of its class, in random order
    for label in range(num_classes):
        turn[shuffled == label] = np.arange((shuffled == label).sum())
    places: np.ndarray = np.sort(order[np.argsort(turn, kind="stable")[:count]])
    return places


def statistics(train: Split | Streamed) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """Mean and standard deviation of every channel; the latter at least 1/255, for images of one colour."""
    if isinstance(train, Streamed):
        sample = torch.linspace(0, len(train) - 1, min(1000, len(train))).round().long()
        images = torch.cat(list(train.read(sample.split(50))))
        source = f"computed on {len(sample):,} of the training images, evenly spread"
    else:
        images, source = train.images, "computed on the training images"
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = (share * values).sum()
        means.append(mean.item())
        stds.append(max((share * (values - mean) ** 2).sum().sqrt().item(), 1 / 255))
    return tuple(means), tuple(stds), source


_PUBLISHED_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "CIFAR-10, the usual published values"),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), "CIFAR-100, as in RepDistiller"),
    "tinyimagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262), "TinyImageNet, as in mdistiller"),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "ImageNet, as torchvision's published networks"),
}


def _groups(name: str) -> dict[str, tuple[str, ...]]:
    if name == "shapes100":
        return {
            "shape": tuple(shape for shape in shapes.SHAPES for _ in shapes.PATTERNS),
            "pattern": tuple(pattern for _ in shapes.SHAPES for pattern in shapes.PATTERNS),
        }
    if name == "cifar100":
        return {"superclass": tuple(_SUPERCLASSES[coarse] for coarse in _SUPERCLASS_OF_CLASS)}
    return {}


_SUPERCLASSES = (
    "aquatic mammals", "fish", "flowers", "food containers", "fruit and vegetables",
    "household electrical devices", "household furniture", "insects", "large carnivores",
    "large man-made outdoor things", "large natural outdoor scenes", "large omnivores and herbivores",
    "medium-sized mammals", "non-insect invertebrates", "people", "reptiles", "small mammals", "trees",
    "vehicles 1", "vehicles 2",
)  # fmt: skip
_SUPERCLASS_OF_CLASS = (
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7,
    6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10,
    16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16,
    12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
)  # fmt: skip


# ----------------------------------------------------------------------------------------- without a download


def _shapes100(root: Path, train_size: int, test_size: int, seed: int) -> tuple[Split, Split]:
    return (
        _drawn(root / f"shapes100-v{shapes.VERSION}-seed{seed}-train{train_size}.npz", train_size, (seed, 0)),
        _drawn(root / f"shapes100-v{shapes.VERSION}-seed{seed}-test{test_size}.npz", test_size, (seed, 1)),
    )


def _drawn(cache: Path, count: int, seed: tuple[int, int]) -> Split:
    """The images in the cache; where it is missing or damaged they are drawn, and left there if possible."""
    try:
        with np.load(cache) as file:  # a zip archive: its checksums are verified while reading
            return Split(
                torch.from_numpy(file["images"]),
                torch.from_numpy(file["labels"]),
                torch.from_numpy(file["difficulty"]),
            )
    except Exception:  # there is none, or it is damaged, which may raise almost anything
        pass
    images, labels, difficulty = shapes.generate(count, seed)
    partial_file = cache.with_suffix(f".{os.getpid()}.tmp")
    with suppress(OSError):  # a full or read-only disk: drawing again next time is no harm
        cache.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial_file, "wb") as file:
                np.savez(file, images=images, labels=labels, difficulty=difficulty)
            partial_file.replace(cache)
        finally:
            partial_file.unlink(missing_ok=True)
    return Split(torch.from_numpy(images), torch.from_numpy(labels), torch.from_numpy(difficulty))


def _digits() -> tuple[Split, Split, tuple[str, ...]]:
    """1,797 digits of 8×8 pixels in 17 shades, enlarged to 16×16: the networks halve them twice."""
    from sklearn.datasets import load_digits  # slow to import: only when asked for
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(_enlarged(digits.images.astype(np.int64)))[:, None]
    labels = torch.from_numpy(digits.target).long()
    rows = train_test_split(np.arange(len(labels)), test_size=450, stratify=digits.target, random_state=0)
    train, test = (Split(images[r], labels[r]) for r in rows)
    return train, test, tuple(str(digit) for digit in range(10))


def _enlarged(images: np.ndarray) -> np.ndarray:
    """Images of 17 shades, int64 (N, H, W), in twice their size and 256 grey levels: uint8 (N, 2·H, 2·W).

    Bilinear: along both axes every new pixel is three quarters of the nearest old one and a quarter of the next. In
    whole numbers, so that it is the same on every processor; halves are rounded to the even level.
    """
    for axis in (1, 2):
        before = np.take(images, [0, *range(images.shape[axis] - 1)], axis)
        after = np.take(images, [*range(1, images.shape[axis]), images.shape[axis] - 1], axis)
        pair = np.stack([3 * images + before, 3 * images + after], axis + 1)
        images = pair.reshape(*images.shape[:axis], -1, *images.shape[axis + 1 :])
    level, rest = np.divmod(255 * images, 16 * 16)
    enlarged: np.ndarray = level + ((rest > 128) | ((rest == 128) & (level % 2 == 1)))
    return enlarged.astype(np.uint8)


# -------------------------------------------------------------------------------------------------- downloads

_FASHION = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/"
_SOURCES = {  # file → address, where torchvision knows one of http alone; bytes
    "cifar-10-python.tar.gz": ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", 170_498_071),
    "cifar-100-python.tar.gz": ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", 169_001_437),
    "train-images-idx3-ubyte.gz": (f"{_FASHION}train-images-idx3-ubyte.gz", 26_421_880),
    "train-labels-idx1-ubyte.gz": (f"{_FASHION}train-labels-idx1-ubyte.gz", 29_515),
    "t10k-images-idx3-ubyte.gz": (f"{_FASHION}t10k-images-idx3-ubyte.gz", 4_422_102),
    "t10k-labels-idx1-ubyte.gz": (f"{_FASHION}t10k-labels-idx1-ubyte.gz", 5_148),
    "stl10_binary.tar.gz": ("https://cs.stanford.edu/~acoates/stl10/stl10_binary.tar.gz", 2_640_397_119),
    "tiny-imagenet-200.zip": ("https://cs231n.stanford.edu/tiny-imagenet-200.zip", 248_100_043),
}


def _cifar(name: str, root: Path) -> tuple[Split, Split, tuple[str, ...]]:
    from torchvision.datasets import CIFAR10, CIFAR100  # slow to import: only when asked for

    source = CIFAR10 if name == "cifar10" else CIFAR100
    meta = (source.meta["filename"], source.meta["md5"])
    _fetch_archive(name, root, source, [*source.train_list, *source.test_list, meta])
    folder = root / source.base_folder

    def split(files: Iterable[Iterable[str]]) -> Split:
        batches = [_arrays(folder / file) for file, _ in files]
        images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
        labels = [label for batch in batches for label in batch["labels" if name == "cifar10" else "fine_labels"]]
        return Split(torch.from_numpy(images), torch.tensor(labels))

    classes = tuple(_arrays(folder / source.meta["filename"])[source.meta["key"]])
    return split(source.train_list), split(source.test_list), classes


class _Arrays(pickle.Unpickler):
    """Reads numbers, texts and arrays of numbers, which is all that a CIFAR file is made of, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct")}
        if (module.replace("numpy._core", "numpy.core"), name) not in allowed:
            raise pickle.UnpicklingError(f"it wants to call '{module}.{name}'")
        return super().find_class(module, name)


def _arrays(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            arrays: dict[str, Any] = _Arrays(file, encoding="latin1").load()
            return arrays
    except pickle.UnpicklingError as error:
        raise OSError(f"{path} was refused: {downloads.one_line(error)}; delete it") from error


_STL10_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def _stl10(root: Path, side: int) -> tuple[Split, Split, tuple[str, ...]]:
    from torchvision.datasets import STL10

    class Labelled(STL10):
        train_list = STL10.train_list[:2]  # not the 2.8 GB without labels, which would be verified at every start

    _fetch_archive("stl10", root, Labelled, [*Labelled.train_list, *Labelled.test_list])
    train, test = (
        Split(
            _stack((fit(Image.fromarray(image), side) for image in part.data.transpose(0, 2, 3, 1)), len(part), side),
            torch.from_numpy(part.labels).long(),
        )
        for part in (Labelled(root, split="train"), Labelled(root, split="test"))
    )
    return train, test, _STL10_CLASSES


_TINY_IMAGENET_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


def _tiny_imagenet(root: Path, side: int) -> tuple[Split, Split, tuple[str, ...]]:
    """The training images of every class by file name, the validation images in the order of their annotations.

    At the pace of 5,200 made images, one thread of an AMD EPYC decodes the 110,000 in some 25 s.
    """
    archive = root / "tiny-imagenet-200.zip"
    _fetch("tinyimagenet", archive, _TINY_IMAGENET_MD5)
    with zipfile.ZipFile(archive) as file:

        def table(name: str) -> list[list[str]]:
            return [line.split("\t") for line in file.read(f"{archive.stem}/{name}").decode().splitlines()]

        def split(rows: list[tuple[int, str]]) -> Split:
            images = (fit(open_image(file.read(name)), side) for _, name in rows)
            return Split(_stack(images, len(rows), side), torch.tensor([label for label, _ in rows]))

        wnids = [row[0] for row in table("wnids.txt")]
        label_of = {wnid: label for label, wnid in enumerate(wnids)}
        photographs = [name for name in file.namelist() if name.endswith(".JPEG")]
        train = sorted((label_of[name.split("/")[2]], name) for name in photographs if name.split("/")[1] == "train")
        test = [
            (label_of[wnid], f"{archive.stem}/val/images/{name}") for name, wnid, *_ in table("val/val_annotations.txt")
        ]
        words = {wnid: words.split(",")[0] for wnid, words in table("words.txt")}
        count = Counter(words[wnid] for wnid in wnids)
        classes = (words[wnid] if count[words[wnid]] == 1 else f"{words[wnid]} ({wnid})" for wnid in wnids)
        return split(train), split(test), tuple(classes)


def _fashion_mnist(root: Path) -> tuple[Split, Split, tuple[str, ...]]:
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.mnist import read_image_file, read_label_file

    raw = root / "FashionMNIST" / "raw"
    for name, md5 in FashionMNIST.resources:
        packed, unpacked = raw / name, (raw / name).with_suffix("")
        if not unpacked.is_file():
            _fetch("fashion_mnist", packed, md5)
            _gunzip(packed, unpacked)
        _check_idx(unpacked)
    train, test = (
        Split(
            read_image_file(raw / f"{part}-images-idx3-ubyte")[:, None].contiguous(),
            read_label_file(raw / f"{part}-labels-idx1-ubyte").long(),
        )
        for part in ("train", "t10k")
    )
    return train, test, tuple(FashionMNIST.classes)


def _gunzip(packed: Path, unpacked: Path) -> None:
    partial_file = unpacked.with_name(f".{unpacked.name}.{os.getpid()}.tmp")
    try:
        with gzip.open(packed) as source, open(partial_file, "wb") as file:
            shutil.copyfileobj(source, file)
        partial_file.replace(unpacked)
    except (EOFError, zlib.error) as error:
        raise OSError(f"{packed} was not unpacked: {downloads.one_line(error)}") from error
    finally:
        partial_file.unlink(missing_ok=True)


def _fetch_archive(name: str, root: Path, source: Any, files: Iterable[Iterable[str]]) -> None:
    """Download and unpack the archive of torchvision's `source`, unless its `files`, of name and md5, are all there."""
    archive = root / source.filename
    unpacked = {root / source.base_folder / file: md5 for file, md5 in files}
    if all(file.is_file() and _md5(file) == md5 for file, md5 in unpacked.items()):
        return
    if not archive.is_file():  # from which damaged unpacked files would be replaced
        for file, md5 in unpacked.items():
            if file.is_file():
                _check_md5(file, md5)
    _fetch(name, archive, source.tgz_md5)
    downloads.unpack(archive, root)


def _fetch(name: str, path: Path, md5: str) -> None:
    """Check the file at `path`, or download it. A failed download says how to do it by hand."""
    if path.is_file():
        return _check_md5(path, md5)
    url, size = _SOURCES[path.name]
    try:
        downloads.download(url, path, partial(_check_md5, expected=md5, remedy="it was not kept"), most=size)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        by_hand = f"put {path.name} (md5 {md5}) from {url} into {path.parent}"
        raise ConnectionError(f"could not download {name} ({reason}): try again, or {by_hand}") from error


def _md5(path: Path) -> str:
    from torchvision.datasets.utils import calculate_md5

    return str(calculate_md5(path))


def _check_md5(path: Path, expected: str, remedy: str = "delete it to fetch it") -> None:
    if (found := _md5(path)) != expected:
        raise OSError(f"{path} is damaged: its md5 is {found}, expected {expected}; {remedy}")


def _check_idx(path: Path) -> None:
    """Compare the size of an unpacked MNIST file with the one its header promises."""
    with open(path, "rb") as file:
        header = file.read(4)
        sizes = np.frombuffer(file.read(4 * header[3] if len(header) == 4 else 0), ">u4")
    expected = 4 + 4 * len(sizes) + int(np.prod(sizes, dtype=np.int64))
    if len(sizes) == 0 or path.stat().st_size != expected:
        size = path.stat().st_size
        raise OSError(f"{path} is damaged: it has {size} bytes, its header says {expected}; delete it")


# ------------------------------------------------------------------------------------------ folders of images

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_TREE = "folder:PATH needs PATH/train/CLASS and PATH/test/CLASS"


def _path_in(name: str) -> Path:
    kind, _, path = name.partition(":")
    if not path:
        raise ValueError(f"'{name}' lacks a path: write {kind}:PATH")
    return Path(path).expanduser()


def _folder(folder: Path, image_size: int | None, workers: int | None) -> tuple[Streamed, Streamed, tuple[str, ...]]:
    """PATH/train/CLASS/* and PATH/test/CLASS/* as RGB images of one size, still in their files.

    Unless given, the size is the most frequent one among the training images if that is square and at most 64×64,
    else 32×32; images of another size are scaled until the shorter side fits, and cut to the middle.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: {_TREE}")
    train, test, classes = _class_folders(folder / "train", folder / "test", side=image_size or 32, workers=workers)
    if image_size is None:
        sizes = Counter(read_image(train.path(row), lambda image: image.size) for row in range(len(train)))
        (width, height), _ = sizes.most_common(1)[0]
        if width == height <= 64:
            train, test = (dataclasses.replace(part, side=width) for part in (train, test))
    return train, test, classes


def _imagenet(folder: Path, side: int, workers: int | None) -> tuple[Streamed, Streamed, tuple[str, ...]]:
    """PATH/train/CLASS/* and PATH/val/CLASS/*, or test for val; unpacked first where only the archives are there."""
    names = {"train": ("train",), "val": ("val", "test")}
    if missing := [part for part in names if not any((folder / name).is_dir() for name in names[part])]:
        _unpack_imagenet(folder, missing)
    test = folder / "val" if (folder / "val").is_dir() else folder / "test"
    return _class_folders(folder / "train", test, side=side, random_crop=True, workers=workers)


def _unpack_imagenet(folder: Path, parts: list[str]) -> None:
    """Let torchvision verify and unpack the archives of `parts`, train or val or both, through tarfile's data filter.

    A part gets its name when it is complete, so that one whose unpacking was interrupted is not taken for whole.
    """
    from torchvision.datasets import imagenet

    downloads.check_tarfile()  # before anybody is sent for the archives
    archives = {folder / file: md5 for file, md5 in imagenet.ARCHIVE_META.values()}
    needed = [folder / imagenet.ARCHIVE_META[part][0] for part in (*parts, *["devkit"] * ("val" in parts))]
    if not all(archive.is_file() for archive in needed):
        raise FileNotFoundError(
            f"there is no {' and no '.join(str(folder / part) for part in parts)}: ImageNet has to be obtained by "
            f"hand, from image-net.org; put {', '.join(archive.name for archive in archives)} into {folder}, "
            f"or images into {folder / 'train' / 'CLASS'} and {folder / 'val' / 'CLASS'}"
        )
    try:
        with downloads.careful_tarfile():
            if "val" in parts:
                imagenet.parse_devkit_archive(folder)
            for part in parts:
                unfinished = folder / f"{part}.unfinished"
                shutil.rmtree(unfinished, ignore_errors=True)
                unpack = imagenet.parse_train_archive if part == "train" else imagenet.parse_val_archive
                try:
                    unpack(folder, folder=unfinished.name)
                    unfinished.rename(folder / part)
                finally:
                    shutil.rmtree(unfinished, ignore_errors=True)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise OSError(f"the archives in {folder} were not unpacked: {downloads.one_line(error)}") from error
    except RuntimeError:  # which does not say what it found
        for archive in needed:
            _check_md5(archive, archives[archive], "obtain it again")
        raise


def _class_folders(train: Path, test: Path, **options: Any) -> tuple[Streamed, Streamed, tuple[str, ...]]:
    """The splits in two folders of class folders, and the classes. options: of `Streamed`."""
    train_files, test_files = _files_by_class(train), _files_by_class(test)
    classes = tuple(train_files)
    if len(classes) < 2:
        raise ValueError(f"{train} has one class folder, {classes[0]}: two or more are needed")
    if unknown := [name for name in test_files if name not in train_files]:
        raise ValueError(f"{test} has class folders that train lacks: {', '.join(unknown)}")

    def split(folder: Path, files: dict[str, list[str]]) -> Streamed:
        names = np.array([os.fsencode(f"{name}/{file}") for name in files for file in files[name]])
        counts = torch.tensor([len(files.get(name, ())) for name in classes])
        return Streamed(folder, names, torch.arange(len(classes)).repeat_interleave(counts), **options)

    return split(train, train_files), split(test, test_files), classes


def _files_by_class(folder: Path) -> dict[str, list[str]]:
    """The image files of every class, both sorted by name; what is hidden or no image is left out."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: {_TREE}")
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    if not classes:
        raise ValueError(f"{folder} has no class folder: images belong into {folder / 'CLASS'}")
    for name in (str(folder), *classes):
        if not _is_utf8(name):  # run.json could not name it
            raise ValueError(f"the name of the folder {ascii(name)} is not in UTF-8: rename it")
    files = {}
    for name in classes:
        names = sorted(entry.name for entry in os.scandir(folder / name) if entry.is_file())
        files[name] = [n for n in names if n[0] != "." and n.lower().endswith(_EXTENSIONS)]
        if not files[name]:
            raise ValueError(f"{folder / name} has no image: expected are files in {', '.join(_EXTENSIONS)}")
    return files


def _is_utf8(name: str) -> bool:
    """Whether a name, as the system gave it, can be written down."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def in_memory(split: Streamed) -> Split:
    """The same split with its images in memory, scaled and cut by `streams.fit`."""
    images = (read_image(split.path(row), partial(fit, side=split.side)) for row in range(len(split)))
    return Split(_stack(images, len(split), split.side), split.labels, ids=split.names)


def _stack(images: Iterable[Image.Image], count: int, side: int) -> torch.Tensor:
    """RGB images of one size as uint8 (count, 3, side, side)."""
    pixels = np.empty((count, 3, side, side), np.uint8)
    for row, image in enumerate(images):  # one thread: for small images a pool was measured to be twice as slow
        pixels[row] = np.asarray(image).transpose(2, 0, 1)
    return torch.from_numpy(pixels)
