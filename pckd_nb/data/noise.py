"""Label noise: wrong labels of training images, to study how a training copes with them.

`Dataset.with_label_noise` adds it to a data set. The result is the same on all machines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from .split import Split, balanced_sample, proportional_sample
from .streaming import Streamed

NOISE_OPTIONS = ("label_noise", "noise", "noise_seed")  # of `load_dataset`
MAX_STREAMED_IMAGES = 10_000  # that `nearest_classes` reads from their files
MAX_STREAMED_SIDE = 32  # pixels, to which it resizes them
STEPS_PER_LEVEL = 16  # precision of a mean image: a pixel is rounded down to a sixteenth of a grey level


def flip_labels(labels: torch.Tensor, wrong_classes: Sequence[np.ndarray], rate: float, seed: int) -> torch.Tensor:
    """Replace some labels by wrong ones.

    A higher rate with the same seed keeps all wrong labels and adds more.

    Parameters
    ----------
    labels : int64 Tensor of shape (N,)
        The true labels.
    wrong_classes : sequence of int64 array
        For each class, one or more labels that may replace it, with equal probability.
    rate : float, in (0, 1)
        Share of the labels to replace: exactly round(rate · N) of them, and about the same share of each class.
    seed : int
        Decides which labels are replaced, and by which ones.

    Returns
    -------
    int64 Tensor of shape (N,)

    Examples
    --------
    >>> import numpy as np, torch
    >>> from pckd_nb.data.noise import flip_labels
    >>> flip_labels(torch.tensor([0, 0, 1, 1]), [np.array([1]), np.array([0])], rate=0.5, seed=0).tolist()
    [1, 0, 0, 1]
    """
    true = labels.cpu().numpy()
    rows = proportional_sample(labels, round(rate * len(true)), len(wrong_classes), seed)
    draws = np.random.default_rng((seed, 1)).random(len(true))  # one per image, so that it does not depend on the rate
    given = true.copy()
    for label in np.unique(true[rows]):
        own = rows[true[rows] == label]
        wrong = wrong_classes[label]
        given[own] = wrong[(draws[own] * len(wrong)).astype(np.int64)]
    return torch.from_numpy(given).to(labels.device)


def other_classes(num_classes: int) -> list[np.ndarray]:
    """Return, for each class, all other classes.

    Parameters
    ----------
    num_classes : int

    Returns
    -------
    list of int64 array

    Examples
    --------
    >>> from pckd_nb.data.noise import other_classes
    >>> [others.tolist() for others in other_classes(3)]
    [[1, 2], [0, 2], [0, 1]]
    """
    return [np.delete(np.arange(num_classes), label) for label in range(num_classes)]


def confusable_classes(
    train: Split | Streamed, num_classes: int, groups: Mapping[str, Sequence[str]]
) -> list[np.ndarray]:
    """Return, for each class, the classes that it is easily confused with.

    These are the classes that share a group with it. A class that shares no group with another one gets the class of
    `nearest_classes`.

    Parameters
    ----------
    train : Split or Streamed
    num_classes : int
    groups : mapping of str to sequence of str
        For each grouping, the group of every class, such as the superclasses of CIFAR-100. See `Dataset.groups`.

    Returns
    -------
    list of int64 array

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> from pckd_nb.data.noise import confusable_classes
    >>> data = pckd.load_dataset("shapes100", train_size=100, test_size=100)
    >>> [len(classes) for classes in confusable_classes(data.train, data.num_classes, data.groups)][:3]
    [18, 18, 18]
    """
    together = np.zeros((num_classes, num_classes), bool)
    for grouping in groups.values():
        names = np.asarray(grouping)
        together |= names[:, None] == names
    np.fill_diagonal(together, False)
    alone = np.flatnonzero(~together.any(1))
    if len(alone):
        together[alone, nearest_classes(train, num_classes)[alone]] = True
    return [np.flatnonzero(row) for row in together]


def nearest_classes(train: Split | Streamed, num_classes: int) -> np.ndarray:
    """Return, for each class, the class whose mean image is nearest to its own mean image.

    The distance is Euclidean. The mean images have whole numbers, so the result is the same on all processors. At most
    10,000 images of a streamed split are read, and resized to at most 32×32 pixels.

    Parameters
    ----------
    train : Split or Streamed
    num_classes : int
        At least 2.

    Returns
    -------
    int64 array of shape (num_classes,)

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.data import Split
    >>> from pckd_nb.data.noise import nearest_classes
    >>> images = torch.tensor([0, 10, 30], dtype=torch.uint8).reshape(3, 1, 1, 1)
    >>> nearest_classes(Split(images, torch.tensor([0, 1, 2])), num_classes=3).tolist()
    [1, 0, 1]
    """
    if isinstance(train, Streamed):
        count = min(len(train), MAX_STREAMED_IMAGES)
        train = train.take(balanced_sample(train.labels, count, num_classes, seed=0))
        train = dataclasses.replace(train, side=min(train.side, MAX_STREAMED_SIDE), random_crop=False)
    labels = train.labels.cpu()
    sums = torch.zeros(num_classes, int(np.prod(train.shape)), dtype=torch.int64)
    batches = torch.arange(len(train)).split(1000)
    for index, images in zip(batches, train.read(batches), strict=True):
        sums.index_add_(0, labels[index], images.cpu().flatten(1).long())
    counts = labels.bincount(minlength=num_classes)
    means = (STEPS_PER_LEVEL * sums).div(counts.clamp(min=1)[:, None], rounding_mode="floor")
    means = means.double()  # of whole numbers below 2⁵³, so products and sums are exact, in any order
    squares = means.square().sum(1)
    distances = (squares[:, None] + squares - 2 * means @ means.T).numpy()
    distances[:, counts.numpy() == 0] = distances.max() + 1  # classes without images come last
    np.fill_diagonal(distances, np.inf)
    nearest: np.ndarray = distances.argmin(1)
    return nearest
