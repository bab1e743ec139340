"""Images that stay in their files: a split too big for memory, which worker processes read batch by batch."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pickle
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader

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

    def _workers(self, augment: object) -> int:
        """How many processes read: none where they would have to be sent an `augment` that can't be pickled."""
        wanted = min(8, cores()) if self.workers is None else self.workers
        if wanted and multiprocessing.get_start_method() != "fork":
            try:
                pickle.dumps(augment)
            except Exception as error:  # whatever an object raises that can't be pickled
                warnings.warn(f"workers can't be sent augment ({one_line(error)}): this process reads", stacklevel=3)
                return 0
        return wanted

    def read(
        self,
        batches: Iterable[Tensor],
        *,
        seed: int | None = None,
        epoch: int | None = None,
        augment: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Iterator[Tensor]:
        """Yield the images of every batch, on `device`: uint8 (B, 3, side, side).

        Images are read ahead, by `workers` processes. These end with the iterator, also when it is left early. Where
        Python does not fork, scripts need the usual `if __name__ == "__main__"`, and `augment` has to be picklable.

        Parameters
        ----------
        batches : iterable of int64 Tensor of shape (B,)
            Positions of images.
        seed, epoch : int, optional
            With `random_crop` and both, images are cut as by torchvision's RandomResizedCrop, as a pure function of
            (seed, epoch, index). With `random_crop` alone, as it is usual for a test: the middle of the image scaled to
            256 pixels for 224. Without `random_crop`, as by `fit`.
        augment : callable, optional
            From images, uint8 (B, 3, side, side), and their positions, int64 (B,), to images. The workers apply it.

        Raises
        ------
        OSError
            In one line, for a file that can't be read.
        """
        from torchvision.transforms import v2  # slow to import: only when asked for

        if not self.random_crop:
            steps: Callable[[Image.Image], Image.Image] = partial(fit, side=self.side)
        elif epoch is None:
            steps = v2.Compose([_rgb, v2.Resize(self.side * 256 // 224), v2.CenterCrop(self.side)])
        elif seed is None:
            raise ValueError("the random crops of an epoch need a seed too")
        else:
            steps = v2.Compose([_rgb, v2.RandomResizedCrop(self.side)])
        pinned = self.device.type == "cuda"
        loader = DataLoader(
            _Reader(self, steps, seed, epoch, augment),
            batch_sampler=(batch.tolist() for batch in batches),
            num_workers=self._workers(augment),
            collate_fn=_as_it_is,
            pin_memory=pinned,
            worker_init_fn=_start,
            generator=torch.Generator(),  # else it takes a number from the caller's
        )
        for images in loader:
            if isinstance(images, Exception):
                raise images
            yield images.to(self.device, non_blocking=pinned)


def cores() -> int:
    """Return how many CPU cores this process may use."""
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
    if image.mode != "RGB":
        return image.convert("RGB")
    image.load()  # as `convert` does
    return image


class _Reader(torch.utils.data.Dataset):
    """What a worker needs of a split, without its labels, which may be on a GPU."""

    def __init__(
        self,
        split: Streamed,
        transform: Callable[[Image.Image], Image.Image],
        seed: int | None,
        epoch: int | None,
        augment: Callable[[Tensor, Tensor], Tensor] | None,
    ):
        self.files = dataclasses.replace(split, labels=torch.empty(0))
        self.transform, self.seed, self.epoch, self.augment = transform, seed, epoch, augment

    def __getitems__(self, rows: list[int]) -> Tensor | Exception:
        """Return a batch, uint8 (B, 3, side, side), or what is wrong: an error raised here would be a traceback."""
        index = torch.tensor(rows)
        images = torch.empty(len(rows), *self.files.shape, dtype=torch.uint8)
        if torch.utils.data.get_worker_info() and not self.augment:
            images.share_memory_()  # where it is sent from, before it is filled: else it would be copied there
        try:
            with torch.random.fork_rng(devices=[]):
                for pixels, row, seed in zip(images.numpy(), rows, self._seeds(index), strict=True):
                    if seed is not None:
                        torch.default_generator.manual_seed(seed)  # torch.manual_seed would change GPUs' generators too
                    image = read_image(self.files.path(row), self.transform)
                    pixels[:] = np.asarray(image).transpose(2, 0, 1)  # numpy is faster at that than torch
            return self.augment(images, index) if self.augment else images
        except (OSError, TypeError, ValueError) as error:
            return error

    def _seeds(self, index: Tensor) -> Sequence[int | None]:
        """What decides the random crop of every image; None where there is none."""
        if not self.files.random_crop or self.seed is None or self.epoch is None:
            return [None] * len(index)
        seeds: list[int] = views.random_bits(self.seed, self.epoch, index, CROP).tolist()
        return seeds


def _as_it_is(batch: Tensor | Exception) -> Tensor | Exception:
    return batch


def _start(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process: the main one decides when to stop
    warnings.filterwarnings("ignore", module="PIL")  # odd EXIF data of an image would be told again by every worker
