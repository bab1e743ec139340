"""Checks of class names, and a search for common mistakes in a data set."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from .split import Split
from .streaming import Streamed

if TYPE_CHECKING:
    from .dataset import Dataset

MAX_COMPARED_FILES = 10_000  # comparing more files takes too long, see `count_shared_images`


def check_class_names(classes: Sequence[str]) -> None:
    """Check that all classes have different names.

    Parameters
    ----------
    classes : sequence of str

    Raises
    ------
    ValueError
        If two names are equal, or look equal. Names look equal if they differ only in spaces at the ends, or in how
        Unicode encodes a letter such as é.
    """
    if repeated := [name for name, count in Counter(classes).items() if count > 1]:
        raise ValueError(f"two classes have the same name {repeated[0]!r}: rename one of them")
    seen: dict[str, str] = {}
    for name in classes:
        other = seen.setdefault(unicodedata.normalize("NFC", name).strip(), name)
        if other != name:
            raise ValueError(f"the classes {ascii(other)} and {ascii(name)} look the same: rename one of them")


def find_problems(data: Dataset) -> list[str]:
    """Search a data set for mistakes that make accuracies meaningless, such as test images that are also in train.

    Parameters
    ----------
    data : Dataset

    Returns
    -------
    list of str
        One line per problem.
    """
    problems = []
    counts = torch.bincount(data.train.labels.cpu(), minlength=data.num_classes)
    if missing := (counts == 0).nonzero().flatten().tolist():
        problems.append(
            f"train has no images of {len(missing):,} of {data.num_classes:,} classes, such as "
            f"{data.classes[missing[0]]!r}: add images, or number the labels from 0 without gaps"
        )
    for name in data.held_out:
        split = getattr(data, name)
        found = split.labels.unique()
        if len(found) == 1 and data.num_classes > 1:
            problems.append(f"{name} has images of only one class, {data.classes[int(found)]!r}: check its labels")
        if count := count_shared_images(data.train, split):
            problems.append(f"{count:,} of {len(split):,} {name} images are also in train: remove them from one split")
    return problems


def count_shared_images(train: Split | Streamed, other: Split | Streamed) -> int:
    """Count the images of a split that are also in train.

    Images in memory are compared by their pixels, and images of streamed splits by the bytes of their files.

    Parameters
    ----------
    train, other : Split or Streamed

    Returns
    -------
    int
        0 if the splits cannot be compared: one is in memory and the other is not, there are `MAX_COMPARED_FILES` or
        more files, or a file cannot be read.
    """
    if isinstance(train, Split) and isinstance(other, Split):
        train_hashes, other_hashes = (
            _hashes(map(np.ndarray.tobytes, split.images.cpu().numpy())) for split in (train, other)
        )
    elif isinstance(train, Streamed) and isinstance(other, Streamed) and len(train) + len(other) < MAX_COMPARED_FILES:
        try:
            train_hashes, other_hashes = _file_hashes(train, other)
        except OSError:  # reading this file later raises an error that names it
            return 0
    else:
        return 0
    in_train = set(train_hashes)
    return sum(image in in_train for image in other_hashes)


def _file_hashes(*splits: Streamed) -> list[list[bytes]]:
    """Return the hashes of the files of two splits. Skip files whose size occurs in only one split."""
    files = [{path: path.stat().st_size for path in map(split.path, range(len(split)))} for split in splits]
    common = set.intersection(*(set(sizes.values()) for sizes in files))
    return [_hashes(path.read_bytes() for path, size in sizes.items() if size in common) for sizes in files]


def _hashes(contents: Iterable[bytes]) -> list[bytes]:
    return [hashlib.blake2b(content).digest() for content in contents]
