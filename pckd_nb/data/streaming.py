"""Splits whose images stay in their files, and functions that read image files.

Splits that do not fit into memory are read batch by batch, by worker processes.
"""

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
from ..deprecation import renamed, renamed_attribute
from ..messages import one_line

T = TypeVar("T")

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "AVIF")  # Pillow reads these without other programs
MAX_ASPECT_RATIO = 100  # of the longer side to the shorter side
CROP_STREAM = 16  # stream of random numbers for the random crop; `views` has the other streams
READER_VERSION = 2  # of `load_upright` and `to_rgb`: version 1 ignored EXIF data, transparency and 12-bit values
READING_RULES = "turned upright by their EXIF data, transparent parts on white, 12-bit and 16-bit grey scaled to 8 bits"
BACKGROUND = "white"  # shown by transparent parts: dark drawings would be invisible on black
BIT_DEPTHS = (8, 12, 16)  # bits per pixel that the values of a 16-bit grey file may have
DEPTH_SAMPLE_SIZE = 1000  # images per split whose bit depth is measured
NO_WORKERS_HINT = "use workers=0 to read without worker processes"
SHARED_MEMORY_FULL = (
    f"the shared memory of the worker processes that read images is full: {NO_WORKERS_HINT}, or enlarge it "
    "(shm-size of docker)"
)
SIZE_FINGERPRINT_PARTS = 256  # see `file_size_fingerprint`


