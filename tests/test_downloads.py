"""Downloads and archives: only https, checked before they are read, and nothing is written outside the folder."""

import gzip
import io
import os
import pickle
import re
import tarfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torchvision.datasets as tvd

from pckd_nb import downloads
from pckd_nb.data import load_dataset, published
from pckd_nb.downloads import download, unpack

from .test_checkpoints import Evil
from .test_datasets import cifar_archive, fashion_tree, imagenet, imagenet_archives  # noqa: F401
from .web import serving


@pytest.fixture
def server():
    with serving() as server:
        yield server


def refused(error: type, call, *arguments) -> str:
    with pytest.raises(error) as caught:
        call(*arguments)
    assert str(caught.value).isprintable()  # a line break is not printable
    return str(caught.value)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


# ------------------------------------------------------------------------------------------------------ addresses


def test_download_gets_its_name_only_after_its_check(server, tmp_path):
    server.files = {"/x": b"content"}
    seen = []
    download(f"{server.address}/x", tmp_path / "below" / "x", lambda file: seen.append((file.name, file.read_bytes())))
    assert (tmp_path / "below" / "x").read_bytes() == b"content" and seen[0][1] == b"content" and seen[0][0] != "x"

    def wrong(_):
        raise OSError("not what was expected")

    assert refused(OSError, download, f"{server.address}/x", tmp_path / "y", wrong) == "not what was expected"
    assert files(tmp_path) == ["below/x"]


@pytest.mark.parametrize("max_bytes, accepted", [(7, True), (6, False), (0, False)])
def test_download_larger_than_expected_is_refused(server, tmp_path, max_bytes, accepted):
    server.files = {"/x": b"content"}
    download_file = partial(download, f"{server.address}/x", tmp_path / "x", lambda _: None, max_bytes)
    if accepted:
        download_file()
    else:
        assert f"more than the expected {max_bytes} bytes: it was not kept" in refused(OSError, download_file)
    assert files(tmp_path) == ["x"] * accepted


def test_download_stops_at_the_maximum_size(server, tmp_path):
    server.files = {"/x": ({"Content-Length": "9000000"}, bytes(9_000_000))}
    written = []
    with pytest.MonkeyPatch.context() as patch:
        write = downloads._SizeLimitedFile.write
        patch.setattr(
            downloads._SizeLimitedFile, "write", lambda self, data: written.append(len(data)) or write(self, data)
        )
        refused(OSError, download, f"{server.address}/x", tmp_path / "x", lambda _: None, 100_000)
    assert sum(written) < 300_000 and len(server.requests) == 1 and files(tmp_path) == []


def test_content_encoding_does_not_decompress_a_download(server, tmp_path):
    packed = gzip.compress(b"content" * 1000)
    server.files = {"/x.gz": ({"Content-Encoding": "gzip"}, packed)}
    download(f"{server.address}/x.gz", tmp_path / "x.gz", lambda _: None)
    assert (tmp_path / "x.gz").read_bytes() == packed


ELSEWHERE = ["http://example.org/x", "ftp://example.org/x", "file:///etc/passwd", "//example.org/x"]


@pytest.mark.parametrize("target", ELSEWHERE)
def test_addresses_and_redirections_without_https_are_refused(server, tmp_path, target):
    requested = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downloads, "_download_with_retries", lambda *arguments: requested.append(arguments))
        assert "use an https address" in refused(ValueError, download, target, tmp_path / "x", lambda _: None)
    server.files = {"/x": "/y", "/y": target}
    message = refused(ValueError, download, f"{server.address}/x", tmp_path / "x", lambda _: None)
    assert "can't be downloaded: use an https address" in message
    assert requested == [] and server.requests == ["/x", "/y"] and files(tmp_path) == []


