"""Data sets that need no download: shapes100, which is drawn, and the digits of scikit-learn."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from . import shapes
from .dataset import Split


def read_shapes100(root: Path, train_size: int, test_size: int, seed: int) -> tuple[Split, Split]:
    """Read shapes100 from its cache, or draw it.

    Parameters
    ----------
    root : Path
        Folder of the cache.
    train_size, test_size : int
        Number of images.
    seed : int
        Decides which images are drawn.

    Returns
    -------
    train, test : Split
    """
    return (
        _drawn(root / f"shapes100-v{shapes.VERSION}-seed{seed}-train{train_size}.npz", train_size, (seed, 0)),
        _drawn(root / f"shapes100-v{shapes.VERSION}-seed{seed}-test{test_size}.npz", test_size, (seed, 1)),
    )


def _drawn(cache: Path, count: int, seed: tuple[int, int]) -> Split:
    """Return the images in the cache; if it is missing or damaged, draw them and write the cache if possible."""
    try:
        with np.load(cache) as file:  # a zip archive: its checksums are verified while reading
            return Split(
                torch.from_numpy(file["images"]),
                torch.from_numpy(file["labels"]),
                torch.from_numpy(file["difficulty"]),
            )
    except Exception:  # there is no cache, or it is damaged, which can raise almost any exception
        pass
    images, labels, difficulty = shapes.generate(count, seed)
    partial_file = cache.with_suffix(f".{os.getpid()}.tmp")
    with suppress(OSError):  # on a full or read-only disk, the images are drawn again next time
        cache.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial_file, "wb") as file:
                np.savez(file, images=images, labels=labels, difficulty=difficulty)
            partial_file.replace(cache)
        finally:
            partial_file.unlink(missing_ok=True)
    return Split(torch.from_numpy(images), torch.from_numpy(labels), torch.from_numpy(difficulty))


def read_digits() -> tuple[Split, Split, tuple[str, ...]]:
    """Read the digits of scikit-learn: 1,797 images of 8×8 pixels in 17 grey levels, enlarged to 16×16.

    They are enlarged because the networks halve the image size twice.

    Returns
    -------
    train, test : Split
        The test split has 450 images.
    classes : tuple of str
    """
    from sklearn.datasets import load_digits  # slow to import, so only when needed
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(_enlarged(digits.images.astype(np.int64)))[:, None]
    labels = torch.from_numpy(digits.target).long()
    rows = train_test_split(np.arange(len(labels)), test_size=450, stratify=digits.target, random_state=0)
    train, test = (Split(images[r], labels[r]) for r in rows)
    return train, test, tuple(str(digit) for digit in range(10))


def _enlarged(images: np.ndarray) -> np.ndarray:
    """Double the size of images, int64 (N, H, W), and map their 17 grey levels to 256: uint8 (N, 2·H, 2·W).

    The interpolation is bilinear. Along both axes, a new pixel is three quarters of the nearest old pixel and one
    quarter of the next one. It uses whole numbers, so that every processor gives the same result. Halves are rounded to
    the even level.
    """
    for axis in (1, 2):
        before = np.take(images, [0, *range(images.shape[axis] - 1)], axis)
        after = np.take(images, [*range(1, images.shape[axis]), images.shape[axis] - 1], axis)
        pair = np.stack([3 * images + before, 3 * images + after], axis + 1)
        images = pair.reshape(*images.shape[:axis], -1, *images.shape[axis + 1 :])
    level, rest = np.divmod(255 * images, 16 * 16)
    enlarged: np.ndarray = level + ((rest > 128) | ((rest == 128) & (level % 2 == 1)))
    return enlarged.astype(np.uint8)
