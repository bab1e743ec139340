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

from ..messages import one_line
from ..paths import user_path
from ..validation import checked, plain
from .dataset import Dataset, Split, doubts, statistics
from .folders import read_what_fits, reading_notes
from .loading import ImageSize, Workers
from .streaming import Streamed, to_rgb, with_depth

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
    labels = {what: part for what, (_, part) in read.items()}
    classes = classes_of(labels, classes)
    numbers = numbered_splits(labels, classes)
    splits = {what: Split(images, numbers[what]) for what, (images, _) in read.items()}
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
    names = {what: class_names(what, dataset) for what, dataset in given.items()}
    read = {what: _read_all(what, dataset) for what, dataset in given.items()}
    labels = {what: named(what, part, names[what]) for what, (_, part) in read.items()}
    chosen = classes_of(labels, classes)
    if classes is None and names["train"] is not None:
        chosen = names["train"]  # in the order of the data set, which may have classes without images
    numbers = numbered_splits(labels, chosen)
    splits = {what: Split(images, numbers[what]) for what, (images, _) in read.items()}
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
        folder, rows, source = path.parent, _read_csv(path), f"'{path}'"
        name = name or path.stem
    elif isinstance(table, pd.DataFrame):
        folder, rows, source = Path(), table, "the table"
    else:
        hint = ": pandas.DataFrame(table) makes one" if isinstance(table, list | Mapping) else ""
        raise TypeError(f"table must be the path of a CSV file or a DataFrame, got {type(table).__name__}{hint}")
    folder = user_path(root, "root") if root is not None else folder
    _check_cells(rows, (image, label, split), source)
    missing = [path for path in rows[image] if not (folder / str(path)).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(rows)} images are not there, the first is '{folder / str(missing[0])}'"
        )
    parts = {what: np.flatnonzero(rows[split].astype(str) == what) for what in ("train", "val", "test")}
    others = sorted(set(rows[split].astype(str)) - parts.keys())
    if others or not len(parts["train"]) or not len(parts["test"]):
        found = ", ".join(sorted(set(rows[split].astype(str))))
        raise ValueError(
            f"column {split!r} must say train, test or val of every image, with some of the first two: {found}"
        )
    values, chosen = table_labels(label_list(rows[label]), classes)
    labels = {what: [values[row] for row in part] for what, part in parts.items() if len(part)}
    numbers = numbered_splits(labels, chosen)
    files = np.array([os.fsencode(str(path)) for path in rows[image]])
    streamed = {
        what: Streamed(folder, files[parts[what]], part, image_size, workers=workers) for what, part in numbers.items()
    }
    splits = with_depth(streamed)
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
    data = Dataset(name, **splits, classes=classes, groups={}, mean=tuple(mean), std=tuple(std),
                   normalisation=source, default_views=views, notes=notes or {})  # fmt: skip
    for line in doubts(data):
        warnings.warn(line, stacklevel=4)  # the caller of `Dataset.from_...`
    return data


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


def numbered_splits(labels: Mapping[str, list[int] | list[str]], classes: Sequence[str]) -> dict[str, Tensor]:
    """Convert the labels of all splits to numbers.

    Parameters
    ----------
    labels : dict of str to list
        The labels of every split, as `label_list` returns them.
    classes : sequence of str

    Returns
    -------
    dict of str to int64 Tensor

    Raises
    ------
    ValueError
        If a name is not one of the classes, or a split has classes that train lacks.
    """
    numbers = {what: numbered(part, classes) for what, part in labels.items()}
    trained = set(numbers["train"].tolist())
    if any(number not in range(len(classes)) for number in trained):
        return numbers  # `Dataset` says so
    for what, part in numbers.items():
        if lacking := [classes[n] for n in part.unique().tolist() if n in range(len(classes)) and n not in trained]:
            more = ", …" if len(lacking) > 10 else ""
            raise ValueError(f"{what} has classes that train lacks: {', '.join(lacking[:10])}{more}")
    return numbers


def table_labels(labels: list[int] | list[str], classes: Sequence[str] | None) -> tuple[Any, tuple[str, ...]]:
    """Return the labels of a table, and the names of the classes.

    Parameters
    ----------
    labels : list of int or list of str
        As `label_list` returns them.
    classes : sequence of str or None

    Returns
    -------
    labels : list of int or list of str
        All names, or all positions in `classes`. They are positions if `classes` are given and are other names, such as
        1 in a table with classes ("cat", "dog").
    classes : tuple of str
        `classes` if given. Else the labels, sorted: as numbers if all of them are whole numbers, so that 2 comes before
        10, else as text.

    Raises
    ------
    TypeError
        If `classes` is not a list of names.
    """
    names = [str(label) for label in labels]
    whole = all(name.isdecimal() for name in names)
    if classes is None:
        return names, tuple(sorted(set(names), key=(lambda name: (int(name), name)) if whole else None))
    chosen = classes_of({}, classes)
    positions = whole and not set(names) <= set(chosen)
    return [int(name) for name in names] if positions else names, chosen


