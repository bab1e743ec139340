"""Images that stay in their files: a split too large for memory, which worker processes read batch by batch."""

from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import os
import pickle
import re
import signal
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader

from .. import views
from ..messages import one_line

T = TypeVar("T")

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "AVIF")  # those that Pillow reads without other programs
LONGEST = 100  # largest allowed ratio of the longer to the shorter side
CROP = 16  # stream of random numbers for the random crop; `views` defines the other streams
READING = 2  # version of `upright` and `to_rgb`: the first one knew neither EXIF nor transparency nor 12 bits
HOW_READ = "turned upright by their EXIF data, transparent parts on white, grey of 12 or 16 bits scaled to 8"
BACKGROUND = "white"  # as on a page; on black, dark drawings on a transparent ground would vanish
DEPTHS = (8, 12, 16)  # bits per pixel that numbers of 16 bits can stand for
SAMPLED = 1000  # images whose depth is looked at
REMEDY = "workers=0 reads without worker processes"
FULL = (
    f"the shared memory of the worker processes that read images is full: {REMEDY}; or enlarge it (shm-size of docker)"
)
PARTS = 256  # of the files, see `size_prints`


@dataclass(frozen=True, eq=False)
class Streamed:
    """A split whose images are read on demand, with the same interface as `dataset.Split`.

    Images are uint8 of shape (3, side, side).

    Parameters
    ----------
    folder : Path
    names : bytes array of shape (N,)
        File names relative to `folder`. It is one array because a million Path objects would be copied into every
        worker.
    labels : int64 Tensor of shape (N,)
    side : int
        Height and width of the images in pixels.
    random_crop : bool
        Crop images while they are read, see `read`. Default False.
    workers : int, optional
        Number of processes that read images; 0 means that the main process reads them. Default: one per CPU core, at
        most 8.
    skipped : tuple of str
        Lines that say which files in `folder` are not read.
    bits : int
        Bits per pixel in grey files of 16 bits, see `with_depth`.
    """

    folder: Path
    names: np.ndarray
    labels: Tensor
    side: int
    random_crop: bool = False
    workers: int | None = None
    skipped: tuple[str, ...] = ()
    bits: int = 16
    difficulty = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return 3, self.side, self.side

    @property
    def ids(self) -> np.ndarray:
        """Name of each image: its file name."""
        return self.names

    @property
    def device(self) -> torch.device:
        """Device of the labels, where `read` puts the batches."""
        return self.labels.device

    @property
    def padding(self) -> int:
        """Pixels of padding for the random crop: an eighth of the side, or 0 if `read` crops already."""
        return 0 if self.random_crop else self.side // 8

    def to(self, device: torch.device | str) -> Streamed:
        """Return the same split with its labels on `device`, where `read` then puts the batches.

        Parameters
        ----------
        device : torch.device or str

        Returns
        -------
        Streamed
        """
        return dataclasses.replace(self, labels=self.labels.to(device))

    def take(self, rows: np.ndarray) -> Streamed:
        """Return the part of the split at some positions, in the given order.

        Parameters
        ----------
        rows : int64 array of shape (n,)
            Positions of images.

        Returns
        -------
        Streamed
            It has n images.
        """
        return dataclasses.replace(self, names=self.names[rows], labels=self.labels[rows])

    def feed(self, digest: Any) -> None:
        """Update a hash with file names, file sizes in bytes, labels and shape.

        Pixels are left out because reading them would take too long.

        Parameters
        ----------
        digest : hashlib object
        """
        self.feed_names(digest)
        digest.update(self.sizes)
        digest.update(self.labels.cpu().numpy())

    def feed_names(self, digest: Any) -> None:
        """Update a hash with the number and shape of the images, and with the file names.

        Parameters
        ----------
        digest : hashlib object
        """
        digest.update(str((len(self), *self.shape)).encode())
        digest.update(b"\n".join(self.names))

    @cached_property
    def sizes(self) -> np.ndarray:
        """Size of each file in bytes, int64 of shape (N,)."""
        folder = os.fsencode(self.folder)
        return np.array([os.stat(os.path.join(folder, name)).st_size for name in self.names], np.int64)

    def path(self, index: int) -> Path:
        """Return the path of an image file.

        Parameters
        ----------
        index : int
            Position of the image.

        Returns
        -------
        Path
        """
        return self.folder / os.fsdecode(self.names[index])

    def _workers(self, augment: object) -> int:
        """Return the number of reading processes: 0 if they would need an `augment` that cannot be pickled."""
        wanted = min(8, cores()) if self.workers is None else self.workers
        if wanted and multiprocessing.get_start_method() != "fork":
            try:
                pickle.dumps(augment)
            except Exception as error:  # pickling can raise any exception
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
        """Yield the images of every batch, on `device`.

        `workers` processes read images ahead. They end with the iterator, even if it is not exhausted. Where Python
        does not fork, scripts need the usual `if __name__ == "__main__"`, and `augment` must be picklable.

        Parameters
        ----------
        batches : iterable of int64 Tensor of shape (B,)
            Positions of images.
        seed, epoch : int, optional
            With `random_crop` and both given, images are cropped as by torchvision's RandomResizedCrop. The crop is a
            pure function of (seed, epoch, index). With `random_crop` and no epoch, as usual for a test split, the
            shorter side is scaled to side · 256 / 224 and the center is cropped. Without `random_crop`, images are
            scaled and cropped by `fit`.
        augment : callable, optional
            Maps images, uint8 (B, 3, side, side), and their positions, int64 (B,), to images. The workers apply it.

        Yields
        ------
        images : uint8 Tensor of shape (B, 3, side, side)

        Raises
        ------
        OSError
            If a file cannot be read, or a worker process was killed or lacks shared memory. The message is one line.
        ValueError
            If `random_crop` is set and `epoch` is given without `seed`.
        """
        from torchvision.transforms import v2  # slow to import, so only when needed

        load = partial(upright, bits=self.bits)
        if not self.random_crop:
            steps: Callable[[Image.Image], Image.Image] = partial(fit, side=self.side, bits=self.bits)
        elif epoch is None:
            steps = v2.Compose([load, v2.Resize(self.side * 256 // 224), v2.CenterCrop(self.side)])
        elif seed is None:
            raise ValueError("the random crops of an epoch need a seed too")
        else:
            steps = v2.Compose([load, v2.RandomResizedCrop(self.side)])
        pinned = self.device.type == "cuda"
        loader = DataLoader(
            _Reader(self, steps, seed, epoch, augment),
            batch_sampler=(batch.tolist() for batch in batches),
            num_workers=self._workers(augment),
            collate_fn=_as_it_is,
            pin_memory=pinned,
            worker_init_fn=_start,
            generator=torch.Generator(),  # else it draws a number from the caller's generator
        )
        with clear_worker_errors():
            for images in _started(loader):
                if isinstance(images, Exception):
                    raise images
                yield images.to(self.device, non_blocking=pinned)


def cores() -> int:
    """Return how many CPU cores this process may use.

    Returns
    -------
    int
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_image(path: Path, use: Callable[[Image.Image], T]) -> T:
    """Open an image file and return the result of a function of the image.

    Parameters
    ----------
    path : Path
    use : callable
        Called with the PIL image.

    Returns
    -------
    object
        The return value of `use`.

    Raises
    ------
    OSError
        If the file cannot be read or `use` fails. The message is one line.
    """
    try:
        with open_image(path.read_bytes()) as image:  # Pillow opens bytes faster than a path
            return use(image)
    except Exception as error:  # a damaged file can raise almost any exception
        reason, remedy = one_line(error), "replace it"
        if isinstance(error, UnidentifiedImageError):
            reason = "it is no image"
        elif isinstance(error, OSError) and error.strerror:  # of the file system: the file may be whole
            reason = error.strerror
            remedy = "get permission to read it" if isinstance(error, PermissionError) else "check its disk"
        raise OSError(f"cannot read the image {path} ({reason}): {remedy}") from error


def open_image(data: bytes) -> Image.Image:
    """Open the image in a file's bytes if its format is one of `FORMATS`, whatever the file name says.

    Other formats are refused because some of Pillow's readers run other programs, such as the one for PostScript.

    Parameters
    ----------
    data : bytes

    Returns
    -------
    PIL.Image.Image

    Raises
    ------
    Exception
        Whatever Pillow raises.
    """
    return Image.open(BytesIO(data), formats=FORMATS)


def fit(image: Image.Image, side: int, bits: int = 16) -> Image.Image:
    """Convert an image to upright RGB, scale its shorter side to `side`, and crop the center.

    Parameters
    ----------
    image : PIL.Image.Image
    side : int
        Height and width of the result in pixels.
    bits : int
        As in `to_rgb`.

    Returns
    -------
    PIL.Image.Image
        RGB image of side × side pixels.

    Raises
    ------
    ValueError
        If pixels have 32 bits or more than `bits`, or one side is more than `LONGEST` times the other.
    """
    image = upright(image, bits)
    if image.size != (side, side):
        scale = side / min(image.size)
        width, height = (max(side, round(length * scale)) for length in image.size)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        image = image.crop((left, top, left + side, top + side))
    return image


def upright(image: Image.Image, bits: int = 16) -> Image.Image:
    """Load an image, turn it as its EXIF data say, and convert it by `to_rgb`. Every image file is read this way.

    Parameters
    ----------
    image : PIL.Image.Image
    bits : int
        As in `to_rgb`.

    Returns
    -------
    PIL.Image.Image
        RGB image.

    Raises
    ------
    ValueError
        If pixels have 32 bits or more than `bits`, or one side is more than `LONGEST` times the other.
    """
    if max(image.size) > LONGEST * min(image.size):  # once scaled, it could fill the memory
        raise ValueError(f"it has {image.width}×{image.height} pixels, one side more than {LONGEST} times the other")
    image.load()  # now, because a PNG may have its EXIF data behind its pixels
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # EXIF data are often damaged, in any way
        turned = False
    if turned:
        ImageOps.exif_transpose(image, in_place=True)
    return to_rgb(image, bits)


def to_rgb(image: Image.Image, bits: int = 16) -> Image.Image:
    """Convert an image to 8-bit RGB. Transparent parts show `BACKGROUND`.

    Parameters
    ----------
    image : PIL.Image.Image
    bits : int
        Bits per pixel that grey numbers of 16 bits stand for. All images of a data set are scaled alike, so that a dark
        one stays dark.

    Returns
    -------
    PIL.Image.Image

    Raises
    ------
    ValueError
        If pixels have 32 bits, or more than `bits`.
    """
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        if (largest := int(values.max())) >= 2**bits:
            raise ValueError(f"it has grey values up to {largest}, those of other images have {bits} bits")
        image = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
    elif image.mode in ("I", "F"):  # their range is unknown, and Pillow would clip values at 255
        raise ValueError(f"it has numbers of 32 bits (mode {image.mode}): convert it to 8 bits")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def with_depth(splits: Mapping[str, Streamed]) -> dict[str, Streamed]:
    """Find the bits per pixel of a data set's grey files of 16 bits: the fewest of `DEPTHS` that hold all values.

    Parameters
    ----------
    splits : mapping of str to Streamed
        At most `SAMPLED` images of each are looked at, evenly spaced.

    Returns
    -------
    dict of str to Streamed
        The same splits, all with these `bits`.
    """
    largest = -1
    for split in splits.values():
        for row in np.linspace(0, len(split) - 1, min(SAMPLED, len(split))).round().astype(int):
            largest = max(largest, _largest_value(split.path(row)))
    bits = 16 if largest < 0 else next(bits for bits in DEPTHS if largest < 2**bits)
    return {name: dataclasses.replace(split, bits=bits) for name, split in splits.items()}


def _largest_value(path: Path) -> int:
    """Return the largest value of a grey file of 16 bits, and -1 of any other file."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return int(np.asarray(image).max()) if image.mode.startswith("I;16") else -1
    except Exception:  # it is named when it is read
        return -1


def size_prints(splits: Iterable[Streamed]) -> str:
    """Return a fingerprint of file sizes in `PARTS` parts, so that one repaired file changes one part.

    The name of a file decides which part it belongs to.

    Parameters
    ----------
    splits : iterable of Streamed

    Returns
    -------
    str
        Four hexadecimal digits per part.
    """
    sums = [0] * PARTS
    for number, split in enumerate(splits):
        for name, size in zip(split.names.tolist(), split.sizes.tolist(), strict=True):
            sums[zlib.crc32(name, number) % PARTS] += zlib.crc32(b"%b %d" % (name, size), number)
    return "".join(f"{total % 2**16:04x}" for total in sums)


class _Reader(torch.utils.data.Dataset):
    """The data that a worker needs from a split, without the labels, which may be on a GPU."""

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
        """Return a batch, uint8 (B, 3, side, side), or the error.

        The error is returned because raising it in a worker would print a traceback.
        """
        index = torch.tensor(rows)
        images = torch.empty(len(rows), *self.files.shape, dtype=torch.uint8)
        is_worker = torch.utils.data.get_worker_info() is not None
        try:
            if is_worker and not self.augment:
                _share(images)  # before it is filled: else sending it would copy it to shared memory
            with torch.random.fork_rng(devices=[]):
                for pixels, row, seed in zip(images.numpy(), rows, self._seeds(index), strict=True):
                    if seed is not None:
                        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs
                    image = read_image(self.files.path(row), self.transform)
                    pixels[:] = np.asarray(image).transpose(2, 0, 1)  # faster in numpy than in torch
            if self.augment:
                images = self.augment(images, index)
                if is_worker and isinstance(images, Tensor):
                    _share(images)  # here, because an error while it is sent would not reach the main process
            return images
        except Exception as error:  # of the caller's augment: any kind
            return _sendable(error)

    def _seeds(self, index: Tensor) -> Sequence[int | None]:
        """Return the seed of every image's random crop, or None for images without one."""
        if not self.files.random_crop or self.seed is None or self.epoch is None:
            return [None] * len(index)
        seeds: list[int] = views.random_bits(self.seed, self.epoch, index, CROP).tolist()
        return seeds


def _share(images: Tensor) -> None:
    """Move images to shared memory, or raise OSError if it is full."""
    try:
        images.share_memory_()
    except RuntimeError as error:
        reason = one_line(error)
        full = "No space left" in reason
        raise OSError(FULL if full else f"images can't be put into shared memory ({reason}): {REMEDY}") from error


def _started(loader: DataLoader[Any]) -> Iterator[Any]:
    """Return the iterator of a DataLoader, whose workers have then started. Raise OSError if they cannot."""
    try:
        if loader.num_workers:  # as many locks as its queues need: a DataLoader that fails there prints tracebacks
            [multiprocessing.Lock() for _ in range(3 * loader.num_workers + 9)]
        return iter(loader)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(FULL) from error
        raise OSError(f"worker processes that read images can't be started ({one_line(error)}): {REMEDY}") from error


@contextmanager
def clear_worker_errors() -> Iterator[None]:
    """Within the block, an error of DataLoader about a worker becomes an OSError that names the cause and a remedy.

    DataLoader may raise it anywhere in the main process, because it learns of the end of a worker by a signal.
    """
    try:
        yield
    except RuntimeError as error:
        text = f"{error} {error.__cause__}"
        if "DataLoader worker" not in text:
            raise
        if "Bus error" in text:  # the signal of a process that writes to shared memory that is not there
            raise OSError(FULL) from error
        cause = re.search(r"killed by signal: ([\w ]+)", text)
        by = f" (signal: {cause[1]})" if cause else ""
        raise OSError(
            f"a worker process that reads images was killed{by}, often for lack of memory: {REMEDY}"
        ) from error


def _sendable(error: Exception) -> Exception:
    """Return the error, or one with its text where it can't be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {one_line(error)}")


def _as_it_is(batch: Any) -> Any:
    return batch


def _start(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process: the main one decides when to stop
    warnings.filterwarnings("ignore", module="PIL")  # else every worker repeats warnings about odd EXIF data
