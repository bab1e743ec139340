"""From stored images to network input: order, crop, normalisation and rotated views, as batch arithmetic.

Everything random here is a pure function of (seed, epoch, sample index). So neither order, batch size, process
nor restart can change how a sample is cropped, and a resumed run is the same run.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .plugs import is_plugin, load_plugin

# One stream of random numbers for every use, so that they are independent of each other.
ORDER, SHIFT_Y, SHIFT_X, FLIP, NOISE = range(5)
TRANSFORM = 17  # 16 is the random crop of `data.streaming`
Transform = Callable[[Tensor], Tensor]
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
MAX_PADDING = 1024  # pixels


def random_bits(seed: int, epoch: int, index: Tensor, stream: int) -> Tensor:
    """31 random bits for every sample: splitmix64 (Steele et al. 2014) of (seed, epoch, stream, index).

    index: (B,) int64 positions in the data set. Returns (B,) int64 in [0, 2³¹).
    Raises TypeError for an index or keys of another kind, ValueError for keys beyond 64 bits.
    """
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        raise TypeError(f"index must be an int64 tensor, got {getattr(index, 'dtype', type(index).__name__)}")
    for name, key in (("seed", seed), ("epoch", epoch), ("stream", stream)):
        _whole(name, key, -(2**63))
    x = index
    for key in (stream, epoch, seed):
        x = _mix(x + _mix(torch.full_like(index, key)))
    return (x >> 33) & 0x7FFFFFFF


def _mix(x: Tensor) -> Tensor:
    """splitmix64's output function on int64, which wraps as uint64 does; masks make the shifts logical."""
    x = x - 0x61C8864680B583EB  # the golden ratio, 0x9E3779B97F4A7C15, as a signed number
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def noise_seed(seed: int, epoch: int, step: int, rank: int = 0) -> int:
    """For torch.manual_seed before a step: of what is random in a network itself, dropout, on each of the ranks.
    Raises ValueError and TypeError as `random_bits`."""
    _whole("step", step, 0, 2**42)
    _whole("rank", rank, 0, 2**20 - 1)
    return int(random_bits(seed, epoch, torch.tensor([step * 2**20 + rank]), NOISE))


