"""From stored images to the input of a network: order, augmentation, normalisation and rotated views.

All functions work on batches. Everything random depends only on the seed, the epoch, and the position of the sample in
the data set. So the batch size, the order of the samples, the number of processes, or a restart do not change how a
sample is cropped. A training that is resumed gives the same results as one that was never interrupted.

Examples
--------
>>> import torch
>>> import pckd_nb as pckd
>>> images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
>>> cropped = pckd.views.augment(images, seed=0, epoch=1, index=torch.arange(2))
>>> x = pckd.views.normalise(cropped, mean=torch.full((3,), 0.5), std=torch.full((3,), 0.25))
>>> pckd.views.rotate(x, views=4).shape
torch.Size([8, 3, 8, 8])
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .deprecation import renamed
from .plugins import is_plugin, load_plugin
from .tensor_checks import check_images, check_whole_number

# Every use has its own stream of random numbers, so that they are independent of each other.
ORDER, SHIFT_Y, SHIFT_X, FLIP, NOISE = range(5)
TRANSFORM = 17  # stream 16 is `CROP_STREAM` in `data.streaming`
STRONG, STRONG_FLIP = 18, 19
VIEW_SHIFT = 32  # the crops of view v use the streams VIEW_SHIFT + 2·v and VIEW_SHIFT + 2·v + 1, for v > 0
Transform = Callable[[Tensor], Tensor]  # image → image, see `apply_transform`
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # images, labels → images, class probabilities
MAX_PADDING = 1024  # pixels


def random_bits(seed: int, epoch: int, index: Tensor, stream: int) -> Tensor:
    """Return 31 random bits per sample.

    They are a hash of (seed, epoch, stream, index), computed with splitmix64.

    Parameters
    ----------
    seed, epoch : int
        From −2⁶³ to 2⁶³ − 1.
    index : int64 Tensor of shape (B,)
        Positions in the data set.
    stream : int
        Number of the stream, such as `ORDER` or `FLIP`. Different streams are independent of each other.

    Returns
    -------
    int64 Tensor of shape (B,)
        In [0, 2³¹).

    Raises
    ------
    TypeError
        If `index` is not an int64 tensor, or if another argument is not an integer.
    ValueError
        If `seed`, `epoch` or `stream` does not fit in 64 bits.

    References
    ----------
    Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
    """
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        raise TypeError(f"index must be an int64 tensor, got {getattr(index, 'dtype', type(index).__name__)}")
    for name, key in (("seed", seed), ("epoch", epoch), ("stream", stream)):
        check_whole_number(name, key, -(2**63))
    x = index
    for key in (stream, epoch, seed):
        x = _splitmix64(x + _splitmix64(torch.full_like(index, key)))
    return (x >> 33) & 0x7FFFFFFF


def _splitmix64(x: Tensor) -> Tensor:
    """Return the random number that splitmix64 computes from the state x, with int64 instead of uint64."""
    # Sums and products of int64 overflow to the same bits as those of uint64. A right shift of a negative int64 fills
    # in ones from the left. The masks remove them.
    x = x - 0x61C8864680B583EB  # the golden ratio 0x9E3779B97F4A7C15 as a signed number
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def step_seed(seed: int, epoch: int, step: int, rank: int = 0) -> int:
    """Return a seed for `torch.manual_seed` at the beginning of a training step.

    It makes the randomness inside of a network, such as dropout, repeatable.

    Parameters
    ----------
    seed, epoch : int
    step : int, from 0 to 2⁴²
        Number of the step in the epoch.
    rank : int, from 0 to 2²⁰ − 1
        Number of the process. Every process gets a different seed.

    Returns
    -------
    int, in [0, 2³¹)

    Raises
    ------
    TypeError
        If an argument is not an integer.
    ValueError
        If an argument is outside its range.
    """
    check_whole_number("step", step, 0, 2**42)
    check_whole_number("rank", rank, 0, 2**20 - 1)
    return int(random_bits(seed, epoch, torch.tensor([step * 2**20 + rank]), NOISE))


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the number of batches per epoch.

    Parameters
    ----------
    count : int
        Number of samples, at least 1.
    batch_size : int
        At least 1.

    Returns
    -------
    int

    Raises
    ------
    TypeError
        If an argument is not an integer.
    ValueError
        If an argument is less than 1.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> pckd.views.steps_per_epoch(count=100, batch_size=32)
    4
    """
    check_whole_number("count", count, 1)
    check_whole_number("batch_size", batch_size, 1)
    return -(-count // batch_size)


def batches(count: int, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """Return the sample indices of one epoch, shuffled and divided into batches.

    Every sample occurs exactly once. The sizes of the batches differ by at most 1, so there is no small last batch.

    Parameters
    ----------
    count : int
        Number of samples, at least 1.
    batch_size : int
        Largest size of a batch, at least 1.
    seed, epoch : int
        They decide the order.

    Returns
    -------
    tuple of int64 Tensor
        One per batch.

    Raises
    ------
    TypeError
        If an argument is not an integer.
    ValueError
        If `count` or `batch_size` is less than 1.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> [len(batch) for batch in pckd.views.batches(count=100, batch_size=32, seed=0, epoch=1)]
    [25, 25, 25, 25]
    """
    num_batches = steps_per_epoch(count, batch_size)
    order = random_bits(seed, epoch, torch.arange(count), ORDER).argsort(stable=True)
    return order.tensor_split(num_batches)


def augment(images: Tensor, seed: int, epoch: int, index: Tensor, padding: int = 4, flip: bool = False) -> Tensor:
    """Return randomly cropped and flipped images: the usual augmentation of CIFAR.

    Every image is padded with zeros and then cropped to its original size at a random position.

    Parameters
    ----------
    images : uint8 Tensor of shape (B, C, H, W)
    seed, epoch : int
    index : int64 Tensor of shape (B,)
        Positions of the images in the data set.
    padding : int, from 0 to 1024
        Pixels on every side.
    flip : bool
        Whether every image is mirrored, left to right, with probability ½.

    Returns
    -------
    uint8 Tensor of shape (B, C, H, W)

    Raises
    ------
    TypeError
        If `images` is not a tensor, if `seed`, `epoch` or `padding` is not an integer, or if `index` is not int64.
    ValueError
        If `index` is not a tensor, if a shape or the dtype of `images` is wrong, or if `padding` is outside its range.

    Examples
    --------
    >>> import torch
    >>> import pckd_nb as pckd
    >>> images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    >>> pckd.views.augment(images, seed=0, epoch=1, index=torch.arange(2), flip=True).shape
    torch.Size([2, 3, 8, 8])
    """
    check_images(images, torch.uint8)
    check_whole_number("padding", padding, 0, MAX_PADDING)
    if not isinstance(index, Tensor) or index.shape != images.shape[:1]:
        got = f"shape {tuple(index.shape)}" if isinstance(index, Tensor) else type(index).__name__
        raise ValueError(f"index must be a tensor of shape ({len(images)},), one position per image, got {got}")
    index = index.to(images.device)
    cropped = _crop(images, seed, epoch, index, padding)
    return _flip(cropped, seed, epoch, index) if flip else cropped


def strong_transform() -> Transform:
    """Return the strong augmentation of MLKD: two random operations of RandAugment, then a random grey square.

    The side of the square is at most half the shorter side of the image.

    Returns
    -------
    callable
        It takes and returns a uint8 tensor of shape (C, H, W).

    References
    ----------
    Cubuk et al. (RandAugment), arXiv 1909.13719. Jin et al., "Multi-Level Logit Distillation", CVPR 2023.
    """
    from torchvision.transforms import v2  # slow to import, so only when needed

    return v2.Compose([v2.RandAugment(num_ops=2), _cut_out])  # type: ignore[no-any-return]


def _cut_out(image: Tensor) -> Tensor:
    """Make a random square of an image grey."""
    height, width = image.shape[1:]
    side = int(torch.randint(min(height, width) // 2 + 1, ()))
    top, left = (int(torch.randint(size - side + 1, ())) for size in (height, width))
    image = image.clone()
    image[:, top : top + side, left : left + side] = 127
    return image


def _crop(images: Tensor, seed: int, epoch: int, index: Tensor, padding: int, view: int = 0) -> Tensor:
    """Pad images with zeros, and crop them at random positions. Every view has random positions of its own."""
    height, width = images.shape[2:]
    stream_y, stream_x = (VIEW_SHIFT + 2 * view, VIEW_SHIFT + 2 * view + 1) if view else (SHIFT_Y, SHIFT_X)
    top = random_bits(seed, epoch, index, stream_y) % (2 * padding + 1)
    left = random_bits(seed, epoch, index, stream_x) % (2 * padding + 1)
    windows = F.pad(images, [padding] * 4).unfold(2, height, 1).unfold(3, width, 1)  # (B, C, top, left, H, W)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def _flip(images: Tensor, seed: int, epoch: int, index: Tensor, stream: int = FLIP) -> Tensor:
    """Mirror every image, left to right, with probability ½."""
    mirrored = random_bits(seed, epoch, index, stream) % 2 == 1
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


@dataclass(frozen=True)
class Augmentation:
    """The complete augmentation of a training: crop, flip, and an optional transform.

    It depends only on the seed, the epoch and the index, so every process can apply it, in any order.

    Parameters
    ----------
    seed : int
    padding : int
        Padding of the random crop in pixels. 0 means no crop.
    flip : bool
        Whether every image is mirrored with probability ½.
    transform : callable, optional
        See `apply_transform`.
    views : int, from 1 to 4
        V. 1 returns every image once: cropped, flipped and transformed. With V > 1, every image has V rotated views,
        which are cropped separately: the image is flipped, transformed, rotated and then cropped.
    strong : callable, optional
        If given, every image has a second view: another crop and flip, and then this transform instead of `transform`.
        `views` must be 1.
    """

    seed: int
    padding: int
    flip: bool
    transform: Transform | None = None
    views: int = 1
    strong: Transform | None = None

    def __call__(self, images: Tensor, index: Tensor, epoch: int) -> Tensor:
        """Return the augmented images of an epoch.

        Parameters
        ----------
        images : uint8 Tensor of shape (B, C, H, W)
        index : int64 Tensor of shape (B,)
            Positions in the data set.
        epoch : int

        Returns
        -------
        uint8 Tensor of shape (V·B, C, H, W), or (2·B, C, H, W) with `strong`
            Sorted by view and then by image, as in `rotate`.
        """
        second = self._strong_view(images, index.to(images.device), epoch) if self.strong else None
        padding = self.padding if self.views == 1 else 0
        images = augment(images, self.seed, epoch, index, padding, self.flip)
        if self.transform:
            images = apply_transform(self.transform, images, self.seed, epoch, index)
        if self.views == 1:
            return images if second is None else torch.cat([images, second])
        index = index.to(images.device)
        views = rotate(images, self.views).split(len(images))
        return torch.cat([_crop(x, self.seed, epoch, index, self.padding, view) for view, x in enumerate(views)])

    def _strong_view(self, images: Tensor, index: Tensor, epoch: int) -> Tensor:
        assert self.strong is not None
        images = _crop(images, self.seed, epoch, index, self.padding, view=1)
        if self.flip:
            images = _flip(images, self.seed, epoch, index, STRONG_FLIP)
        return apply_transform(self.strong, images, self.seed, epoch, index, STRONG)


def find_transform(name: str | Transform) -> Transform:
    """Return a transform by its name.

    Parameters
    ----------
    name : str or callable
        The name of a class in torchvision.transforms.v2, which is created with its default arguments, or
        "file.py:NAME" of your own transform. A callable is returned unchanged.

    Returns
    -------
    callable

    Raises
    ------
    ValueError
        If the name is unknown, or if the class needs arguments.
    """
    if not isinstance(name, str):
        return name
    from torchvision.transforms import v2  # slow to import, so only when needed

    found = load_plugin(name) if is_plugin(name) else getattr(v2, name, None)
    if found is None:
        raise ValueError(f"unknown transform {name!r}: it must be a name in torchvision.transforms.v2, or file.py:NAME")
    return _instantiate(name, found)  # type: ignore[no-any-return]


def find_mix(name: str | Mix, num_classes: int) -> Mix:
    """Return a function that mixes the images of a batch, and their labels, by its name.

    Parameters
    ----------
    name : str or callable
        "mixup", "cutmix", or "file.py:NAME" of your own mix function. A callable is returned unchanged.
    num_classes : int
        Number of classes.

    Returns
    -------
    callable
        It takes images and labels and returns images and class probabilities, see `soft_targets`.

    Raises
    ------
    KeyError
        If the name is unknown.
    ValueError
        If your own class cannot be created with `num_classes` alone.

    References
    ----------
    Zhang et al. (mixup), arXiv 1710.09412. Yun et al. (CutMix), arXiv 1905.04899.
    """
    if not isinstance(name, str):
        return name
    if is_plugin(name):
        return _instantiate(name, load_plugin(name), num_classes=num_classes)  # type: ignore[no-any-return]
    from torchvision.transforms import v2

    return {"mixup": v2.MixUp, "cutmix": v2.CutMix}[name](num_classes=num_classes)  # type: ignore[no-any-return]


def _instantiate(name: str, found: Any, **arguments: Any) -> Any:
    """Return an instance of a class, and anything else unchanged."""
    try:
        return found(**arguments) if isinstance(found, type) else found
    except Exception as error:
        raise ValueError(
            f"'{name}' can't be created without more arguments: create it in a file and write file.py:NAME ({error})"
        ) from error


def apply_transform(
    augment: Transform, images: Tensor, seed: int, epoch: int, index: Tensor, stream: int = TRANSFORM
) -> Tensor:
    """Apply a transform to every image of a batch.

    The random numbers that the transform draws from torch, NumPy or `random` depend only on the seed, the epoch and the
    index. The random state of the caller does not change.

    Parameters
    ----------
    augment : callable
        A transform of torchvision.transforms.v2, or a function. It takes a uint8 tensor of shape (C, H, W) and returns
        one of the same shape.
    images : uint8 Tensor of shape (B, C, H, W)
    seed, epoch : int
    index : int64 Tensor of shape (B,)
        Positions in the data set.
    stream : int
        The stream of random numbers, see `random_bits`.

    Returns
    -------
    uint8 Tensor of shape (B, C, H, W)

    Raises
    ------
    TypeError
        If `augment` does not return a uint8 tensor.
    ValueError
        If `augment` returns another shape.
    """
    check_images(images, torch.uint8)
    keys = random_bits(seed, epoch, index.cpu(), stream).tolist()
    result = torch.empty_like(images)
    with preserve_random_state([images.device] if images.device.type == "cuda" else []):
        for row, (image, key) in enumerate(zip(images, keys, strict=True)):
            seed_everything(key)
            changed = augment(image)
            if not isinstance(changed, Tensor) or changed.dtype != torch.uint8:
                got = changed.dtype if isinstance(changed, Tensor) else type(changed).__name__
                raise TypeError(f"augment must return a uint8 tensor for a uint8 tensor, got {got}")
            if changed.shape != image.shape:
                shapes = f"{tuple(changed.shape)} for {tuple(image.shape)}"
                raise ValueError(f"augment must keep the shape of an image, (C, H, W), got {shapes}")
            result[row] = changed
    return result


def seed_everything(seed: int) -> None:
    """Seed the global random number generators of torch, NumPy and Python.

    Parameters
    ----------
    seed : int, in [0, 2³²)
    """
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


@contextmanager
def preserve_random_state(devices: Sequence[torch.device] | None = None) -> Iterator[None]:
    """Restore the global random number generators of torch, NumPy and Python after a `with` block.

    Parameters
    ----------
    devices : sequence of torch.device, optional
        GPUs whose generators are restored, in addition to that of the CPU. None means all.

    Examples
    --------
    >>> import torch
    >>> import pckd_nb as pckd
    >>> with pckd.views.preserve_random_state():
    ...     pckd.views.seed_everything(0)
    ...     x = torch.rand(1)
    """
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def soft_targets(
    x: Tensor, labels: Tensor, num_classes: int, mix: Mix | None = None, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    r"""Return soft targets for a batch, with label smoothing and mixed images.

    .. math::

        \mathrm{target} = (1 - s) \cdot \mathrm{target}_{\mathrm{mixed}} + \frac{s}{\mathrm{num\_classes}}

    s is `smoothing`. Without `mix`, the mixed target is the one-hot vector of the label.

    Parameters
    ----------
    x : float Tensor of shape (B, C, H, W)
        Normalised images.
    labels : int64 Tensor of shape (B,)
    num_classes : int
        Number of classes.
    mix : callable, optional
        Takes (images, labels) and returns (images, probabilities of shape (B, num_classes)), such as v2.MixUp and
        v2.CutMix of torchvision.
    smoothing : float, in [0, 1)
        s. 0 means no label smoothing.

    Returns
    -------
    x : Tensor of shape (B, C, H, W)
        The images, mixed if `mix` is given.
    targets : float Tensor of shape (B, num_classes)
        Class probabilities.

    Raises
    ------
    ValueError
        If `mix` returns other shapes.

    References
    ----------
    Szegedy et al. (label smoothing), arXiv 1512.00567.

    Examples
    --------
    >>> import torch
    >>> import pckd_nb as pckd
    >>> x, targets = pckd.views.soft_targets(torch.zeros(1, 3, 8, 8), torch.tensor([0]), num_classes=2, smoothing=0.5)
    >>> targets
    tensor([[0.7500, 0.2500]])
    """
    targets = F.one_hot(labels, num_classes).to(x.dtype)
    if mix is not None:
        mixed, targets = mix(x, labels)
        if mixed.shape != x.shape or targets.shape != (len(x), num_classes):
            got = f"{tuple(mixed.shape)} and {tuple(targets.shape)}"
            raise ValueError(
                f"mix must return images {tuple(x.shape)} and probabilities {(len(x), num_classes)}, got {got}"
            )
        x, targets = mixed, targets.to(x.dtype)
    return x, (1 - smoothing) * targets + smoothing / num_classes


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    r"""Return normalised images.

    .. math::

        x = \frac{\mathrm{pixel} / 255 - \mathrm{mean}}{\mathrm{std}}

    Parameters
    ----------
    images : uint8 Tensor of shape (B, C, H, W)
    mean, std : float Tensor of shape (C,)
        For pixels in [0, 1]. A std of 0 is not detected, because the check would have to wait for the GPU.

    Returns
    -------
    Tensor of shape (B, C, H, W)
        With the dtype of `mean` and the memory format of `images`.

    Raises
    ------
    TypeError
        If an argument is not a tensor, or if `mean` or `std` is not floating-point.
    ValueError
        If shapes, dtypes or devices do not match.

    Examples
    --------
    >>> import torch
    >>> import pckd_nb as pckd
    >>> images = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
    >>> pckd.views.normalise(images, mean=torch.tensor([0.5]), std=torch.tensor([0.25])).flatten().tolist()
    [-2.0, 2.0]
    """
    check_images(images, torch.uint8)
    for name, values in (("mean", mean), ("std", std)):
        if not isinstance(values, Tensor) or not values.is_floating_point():
            got = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise TypeError(f"{name} must be a tensor of floating-point numbers, got {got}")
        if values.device != images.device:
            raise ValueError(f"{name} must be on {images.device}, where the images are, got {name} on {values.device}")
        if values.shape != images.shape[1:2]:
            shapes = f"shape ({images.shape[1]},), one number per channel, got {tuple(values.shape)}"
            raise ValueError(f"{name} must have {shapes}")
    scale, shift = 1 / (255 * std), mean / std
    return images.to(mean.dtype, copy=True).mul_(scale[:, None, None]).sub_(shift[:, None, None])


def rotate(images: Tensor, views: int = 4) -> Tensor:
    """Return the views of a batch: its images rotated by 0°, 90°, 180° and 270°, counterclockwise.

    Rows [:B] are the images that are not rotated, the next B rows are the images rotated by 90°, and so on.

    Parameters
    ----------
    images : Tensor of shape (B, C, H, W)
    views : int, from 1 to 4
        V: only the first V rotations are returned.

    Returns
    -------
    Tensor of shape (V·B, C, H, W)
        Of the same dtype, in the memory format channels_last.

    Raises
    ------
    TypeError
        If `images` is not a tensor, or if `views` is not an integer.
    ValueError
        If `views` is not from 1 to 4, or if there is more than one view and the images are not square.

    Examples
    --------
    >>> import torch
    >>> import pckd_nb as pckd
    >>> images = torch.tensor([[[[1, 2], [3, 4]]]])
    >>> pckd.views.rotate(images, views=2)[1, 0].tolist()
    [[2, 4], [1, 3]]
    """
    check_images(images)
    check_whole_number("views", views, 1, 4)
    if views > 1 and images.shape[2] != images.shape[3]:
        raise ValueError(f"rotated views need square images, got {images.shape[2]}×{images.shape[3]}; use views=1")
    pixels = images.permute(0, 2, 3, 1)
    return torch.cat([pixels.rot90(turns, (1, 2)) for turns in range(views)]).permute(0, 3, 1, 2)


__getattr__ = renamed(__name__)
