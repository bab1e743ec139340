"""A cache on disk for the teacher's features, which several trainings can share."""

import hashlib
import json
import os
import time
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import files

SECONDS_PER_DAY = 24 * 3600


class TeacherCache:
    """Cache the teacher's features of every training image in every epoch.

    Each combination of teacher, hardware, data, seed and augmentation has a folder of its own, because the features
    depend on all of them. `key` describes the combination. Trainings with the same key share the files.

    Each epoch has one file with an array of shape (samples, views, D), where D is the length of a feature vector. The
    file is memory-mapped: only the rows that are used are read. When it is complete, a second file with its checksum is
    written. A file with a wrong checksum or without one is not used, and its features are computed again.

    Parameters
    ----------
    root : path
        Folder of the whole cache.
    key : dict
        Everything that determines the features.
    shape : tuple of (samples, views, D)
    gigabytes : float
        Maximum size of all files under `root`, in 10⁹ bytes. A file that does not fit is not written.
    dtype : {"float16", "float32"}
        NumPy dtype of the features.
    writes : bool
        Whether this process writes files. If there are several processes, only one should.

    Attributes
    ----------
    cached : array of shape (samples, views, D), or None
        Features of the current epoch, if its file is complete.
    new_file : memory-mapped array of shape (samples, views, D), or None
        The file of the current epoch, while it is being written.

    Raises
    ------
    ValueError
        If `gigabytes` is not positive.
    OSError
        If the folder cannot be created.
    """

    def __init__(
        self, root: str | Path, key: dict[str, Any], shape: tuple[int, int, int], gigabytes: float,
        dtype: str = "float16", writes: bool = True,
    ):  # fmt: skip
        if not gigabytes > 0:
            raise ValueError(f"gigabytes must be greater than 0, got {gigabytes}")
        text = json.dumps(key, sort_keys=True)
        self.root, self.key, self.shape, self.max_bytes = Path(root), key, shape, gigabytes * 1e9
        self.dtype, self.writes = np.dtype(dtype), writes
        self.folder = self.root / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        # Remove the files of killed processes. A recent file may belong to a process that is still writing it.
        for leftover in self.folder.glob(".*.tmp"):
            with suppress(OSError):
                if time.time() - leftover.stat().st_mtime > SECONDS_PER_DAY:
                    leftover.unlink()
        self.cached: np.ndarray | None = None
        self.new_file: np.memmap | None = None

    def read_form(self) -> dict[str, Any] | None:
        """Return the form of the teacher that computed these features, see `FrozenTeacher`.

        Returns
        -------
        dict or None
            What `write_form` wrote. None if there is no valid file.
        """
        try:
            recorded = json.loads((self.folder / "teacher.json").read_text())
            return {"form": str(recorded["form"]), "logits_error": float(recorded["logits_error"])}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write_form(self, form: dict[str, Any]) -> None:
        """Record the form of the teacher that computes these features, see `FrozenTeacher`.

        Parameters
        ----------
        form : dict
            {"form": name, "logits_error": number}
        """
        if self.writes:
            files.write(self.folder / "teacher.json", lambda temporary: temporary.write_text(json.dumps(form)))

    def begin_epoch(self, epoch: int) -> None:
        """Open the file of an epoch. If there is no valid file, start a new one.

        Parameters
        ----------
        epoch : int
            Counted from 1.
        """
        self.path = self.folder / f"epoch-{epoch:04d}.npy"
        self.cached, self.new_file = self._open_valid_file(), None
        if self.cached is None and self.writes and self._has_space():
            self.temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
            try:
                self.new_file = np.lib.format.open_memmap(self.temporary, "w+", self.dtype, self.shape)
                # Reserve the disk space now. Writing to a memory-mapped file on a full disk would kill the process.
                if hasattr(os, "posix_fallocate"):
                    with open(self.temporary, "rb+") as file:
                        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
            except OSError as error:
                self.new_file = None
                self._remove_temporary(error)
            self.written = np.zeros(self.shape[0], bool)

    def read(self, index: Tensor) -> Tensor | None:
        """Return the cached features of training images.

        Parameters
        ----------
        index : int64 Tensor of shape (B,)
            Positions in the training set.

        Returns
        -------
        Tensor of shape (V·B, D), or None
            Sorted by view, then by image, on the device of `index`. None if the epoch is not cached.
        """
        if self.cached is None:
            return None
        features = torch.from_numpy(self.cached[index.cpu().numpy()])
        return features.transpose(0, 1).flatten(0, 1).to(index.device)

    def write(self, index: Tensor, features: Tensor) -> None:
        """Store features of training images. Does nothing if the epoch is cached already.

        Parameters
        ----------
        index : int64 Tensor of shape (B,)
            Positions in the training set.
        features : Tensor of shape (V·B, D)
            Sorted by view, then by image.
        """
        if self.new_file is not None:
            positions = index.cpu().numpy()
            self.new_file[positions] = features.unflatten(0, (-1, len(index))).transpose(0, 1).cpu().numpy()
            self.written[positions] = True

    def end_epoch(self) -> None:
        """Keep the new file if it is complete. Otherwise remove it."""
        if self.new_file is not None and self.written.all():
            try:
                self.new_file.flush()
                checksum = {"sum": zlib.crc32(self.new_file.data), "shape": self.shape, "key": self.key}
                self.temporary.replace(self.path)
                files.write(self._checksum_path, lambda temporary: temporary.write_text(json.dumps(checksum, indent=2)))
            except OSError as error:
                self._remove_temporary(error)
            self.new_file = None
        self.close()

    def close(self) -> None:
        """Remove the file of an incomplete epoch."""
        if self.new_file is not None:
            self.new_file = None
            with suppress(OSError):
                self.temporary.unlink(missing_ok=True)

    def _remove_temporary(self, error: OSError) -> None:
        """Clean up after an error. Training continues without the cache file."""
        with suppress(OSError):
            self.temporary.unlink(missing_ok=True)
        reason = error.strerror or error
        warnings.warn(f"'{self.path}' can't be written ({reason}): the teacher runs at every step", stacklevel=3)

    @property
    def _checksum_path(self) -> Path:
        return self.path.with_suffix(".json")

    def _open_valid_file(self) -> np.ndarray | None:
        # another training may have written the features, but not yet their checksum
        if not (self.path.exists() and self._checksum_path.exists()):
            return None
        try:
            checksum = json.loads(self._checksum_path.read_text())["sum"]
            cached: np.ndarray = np.load(self.path, mmap_mode="r", allow_pickle=False)
            if cached.shape == self.shape and cached.dtype == self.dtype and zlib.crc32(cached.data) == checksum:
                return cached
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            pass
        warnings.warn(f"'{self.path}' is outdated or damaged: its features are computed again", stacklevel=2)
        return None

    def _has_space(self) -> bool:
        used = 0
        for file in self.root.rglob("*"):
            with suppress(OSError):  # another training may rename or remove its files at the same time
                used += file.stat().st_size if file.is_file() else 0
        needed = self.dtype.itemsize * int(np.prod(self.shape))
        if used + needed > self.max_bytes:
            warnings.warn(
                f"the teacher cache '{self.root}' is full: {needed / 1e9:.1f} GB more would exceed its maximum of "
                f"{self.max_bytes / 1e9:g} GB; the teacher runs at every step",
                stacklevel=2,
            )
            return False
        return True