def steps(count: int, batch_size: int) -> int:
    """How many batches an epoch over `count` samples has. Raises ValueError where one of them is below 1."""
    _whole("count", count, 1)
    _whole("batch_size", batch_size, 1)
    return -(-count // batch_size)


def batches(count: int, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """The sample indices of one epoch, shuffled and cut into batches whose sizes differ by at most one.

    Every sample comes exactly once and no batch of one is left over. Returns int64 tensors of at most
    batch_size elements. Raises ValueError where count or batch_size is below 1.
    """
    parts = steps(count, batch_size)
    order = random_bits(seed, epoch, torch.arange(count), ORDER).argsort(stable=True)
    return order.tensor_split(parts)


def augment(images: Tensor, seed: int, epoch: int, index: Tensor, padding: int = 4, flip: bool = False) -> Tensor:
    """Random crop after zero padding and, where asked for, a random mirror image: CIFAR's usual augmentation.

    images: uint8 (B, C, H, W); index: (B,) their positions in the data set. Returns the same shape and type.
    Raises ValueError for what does not fit, TypeError for what is of another kind.
    """
    _pictures(images, "uint8")
    _whole("padding", padding, 0, MAX_PADDING)
    if not isinstance(index, Tensor) or index.shape != images.shape[:1]:
        raise ValueError(f"index must be a tensor of one position an image, {len(images)} of them")
    height, width = images.shape[2:]
    index = index.to(images.device)
    top = random_bits(seed, epoch, index, SHIFT_Y) % (2 * padding + 1)
    left = random_bits(seed, epoch, index, SHIFT_X) % (2 * padding + 1)
    windows = F.pad(images, [padding] * 4).unfold(2, height, 1).unfold(3, width, 1)  # a view: (B, C, tops, lefts, H, W)
    cropped = windows[torch.arange(len(images), device=images.device), :, top, left]
    if flip:
        mirrored = random_bits(seed, epoch, index, FLIP) % 2 == 1
        cropped = torch.where(mirrored[:, None, None, None], cropped.flip(3), cropped)
    return cropped


@dataclass(frozen=True)
class Augmentation:
    """All that happens to stored images in training before they are normalised: crop, flip and any other transform.

    It is a pure function of (seed, epoch, index), so it can be applied by any process, and in any order.

    Parameters
    ----------
    seed : int
    padding : int
        Of the random crop; 0 for none.
    flip : bool
    transform : callable, optional
        See `transform`.
    """

    seed: int
    padding: int
    flip: bool
    transform: Transform | None = None

    def __call__(self, images: Tensor, index: Tensor, epoch: int) -> Tensor:
        """Return the images as they are in an epoch. images: uint8 (B, C, H, W); index: int64 (B,)."""
        images = augment(images, self.seed, epoch, index, self.padding, self.flip)
        return transform(self.transform, images, self.seed, epoch, index) if self.transform else images


def find_transform(name: str | Transform) -> Transform:
    """An augmentation by the name of a transform of torchvision.transforms.v2 with its defaults, or of your own,
    "file.py:Name"; a callable is returned as it is. Raises ValueError for an unknown name."""
    if not isinstance(name, str):
        return name
    from torchvision.transforms import v2  # slow to import: only when asked for

    found = load_plugin(name) if is_plugin(name) else getattr(v2, name, None)
    if found is None:
        raise ValueError(f"unknown transform {name!r}: it must be a name in torchvision.transforms.v2, or file.py:NAME")
    return _made(name, found)  # type: ignore[no-any-return]


def find_mix(name: str | Mix, num_classes: int) -> Mix:
    """mixup (arXiv 1710.09412), cutmix (arXiv 1905.04899), or "file.py:Name" of your own; a callable as it is."""
    if not isinstance(name, str):
        return name
    if is_plugin(name):
        return _made(name, load_plugin(name), num_classes=num_classes)  # type: ignore[no-any-return]
    from torchvision.transforms import v2

    return {"mixup": v2.MixUp, "cutmix": v2.CutMix}[name](num_classes=num_classes)  # type: ignore[no-any-return]


def _made(name: str, found: Any, **arguments: Any) -> Any:
    """Return an object of a class, made with these arguments; anything but a class as it is."""
    try:
        return found(**arguments) if isinstance(found, type) else found
    except Exception as error:
        raise ValueError(
            f"'{name}' can't be made without more arguments: write file.py:NAME of a function ({error})"
        ) from error


def transform(augment: Transform, images: Tensor, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Any augmentation, image by image: a transform of torchvision.transforms.v2 or a function.

    Parameters
    ----------
    augment : callable
        uint8 Tensor of shape (C, H, W) to one of the same shape and dtype. What it draws from torch, numpy or `random`
        depends on (seed, epoch, index) only; the random numbers of the caller stay as they are.
    images : uint8 Tensor of shape (B, C, H, W)
    index : int64 Tensor of shape (B,)
        Positions in the data set.

    Raises
    ------
    TypeError
        If `augment` returns anything but a uint8 tensor.
    ValueError
        If it returns another shape.
    """
    _pictures(images, "uint8")
    keys = random_bits(seed, epoch, index.cpu(), TRANSFORM).tolist()
    result = torch.empty_like(images)
    with callers_random_numbers([images.device] if images.device.type == "cuda" else []):
        for row, (image, key) in enumerate(zip(images, keys, strict=True)):
            seed_everything(key)
            changed = augment(image)
            if not isinstance(changed, Tensor) or changed.dtype != torch.uint8:
                kind = changed.dtype if isinstance(changed, Tensor) else type(changed).__name__
                raise TypeError(f"augment must return a uint8 tensor for a uint8 tensor, got {kind}")
            if changed.shape != image.shape:
                got = f"{tuple(changed.shape)} of {tuple(image.shape)}"
                raise ValueError(f"augment must keep the shape of an image, (C, H, W), got {got}")
            result[row] = changed
    return result


def seed_everything(seed: int) -> None:
    """Seed the global random numbers of torch, numpy and Python. seed: in [0, 2³²)."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


@contextmanager
def callers_random_numbers(devices: Sequence[torch.device] | None = None) -> Iterator[None]:
    """Within the block random numbers may be seeded; after it all generators are as they were. devices: the GPUs whose
    generators count, besides the CPU's; None means all."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def soften(
    x: Tensor, labels: Tensor, num_classes: int, mix: Mix | None = None, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Soft targets, and the images that belong to them: label smoothing (arXiv 1512.00567), mixup, cutmix.

    Parameters
    ----------
    x : float Tensor of shape (B, C, H, W)
        Normalised images.
    labels : int64 Tensor of shape (B,)
    num_classes : int
    mix : callable, optional
        (images, labels) to (images, probabilities of shape (B, num_classes)), as torchvision's v2.MixUp and v2.CutMix.
    smoothing : float in [0, 1)
        s: targets become (1 − s) · target + s / num_classes.

    Returns
    -------
    x : Tensor of shape (B, C, H, W)
    targets : float Tensor of shape (B, num_classes)

    Raises
    ------
    ValueError
        If `mix` returns other shapes.
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
    """uint8 pixels to floats: (pixel / 255 − mean) / std. images (B, C, H, W); mean, std (C,).

    Returns mean's dtype, in the memory format of the images. Raises ValueError for what does not fit, TypeError for
    what is no tensor; a std of 0 is not looked for, as its pixels would have to be waited for on a GPU.
    """
    _pictures(images, "uint8")
    for name, values in (("mean", mean), ("std", std)):
        if not isinstance(values, Tensor) or not values.is_floating_point():
            raise TypeError(f"{name} must be a tensor of floating-point numbers")
        if values.device != images.device:
            raise ValueError(f"{name} is on {values.device}, the images on {images.device}")
        if values.shape != images.shape[1:2]:
            raise ValueError(f"{name} must be one number a channel, {images.shape[1]}, got {tuple(values.shape)}")
    scale, shift = 1 / (255 * std), mean / std
    return images.to(mean.dtype, copy=True).mul_(scale[:, None, None]).sub_(shift[:, None, None])


def rotate(images: Tensor, views: int = 4) -> Tensor:
    """The first `views` of the rotations by 0°, 90°, 180° and 270°, view-major: rows [:B] are the upright view.

    images (B, C, H, W). Returns (views·B, C, H, W) of the same type, channels_last.
    Raises ValueError for views outside 1 … 4, or more than one view of images that are not square.
    """
    _pictures(images)
    _whole("views", views, 0)
    if views not in (1, 2, 3, 4):
        raise ValueError(f"views must be 1, 2, 3 or 4, got {views}")
    if views > 1 and images.shape[2] != images.shape[3]:
        raise ValueError(f"rotated views need square images, got {images.shape[2]}×{images.shape[3]}; use views=1")
    pixels = images.permute(0, 2, 3, 1)
    return torch.cat([pixels.rot90(turns, (1, 2)) for turns in range(views)]).permute(0, 3, 1, 2)


def _whole(name: str, value: int, least: int, most: int = 2**63 - 1) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be from {least} to {most}, got {value}")


def _pictures(images: Tensor, dtype: str | None = None) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor, got {type(images).__name__}")
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"images must have shape (B, C, H, W), none of these 0, got {tuple(images.shape)}")
    if dtype and images.dtype != getattr(torch, dtype):
        raise ValueError(f"images must be {dtype}, got {images.dtype}")