def test_invalid_address_is_refused(server, tmp_path):
    assert "'https://[' is not an address" in refused(ValueError, download, "https://[", tmp_path / "x", lambda _: None)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "start, target, fetched",
    [
        ("https://example.org/a", "https://example.com/b", True),
        ("https://example.org/a", "/b", True),
        ("https://example.org/a", "http://example.org/a", False),
        ("https://example.org/a", "http://127.0.0.1/a", False),  # another server must not send requests to this machine
        ("https://example.org/a", "http://localhost:8888/api", False),
        ("http://127.0.0.1/a", "http://localhost/b", True),
    ],
)
def test_allowed_redirections(start, target, fetched):
    raw = SimpleNamespace(headers={"Content-Encoding": "gzip"})
    answer = SimpleNamespace(is_redirect=True, url=start, headers={"location": target}, raw=raw)
    if fetched:
        downloads._check_response(answer)
        assert raw.headers == {}
    else:
        assert "can't be downloaded" in refused(ValueError, downloads._check_response, answer)


def test_addresses_of_data_sets_use_https_and_have_checksum_and_size():
    sums = {source.filename: source.tgz_md5 for source in (tvd.CIFAR10, tvd.CIFAR100, tvd.STL10)}
    sums |= {"tiny-imagenet-200.zip": published._TINY_IMAGENET_MD5, **dict(tvd.FashionMNIST.resources)}
    assert published._SOURCES.keys() == sums.keys()
    for file, (url, size) in published._SOURCES.items():
        downloads.check_address(url)
        assert url.startswith("https://") and url.endswith(f"/{file}") and size > 5000
        assert len(sums[file]) == 32 and int(sums[file], 16)


def use_local_server(server, monkeypatch) -> None:
    """Download all data sets from the server on this machine."""
    here = {file: (f"{server.address}/{file}", size) for file, (_, size) in published._SOURCES.items()}
    monkeypatch.setattr(published, "_SOURCES", here)


def test_data_set_is_downloaded_checked_and_unpacked(server, tmp_path, monkeypatch):
    use_local_server(server, monkeypatch)
    archive = cifar_archive(tmp_path / "there", tvd.CIFAR10, monkeypatch, num_classes=10, per_batch=20)
    server.files = {f"/{archive.name}": archive.read_bytes()}
    data = load_dataset("cifar10", tmp_path / "here")
    assert len(data.train) == 100 and data.classes[3] == "class 3"
    assert load_dataset("cifar10", tmp_path / "here").fingerprint == data.fingerprint
    assert server.requests == [f"/{archive.name}"]
    names = [file for file, _ in tvd.CIFAR10.train_list + tvd.CIFAR10.test_list] + [tvd.CIFAR10.meta["filename"]]
    base = tvd.CIFAR10.base_folder
    assert files(tmp_path / "here") == sorted([archive.name, *(f"{base}/{name}" for name in names)])


def test_fashion_mnist_is_downloaded_file_by_file(server, tmp_path, monkeypatch):
    use_local_server(server, monkeypatch)
    raw = fashion_tree(tmp_path / "there", monkeypatch)
    for name, _ in tvd.FashionMNIST.resources:
        if not (raw / name).is_file():
            (raw / name).write_bytes(gzip.compress((raw / name).with_suffix("").read_bytes()))
    sums = [(name, downloads.md5_of(raw / name)) for name, _ in tvd.FashionMNIST.resources]
    monkeypatch.setattr(tvd.FashionMNIST, "resources", sums)
    server.files = {f"/{name}": (raw / name).read_bytes() for name, _ in sums}
    assert len(load_dataset("fashion_mnist", tmp_path / "here").train) == 40
    assert len(server.requests) == 4
    # old versions of torchvision unpickle this folder, but the package does not read it
    old = tmp_path / "here" / "FashionMNIST" / "processed"
    old.mkdir()
    for name in ("training.pt", "test.pt"):
        (old / name).write_bytes(b"\x80\x02cos\nsystem\n.")
    assert len(load_dataset("fashion_mnist", tmp_path / "here").test) == 20