def class_names(what: str, dataset: Any) -> tuple[str, ...] | None:
    """Return the names of the classes of a torch data set, or of those within a Subset or a ConcatDataset.

    Parameters
    ----------
    what : str
        Name of the split, for the error.
    dataset : torch.utils.data.Dataset

    Returns
    -------
    tuple of str or None
        None if it has no names.

    Raises
    ------
    ValueError
        If data sets with different classes are put together.
    """
    names = getattr(dataset, "classes", None)
    if isinstance(names, Iterable) and not isinstance(names, str | Mapping | Set):
        return tuple(map(str, names))
    within = getattr(dataset, "datasets", None)
    if not isinstance(within, list | tuple):
        within = [dataset.dataset] if hasattr(dataset, "dataset") else []
    found = dict.fromkeys(class_names(what, part) for part in within)
    if len(found) > 1:
        lists = " and ".join("no names" if part is None else ", ".join(part[:10]) for part in [*found][:2])
        raise ValueError(f"{what} puts together data sets with different classes, {lists}: give all the same classes")
    return next(iter(found), None)


def named(what: str, labels: list[Any], names: Sequence[str] | None) -> list[Any]:
    """Return labels as names of classes.

    Parameters
    ----------
    what : str
        Name of the split, for the error.
    labels : list of int or list of str
    names : sequence of str or None
        Name of each number. If it is None, the labels are returned.

    Returns
    -------
    list of int or list of str

    Raises
    ------
    ValueError
        If a number has no name.
    """
    if names is None or isinstance(labels[0], str):
        return labels
    if not 0 <= min(labels) <= max(labels) < len(names):
        found = f"{min(labels)} to {max(labels)}"
        raise ValueError(f"labels of {what} must be from 0 to {len(names) - 1}, as it names its classes, got {found}")
    return [names[label] for label in labels]


def label_list(labels: Any) -> Any:
    """Return labels as a list of whole numbers, or a list of names.

    Parameters
    ----------
    labels : array, tensor, Series or sequence of shape (N,) or (N, 1)

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
    labels = labels.to_numpy() if isinstance(labels, pd.DataFrame) else labels
    values = labels.tolist() if hasattr(labels, "tolist") else labels
    if isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Iterable):
        raise TypeError(f"labels must be a list of one number or name per image, got {type(labels).__name__}")
    values = [value[0] if isinstance(value, list | tuple) and len(value) == 1 else value for value in values]
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


def _read_csv(path: Path) -> pd.DataFrame:
    """Return the cells of a CSV file as text. Only cells without text are missing values."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no table '{path}'")
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    except ValueError as error:  # pandas has several kinds
        raise ValueError(
            f"'{path}' is not a table of comma-separated values: {one_line(error)}; save it as CSV in UTF-8"
        ) from error


def _check_cells(rows: pd.DataFrame, columns: Sequence[str], source: str) -> None:
    """Raise ValueError unless the table has these columns once, with something in every cell."""
    for column in columns:
        if column not in rows:
            found = one_line(", ".join(map(str, rows.columns)))
            raise ValueError(f"{source} has no column {column!r}, it has {found}")
        if not isinstance(rows[column], pd.Series):
            raise ValueError(f"{source} has two columns {column!r}")
        cells = rows[column]
        if (empty := cells.isna() | (cells.astype(str).str.strip() == "")).any():
            row = int(np.flatnonzero(empty)[0]) + 1
            raise ValueError(f"{source} has no {column!r} in {empty.sum()} of {len(rows)} rows, the first is row {row}")
    if rows.empty:
        raise ValueError(f"{source} has no rows")


def _read_all(what: str, dataset: Any) -> tuple[Tensor, list[Any]]:
    """Return every image of a torch data set as uint8 (N, C, H, W), and the list of labels."""
    for needed in ("__getitem__", "__len__"):
        if not hasattr(dataset, needed) or isinstance(dataset, str | bytes | Mapping):
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
    except (IndexError, KeyError) as error:
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
