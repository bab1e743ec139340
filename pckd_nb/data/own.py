"""Your own data sets: from arrays, from a `torch.utils.data.Dataset`, or from a table of image files.

`Dataset.from_arrays`, `Dataset.from_torch` and `Dataset.from_table` call these functions.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from ..paths import user_path
from ..validation import checked
from .dataset import Dataset, Split, statistics
from .folders import read_what_fits
from .streaming import Streamed

CHANNELS = (1, 3, 4)
LabelNumber = Annotated[int, Field(ge=0, lt=100_000)]  # of data without names of classes
Pair = tuple[Any, Any]  # images and labels


def from_arrays(
    train: Pair, test: Pair, *, val: Pair | None = None, classes: Sequence[str] | None = None, name: str = "arrays",
    mean: Sequence[float] | None = None, std: Sequence[float] | None = None, default_views: int = 4,
    ids: Sequence[str] | None = None,
) -> Dataset:  # fmt: skip
    """Build a data set from images and labels in memory, see `Dataset.from_arrays`."""
    given = {"train": train, "test": test, **({} if val is None else {"val": val})}
    for what, pair in given.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"{what} must be a pair (images, labels), got {type(pair).__name__}")
    classes = classes_of([labels for _, labels in given.values()], classes)
    splits = {what: Split(as_pixels(images), numbered(labels, classes)) for what, (images, labels) in given.items()}
    if ids is not None:
        splits["train"] = dataclasses.replace(splits["train"], ids=np.asarray(ids))
    return assemble(name, splits, classes, mean, std, default_views)


def from_torch(
    train: Any, test: Any, *, val: Any = None, classes: Sequence[str] | None = None, name: str | None = None,
    mean: Sequence[float] | None = None, std: Sequence[float] | None = None, default_views: int = 4,
) -> Dataset:  # fmt: skip
    """Build a data set from two `torch.utils.data.Dataset`, see `Dataset.from_torch`."""
    given = {"train": train, "test": test, **({} if val is None else {"val": val})}
    read = {what: _read_all(what, dataset) for what, dataset in given.items()}
    for what, dataset in given.items():
        names = getattr(dataset, "classes", None)
        if names is not None and all(isinstance(label, int) for label in read[what][1]):  # numbers are indices of these
            read[what] = read[what][0], [str(names[label]) for label in read[what][1]]
    if classes is None and getattr(train, "classes", None) is not None:
        classes = [str(label) for label in train.classes]
    chosen = classes_of([labels for _, labels in read.values()], classes)
    splits = {what: Split(images, numbered(labels, chosen)) for what, (images, labels) in read.items()}
    return assemble(name or type(train).__name__, splits, chosen, mean, std, default_views)


def from_table(
    table: str | Path | pd.DataFrame, *, image: str = "path", label: str = "class", split: str = "split",
    root: str | Path | None = None, image_size: int = 32, workers: int | None = None,
    classes: Sequence[str] | None = None, name: str | None = None, mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None, default_views: int = 4,
) -> Dataset:  # fmt: skip
    """Build a data set from a table of image files, see `Dataset.from_table`."""
    if isinstance(table, str | Path):
        path = user_path(table, "table")
        if not path.is_file():
            raise FileNotFoundError(f"there is no table '{path}'")
        folder, rows = path.parent, pd.read_csv(path)
        name = name or path.stem
    else:
        folder, rows = Path(), table
    folder = user_path(root, "root") if root is not None else folder
    for column in (image, label, split):
        if column not in rows:
            raise ValueError(f"the table has no column {column!r}, it has {', '.join(map(str, rows.columns))}")
    if rows[[image, label, split]].isna().any(axis=None):
        raise ValueError(f"the table has empty cells under {image!r}, {label!r} or {split!r}")
    missing = [path for path in rows[image] if not (folder / str(path)).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(rows)} images are not there, the first is '{folder / missing[0]}'"
        )
    parts = {what: rows[rows[split].astype(str) == what] for what in ("train", "val", "test")}
    others = sorted(set(rows[split].astype(str)) - parts.keys())
    if others or parts["train"].empty or parts["test"].empty:
        found = ", ".join(sorted(set(rows[split].astype(str))))
        raise ValueError(
            f"column {split!r} must say train, test or val of every image, with some of the first two: {found}"
        )
    chosen = classes_of([part[label].tolist() for part in parts.values()], classes)

    def streamed(part: pd.DataFrame) -> Streamed:
        names = np.array([os.fsencode(str(path)) for path in part[image]])
        labels = torch.as_tensor(numbered(part[label].tolist(), chosen))
        return Streamed(folder, names, labels, image_size, workers=workers)

    splits = {what: streamed(part) for what, part in parts.items() if len(part)}
    return assemble(name or "table", read_what_fits(splits), chosen, mean, std, default_views)


def assemble(
    name: str, splits: dict[str, Any], classes: tuple[str, ...], mean: Sequence[float] | None,
    std: Sequence[float] | None, default_views: int,
) -> Dataset:  # fmt: skip
    """Build a data set from its splits.

    Parameters
    ----------
    name : str
    splits : dict of str to Split or Streamed
        "train", "test" and optionally "val".
    classes : tuple of str
    mean, std : sequence of float or None
        One number per channel, for pixels in [0, 1]. If both are None, they are computed on the training images.
    default_views : int
        Number of views for square images. It is 1 for all others.

    Returns
    -------
    Dataset

    Raises
    ------
    ValueError
        If only one of mean and std is given, or images of two splits have different shapes. Also if `Dataset` raises
        it.
    """
    if (mean is None) != (std is None):
        raise ValueError("give both mean and std, per channel and of pixels in [0, 1], or neither")
    height, width = splits["train"].shape[1:]
    for what, part in splits.items():
        if part.shape != splits["train"].shape:
            raise ValueError(f"images of {what} have shape {part.shape}, those of train {splits['train'].shape}")
    for what, values in (("mean", mean), ("std", std)):
        if values is not None and not isinstance(values, Iterable):
            raise TypeError(f"{what} must be a list of numbers, got {type(values).__name__}")
    if mean is None or std is None:
        mean, std, source = statistics(splits["train"])
    else:
        source = "given by the caller"
    views = default_views if height == width else 1
    return Dataset(name, **splits, classes=classes, groups={}, mean=tuple(mean), std=tuple(std),
                   normalisation=source, default_views=views)  # fmt: skip


def classes_of(labels: Sequence[Any], classes: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the classes.

    Parameters
    ----------
    labels : sequence
        The labels of every split: whole numbers or names.
    classes : sequence of str or None

    Returns
    -------
    tuple of str
        `classes` if given. Else the sorted labels themselves if they are text, or the numbers from 0 to the largest
        label.

    Raises
    ------
    TypeError
        If labels are not one number or name per image.
    """
    if isinstance(classes, set | frozenset):
        raise TypeError("classes must be a list of names in the order of their numbers, got a set")
    if classes is not None:
        return tuple(map(str, classes))
    found = [value for part in labels for value in _listed(part)]
    if any(isinstance(value, str) for value in found):
        return tuple(sorted(set(map(str, found))))
    largest = checked(LabelNumber, "labels", max(found)) if found else -1
    return tuple(map(str, range(largest + 1)))


