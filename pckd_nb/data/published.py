"""Data sets that are downloaded: CIFAR-10, CIFAR-100, STL-10, TinyImageNet and Fashion-MNIST."""

from __future__ import annotations

import gzip
import os
import pickle
import shutil
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import downloads
from ..messages import one_line
from .folders import stack_images
from .split import Split
from .streaming import open_image, resize_and_crop

# CIFAR-100: the names of its superclasses, and the position of each class's superclass in this list.
SUPERCLASSES = (
    "aquatic mammals", "fish", "flowers", "food containers", "fruit and vegetables",
    "household electrical devices", "household furniture", "insects", "large carnivores",
    "large man-made outdoor things", "large natural outdoor scenes", "large omnivores and herbivores",
    "medium-sized mammals", "non-insect invertebrates", "people", "reptiles", "small mammals", "trees",
    "vehicles 1", "vehicles 2",
)  # fmt: skip
SUPERCLASS_OF_CLASS = (
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7,
    6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10,
    16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16,
    12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
)  # fmt: skip
_FASHION_MNIST_URL = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/"
_SOURCES = {  # file → https address, size in bytes; torchvision has only http addresses for some of them
    "cifar-10-python.tar.gz": ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", 170_498_071),
    "cifar-100-python.tar.gz": ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", 169_001_437),
    "train-images-idx3-ubyte.gz": (f"{_FASHION_MNIST_URL}train-images-idx3-ubyte.gz", 26_421_880),
    "train-labels-idx1-ubyte.gz": (f"{_FASHION_MNIST_URL}train-labels-idx1-ubyte.gz", 29_515),
    "t10k-images-idx3-ubyte.gz": (f"{_FASHION_MNIST_URL}t10k-images-idx3-ubyte.gz", 4_422_102),
    "t10k-labels-idx1-ubyte.gz": (f"{_FASHION_MNIST_URL}t10k-labels-idx1-ubyte.gz", 5_148),
    "stl10_binary.tar.gz": ("https://cs.stanford.edu/~acoates/stl10/stl10_binary.tar.gz", 2_640_397_119),
    "tiny-imagenet-200.zip": ("https://cs231n.stanford.edu/tiny-imagenet-200.zip", 248_100_043),
}


def read_cifar(name: str, root: Path) -> tuple[Split, Split, tuple[str, ...]]:
    """Read CIFAR-10 or CIFAR-100. Download it first if needed.

    Parameters
    ----------
    name : {"cifar10", "cifar100"}
    root : Path
        Folder of downloads.

    Returns
    -------
    train, test : Split
    classes : tuple of str

    Raises
    ------
    OSError
        If the download fails or a file is damaged.
    """
    from torchvision.datasets import CIFAR10, CIFAR100  # slow to import, so only when needed

    source = CIFAR10 if name == "cifar10" else CIFAR100
    meta = (source.meta["filename"], source.meta["md5"])
    _fetch_archive(name, root, source, [*source.train_list, *source.test_list, meta])
    folder = root / source.base_folder

    def read_split(files: Iterable[Iterable[str]]) -> Split:
        batches = [_read_arrays(folder / file) for file, _ in files]
        images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
        labels = [label for batch in batches for label in batch["labels" if name == "cifar10" else "fine_labels"]]
        return Split(torch.from_numpy(images), torch.tensor(labels))

    classes = tuple(_read_arrays(folder / source.meta["filename"])[source.meta["key"]])
    return read_split(source.train_list), read_split(source.test_list), classes


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that reads only numbers, strings and arrays. Other pickles could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct")}
        if (module.replace("numpy._core", "numpy.core"), name) not in allowed:
            raise pickle.UnpicklingError(f"it would call '{module}.{name}'")
        return super().find_class(module, name)


def _read_arrays(path: Path) -> dict[str, Any]:
    """Read a CIFAR file. Raise OSError if it contains anything but numbers, strings and arrays."""
    try:
        with open(path, "rb") as file:
            arrays: dict[str, Any] = _ArrayUnpickler(file, encoding="latin1").load()
            return arrays
    except pickle.UnpicklingError as error:
        raise OSError(f"{path} is not a CIFAR file ({one_line(error)}): delete it") from error


_STL10_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def read_stl10(root: Path, side: int) -> tuple[Split, Split, tuple[str, ...]]:
    """Read the images of STL-10 that have labels. Download them first if needed.

    Parameters
    ----------
    root : Path
        Folder of downloads.
    side : int
        Height and width in pixels to which images are resized.

    Returns
    -------
    train, test : Split
    classes : tuple of str

    Raises
    ------
    OSError
        If the download fails or a file is damaged.
    """
    from torchvision.datasets import STL10

    class Labelled(STL10):
        train_list = STL10.train_list[:2]  # leaves out 2.8 GB of images without labels

    _fetch_archive("stl10", root, Labelled, [*Labelled.train_list, *Labelled.test_list])
    train, test = (
        Split(
            _resized(map(Image.fromarray, part.data.transpose(0, 2, 3, 1)), len(part), side),
            torch.from_numpy(part.labels).long(),
        )
        for part in (Labelled(root, split="train"), Labelled(root, split="test"))
    )
    return train, test, _STL10_CLASSES


_TINY_IMAGENET_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


