"""Data sets as plain tensors: every image of a split in one uint8 tensor, ready to be moved to a device.

`load_dataset(name)` is the one door. shapes100 and digits need no download; the others are kept under `root`,
by default the folder named in the environment variable PCKD_DATA, else data/downloads.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import operator
import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import TypeVar
from urllib.error import URLError

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from pckd_nb import shapes

T = TypeVar("T")

DATASETS = {
    "shapes100": "100 categories of drawn shapes, 32×32 RGB, difficulty known; generated, no download",
    "digits": "10 handwritten digits, 16×16 grey (scikit-learn's 8×8, enlarged); no download",
    "cifar10": "10 categories of photographs, 32×32 RGB, 50,000 + 10,000; 170 MB download",
    "cifar100": "100 categories of photographs in 20 superclasses, like cifar10; 169 MB download",
    "fashion_mnist": "10 categories of clothing, 28×28 grey, 60,000 + 10,000; 31 MB download",
    "folder:PATH": "your own images: PATH/train/CLASS/*.jpg and PATH/test/CLASS/*.jpg",
}


@dataclass(frozen=True, eq=False)
class Split:
    """Images, uint8 (N, C, H, W); labels, int64 (N,); where known, difficulty, float32 (N,) in [0, 1]."""

    images: torch.Tensor
    labels: torch.Tensor
    difficulty: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Split:
        """The same split with its tensors on `device`."""
        difficulty = None if self.difficulty is None else self.difficulty.to(device)
        return Split(self.images.to(device), self.labels.to(device), difficulty)


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A training and a test split, and what has to be known about them.

    `groups` maps the name of a grouping to the coarse name of every class. `mean` and `std` are per channel,
    of pixels scaled to [0, 1]; `normalisation` says where they are from. `default_views` is 4 where a quarter
    turn leaves the class as it is, else 1. `options` is what `load_dataset` needs, besides name and root, to
    build the same data again.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    groups: dict[str, tuple[str, ...]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    normalisation: str
    default_views: int = 4
    options: dict = field(default_factory=dict)

    def __repr__(self) -> str:
        height, width = self.size
        images = f"{len(self.train):,} + {len(self.test):,} images of {self.channels}×{height}×{width}"
        return f"Dataset({self.name!r}: {images}, {self.num_classes} classes)"

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return tuple(self.train.images.shape[2:])

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any pixel, label or class name."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for tensor in (self.train.images, self.train.labels, self.test.images, self.test.labels):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.cpu().contiguous().numpy())
        return digest.hexdigest()[:16]

    def to(self, device: torch.device | str) -> Dataset:
        """The same data set with its tensors on `device`."""
        return dataclasses.replace(self, train=self.train.to(device), test=self.test.to(device))


def default_root() -> Path:
    """Where downloads and caches live: the folder in $PCKD_DATA, or data/downloads under the current one."""
    return Path(os.environ.get("PCKD_DATA") or "data/downloads").expanduser()


def load_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    train_size: int | None = None,
    test_size: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Load one of `DATASETS`.

    shapes100 is drawn with `train_size` and `test_size` images (10,000 and 2,000 unless said); of any other
    data set these take a random part with its classes as evenly spread as possible. `seed` decides what is
    drawn or taken: the same arguments give the same data.

    Raises ValueError (unknown name, impossible size, unusable folder), FileNotFoundError (no such folder) or
    OSError (failed download, damaged file); the message says what would be right.
    """
    root = default_root() if root is None else Path(root).expanduser()
    seed = _whole("seed", seed, least=0)
    if name == "shapes100":
        classes = shapes.CLASSES
        train_size = _whole("train_size", 10_000 if train_size is None else train_size, least=len(classes))
        test_size = _whole("test_size", 2_000 if test_size is None else test_size, least=len(classes))
        train, test = _shapes100(root, train_size, test_size, seed)
    else:
        train, test, classes = _load(name, root)
        train = _part("train_size", train, train_size, len(classes), seed)
        test = _part("test_size", test, test_size, len(classes), seed)
    mean, std, normalisation = _PUBLISHED_STATISTICS.get(name) or _statistics(train.images)
    return Dataset(
        name=name,
        train=train,
        test=test,
        classes=classes,
        groups=_groups(name),
        mean=mean,
        std=std,
        normalisation=normalisation,
        default_views=1 if name == "digits" else 4,  # a 6 upside down is a 9
        options={"train_size": train_size, "test_size": test_size, "seed": seed},
    )


