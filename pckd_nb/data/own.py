"""Functions that build a data set from your own images: arrays, a `torch.utils.data.Dataset`, or a table of files.

They are the class methods `Dataset.from_arrays`, `Dataset.from_torch` and `Dataset.from_table`.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from ..messages import one_line
from ..paths import user_path
from ..validation import checked, plain
from .checks import find_problems
from .folders import load_if_memory_allows, reading_notes
from .split import Split, channel_statistics
from .streaming import Streamed, to_rgb, with_bit_depth

if TYPE_CHECKING:
    import pandas as pd

    from .dataset import Dataset

USUAL_CHANNELS = (1, 3, 4)  # grey, RGB and RGBA
Workers = Annotated[int, Field(ge=0)] | None
ImageSize = Annotated[int, Field(ge=8)] | None
LabelNumber = Annotated[int, Field(ge=0, lt=100_000)]  # a label of a data set without class names
ImagesAndLabels = tuple[Any, Any]


def from_arrays(
    cls: type[Dataset], train: ImagesAndLabels, test: ImagesAndLabels, *, val: ImagesAndLabels | None = None,
    classes: Sequence[str] | None = None, name: str = "arrays", mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None, default_views: int = 4, ids: Sequence[str] | None = None,
) -> Dataset:  # fmt: skip
    """Build a data set from arrays or tensors of images and labels.

    Parameters
    ----------
    train, test, val : pair (images, labels)
        images: array or tensor of shape (N, H, W), (N, C, H, W) or (N, H, W, C), uint8 or floats in [0, 1].
        labels: N integers from 0 to num_classes − 1, or N class names.
    classes : sequence of str, optional
        Default: the labels, sorted. If the labels are numbers, all numbers from 0 to the largest label.
    name : str
    mean, std : sequence of float, optional
        One number per channel, for pixels scaled to [0, 1]. Default: computed on the training images.
    default_views : int
        Number of views (rotated copies) of each image in training, unless the user chooses another number. Use 4 if
        the class stays the same when an image is rotated by 90 degrees, else 1. Always 1 if height ≠ width.
    ids : sequence of str, optional
        Name of each training image, such as its file name. A run of `distill` stores these names, and `Run.samples`
        shows them.

    Returns
    -------
    Dataset

    Raises
    ------
    TypeError
        If an argument has another type.
    ValueError
        If shapes do not match, a label is not valid, or images are floats outside [0, 1], such as normalised images.

    Examples
    --------
    >>> import numpy as np, pckd_nb as pckd
    >>> images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    >>> labels = ["cat", "dog", "cat", "dog", "cat", "dog"]
    >>> pckd.Dataset.from_arrays((images[:4], labels[:4]), (images[4:], labels[4:]))
    Dataset('arrays': 4 + 2 images of 3×8×8, 2 classes)
    """
    given = {"train": train, "test": test, **({} if val is None else {"val": val})}
    for split_name, pair in given.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"{split_name} must be a pair (images, labels), got {type(pair).__name__}")
    arrays = {split_name: (_to_uint8(images), _to_list(labels)) for split_name, (images, labels) in given.items()}
    labels = {split_name: split_labels for split_name, (_, split_labels) in arrays.items()}
    classes = _class_names(labels, classes)
    numbers = _label_numbers(labels, classes)
    splits = {split_name: Split(images, numbers[split_name]) for split_name, (images, _) in arrays.items()}
    return _build(cls, name, _with_ids(splits, ids), classes, mean, std, default_views)


def from_torch(
    cls: type[Dataset], train: Any, test: Any, *, val: Any = None, classes: Sequence[str] | None = None,
    name: str | None = None, mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
    default_views: int = 4, ids: Sequence[str] | None = None,
) -> Dataset:  # fmt: skip
    """Build a data set from objects of `torch.utils.data.Dataset`, and read all images into memory.

    Parameters
    ----------
    train, test, val : torch.utils.data.Dataset
        Each item is a pair (image, label). An image is a PIL image, an array or a tensor, uint8 or floats in [0, 1].
        All images have the same size. Do not use random transforms: pass them to `distill` as `augment`.
    classes : sequence of str, optional
        Default: `train.classes` if it exists, else as in `from_arrays`. If a split has its own `classes`, its labels
        are positions in that list.
    name, mean, std, default_views, ids
        As in `from_arrays`. Default of name: the class name of `train`. For torchvision's `ImageFolder`, the file names
        are ``ids=[path for path, _ in train.imgs]``.

    Returns
    -------
    Dataset

    Raises
    ------
    TypeError
        If a split has no `__getitem__` or `__len__`, or images or labels have another type.
    ValueError
        If a split has no images, images have different sizes, or labels or classes of two splits do not match.

    Examples
    --------
    >>> import torch, pckd_nb as pckd
    >>> from torch.utils.data import TensorDataset
    >>> train = TensorDataset(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 0, 1]))
    >>> test = TensorDataset(torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))
    >>> pckd.Dataset.from_torch(train, test, classes=["cat", "dog"])
    Dataset('TensorDataset': 4 + 2 images of 1×8×8, 2 classes)
    """
    given = {"train": train, "test": test, **({} if val is None else {"val": val})}
    names = {split_name: _torch_class_names(split_name, dataset) for split_name, dataset in given.items()}
    images, labels = {}, {}
    for split_name, dataset in given.items():  # a comprehension would change the stack level of the warning
        images[split_name], labels[split_name] = _read_all(split_name, dataset)
    labels = {
        split_name: _to_class_names(split_name, values, names[split_name]) for split_name, values in labels.items()
    }
    class_names = _class_names(labels, classes)
    if classes is None and names["train"] is not None:
        class_names = names["train"]  # in this order, and with classes that have no images
    numbers = _label_numbers(labels, class_names)
    splits = {split_name: Split(images[split_name], numbers[split_name]) for split_name in given}
    splits = _with_ids(splits, ids)
    return _build(cls, name or type(train).__name__, splits, class_names, mean, std, default_views)


def from_table(
    cls: type[Dataset], table: str | Path | pd.DataFrame, *, image: str = "path", label: str = "class",
    split: str = "split", root: str | Path | None = None, image_size: int = 32, workers: int | None = None,
    classes: Sequence[str] | None = None, name: str | None = None, mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None, default_views: int = 4,
) -> Dataset:  # fmt: skip
    """Build a data set from a table of image files. Each row has the path, the class and the split of one image.

    Parameters
    ----------
    table : path of a CSV file, or DataFrame
        The cells of a CSV file are read as text, so class 001 keeps its zeros.
    image, label, split : str
        Names of the columns. The split column contains "train", "test" or "val".
    root : path, optional
        Folder that the paths in the table are relative to. Default: the folder of the CSV file.
    image_size : int
        Height and width in pixels to which images are resized.
    workers : int, optional
        Number of processes that read images that do not fit into memory.
    classes : sequence of str, optional
        Default: the values in the class column, sorted. With `classes`, the column can have names or positions in
        `classes`, from 0. A column of numbers has names if all of them are in `classes`, otherwise positions.
    name, mean, std, default_views
        As in `from_arrays`. Default of name: the name of the CSV file, or "table".

    Returns
    -------
    Dataset

    Raises
    ------
    FileNotFoundError
        If the table or an image does not exist.
    ValueError
        If the table is not CSV in UTF-8, a column is missing, a cell is not valid, or a split or class has no images.
    TypeError
        If an argument has another type.
    """
    import pandas as pd  # slow to import, so only when needed

    image_size, workers = checked(ImageSize, "image_size", image_size) or 32, checked(Workers, "workers", workers)
    if isinstance(table, str | os.PathLike):
        path = user_path(table, "table")
        folder, rows, source = path.parent, _read_csv(path), f"'{path}'"
        name = name or path.stem
    elif isinstance(table, pd.DataFrame):
        folder, rows, source = Path(), table, "the table"
    else:
        hint = ": convert it with pandas.DataFrame(table)" if isinstance(table, list | Mapping) else ""
        raise TypeError(f"table must be the path of a CSV file or a DataFrame, got {type(table).__name__}{hint}")
    folder = user_path(root, "root") if root is not None else folder
    _check_cells(rows, (image, label, split), source)
    missing = [path for path in rows[image] if not (folder / str(path)).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(rows)} images do not exist, the first is '{folder / str(missing[0])}': check the "
            "paths, or pass their folder as root"
        )
    rows_of = {
        split_name: np.flatnonzero(rows[split].astype(str) == split_name) for split_name in ("train", "val", "test")
    }
    found = sorted(set(rows[split].astype(str)))
    if set(found) - rows_of.keys() or not len(rows_of["train"]) or not len(rows_of["test"]):
        raise ValueError(
            f"column {split!r} must contain train, test or val, and train and test at least once, got "
            f"{', '.join(found)}"
        )
    all_labels, class_names = _table_labels(_to_list(rows[label]), classes)
    labels = {
        split_name: [all_labels[row] for row in positions]
        for split_name, positions in rows_of.items()
        if len(positions)
    }
    files = np.array([os.fsencode(str(path)) for path in rows[image]])
    streamed = {
        split_name: Streamed(folder, files[rows_of[split_name]], numbers, image_size, workers=workers)
        for split_name, numbers in _label_numbers(labels, class_names).items()
    }
    splits = with_bit_depth(streamed)
    notes = reading_notes(*splits.values())
    return _build(cls, name or "table", load_if_memory_allows(splits), class_names, mean, std, default_views, notes)


def _with_ids(splits: dict[str, Split], ids: Sequence[str] | None) -> dict[str, Split]:
    """Return the splits with the names of the training images. Raise TypeError if `ids` is not a list."""
    if ids is None:
        return splits
    if isinstance(ids, str) or not isinstance(ids, Iterable):
        raise TypeError(f"ids must be a list with one name per training image, got {type(ids).__name__}")
    return {**splits, "train": dataclasses.replace(splits["train"], ids=np.asarray(ids))}


def _build(
    cls: type[Dataset], name: str, splits: dict[str, Any], classes: tuple[str, ...], mean: Sequence[float] | None,
    std: Sequence[float] | None, default_views: int, notes: dict[str, str] | None = None,
) -> Dataset:  # fmt: skip
    """Build a data set from its splits, and warn of problems. Compute mean and std if they are None."""
    if (mean is None) != (std is None):
        raise ValueError("mean and std must be given together: pass both, or neither to compute them")
    height, width = splits["train"].shape[1:]
    for split_name, split in splits.items():
        if split.shape != splits["train"].shape:
            expected = splits["train"].shape
            raise ValueError(f"images of {split_name} must have the shape of train, {expected}, got {split.shape}")
    for argument, values in (("mean", mean), ("std", std)):
        if values is not None and not isinstance(values, Iterable):
            raise TypeError(f"{argument} must be a list of numbers, got {type(values).__name__}")
    if mean is None or std is None:
        mean, std, source = channel_statistics(splits["train"])
    else:
        source = "given by the caller"
    views = default_views if height == width else 1
    data = cls(name, **splits, classes=classes, groups={}, mean=tuple(mean), std=tuple(std), normalisation=source,
               default_views=views, notes=notes or {})  # fmt: skip
    for problem in find_problems(data):
        warnings.warn(problem, stacklevel=3)  # points to the call of `Dataset.from_...`
    return data


def _class_names(labels: Mapping[str, list[int] | list[str]], classes: Sequence[str] | None) -> tuple[str, ...]:
    """Return `classes`. If it is None, return the sorted labels, or all numbers from 0 to the largest label."""
    if classes is not None:
        if isinstance(classes, str | set | frozenset) or not isinstance(classes, Iterable):
            kind = "a set" if isinstance(classes, set | frozenset) else type(classes).__name__
            raise TypeError(f"classes must be a list of names, in the order of the label numbers, got {kind}")
        return tuple(map(str, classes))
    named = [split_name for split_name, values in labels.items() if values and isinstance(values[0], str)]
    numbered = [split_name for split_name, values in labels.items() if values and not isinstance(values[0], str)]
    if named and numbered:
        raise TypeError(
            f"labels of {named[-1]} are names, but labels of {numbered[-1]} are numbers: pass all names as classes"
        )
    found = [value for values in labels.values() for value in values]
    if named:
        return tuple(sorted(set(map(str, found))))
    largest = checked(LabelNumber, "labels", max(found)) if found else -1
    return tuple(map(str, range(largest + 1)))


def _label_numbers(labels: Mapping[str, list[int] | list[str]], classes: Sequence[str]) -> dict[str, Tensor]:
    """Convert the labels of all splits to numbers. Raise ValueError if train lacks a class of another split."""
    numbers = {split_name: _to_numbers(values, classes) for split_name, values in labels.items()}
    in_train = set(numbers["train"].tolist())
    if any(number not in range(len(classes)) for number in in_train):
        return numbers  # `Dataset` raises an error
    for split_name, values in numbers.items():
        found = [number for number in values.unique().tolist() if number in range(len(classes))]
        if missing := [classes[number] for number in found if number not in in_train]:
            more = ", …" if len(missing) > 10 else ""
            raise ValueError(f"{split_name} has classes that are not in train: {', '.join(missing[:10])}{more}")
    return numbers


def _to_numbers(labels: list[int] | list[str], classes: Sequence[str]) -> Tensor:
    """Convert labels to an int64 tensor. A name becomes its position in `classes`."""
    position = {name: number for number, name in enumerate(classes)}
    if unknown := [value for value in labels if isinstance(value, str) and value not in position]:
        raise ValueError(f"label {unknown[0]!r} is not one of the classes {', '.join(classes[:10])}")
    return torch.tensor([position[value] if isinstance(value, str) else value for value in labels], dtype=torch.int64)


def _table_labels(labels: list[int] | list[str], classes: Sequence[str] | None) -> tuple[Any, tuple[str, ...]]:
    """Return the labels of a table, as class names or as positions in `classes`, and the names of the classes."""
    names = [str(label) for label in labels]
    all_numbers = all(name.isdecimal() for name in names)
    if classes is None:  # numbers are sorted as numbers, so that 2 comes before 10
        return names, tuple(sorted(set(names), key=(lambda name: (int(name), name)) if all_numbers else None))
    chosen = _class_names({}, classes)
    are_positions = all_numbers and not set(names) <= set(chosen)
    return [int(name) for name in names] if are_positions else names, chosen


def _torch_class_names(split_name: str, dataset: Any) -> tuple[str, ...] | None:
    """Return the class names of a torch data set, or None. Search inside Subset and ConcatDataset, too."""
    names = getattr(dataset, "classes", None)
    if isinstance(names, Iterable) and not isinstance(names, str | Mapping | Set):
        return tuple(map(str, names))
    inner = getattr(dataset, "datasets", None)
    if not isinstance(inner, list | tuple):
        inner = [dataset.dataset] if hasattr(dataset, "dataset") else []
    found = dict.fromkeys(_torch_class_names(split_name, part) for part in inner)
    if len(found) > 1:
        lists = " and ".join("no names" if part is None else ", ".join(part[:10]) for part in [*found][:2])
        raise ValueError(
            f"{split_name} combines data sets with different classes, {lists}: give all of them the same classes"
        )
    return next(iter(found), None)


def _to_class_names(split_name: str, labels: list[Any], names: Sequence[str] | None) -> list[Any]:
    """Convert label numbers to class names. Return `labels` if they are names already, or if `names` is None."""
    if names is None or isinstance(labels[0], str):
        return labels
    if not 0 <= min(labels) <= max(labels) < len(names):
        raise ValueError(
            f"labels of {split_name} must be from 0 to {len(names) - 1}, because it has {len(names)} classes, got "
            f"{min(labels)} to {max(labels)}"
        )
    return [names[label] for label in labels]


def _to_list(labels: Any) -> Any:
    """Convert labels of shape (N,) or (N, 1) to a list of int or a list of str."""
    import pandas as pd  # slow to import, so only when needed

    labels = labels.to_numpy() if isinstance(labels, pd.DataFrame) else labels
    values = labels.tolist() if hasattr(labels, "tolist") else labels
    if isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Iterable):
        raise TypeError(f"labels must be a list with one number or name per image, got {type(labels).__name__}")
    values = [value[0] if isinstance(value, list | tuple) and len(value) == 1 else value for value in values]
    values = [value.item() if isinstance(value, Tensor) and value.ndim == 0 else plain(value) for value in values]
    invalid = {row: v for row, v in enumerate(values) if isinstance(v, bool) or not isinstance(v, int | str)}
    if any(isinstance(value, list | tuple | np.ndarray | Tensor) for value in invalid.values()):
        raise TypeError("labels must be one number or name per image: convert one-hot labels with labels.argmax(1)")
    if missing := [row for row, value in invalid.items() if pd.isna(value)]:
        raise ValueError(f"every image needs a label, but the label of image {missing[0]} is {invalid[missing[0]]}")
    if invalid:
        row, value = next(iter(invalid.items()))
        raise TypeError(f"labels must be whole numbers or names, got {repr(value)[:40]} for image {row}")
    if other := [value for value in values if isinstance(value, str) != isinstance(values[0], str)]:
        raise TypeError(f"labels must be all numbers or all names, got {values[0]!r} and {other[0]!r}")
    return values


def _to_uint8(images: Any) -> Tensor:
    """Convert images of shape (N, H, W), (N, C, H, W) or (N, H, W, C) to uint8 of shape (N, C, H, W)."""
    # A shape such as (N, 3, 8, 3) may mean both. Arrays usually have channels last, and tensors channels first.
    prefer_channels_last = not isinstance(images, Tensor)
    if isinstance(images, Tensor):
        tensor = images.detach().to_dense()
    else:
        try:
            array = np.ascontiguousarray(images)
        except ValueError:  # NumPy's message does not speak of images
            raise ValueError("images must all have the same size and number of channels") from None
        if array.dtype.kind not in "biufc":  # not bool, int, uint, float or complex: torch cannot convert it
            kind = f"{type(images).__name__} of {array.dtype}" if hasattr(images, "dtype") else type(images).__name__
            raise TypeError(f"images must be uint8 pixels, or floats in [0, 1], got {kind}")
        native = array.dtype.newbyteorder("=")  # torch accepts only the byte order of this machine
        tensor = torch.from_numpy(array.astype(native, copy=False))
    if 0 in tensor.shape[1:]:
        raise ValueError(f"images must have pixels, got shape {tuple(tensor.shape)}")
    if tensor.ndim == 3:
        tensor = tensor[:, None]
    elif tensor.ndim != 4:
        raise ValueError(f"images must have shape (N, C, H, W), (N, H, W, C) or (N, H, W), got {tuple(tensor.shape)}")
    elif tensor.shape[3] < min(tensor.shape[1:3]) and (prefer_channels_last or tensor.shape[1] not in USUAL_CHANNELS):
        tensor = tensor.permute(0, 3, 1, 2)
    if tensor.is_floating_point():
        if not len(tensor) or not 0 <= float(tensor.min()) <= float(tensor.max()) <= 1:
            raise ValueError("images must be uint8 pixels, or floats in [0, 1]: do not normalise them")
        tensor = (tensor * 255).round().to(torch.uint8)
    if tensor.dtype != torch.uint8:
        raise TypeError(f"images must be uint8 pixels, or floats in [0, 1], got {tensor.dtype}")
    return tensor.contiguous()


def _read_csv(path: Path) -> pd.DataFrame:
    """Read a CSV file with all cells as text. Words such as NA are text, too."""
    import pandas as pd  # slow to import, so only when needed

    if not path.is_file():
        raise FileNotFoundError(f"there is no table '{path}'")
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    except ValueError as error:  # the base class of several pandas errors
        raise ValueError(
            f"'{path}' is not a table of comma-separated values ({one_line(error)}): save it as CSV in UTF-8"
        ) from error


def _check_cells(rows: pd.DataFrame, columns: Sequence[str], source: str) -> None:
    """Raise ValueError if a column is missing or occurs twice, or a cell is empty."""
    import pandas as pd  # slow to import, so only when needed

    for column in columns:
        if column not in rows:
            found = one_line(", ".join(map(str, rows.columns)))
            raise ValueError(f"{source} has no column {column!r}, its columns are {found}")
        if not isinstance(rows[column], pd.Series):
            raise ValueError(f"{source} has two columns {column!r}: remove one of them")
        cells = rows[column]
        if (empty := cells.isna() | (cells.astype(str).str.strip() == "")).any():
            first = int(np.flatnonzero(empty)[0]) + 1
            raise ValueError(
                f"{source} has empty cells in column {column!r} in {empty.sum()} of {len(rows)} rows, the first is row "
                f"{first}"
            )
    if rows.empty:
        raise ValueError(f"{source} has no rows")


def _read_all(split_name: str, dataset: Any) -> tuple[Tensor, list[Any]]:
    """Read all images of a torch data set, as uint8 of shape (N, C, H, W), and its labels."""
    for needed in ("__getitem__", "__len__"):
        if not hasattr(dataset, needed) or isinstance(dataset, str | bytes | Mapping):
            raise TypeError(f"{split_name} must be a torch.utils.data.Dataset with __getitem__ and __len__, "
                            f"got {type(dataset).__name__}")  # fmt: skip
    if not len(dataset):
        raise ValueError(f"{split_name} has no images")
    if not torch.equal(*(_image_to_uint8(_read_item(split_name, dataset, 0)[0]) for _ in range(2))):
        warnings.warn(
            f"images of {split_name} change each time they are read, but they are read only once: pass random "
            "transforms to distill as augment=",
            stacklevel=3,
        )
    images, labels = [], []
    for row in range(len(dataset)):
        image, label, *_ = _read_item(split_name, dataset, row)
        images.append(_image_to_uint8(image))
        is_scalar = isinstance(label, Tensor | np.ndarray | np.generic) and len(label.reshape(-1)) == 1
        labels.append(label.item() if is_scalar else label)
        if images[-1].shape != images[0].shape:
            shapes = f"{tuple(images[0].shape)} and {tuple(images[-1].shape)}"
            raise ValueError(f"images of {split_name} have different sizes, {shapes}: give the data set a transform, "
                             "such as torchvision.transforms.v2.Resize((32, 32))")  # fmt: skip
    return torch.stack(images), _to_list(labels)


def _read_item(split_name: str, dataset: Any, row: int) -> Any:
    """Return the pair of an image and its label."""
    try:
        item = dataset[row]
    except (IndexError, KeyError) as error:
        message = f"{split_name} has length {len(dataset)}, but reading item {row} failed: {one_line(error)}"
        raise ValueError(message) from error
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise TypeError(f"items of {split_name} must be pairs (image, label), got {type(item).__name__}")
    return item


def _image_to_uint8(image: Any) -> Tensor:
    """Convert a PIL image, an array or a tensor to uint8 of shape (C, H, W)."""
    if isinstance(image, Image.Image):
        needs_no_conversion = image.mode in ("L", "RGB") and not image.has_transparency_data
        image = image if needs_no_conversion else to_rgb(image)
    return _to_uint8(image[None] if isinstance(image, Tensor) else np.array(image)[None])[0]