def read_tiny_imagenet(root: Path, side: int) -> tuple[Split, Split, tuple[str, ...]]:
    """Read TinyImageNet. Download it first if needed.

    The test split has the validation images of TinyImageNet, because its test images have no labels. Reading all
    110,000 images takes about 25 seconds.

    Parameters
    ----------
    root : Path
        Folder of downloads.
    side : int
        Height and width in pixels to which images are resized.

    Returns
    -------
    train, test : Split
    classes : tuple of str

    Raises
    ------
    OSError
        If the download fails or a file is damaged.
    """
    archive = root / "tiny-imagenet-200.zip"
    _fetch("tinyimagenet", archive, _TINY_IMAGENET_MD5)
    with zipfile.ZipFile(archive) as file:

        def read_table(name: str) -> list[list[str]]:
            return [line.split("\t") for line in file.read(f"{archive.stem}/{name}").decode().splitlines()]

        def read_split(rows: list[tuple[int, str]]) -> Split:
            images = (open_image(file.read(name)) for _, name in rows)
            return Split(_resized(images, len(rows), side), torch.tensor([label for label, _ in rows]))

        wnids = [row[0] for row in read_table("wnids.txt")]  # WordNet IDs, one per class
        label_of = {wnid: label for label, wnid in enumerate(wnids)}
        jpegs = [name for name in file.namelist() if name.endswith(".JPEG")]
        train = sorted((label_of[name.split("/")[2]], name) for name in jpegs if name.split("/")[1] == "train")
        annotations = read_table("val/val_annotations.txt")
        test = [(label_of[wnid], f"{archive.stem}/val/images/{name}") for name, wnid, *_ in annotations]
        words = {wnid: words.split(",")[0] for wnid, words in read_table("words.txt")}
        count = Counter(words[wnid] for wnid in wnids)
        # Some classes have the same name: they also get their WordNet ID.
        classes = (words[wnid] if count[words[wnid]] == 1 else f"{words[wnid]} ({wnid})" for wnid in wnids)
        return read_split(train), read_split(test), tuple(classes)


def _resized(images: Iterable[Image.Image], count: int, side: int) -> torch.Tensor:
    """Return images as one tensor, all resized by `resize_and_crop`."""
    return stack_images((resize_and_crop(image, side) for image in images), count, side)


def read_fashion_mnist(root: Path) -> tuple[Split, Split, tuple[str, ...]]:
    """Read Fashion-MNIST. Download it first if needed.

    Parameters
    ----------
    root : Path
        Folder of downloads.

    Returns
    -------
    train, test : Split
    classes : tuple of str

    Raises
    ------
    OSError
        If the download fails or a file is damaged.
    """
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.mnist import read_image_file, read_label_file

    raw = root / "FashionMNIST" / "raw"
    for name, md5 in FashionMNIST.resources:
        packed, unpacked = raw / name, (raw / name).with_suffix("")
        if not unpacked.is_file():
            _fetch("fashion_mnist", packed, md5)
            _gunzip(packed, unpacked)
        _check_mnist_size(unpacked)
    train, test = (
        Split(
            read_image_file(raw / f"{part}-images-idx3-ubyte")[:, None].contiguous(),
            read_label_file(raw / f"{part}-labels-idx1-ubyte").long(),
        )
        for part in ("train", "t10k")
    )
    return train, test, tuple(FashionMNIST.classes)


def _gunzip(packed: Path, unpacked: Path) -> None:
    """Unpack a gzip file. The result gets its name only when it is complete."""
    partial_file = unpacked.with_name(f".{unpacked.name}.{os.getpid()}.tmp")
    try:
        with gzip.open(packed) as source, open(partial_file, "wb") as file:
            shutil.copyfileobj(source, file)
        partial_file.replace(unpacked)
    except (EOFError, zlib.error) as error:
        raise OSError(f"{packed} could not be unpacked: {one_line(error)}") from error
    finally:
        partial_file.unlink(missing_ok=True)


def _fetch_archive(name: str, root: Path, source: Any, files: Iterable[Iterable[str]]) -> None:
    """Download and unpack the archive of a torchvision data set, unless all its files exist.

    `files` are pairs of the name and the MD5 sum of an unpacked file.
    """
    archive = root / source.filename
    unpacked = {root / source.base_folder / file: md5 for file, md5 in files}
    if all(file.is_file() and downloads.md5_of(file) == md5 for file, md5 in unpacked.items()):
        return
    if not archive.is_file():  # report a damaged file before the whole archive is downloaded again
        for file, md5 in unpacked.items():
            if file.is_file():
                downloads.check_md5(file, md5)
    _fetch(name, archive, source.tgz_md5)
    downloads.unpack(archive, root)


def _fetch(name: str, path: Path, md5: str) -> None:
    """Verify the file at `path` if it exists, else download it."""
    if path.is_file():
        return downloads.check_md5(path, md5)
    url, size = _SOURCES[path.name]
    try:
        downloads.download(
            url, path, partial(downloads.check_md5, expected=md5, remedy="it was not kept"), max_bytes=size
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        by_hand = f"put {path.name} (md5 {md5}) from {url} into {path.parent}"
        raise ConnectionError(f"could not download {name} ({reason}): try again, or {by_hand}") from error


def _check_mnist_size(path: Path) -> None:
    """Raise OSError if the size of an unpacked MNIST file is not the size that its header says."""
    with open(path, "rb") as file:
        header = file.read(4)
        sizes = np.frombuffer(file.read(4 * header[3] if len(header) == 4 else 0), ">u4")
    expected = 4 + 4 * len(sizes) + int(np.prod(sizes, dtype=np.int64))
    if len(sizes) == 0 or path.stat().st_size != expected:
        size = path.stat().st_size
        raise OSError(f"{path} is damaged: it has {size} bytes, but its header says {expected}; delete it")