def _load(name: str, root: Path) -> tuple[Split, Split, tuple[str, ...]]:
    if name == "digits":
        return _digits()
    if name in ("cifar10", "cifar100"):
        return _cifar(name, root)
    if name == "fashion_mnist":
        return _fashion_mnist(root)
    if isinstance(name, str) and name.startswith("folder:"):
        return _folder(name.removeprefix("folder:"))
    near = difflib.get_close_matches(str(name).lower(), DATASETS, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ValueError(f"there is no data set {name!r}: {hint}known are {', '.join(DATASETS)}")


# -------------------------------------------------------------------------------------- what all of them need


def _whole(what: str, value: int, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{what} is {value!r}: it has to be a whole number") from None
    if number < least:
        why = " (the number of classes)" if what != "seed" else ""
        raise ValueError(f"{what} is {number}: it has to be at least {least}{why}")
    return number


def _part(what: str, split: Split, size: int | None, num_classes: int, seed: int) -> Split:
    """A random part in the original order, classes as evenly spread as the split allows."""
    if size is None:
        return split
    size = _whole(what, size, least=num_classes)
    if size > len(split):
        raise ValueError(f"{what} is {size}: there are only {len(split)} images")
    order = np.random.default_rng(seed).permutation(len(split))
    labels = split.labels.numpy()[order]
    turn = np.empty(len(split), np.int64)  # a sample's place among those of its class, in random order
    for label in range(num_classes):
        turn[labels == label] = np.arange((labels == label).sum())
    rows = np.sort(order[np.argsort(turn, kind="stable")[:size]])
    return Split(split.images[rows], split.labels[rows])


def _statistics(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """Mean and standard deviation of every channel; the latter at least 1/255, for images of one colour."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = (share * values).sum()
        means.append(mean.item())
        stds.append(max((share * (values - mean) ** 2).sum().sqrt().item(), 1 / 255))
    return tuple(means), tuple(stds), "computed on the training images"


_PUBLISHED_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "CIFAR-10, the usual published values"),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), "CIFAR-100, as in RepDistiller"),
}


def _groups(name: str) -> dict[str, tuple[str, ...]]:
    if name == "shapes100":
        return {
            "shape": tuple(shape for shape in shapes.SHAPES for _ in shapes.PATTERNS),
            "pattern": tuple(pattern for _ in shapes.SHAPES for pattern in shapes.PATTERNS),
        }
    if name == "cifar100":
        return {"superclass": tuple(_SUPERCLASSES[coarse] for coarse in _SUPERCLASS_OF_CLASS)}
    return {}


_SUPERCLASSES = (
    "aquatic mammals", "fish", "flowers", "food containers", "fruit and vegetables",
    "household electrical devices", "household furniture", "insects", "large carnivores",
    "large man-made outdoor things", "large natural outdoor scenes", "large omnivores and herbivores",
    "medium-sized mammals", "non-insect invertebrates", "people", "reptiles", "small mammals", "trees",
    "vehicles 1", "vehicles 2",
)  # fmt: skip
_SUPERCLASS_OF_CLASS = (
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7,
    6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10,
    16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16,
    12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
)  # fmt: skip


# ----------------------------------------------------------------------------------------- without a download


def _shapes100(root: Path, train_size: int, test_size: int, seed: int) -> tuple[Split, Split]:
    return (
        _drawn(root / f"shapes100-v{shapes.VERSION}-seed{seed}-train{train_size}.npz", train_size, (seed, 0)),
        _drawn(root / f"shapes100-v{shapes.VERSION}-seed{seed}-test{test_size}.npz", test_size, (seed, 1)),
    )


def _drawn(cache: Path, count: int, seed: tuple[int, int]) -> Split:
    """The images in the cache; where it is missing or damaged they are drawn, and left there if possible."""
    try:
        with np.load(cache) as file:  # a zip archive: its checksums are verified while reading
            return Split(*(torch.from_numpy(file[key]) for key in ("images", "labels", "difficulty")))
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


def _digits() -> tuple[Split, Split, tuple[str, ...]]:
    """1,797 digits of 8×8 pixels in 17 shades, enlarged to 16×16: the networks halve them twice."""
    from sklearn.datasets import load_digits  # slow to import: only when asked for
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    images = torch.nn.functional.interpolate(images, scale_factor=2, mode="bilinear").round().to(torch.uint8)
    labels = torch.from_numpy(digits.target).long()
    rows = train_test_split(np.arange(len(labels)), test_size=450, stratify=digits.target, random_state=0)
    train, test = (Split(images[r], labels[r]) for r in rows)
    return train, test, tuple(str(digit) for digit in range(10))


# -------------------------------------------------------------------------------------------------- downloads


def _cifar(name: str, root: Path) -> tuple[Split, Split, tuple[str, ...]]:
    from torchvision.datasets import CIFAR10, CIFAR100  # slow to import: only when asked for

    source = CIFAR10 if name == "cifar10" else CIFAR100
    archive = root / source.filename
    unpacked = root / source.base_folder
    batches = [*source.train_list, *source.test_list, (source.meta["filename"], source.meta["md5"])]
    if not all((unpacked / file).is_file() and _md5(unpacked / file) == md5 for file, md5 in batches):
        if archive.is_file():  # from which damaged unpacked files are replaced
            _check_md5(archive, source.tgz_md5)
        else:
            for file, md5 in batches:
                if (unpacked / file).is_file():
                    _check_md5(unpacked / file, md5)
        where = f"put {source.filename} (md5 {source.tgz_md5}) from {source.url} into {root}"
        _download(name, partial(source, root, download=True), [archive], where)
    parts = source(root, train=True), source(root, train=False)
    train, test = (
        Split(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in parts
    )
    return train, test, tuple(parts[0].classes)


def _fashion_mnist(root: Path) -> tuple[Split, Split, tuple[str, ...]]:
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import extract_archive

    raw = root / "FashionMNIST" / "raw"
    packed = {raw / file: md5 for file, md5 in FashionMNIST.resources}
    for file, md5 in packed.items():
        if file.with_suffix("").is_file():
            _check_idx(file.with_suffix(""))
        elif file.is_file():
            _check_md5(file, md5)
            extract_archive(file, raw)
    where = f"put {', '.join(file.name for file in packed)} from {FashionMNIST.mirrors[0]} into {raw}"
    _download("fashion_mnist", partial(FashionMNIST, root, download=True), list(packed), where)
    parts = FashionMNIST(root, train=True), FashionMNIST(root, train=False)
    train, test = (Split(part.data[:, None].contiguous(), part.targets.long()) for part in parts)
    return train, test, tuple(FashionMNIST.classes)


def _download(name: str, download: Callable[[], object], files: list[Path], where: str) -> None:
    """Call `download`; if it fails remove what it left of `files`, and say how to do it by hand."""
    new = [file for file in files if not file.exists()]
    try:
        download()
    except (URLError, HTTPException, ConnectionError, TimeoutError, RuntimeError) as error:
        for file in new:
            file.unlink(missing_ok=True)
        reason = " ".join(str(error).split())
        raise ConnectionError(f"could not download {name} ({reason}): try again, or {where}") from error


def _md5(path: Path) -> str:
    from torchvision.datasets.utils import calculate_md5

    return calculate_md5(path)


def _check_md5(path: Path, expected: str) -> None:
    if (found := _md5(path)) != expected:
        raise OSError(f"{path} is damaged: its md5 is {found}, expected {expected}; delete it to fetch it")


def _check_idx(path: Path) -> None:
    """Compare the size of an unpacked MNIST file with the one its header promises."""
    with open(path, "rb") as file:
        header = file.read(4)
        sizes = np.frombuffer(file.read(4 * header[3] if len(header) == 4 else 0), ">u4")
    expected = 4 + 4 * len(sizes) + int(np.prod(sizes, dtype=np.int64))
    if len(sizes) == 0 or path.stat().st_size != expected:
        size = path.stat().st_size
        raise OSError(f"{path} is damaged: it has {size} bytes, its header says {expected}; delete it")


# ----------------------------------------------------------------------------------------- a folder of images

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_TREE = "folder:PATH needs PATH/train/CLASS and PATH/test/CLASS"


def _folder(path: str) -> tuple[Split, Split, tuple[str, ...]]:
    """Read PATH/train/CLASS/* and PATH/test/CLASS/* as RGB images of one size.

    The size is the most frequent one among the training images if that is square and at most 64×64, else
    32×32; images of another size are scaled until the shorter side fits, and cut to the middle.
    """
    folder = Path(path).expanduser()
    if not path:
        raise ValueError(f"'folder:' lacks a path: {_TREE}")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: {_TREE}")
    train_files, test_files = (_files_by_class(folder / part) for part in ("train", "test"))
    classes = tuple(train_files)
    if len(classes) < 2:
        raise ValueError(f"{folder / 'train'} has one class folder, {classes[0]}: two or more are needed")
    if unknown := [name for name in test_files if name not in train_files]:
        raise ValueError(f"{folder / 'test'} has class folders that train lacks: {', '.join(unknown)}")
    files = [file for files in train_files.values() for file in files]
    sizes = Counter(_read_image(file, lambda image: image.size) for file in files)
    (width, height), _ = sizes.most_common(1)[0]
    side = width if width == height <= 64 else 32
    train, test = (_read_split(part, classes, side) for part in (train_files, test_files))
    return train, test, classes


def _files_by_class(folder: Path) -> dict[str, list[Path]]:
    """The image files of every class, both sorted by name; what is hidden or no image is left out."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: {_TREE}")
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    if not classes:
        raise ValueError(f"{folder} has no class folder: images belong into {folder / 'CLASS'}")
    files = {}
    for name in classes:
        names = sorted(entry.name for entry in os.scandir(folder / name) if entry.is_file())
        files[name] = [folder / name / n for n in names if n[0] != "." and n.lower().endswith(_EXTENSIONS)]
        if not files[name]:
            raise ValueError(f"{folder / name} has no image: expected are files in {', '.join(_EXTENSIONS)}")
    return files


def _read_split(files: dict[str, list[Path]], classes: tuple[str, ...], side: int) -> Split:
    paths = [path for paths in files.values() for path in paths]
    images = np.empty((len(paths), side, side, 3), np.uint8)
    for row, path in enumerate(paths):  # one thread: for small images a pool was measured to be twice as slow
        images[row] = _read_image(path, partial(_fit, side=side))
    labels = [classes.index(name) for name, paths in files.items() for _ in paths]
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))


def _fit(image: Image.Image, side: int) -> np.ndarray:
    image = image.convert("RGB")
    if image.size != (side, side):
        scale = side / min(image.size)
        width, height = (max(side, round(length * scale)) for length in image.size)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(image)


def _read_image(path: Path, use: Callable[[Image.Image], T]) -> T:
    try:
        with Image.open(BytesIO(path.read_bytes())) as image:  # Pillow opens bytes faster than a path
            return use(image)
    # what Pillow raises for damaged files
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "it is no image" if isinstance(error, UnidentifiedImageError) else error
        raise OSError(f"cannot read the image {path} ({reason}): replace or delete it") from error
