"""Folders of images: one sub-folder per class, and ImageNet as unpacked from its archives."""

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
from .dataset import Split, check_class_names
from .streaming import HOW_READ, Streamed, fit, read_image, with_depth

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's IMG_EXTENSIONS
BROKEN = "broken links"
_TREE = "folder:PATH needs PATH/train/CLASS and PATH/test/CLASS"


def read_folder(
    folder: Path, image_size: int | None, workers: int | None
) -> tuple[dict[str, Streamed], tuple[str, ...]]:
    """Read the file names in PATH/train/CLASS/ and PATH/test/CLASS/, and in PATH/val/CLASS/ if PATH/val exists.

    The images stay in their files.

    As in torchvision's ImageFolder, sub-folders of a class folder belong to it, and the extension of a file says that
    it is an image. A warning counts what is skipped: other files, hidden images, broken links, and images outside of
    the class folders.

    Parameters
    ----------
    folder : Path
    image_size : int or None
        Side in pixels of the RGB images. The shorter side of an image is scaled to it, and the center is cropped. None
        takes the most frequent size of the training images if it is square and at most 64×64, else 32.
    workers : int or None
        As in `Streamed`.

    Returns
    -------
    splits : dict of str to Streamed
        "train", "test" and, if there is such a folder, "val".
    classes : tuple of str

    Raises
    ------
    FileNotFoundError
        If a folder is missing.
    ValueError
        If there are fewer than two classes, a class folder has no images, a folder name is not in UTF-8, test or val
        has classes that train lacks, or two of the folders are the same one.
    OSError
        If `image_size` is None and a training image cannot be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: {_TREE}")
    places = {name: folder / name for name in ("train", "test", "val") if name != "val" or (folder / name).is_dir()}
    splits, classes = _class_folders(places, side=image_size or 32, workers=workers)
    if image_size is None:
        train = splits["train"]
        sizes = Counter(read_image(train.path(row), lambda image: image.size) for row in range(len(train)))
        (width, height), _ = sizes.most_common(1)[0]
        if width == height <= 64:
            splits = {name: dataclasses.replace(split, side=width) for name, split in splits.items()}
    return splits, classes


def read_imagenet(folder: Path, side: int, workers: int | None) -> tuple[Streamed, Streamed, tuple[str, ...]]:
    """Read the file names of ImageNet in PATH/train/CLASS/ and PATH/val/CLASS/. The folder val may also be called test.

    If a folder is missing, it is first unpacked from the archives.

    Parameters
    ----------
    folder : Path
    side : int
        Height and width in pixels to which images are cropped when they are read.
    workers : int or None
        As in `Streamed`.

    Returns
    -------
    train, test : Streamed
        With `random_crop`.
    classes : tuple of str

    Raises
    ------
    FileNotFoundError
        If neither the folders nor the archives are there.
    ValueError
        If the folders cannot be used, as in `read_folder`.
    OSError
        If an archive is damaged or cannot be unpacked.
    """
    names = {"train": ("train",), "val": ("val", "test")}
    if missing := [part for part in names if not any((folder / name).is_dir() for name in names[part])]:
        _unpack_imagenet(folder, missing)
    test = folder / "val" if (folder / "val").is_dir() else folder / "test"
    places = {"train": folder / "train", "test": test}
    splits, classes = _class_folders(places, side=side, random_crop=True, workers=workers)
    return splits["train"], splits["test"], classes


def _unpack_imagenet(folder: Path, parts: list[str]) -> None:
    """Let torchvision verify and unpack the archives of `parts`, with tarfile's data filter. parts: train, val or both.

    A part gets its final name only when it is complete, so that an interrupted one is not mistaken for a complete one.
    """
    from torchvision.datasets import imagenet

    downloads.check_tarfile()  # before the user is asked to obtain the archives
    archives = {folder / file: md5 for file, md5 in imagenet.ARCHIVE_META.values()}
    needed = [folder / imagenet.ARCHIVE_META[part][0] for part in (*parts, *["devkit"] * ("val" in parts))]
    if not all(archive.is_file() for archive in needed):
        raise FileNotFoundError(
            f"there is no {' and no '.join(str(folder / part) for part in parts)}: ImageNet has to be obtained by "
            f"hand, from image-net.org; put {', '.join(archive.name for archive in archives)} into {folder}, "
            f"or images into {folder / 'train' / 'CLASS'} and {folder / 'val' / 'CLASS'}"
        )
    try:
        with downloads.safe_tarfile():
            if "val" in parts:
                imagenet.parse_devkit_archive(folder)
            for part in parts:
                unfinished = folder / f"{part}.unfinished"
                shutil.rmtree(unfinished, ignore_errors=True)
                unpack = imagenet.parse_train_archive if part == "train" else imagenet.parse_val_archive
                try:
                    unpack(folder, folder=unfinished.name)
                    unfinished.rename(folder / part)
                finally:
                    shutil.rmtree(unfinished, ignore_errors=True)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise OSError(f"the archives in {folder} were not unpacked: {one_line(error)}") from error
    except RuntimeError:  # its message does not say what was found
        for archive in needed:
            downloads.check_md5(archive, archives[archive], "obtain it again")
        raise


def _class_folders(places: dict[str, Path], **options: Any) -> tuple[dict[str, Streamed], tuple[str, ...]]:
    """Return the splits in folders of class folders, and the classes; `options` are passed to `Streamed`."""
    found = dict(zip(places, map(_files_by_class, places.values()), strict=True))
    resolved: dict[Path, Path] = {}
    for folder in places.values():
        if (other := resolved.setdefault(folder.resolve(), folder)) != folder:
            raise ValueError(f"{folder} and {other} are the same folder: they must have different images")
    classes = tuple(found["train"][0])
    if len(classes) < 2:
        raise ValueError(f"{places['train']} has one class folder, {classes[0]}: two or more are needed")
    check_class_names(tuple(dict.fromkeys(name for files, _ in found.values() for name in files)))
    for split, (files, _) in found.items():
        if unknown := [name for name in files if name not in classes]:
            raise ValueError(f"{places[split]} has class folders that train lacks: {', '.join(unknown)}")

    def split_in(folder: Path, files: dict[str, list[str]], skipped: tuple[str, ...]) -> Streamed:
        names = np.array([os.fsencode(f"{name}/{file}") for name in files for file in files[name]])
        counts = torch.tensor([len(files.get(name, ())) for name in classes])
        labels = torch.arange(len(classes)).repeat_interleave(counts)
        return Streamed(folder, names, labels, skipped=skipped, **options)

    return with_depth({name: split_in(places[name], *found[name]) for name in places}), classes


def _files_by_class(folder: Path) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """Return the image files of every class, both sorted by name, and lines that say which files are skipped."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: {_TREE}")
    classes, skipped = [], defaultdict[str, list[str]](list)
    for entry in os.scandir(folder):
        if entry.is_dir():
            classes += [] if entry.name.startswith(".") else [entry.name]
        elif not entry.is_file():
            skipped[BROKEN].append(entry.name)
        elif entry.name.lower().endswith(EXTENSIONS):
            skipped["images outside of the class folders"].append(entry.name)
    if not classes:
        raise ValueError(f"{folder} has no class folder: images belong into {folder / 'CLASS'}")
    for name in (str(folder), *classes):
        if not _is_utf8(name):  # it could not be written into run.json
            raise ValueError(f"the name of the folder {ascii(name)} is not in UTF-8: rename it")
    files = {}
    for name in sorted(classes):
        here = defaultdict[str, list[str]](list)
        files[name] = _images_in(folder / name, here)
        if not files[name]:
            found = "".join(f"; skipped: {line}" for line in _lines(here))
            raise ValueError(f"{folder / name} has no image: expected are files in {', '.join(EXTENSIONS)}{found}")
        for kind, names in here.items():
            skipped[kind] += [f"{name}/{file}" for file in names]
    lines = tuple(f"skipped in {folder}: {line}" for line in _lines(skipped))
    for line in lines:
        warnings.warn(line, stacklevel=6)  # the caller of `load_dataset`
    return files, lines