@dataclass(frozen=True, eq=False)
class Streamed:
    """A split whose images stay in their files. It has the same interface as `Split`, and `read` can augment.

    Images are uint8 of shape (3, side, side).

    Parameters
    ----------
    folder : Path
    names : bytes array of shape (N,)
        File names relative to `folder`. An array is faster to send to a worker process than a list of paths.
    labels : int64 Tensor of shape (N,)
    side : int
        Height and width in pixels to which images are resized.
    random_crop : bool
        Whether `read` crops images at random for training. Default False.
    workers : int, optional
        Number of processes that read images. 0 means that the main process reads them. By default, one per CPU core
        and at most 8.
    skipped : tuple of str
        Lines that say which files in `folder` are not read.
    bits : int
        Bits per pixel of the values in 16-bit grey files, see `with_bit_depth`.
    true_labels : int64 Tensor of shape (N,), optional
        The true labels, if some of `labels` are known to be wrong.

    Examples
    --------
    >>> from pathlib import Path
    >>> import numpy as np, torch
    >>> from PIL import Image
    >>> from pckd_nb.data import Streamed
    >>> Image.new("RGB", (40, 30), "red").save("red.png")
    >>> split = Streamed(Path("."), np.array([b"red.png"]), torch.tensor([0]), side=16, workers=0)
    >>> for images in split.read([torch.tensor([0])]):
    ...     print(images.shape)
    torch.Size([1, 3, 16, 16])
    """

    folder: Path
    names: np.ndarray
    labels: Tensor
    side: int
    random_crop: bool = False
    workers: int | None = None
    skipped: tuple[str, ...] = ()
    bits: int = 16
    true_labels: Tensor | None = None
    difficulty = None  # `Split` may have it

    def __len__(self) -> int:
        """Return the number of images."""
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
        """Device of the labels. `read` yields the images on this device."""
        return self.labels.device

    @property
    def padding(self) -> int:
        """Padding of the random crop in pixels: an eighth of the side, or 0 if `read` already crops at random."""
        return 0 if self.random_crop else self.side // 8

    def to(self, device: torch.device | str) -> Streamed:
        """Return the same split with its labels on `device`. `read` then yields the images on this device.

        Parameters
        ----------
        device : torch.device or str

        Returns
        -------
        Streamed
        """
        true_labels = None if self.true_labels is None else self.true_labels.to(device)
        return dataclasses.replace(self, labels=self.labels.to(device), true_labels=true_labels)

    def take(self, rows: np.ndarray) -> Streamed:
        """Return a split with some of the images, in the given order.

        Parameters
        ----------
        rows : int64 array of shape (n,)
            Positions of the images.

        Returns
        -------
        Streamed
        """
        true_labels = None if self.true_labels is None else self.true_labels[rows]
        return dataclasses.replace(self, names=self.names[rows], labels=self.labels[rows], true_labels=true_labels)

    def update_hash(self, digest: Any) -> None:
        """Update a hash with file names, file sizes in bytes, labels and shape.

        Pixels are left out because reading all files would take too long. `true_labels` are left out because a training
        does not use them.

        Parameters
        ----------
        digest : hashlib object
        """
        self.update_hash_with_names(digest)
        digest.update(self.sizes)
        digest.update(self.labels.cpu().numpy())

    def update_hash_with_names(self, digest: Any) -> None:
        """Update a hash with file names, and with the number and shape of the images.

        Parameters
        ----------
        digest : hashlib object
        """
        digest.update(str((len(self), *self.shape)).encode())
        digest.update(b"\n".join(self.names))

    feed = renamed_attribute("feed", "update_hash")
    feed_names = renamed_attribute("feed_names", "update_hash_with_names")

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

    def _num_workers(self, augment: object) -> int:
        """Return the number of worker processes. It is 0 if `augment` would have to be pickled but cannot be."""
        workers = min(8, num_cores()) if self.workers is None else self.workers
        if workers and multiprocessing.get_start_method() != "fork":
            try:
                pickle.dumps(augment)
            except Exception as error:  # pickling can raise any exception
                warnings.warn(
                    f"augment cannot be pickled for worker processes ({one_line(error)}): the main process reads the "
                    "images; define augment at the top level of a module to use worker processes",
                    stacklevel=3,
                )
                return 0
        return workers

    def read(
        self,
        batches: Iterable[Tensor],
        *,
        seed: int | None = None,
        epoch: int | None = None,
        augment: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Iterator[Tensor]:
        """Yield the images of each batch, on `device`.

        Worker processes read images ahead. They end when the iterator is closed or deleted. Where Python starts
        processes by "spawn", as on Windows and macOS, `augment` must be picklable, and a script must start with
        `if __name__ == "__main__"`.

        Parameters
        ----------
        batches : iterable of int64 Tensor of shape (B,)
            Positions of the images of each batch.
        seed, epoch : int, optional
            If `random_crop` is True and both are given, images are cropped as by torchvision's `RandomResizedCrop`. The
            crop depends only on seed, epoch and the position of the image. If `random_crop` is True and `epoch` is
            None, as for a test split, the shorter side is resized to side · 256 / 224 and the center is cropped. If
            `random_crop` is False, seed and epoch do not matter: `resize_and_crop` is used.
        augment : callable, optional
            Takes images, uint8 of shape (B, 3, side, side), and their positions, int64 of shape (B,). Returns images.
            The worker processes call it.

        Yields
        ------
        images : uint8 Tensor of shape (B, 3, side, side)

        Raises
        ------
        OSError
            If a file cannot be read, a worker process was killed, or the shared memory is full.
        ValueError
            If `random_crop` is True and `epoch` is given without `seed`.
        """
        from torchvision.transforms import v2  # slow to import, so only when needed

        load = partial(load_upright, bits=self.bits)
        if not self.random_crop:
            transform: Callable[[Image.Image], Image.Image] = partial(resize_and_crop, side=self.side, bits=self.bits)
        elif epoch is None:
            transform = v2.Compose([load, v2.Resize(self.side * 256 // 224), v2.CenterCrop(self.side)])
        elif seed is None:
            raise ValueError("seed must be given if epoch is given: random crops depend on both")
        else:
            transform = v2.Compose([load, v2.RandomResizedCrop(self.side)])
        pin_memory = self.device.type == "cuda"
        loader = DataLoader(
            _Reader(self, transform, seed, epoch, augment),
            batch_sampler=(batch.tolist() for batch in batches),
            num_workers=self._num_workers(augment),
            collate_fn=_identity,
            pin_memory=pin_memory,
            worker_init_fn=_init_worker,
            generator=torch.Generator(),  # without it, DataLoader would draw from the caller's generator
        )
        with explain_worker_errors():
            for images in _start_workers(loader):
                if isinstance(images, Exception):
                    raise images
                yield images.to(self.device, non_blocking=pin_memory)


def num_cores() -> int:
    """Return how many CPU cores this process may use.

    Returns
    -------
    int
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_image(path: Path, use: Callable[[Image.Image], T]) -> T:
    """Open an image file, call a function with the image, and return its result.

    Parameters
    ----------
    path : Path
    use : callable
        Takes the PIL image.

    Returns
    -------
    object
        The return value of `use`.

    Raises
    ------
    OSError
        If the file cannot be read or `use` raises an error. The message has one line.

    Examples
    --------
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from pckd_nb.data.streaming import read_image
    >>> Image.new("RGB", (40, 30)).save("photo.png")
    >>> read_image(Path("photo.png"), lambda image: image.size)
    (40, 30)
    """
    try:
        with open_image(path.read_bytes()) as image:  # Pillow opens bytes faster than a path
            return use(image)
    except Exception as error:  # a damaged file can raise almost any exception
        reason, remedy = one_line(error), "replace it"
        if isinstance(error, UnidentifiedImageError):
            reason = "it is not an image"
        elif isinstance(error, OSError) and error.strerror:  # an error of the file system: the file may be intact
            reason = error.strerror
            remedy = "get permission to read it" if isinstance(error, PermissionError) else "check the disk"
        raise OSError(f"cannot read the image {path} ({reason}): {remedy}") from error


def open_image(data: bytes) -> Image.Image:
    """Open an image from the bytes of its file. The format must be one of `FORMATS`.

    Pillow reads some other formats, such as PostScript, with external programs. That would be unsafe.

    Parameters
    ----------
    data : bytes

    Returns
    -------
    PIL.Image.Image

    Raises
    ------
    PIL.UnidentifiedImageError
        If the format is another one. Pillow raises other exceptions for damaged files.
    """
    return Image.open(BytesIO(data), formats=FORMATS)


def resize_and_crop(image: Image.Image, side: int, bits: int = 16) -> Image.Image:
    """Convert an image to upright RGB, resize its shorter side to `side`, and crop the center.

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
        As in `load_upright`.

    Examples
    --------
    >>> from PIL import Image
    >>> from pckd_nb.data.streaming import resize_and_crop
    >>> resize_and_crop(Image.new("L", (40, 30)), side=16).size
    (16, 16)
    """
    image = load_upright(image, bits)
    if image.size != (side, side):
        scale = side / min(image.size)
        width, height = (max(side, round(length * scale)) for length in image.size)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        image = image.crop((left, top, left + side, top + side))
    return image


def load_upright(image: Image.Image, bits: int = 16) -> Image.Image:
    """Load the pixels of an image, rotate it as its EXIF data say, and convert it to RGB.

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
        If one side is more than `MAX_ASPECT_RATIO` times as long as the other, or `to_rgb` raises it.
    """
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):  # after resizing, it could fill the memory
        raise ValueError(
            f"it has {image.width}×{image.height} pixels, one side is more than {MAX_ASPECT_RATIO} times as long as "
            "the other"
        )
    image.load()  # before the EXIF data are read: in a PNG file, they may come after the pixels
    try:
        is_rotated = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # EXIF data are often damaged, which can raise any exception
        is_rotated = False
    if is_rotated:
        ImageOps.exif_transpose(image, in_place=True)
    return to_rgb(image, bits)


def to_rgb(image: Image.Image, bits: int = 16) -> Image.Image:
    """Convert an image to 8-bit RGB. Transparent parts get the colour `BACKGROUND`.

    Parameters
    ----------
    image : PIL.Image.Image
    bits : int
        Bits per pixel of the values in a 16-bit grey image, such as 12 if they are less than 4096. It is the same for
        all images of a data set, so that dark images stay dark.

    Returns
    -------
    PIL.Image.Image

    Raises
    ------
    ValueError
        If pixels have 32 bits, or a 16-bit grey image has values of 2**bits or more.

    Examples
    --------
    >>> from PIL import Image
    >>> from pckd_nb.data.streaming import to_rgb
    >>> to_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        if (largest := int(values.max())) >= 2**bits:
            raise ValueError(f"it has grey values up to {largest}, but other images have {bits} bits per pixel")
        image = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
    elif image.mode in ("I", "F"):  # the range of values is unknown, and Pillow would clip them at 255
        raise ValueError(f"it has 32-bit values (mode {image.mode}): convert it to 8 bits")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def with_bit_depth(splits: Mapping[str, Streamed]) -> dict[str, Streamed]:
    """Set `bits` of all splits of a data set to the smallest of `BIT_DEPTHS` that holds the values of its grey files.

    At most `DEPTH_SAMPLE_SIZE` files per split are read, evenly spaced. Only 16-bit grey files count.

    Parameters
    ----------
    splits : mapping of str to Streamed

    Returns
    -------
    dict of str to Streamed
    """
    largest = -1
    for split in splits.values():
        for row in np.linspace(0, len(split) - 1, min(DEPTH_SAMPLE_SIZE, len(split))).round().astype(int):
            largest = max(largest, _largest_value(split.path(row)))
    bits = 16 if largest < 0 else next(bits for bits in BIT_DEPTHS if largest < 2**bits)
    return {name: dataclasses.replace(split, bits=bits) for name, split in splits.items()}


def _largest_value(path: Path) -> int:
    """Return the largest value of a 16-bit grey file, or -1 for any other file."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return int(np.asarray(image).max()) if image.mode.startswith("I;16") else -1
    except Exception:  # reading this image later raises an error that names it
        return -1


def file_size_fingerprint(splits: Iterable[Streamed]) -> str:
    """Return a hash of the sizes of all files. If one file changes its size, only one part of the hash changes.

    The hash has `SIZE_FINGERPRINT_PARTS` parts. The name of a file decides which part it belongs to.

    Parameters
    ----------
    splits : iterable of Streamed

    Returns
    -------
    str
        Four hexadecimal digits per part.
    """
    sums = [0] * SIZE_FINGERPRINT_PARTS
    for number, split in enumerate(splits):
        for name, size in zip(split.names.tolist(), split.sizes.tolist(), strict=True):
            sums[zlib.crc32(name, number) % SIZE_FINGERPRINT_PARTS] += zlib.crc32(b"%b %d" % (name, size), number)
    return "".join(f"{total % 2**16:04x}" for total in sums)


class _Reader(torch.utils.data.Dataset):
    """The part of a split that worker processes need. Labels are left out because they may be on a GPU."""

    def __init__(
        self,
        split: Streamed,
        transform: Callable[[Image.Image], Image.Image],
        seed: int | None,
        epoch: int | None,
        augment: Callable[[Tensor, Tensor], Tensor] | None,
    ):
        self.split = dataclasses.replace(split, labels=torch.empty(0), true_labels=None)
        self.transform, self.seed, self.epoch, self.augment = transform, seed, epoch, augment

    def __getitems__(self, rows: list[int]) -> Tensor | Exception:
        """Return the images of a batch, or an error. If it were raised, the worker would print a traceback."""
        index = torch.tensor(rows)
        images = torch.empty(len(rows), *self.split.shape, dtype=torch.uint8)
        is_worker = torch.utils.data.get_worker_info() is not None
        try:
            if is_worker and not self.augment:
                _move_to_shared_memory(images)  # before it is filled, so that no copy is needed
            with torch.random.fork_rng(devices=[]):
                for pixels, row, seed in zip(images.numpy(), rows, self._seeds(index), strict=True):
                    if seed is not None:
                        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs
                    image = read_image(self.split.path(row), self.transform)
                    pixels[:] = np.asarray(image).transpose(2, 0, 1)  # faster in numpy than in torch
            if self.augment:
                images = self.augment(images, index)
                if is_worker and isinstance(images, Tensor):
                    _move_to_shared_memory(images)  # otherwise DataLoader moves them, and hides an error
            return images
        except Exception as error:  # the user's augment can raise any exception
            return _picklable(error)

    def _seeds(self, index: Tensor) -> Sequence[int | None]:
        """Return the seed of the random crop of each image, or None for each image if there are no random crops."""
        if not self.split.random_crop or self.seed is None or self.epoch is None:
            return [None] * len(index)
        seeds: list[int] = views.random_bits(self.seed, self.epoch, index, CROP_STREAM).tolist()
        return seeds


def _move_to_shared_memory(images: Tensor) -> None:
    """Move images to shared memory. Raise OSError if it is full."""
    try:
        images.share_memory_()
    except RuntimeError as error:
        reason = one_line(error)
        if "No space left" in reason:
            raise OSError(SHARED_MEMORY_FULL) from error
        raise OSError(f"images cannot be moved to shared memory ({reason}): {NO_WORKERS_HINT}") from error


def _start_workers(loader: DataLoader[Any]) -> Iterator[Any]:
    """Return the iterator of a DataLoader, which starts its workers. Raise OSError if they cannot be started."""
    try:
        # A DataLoader that gets no lock prints tracebacks, so first test that there are enough. Each worker has a queue
        # with 3 locks. The queue of results and an event need about 9 more.
        if loader.num_workers:
            [multiprocessing.Lock() for _ in range(3 * loader.num_workers + 9)]
        return iter(loader)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(SHARED_MEMORY_FULL) from error
        raise OSError(
            f"worker processes that read images cannot be started ({one_line(error)}): {NO_WORKERS_HINT}"
        ) from error


@contextmanager
def explain_worker_errors() -> Iterator[None]:
    """Replace errors of DataLoader about a worker process by an OSError that says what happened and what to do.

    The operating system sends a signal when a worker ends, and DataLoader raises the error in its signal handler. So
    the error may occur at any line of the main process, for example in the forward pass of a network.

    Raises
    ------
    OSError
        If a worker process was killed, or the shared memory is full.
    """
    try:
        yield
    except RuntimeError as error:
        text = f"{error} {error.__cause__}"
        if "DataLoader worker" not in text:
            raise
        if "Bus error" in text:  # the signal that a process gets when it writes to full shared memory
            raise OSError(SHARED_MEMORY_FULL) from error
        cause = re.search(r"killed by signal: ([\w ]+)", text)
        signal_name = f" (signal: {cause[1]})" if cause else ""
        raise OSError(
            f"a worker process that reads images was killed{signal_name}, often because memory ran out: "
            f"{NO_WORKERS_HINT}"
        ) from error


def _picklable(error: Exception) -> Exception:
    """Return the error. If it cannot be pickled, return a RuntimeError with the same text."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {one_line(error)}")


def _identity(batch: Any) -> Any:
    return batch


def _init_worker(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: only the main one decides to stop
    warnings.filterwarnings("ignore", module="PIL")  # else each worker repeats warnings about unusual EXIF data


__getattr__ = renamed(__name__)
