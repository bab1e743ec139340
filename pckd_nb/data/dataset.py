"""The class `Dataset`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch

from ..catalogue import check_noise, check_normalisation
from ..config import FORBIDDEN_OPTIONS
from ..html import table
from ..validation import Positive, PositiveFraction, Real, Seed, Views, check, checked
from . import noise, own
from .checks import check_class_names
from .split import Split, hash_split, stratified_sample
from .streaming import READER_VERSION, Streamed, file_size_fingerprint

# The test split may be None, see `Dataset.without_test`. With the type Any, type checkers do not complain where it is
# used, because almost every data set has one.
MaybeMissing: TypeAlias = Any


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A training split, a test split, and their classes and pixel statistics.

    `load_dataset` returns a data set by its name. `from_arrays`, `from_torch` and `from_table` build one from your own
    images.

    Parameters
    ----------
    name : str
    train : Split or Streamed
    test : Split or Streamed or None
        None if the test images must not be seen, see `without_test`. There is a validation split then.
    classes : tuple of str
        Names of the classes, all different.
    groups : dict of str to tuple of str
        Coarser classes. Each key is the name of a grouping, and its tuple has one group per class. For the classes
        "cat", "dog" and "car": {"kind": ("animal", "animal", "vehicle")}.
    mean, std : tuple of float
        One number per channel, for pixels scaled to [0, 1].
    normalisation : str
        Says where mean and std come from.
    default_views : int
        Number of views (rotated copies) of each image in training, unless the user chooses another number. 4 if the
        class stays the same when an image is rotated by 90 degrees, else 1.
    options : dict
        Arguments with which `load_dataset` loads the same data again. Name, root and workers are left out.
    val : Split or Streamed, optional
        A validation split.
    notes : dict of str to str
        More rows for the table that a notebook shows.

    Raises
    ------
    ValueError
        If a split has no images, there is neither a test split nor a validation split, a class name occurs twice, or a
        label, mean, std or option is not valid.
    TypeError
        If an argument has another type, or JSON cannot store `options`.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> data.train.images.shape
    torch.Size([32, 1, 16, 16])
    """

    name: str
    train: Split | Streamed
    test: Split | Streamed | MaybeMissing
    classes: tuple[str, ...]
    groups: dict[str, tuple[str, ...]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    normalisation: str
    default_views: int = 4
    options: dict = field(default_factory=dict)
    val: Split | Streamed | None = None
    notes: dict[str, str] = field(default_factory=dict)

    from_arrays = classmethod(own.from_arrays)
    from_torch = classmethod(own.from_torch)
    from_table = classmethod(own.from_table)

    def __post_init__(self) -> None:
        check_class_names(self.classes)
        if not self.held_out:
            raise ValueError(f"{self.name} has neither test images nor a validation split: give one of them")
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
        labels_of = {name: getattr(self, name).labels for name in ("train", *self.held_out)}
        if self.train.true_labels is not None:
            labels_of["train.true_labels"] = self.train.true_labels
        for name, labels in labels_of.items():
            if (  # labels on a GPU were usually checked before `to` moved them there
                labels.device.type == "cpu"
                and len(labels)
                and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes
            ):
                found = f"{int(labels.min())} to {int(labels.max())}"
                raise ValueError(f"labels of {name} must be from 0 to {self.num_classes - 1}, got {found}")
        try:
            json.dumps(self.options)
        except (TypeError, ValueError) as error:
            raise TypeError(f"options must have values that JSON can store: {error}") from error
        if forbidden := self.options.keys() & FORBIDDEN_OPTIONS:
            raise ValueError(
                f"options must not contain {min(forbidden)!r}: it may differ on another machine, so leave it out"
            )

    @property
    def held_out(self) -> tuple[str, ...]:
        """Names of the splits that are not used for training: "test" and "val", or only one of them."""
        return tuple(name for name in ("test", "val") if getattr(self, name) is not None)

    def with_validation(self, share: float, seed: int = 0) -> Dataset:
        """Return the same data set, with some training images moved to a new validation split.

        Validation images have their true labels. If the data set has label noise, it is made again for the images that
        are left, so the order of `with_validation` and `with_label_noise` does not matter.

        Error messages call the arguments `val` and `val_seed`, as in `load_dataset`.

        Parameters
        ----------
        share : float, in (0, 1)
            Share of the training images to move. It is about the same in each class. Each class keeps at least one
            training image and gets at least one validation image.
        seed : int
            Decides which images are moved.

        Returns
        -------
        Dataset

        Raises
        ------
        ValueError
            If there is a validation split already, `share` is not in (0, 1), or there are too few images.
        """
        if self.val is not None:
            raise ValueError(f"{self.name} already has a validation split of {len(self.val):,} images: do not pass val")
        share, seed = checked(PositiveFraction, "val", share), checked(Seed, "val_seed", seed)
        count = round(share * len(self.train))
        if min(count, len(self.train) - count) < self.num_classes:
            raise ValueError(
                f"val={share:g} splits the training images of {self.name} into {len(self.train) - count} + {count}, "
                f"but both parts need an image of each of the {self.num_classes} classes: change val"
            )
        clean = self.with_true_labels()
        counts = torch.bincount(clean.train.labels.cpu(), minlength=self.num_classes).tolist()
        if min(counts) < 2:
            smallest = counts.index(min(counts))
            raise ValueError(
                f"val={share:g} needs at least two training images per class, but class {self.classes[smallest]!r} of "
                f"{self.name} has {counts[smallest]}"
            )
        chosen = stratified_sample(clean.train.labels, count, self.num_classes, seed)
        rest = np.setdiff1d(np.arange(len(self.train)), chosen)
        remakes_noise = self is not clean and "label_noise" in self.options
        source = clean if remakes_noise else self
        options = {**source.options, "val": share, "val_seed": seed}
        data = dataclasses.replace(source, train=source.train.take(rest), val=clean.train.take(chosen), options=options)
        return data.with_label_noise(*(self.options[name] for name in noise.NOISE_OPTIONS)) if remakes_noise else data

    def with_label_noise(self, rate: float, kind: str = "uniform", seed: int = 0) -> Dataset:
        """Return the same data set with wrong labels for some training images.

        Test and validation images keep their true labels. The true labels of the training images are in
        `train.true_labels`. A higher rate with the same seed keeps all wrong labels and adds more.

        Error messages call the arguments `label_noise`, `noise` and `noise_seed`, as in `load_dataset`.

        Parameters
        ----------
        rate : float, in (0, 1)
            Share of the training images whose label is wrong: exactly round(rate · N) of N images, and about the same
            share of each class.
        kind : {"uniform", "confusable"}
            - "uniform": each other class is equally likely. This is called symmetric noise, too.
            - "confusable": a class that looks similar. If the data set has `groups`, each other class of a group of the
              image is equally likely, such as the same shape with another pattern. Otherwise, it is the class whose
              mean image is nearest, see `data.noise.nearest_classes`. Such noise is called asymmetric [1]_.
        seed : int
            Decides which labels are wrong.

        Returns
        -------
        Dataset

        Raises
        ------
        ValueError
            If an argument is not valid, labels are wrong already, or there is only one class.
        TypeError
            If an argument has another type.

        References
        ----------
        .. [1] G. Patrini et al., "Making Deep Neural Networks Robust to Label Noise: A Loss Correction Approach",
           CVPR 2017. In its noise for CIFAR-10, half of the classes keep all their labels. Here, every class has noise.

        Examples
        --------
        >>> import pckd_nb as pckd
        >>> train = pckd.load_dataset("digits", train_size=40).with_label_noise(0.2).train
        >>> int((train.labels != train.true_labels).sum())
        8
        """
        rate, seed = checked(PositiveFraction, "label_noise", rate), checked(Seed, "noise_seed", seed)
        check_noise(kind)
        if self.train.true_labels is not None:
            raise ValueError(f"labels of {self.name} are wrong already: start from data.with_true_labels()")
        if self.num_classes < 2:
            raise ValueError(f"label_noise needs two classes or more, {self.name} has one")
        if not round(rate * len(self.train)):
            raise ValueError(
                f"label_noise={rate:g} makes no label of the {len(self.train):,} training images of {self.name} wrong: "
                "use a larger value"
            )
        if kind == "uniform":
            wrong_classes = noise.other_classes(self.num_classes)
        else:
            wrong_classes = noise.confusable_classes(self.train, self.num_classes, self.groups)
        labels = noise.flip_labels(self.train.labels, wrong_classes, rate, seed)
        train = dataclasses.replace(self.train, labels=labels, true_labels=self.train.labels)
        options = dict(zip(noise.NOISE_OPTIONS, (rate, kind, seed), strict=True))
        return dataclasses.replace(self, train=train, options={**self.options, **options})

    def with_true_labels(self) -> Dataset:
        """Return the same data set without label noise.

        Returns
        -------
        Dataset
            The labels of its training images are `train.true_labels`. If no labels are wrong, it is this data set.

        Examples
        --------
        >>> import pckd_nb as pckd
        >>> data = pckd.load_dataset("digits", train_size=40)
        >>> data.with_label_noise(0.2).with_true_labels().fingerprint == data.fingerprint
        True
        """
        if self.train.true_labels is None:
            return self
        train = dataclasses.replace(self.train, labels=self.train.true_labels, true_labels=None)
        options = {name: value for name, value in self.options.items() if name not in noise.NOISE_OPTIONS}
        return dataclasses.replace(self, train=train, options=options)

    def without_test(self) -> Dataset:
        """Return the same data set without its test images, so that a training cannot see them.

        A search for settings uses it: it trains and compares on training and validation images only.

        Returns
        -------
        Dataset
            Its `test` is None.

        Raises
        ------
        ValueError
            If there is no validation split.

        Examples
        --------
        >>> import pckd_nb as pckd
        >>> pckd.load_dataset("digits", train_size=40, val=0.25).without_test().held_out
        ('val',)
        """
        if self.val is None:
            raise ValueError(f"{self.name} needs a validation split if its test images are left out: pass val=0.1")
        return dataclasses.replace(self, test=None, options={**self.options, "test": False})

    def __repr__(self) -> str:
        height, width = self.size
        held_out = getattr(self, self.held_out[0])
        images = f"{len(self.train):,} + {len(held_out):,} images of {self.channels}×{height}×{width}"
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
            **self._noise_notes(),
            **self.notes,
            "fingerprint": self.fingerprint,
        }
        return table(self.name, rows)

    def _noise_notes(self) -> dict[str, str]:
        """Return the row about wrong labels for the table that a notebook shows."""
        if self.train.true_labels is None:
            return {}
        kind = f", {self.options['noise']}" if "noise" in self.options else ""
        count = int((self.train.labels != self.train.true_labels).sum())
        return {"wrong labels": f"{count:,} of {len(self.train):,} training images{kind}"}

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
        """A hash of 16 hexadecimal digits that changes with any pixel, label or class name.

        With label noise, the labels that are given to the training count, not the true ones.

        For a streamed split, it changes with file names and file sizes, not with pixels.
        """
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for name in ("train", *self.held_out):
            hash_split(getattr(self, name), digest)
        return digest.hexdigest()[:16]

    @property
    def file_prints(self) -> dict[str, Any] | None:
        """Old name of the function `data.dataset.file_fingerprints`."""
        warnings.warn("Dataset.file_prints is now file_fingerprints(data)", DeprecationWarning, stacklevel=2)
        return file_fingerprints(self)

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


def file_fingerprints(data: Dataset) -> dict[str, Any] | None:
    """Return hashes of the image files of a data set.

    A training that is resumed uses them to find out how many files have changed.

    Parameters
    ----------
    data : Dataset

    Returns
    -------
    dict or None
        "reading" is the version of the functions that read image files. "names" changes with any file name, label or
        class name, and with the image size. "sizes" is the result of `streaming.file_size_fingerprint`. None if
        all images are in memory.
    """
    splits = [getattr(data, name) for name in ("train", *data.held_out)]
    streamed = [split for split in splits if isinstance(split, Streamed)]
    if not streamed:
        return None
    digest = hashlib.sha256("\n".join(data.classes).encode())
    for split in splits:
        split.update_hash_with_names(digest) if isinstance(split, Streamed) else hash_split(split, digest)
        digest.update(split.labels.cpu().numpy())
    return {"reading": READER_VERSION, "names": digest.hexdigest()[:16], "sizes": file_size_fingerprint(streamed)}
