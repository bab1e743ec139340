"""Data sets as plain tensors: all images of a split in one uint8 tensor, ready to be moved to a device.

Images that are too large for that stay in their files (`streaming.Streamed`). Both kinds of splits have the same
interface.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from ..catalogue import check_normalisation
from ..config import FORBIDDEN_OPTIONS
from ..html import table
from ..provenance import code_fingerprint
from ..validation import Positive, Real, Seed, Share, Views, check, checked
from .streaming import READING, Streamed, size_prints

MAX_COMPARED = 10_000  # files, see `shared_images`: reading more takes long


@dataclass(frozen=True, eq=False)
class Split:
    """A split whose images are in memory.

    Parameters
    ----------
    images : uint8 Tensor of shape (N, C, H, W)
    labels : int64 Tensor of shape (N,)
    difficulty : float32 Tensor of shape (N,), in [0, 1], optional
        Difficulty of each image, where it is known.
    ids : array of shape (N,), optional
        Name of each image, such as its file name.

    Raises
    ------
    TypeError
        If images are not a uint8 tensor with four dimensions, or labels are not whole numbers of shape (N,).
    ValueError
        If the number of labels or ids differs from the number of images.
    """

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
        """Device of the labels, where `read` puts the batches."""
        return self.labels.device

    @property
    def padding(self) -> int:
        """Pixels of padding for the random crop: an eighth of the shorter side, such as 4 for 32 pixels."""
        return min(self.shape[1:]) // 8

    def read(
        self, batches: Iterable[torch.Tensor], *, seed: int | None = None, epoch: int | None = None
    ) -> Iterator[torch.Tensor]:
        """Yield the images of every batch, on `device`.

        Parameters
        ----------
        batches : iterable of int64 Tensor of shape (B,)
            Positions of images.
        seed, epoch : int, optional
            They matter only to images that are cropped while they are read, see `Streamed`.

        Yields
        ------
        uint8 Tensor of shape (B, C, H, W)
        """
        return (self.images[index.to(self.images.device)].to(self.device, non_blocking=True) for index in batches)

    def to(self, device: torch.device | str) -> Split:
        """Return the same split with its tensors on `device`.

        Images that need more than `device_memory` stay where they are. `read` then moves them to the device batch by
        batch.

        Parameters
        ----------
        device : torch.device or str

        Returns
        -------
        Split
        """
        difficulty = None if self.difficulty is None else self.difficulty.to(device)
        images = self.images.to(device) if self.images.nbytes <= device_memory(device) else self.images
        return dataclasses.replace(self, images=images, labels=self.labels.to(device), difficulty=difficulty)

    def take(self, rows: np.ndarray) -> Split:
        """Return the part of the split at some positions, in the given order.

        Parameters
        ----------
        rows : int64 array of shape (n,)
            Positions of images.

        Returns
        -------
        Split
            It has n images.
        """
        difficulty = None if self.difficulty is None else self.difficulty[rows]
        ids = None if self.ids is None else self.ids[rows]
        return dataclasses.replace(
            self, images=self.images[rows], labels=self.labels[rows], difficulty=difficulty, ids=ids
        )

    def feed(self, digest: Any) -> None:
        """Update a hash with every pixel and label, and with the code of the class if it is your own subclass.

        Parameters
        ----------
        digest : hashlib object
        """
        if code := code_fingerprint(type(self)):
            digest.update(code.encode())
        for tensor in (self.images, self.labels):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.cpu().contiguous().numpy())


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A training and a test split, with class names, statistics and other information about them.

    Parameters
    ----------
    name : str
    train, test : Split or Streamed
    classes : tuple of str
        Names of the classes, all different.
    groups : dict of str to tuple of str
        Maps the name of a grouping to the coarse name of every class.
    mean, std : tuple of float
        One number per channel, for pixels scaled to [0, 1].
    normalisation : str
        Where mean and std come from.
    default_views : int
        4 if a quarter turn does not change the class, else 1.
    options : dict
        Arguments that `load_dataset` needs, besides name and root, to build the same data again.
    val : Split or Streamed, optional
        A validation split.
    notes : dict of str to str
        More rows for the table that a notebook shows, such as which files were skipped.

    Raises
    ------
    ValueError
        If two classes have the same name or names that look the same, a split has no images, or a label is not the
        number of a class. If std is not in (0, 1], mean is not in [0, 1], or one of them does not have one number per
        channel. If `options` contains "name", "root" or "workers".
    TypeError
        If `options` cannot be written as JSON.
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
    notes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_class_names(self.classes)
        for name in ("train", *self.held_out):
            if not len(getattr(self, name)):
                raise ValueError(f"{name} of {self.name} has no images")
        check(str, name=self.name)
        object.__setattr__(self, "default_views", checked(Views, "default_views", self.default_views))
        for name, kind in (("mean", Real), ("std", Positive)):
            values = checked(tuple[kind, ...], name, getattr(self, name))  # type: ignore[valid-type]
            if len(values) != self.channels:
                raise ValueError(f"{name} must have one number per channel, {self.channels}, got {len(values)}")
            object.__setattr__(self, name, values)
        check_normalisation(self.mean, self.std)
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
        if wrong := self.options.keys() & FORBIDDEN_OPTIONS:
            raise ValueError(f"options of a data set can't have {min(wrong)!r}: they go with the run to other machines")

    @classmethod
    def from_arrays(cls, train: tuple[Any, Any], test: tuple[Any, Any], **options: Any) -> Dataset:
        """Build a data set from images and labels in memory.

        Parameters
        ----------
        train, test : pair (images, labels)
            images : array or tensor of shape (N, H, W), (N, C, H, W) or (N, H, W, C), uint8 or floats in [0, 1].
            labels : N whole numbers that count the classes from 0, or N class names.
        val : pair, optional
            A validation split.
        classes : sequence of str, optional
            Names of the classes. Default: the sorted labels themselves if they are text, else their numbers, from 0 to
            the largest label. Labels of all splits must be of the same kind, unless classes are given.
        name : str
            Default "arrays".
        mean, std : sequence of float, optional
            One number per channel, for pixels in [0, 1]. Default: computed on the training images.
        default_views : int
            4 if a quarter turn does not change the class, else 1. Default 4. It is always 1 if images are not square.
        ids : sequence of str, optional
            Name of each training image. The names are kept with the run.

        Returns
        -------
        Dataset

        Raises
        ------
        TypeError
            If a split is not a pair, or images or labels have another type.
        ValueError
            If shapes do not match, a label is not one of the classes, test has a class that train lacks, or images are
            floats outside [0, 1], as after normalisation.

        Examples
        --------
        >>> data = Dataset.from_arrays((x_train, y_train), (x_test, y_test), classes=["cat", "dog"])
        """
        from .own import from_arrays

        return from_arrays(train, test, **options)

    @classmethod
    def from_torch(cls, train: Any, test: Any, **options: Any) -> Dataset:
        """Build a data set from two `torch.utils.data.Dataset`, read once into memory.

        Parameters
        ----------
        train, test : torch.utils.data.Dataset
            Their items are (image, label). An image is a PIL image, an array or a tensor, uint8 or floats in [0, 1].
            All images have the same size. Pass random transforms to `distill(..., augment=...)` instead.
        val : torch.utils.data.Dataset, optional
            A validation split.
        classes, name, mean, std, default_views
            As in `from_arrays`. Default of classes: `train.classes`, if it exists. Default of name: the class name of
            `train`.

        Notes
        -----
        If a data set has names in `classes`, its labels are their positions there. So train and test may have lists of
        their own. The names are also found if the data set is within a `Subset` or a `ConcatDataset`.

        Returns
        -------
        Dataset

        Raises
        ------
        TypeError
            If a split is not a data set with `__getitem__` and `__len__`, or images or labels have another type.
        ValueError
            If a split has no images, images have different sizes, a label is not one of the classes, test has a class
            that train lacks, or data sets with different classes are put together.

        Examples
        --------
        >>> data = Dataset.from_torch(FashionMNIST("data"), FashionMNIST("data", train=False))
        """
        from .own import from_torch

        return from_torch(train, test, **options)

    @classmethod
    def from_table(cls, table: Any, **options: Any) -> Dataset:
        """Build a data set from a table of image files, with one row per image: its path, class and split.

        Parameters
        ----------
        table : path of a CSV file, or DataFrame
        image, label, split : str
            Names of the columns. Default "path", "class" and "split". The split column has "train", "test" or "val".
            The cells of a CSV file are read as text, so that class 001 is called "001".
        root : path, optional
            The folder that the paths are relative to. Default: the folder of the CSV file.
        image_size : int
            Side in pixels to which images are scaled and cropped. Default 32.
        workers : int, optional
            Number of processes that read images if these do not fit into memory.
        classes, name, mean, std, default_views
            As in `from_arrays`. Default of name: the name of the CSV file, else "table". Default of classes: what is in
            the class column. Whole numbers are names too, sorted as numbers. So classes numbered from 0 without gaps
            keep their numbers. If classes are given and the column has whole numbers that are none of these names, the
            numbers are positions in classes.

        Returns
        -------
        Dataset

        Raises
        ------
        FileNotFoundError
            If the table or an image is missing.
        ValueError
            If the table is not in CSV and UTF-8, a column is missing, a cell is empty, the split column has another
            value, train or test has no images, or test has a class that train lacks.

        Examples
        --------
        >>> data = Dataset.from_table("birds.csv", image="file", label="species", image_size=64)
        """
        from .own import from_table

        return from_table(table, **options)

    @property
    def held_out(self) -> tuple[str, ...]:
        """Names of the splits that are not used for training: "test", and "val" if there is one."""
        return ("test",) if self.val is None else ("test", "val")

    def with_validation(self, share: float, seed: int = 0) -> Dataset:
        """Return the same data set with a part of its training images held out as `val`.

        Parameters
        ----------
        share : float in (0, 1)
            Share of the training images to hold out. It is the same for all classes, as far as whole images allow, and
            both parts get at least one image of every class.
        seed : int
            Decides which images are held out.

        Returns
        -------
        Dataset

        Raises
        ------
        ValueError
            If there is a validation split already, `share` is not in (0, 1), one of the two parts would have fewer
            images than classes, or a class has fewer than two images.
        TypeError
            If `share` is not a number.
        """
        if self.val is not None:
            raise ValueError(f"{self.name} has a validation split already, of {len(self.val):,} images: leave val out")
        share, seed = checked(Share, "val", share), checked(Seed, "val_seed", seed)
        count = round(share * len(self.train))
        if min(count, len(self.train) - count) < self.num_classes:
            fewer = f"{len(self.train) - count} + {count} images for {self.num_classes} classes"
            raise ValueError(f"val={share:g} of {self.name} leaves {fewer}: each part needs one per class")
        counts = torch.bincount(self.train.labels.cpu(), minlength=self.num_classes).tolist()
        if min(counts) < 2:
            few = counts.index(min(counts))
            raise ValueError(
                f"val={share:g} needs two training images of every class, {self.name} has {counts[few]} of "
                f"{self.classes[few]!r}"
            )
        chosen = stratified(self.train.labels, count, self.num_classes, seed)
        rest = np.setdiff1d(np.arange(len(self.train)), chosen)
        options = {**self.options, "val": share, "val_seed": seed}
        return dataclasses.replace(self, train=self.train.take(rest), val=self.train.take(chosen), options=options)

    def __repr__(self) -> str:
        height, width = self.size
        images = f"{len(self.train):,} + {len(self.test):,} images of {self.channels}×{height}×{width}"
        return f"Dataset({self.name!r}: {images}, {self.num_classes} classes)"

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows for a cell that ends in a data set."""
        height, width = self.size
        shown = ", ".join(self.classes[:10]) + ", …" * (self.num_classes > 10)
        rows = {
            **{f"{name} images": f"{len(getattr(self, name)):,}" for name in ("train", *self.held_out)},
            "image": f"{self.channels} × {height} × {width}",
            "classes": f"{self.num_classes}: {shown}",
            "mean": ", ".join(f"{value:.4f}" for value in self.mean),
            "std": ", ".join(f"{value:.4f}" for value in self.std),
            "mean and std": self.normalisation,
            "views": self.default_views,
            **self.notes,
            "fingerprint": self.fingerprint,
        }
        return table(self.name, rows)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def channels(self) -> int:
        """Number of channels of an image."""
        return self.train.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        return self.train.shape[1:]

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any pixel, label or class name.

        For a streamed data set, they are computed from file names within the folder, file sizes in bytes, labels, class
        names and image size instead. So a different image with the same name and size is not noticed. The same images
        in memory have another fingerprint.
        """
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for name in ("train", *self.held_out):
            getattr(self, name).feed(digest)
        return digest.hexdigest()[:16]

    @cached_property
    def file_prints(self) -> dict[str, Any] | None:
        """What tells a few repaired files from another data set; None if no split is streamed.

        "reading" is the version of how image files are read. "names" changes with any file name, label, class name or
        the image size. "sizes" is `streaming.size_prints`, of which one changed file changes one part.
        """
        splits = [getattr(self, name) for name in ("train", *self.held_out)]
        streamed = [split for split in splits if isinstance(split, Streamed)]
        if not streamed:
            return None
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for split in splits:
            split.feed_names(digest) if isinstance(split, Streamed) else split.feed(digest)
            digest.update(split.labels.cpu().numpy())
        return {"reading": READING, "names": digest.hexdigest()[:16], "sizes": size_prints(streamed)}

    def to(self, device: torch.device | str) -> Dataset:
        """Return the same data set with its tensors on `device`.

        Parameters
        ----------
        device : torch.device or str

        Returns
        -------
        Dataset
        """
        moved = {name: getattr(self, name).to(device) for name in ("train", *self.held_out)}
        return dataclasses.replace(self, **moved)


def check_class_names(classes: Sequence[str]) -> None:
    """Check that all classes have different names.

    Parameters
    ----------
    classes : sequence of str

    Raises
    ------
    ValueError
        If two names are equal, or look equal: because Unicode spells a letter such as é in two ways, or because of
        spaces around a name.
    """
    if doubled := [name for name, count in Counter(classes).items() if count > 1]:
        raise ValueError(f"two classes are called {doubled[0]!r}")
    seen: dict[str, str] = {}
    for name in classes:
        other = seen.setdefault(unicodedata.normalize("NFC", name).strip(), name)
        if other != name:
            raise ValueError(f"the classes {ascii(other)} and {ascii(name)} look the same: rename one of them")


def doubts(data: Dataset) -> list[str]:
    """Return what makes the accuracy of a network on a data set doubtful, such as test images that are in train too.

    Images of streamed splits are compared as files, and only if there are fewer than `MAX_COMPARED`.

    Parameters
    ----------
    data : Dataset

    Returns
    -------
    list of str
        One line each.
    """
    lines = []
    counts = torch.bincount(data.train.labels.cpu(), minlength=data.num_classes)
    if lacking := (counts == 0).nonzero().flatten().tolist():
        lines.append(
            f"train has no images of {len(lacking):,} of {data.num_classes:,} classes, such as "
            f"{data.classes[lacking[0]]!r}: labels that are numbers count the classes from 0"
        )
    for name in data.held_out:
        split = getattr(data, name)
        if len(found := split.labels.unique()) == 1 < data.num_classes:
            lines.append(f"{name} has images of one class only, {data.classes[int(found)]!r}")
        if count := shared_images(data.train, split):
            lines.append(f"{count:,} of {len(split):,} {name} images are also in train")
    return lines


def shared_images(train: Split | Streamed, other: Split | Streamed) -> int:
    """Count the images of a split that are also in train: the same pixels, or the same bytes of streamed files.

    Parameters
    ----------
    train, other : Split or Streamed

    Returns
    -------
    int
        0 if they were not compared: one is in memory and the other streamed, there are `MAX_COMPARED` streamed files
        or more, or one of them cannot be read.
    """
    if isinstance(train, Split) and isinstance(other, Split):
        ours, theirs = (_hashes(map(np.ndarray.tobytes, split.images.cpu().numpy())) for split in (train, other))
    elif isinstance(train, Streamed) and isinstance(other, Streamed) and len(train) + len(other) < MAX_COMPARED:
        try:
            ours, theirs = _file_hashes(train, other)
        except OSError:  # reading the image will say why
            return 0
    else:
        return 0
    known = set(ours)
    return sum(image in known for image in theirs)


def _file_hashes(*splits: Streamed) -> list[list[bytes]]:
    """Return a hash of every file whose size in bytes occurs in all splits."""
    files = [{path: path.stat().st_size for path in map(split.path, range(len(split)))} for split in splits]
    common = set.intersection(*(set(sizes.values()) for sizes in files))
    return [_hashes(path.read_bytes() for path, size in sizes.items() if size in common) for sizes in files]


def _hashes(contents: Iterable[bytes]) -> list[bytes]:
    return [hashlib.blake2b(content).digest() for content in contents]


def device_memory(device: torch.device | str) -> float:
    """Return how many bytes of images may be stored on a device.

    Parameters
    ----------
    device : torch.device or str

    Returns
    -------
    float
        Half of the free memory of a GPU, in bytes. Infinity for any other device.
    """
    device = torch.device(device)
    return torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else math.inf


def _checked_labels(labels: Any, count: int) -> torch.Tensor:
    """Return labels as int64, or raise TypeError or ValueError unless there is one whole number per image."""
    try:
        labels = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:  # torch says which dtypes it could convert
        raise TypeError(f"labels must be whole numbers of shape (N,), got {_kind(labels)}") from error
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool or labels.ndim != 1:
        hint = "one-hot labels become numbers by labels.argmax(1)" if labels.shape[1:] != (1,) else "give labels[:, 0]"
        hint = f": {hint}" * (labels.ndim == 2)
        raise TypeError(f"labels must be whole numbers of shape (N,), got {_kind(labels)}{hint}")
    if len(labels) != count:
        raise ValueError(f"there must be one label per image: {count} images, {len(labels)} labels")
    numbers: torch.Tensor = labels.long()
    return numbers


def _kind(value: Any) -> str:
    """Describe the type and shape of a value, for error messages."""
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    return f"{getattr(value, 'dtype', type(value).__name__)}{shape}"


def evenly_spread(labels: torch.Tensor, count: int, num_classes: int, seed: int) -> np.ndarray:
    """Choose random samples, spread as evenly over the classes as the labels allow.

    Parameters
    ----------
    labels : int64 Tensor of shape (N,)
    count : int
        Number of samples to choose.
    num_classes : int
    seed : int

    Returns
    -------
    int64 array of shape (count,)
        Positions of the samples, in ascending order.
    """
    return _choose(labels, count, num_classes, seed, np.arange)


def stratified(labels: torch.Tensor, count: int, num_classes: int, seed: int) -> np.ndarray:
    """Choose random samples, about the same share of every class, and at least one of every class but not all.

    If all classes have the same number of samples, these are the samples that `evenly_spread` chooses.

    Parameters
    ----------
    labels : int64 Tensor of shape (N,)
        At least two samples of every class.
    count : int
        Number of samples to choose, from num_classes to N − num_classes.
    num_classes : int
    seed : int

    Returns
    -------
    int64 array of shape (count,)
        Positions of the samples, in ascending order.
    """
    return _choose(labels, count, num_classes, seed, partial(np.linspace, 0, 1))


def _choose(
    labels: torch.Tensor, count: int, num_classes: int, seed: int, ranks: Callable[[int], np.ndarray]
) -> np.ndarray:
    """Return the positions of the samples that rank first, in ascending order.

    The samples of each class are put in random order. `ranks` gives n of them their ranks.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = labels.cpu().numpy()[order]
    rank = np.empty(len(labels))
    for label in range(num_classes):
        rank[shuffled == label] = ranks((shuffled == label).sum())
    places: np.ndarray = np.sort(order[np.argsort(rank, kind="stable")[:count]])
    return places


def statistics(train: Split | Streamed) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """Compute the mean and standard deviation of every channel.

    Of streamed images, at most 1,000 are read, evenly spaced over the split.

    Parameters
    ----------
    train : Split or Streamed

    Returns
    -------
    mean : tuple of float
        One number per channel, for pixels scaled to [0, 1].
    std : tuple of float
        One number per channel. At least 1/255, so that images of a single colour can be normalised.
    source : str
        Which images the numbers were computed on.
    """
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
