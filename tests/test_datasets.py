"""Loading data sets: correct tensors and sizes, and errors that say what to do. Nothing here uses the network."""

import dataclasses
import gzip
import hashlib
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from importlib import import_module
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import requests
import scipy.io
import torch
import torchvision.datasets as tvd
from PIL import Image
from torchvision.datasets import utils as tv_utils

from pckd_nb import downloads
from pckd_nb.data import DATASETS, Split, folders, load_dataset, loading, published, rebuild, shapes
from pckd_nb.data.split import channel_statistics
from pckd_nb.data.streaming import Streamed
from pckd_nb.deprecation import RENAMED


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Let every attempt to use the network fail, as without a connection."""

    def no_network(*args, **kwargs):
        raise requests.ConnectionError("no route to host")

    monkeypatch.setattr(requests, "get", no_network)
    monkeypatch.setattr(tv_utils.urllib.request, "urlopen", no_network)
    monkeypatch.setattr(downloads, "RETRY_PAUSES", ())


def message_of(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text, "errors are one line"
    return text


# -------------------------------------------------------------------------------------------------- shapes100


def test_shapes100(tmp_path):
    data = load_dataset("shapes100", tmp_path, train_size=300, test_size=100, seed=3)
    assert data.name == "shapes100" and data.num_classes == 100
    assert data.channels == 3 and data.size == (32, 32)
    assert len(data.train) == 300 and len(data.test) == 100
    assert data.train.images.dtype == torch.uint8 and data.train.labels.dtype == torch.int64
    assert data.train.difficulty.dtype == torch.float32 and data.train.difficulty.shape == (300,)
    assert torch.equal(data.train.labels.bincount(), torch.full((100,), 3))
    assert repr(data) == "Dataset('shapes100': 300 + 100 images of 3×32×32, 100 classes)"
    assert data.groups["shape"][31] == "star" and data.groups["pattern"][31] == "striped"
    assert data.default_views == 4 and data.normalisation == "computed on the training images"
    options = json.loads(json.dumps(data.options))
    assert options == {"train_size": 300, "test_size": 100, "image_size": None, "seed": 3}
    assert load_dataset("shapes100", tmp_path / "other", **options).fingerprint == data.fingerprint


def test_shapes100_splits_are_independent(tmp_path):
    one = load_dataset("shapes100", tmp_path, train_size=100, test_size=100)
    two = load_dataset("shapes100", tmp_path, train_size=200, test_size=100)
    assert torch.equal(one.test.images, two.test.images)
    assert not torch.equal(one.train.images, one.test.images)
    other_seed = load_dataset("shapes100", tmp_path, train_size=100, test_size=100, seed=1)
    assert other_seed.fingerprint != one.fingerprint


def test_cache_is_used_and_replaced_if_damaged(tmp_path, monkeypatch):
    def load():
        return load_dataset("shapes100", tmp_path, train_size=100, test_size=100)

    fingerprint = load().fingerprint
    caches = sorted(tmp_path.iterdir())
    assert len(caches) == 2 and all(path.suffix == ".npz" for path in caches)

    drawn = []
    generate = shapes.generate
    monkeypatch.setattr(shapes, "generate", lambda *a: drawn.append(a) or generate(*a))
    assert load().fingerprint == fingerprint and drawn == []

    whole = caches[0].read_bytes()
    middle = len(whole) // 2
    for damaged in (b"", whole[:-1000], whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]):
        caches[0].write_bytes(damaged)
        assert load().fingerprint == fingerprint
        assert len(drawn) == 1 and sorted(tmp_path.iterdir()) == caches and caches[0].read_bytes() == whole
        drawn.clear()


def test_shapes100_works_without_a_writable_cache_folder(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    data = load_dataset("shapes100", tmp_path / "file" / "root", train_size=100, test_size=100)
    assert len(data.train) == 100


# ----------------------------------------------------------------------------------- sizes, seeds, statistics


def test_digits(tmp_path):
    data = load_dataset("digits", tmp_path)
    assert (len(data.train), len(data.test)) == (1347, 450)
    assert data.size == (16, 16) and data.channels == 1 and data.default_views == 1
    assert data.classes == tuple("0123456789") and data.groups == {}
    assert data.train.images.max() == 255 and data.train.images.min() == 0
    assert data.test.labels.bincount().min() >= 43, "stratified"
    assert data.train.difficulty is None
    assert load_dataset("digits", tmp_path, seed=1).fingerprint == data.fingerprint, "the split does not vary"
    pixels = data.train.images.double() / 255
    assert data.mean == pytest.approx((pixels.mean().item(),), rel=1e-9)
    assert data.std == pytest.approx((pixels.std(correction=0).item(),), rel=1e-9)


def test_train_and_test_size_select_a_part(tmp_path):
    whole = load_dataset("digits", tmp_path)
    part = load_dataset("digits", tmp_path, train_size=205, test_size=10, seed=2)
    counts = part.train.labels.bincount()
    assert len(part.train) == 205 and counts.min() == 20 and counts.max() == 21
    assert torch.equal(part.test.labels.sort().values, torch.arange(10))
    known = {bytes(image.numpy()) for image in whole.train.images}
    assert all(bytes(image.numpy()) in known for image in part.train.images)
    assert len({bytes(image.numpy()) for image in part.train.images}) == 205, "no image is taken twice"
    assert load_dataset("digits", tmp_path, **part.options).fingerprint == part.fingerprint
    assert load_dataset("digits", tmp_path, train_size=205, seed=3).fingerprint != part.fingerprint
    everything = load_dataset("digits", tmp_path, train_size=1347, test_size=450, seed=5)
    assert everything.fingerprint == whole.fingerprint, "all images stay in order"


@pytest.mark.parametrize("name", ["digits", "shapes100"])
@pytest.mark.parametrize("size", [0, -5, 9, 2.5, "many"])
def test_invalid_sizes_are_refused(tmp_path, name, size):
    for which in ("train_size", "test_size"):
        kind = ValueError if type(size) is int else TypeError
        with pytest.raises(kind, match=f"{which} must be .*got {size!r}") as error:
            load_dataset(name, tmp_path, **{which: size})
        assert message_of(error)


def test_train_size_above_the_number_of_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="train_size must be at most 1347, the number of images, got 1348"):
        load_dataset("digits", tmp_path, train_size=1348)


@pytest.mark.parametrize("seed", [-1, 0.5, None])
def test_invalid_seed_is_refused(tmp_path, seed):
    with pytest.raises(ValueError if seed == -1 else TypeError, match=f"seed must be .*got {seed}"):
        load_dataset("digits", tmp_path, seed=seed)


def test_fingerprint_depends_on_pixels_labels_and_names(tmp_path):
    data = load_dataset("digits", tmp_path)
    assert len(data.fingerprint) == 16 and int(data.fingerprint, 16) >= 0
    assert data.to("cpu").fingerprint == data.fingerprint
    images, labels = data.test.images.clone(), data.test.labels.clone()
    images[7, 0, 3, 3] ^= 1
    labels[0] = (labels[0] + 1) % 10
    changed = [
        {"test": Split(images, data.test.labels)},
        {"test": Split(data.test.images, labels)},
        {"classes": (*data.classes[:9], "nine")},
    ]
    prints = [dataclasses.replace(data, **change).fingerprint for change in changed]
    assert len({data.fingerprint, *prints}) == 4


def test_images_of_one_colour_can_be_normalised():
    black = Split(torch.full((3, 2, 4, 4), 51, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
    mean, std, _ = channel_statistics(black)
    assert mean == pytest.approx((0.2, 0.2)) and min(std) > 0


def test_to_moves_every_tensor(tmp_path):
    data = load_dataset("shapes100", tmp_path, train_size=100, test_size=100).to("meta")
    for split in (data.train, data.test):
        assert {t.device.type for t in (split.images, split.labels, split.difficulty)} == {"meta"}
        assert split.device.type == "meta"


def test_a_split_in_memory_is_read_by_index(tmp_path):
    split = load_dataset("digits", tmp_path).train
    assert split.shape == (1, 16, 16) and split.padding == 2 and split.device.type == "cpu"
    batches = torch.tensor([5, 3, 1346]), torch.tensor([0])
    one, two = split.read(iter(batches), seed=1, epoch=2)
    assert torch.equal(one, split.images[[5, 3, 1346]]) and torch.equal(two, split.images[:1])


@pytest.mark.parametrize("name", ["shapes100", "digits", "cifar100", "fashion_mnist"])
def test_data_sets_with_a_fixed_image_size_refuse_another(tmp_path, name):
    with pytest.raises(ValueError, match=f"image_size of {name} must be .*, got 64") as error:
        load_dataset(name, tmp_path, image_size=64)
    assert message_of(error) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"image_size": 7}, {"image_size": 32.0}, {"workers": -1}, {"workers": "all"}])
def test_invalid_image_size_or_workers_are_refused(tmp_path, wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError if type(value) is int else TypeError, match=f"{name} must be .*got {value!r}"):
        load_dataset(f"folder:{tmp_path}", **wrong)


def test_image_size_of_the_data_set_itself_is_accepted(tmp_path):
    assert load_dataset("digits", tmp_path, image_size=16).options["image_size"] == 16


@pytest.mark.parametrize(("name", "hint"), [("cifar", "cifar10"), ("Shapes100", "shapes100"), ("mnist", "fashion_")])
def test_unknown_name_suggests_a_known_one(name, hint):
    with pytest.raises(ValueError, match="did you mean") as error:
        load_dataset(name)
    assert hint in message_of(error).split("?")[0]


@pytest.mark.parametrize("name", ["", "imagenet-22k", None])
def test_unknown_name_lists_all(name):
    with pytest.raises(ValueError, match="unknown data set") as error:
        load_dataset(name)
    assert all(known in message_of(error) for known in DATASETS)


def test_default_root(monkeypatch, tmp_path):
    monkeypatch.delenv("PCKD_DATA", raising=False)
    monkeypatch.chdir(tmp_path)  # the default must not depend on the current folder
    assert downloads.default_root() == Path(__file__).parents[1] / "data" / "downloads"
    monkeypatch.setattr(downloads, "__file__", str(tmp_path / "site-packages" / "pckd_nb" / "downloads.py"))
    assert downloads.default_root().absolute() == tmp_path / "data" / "downloads"
    monkeypatch.setenv("PCKD_DATA", str(tmp_path))
    load_dataset("shapes100", train_size=100, test_size=100)
    assert len(list(tmp_path.glob("*.npz"))) == 2


# --------------------------------------------------------------------- downloads: archives in the original format


def cifar_archive(root: Path, source: type, monkeypatch, num_classes: int, per_batch: int) -> Path:
    """Write a small archive in the format of CIFAR-10 or CIFAR-100 and make torchvision expect it."""
    rng = np.random.default_rng(0)
    key = "labels" if source is tvd.CIFAR10 else "fine_labels"
    tree = root / "tree" / source.base_folder
    tree.mkdir(parents=True)
    md5s = {}

    def write(name: str, content: dict) -> None:
        (tree / name).write_bytes(pickle.dumps(content))
        md5s[name] = tv_utils.calculate_md5(tree / name)

    for name, _ in source.train_list + source.test_list:
        data = rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        write(name, {"data": data, key: [k % num_classes for k in range(per_batch)]})
    write(source.meta["filename"], {source.meta["key"]: [f"class {k}" for k in range(num_classes)]})
    archive = root / source.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tree, source.base_folder)
    monkeypatch.setattr(source, "tgz_md5", tv_utils.calculate_md5(archive))
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": md5s[source.meta["filename"]]})
    for files in ("train_list", "test_list"):
        monkeypatch.setattr(source, files, [[name, md5s[name]] for name, _ in getattr(source, files)])
    return archive


def test_cifar10(tmp_path, monkeypatch):
    archive = cifar_archive(tmp_path, tvd.CIFAR10, monkeypatch, num_classes=10, per_batch=20)
    data = load_dataset("cifar10", tmp_path)
    assert (len(data.train), len(data.test)) == (100, 20) and data.size == (32, 32)
    batch = pickle.loads((tmp_path / tvd.CIFAR10.base_folder / "test_batch").read_bytes())
    assert np.array_equal(data.test.images.numpy(), batch["data"].reshape(20, 3, 32, 32))
    assert data.test.labels.tolist() == batch["labels"]
    assert data.mean == (0.4914, 0.4822, 0.4465) and "CIFAR-10" in data.normalisation
    archive.unlink()
    assert load_dataset("cifar10", tmp_path).fingerprint == data.fingerprint, "unpacked files are enough"


def test_cifar100(tmp_path, monkeypatch):
    cifar_archive(tmp_path, tvd.CIFAR100, monkeypatch, num_classes=100, per_batch=200)
    data = load_dataset("cifar100", tmp_path, train_size=100)
    assert data.num_classes == 100 and len(data.train) == 100 and len(data.test) == 200
    assert data.std == (0.2675, 0.2565, 0.2761) and "RepDistiller" in data.normalisation


def test_cifar100_superclasses():
    coarse = loading._class_groups("cifar100")["superclass"]
    assert len(coarse) == 100 and len(set(coarse)) == 20
    assert all(coarse.count(name) == 5 for name in coarse)
    # alphabetical: 0 apple, 1 aquarium fish, 2 baby, 8 bicycle, 47 maple tree, 54 orchid, 97 wolf, 99 worm
    expected = {0: "fruit and vegetables", 1: "fish", 2: "people", 8: "vehicles 1", 47: "trees"}
    expected |= {54: "flowers", 97: "large carnivores", 99: "non-insect invertebrates"}
    assert {k: coarse[k] for k in expected} == expected


def test_error_names_a_damaged_archive_and_keeps_it(tmp_path, monkeypatch):
    archive = cifar_archive(tmp_path, tvd.CIFAR10, monkeypatch, num_classes=10, per_batch=20)
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(OSError, match="damaged") as error:
        load_dataset("cifar10", tmp_path)
    for part in (str(archive), tvd.CIFAR10.tgz_md5, tv_utils.calculate_md5(archive)):
        assert part in message_of(error)
    assert archive.is_file()


def test_damaged_unpacked_file_is_unpacked_again_or_refused(tmp_path, monkeypatch):
    archive = cifar_archive(tmp_path, tvd.CIFAR10, monkeypatch, num_classes=10, per_batch=20)
    fingerprint = load_dataset("cifar10", tmp_path).fingerprint
    batch = tmp_path / tvd.CIFAR10.base_folder / "data_batch_3"
    batch.write_bytes(b"half")
    assert load_dataset("cifar10", tmp_path).fingerprint == fingerprint, "unpacked again from the archive"
    archive.unlink()
    batch.write_bytes(b"half")
    with pytest.raises(OSError, match="data_batch_3 is damaged"):
        load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python.tar.gz"),
        ("fashion_mnist", "train-images-idx3-ubyte.gz"),
        ("stl10", "stl10_binary.tar.gz"),
        ("tinyimagenet", "tiny-imagenet-200.zip"),
    ],
)
def test_error_after_a_failed_download_explains_the_manual_download(tmp_path, name, file):
    with pytest.raises(ConnectionError, match=f"could not download {name}") as error:
        load_dataset(name, tmp_path)
    text = message_of(error)
    assert file in text and str(tmp_path) in text and "no route to host" in text


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist", "stl10", "tinyimagenet"])
def test_download_with_a_wrong_checksum_is_refused_and_deleted(tmp_path, monkeypatch, name):
    requested = []

    def save_login_page(url, path, max_bytes):
        requested.append((url, max_bytes))
        Path(path).write_bytes(b"a login page")

    monkeypatch.setattr(downloads, "_download_with_retries", save_login_page)
    with pytest.raises(ConnectionError, match=f"could not download {name} .*is damaged: its md5 is") as error:
        load_dataset(name, tmp_path)
    ((url, max_bytes),) = requested
    assert url.startswith("https://") and max_bytes > 5000 and url in message_of(error)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def fashion_tree(root: Path, monkeypatch) -> Path:
    """Write small versions of the four files of Fashion-MNIST, two compressed and two not. torchvision accepts both."""
    rng = np.random.default_rng(0)
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    resources = []
    for part, count in (("train", 40), ("t10k", 20)):
        contents = {
            f"{part}-images-idx3-ubyte": idx(rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)),
            f"{part}-labels-idx1-ubyte": idx(np.arange(count, dtype=np.uint8) % 10),
        }
        for name, content in contents.items():
            packed = raw / f"{name}.gz"
            packed.write_bytes(gzip.compress(content))
            resources.append((packed.name, tv_utils.calculate_md5(packed)))
            if part == "t10k":
                (raw / name).write_bytes(content)
                packed.unlink()
    monkeypatch.setattr(tvd.FashionMNIST, "resources", resources)
    return raw


def test_fashion_mnist(tmp_path, monkeypatch):
    raw = fashion_tree(tmp_path, monkeypatch)
    data = load_dataset("fashion_mnist", tmp_path)
    assert data.train.images.shape == (40, 1, 28, 28) and len(data.test) == 20 and data.default_views == 4
    assert data.classes[9] == "Ankle boot" and data.test.labels.tolist() == [*range(10), *range(10)]
    assert data.normalisation == "computed on the training images"
    content = (raw / "train-images-idx3-ubyte").read_bytes()
    assert data.train.images.numpy().tobytes() == content[16:]


def test_damaged_fashion_mnist(tmp_path, monkeypatch):
    raw = fashion_tree(tmp_path, monkeypatch)
    packed = raw / "train-labels-idx1-ubyte.gz"
    good = packed.read_bytes()
    packed.write_bytes(good[:-3])
    with pytest.raises(OSError, match="train-labels-idx1-ubyte.gz is damaged: its md5") as error:
        load_dataset("fashion_mnist", tmp_path)
    assert dict(tvd.FashionMNIST.resources)[packed.name] in message_of(error)
    packed.write_bytes(good)
    unpacked = raw / "t10k-images-idx3-ubyte"
    whole = unpacked.read_bytes()
    for damaged in (whole[:-10], whole[:2], b""):
        unpacked.write_bytes(damaged)
        with pytest.raises(OSError, match="t10k-images-idx3-ubyte is damaged"):
            load_dataset("fashion_mnist", tmp_path)


def stl10_archive(root: Path, monkeypatch) -> Path:
    """Write a small archive in the format of STL-10 and make torchvision expect it."""
    rng = np.random.default_rng(0)
    tree = root / "tree" / "stl10_binary"
    tree.mkdir(parents=True)
    md5s = {}
    for part, count in (("train", 20), ("test", 10), ("unlabeled", 2)):
        pixels = rng.integers(0, 9, (count, 3, 96, 96), dtype=np.uint8)
        pixels[:, 0, :48] = 250  # files store column by column, so this is the left half
        contents = {f"{part}_X.bin": pixels, f"{part}_y.bin": np.arange(count, dtype=np.uint8) % 10 + 1}
        for name, content in contents.items():
            (tree / name).write_bytes(content.tobytes())
            md5s[name] = tv_utils.calculate_md5(tree / name)
    archive = root / tvd.STL10.filename
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(tree, "stl10_binary")
    monkeypatch.setattr(tvd.STL10, "tgz_md5", tv_utils.calculate_md5(archive))
    for files in ("train_list", "test_list"):
        monkeypatch.setattr(tvd.STL10, files, [[name, md5s[name]] for name, _ in getattr(tvd.STL10, files)])
    return archive


def test_stl10(tmp_path, monkeypatch):
    archive = stl10_archive(tmp_path, monkeypatch)
    data = load_dataset("stl10", tmp_path)
    assert (len(data.train), len(data.test)) == (20, 10) and data.size == (32, 32) and data.channels == 3
    assert data.train.labels.tolist() == [*range(10), *range(10)]
    assert data.classes[0] == "airplane" and data.classes[9] == "truck"
    assert data.normalisation == "computed on the training images"
    assert data.train.images[:, 0, :, :12].min() > 200, "rows and columns are not swapped"
    assert data.train.images[:, 0, :, 20:].max() < 60 and data.train.images[:, 1:].max() < 9
    assert data.train.images[:, 1:].float().std() < 2, "scaling with antialiasing removes most noise"

    archive.unlink()
    (tmp_path / "stl10_binary" / "unlabeled_X.bin").unlink()
    original = load_dataset("stl10", tmp_path, image_size=96)
    content = (tmp_path / "stl10_binary" / "test_X.bin").read_bytes()
    assert np.array_equal(
        original.test.images, np.frombuffer(content, np.uint8).reshape(10, 3, 96, 96).transpose(0, 1, 3, 2)
    )
    assert load_dataset("stl10", tmp_path, **original.options).fingerprint == original.fingerprint


def test_damaged_stl10(tmp_path, monkeypatch):
    archive = stl10_archive(tmp_path, monkeypatch)
    whole = archive.read_bytes()
    for damaged in (whole[:-100], b"another file"):
        archive.write_bytes(damaged)
        with pytest.raises(OSError, match="is damaged") as error:
            load_dataset("stl10", tmp_path)
        for part in (str(archive), tvd.STL10.tgz_md5, tv_utils.calculate_md5(archive)):
            assert part in message_of(error)
    archive.write_bytes(whole)
    fingerprint = load_dataset("stl10", tmp_path).fingerprint
    unpacked = tmp_path / "stl10_binary" / "test_X.bin"
    unpacked.write_bytes(b"half")
    assert load_dataset("stl10", tmp_path).fingerprint == fingerprint, "unpacked again from the archive"
    archive.unlink()
    unpacked.write_bytes(b"half")
    with pytest.raises(OSError, match="test_X.bin is damaged: its md5") as error:
        load_dataset("stl10", tmp_path)
    assert dict(tvd.STL10.test_list)["test_X.bin"] in message_of(error)


WORDS = {"n02": "dog, domestic dog", "n01": "crane", "n04": "crane, lifting device", "n03": "cat"}


def jpeg(pixels: np.ndarray, mode: str = "RGB") -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "jpeg", quality=95)
    return file.getvalue()


def tiny_imagenet_archive(root: Path, monkeypatch, per_class: int = 12) -> dict[str, bytes]:
    """Write a small archive in the format of TinyImageNet-200 and register its md5. Return its images by file name."""
    rng = np.random.default_rng(0)
    photographs, annotations = {}, []
    for row, wnid in enumerate([*WORDS] * per_class):
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        photographs[f"train/{wnid}/images/{wnid}_{row // len(WORDS)}.JPEG"] = jpeg(pixels, "L" if row == 5 else "RGB")
    for row, wnid in enumerate(["n03", "n03", "n01"]):
        photographs[f"val/images/val_{row}.JPEG"] = jpeg(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        annotations.append(f"val_{row}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    archive = root / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in {
            "wnids.txt": "".join(f"{wnid}\n" for wnid in WORDS),
            "words.txt": "".join(f"{wnid}\t{words}\n" for wnid, words in sorted(WORDS.items())) + "n9\tentity\n",
            "val/val_annotations.txt": "".join(annotations),
            "train/n01/n01_boxes.txt": "n01_0.JPEG\t0\t10\t63\t58\n",
            "test/images/test_0.JPEG": "no label",
            **photographs,
        }.items():
            file.writestr(f"tiny-imagenet-200/{name}", content)
    md5 = tv_utils.calculate_md5(archive)
    monkeypatch.setattr(published, "_TINY_IMAGENET_MD5", md5)
    return photographs


def test_tiny_imagenet(tmp_path, monkeypatch):
    photographs = tiny_imagenet_archive(tmp_path, monkeypatch)
    data = load_dataset("tinyimagenet", tmp_path, image_size=64)
    assert (len(data.train), len(data.test)) == (48, 3) and data.size == (64, 64) and data.channels == 3
    assert data.classes == ("dog", "crane (n01)", "crane (n04)", "cat"), "in the order of wnids.txt"
    assert data.train.labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12 + [3] * 12
    assert data.test.labels.tolist() == [3, 3, 1]
    expected = sorted((list(WORDS).index(name.split("/")[1]), name) for name in photographs if name.startswith("train"))
    for image, (_, name) in zip(data.train.images, expected, strict=True):
        pixels = np.asarray(Image.open(BytesIO(photographs[name])).convert("RGB"))
        assert np.array_equal(image.permute(1, 2, 0), pixels)
    assert torch.equal(data.train.images[13, 0], data.train.images[13, 2]), "grey"
    assert data.mean == (0.4802, 0.4481, 0.3975) and data.normalisation == "TinyImageNet, as in mdistiller"
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-imagenet-200.zip"], "nothing is unpacked"
    assert load_dataset("tinyimagenet", tmp_path, train_size=8).train.images.shape == (8, 3, 32, 32)


def test_damaged_tiny_imagenet(tmp_path, monkeypatch):
    tiny_imagenet_archive(tmp_path, monkeypatch)
    archive = tmp_path / "tiny-imagenet-200.zip"
    for damaged in (archive.read_bytes()[:-100], b"another file"):
        archive.write_bytes(damaged)
        with pytest.raises(OSError, match="is damaged: its md5") as error:
            load_dataset("tinyimagenet", tmp_path)
        for part in (str(archive), published._TINY_IMAGENET_MD5, tv_utils.calculate_md5(archive)):
            assert part in message_of(error)
        assert archive.is_file()


# ----------------------------------------------------------------------------------------- a folder of images


def write_image(path: Path, size: tuple[int, int] = (8, 8), colour=(200, 30, 90), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path)
    return path


@pytest.fixture
def tree(tmp_path) -> Path:
    for part, level in (("train", 255), ("test", 250)):
        write_image(tmp_path / part / "cat" / "a.png", colour=(level, 0, 0))
        write_image(tmp_path / part / "cat" / "b.png", colour=(0, level, 0))
        write_image(tmp_path / part / "ant" / "a.png", colour=(0, 0, level))
    return tmp_path


def test_folder(tree):
    data = load_dataset(f"folder:{tree}")
    assert data.name == f"folder:{tree}" and data.classes == ("ant", "cat")
    assert data.train.images.shape == (3, 3, 8, 8) and data.train.labels.tolist() == [0, 1, 1]
    assert data.train.images[:, :, 4, 4].tolist() == [[0, 0, 255], [255, 0, 0], [0, 255, 0]]
    assert data.mean == pytest.approx((1 / 3, 1 / 3, 1 / 3)) and data.groups == {}
    part = load_dataset(f"folder:{tree}", train_size=2)
    assert part.train.labels.tolist() == [0, 1]


def test_folder_reads_all_image_formats_and_ignores_other_files(tree):
    cat = tree / "train" / "cat"
    for name in ("c.JPG", "d.jpeg", "e.bmp", "f.webp"):
        write_image(cat / name)
    write_image(cat / "g.png", mode="L")
    write_image(cat / "h.png", mode="RGBA")
    write_image(cat / "i.png", mode="P")
    (cat / "notes.txt").write_text("no image")
    (cat / ".hidden.png").write_text("no image")
    (cat / "folder.png").mkdir()
    (tree / "train" / ".hidden").mkdir()
    (tree / "train" / "README.md").write_text("no folder")
    data = load_dataset(f"folder:{tree}")
    assert data.train.labels.tolist() == [0] + [1] * 9
    assert data.train.images[-1, :, 0, 0].tolist() == pytest.approx([200, 30, 90], abs=60)


@pytest.mark.parametrize(
    ("sizes", "side"),
    [([(8, 8), (8, 8), (20, 10)], 8), ([(64, 64)] * 2, 64), ([(65, 65)] * 2, 32), ([(9, 8)] * 2, 32)],
)
def test_image_size_of_a_folder_with_other_sizes(tmp_path, sizes, side):
    for k, size in enumerate(sizes):
        write_image(tmp_path / "train" / f"class{k % 2}" / f"{k}.png", size)
    write_image(tmp_path / "test" / "class1" / "wide.png", (300, 7))
    data = load_dataset(f"folder:{tmp_path}")
    assert data.size == (side, side) and data.test.labels.tolist() == [1], "a class may lack test images"


def test_folder_crops_the_center_and_keeps_the_aspect_ratio(tree):
    wide = np.zeros((16, 32, 3), np.uint8)
    wide[:, 8:24] = 255  # the middle square is white
    Image.fromarray(wide).save(tree / "test" / "ant" / "a.png")
    image = load_dataset(f"folder:{tree}").test.images[0]
    assert image[:, :, 1:-1].min() > 240


def test_folder_errors(tree):
    def fails(kind: type, *parts: object, path: object = tree) -> None:
        with pytest.raises(kind) as error:
            load_dataset(f"folder:{path}")
        assert all(str(part) in message_of(error) for part in parts), message_of(error)

    fails(ValueError, "has no path", path="")
    fails(FileNotFoundError, tree / "nowhere", path=tree / "nowhere")
    fails(FileNotFoundError, tree / "train" / "train", path=tree / "train")

    image = tree / "train" / "cat" / "b.png"
    whole = image.read_bytes()
    for damaged in (b"", b"no image at all", whole[: len(whole) // 2]):
        image.write_bytes(damaged)
        fails(OSError, "cannot read", image)
    image.write_bytes(whole)

    empty = tree / "test" / "dog"
    empty.mkdir()
    fails(ValueError, empty, "no images")
    write_image(empty / "a.png")
    fails(ValueError, "class folders that are not in train", "dog")
    (empty / "a.png").rename(tree / "a.png")
    empty.rmdir()

    (tree / "train" / "ant" / "a.png").unlink()
    (tree / "train" / "ant").rmdir()
    fails(ValueError, tree / "train", "at least two")


def test_folder_without_test_or_classes(tmp_path):
    write_image(tmp_path / "train" / "cat" / "a.png")
    with pytest.raises(FileNotFoundError, match="test"):
        load_dataset(f"folder:{tmp_path}")
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match="no class folder"):
        load_dataset(f"folder:{tmp_path}")


def test_truncated_jpeg(tree):
    path = tree / "train" / "cat" / "z.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(OSError, match="z.jpg"):
        load_dataset(f"folder:{tree}")


def test_folder_with_another_image_size(tree):
    data = load_dataset(f"folder:{tree}", image_size=12)
    assert data.size == (12, 12) and data.train.labels.tolist() == [0, 1, 1]
    assert load_dataset(f"folder:{tree}", **data.options).fingerprint == data.fingerprint
    assert load_dataset(f"folder:{tree}").fingerprint != data.fingerprint


def test_images_with_16_bits_are_scaled_to_8_bits(tree):
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(deep).save(tree / "train" / "cat" / "deep.png")
    image = load_dataset(f"folder:{tree}").train.images[-1]
    assert torch.equal(image, torch.from_numpy((deep >> 8).astype(np.uint8)).expand(3, 8, 8))
    Image.fromarray(deep.astype(np.float32)).save(tree / "train" / "cat" / "deep.png", format="tiff")
    with pytest.raises(OSError, match=r"deep.png \(it has 32-bit values \(mode F\): convert it to 8 bits\)"):
        load_dataset(f"folder:{tree}")


def test_image_type_is_read_from_the_content_and_no_program_is_started(tree, tmp_path, monkeypatch):
    """Pillow would pass PostScript to Ghostscript, whatever the file name."""
    canary, programs = tmp_path / "canary", tmp_path / "programs"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {canary}\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    photo = tree / "train" / "cat" / "photo.jpg"
    photo.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(OSError, match="photo.jpg \\(it is not an image\\)"):
        load_dataset(f"folder:{tree}")
    assert not canary.exists()
    write_image(tree / "as.gif").rename(photo)  # a wrong extension alone is accepted
    assert len(load_dataset(f"folder:{tree}").train) == 4


def test_extremely_long_image_is_refused(tree):
    write_image(tree / "train" / "cat" / "line.png", size=(1, 200_000))
    with pytest.raises(
        OSError, match="line.png .*1×200000 pixels, one side is more than 100 times as long as the other"
    ):
        load_dataset(f"folder:{tree}")


def test_any_error_while_reading_an_image_names_the_file(tree, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("Failed to decode\nimage")

    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(OSError, match="cannot read the image .*a.png .Failed to decode"):
        load_dataset(f"folder:{tree}")


def test_folder_name_that_is_not_utf8_is_refused(tree):
    try:
        (tree / "train" / os.fsdecode(b"caf\xe9")).mkdir()
    except OSError:
        pytest.skip("the file system only accepts UTF-8")
    write_image(tree / "train" / os.fsdecode(b"caf\xe9") / "a.png")
    with pytest.raises(ValueError, match=r"the name of the folder 'caf\\udce9' is not in UTF-8: rename the folder"):
        load_dataset(f"folder:{tree}")


def test_grey_cmyk_and_transparent_images(tree):
    cat = tree / "train" / "cat"
    for name, mode in (("c.png", "L"), ("d.jpg", "CMYK"), ("e.png", "LA"), ("f.png", "RGBA"), ("g.png", "1")):
        write_image(cat / name, mode=mode)
    images = load_dataset(f"folder:{tree}").train.images
    middle = images[3:, :, 4, 4].tolist()  # the first three are those of `tree`
    for row in (0, 2):
        assert middle[row] == pytest.approx([88] * 3, abs=2), "grey"
    for row in (1, 3):
        assert middle[row] == pytest.approx([200, 30, 90], abs=10)
    assert set(images[7].unique().tolist()) == {0, 255}


# ------------------------------------------------------------------------------- too big for memory, and ImageNet


def test_folder_too_big_for_memory_is_streamed_with_the_same_values(tree, monkeypatch):
    cat = tree / "train" / "cat"
    write_image(cat / "wide.jpg", (40, 9), mode="CMYK")
    write_image(cat / "grey.png", (7, 7), mode="L")
    name = f"folder:{tree}"
    whole = load_dataset(name)
    needed = (5 + 3) * 3 * 8 * 8
    monkeypatch.setattr(folders, "memory_limit", lambda: needed)
    assert isinstance(load_dataset(name).train, Split)
    monkeypatch.setattr(folders, "memory_limit", lambda: needed - 1)
    data = load_dataset(name, workers=0)
    assert isinstance(data.train, Streamed) and isinstance(data.test, Streamed)
    assert repr(data) == repr(whole) and data.classes == whole.classes and data.size == whole.size
    for streamed, split in ((data.train, whole.train), (data.test, whole.test)):
        index = torch.arange(len(split)).flip(0)
        (images,) = streamed.read([index], seed=1, epoch=2)
        assert torch.equal(images, split.images[index]) and torch.equal(streamed.labels, split.labels)
        assert streamed.padding == split.padding and streamed.shape == split.shape and streamed.difficulty is None
    assert data.mean == whole.mean and data.std == whole.std
    assert data.normalisation == "computed on 5 of the training images, evenly spread"
    assert data.options == whole.options and data.train.workers == 0
    assert isinstance(load_dataset(name, train_size=2).train, Split), "a part may fit into memory"


def test_fingerprint_of_a_streamed_folder(tree, monkeypatch):
    monkeypatch.setattr(folders, "memory_limit", lambda: 0)

    def load(**options) -> str:
        return load_dataset(f"folder:{tree}", workers=0, **options).fingerprint

    prints = [load(), load(image_size=16), load(train_size=2)]
    elsewhere = tree.with_name("elsewhere")
    shutil.copytree(tree, elsewhere)
    assert load_dataset(f"folder:{elsewhere}", workers=0).to("cpu").fingerprint == prints[0]
    (tree / "test" / "cat" / "b.png").rename(tree / "test" / "cat" / "c.png")
    prints.append(load())
    with open(tree / "test" / "cat" / "c.png", "ab") as file:
        file.write(b"one more")
    prints.append(load())
    (tree / "train" / "ant").rename(tree / "train" / "bee")
    (tree / "test" / "ant").rename(tree / "test" / "bee")
    prints.append(load())
    assert len(set(prints)) == 6


def test_memory_limit(monkeypatch):
    assert 2**28 < folders.memory_limit() < 2**45
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}.get)
    assert folders.memory_limit() == 1_024_000


@pytest.fixture
def imagenet(tmp_path) -> Path:
    """Four classes of six training and two validation photographs."""
    root = tmp_path / "imagenet"
    for row, wnid in enumerate(["n01", "n02", "n03", "n04"]):
        for k in range(6):
            write_image(root / "train" / wnid / f"{wnid}_{k}.JPEG", (50 + k, 40), (60 * row, 40 * k, 0))
        for k in range(2):
            write_image(root / "val" / wnid / f"ILSVRC2012_val_{k}.JPEG", (40, 50), (60 * row, 0, 0))
    return root


def test_imagenet(imagenet, tmp_path):
    data = load_dataset("imagenet", tmp_path, workers=0)
    assert data.name == "imagenet" and data.classes == ("n01", "n02", "n03", "n04")
    assert data.train.random_crop and data.train.padding == 0 and data.size == (224, 224)
    assert data.train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6 + [3] * 6
    assert data.test.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert data.mean == (0.485, 0.456, 0.406) and "torchvision" in data.normalisation and data.default_views == 4

    small = load_dataset(f"imagenet:{imagenet}", image_size=16, train_size=10, test_size=4, workers=0)
    assert small.size == (16, 16) and small.mean == data.mean and small.options["image_size"] == 16
    assert small.train.labels.bincount().sort().values.tolist() == [2, 2, 3, 3] and len(small.test) == 4
    names = [os.fsdecode(name) for name in small.train.names]
    assert names == sorted(set(names))
    for epoch in (None, 1):
        (images,) = small.train.read([torch.arange(10)], seed=0, epoch=epoch)
        colours = images[:, :2, 8, 8].tolist()
        for label, name, colour in zip(small.train.labels.tolist(), names, colours, strict=True):
            assert colour == pytest.approx([60 * label, 40 * int(name[-6])], abs=6)


def test_imagenet_with_a_test_folder_and_with_missing_folders(imagenet, tmp_path):
    (imagenet / "val").rename(imagenet / "test")
    assert len(load_dataset("imagenet", tmp_path).test) == 8
    write_image(imagenet / "test" / "n05" / "a.JPEG")
    with pytest.raises(ValueError, match="not in train: n05") as error:
        load_dataset("imagenet", tmp_path)
    assert message_of(error)
    shutil.rmtree(imagenet / "test")
    with pytest.raises(FileNotFoundError) as error:
        load_dataset("imagenet", tmp_path)
    assert message_of(error).startswith(f"there is no {imagenet / 'val'}: download ImageNet by hand")
    with pytest.raises(FileNotFoundError, match="by hand") as error:
        load_dataset(f"imagenet:{tmp_path / 'nowhere'}")
    nowhere = tmp_path / "nowhere"
    assert message_of(error).startswith(f"there is no {nowhere / 'train'} and no {nowhere / 'val'}: ")
    for part in ("ILSVRC2012_img_train.tar", "ILSVRC2012_devkit_t12.tar.gz"):
        assert str(part) in message_of(error)
    with pytest.raises(ValueError, match="'imagenet:' has no path"):
        load_dataset("imagenet:")


def imagenet_archives(root: Path, monkeypatch) -> dict[str, Path]:
    """Pack the folders of `imagenet` into the three archives of ImageNet and register their md5 sums."""

    def pack(archive: Path, files: dict[str, bytes], mode: str = "w") -> Path:
        with tarfile.open(archive, mode) as tar:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, BytesIO(content))
        return archive

    meta = tvd.imagenet.ARCHIVE_META
    archives = {part: root / meta[part][0] for part in meta}
    wnids, train = sorted(path.name for path in (root / "train").iterdir()), {}
    for wnid in wnids:
        photographs = {path.name: path.read_bytes() for path in (root / "train" / wnid).iterdir()}
        train[f"{wnid}.tar"] = pack(root / "inner.tar", photographs).read_bytes()
    pack(archives["train"], train)
    of_val = [(path.parent.name, path.read_bytes()) for path in sorted(root.glob("val/*/*"))]
    pack(archives["val"], {f"ILSVRC2012_val_{row:08}.JPEG": content for row, (_, content) in enumerate(of_val)})
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    synsets = [(row + 1, wnid, f"{wnid}, thing", "", 0) for row, wnid in enumerate(wnids)] + [(5, "n", "all", "", 4)]
    scipy.io.savemat(mat := BytesIO(), {"synsets": np.array(synsets, fields)})
    truth = "".join(f"{wnids.index(wnid) + 1}\n" for wnid, _ in of_val).encode()
    devkit = {"meta.mat": mat.getvalue(), "ILSVRC2012_validation_ground_truth.txt": truth}
    inside = {f"ILSVRC2012_devkit_t12/data/{name}": content for name, content in devkit.items()}
    pack(archives["devkit"], inside, "w:gz")
    for part, archive in archives.items():
        monkeypatch.setitem(meta, part, (archive.name, tv_utils.calculate_md5(archive)))
    for path in ("train", "val"):
        shutil.rmtree(root / path)
    (root / "inner.tar").unlink()
    return archives


def test_imagenet_is_unpacked_from_its_archives(imagenet, tmp_path, monkeypatch):
    fingerprint = load_dataset("imagenet", tmp_path).train.names.tolist()
    labels = load_dataset("imagenet", tmp_path).test.labels
    archives = imagenet_archives(imagenet, monkeypatch)
    (imagenet / "train.unfinished").mkdir()
    (imagenet / "train.unfinished" / "n01.tar").write_bytes(b"left by an interrupted unpacking")
    data = load_dataset("imagenet", tmp_path)
    assert data.train.names.tolist() == fingerprint and torch.equal(data.test.labels, labels)
    assert {path.name for path in imagenet.iterdir() if path.is_dir()} == {"train", "val"}
    for archive in archives.values():
        archive.unlink()
    assert load_dataset("imagenet", tmp_path).fingerprint == data.fingerprint


@pytest.mark.parametrize("part", ["train", "val", "devkit"])
def test_damaged_imagenet_archives(imagenet, tmp_path, monkeypatch, part):
    archives = imagenet_archives(imagenet, monkeypatch)
    archive, expected = archives[part], tvd.imagenet.ARCHIVE_META[part][1]
    archive.write_bytes(archive.read_bytes()[:-1000])
    with pytest.raises(OSError, match="is damaged: its md5") as error:
        load_dataset("imagenet", tmp_path)
    for text in (str(archive), expected, tv_utils.calculate_md5(archive)):
        assert text in message_of(error)
    archive.unlink()
    with pytest.raises(FileNotFoundError, match=f"by hand.*{archive.name}"):
        load_dataset("imagenet", tmp_path)


# -------------------------------------------------------------------------------------------------------- old names


def test_old_names_still_work_with_a_warning():
    for module, names in RENAMED.items():
        if module.startswith("data"):
            loaded = import_module(f"pckd_nb.{module}")
            for old, new in names.items():
                with pytest.warns(DeprecationWarning, match=f"{module}.{old} is now called {new}"):
                    assert getattr(loaded, old) is getattr(loaded, new)
    digits = load_dataset("digits", train_size=20, test_size=10)
    info = {"name": "digits", "options": {"train_size": 20, "test_size": 10}, "image_size": [16, 16]}
    with pytest.warns(DeprecationWarning, match="argument about of rebuild is now called info"):
        assert rebuild(about=info).fingerprint == rebuild(info).fingerprint == digits.fingerprint
    with pytest.warns(DeprecationWarning, match="file_prints"):
        assert digits.file_prints is None


class OldSplit(Split):
    """A subclass that defines a method under its old name."""

    def feed(self, digest):
        digest.update(b"old")
        super().feed(digest)


class NewSplit(Split):
    def update_hash(self, digest):
        digest.update(b"old")
        super().update_hash(digest)


def test_subclass_may_define_a_method_under_its_old_name():
    data = load_dataset("digits", train_size=20, test_size=10)
    train = [kind(data.train.images, data.train.labels) for kind in (OldSplit, NewSplit)]
    with pytest.warns(DeprecationWarning, match="OldSplit.feed is now called update_hash: rename it"):
        changed = dataclasses.replace(data, train=train[0]).fingerprint
    assert changed != data.fingerprint
    assert dataclasses.replace(data, train=train[1]).fingerprint not in (changed, data.fingerprint)
    digests = [hashlib.sha256(), hashlib.sha256()]
    data.train.update_hash(digests[0])
    with pytest.warns(DeprecationWarning, match="Split.feed is now called update_hash"):
        data.train.feed(digests[1])
    assert digests[0].digest() == digests[1].digest()
