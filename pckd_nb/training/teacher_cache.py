"""A frozen teacher's features on disk, for other trials with the same images."""

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
    """A frozen teacher's features of every training image at every epoch, in files, for trials to share.

    What a teacher says of a sample is a function of its weights, the hardware that it takes its form for, the data, the
    seed of the augmentation and how that augments: `key`. Every key has a folder, every epoch in it a file (samples,
    views, D), mapped into memory, and beside it the sum of its bytes, written when all of them are there: a file
    without its sum, or with another one, is made again. root: where the folders are · gigabytes: what all of them may
    fill; beyond, nothing is kept · kind: numpy's name of the numbers, float16 or float32 · writes: False leaves that to
    another process. Raises ValueError for gigabytes that are none, OSError where no folder can be made.
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
        for left in self.folder.glob(".*.tmp"):  # by a process that was killed; another one may be at work
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > A_DAY:
                    left.unlink()
        self.kept: np.ndarray | None = None  # of the epoch that was begun, if it is complete
        self.new: np.memmap | None = None  # or being written

    def form(self) -> dict[str, Any] | None:
        """What `keep_form` was told, by whichever trial was first; None if there is nothing of it."""
        try:
            kept = json.loads((self.folder / "teacher.json").read_text())
            return {"form": str(kept["form"]), "logits_error": float(kept["logits_error"])}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep_form(self, chosen: dict[str, Any]) -> None:
        """Write down which form the teacher took, for `form`."""
        if self.writes:
            files.write(self.folder / "teacher.json", lambda temporary: temporary.write_text(json.dumps(chosen)))

    def begin(self, epoch: int) -> None:
        """Open the file of an epoch, or a new one in its place."""
        self.path = self.folder / f"epoch-{epoch:04d}.npy"
        self.kept, self.new = self._open(), None
        if self.kept is None and self.writes and self._room():
            self.temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
            try:
                self.new = np.lib.format.open_memmap(self.temporary, "w+", self.kind, self.shape)
                if hasattr(os, "posix_fallocate"):  # a disk that is full only later kills the process by SIGBUS
                    with open(self.temporary, "rb+") as file:
                        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
            except OSError as error:
                self.new = None
                self._remove_temporary(error)
            self.written = np.zeros(self.shape[0], bool)

    def read(self, index: Tensor) -> Tensor | None:
        """The features of the training images at `index`, (B,), view-major (V·B, D) on its device, if kept."""
        if self.kept is None:
            return None
        features = torch.from_numpy(self.kept[index.cpu().numpy()])
        return features.transpose(0, 1).flatten(0, 1).to(index.device)

    def write(self, index: Tensor, features: Tensor) -> None:
        """Keep what `read` did not find."""
        if self.new is not None:
            rows = index.cpu().numpy()
            self.new[rows] = features.unflatten(0, (-1, len(index))).transpose(0, 1).cpu().numpy()
            self.written[rows] = True

    def end(self) -> None:
        """Put the new file in its place if it is whole, and remove it if not."""
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
        """Leave nothing of an epoch that did not come to its end."""
        if self.new is not None:
            self.new = None
            with suppress(OSError):
                self.temporary.unlink(missing_ok=True)

    def _remove_temporary(self, error: OSError) -> None:
        """After an error that the training can do without."""
        with suppress(OSError):
            self.temporary.unlink(missing_ok=True)
        reason = error.strerror or error
        warnings.warn(f"'{self.path}' can't be kept ({reason}): the teacher is asked instead", stacklevel=3)

    @property
    def _seal(self) -> Path:
        return self.path.with_suffix(".json")

    def _open(self) -> np.ndarray | None:
        if not (self.path.exists() and self._seal.exists()):  # another trial may be just between the two
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
            with suppress(OSError):  # another trial may rename or remove its own meanwhile
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
