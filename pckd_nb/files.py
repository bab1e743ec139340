"""Files that are never half there, and folders that one process holds at a time.

`write` fills a temporary file, syncs it and renames it. While a process holds a folder, it has a lock on .lock in it,
which the operating system takes back from a process that is killed.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

LOCK = ".lock"
LEFT = re.compile(r"\..*\.tmp|\.lock")  # what a process that was killed may have left of `write` and `locked`
LOCKS: dict[Path, os.stat_result] = {}  # of the folders that this process holds


def write(path: Path, writer: Callable[[Path], Any], keep: Path | None = None) -> None:
    """Let `writer` fill a temporary file beside `path`, sync it, rename it, and sync the folder. keep: where to move
    what was there before.

    Raises OSError that names `path` where that can't be done; then `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # another process may be writing the same
    try:
        writer(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        if gone(path.parent):
            raise FileNotFoundError
        if keep and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        if gone(path.parent):
            raise FileNotFoundError(
                f"the folder '{path.parent}' has gone: it, or its {LOCK}, was removed or renamed meanwhile"
            ) from error
        if keep and keep.exists() and not path.exists():
            os.replace(keep, path)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut, where the system can open and sync a folder."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems can't
                raise
        finally:
            os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder for this process alone, making it and those above it where there are none; what was made and
    stays empty goes again.

    Raises BlockingIOError where another process holds it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
        LOCKS[folder] = os.stat(folder / LOCK)
    except (Timeout, FileNotFoundError):  # not found: its holder is just removing it
        lock.release()
        raise BlockingIOError(
            f"another process is training in '{folder}': wait for it, or choose another folder"
        ) from None
    try:
        for left in folder.glob(".*.tmp"):  # by a process that was killed: no other one writes here now
            left.unlink()
        yield
    finally:
        with suppress(OSError):
            if not gone(folder):
                (folder / LOCK).unlink()
        LOCKS.pop(folder, None)
        lock.release()
        with suppress(OSError):
            for path in dict.fromkeys([folder, *made]):
                path.rmdir()


def check_writable(folder: Path) -> None:
    """Check that a folder can be written to, or that it can be created.

    Parameters
    ----------
    folder : Path

    Raises
    ------
    NotADirectoryError
        If `folder`, or a path above it, is a file.
    PermissionError
        If nothing can be written there.
    """
    ancestor = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not ancestor.is_dir():
        raise NotADirectoryError(f"'{ancestor}' is a file; '{folder}' has to be a folder")
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise PermissionError(f"can't write to '{ancestor}'")


def gone(folder: Path) -> bool:
    """Whether a folder is not there any more, or, if this process holds it, another one is in its place."""
    try:
        now = os.stat(folder / LOCK if folder in LOCKS else folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return folder in LOCKS and not os.path.samestat(LOCKS[folder], now)
