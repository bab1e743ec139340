"""The class `Split`, whose images are in memory, and functions for random samples and pixel statistics.

`streaming.Streamed` is a split whose images stay in their files. Both classes have the same interface, but only
`Streamed.read` has the argument `augment`.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from ..deprecation import renamed_attribute
from ..provenance import code_fingerprint
from .streaming import Streamed


@dataclass(frozen=True, eq=False)
class Split:
    """A split whose images are in memory.

    Parameters
    ----------
    images : uint8 Tensor of shape (N, C, H, W)
    labels : int64 Tensor of shape (N,)
    difficulty : float32 Tensor of shape (N,), in [0, 1], optional
        Difficulty of each image, if it is known.
    ids : array of shape (N,), optional
        Name of each image, such as its file name. Python objects, such as paths, are converted to text.
    true_labels : int64 Tensor of shape (N,), optional
        The true labels, if some of `labels` are known to be wrong.

    Raises
    ------
    TypeError
        If `images` is not a uint8 tensor of shape (N, C, H, W), or `labels` are not whole numbers of shape (N,).
    ValueError
        If the number of labels or ids differs from the number of images.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.data import Split
    >>> split = Split(images=torch.zeros(3, 1, 8, 8, dtype=torch.uint8), labels=torch.tensor([0, 1, 1]))
    >>> len(split), split.shape
    (3, (1, 8, 8))
    """

    images: torch.Tensor
    labels: torch.Tensor
    difficulty: torch.Tensor | None = None
    ids: np.ndarray | None = None
    true_labels: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.images, torch.Tensor) or self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise TypeError(f"images must be a uint8 tensor of shape (N, C, H, W), got {_describe_type(self.images)}")
        object.__setattr__(self, "labels", _checked_labels(self.labels, len(self.images)))
        if self.true_labels is not None:
            object.__setattr__(self, "true_labels", _checked_labels(self.true_labels, len(self.images)))
        if self.ids is not None and (ids := np.asarray(self.ids)).dtype == object:  # a run folder has no objects
            object.__setattr__(self, "ids", ids.astype(str))
        if self.ids is not None and len(self.ids) != len(self.images):
            raise ValueError(f"there must be one id per image, got {len(self.images)} images and {len(self.ids)} ids")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def device(self) -> torch.device:
        """Device of the labels. `read` yields the images on this device."""
        return self.labels.device

    @property
    def padding(self) -> int:
        """Padding of the random crop in pixels: an eighth of the shorter side, such as 4 for 32 pixels."""
        return min(self.shape[1:]) // 8

    def read(
        self, batches: Iterable[torch.Tensor], *, seed: int | None = None, epoch: int | None = None
    ) -> Iterator[torch.Tensor]:
        """Yield the images of each batch, on `device`.

        Parameters
        ----------
        batches : iterable of int64 Tensor of shape (B,)
            Positions of the images of each batch.
        seed, epoch : int, optional
            Not used here. `Streamed.read` needs them for random crops.

        Yields
        ------
        uint8 Tensor of shape (B, C, H, W)
        """
        return (self.images[index.to(self.images.device)].to(self.device, non_blocking=True) for index in batches)

    def to(self, device: torch.device | str) -> Split:
        """Return the same split with its tensors on `device`.

        Images that need more memory than `device_memory_limit` stay where they are. `read` then moves each batch to
        the device.

        Parameters
        ----------
        device : torch.device or str

        Returns
        -------
        Split
        """
        images = self.images.to(device) if self.images.nbytes <= device_memory_limit(device) else self.images
        difficulty = None if self.difficulty is None else self.difficulty.to(device)
        labels = self.labels.to(device)
        true_labels = None if self.true_labels is None else self.true_labels.to(device)
        return dataclasses.replace(self, images=images, labels=labels, difficulty=difficulty, true_labels=true_labels)

    def take(self, rows: np.ndarray) -> Split:
        """Return a split with some of the images, in the given order.

        Parameters
        ----------
        rows : int64 array of shape (n,)
            Positions of the images.

        Returns
        -------
        Split
        """
        names = ("images", "labels", "difficulty", "ids", "true_labels")
        arrays = {name: array for name in names if (array := getattr(self, name)) is not None}
        chosen: dict[str, Any] = {name: array[rows] for name, array in arrays.items()}
        return dataclasses.replace(self, **chosen)

    def update_hash(self, digest: Any) -> None:
        """Update a hash with all pixels and labels. If the class is your own subclass, its code is added, too.

        `true_labels` are left out: a training does not use them.

        Parameters
        ----------
        digest : hashlib object
        """
        if code := code_fingerprint(type(self)):
            digest.update(code.encode())
        for tensor in (self.images, self.labels):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.cpu().contiguous().numpy())

    feed = renamed_attribute("feed", "update_hash")


def hash_split(split: Split | Streamed, digest: Any) -> None:
    """Update a hash with a split, by its method `update_hash`.

    If your own subclass of `Split` defines the method under its old name, `feed`, that one is called.

    Parameters
    ----------
    split : Split or Streamed
    digest : hashlib object
    """
    kind = type(split)
    has_own_feed = getattr(kind, "feed", None) not in (None, Split.feed, Streamed.feed)
    if not has_own_feed or getattr(kind, "update_hash", None) not in (None, Split.update_hash, Streamed.update_hash):
        split.update_hash(digest)
        return
    warnings.warn(f"{kind.__name__}.feed is now called update_hash: rename it", DeprecationWarning, stacklevel=2)
    with warnings.catch_warnings():  # the method of the subclass may call super().feed
        warnings.simplefilter("ignore", DeprecationWarning)
        split.feed(digest)


def device_memory_limit(device: torch.device | str) -> float:
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
    """Return labels as int64. Raise TypeError or ValueError unless there is one whole number per image."""
    try:
        labels = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:  # its message lists dtypes that are not allowed here
        raise TypeError(f"labels must be whole numbers of shape (N,), got {_describe_type(labels)}") from error
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool or labels.ndim != 1:
        one_hot = "convert one-hot labels with labels.argmax(1)"
        hint = one_hot if labels.shape[1:] != (1,) else "pass labels[:, 0]"
        hint = f": {hint}" * (labels.ndim == 2)
        raise TypeError(f"labels must be whole numbers of shape (N,), got {_describe_type(labels)}{hint}")
    if len(labels) != count:
        raise ValueError(f"there must be one label per image, got {count} images and {len(labels)} labels")
    numbers: torch.Tensor = labels.long()
    return numbers


def _describe_type(value: Any) -> str:
    """Return the type and shape of a value, for error messages."""
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    return f"{getattr(value, 'dtype', type(value).__name__)}{shape}"


def balanced_sample(labels: torch.Tensor, count: int, num_classes: int, seed: int) -> np.ndarray:
    """Choose a random sample that has about the same number of images of each class.

    Parameters
    ----------
    labels : int64 Tensor of shape (N,)
    count : int
        Number of images to choose.
    num_classes : int
    seed : int

    Returns
    -------
    int64 array of shape (count,)
        Positions of the chosen images, in ascending order.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.data.split import balanced_sample
    >>> labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    >>> labels[balanced_sample(labels, count=4, num_classes=2, seed=0)].tolist()
    [0, 0, 1, 1]
    """
    # The first image of each class has rank 0, the second one rank 1, and so on.
    return _sample_by_rank(labels, count, num_classes, seed, np.arange)


def stratified_sample(labels: torch.Tensor, count: int, num_classes: int, seed: int) -> np.ndarray:
    """Choose a random sample that has about the same share of each class.

    At least one image of each class is chosen, and at least one is not. If all classes have the same number of
    images, `balanced_sample` chooses the same ones.

    Parameters
    ----------
    labels : int64 Tensor of shape (N,)
        At least two labels of each class.
    count : int
        Number of images to choose, from num_classes to N − num_classes.
    num_classes : int
    seed : int

    Returns
    -------
    int64 array of shape (count,)
        Positions of the chosen images, in ascending order.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.data.split import stratified_sample
    >>> labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    >>> labels[stratified_sample(labels, count=4, num_classes=2, seed=0)].tolist()
    [0, 0, 0, 1]
    """
    # The first image of each class has rank 0 and the last one rank 1, so large classes give more images.
    return _sample_by_rank(labels, count, num_classes, seed, partial(np.linspace, 0, 1))


def proportional_sample(labels: torch.Tensor, count: int, num_classes: int, seed: int) -> np.ndarray:
    """Choose a random sample that has the same share of each class, except for rounding.

    A larger sample with the same seed contains all images of a smaller one.

    Parameters
    ----------
    labels : int64 Tensor of shape (N,)
    count : int
        Number of images to choose.
    num_classes : int
    seed : int

    Returns
    -------
    int64 array of shape (count,)
        Positions of the chosen images, in ascending order.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.data.split import proportional_sample
    >>> labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    >>> labels[proportional_sample(labels, count=4, num_classes=2, seed=0)].tolist()
    [0, 0, 0, 1]
    """
    # The n images of a class have the ranks 1/2n, 3/2n, …, so that a share r of each class has ranks below r.
    return _sample_by_rank(labels, count, num_classes, seed, lambda n: (np.arange(n) + 0.5) / max(n, 1))


def _sample_by_rank(
    labels: torch.Tensor, count: int, num_classes: int, seed: int, ranks: Callable[[int], np.ndarray]
) -> np.ndarray:
    """Shuffle the images, give the n images of each class the ranks `ranks(n)`, and choose the `count` lowest ranks."""
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = labels.cpu().numpy()[order]
    rank = np.empty(len(labels))
    for label in range(num_classes):
        rank[shuffled == label] = ranks((shuffled == label).sum())
    positions: np.ndarray = np.sort(order[np.argsort(rank, kind="stable")[:count]])
    return positions


def channel_statistics(train: Split | Streamed) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """Compute the mean and standard deviation of each channel.

    At most 1,000 images of a streamed split are read, evenly spaced over the split.

    Parameters
    ----------
    train : Split or Streamed

    Returns
    -------
    mean : tuple of float, in [0, 1]
        One number per channel, for pixels scaled to [0, 1].
    std : tuple of float
        One number per channel. It is at least 1/255, so that images of a single colour can be normalised.
    source : str
        Says which images the numbers were computed on.
    """
    if isinstance(train, Streamed):
        rows = torch.linspace(0, len(train) - 1, min(1000, len(train))).round().long()
        images = torch.cat(list(train.read(rows.split(50))))
        source = f"computed on {len(rows):,} of the training images, evenly spread"
    else:
        images, source = train.images, "computed on the training images"
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = (share * levels).sum()
        means.append(mean.item())
        stds.append(max((share * (levels - mean) ** 2).sum().sqrt().item(), 1 / 255))
    return tuple(means), tuple(stds), source
