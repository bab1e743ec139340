"""Loading: right tensors, honest sizes, and errors that say what to do. Nothing here touches the network."""

import gzip
import json
import pickle
import tarfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets as tvd
from PIL import Image
from torchvision.datasets import utils as tv_utils

from pckd_nb import datasets, shapes
from pckd_nb.datasets import DATASETS, default_root, load_dataset


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Any attempt to reach the network fails like a cable pulled out."""

    def no_network(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(tv_utils.urllib.request, "urlopen", no_network)


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
    assert options == {"train_size": 300, "test_size": 100, "seed": 3}
    assert load_dataset("shapes100", tmp_path / "other", **options).fingerprint == data.fingerprint


def test_shapes100_splits_are_independent(tmp_path):
    one = load_dataset("shapes100", tmp_path, train_size=100, test_size=100)
    two = load_dataset("shapes100", tmp_path, train_size=200, test_size=100)
    assert torch.equal(one.test.images, two.test.images)
    assert not torch.equal(one.train.images, one.test.images)
    other_seed = load_dataset("shapes100", tmp_path, train_size=100, test_size=100, seed=1)
    assert other_seed.fingerprint != one.fingerprint


def test_cache_is_used_and_a_damaged_one_is_replaced(tmp_path, monkeypatch):
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


def test_shapes100_without_a_place_for_the_cache(tmp_path):
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


def test_part_of_a_data_set(tmp_path):
    whole = load_dataset("digits", tmp_path)
    part = load_dataset("digits", tmp_path, train_size=205, test_size=10, seed=2)
    counts = part.train.labels.bincount()
    assert len(part.train) == 205 and counts.min() == 20 and counts.max() == 21
    assert torch.equal(part.test.labels.sort().values, torch.arange(10))
    known = {bytes(image.numpy()) for image in whole.train.images}
    assert all(bytes(image.numpy()) in known for image in part.train.images)
    assert len({bytes(image.numpy()) for image in part.train.images}) == 205, "nothing is taken twice"
    assert load_dataset("digits", tmp_path, **part.options).fingerprint == part.fingerprint
    assert load_dataset("digits", tmp_path, train_size=205, seed=3).fingerprint != part.fingerprint
    everything = load_dataset("digits", tmp_path, train_size=1347, test_size=450, seed=5)
    assert everything.fingerprint == whole.fingerprint, "all images stay in order"


@pytest.mark.parametrize("name", ["digits", "shapes100"])
@pytest.mark.parametrize("size", [0, -5, 9, 2.5, "many"])
def test_impossible_sizes(tmp_path, name, size):
    for which in ("train_size", "test_size"):
        with pytest.raises(ValueError, match=f"{which} is") as error:
            load_dataset(name, tmp_path, **{which: size})
        assert "at least" in message_of(error) or "whole number" in message_of(error)


def test_more_than_there_is(tmp_path):
    with pytest.raises(ValueError, match="train_size is 1348: there are only 1347 images"):
        load_dataset("digits", tmp_path, train_size=1348)


@pytest.mark.parametrize("seed", [-1, 0.5, None])
def test_impossible_seed(tmp_path, seed):
    with pytest.raises(ValueError, match="seed is"):
        load_dataset("digits", tmp_path, seed=seed)


def test_fingerprint_sees_pixels_labels_and_names(tmp_path):
    data = load_dataset("digits", tmp_path)
    assert len(data.fingerprint) == 16 and int(data.fingerprint, 16) >= 0
    assert data.to("cpu").fingerprint == data.fingerprint
    images, labels = data.test.images.clone(), data.test.labels.clone()
    images[7, 0, 3, 3] ^= 1
    labels[0] = (labels[0] + 1) % 10
    changed = [
        {"test": datasets.Split(images, data.test.labels)},
        {"test": datasets.Split(data.test.images, labels)},
        {"classes": (*data.classes[:9], "nine")},
    ]
    prints = [datasets.dataclasses.replace(data, **change).fingerprint for change in changed]
    assert len({data.fingerprint, *prints}) == 4


def test_images_of_one_colour_can_be_normalised():
    mean, std, _ = datasets._statistics(torch.full((3, 2, 4, 4), 51, dtype=torch.uint8))
    assert mean == pytest.approx((0.2, 0.2)) and min(std) > 0


def test_to_moves_every_tensor(tmp_path):
    data = load_dataset("shapes100", tmp_path, train_size=100, test_size=100).to("meta")
    for split in (data.train, data.test):
        assert {t.device.type for t in (split.images, split.labels, split.difficulty)} == {"meta"}


@pytest.mark.parametrize(("name", "hint"), [("cifar", "cifar10"), ("Shapes100", "shapes100"), ("mnist", "fashion_")])
def test_unknown_name_suggests_a_known_one(name, hint):
    with pytest.raises(ValueError, match="did you mean") as error:
        load_dataset(name)
    assert hint in message_of(error).split("?")[0]


@pytest.mark.parametrize("name", ["", "imagenet-22k", None])
def test_unknown_name_lists_all(name):
    with pytest.raises(ValueError, match="no data set") as error:
        load_dataset(name)
    assert all(known in message_of(error) for known in DATASETS)


def test_default_root(monkeypatch, tmp_path):
    monkeypatch.delenv("PCKD_DATA", raising=False)
    assert default_root() == Path("data/downloads")
    monkeypatch.setenv("PCKD_DATA", str(tmp_path))
    load_dataset("shapes100", train_size=100, test_size=100)
    assert len(list(tmp_path.glob("*.npz"))) == 2


# --------------------------------------------------------------------- downloads: archives of the true format


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
    coarse = datasets._groups("cifar100")["superclass"]
    assert len(coarse) == 100 and len(set(coarse)) == 20
    assert all(coarse.count(name) == 5 for name in coarse)
    # alphabetical: 0 apple, 1 aquarium fish, 2 baby, 8 bicycle, 47 maple tree, 54 orchid, 97 wolf, 99 worm
    expected = {0: "fruit and vegetables", 1: "fish", 2: "people", 8: "vehicles 1", 47: "trees"}
    expected |= {54: "flowers", 97: "large carnivores", 99: "non-insect invertebrates"}
    assert {k: coarse[k] for k in expected} == expected


def test_damaged_archive_is_named_and_kept(tmp_path, monkeypatch):
    archive = cifar_archive(tmp_path, tvd.CIFAR10, monkeypatch, num_classes=10, per_batch=20)
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(OSError, match="damaged") as error:
        load_dataset("cifar10", tmp_path)
    for part in (str(archive), tvd.CIFAR10.tgz_md5, tv_utils.calculate_md5(archive)):
        assert part in message_of(error)
    assert archive.is_file()


def test_damaged_unpacked_file(tmp_path, monkeypatch):
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
        ("fashion_mnist", "t10k-labels-idx1-ubyte.gz"),
    ],
)
def test_failed_download_says_what_to_do_by_hand(tmp_path, name, file):
    with pytest.raises(ConnectionError, match=f"could not download {name}") as error:
        load_dataset(name, tmp_path)
    text = message_of(error)
    assert file in text and str(tmp_path) in text and "no route to host" in text


def test_half_a_download_is_removed(tmp_path, monkeypatch):
    def cable_pulled(url, filename):
        Path(filename).write_bytes(b"half")
        raise URLError("connection reset")

    monkeypatch.setattr(tv_utils, "_get_redirect_url", lambda url, max_hops: url)
    monkeypatch.setattr(tv_utils, "_urlretrieve", cable_pulled)
    for name in ("cifar100", "fashion_mnist"):
        with pytest.raises(ConnectionError, match="connection reset"):
            load_dataset(name, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def fashion_tree(root: Path, monkeypatch) -> Path:
    """The four files of Fashion-MNIST, small: two packed, two unpacked. torchvision takes both."""
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


# ----------------------------------------------------------------------------------------- a folder of images


def write_image(path: Path, size: tuple[int, int] = (8, 8), colour=(200, 30, 90), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path)
    return path


@pytest.fixture
def tree(tmp_path) -> Path:
    for part in ("train", "test"):
        write_image(tmp_path / part / "cat" / "a.png", colour=(255, 0, 0))
        write_image(tmp_path / part / "cat" / "b.png", colour=(0, 255, 0))
        write_image(tmp_path / part / "ant" / "a.png", colour=(0, 0, 255))
    return tmp_path


def test_folder(tree):
    data = load_dataset(f"folder:{tree}")
    assert data.name == f"folder:{tree}" and data.classes == ("ant", "cat")
    assert data.train.images.shape == (3, 3, 8, 8) and data.train.labels.tolist() == [0, 1, 1]
    assert data.train.images[:, :, 4, 4].tolist() == [[0, 0, 255], [255, 0, 0], [0, 255, 0]]
    assert data.mean == pytest.approx((1 / 3, 1 / 3, 1 / 3)) and data.groups == {}
    part = load_dataset(f"folder:{tree}", train_size=2)
    assert part.train.labels.tolist() == [0, 1]


def test_folder_takes_every_kind_of_image_and_ignores_the_rest(tree):
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
def test_folder_of_other_sizes(tmp_path, sizes, side):
    for k, size in enumerate(sizes):
        write_image(tmp_path / "train" / f"class{k % 2}" / f"{k}.png", size)
    write_image(tmp_path / "test" / "class1" / "wide.png", (300, 7))
    data = load_dataset(f"folder:{tmp_path}")
    assert data.size == (side, side) and data.test.labels.tolist() == [1], "a class may lack test images"


def test_folder_cuts_the_middle_and_keeps_the_aspect(tree):
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

    fails(ValueError, "lacks a path", path="")
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
    fails(ValueError, empty, "no image")
    write_image(empty / "a.png")
    fails(ValueError, "train lacks", "dog")
    (empty / "a.png").rename(tree / "a.png")
    empty.rmdir()

    (tree / "train" / "ant" / "a.png").unlink()
    (tree / "train" / "ant").rmdir()
    fails(ValueError, tree / "train", "two or more")


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
