"""What comes from elsewhere: fetched over https alone and checked before it gets its name; archives unpacked with care.

Nothing is fetched unless somebody asks for a data set or a checkpoint that is not here.
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

LOCAL = ("localhost", "127.0.0.1", "::1")
PAUSES = (1.0, 4.0)  # seconds between one try of a download and the next


def default_root() -> Path:
    """Return the folder of downloads and caches.

    It is the one that the environment variable PCKD_DATA names. Its default is data/downloads in the clone of the
    repository that this package runs from, or without a clone in the current folder.
    """
    clone = Path(__file__).resolve().parents[1]
    here = clone if (clone / "pyproject.toml").is_file() else Path()
    return user_path(os.environ.get("PCKD_DATA") or here / "data" / "downloads", "PCKD_DATA")


def md5_of(path: Path) -> str:
    """Return the md5 sum of a file, 32 hexadecimal digits."""
    from torchvision.datasets.utils import calculate_md5

    return str(calculate_md5(path))


def check_md5(path: Path, expected: str, remedy: str = "delete it to fetch it") -> None:
    """Raise OSError if the md5 sum of a file is not `expected`."""
    if (found := md5_of(path)) != expected:
        raise OSError(f"{path} is damaged: its md5 is {found}, expected {expected}; {remedy}")


def download(url: str, path: Path, check: Callable[[Path], None], most: int | None = None) -> None:
    """Fetch the file at `url` to `path`, which is there only when all of it is and `check` has found it right.

    check: called with the file under a temporary name; what it raises ends the download. most: bytes, of which no more
    are taken. A broken connection is tried three times in all.
    Raises ValueError for an address, or a redirection to one, that is not https (http is allowed from this machine to
    itself), OSError where the download fails; nothing is kept then.
    """
    import pooch  # it and requests take a third of a second to import

    check_address(url)

    def fill(_: str, temporary: str, __: Any) -> None:
        _get(url, temporary, most)
        check(Path(temporary))

    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    pooch.get_logger().setLevel("WARNING")
    try:
        pooch.retrieve(url, None, fname=path.name, path=path.parent, downloader=fill)
    except BaseException:
        with suppress(OSError):  # raised for a folder that is not empty
            for folder in made:
                folder.rmdir()
        raise
    os.umask(mask := os.umask(0))
    path.chmod(0o666 & ~mask)  # pooch makes temporary files for their owner alone


def check_address(url: str) -> None:
    """Raises ValueError unless `url` is an https address, or an http one on this machine."""
    try:
        parts = urlsplit(url)
    except ValueError as error:  # such as brackets that don't close
        raise ValueError(f"'{url}' is no address: {one_line(error)}") from None
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOCAL)):
        raise ValueError(f"{url!r} is not fetched: use an https address, or download it by hand and give the file")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive, packed or not, into `folder`, through tarfile's data filter and without links.

    A file gets its place only when the whole archive is unpacked, so an archive that is refused leaves nothing.
    Raises OSError for a file outside the folder, a link or a device in the archive, and for a damaged one.
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
def careful_tarfile() -> Iterator[None]:
    """Meanwhile libraries that unpack tar archives, and name no filter of their own, do it as carefully as `unpack`.

    torchvision 0.29 names none, and up to Python 3.13 that means none. Raises OSError as `check_tarfile` does.
    """
    check_tarfile()
    before = vars(tarfile.TarFile)["extraction_filter"]
    tarfile.TarFile.extraction_filter = staticmethod(_files_only)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


def check_tarfile() -> None:
    """Raises OSError where Python can't refuse what is dangerous in an archive: early releases of 3.10 and 3.11."""
    if not hasattr(tarfile, "data_filter"):
        raise OSError("archives are unpacked with tarfile's data filter only: Python 3.10.12, 3.11.4 or newer has it")


def _files_only(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """The data filter, which lets links within the folder pass: no data set has any, and with them it was outwitted."""
    if member.islnk() or member.issym():
        raise tarfile.SpecialFileError(member)
    return tarfile.data_filter(member, folder)


class _Limited:
    """A file that takes so many bytes and no more."""

    def __init__(self, file: Any, most: int | None, url: str):
        self.file, self.left, self.most, self.url = file, most, most, url

    def write(self, data: bytes) -> None:
        if self.left is not None:
            self.left -= len(data)
            if self.left < 0:
                raise OSError(f"'{self.url}' has more than the expected {self.most:,} bytes: it was not kept")
        self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _get(url: str, path: str, most: int | None) -> None:
    import pooch
    import requests

    # "identity", and `_follow`: a file that is packed stays so, as its sum was taken
    headers = {"Accept-Encoding": "identity"}
    get = pooch.HTTPDownloader(progressbar=True, chunk_size=2**16, headers=headers, hooks={"response": _follow})
    for pause in (*PAUSES, None):
        try:
            with open(path, "wb") as file:
                get(url, _Limited(file, most, url), None)
            return
        except requests.RequestException as error:
            if error.response is not None:
                answer = one_line(f"{error.response.status_code} {error.response.reason}")
                raise OSError(f"could not download '{url}': the server answered {answer}") from error
            if pause is None:
                cause = error.args[0] if error.args else error
                reason = one_line(getattr(cause, "reason", cause))
                raise OSError(f"could not download '{url}' in {len(PAUSES) + 1} tries: {reason}") from error
        time.sleep(pause)


def _follow(response: Any, **_: Any) -> None:
    """Looks at every answer before a byte of it is read: a redirection may not leave https."""
    if response.is_redirect:
        target = urljoin(response.url, response.headers["location"])
        check_address(target)
        if urlsplit(response.url).scheme == "https" and urlsplit(target).scheme != "https":
            raise ValueError(f"'{target}' is not fetched: '{response.url}' is an https address and leads out of https")
    response.raw.headers.pop("Content-Encoding", None)