@pytest.mark.parametrize(
    "answer, expected",
    [
        (b"another archive", "is damaged: its md5 is"),
        (bytes(300_000), "more than the expected 200,000 bytes"),
        ("http://example.org/cifar", "'http://example.org/cifar' can't be downloaded"),
        (404, "the server answered 404"),
    ],
    ids=["wrong sum", "too long", "http", "not there"],
)
def test_wrong_download_leaves_no_files(server, tmp_path, monkeypatch, answer, expected):
    url = f"{server.address}/cifar-10-python.tar.gz"
    monkeypatch.setattr(published, "_SOURCES", {"cifar-10-python.tar.gz": (url, 200_000)})
    server.files = {"/cifar-10-python.tar.gz": answer}
    message = refused(ConnectionError, load_dataset, "cifar10", tmp_path)
    assert expected in message and f"or put cifar-10-python.tar.gz (md5 {tvd.CIFAR10.tgz_md5}) from {url}" in message
    assert files(tmp_path) == []


# ------------------------------------------------------------------------------------------------------- archives


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, mode
    return info


def tar(path: Path, *members: tarfile.TarInfo, content: bytes = b"let in", mode: str = "w:gz") -> Path:
    """Write an archive with one good file and the given members. Regular files have `content`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for info in (member("base/good"), *members):
            info.size = len(content) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(content))
    return path


MALICIOUS = {
    "out of the folder": [member("../escaped")],
    "out of the folder, from below": [member("base/../../escaped")],
    "a link to a file outside": [member("base/link", tarfile.SYMTYPE, "/etc/passwd")],
    "a link out, and a file through it": [member("base/link", tarfile.SYMTYPE, ".."), member("base/link/../escaped")],
    "a link to the folder above, and a file through it": [member("up", tarfile.SYMTYPE, "."), member("up/../escaped")],
    "a link within": [member("base/link", tarfile.SYMTYPE, "good")],
    "a hard link to a file outside": [member("base/link", tarfile.LNKTYPE, "../../escaped")],
    "a hard link by its full path": [member("base/link", tarfile.LNKTYPE, "/etc/passwd")],
    "a character device": [member("base/device", tarfile.CHRTYPE)],
    "a block device": [member("base/device", tarfile.BLKTYPE)],
    "a named pipe": [member("base/pipe", tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("kind", MALICIOUS)
def test_malicious_archive_is_refused_and_leaves_no_files(kind, tmp_path):
    archive = tar(tmp_path / "archive.tar.gz", *MALICIOUS[kind])
    (tmp_path / "folder").mkdir()
    message = refused(OSError, unpack, archive, tmp_path / "folder")
    assert message.startswith(f"{archive} was not unpacked: ")
    assert files(tmp_path) == ["archive.tar.gz"] and list((tmp_path / "folder").iterdir()) == []


def test_absolute_paths_and_special_modes_are_made_safe(tmp_path):
    archive = tar(tmp_path / "archive.tar", member(f"/{tmp_path}/let_in"), member("root", mode=0o6777), mode="w")
    unpack(archive, tmp_path / "folder")
    inside = (tmp_path / "folder" / str(tmp_path).lstrip("/") / "let_in").relative_to(tmp_path).as_posix()
    assert files(tmp_path) == sorted(["archive.tar", "folder/base/good", "folder/root", inside])
    assert (tmp_path / "folder" / "root").stat().st_mode & 0o7022 == 0


def test_damaged_archives_are_refused(tmp_path):
    whole = tar(tmp_path / "archive.tar.gz", content=np.random.default_rng(0).bytes(50_000)).read_bytes()
    for damaged in (b"", b"no archive", whole[:200], whole[: len(whole) // 2]):
        (tmp_path / "archive.tar.gz").write_bytes(damaged)
        message = refused(OSError, unpack, tmp_path / "archive.tar.gz", tmp_path / "folder")
        assert message.startswith(f"{tmp_path / 'archive.tar.gz'} was not unpacked: ")
        assert files(tmp_path) == ["archive.tar.gz"]


def test_python_without_data_filter_unpacks_nothing(tmp_path, monkeypatch):
    archive = tar(tmp_path / "archive.tar.gz")
    monkeypatch.delattr(tarfile, "data_filter")
    assert "can't unpack archives safely: install Python 3.10.12, 3.11.4 or newer" in refused(
        OSError, unpack, archive, tmp_path / "folder"
    )
    assert files(tmp_path) == ["archive.tar.gz"]


def test_checksum_is_compared_before_an_archive_is_opened(tmp_path, monkeypatch):
    def opened(*_, **__):
        raise AssertionError("it was opened")

    archives = {"cifar10": tvd.CIFAR10.filename, "stl10": tvd.STL10.filename, "tinyimagenet": "tiny-imagenet-200.zip"}
    monkeypatch.setattr(tarfile, "open", opened)
    monkeypatch.setattr(published.zipfile, "ZipFile", opened)
    for name, file in archives.items():
        (tmp_path / file).write_bytes(b"another archive")
        assert "is damaged: its md5 is" in refused(OSError, load_dataset, name, tmp_path)


def test_malicious_archive_with_the_right_checksum_is_refused(tmp_path, monkeypatch):
    archive = tar(tmp_path / tvd.CIFAR10.filename, member("../escaped"))
    monkeypatch.setattr(tvd.CIFAR10, "tgz_md5", downloads.md5_of(archive))
    assert "was not unpacked" in refused(OSError, load_dataset, "cifar10", tmp_path)
    assert files(tmp_path) == [tvd.CIFAR10.filename] and not (tmp_path.parent / "escaped").exists()


def test_pickle_with_the_right_checksum_runs_no_code(tmp_path, monkeypatch):
    archive = cifar_archive(tmp_path, tvd.CIFAR10, monkeypatch, num_classes=10, per_batch=20)
    load_dataset("cifar10", tmp_path)
    batch = tmp_path / tvd.CIFAR10.base_folder / "test_batch"
    canary = tmp_path / "canary"
    for evil in (Evil(os.system, f"touch {canary}"), Evil(eval, f"open({str(canary)!r}, 'w')")):
        batch.write_bytes(pickle.dumps({"data": evil, "labels": []}))
        monkeypatch.setattr(tvd.CIFAR10, "test_list", [["test_batch", downloads.md5_of(batch)]])
        message = refused(OSError, load_dataset, "cifar10", tmp_path)
        assert "test_batch is not a CIFAR file (it would call '" in message
        assert not canary.exists() and archive.is_file()


@pytest.mark.parametrize("kind", ["out of the folder", "a link to a file outside", "a character device"])
@pytest.mark.parametrize("part", ["train", "train, a class in it", "val", "devkit"])
def test_malicious_imagenet_archives_are_refused(imagenet, tmp_path, monkeypatch, part, kind):  # noqa: F811
    archives = imagenet_archives(imagenet, monkeypatch)
    name, _, within = part.partition(", ")
    tar(archives[name], *MALICIOUS[kind], mode="w:gz" if name == "devkit" else "w")
    if within:
        content = archives[name].read_bytes()
        with tarfile.open(archives[name], "w") as outer:
            info = member("n01.tar")
            info.size = len(content)
            outer.addfile(info, io.BytesIO(content))
    meta = tvd.imagenet.ARCHIVE_META
    monkeypatch.setitem(meta, name, (archives[name].name, downloads.md5_of(archives[name])))
    before, of_tarfile = files(tmp_path), vars(tarfile.TarFile)["extraction_filter"]
    assert "could not be unpacked" in refused(OSError, load_dataset, "imagenet", tmp_path)
    photographs = re.compile(r"imagenet/train/n0\d/n0\d_\d\.JPEG" if name == "val" else "$")  # from the good archive
    after = [file for file in files(tmp_path) if not photographs.match(file)]
    assert after in (before, sorted([*before, f"{imagenet.name}/meta.bin"]))
    assert {path.name for path in imagenet.iterdir() if path.is_dir()} <= {"train", "val"} - {name}
    assert vars(tarfile.TarFile)["extraction_filter"] is of_tarfile
    monkeypatch.delattr(tarfile, "data_filter")
    assert "3.11.4" in refused(OSError, load_dataset, "imagenet", tmp_path)
