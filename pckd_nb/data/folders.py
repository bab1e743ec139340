"""Data sets in folders with one sub-folder per class, such as ImageNet."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import tarfile
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import downloads
from ..deprecation import renamed
from ..messages import one_line
from .checks import check_class_names
from .split import Split
from .streaming import READING_RULES, Streamed, read_image, resize_and_crop, with_bit_depth

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's IMG_EXTENSIONS
BROKEN_LINKS = "broken links"
_LAYOUT = "folder:PATH needs PATH/train/CLASS and PATH/test/CLASS"


def read_folder(
    folder: Path, image_size: int | None, workers: int | None
) -> tuple[dict[str, Streamed], tuple[str, ...]]:
    """List the images in FOLDER/train/CLASS/, FOLDER/test/CLASS/ and, if it exists, FOLDER/val/CLASS/.

    The images stay in their files. As in torchvision's `ImageFolder`, files are images if they have one of the
    `EXTENSIONS`, and images in sub-folders of a class folder belong to the class. A warning counts the skipped files:
    other files, hidden images, broken links, and images outside of the class folders.

    Parameters
    ----------
    folder : Path
    image_size : int or None
        Height and width in pixels to which images are resized, see `streaming.resize_and_crop`. None means the most
        frequent size of the training images if it is square and at most 64×64, else 32.
    workers : int or None
        As in `Streamed`.

    Returns
    -------
    splits : dict of str to Streamed
        "train", "test" and, if FOLDER/val exists, "val".
    classes : tuple of str

    Raises
    ------
    FileNotFoundError
        If a folder does not exist.
    ValueError
        If there are fewer than two classes, a class folder has no images, a folder name is not in UTF-8, test or val
        has classes that are not in train, or two splits are the same folder.
    OSError
        If `image_size` is None and a training image cannot be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: {_LAYOUT}")
    names = ("train", "test", "val") if (folder / "val").is_dir() else ("train", "test")
    folders = {name: folder / name for name in names}
    splits, classes = _read_class_folders(folders, side=image_size or 32, workers=workers)
    if image_size is None:
        train = splits["train"]
        sizes = Counter(read_image(train.path(row), lambda image: image.size) for row in range(len(train)))
        (width, height), _ = sizes.most_common(1)[0]
        if width == height <= 64:
            splits = {name: dataclasses.replace(split, side=width) for name, split in splits.items()}
    return splits, classes


