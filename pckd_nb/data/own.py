"""Your own data sets: from arrays, from a `torch.utils.data.Dataset`, or from a table of image files.

`Dataset.from_arrays`, `Dataset.from_torch` and `Dataset.from_table` call these functions.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from ..downloads import one_line
from ..paths import user_path
from ..validation import checked, plain
from .dataset import Dataset, Split, statistics
from .folders import read_what_fits, reading_notes
from .loading import ImageSize, Workers
from .streaming import Streamed, to_rgb

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
    read = {what: (as_pixels(images), label_list(labels)) for what, (images, labels) in given.items()}
    classes = classes_of({what: labels for what, (_, labels) in read.items()}, classes)
    splits = {what: Split(images, numbered(labels, classes)) for what, (images, labels) in read.items()}
    if ids is not None:
        if isinstance(ids, str) or not isinstance(ids, Iterable):
            raise TypeError(f"ids must be a list of one name per training image, got {type(ids).__name__}")
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
    chosen = classes_of({what: labels for what, (_, labels) in read.items()}, classes)
    splits = {what: Split(images, numbered(labels, chosen)) for what, (images, labels) in read.items()}
    return assemble(name or type(train).__name__, splits, chosen, mean, std, default_views)


def from_table(
    table: str | Path | pd.DataFrame, *, image: str = "path", label: str = "class", split: str = "split",
    root: str | Path | None = None, image_size: int = 32, workers: int | None = None,
    classes: Sequence[str] | None = None, name: str | None = None, mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None, default_views: int = 4,
) -> Dataset:  # fmt: skip
    """Build a data set from a table of image files, see `Dataset.from_table`."""
    image_size, workers = checked(ImageSize, "image_size", image_size) or 32, checked(Workers, "workers", workers)
    if isinstance(table, str | os.PathLike):
        path = user_path(table, "table")
        if not path.is_file():
            raise FileNotFoundError(f"there is no table '{path}'")
        try:
            folder, rows = path.parent, pd.read_csv(path)
        except ValueError as error:  # pandas has several kinds
            raise ValueError(f"'{path}' is not a table of comma-separated values: {one_line(error)}") from error
        name = name or path.stem
    elif isinstance(table, pd.DataFrame):
        folder, rows = Path(), table
    else:
        raise TypeError(f"table must be the path of a CSV file or a DataFrame, got {type(table).__name__}")
    folder = user_path(root, "root") if root is not None else folder
    for column in (image, label, split):
        if column not in rows:
            raise ValueError(f"the table has no column {column!r}, it has {', '.join(map(str, rows.columns))}")
    if rows[[image, label, split]].isna().any(axis=None):
        raise ValueError(f"the table has empty cells under {image!r}, {label!r} or {split!r}")
    missing = [path for path in rows[image] if not (folder / str(path)).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(rows)} images are not there, the first is '{folder / str(missing[0])}'"
        )
    parts = {what: rows[rows[split].astype(str) == what] for what in ("train", "val", "test")}
    others = sorted(set(rows[split].astype(str)) - parts.keys())
    if others or parts["train"].empty or parts["test"].empty:
        found = ", ".join(sorted(set(rows[split].astype(str))))
        raise ValueError(
            f"column {split!r} must say train, test or val of every image, with some of the first two: {found}"
        )
    labels_of = {what: label_list(part[label]) for what, part in parts.items() if len(part)}
    chosen = classes_of(labels_of, classes)

    def streamed(what: str) -> Streamed:
        names = np.array([os.fsencode(str(path)) for path in parts[what][image]])
        return Streamed(folder, names, numbered(labels_of[what], chosen), image_size, workers=workers)

    splits = {what: streamed(what) for what in labels_of}
    notes = reading_notes(*splits.values())
    return assemble(name or "table", read_what_fits(splits), chosen, mean, std, default_views, notes)


def assemble(
    name: str, splits: dict[str, Any], classes: tuple[str, ...], mean: Sequence[float] | None,
    std: Sequence[float] | None, default_views: int, notes: dict[str, str] | None = None,
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
    notes : dict of str to str, optional
        As in `Dataset`.

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
                   normalisation=source, default_views=views, notes=notes or {})  # fmt: skip


def classes_of(labels: Mapping[str, list[int] | list[str]], classes: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the classes.

    Parameters
    ----------
    labels : dict of str to list
        The labels of every split, as `label_list` returns them.
    classes : sequence of str or None

    Returns
    -------
    tuple of str
        `classes` if given. Else the sorted labels themselves if they are text, or the numbers from 0 to the largest
        label.

    Raises
    ------
    TypeError
        If `classes` is not a list of names, or if some splits have names and others numbers.
    """
    if classes is not None:
        if isinstance(classes, str | set | frozenset) or not isinstance(classes, Iterable):
            got = "a set" if isinstance(classes, set | frozenset) else type(classes).__name__
            raise TypeError(f"classes must be a list of names in the order of their numbers, got {got}")
        return tuple(map(str, classes))
    kinds = {isinstance(part[0], str): what for what, part in labels.items() if part}
    if len(kinds) > 1:
        raise TypeError(
            f"labels of {kinds[True]} are names, those of {kinds[False]} are numbers: give the list classes="
        )
    found = [value for part in labels.values() for value in part]
    if True in kinds:
        return tuple(sorted(set(map(str, found))))
    largest = checked(LabelNumber, "labels", max(found)) if found else -1
    return tuple(map(str, range(largest + 1)))


