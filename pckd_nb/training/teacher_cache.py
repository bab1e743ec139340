"""Features of a frozen teacher on disk, shared by trials with the same images."""

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

A_DAY = 24 * 3600  # seconds


class TeacherCache:
    """Cache a frozen teacher's features of every training image in every epoch, in files that trials share.

    The features of an image depend on the teacher's weights, the hardware for which it chooses its form, the data, the
    seed and the augmentation. `key` holds all of this, and every key has its own folder.

    Every epoch is one memory-mapped file of shape (samples, views, D). A second file holds its checksum and is written
    when the first is complete. A file without its checksum, or with a wrong one, is computed again.

    Parameters
    ----------
    root : path
        Parent of the folders.
    key : dict
        Everything that determines the features.
    shape : tuple of (samples, views, D)
    gigabytes : float
        Maximum size of all files under `root`. Beyond it, no new files are written.
    kind : str
        NumPy dtype of the features, "float16" or "float32".
    writes : bool
        False leaves writing to another process.

    Raises
    ------
    ValueError
        If `gigabytes` is not positive.
    OSError
        If the folder cannot be created.
    """

    def __init__(
        self, root: str | Path, key: dict[str, Any], shape: tuple[int, int, int], gigabytes: float,
        kind: str = "float16", writes: bool = True,
    ):  # fmt: skip
        if not gigabytes > 0:
            raise ValueError(f"the teacher cache needs room, more than 0 GB, got {gigabytes}")
        text = json.dumps(key, sort_keys=True)
        self.root, self.key, self.shape, self.limit = Path(root), key, shape, gigabytes * 1e9
        self.kind, self.writes = np.dtype(kind), writes
        self.folder = self.root / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".*.tmp"):  # of a killed process; recent files may be in use by another one
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > A_DAY:
                    left.unlink()
        self.kept: np.ndarray | None = None  # features of the current epoch, if its file is complete
        self.new: np.memmap | None = None  # the file of the current epoch, if it is being written

    def form(self) -> dict[str, Any] | None:
        """Return what the first trial passed to `keep_form`, or None if there is no valid record."""
        try:
            kept = json.loads((self.folder / "teacher.json").read_text())
            return {"form": str(kept["form"]), "logits_error": float(kept["logits_error"])}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep_form(self, chosen: dict[str, Any]) -> None:
        """Record which form the teacher uses, for `form`."""
        if self.writes:
            files.write(self.folder / "teacher.json", lambda temporary: temporary.write_text(json.dumps(chosen)))

    def begin(self, epoch: int) -> None:
        """Open the file of an epoch, or start a new one if there is no valid file."""
        self.path = self.folder / f"epoch-{epoch:04d}.npy"
        self.kept, self.new = self._open(), None
        if self.kept is None and self.writes and self._room():
            self.temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
            try:
                self.new = np.lib.format.open_memmap(self.temporary, "w+", self.kind, self.shape)
                if hasattr(os, "posix_fallocate"):  # otherwise a disk that fills up later kills the process with SIGBUS
                    with open(self.temporary, "rb+") as file:
                        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
            except OSError as error:
                self.new = None
                self._remove_temporary(error)
            self.written = np.zeros(self.shape[0], bool)

    def read(self, index: Tensor) -> Tensor | None:
        """Return cached features of training images.

        Parameters
        ----------
        index : int64 Tensor of shape (B,)
            Positions in the training set.

        Returns
        -------
        Tensor of shape (V·B, D), or None
            View-major, on the device of `index`. None if the epoch is not cached.
        """
        if self.kept is None:
            return None
        features = torch.from_numpy(self.kept[index.cpu().numpy()])
        return features.transpose(0, 1).flatten(0, 1).to(index.device)

    def write(self, index: Tensor, features: Tensor) -> None:
        """Store features that `read` did not find.

        Parameters
        ----------
        index : int64 Tensor of shape (B,)
            Positions in the training set.
        features : Tensor of shape (V·B, D)
            View-major.
        """
        if self.new is not None:
            rows = index.cpu().numpy()
            self.new[rows] = features.unflatten(0, (-1, len(index))).transpose(0, 1).cpu().numpy()
            self.written[rows] = True

    def end(self) -> None:
        """Move the new file into place if it is complete, and remove it otherwise."""
        if self.new is not None and self.written.all():
            try:
                self.new.flush()
                seal = {"sum": zlib.crc32(self.new.data), "shape": self.shape, "key": self.key}
                self.temporary.replace(self.path)
                files.write(self._seal, lambda temporary: temporary.write_text(json.dumps(seal, indent=2)))
            except OSError as error:
                self._remove_temporary(error)
            self.new = None
        self.close()

    def close(self) -> None:
        """Remove the file of an incomplete epoch."""
        if self.new is not None:
            self.new = None
            with suppress(OSError):
                self.temporary.unlink(missing_ok=True)

    def _remove_temporary(self, error: OSError) -> None:
        """Clean up after an error. Training continues without the cache file."""
        with suppress(OSError):
            self.temporary.unlink(missing_ok=True)
        reason = error.strerror or error
        warnings.warn(f"'{self.path}' can't be kept ({reason}): the teacher is asked instead", stacklevel=3)

    @property
    def _seal(self) -> Path:
        return self.path.with_suffix(".json")

    def _open(self) -> np.ndarray | None:
        if not (self.path.exists() and self._seal.exists()):  # another trial may have written only the first of the two
            return None
        try:
            seal = json.loads(self._seal.read_text())
            kept: np.ndarray = np.load(self.path, mmap_mode="r", allow_pickle=False)
            if kept.shape == self.shape and kept.dtype == self.kind and zlib.crc32(kept.data) == seal["sum"]:
                return kept
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            pass
        warnings.warn(f"'{self.path}' is stale or damaged: the teacher is asked again", stacklevel=2)
        return None

    def _room(self) -> bool:
        filled = 0
        for file in self.root.rglob("*"):
            with suppress(OSError):  # another trial may rename or remove its files meanwhile
                filled += file.stat().st_size if file.is_file() else 0
        needed = self.kind.itemsize * int(np.prod(self.shape))
        if filled + needed > self.limit:
            warnings.warn(
                f"the teacher cache '{self.root}' is full: another {needed / 1e9:.1f} GB would make it larger than "
                f"{self.limit / 1e9:g} GB; the teacher is asked instead",
                stacklevel=2,
            )
            return False
        return True