def _lines(skipped: Mapping[str, list[str]]) -> list[str]:
    """Return one line per kind of skipped files: their number, and the first of them."""
    shown = {kind: name if (name := min(names)).isprintable() else ascii(name) for kind, names in skipped.items()}
    return [f"{kind} ({len(names):,}), such as {shown[kind]}" for kind, names in skipped.items()]


def _images_in(folder: Path, skipped: dict[str, list[str]], below: str = "", around: tuple[str, ...] = ()) -> list[str]:
    """Return the image files in a folder and its sub-folders, relative to it and sorted by name.

    `skipped` receives the names of all other files, by kind. `around` has the real paths of the folders above.
    """
    around = (*around, os.path.realpath(folder))
    found, inner = [], []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name, hidden = below + entry.name, entry.name.startswith(".")
        is_image = entry.name.lower().endswith(EXTENSIONS)
        if entry.is_dir():
            if hidden:
                skipped["hidden folders"].append(name)
            elif entry.is_symlink() and os.path.realpath(entry.path) in around:
                skipped["links to a folder that they are in"].append(name)
            else:
                inner.append(entry.name)
        elif not entry.is_file():
            skipped[BROKEN].append(name)
        elif not is_image:
            skipped["files without the extension of an image"].append(name)
        elif hidden:
            skipped["hidden images"].append(name)
        else:
            found.append(name)
    for name in inner:
        found += _images_in(folder / name, skipped, f"{below}{name}/", around)
    return found


