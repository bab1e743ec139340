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


def read_digits() -> tuple[Split, Split, tuple[str, ...]]:
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