def numbered(labels: Any, classes: Sequence[str]) -> Any:
    """Convert labels to numbers.

    Parameters
    ----------
    labels : array, tensor or sequence of shape (N,)
        Whole numbers or class names.
    classes : sequence of str

    Returns
    -------
    array or Tensor of shape (N,)
        Numbers are returned as they are. A name becomes its position in `classes`.

    Raises
    ------
    ValueError
        If a name is not one of the classes.
    TypeError
        If labels are not one number or name per image.
    """
    values = _listed(labels)
    if not any(isinstance(value, str) for value in values):
        return labels if isinstance(labels, Tensor) else np.asarray(labels)
    place = {name: number for number, name in enumerate(classes)}
    if unknown := [value for value in values if value not in place]:
        raise ValueError(f"label {unknown[0]!r} is none of the classes {', '.join(classes[:10])}")
    return torch.tensor([place[value] for value in values])


def _listed(labels: Any) -> list[Any]:
    """Return labels as a list, or raise TypeError if they are not one number or name per image."""
    values = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    if values and isinstance(values[0], list | tuple):
        raise TypeError(
            "labels must be one number or name per image; one-hot labels become numbers by labels.argmax(1)"
        )
    return values


def as_pixels(images: Any) -> Tensor:
    """Convert images to uint8.

    Parameters
    ----------
    images : array or tensor of shape (N, H, W), (N, C, H, W) or (N, H, W, C)
        uint8, or floats in [0, 1].

    Returns
    -------
    uint8 Tensor of shape (N, C, H, W)

    Raises
    ------
    TypeError
        If images are neither uint8 nor floats.
    ValueError
        If images have another number of dimensions, or are floats outside [0, 1], as after normalisation.
    """
    channels_last_first = not isinstance(images, Tensor)  # NumPy's convention; torch puts channels first
    tensor = torch.as_tensor(np.asarray(images) if not isinstance(images, Tensor) else images)
    if tensor.ndim == 3:
        tensor = tensor[:, None]
    elif tensor.ndim != 4:
        raise ValueError(f"images must have shape (N, C, H, W), (N, H, W, C) or (N, H, W), got {tuple(tensor.shape)}")
    elif tensor.shape[3] < min(tensor.shape[1:3]) and (channels_last_first or tensor.shape[1] not in CHANNELS):
        tensor = tensor.permute(0, 3, 1, 2)
    if tensor.is_floating_point():
        if not len(tensor) or not 0 <= float(tensor.min()) <= float(tensor.max()) <= 1:
            raise ValueError("images must be uint8 pixels, or floats in [0, 1]: leave the normalisation out")
        tensor = (tensor * 255).round().to(torch.uint8)
    if tensor.dtype != torch.uint8:
        raise TypeError(f"images must be uint8 pixels, or floats in [0, 1], got {tensor.dtype}")
    return tensor.contiguous()


