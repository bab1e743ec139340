"""Write files completely or not at all, and let only one process at a time use a folder.

`write` writes a temporary file, syncs it to the disk and renames it. A process that uses a folder locks the file .lock
in it. If the process is killed, the operating system removes the lock.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

LOCK = ".lock"
LEFTOVERS = re.compile(r"\..*\.tmp|\.lock")  # files of `write` and `locked` that a killed process may leave behind
HELD_LOCKS: dict[Path, os.stat_result] = {}  # folder that this process has locked → its file .lock


def write(path: Path, writer: Callable[[Path], Any], backup: Path | None = None) -> None:
    """Write a file atomically: completely or not at all.

    Parameters
    ----------
    path : Path
    writer : callable
        It gets the path of a temporary file in the same folder, and writes the content to it.
    backup : Path, optional
        If `path` exists, the old file is moved here. Default: the old file is replaced.

    Raises
    ------
    FileNotFoundError
        If the folder was removed or renamed.
    OSError
        If the file cannot be written. `path` is then unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # unique per process
    try:
        writer(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        if is_gone(path.parent):
            raise FileNotFoundError  # replaced below by one with a message
        if backup and path.exists():
            os.replace(path, backup)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        if is_gone(path.parent):
            raise FileNotFoundError(
                f"the folder '{path.parent}' is gone: it, or its file {LOCK}, was removed or renamed; do not change a "
                "folder while a process uses it"
            ) from error
        if backup and backup.exists() and not path.exists():
            os.replace(backup, path)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make sure that renames in a folder survive a power failure, if the operating system can do so."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems can't sync
                raise
        finally:
            os.close(descriptor)


@contextmanager
def locked(folder: Path, timeout: float = 0) -> Iterator[None]:
    """Lock a folder for this process, as a context manager.

    The folder is created if it does not exist. At the end it is removed if it is empty, and so are the parent folders
    that were created.

    Parameters
    ----------
    folder : Path
    timeout : float
        Seconds to wait for another process that has locked the folder.

    Raises
    ------
    BlockingIOError
        If another process still has locked the folder.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock, end = FileLock(folder / LOCK), time.monotonic() + timeout
    while True:
        try:
            lock.acquire(timeout=max(0, end - time.monotonic()))
            HELD_LOCKS[folder] = os.stat(folder / LOCK)
            break
        except (Timeout, FileNotFoundError):  # not found: the other process is just removing it
            lock.release()
            if time.monotonic() >= end:
                raise BlockingIOError(
                    f"another process is training in '{folder}': wait for it, or choose another folder"
                ) from None
    try:
        for leftover in folder.glob(".*.tmp"):  # of a killed process: no other process writes here now
            leftover.unlink()
        yield
    finally:
        with suppress(OSError):
            if not is_gone(folder):
                (folder / LOCK).unlink()
        HELD_LOCKS.pop(folder, None)
        lock.release()
        with suppress(OSError):
            for path in dict.fromkeys([folder, *created]):
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
        If this process may not write there.
    """
    ancestor = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not ancestor.is_dir():
        raise NotADirectoryError(f"'{ancestor}' is a file; '{folder}' has to be a folder: choose another one")
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise PermissionError(f"can't write to '{ancestor}': choose another folder, or change its permissions")


def is_gone(folder: Path) -> bool:
    """Return whether a folder was removed, or was replaced by another one after this process had locked it."""
    try:
        now = os.stat(folder / LOCK if folder in HELD_LOCKS else folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return folder in HELD_LOCKS and not os.path.samestat(HELD_LOCKS[folder], now)
