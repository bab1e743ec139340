"""Images that stay in their files: a split too big for memory, which worker processes read batch by batch."""

from __future__ import annotations

import dataclasses
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from .. import views
from ..downloads import one_line

T = TypeVar("T")

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "AVIF")  # read by Pillow itself
LONGEST = 100  # how many times an image may be longer than wide
CROP = 16  # the random crop's stream of random numbers, beside those of `views`


@dataclass(frozen=True, eq=False)
class Streamed:
    """A split whose images are read when they are asked for, with the same interface as `dataset.Split`.

    names: (N,) bytes, file names as seen from `folder`: one array, where a million Path objects would be copied into
    every worker · labels: int64 (N,) · images are uint8 (3, side, side) · workers: how many processes read, 0 for none;
    None takes one a CPU core, at most 8. What `random_crop` does: see `read`.
    """

    folder: Path
    names: np.ndarray
    labels: Tensor
    side: int
    random_crop: bool = False
    workers: int | None = None
    difficulty = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return 3, self.side, self.side

    @property
    def ids(self) -> np.ndarray:
        """What each image is called: its file name."""
        return self.names

    @property
    def device(self) -> torch.device:
        """Where labels are, and batches go."""
        return self.labels.device

    @property
    def padding(self) -> int:
        """By how many pixels to pad for the random crop: 0 where `read` crops already."""
        return 0 if self.random_crop else self.side // 8

    def to(self, device: torch.device | str) -> Streamed:
        """The same split with its labels, and the batches to come, on `device`."""
        return dataclasses.replace(self, labels=self.labels.to(device))

    def take(self, rows: np.ndarray) -> Streamed:
        """The part of the split at `rows`, int64 (n,), in that order."""
        return dataclasses.replace(self, names=self.names[rows], labels=self.labels[rows])

    def feed(self, digest: Any) -> None:
        """Update a hashlib `digest` with names, sizes in bytes, labels and shape: pixels would take too long."""
        folder = os.fsencode(self.folder)
        sizes = [os.stat(os.path.join(folder, name)).st_size for name in self.names]
        digest.update(str((len(self), *self.shape)).encode())
        digest.update(b"\n".join(self.names))
        digest.update(np.array(sizes, np.int64))
        digest.update(self.labels.cpu().numpy())

    def path(self, index: int) -> Path:
        return self.folder / os.fsdecode(self.names[index])

    def read(self, batches: Iterable[Tensor], *, seed: int | None = None, epoch: int | None = None) -> Iterator[Tensor]:
        """For every index tensor, int64 (B,), its images on `device`: uint8 (B, 3, side, side), in that order.

        With `random_crop` and an epoch, torchvision's RandomResizedCrop as a pure function of (seed, epoch, index);
        with `random_crop` alone, its usual counterpart in evaluation, the middle of the image scaled to 256 pixels
        for 224; without, as `fit`. `batches` is read ahead. The workers end with the iterator, also when it is left
        early; where Python does not fork, scripts need the usual `if __name__ == "__main__"`.
        Raises OSError, in one line, for a file that can't be read.
        """
        from torchvision.transforms import v2  # slow to import: only when asked for

        if not self.random_crop:
            steps: list[Callable[..., Image.Image]] = [partial(fit, side=self.side)]
        elif epoch is None:
            steps = [_rgb, v2.Resize(self.side * 256 // 224), v2.CenterCrop(self.side)]
        elif seed is None:
            raise ValueError("the random crops of an epoch need a seed too")
        else:
            steps = [_rgb, v2.RandomResizedCrop(self.side)]
        pinned = self.device.type == "cuda"
        loader = DataLoader(
            _Reader(self, v2.Compose([*steps, v2.PILToTensor()]), seed, epoch),
            batch_sampler=(batch.tolist() for batch in batches),
            num_workers=min(8, cores()) if self.workers is None else self.workers,
            collate_fn=_collate,
            pin_memory=pinned,
            worker_init_fn=_start,
            generator=torch.Generator(),  # else it takes a number from the caller's
        )
        for images in loader:
            if isinstance(images, OSError):
                raise images
            yield images.to(self.device, non_blocking=pinned)


def cores() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_image(path: Path, use: Callable[[Image.Image], T]) -> T:
    """What `use` makes of the image in `path`. Raises OSError, in one line, where it can't be read."""
    try:
        with open_image(path.read_bytes()) as image:  # Pillow opens bytes faster than a path
            return use(image)
    except Exception as error:  # whoever made the file decides what goes wrong
        reason = "it is no image" if isinstance(error, UnidentifiedImageError) else one_line(error)
        raise OSError(f"cannot read the image {path} ({reason}): replace or delete it") from error


def open_image(data: bytes) -> Image.Image:
    """The image that a file's bytes hold, in one of `FORMATS`, whatever its name says: Pillow has readers that run
    other programs, PostScript's among them. Raises what Pillow raises."""
    return Image.open(BytesIO(data), formats=FORMATS)


def fit(image: Image.Image, side: int) -> Image.Image:
    """`image` in RGB, scaled until its shorter side is `side`, and cut to the middle."""
    image = _rgb(image)
    if image.size != (side, side):
        scale = side / min(image.size)
        width, height = (max(side, round(length * scale)) for length in image.size)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        image = image.crop((left, top, left + side, top + side))
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):  # of which nobody says what is black and what is white; Pillow would cut off at 255
        raise ValueError(f"it has numbers of 32 bits (mode {image.mode}): convert it to 8 bits")
    if max(image.size) > LONGEST * min(image.size):  # scaled to a small side it would fill the memory
        raise ValueError(f"it has {image.width}×{image.height} pixels, one side more than {LONGEST} times the other")
    return image.convert("RGB")


class _Reader(torch.utils.data.Dataset):
    """What a worker needs of a split, without its labels, which may be on a GPU."""

    def __init__(
        self, split: Streamed, transform: Callable[[Image.Image], Tensor], seed: int | None, epoch: int | None
    ):
        self.files = dataclasses.replace(split, labels=torch.empty(0))
        self.transform, self.seed, self.epoch = transform, seed, epoch

    def __getitem__(self, index: int) -> Tensor | OSError:
        """An image, uint8 (3, side, side), or what is wrong with it: raised here, that would arrive as a traceback."""
        with torch.random.fork_rng(devices=[]):
            if self.files.random_crop and self.seed is not None and self.epoch is not None:
                bits = views.random_bits(self.seed, self.epoch, torch.tensor([index]), CROP)
                torch.default_generator.manual_seed(int(bits))  # torch.manual_seed would change GPUs' generators too
            try:
                return read_image(self.files.path(index), self.transform)
            except OSError as error:
                return error


def _collate(images: list[Tensor | OSError]) -> Tensor | OSError:
    damaged = next((image for image in images if isinstance(image, OSError)), None)
    return damaged or default_collate(images)


def _start(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process: the main one decides when to stop
    warnings.filterwarnings("ignore", module="PIL")  # odd EXIF data of an image would be told again by every worker
