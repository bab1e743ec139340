"""Download files over https, check them, and unpack archives safely.

Nothing is downloaded unless you ask for a data set or a checkpoint that is not on this machine.
"""

import os
import shutil
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from .messages import one_line
from .paths import user_path

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
RETRY_PAUSES = (1.0, 4.0)  # seconds before the second and the third try of a download


def default_root() -> Path:
    """Return the folder of downloads and caches.

    It is the value of the environment variable PCKD_DATA. The default is data/downloads in the clone of the repository
    that contains this package. Without a clone it is data/downloads in the current folder.
    """
    clone = Path(__file__).resolve().parents[1]
    base = clone if (clone / "pyproject.toml").is_file() else Path()
    return user_path(os.environ.get("PCKD_DATA") or base / "data" / "downloads", "PCKD_DATA")


def md5_of(path: Path) -> str:
    """Return the MD5 sum of a file as 32 hexadecimal digits."""
    from torchvision.datasets.utils import calculate_md5

    return str(calculate_md5(path))


def check_md5(path: Path, expected: str, remedy: str = "delete it to download it again") -> None:
    """Check the MD5 sum of a file.

    Parameters
    ----------
    path : Path
    expected : str
        32 hexadecimal digits.
    remedy : str
        End of the error message, such as what the user should do.

    Raises
    ------
    OSError
        If the sum is not `expected`.
    """
    if (found := md5_of(path)) != expected:
        raise OSError(f"{path} is damaged: its md5 is {found}, expected {expected}; {remedy}")


def download(url: str, path: Path, check: Callable[[Path], None], max_bytes: int | None = None) -> None:
    """Download a file. `path` exists only after the whole file was downloaded and checked.

    If the connection breaks, the download is tried again, up to three times in all. A failed download leaves no file.

    Parameters
    ----------
    url : str
        An https address. http is accepted for addresses of this machine. Redirections have to fulfil the same rule.
    path : Path
        Where to put the file.
    check : callable
        Called with the path of the file, which still has a temporary name. If it raises an exception, the download has
        failed.
    max_bytes : int, optional
        Largest accepted size.

    Raises
    ------
    ValueError
        If an address is not accepted.
    OSError
        If the download fails.
    """
    import pooch  # imported here because it is slow to import

    check_address(url)

    def downloader(_: str, temporary: str, __: Any) -> None:  # pooch passes the address, the path and itself
        _download_with_retries(url, temporary, max_bytes)
        check(Path(temporary))

    created = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    pooch.get_logger().setLevel("WARNING")
    try:
        pooch.retrieve(url, None, fname=path.name, path=path.parent, downloader=downloader)
    except BaseException:
        with suppress(OSError):  # a folder that is not empty can't be removed
            for folder in created:
                folder.rmdir()
        raise
    mask = os.umask(0)  # the only way to read the mask is to set it
    os.umask(mask)
    path.chmod(0o666 & ~mask)  # pooch creates files that only their owner can read


def check_address(url: str) -> None:
    """Raise ValueError unless `url` is an https address, or an http address of this machine."""
    try:
        parts = urlsplit(url)
    except ValueError as error:  # for example if a bracket is not closed
        raise ValueError(f"'{url}' is not an address: {one_line(error)}") from None
    if not parts.hostname or not (
        parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOCAL_HOSTS)
    ):
        raise ValueError(f"{url!r} can't be downloaded: use an https address, or download it by hand and give the file")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive into a folder. If the archive is damaged or unsafe, nothing is unpacked.

    Parameters
    ----------
    archive : Path
        A tar archive, compressed or not.
    folder : Path

    Raises
    ------
    OSError
        If the archive is damaged, or if it contains a link, a device or a file outside of the folder.
    """
    check_tarfile()
    temporary = folder / f".{archive.name}.{os.getpid()}.tmp"
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(temporary, filter=_files_only)
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                place = folder / file.relative_to(temporary)
                place.parent.mkdir(parents=True, exist_ok=True)
                file.replace(place)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise OSError(f"{archive} was not unpacked: {one_line(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def safe_tarfile() -> Iterator[None]:
    """Make other libraries unpack tar archives as safely as `unpack`, as a context manager.

    It is needed because torchvision 0.29 sets no filter, and Python before 3.14 then uses none.

    Raises
    ------
    OSError
        If this Python has no filter for unsafe archives.
    """
    check_tarfile()
    before = vars(tarfile.TarFile)["extraction_filter"]
    tarfile.TarFile.extraction_filter = staticmethod(_files_only)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


def check_tarfile() -> None:
    """Raise OSError if this Python (an early release of 3.10 or 3.11) has no filter for unsafe archives."""
    if not hasattr(tarfile, "data_filter"):
        raise OSError("this Python can't unpack archives safely: install Python 3.10.12, 3.11.4 or newer")


def _files_only(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """Apply the data filter of tarfile, and refuse links too: they were used to get around that filter."""
    if member.islnk() or member.issym():
        raise tarfile.SpecialFileError(member)
    return tarfile.data_filter(member, folder)


class _SizeLimitedFile:
    """A file that raises OSError if it becomes larger than `max_bytes`."""

    def __init__(self, file: Any, max_bytes: int | None, url: str):
        self.file, self.bytes_left, self.max_bytes, self.url = file, max_bytes, max_bytes, url

    def write(self, data: bytes) -> None:
        if self.bytes_left is not None:
            self.bytes_left -= len(data)
            if self.bytes_left < 0:
                raise OSError(f"'{self.url}' has more than the expected {self.max_bytes:,} bytes: it was not kept")
        self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _download_with_retries(url: str, path: str, max_bytes: int | None) -> None:
    import pooch
    import requests

    # The MD5 sums are those of the compressed files, so requests must not decompress them. "identity" asks the server
    # to send files as they are, and `_check_response` removes the header Content-Encoding.
    headers = {"Accept-Encoding": "identity"}
    get = pooch.HTTPDownloader(progressbar=True, chunk_size=2**16, headers=headers, hooks={"response": _check_response})
    for pause in (*RETRY_PAUSES, None):
        try:
            with open(path, "wb") as file:
                get(url, _SizeLimitedFile(file, max_bytes, url), None)
            return
        except requests.RequestException as error:
            if error.response is not None:
                answer = one_line(f"{error.response.status_code} {error.response.reason}")
                raise OSError(f"could not download '{url}': the server answered {answer}") from error
            if pause is None:
                cause = error.args[0] if error.args else error
                reason = one_line(getattr(cause, "reason", cause))
                raise OSError(f"could not download '{url}' in {len(RETRY_PAUSES) + 1} tries: {reason}") from error
        time.sleep(pause)


def _check_response(response: Any, **_: Any) -> None:
    """Check a response of the server before it is read: a redirection must not leave https."""
    if response.is_redirect:
        target = urljoin(response.url, response.headers["location"])
        check_address(target)
        if urlsplit(response.url).scheme == "https" and urlsplit(target).scheme != "https":
            raise ValueError(f"'{target}' can't be downloaded: '{response.url}' redirects from https to http")
    response.raw.headers.pop("Content-Encoding", None)