def _read_all(what: str, dataset: Any) -> tuple[Tensor, list[Any]]:
    """Return every image of a torch data set as uint8 (N, C, H, W), and the list of labels."""
    for needed in ("__getitem__", "__len__"):
        if not hasattr(dataset, needed):
            raise TypeError(f"{what} must be a torch.utils.data.Dataset with __getitem__ and __len__, "
                            f"got {type(dataset).__name__}")  # fmt: skip
    if not len(dataset):
        raise ValueError(f"{what} has no images")
    if not torch.equal(_pixels(dataset[0][0]), _pixels(dataset[0][0])):
        warnings.warn(
            f"images of {what} change from one reading to the next and are read once: give random transforms to "
            "distill, as augment=",
            stacklevel=4,
        )
    images, labels = [], []
    for row in range(len(dataset)):
        image, label, *_ = dataset[row]
        images.append(_pixels(image))
        labels.append(label.item() if isinstance(label, Tensor | np.generic) else label)
        if images[-1].shape != images[0].shape:
            sizes = f"{tuple(images[0].shape)} and {tuple(images[-1].shape)}"
            raise ValueError(f"images of {what} have different sizes, {sizes}: give the data set a transform, "
                             "such as torchvision.transforms.v2.Resize((32, 32))")  # fmt: skip
    return torch.stack(images), labels


def _pixels(image: Any) -> Tensor:
    """Convert one PIL image, array or tensor to uint8 (C, H, W)."""
    if isinstance(image, Image.Image):
        image = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    return as_pixels(image[None])[0]