def numbered(labels: list[int] | list[str], classes: Sequence[str]) -> Tensor:
    """Convert labels to numbers.

    Parameters
    ----------
    labels : list of int or list of str
        As `label_list` returns them. A name becomes its position in `classes`, a number stays as it is.
    classes : sequence of str

    Returns
    -------
    int64 Tensor of shape (N,)

    Raises
    ------
    ValueError
        If a name is not one of the classes.
    """
    place = {name: number for number, name in enumerate(classes)}
    if unknown := [value for value in labels if isinstance(value, str) and value not in place]:
        raise ValueError(f"label {unknown[0]!r} is none of the classes {', '.join(classes[:10])}")
    return torch.tensor([place[value] if isinstance(value, str) else value for value in labels], dtype=torch.int64)


def label_list(labels: Any) -> Any:
    """Return labels as a list of whole numbers, or a list of names.

    Parameters
    ----------
    labels : array, tensor, Series or sequence of shape (N,)

    Returns
    -------
    list of int or list of str

    Raises
    ------
    TypeError
        If labels are not one whole number or name per image, or some are numbers and others names.
    ValueError
        If a label is missing.
    """
    values = labels.tolist() if hasattr(labels, "tolist") else labels
    if isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Iterable):
        raise TypeError(f"labels must be a list of one number or name per image, got {type(labels).__name__}")
    values = [value.item() if isinstance(value, Tensor) and value.ndim == 0 else plain(value) for value in values]
    odd = {row: v for row, v in enumerate(values) if isinstance(v, bool) or not isinstance(v, int | str)}
    if any(isinstance(value, list | tuple | np.ndarray | Tensor) for value in odd.values()):
        raise TypeError(
            "labels must be one number or name per image; one-hot labels become numbers by labels.argmax(1)"
        )
    if missing := [row for row, value in odd.items() if pd.isna(value)]:
        raise ValueError(f"every image needs a label, that of image {missing[0]} is {odd[missing[0]]}")
    for row, value in odd.items():
        raise TypeError(f"labels must be whole numbers or names, got {repr(value)[:40]} for image {row}")
    if other := [value for value in values if isinstance(value, str) != isinstance(values[0], str)]:
        raise TypeError(f"labels must be all numbers or all names, got {values[0]!r} and {other[0]!r}")
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
        If images have another number of dimensions, no pixels or different sizes, or are floats outside [0, 1], as
        after normalisation.
    """
    channels_last_first = not isinstance(images, Tensor)  # NumPy's convention; torch puts channels first
    if isinstance(images, Tensor):
        tensor = images.detach().to_dense()
    else:
        try:
            array = np.ascontiguousarray(images)
        except ValueError:  # it says "inhomogeneous"
            raise ValueError("images must all have the same size and number of channels") from None
        if array.dtype.kind not in "biufc":  # torch would list all dtypes that it knows
            got = f"{type(images).__name__} of {array.dtype}" if hasattr(images, "dtype") else type(images).__name__
            raise TypeError(f"images must be uint8 pixels, or floats in [0, 1], got {got}")
        tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    if 0 in tensor.shape[1:]:
        raise ValueError(f"images must have pixels, got shape {tuple(tensor.shape)}")
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
    if not torch.equal(_pixels(_item(what, dataset, 0)[0]), _pixels(_item(what, dataset, 0)[0])):
        warnings.warn(
            f"images of {what} change from one reading to the next and are read once: give random transforms to "
            "distill, as augment=",
            stacklevel=4,
        )
    images, labels = [], []
    for row in range(len(dataset)):
        image, label, *_ = _item(what, dataset, row)
        images.append(_pixels(image))
        single = isinstance(label, Tensor | np.ndarray | np.generic) and len(label.reshape(-1)) == 1
        labels.append(label.item() if single else label)
        if images[-1].shape != images[0].shape:
            sizes = f"{tuple(images[0].shape)} and {tuple(images[-1].shape)}"
            raise ValueError(f"images of {what} have different sizes, {sizes}: give the data set a transform, "
                             "such as torchvision.transforms.v2.Resize((32, 32))")  # fmt: skip
    return torch.stack(images), label_list(labels)


def _item(what: str, dataset: Any, row: int) -> Any:
    """Return an image and its label, or raise TypeError or ValueError if the data set has no such pair."""
    try:
        item = dataset[row]
    except IndexError as error:
        message = f"{what} says that it has {len(dataset)} images, and item {row} fails: {one_line(error)}"
        raise ValueError(message) from error
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise TypeError(f"items of {what} must be pairs (image, label), got {type(item).__name__}")
    return item


def _pixels(image: Any) -> Tensor:
    """Convert one PIL image, array or tensor to uint8 (C, H, W)."""
    if isinstance(image, Image.Image):
        plain_mode = image.mode in ("L", "RGB") and not image.has_transparency_data
        image = image if plain_mode else to_rgb(image)
    return as_pixels(image[None] if isinstance(image, Tensor) else np.array(image)[None])[0]