def _is_utf8(name: str) -> bool:
    """Return whether a name from the file system can be encoded as UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def reading_notes(*splits: Streamed | Split) -> dict[str, str]:
    """Return rows for the table of a data set whose images are in files: how they are read, and what is skipped.

    Parameters
    ----------
    *splits : Streamed or Split

    Returns
    -------
    dict of str to str
        It is empty if no split is in files.
    """
    streamed = [split for split in splits if isinstance(split, Streamed)]
    skipped = "; ".join(line for split in streamed for line in split.skipped)
    return {"images": HOW_READ, **({"skipped": skipped} if skipped else {})} if streamed else {}


def memory_limit() -> float:
    """Return how many bytes the images of a folder may fill.

    Returns
    -------
    float
        A quarter of the machine's memory, in bytes. Infinity on Windows.
    """
    if not hasattr(os, "sysconf"):  # Windows
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 4


def read_what_fits(splits: Mapping[str, Streamed]) -> dict[str, Streamed | Split]:
    """Read splits into memory if all of them together fit into `memory_limit`.

    Parameters
    ----------
    splits : dict of str to Streamed

    Returns
    -------
    dict of str to Split or Streamed
        The splits in memory if they fit, else the given ones.

    Raises
    ------
    OSError
        If an image cannot be read.
    """
    needed = sum(len(split) * math.prod(split.shape) for split in splits.values())
    return {name: in_memory(split) if needed <= memory_limit() else split for name, split in splits.items()}


def in_memory(split: Streamed) -> Split:
    """Read the images of a split into memory, scaled and cropped by `streaming.fit`.

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
    images = (read_image(split.path(row), partial(fit, side=split.side, bits=split.bits)) for row in range(len(split)))
    return Split(stack(images, len(split), split.side), split.labels, ids=split.names)


def stack(images: Iterable[Image.Image], count: int, side: int) -> torch.Tensor:
    """Stack RGB images of one size into one tensor.

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
    """
    pixels = np.empty((count, 3, side, side), np.uint8)
    for row, image in enumerate(images):  # one thread: a pool was measured to be twice as slow for small images
        pixels[row] = np.asarray(image).transpose(2, 0, 1)
    return torch.from_numpy(pixels)