def read_images(folder: Path, side: int, **options: Any) -> Streamed:
    """List all images in a folder and its sub-folders. They have no classes.

    A warning counts the skipped files, as in `read_folder`.

    Parameters
    ----------
    folder : Path
    side : int
        Height and width in pixels to which images are resized.
    **options
        `random_crop` and `workers`, as in `Streamed`.

    Returns
    -------
    Streamed
        All labels are -1.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    ValueError
        If the folder has no images.
    OSError
        If an image with 16 bits per pixel cannot be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: give a folder with images")
    skipped = defaultdict[str, list[str]](list)
    files = _images_in(folder, skipped)
    lines = tuple(f"skipped in {folder}: {line}" for line in _describe_skipped(skipped))
    if not files:
        reasons = "".join(f"; {line}" for line in lines)
        raise ValueError(f"{folder} has no images: put files there that end in {', '.join(EXTENSIONS)}{reasons}")
    for line in lines:
        warnings.warn(line, stacklevel=3)
    names = np.array([os.fsencode(name) for name in files])
    split = Streamed(folder, names, torch.full((len(names),), -1), side, skipped=lines, **options)
    return with_bit_depth({"images": split})["images"]


def read_imagenet(folder: Path, side: int, workers: int | None) -> tuple[Streamed, Streamed, tuple[str, ...]]:
    """List the images of ImageNet in FOLDER/train/CLASS/ and FOLDER/val/CLASS/.

    The validation images are the test split, because the test images of ImageNet have no labels. If FOLDER/val does not
    exist, FOLDER/test is used. If a folder does not exist, its archive is unpacked first.

    Parameters
    ----------
    folder : Path
    side : int
        Height and width in pixels to which images are resized and cropped when they are read.
    workers : int or None
        As in `Streamed`.

    Returns
    -------
    train, test : Streamed
        Their `random_crop` is True.
    classes : tuple of str

    Raises
    ------
    FileNotFoundError
        If neither the folders nor the archives exist.
    ValueError
        If the folders cannot be used, as in `read_folder`.
    OSError
        If an archive is damaged or cannot be unpacked.
    """
    accepted_names = {"train": ("train",), "val": ("val", "test")}
    if missing := [part for part, names in accepted_names.items() if not any((folder / x).is_dir() for x in names)]:
        _unpack_imagenet(folder, missing)
    test = folder / "val" if (folder / "val").is_dir() else folder / "test"
    split_folders = {"train": folder / "train", "test": test}
    splits, classes = _read_class_folders(split_folders, side=side, random_crop=True, workers=workers)
    return splits["train"], splits["test"], classes


def _unpack_imagenet(folder: Path, splits: list[str]) -> None:
    """Verify and unpack the archives of "train", "val" or both with torchvision. Unsafe archives are refused."""
    from torchvision.datasets import imagenet

    downloads.check_tarfile()  # before the user is asked to obtain the archives
    archives = {folder / file: md5 for file, md5 in imagenet.ARCHIVE_META.values()}
    parts = [*splits, "devkit"] if "val" in splits else splits
    needed = [folder / imagenet.ARCHIVE_META[part][0] for part in parts]
    if not all(archive.is_file() for archive in needed):
        raise FileNotFoundError(
            f"there is no {' and no '.join(str(folder / split) for split in splits)}: download ImageNet by hand from "
            f"image-net.org, and put {', '.join(archive.name for archive in archives)} into {folder}; or put images "
            f"into {folder / 'train' / 'CLASS'} and {folder / 'val' / 'CLASS'}"
        )
    try:
        with downloads.safe_tarfile():
            if "val" in splits:
                imagenet.parse_devkit_archive(folder)
            for split in splits:
                unfinished = folder / f"{split}.unfinished"  # renamed when it is complete
                shutil.rmtree(unfinished, ignore_errors=True)
                unpack = imagenet.parse_train_archive if split == "train" else imagenet.parse_val_archive
                try:
                    unpack(folder, folder=unfinished.name)
                    unfinished.rename(folder / split)
                finally:
                    shutil.rmtree(unfinished, ignore_errors=True)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise OSError(
            f"the archives in {folder} could not be unpacked: {one_line(error)}; download them again"
        ) from error
    except RuntimeError:  # torchvision's message does not say which archive is damaged
        for archive in needed:
            downloads.check_md5(archive, archives[archive], "download it again")
        raise


def _read_class_folders(folders: dict[str, Path], **options: Any) -> tuple[dict[str, Streamed], tuple[str, ...]]:
    """Return the splits in the given folders, and their classes. `options` are passed to `Streamed`."""
    found = dict(zip(folders, map(_files_by_class, folders.values()), strict=True))
    resolved: dict[Path, Path] = {}
    for folder in folders.values():
        if (other := resolved.setdefault(folder.resolve(), folder)) != folder:
            raise ValueError(f"{folder} and {other} are the same folder: use different images for each split")
    train_files, _ = found["train"]
    classes = tuple(train_files)
    if len(classes) < 2:
        raise ValueError(f"{folders['train']} has only one class folder, {classes[0]}: at least two are needed")
    check_class_names(tuple(dict.fromkeys(name for files, _ in found.values() for name in files)))
    for split, (files, _) in found.items():
        if unknown := [name for name in files if name not in classes]:
            raise ValueError(
                f"{folders[split]} has class folders that are not in train: {', '.join(unknown)}; rename or remove them"
            )

    def make_split(folder: Path, files: dict[str, list[str]], skipped: tuple[str, ...]) -> Streamed:
        names = np.array([os.fsencode(f"{name}/{file}") for name in files for file in files[name]])
        counts = torch.tensor([len(files.get(name, ())) for name in classes])
        labels = torch.arange(len(classes)).repeat_interleave(counts)
        return Streamed(folder, names, labels, skipped=skipped, **options)

    return with_bit_depth({name: make_split(folders[name], *found[name]) for name in folders}), classes


def _files_by_class(folder: Path) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """Return the sorted classes with their sorted image files, and lines that say which files are skipped."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: {_LAYOUT}")
    classes, skipped = [], defaultdict[str, list[str]](list)
    for entry in os.scandir(folder):
        if entry.is_dir():
            if not entry.name.startswith("."):
                classes.append(entry.name)
        elif not entry.is_file():
            skipped[BROKEN_LINKS].append(entry.name)
        elif entry.name.lower().endswith(EXTENSIONS):
            skipped["images outside of the class folders"].append(entry.name)
    if not classes:
        raise ValueError(f"{folder} has no class folder: put images into {folder / 'CLASS'}")
    for name in (str(folder), *classes):
        if not _is_utf8(name):  # run.json could not store it
            raise ValueError(f"the name of the folder {ascii(name)} is not in UTF-8: rename the folder")
    files = {}
    for name in sorted(classes):
        skipped_here = defaultdict[str, list[str]](list)
        files[name] = _images_in(folder / name, skipped_here)
        if not files[name]:
            reasons = "".join(f"; skipped: {line}" for line in _describe_skipped(skipped_here))
            raise ValueError(
                f"{folder / name} has no images: put files there that end in {', '.join(EXTENSIONS)}{reasons}"
            )
        for kind, names in skipped_here.items():
            skipped[kind] += [f"{name}/{file}" for file in names]
    lines = tuple(f"skipped in {folder}: {line}" for line in _describe_skipped(skipped))
    for line in lines:
        warnings.warn(line, stacklevel=6)  # points to the call of `load_dataset`
    return files, lines


