"""Data sets that need no download: shapes100, which is drawn, and digits, which is part of scikit-learn."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from . import shapes
from .split import Split


def read_shapes100(root: Path, train_size: int, test_size: int, seed: int) -> tuple[Split, Split]:
    """Read shapes100 from its cache files. Generate the images first if there are none.

    Parameters
    ----------
    root : Path
        Folder of the cache files.
    train_size, test_size : int
        Number of images.
    seed : int
        Seed of the generated images.

    Returns
    -------
    train, test : Split
    """
    return (
        _read_or_draw(root / f"shapes100-v{shapes.VERSION}-seed{seed}-train{train_size}.npz", train_size, (seed, 0)),
        _read_or_draw(root / f"shapes100-v{shapes.VERSION}-seed{seed}-test{test_size}.npz", test_size, (seed, 1)),
    )


def _read_or_draw(cache: Path, count: int, seed: tuple[int, int]) -> Split:
    """Read images from a cache file. If it is missing or damaged, draw them and write the file."""
    try:
        with np.load(cache) as file:  # a zip file: NumPy verifies its checksums
            return Split(
                torch.from_numpy(file["images"]),
                torch.from_numpy(file["labels"]),
                torch.from_numpy(file["difficulty"]),
            )
    except Exception:  # a missing or damaged file can raise almost any exception
        pass
    images, labels, difficulty = shapes.generate(count, seed)
    partial_file = cache.with_suffix(f".{os.getpid()}.tmp")
    with suppress(OSError):  # if the disk is full or read-only, the images are drawn again next time
        cache.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial_file, "wb") as file:
                np.savez(file, images=images, labels=labels, difficulty=difficulty)
            partial_file.replace(cache)
        finally:
            partial_file.unlink(missing_ok=True)
    return Split(torch.from_numpy(images), torch.from_numpy(labels), torch.from_numpy(difficulty))


def read_digits() -> tuple[Split, Split, tuple[str, ...]]:
    """Read the digits of scikit-learn, 1,797 images of 8×8 pixels. They are enlarged to 16×16 pixels.

    The networks halve the image size at least twice, so 8×8 pixels would be too few.

    Returns
    -------
    train, test : Split
        The test split has 450 images.
    classes : tuple of str
    """
    from sklearn.datasets import load_digits  # slow to import, so only when needed
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(_double_size(digits.images.astype(np.int64)))[:, None]
    labels = torch.from_numpy(digits.target).long()
    rows = train_test_split(np.arange(len(labels)), test_size=450, stratify=digits.target, random_state=0)
    train, test = (Split(images[r], labels[r]) for r in rows)
    return train, test, tuple(str(digit) for digit in range(10))


def _double_size(images: np.ndarray) -> np.ndarray:
    """Double the size of images, int64 (N, H, W) with values 0 to 16, by bilinear interpolation. Return uint8."""
    # Along both axes, a new pixel is 3/4 of the nearest old pixel and 1/4 of the next one. Whole numbers give the same
    # result on all processors.
    for axis in (1, 2):
        before = np.take(images, [0, *range(images.shape[axis] - 1)], axis)
        after = np.take(images, [*range(1, images.shape[axis]), images.shape[axis] - 1], axis)
        pair = np.stack([3 * images + before, 3 * images + after], axis + 1)
        images = pair.reshape(*images.shape[:axis], -1, *images.shape[axis + 1 :])
    # Values were at most 16, and each axis multiplied them by 4. Scale the new maximum 256 to 255. Round half to even.
    level, rest = np.divmod(255 * images, 16 * 16)
    enlarged: np.ndarray = level + ((rest > 128) | ((rest == 128) & (level % 2 == 1)))
    return enlarged.astype(np.uint8)