def _describe_skipped(skipped: Mapping[str, list[str]]) -> list[str]:
    """Return one line per kind of skipped files, with their number and one of their names."""
    examples = {kind: name if (name := min(names)).isprintable() else ascii(name) for kind, names in skipped.items()}
    return [f"{kind} ({len(names):,}), such as {examples[kind]}" for kind, names in skipped.items()]


def _images_in(
    folder: Path, skipped: dict[str, list[str]], prefix: str = "", parents: tuple[str, ...] = ()
) -> list[str]:
    """Return the image files in a folder and its sub-folders. Add the names of all other files to `skipped`."""
    parents = (*parents, os.path.realpath(folder))
    found, subfolders = [], []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name, hidden = prefix + entry.name, entry.name.startswith(".")
        is_image = entry.name.lower().endswith(EXTENSIONS)
        if entry.is_dir():
            if hidden:
                skipped["hidden folders"].append(name)
            elif entry.is_symlink() and os.path.realpath(entry.path) in parents:
                skipped["links to a parent folder"].append(name)
            else:
                subfolders.append(entry.name)
        elif not entry.is_file():
            skipped[BROKEN_LINKS].append(name)
        elif not is_image:
            skipped["files without an image extension"].append(name)
        elif hidden:
            skipped["hidden images"].append(name)
        else:
            found.append(name)
    for name in subfolders:
        found += _images_in(folder / name, skipped, f"{prefix}{name}/", parents)
    return found


def _is_utf8(name: str) -> bool:
    """Return whether a file name is in UTF-8. In other names, Python puts surrogates in place of the invalid bytes."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def reading_notes(*splits: Streamed | Split) -> dict[str, str]:
    """Return the notes of a data set of image files: how files are read, and which files are skipped.

    Parameters
    ----------
    *splits : Streamed or Split

    Returns
    -------
    dict of str to str
        For `Dataset.notes`. It is empty if all splits are in memory.
    """
    streamed = [split for split in splits if isinstance(split, Streamed)]
    skipped = "; ".join(line for split in streamed for line in split.skipped)
    return {"images": READING_RULES, **({"skipped": skipped} if skipped else {})} if streamed else {}


def memory_limit() -> float:
    """Return how many bytes of memory the images of a data set may use when they are loaded from files.

    Returns
    -------
    float
        A quarter of the memory of the computer, in bytes. Infinity on Windows.
    """
    if not hasattr(os, "sysconf"):  # Windows
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 4


def load_if_memory_allows(splits: Mapping[str, Streamed]) -> dict[str, Streamed | Split]:
    """Read the images of all splits into memory if they need at most `memory_limit` bytes.

    Parameters
    ----------
    splits : dict of str to Streamed

    Returns
    -------
    dict of str to Split or Streamed
        The splits in memory, or the given splits if they need more.

    Raises
    ------
    OSError
        If an image cannot be read.
    """
    needed = sum(len(split) * math.prod(split.shape) for split in splits.values())
    return {name: load_split(split) if needed <= memory_limit() else split for name, split in splits.items()}


def load_split(split: Streamed) -> Split:
    """Read the images of a split into memory, resized by `streaming.resize_and_crop`.

    Parameters
    ----------
    split : Streamed

    Returns
    -------
    Split
        Its ids are the file names.

    Raises
    ------
    OSError
        If an image cannot be read.
    """
    resize = partial(resize_and_crop, side=split.side, bits=split.bits)
    images = (read_image(split.path(row), resize) for row in range(len(split)))
    return Split(stack_images(images, len(split), split.side), split.labels, ids=split.names)


def stack_images(images: Iterable[Image.Image], count: int, side: int) -> torch.Tensor:
    """Copy RGB images of one size into one tensor.

    Parameters
    ----------
    images : iterable of PIL.Image.Image
        RGB images of side × side pixels.
    count : int
        Number of images.
    side : int
        Height and width in pixels.

    Returns
    -------
    uint8 Tensor of shape (count, 3, side, side)

    Examples
    --------
    >>> from PIL import Image
    >>> from pckd_nb.data.folders import stack_images
    >>> images = [Image.new("RGB", (8, 8), color) for color in ("red", "green")]
    >>> stack_images(images, count=2, side=8).shape
    torch.Size([2, 3, 8, 8])
    """
    pixels = np.empty((count, 3, side, side), np.uint8)
    for row, image in enumerate(images):  # in one thread: several were twice as slow for small images
        pixels[row] = np.asarray(image).transpose(2, 0, 1)
    return torch.from_numpy(pixels)


__getattr__ = renamed(__name__)
