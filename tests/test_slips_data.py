"""What goes wrong with images and labels of one's own: each case is read as it should be, or is refused in one line."""

import json
import multiprocessing
import os
import signal
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import pckd_nb as pckd
from pckd_nb import downloads, runs, views
from pckd_nb.analysis import neighbourhood_purity
from pckd_nb.cli import main
from pckd_nb.data import Dataset, Split, Streamed, folders, load_dataset, streaming
from pckd_nb.evaluation import predict
from pckd_nb.figures.diagrams import feature_weight_matrix

from .test_datasets import tree, write_image  # noqa: F401


@pytest.fixture(autouse=True)
def few_cores():
    """On a machine with one core DataLoader warns of two workers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


# ------------------------------------------------------------------------------------ a repaired file, and other data


@pytest.fixture
def streamed(tmp_path, monkeypatch):
    """A folder of 160 + 40 images that does not fit into memory."""
    monkeypatch.setattr(folders, "memory_limit", lambda: 0)
    rng = np.random.default_rng(0)
    for part, count in (("train", 160), ("test", 40)):
        for row in range(count):
            path = tmp_path / "images" / part / f"class{row % 2}" / f"{row:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 100 + 100 * (row % 2), (8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def train(folder: Path, out: Path, **options) -> pckd.Run:
    data = load_dataset(f"folder:{folder}", workers=0, image_size=8)
    student = pckd.create_model("resnet8", data, seed=0)
    recipe = pckd.get_recipe("classroom", epochs=3, batch_size=80)
    return pckd.fit(student, data, recipe, out=out, progress=False, accelerator="cpu", **options)


class DamageAfterOneEpoch(pckd.Callback):
    def __init__(self, path: Path):
        self._path = path

    def on_epoch_end(self, trainer) -> None:
        if len(trainer.recorder.history) == 1:
            trainer.save("interrupted")
            self._path.write_bytes(b"damaged")


def stopped_by(path: Path, folder: Path, out: Path) -> str:
    """Train until a damaged file stops the training, and repair the file. Returns the fingerprint before."""
    whole = path.read_bytes()
    callback = DamageAfterOneEpoch(path)
    with pytest.raises(OSError, match=f"cannot read the image .*{path.name}"):
        train(folder, out, callbacks=[callback])
    path.write_bytes(whole + b"repaired")
    return str(runs.read_settings(out)["data"]["fingerprint"])


def test_a_training_goes_on_after_the_file_that_stopped_it_was_repaired(streamed, tmp_path):
    path = streamed / "train" / "class1" / "005.png"
    before = stopped_by(path, streamed, tmp_path / "run")
    with pytest.warns(UserWarning, match="1 or more image files changed since .*run.json notes it"):
        run = train(streamed, tmp_path / "run", resume=True, callbacks=[DamageAfterOneEpoch(path)])
    assert run.finished and len(run.history) == 3
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert recorded["repaired"] == [{"fingerprint": before, "files": 1}] and recorded["fingerprint"] != before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("sizes", "(3 or more image files changed; up to 2 may be repaired)"),
        ("name", "(other file names, labels, classes or image size)"),
        ("label", "(other file names, labels, classes or image size)"),
    ],
)
def test_other_data_is_still_refused(streamed, tmp_path, change, reason):
    path = streamed / "train" / "class1" / "005.png"
    stopped_by(path, streamed, tmp_path / "run")
    if change == "sizes":
        for other in ("001.png", "003.png"):
            (path.parent / other).write_bytes((path.parent / other).read_bytes() + b"more")
    elif change == "name":
        path.rename(path.with_name("005 repaired.png"))
    else:
        path.rename(streamed / "train" / "class0" / path.name)
    with pytest.raises(ValueError) as error:
        train(streamed, tmp_path / "run", resume=True, callbacks=[DamageAfterOneEpoch(path)])
    assert "was started with data" in str(error.value) and reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_begun_with_the_earlier_way_of_reading_is_not_resumed(streamed, tmp_path):
    path = streamed / "train" / "class1" / "005.png"
    stopped_by(path, streamed, tmp_path / "run")
    path.write_bytes(path.read_bytes().removesuffix(b"repaired"))
    settings = runs.read_settings(tmp_path / "run")
    del settings["data"]["files"]  # as in a run.json of the earlier version
    runs.write_settings(tmp_path / "run", settings)
    with pytest.raises(ValueError, match="read image files in another way; now they are turned upright.*overwrite"):
        train(streamed, tmp_path / "run", resume=True, callbacks=[DamageAfterOneEpoch(path)])
    settings["status"] = "finished"
    runs.write_settings(tmp_path / "run", settings)
    with pytest.warns(UserWarning, match="read image files in another way"):
        assert train(streamed, tmp_path / "run", resume=True, callbacks=[DamageAfterOneEpoch(path)]).finished


def test_images_in_memory_have_no_file_prints(tree):  # noqa: F811
    assert load_dataset(f"folder:{tree}").file_prints is None


# -------------------------------------------------------------------------------------------------- worker processes


def with_workers(tree: Path, monkeypatch) -> Streamed:  # noqa: F811
    monkeypatch.setattr(folders, "memory_limit", lambda: 0)
    train = load_dataset(f"folder:{tree}", workers=0).train
    assert isinstance(train, Streamed)
    return streaming.dataclasses.replace(train, workers=2)


def kill_workers() -> None:
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)
    time.sleep(0.5)  # in which DataLoader learns of it, by a signal


def slowly(images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    time.sleep(0.05)
    return images


@pytest.mark.parametrize("augment", [None, partial(views.Augmentation(0, 0, False), epoch=1)])
def test_full_shared_memory_is_named_with_a_remedy(tree, monkeypatch, augment):  # noqa: F811
    def fail(_):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    train = with_workers(tree, monkeypatch)
    monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    with pytest.raises(OSError) as error:
        list(train.read([torch.tensor([0, 1])], augment=augment))
    assert str(error.value) == (
        "the shared memory of the worker processes that read images is full: workers=0 reads "
        "without worker processes; or enlarge it (shm-size of docker)"
    )


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_shared_memory_too_small_for_the_queues_of_the_workers(tree, monkeypatch):  # noqa: F811
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    train = with_workers(tree, monkeypatch)
    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", fail)
    with pytest.raises(OSError, match="shared memory .* is full: workers=0 reads"):
        list(train.read([torch.tensor([0, 1])]))


def test_a_killed_worker_is_named_with_a_remedy(tree, monkeypatch):  # noqa: F811
    train = with_workers(tree, monkeypatch)
    images = train.read(torch.arange(3).repeat(20).split(1), augment=slowly)
    next(images)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(OSError, match="a worker process that reads images was killed .*: workers=0 reads"):
        list(images)
    with pytest.raises(OSError) as error, streaming.clear_worker_errors():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ") from None
    assert str(error.value) == (
        "a worker process that reads images was killed (signal: Killed), often for lack of memory: "
        "workers=0 reads without worker processes"
    )


def test_a_worker_killed_while_the_network_computes(tree, monkeypatch):  # noqa: F811
    monkeypatch.setattr(folders, "memory_limit", lambda: 0)
    data = load_dataset(f"folder:{tree}", workers=0)
    data = streaming.dataclasses.replace(data, test=streaming.dataclasses.replace(data.test, workers=2))
    model = pckd.create_model("resnet8", data, seed=0)
    model.register_forward_pre_hook(lambda *_: kill_workers())
    monkeypatch.setattr("pckd_nb.evaluation.EVALUATION_PIXELS", 1)
    with pytest.raises(OSError, match="a worker process .* was killed .signal: Killed.*workers=0"):
        predict(model, data, accelerator="cpu")


def test_other_errors_are_not_taken_for_those_of_workers():
    with pytest.raises(RuntimeError, match="^mat1 and mat2"), streaming.clear_worker_errors():
        torch.zeros(2, 3) @ torch.zeros(2, 3)


# ------------------------------------------------------------------------------------------------- files of a folder


def test_extensions_are_those_of_torchvision():
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert folders.EXTENSIONS == IMG_EXTENSIONS


def test_every_image_that_torchvision_reads_is_read_and_the_rest_is_counted(tree, capsys):  # noqa: F811
    cat = tree / "train" / "cat"
    for name in ("c.tif", "d.TIFF", "e.ppm", "f.pgm", "inner/g.png", "inner/deeper/h.webp"):
        write_image(cat / name, mode="L" if name == "f.pgm" else "RGB")
    write_image(cat / "i.gif")
    (cat / "notes.txt").write_text("no image")
    for row in range(3):
        (cat / f"broken{row}.png").symlink_to("nowhere.png")
    write_image(cat / "._b.png")
    write_image(cat / ".cache" / "b.png")
    (cat / "inner" / "loop").symlink_to(cat)
    write_image(tree / "train" / "loose.png")
    with pytest.warns(UserWarning) as caught:
        data = load_dataset(f"folder:{tree}")
    lines = [
        "broken links (3), such as cat/broken0.png",
        "files without the extension of an image (2), such as cat/i.gif",
        "hidden folders (1), such as cat/.cache",
        "hidden images (1), such as cat/._b.png",
        "images outside of the class folders (1), such as loose.png",
        "links to a folder that they are in (1), such as cat/inner/loop",
    ]
    assert sorted(str(warning.message) for warning in caught) == [f"skipped in {tree / 'train'}: {x}" for x in lines]
    assert {warning.filename for warning in caught} == {__file__}
    names = [os.fsdecode(name).removeprefix("cat/") for name in data.train.ids[1:]]
    assert names[-2:] == ["inner/g.png", "inner/deeper/h.webp"]
    assert names[:-2] == ["a.png", "b.png", "c.tif", "d.TIFF", "e.ppm", "f.pgm"]
    assert all(line in data._repr_html_() for line in lines)
    out = str(tree / "run")
    arguments = ["--data", f"folder:{tree}", "--model", "resnet8", "--epochs", "1", "--out", out]
    assert main(["train", *arguments, "--accelerator", "cpu"]) == 0
    printed = capsys.readouterr()
    assert "9 train images and 3 test images of 2 classes" in printed.out
    assert "note: skipped in" in printed.err and "broken links (3)" in printed.err


def test_a_class_of_skipped_files_alone_says_so(tree):  # noqa: F811
    (tree / "train" / "dog").mkdir()
    (tree / "train" / "dog" / "a.png").symlink_to("nowhere.png")
    with pytest.raises(ValueError, match="dog has no image: .*; skipped: broken links .1., such as a.png"):
        load_dataset(f"folder:{tree}")


# ------------------------------------------------------------------------------------------- what a file shows


ARROW = np.zeros((8, 8, 3), np.uint8)
ARROW[:4, :4], ARROW[:4, 4:], ARROW[4:, :4] = (250, 0, 0), (0, 250, 0), (0, 0, 250)


def turned(path: Path, orientation: int = 6) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if path.suffix == ".webp" else {"quality": 100} if path.suffix == ".jpg" else {}
    Image.fromarray(np.rot90(ARROW, 1).copy()).save(path, exif=exif, **lossless)


def transparent(path: Path) -> None:
    pixels = np.dstack([ARROW, np.full((8, 8), 255, np.uint8)])
    pixels[4:, 4:] = 70, 80, 90, 0  # hidden colours
    Image.fromarray(pixels).save(path)


def palette(path: Path) -> None:
    image = Image.fromarray(ARROW).quantize(8)
    image.save(path, transparency=image.getpixel((7, 7)))


def deep(path: Path, bits: int) -> None:
    Image.fromarray((np.arange(64).reshape(8, 8) * 2 ** (bits - 6)).astype(np.uint16)).save(path)


UPRIGHT = ARROW.astype(int)
ON_WHITE = np.where((np.arange(8) >= 4)[:, None, None] & (np.arange(8) >= 4)[None, :, None], 255, UPRIGHT)
LEVELS = np.repeat(4 * np.arange(64).reshape(8, 8, 1), 3, 2)
SHOWN = {
    "turned.jpg": (turned, UPRIGHT, 12), "turned.png": (turned, UPRIGHT, 0), "turned.tif": (turned, UPRIGHT, 0),
    "turned.webp": (turned, UPRIGHT, 0), "alpha.png": (transparent, ON_WHITE, 0), "palette.png": (palette, ON_WHITE, 5),
    "8 bits.png": (partial(deep, bits=8), LEVELS, 0), "12 bits.png": (partial(deep, bits=12), LEVELS, 0),
    "16 bits.png": (partial(deep, bits=16), LEVELS, 0), "12 bits.tif": (partial(deep, bits=12), LEVELS, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_an_image_is_what_it_shows_from_memory_and_from_its_file(tree, monkeypatch, name):  # noqa: F811
    write, expected, near = SHOWN[name]
    write(tree / "test" / "cat" / name)
    write(tree / "train" / "cat" / name)
    place = [path.name for path in sorted((tree / "test" / "cat").iterdir())].index(name) + 1
    data = load_dataset(f"folder:{tree}", image_size=8)
    found = data.test.images[place].permute(1, 2, 0).numpy().astype(int)
    middle = np.ix_([1, 2, 5, 6], [1, 2, 5, 6]) if name.endswith("jpg") else ...  # JPEG blurs the colours at edges
    assert abs(found - expected)[middle].max() <= near
    monkeypatch.setattr(folders, "memory_limit", lambda: 0)
    streamed = load_dataset(f"folder:{tree}", image_size=8, workers=0)
    for split in ("train", "test"):
        (images,) = getattr(streamed, split).read([torch.tensor([place])], seed=0, epoch=1)
        assert torch.equal(images[0], getattr(data, split).images[place])
    assert "turned upright by their EXIF data, transparent parts on white" in streamed._repr_html_()
    assert streamed.notes["images"] == data.notes["images"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(tmp_path, orientation):
    stored = {1: ARROW, 2: ARROW[:, ::-1], 3: ARROW[::-1, ::-1], 4: ARROW[::-1], 5: ARROW.transpose(1, 0, 2),
              6: np.rot90(ARROW, 1), 7: np.rot90(ARROW, 2).transpose(1, 0, 2), 8: np.rot90(ARROW, -1)}  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored[orientation])).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(streaming.read_image(tmp_path / "a.png", partial(streaming.fit, side=8)), ARROW)


def test_damaged_exif_data_do_not_hide_the_image(tmp_path):
    Image.fromarray(ARROW).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff")
    assert np.array_equal(streaming.read_image(tmp_path / "a.png", partial(streaming.fit, side=8)), ARROW)


def test_pictures_of_a_torch_data_set_show_no_hidden_colours():
    pixels = np.dstack([ARROW, np.full((8, 8), 255, np.uint8)])
    pixels[4:, 4:] = 70, 80, 90, 0
    pairs = [(Image.fromarray(pixels), 0), (Image.fromarray(pixels), 1)]
    data = Dataset.from_torch(pairs, pairs)
    assert np.array_equal(data.train.images[0].permute(1, 2, 0), ON_WHITE)


# ------------------------------------------------------------------------------------------------- folders and names


@pytest.mark.parametrize("place", ["train", "train/new", "test/cat/run"])
def test_a_run_is_not_written_among_the_images(tree, data, teacher, capsys, monkeypatch, place):  # noqa: F811
    before = sorted(tree.rglob("*"))
    arguments = ["--data", f"folder:{tree}", "--model", "resnet8", "--out", str(tree / place)]
    assert main(["train", *arguments]) == 2
    said = f"pckd-nb: '{tree / place}' is among the images of folder:{tree}, in '{tree / place.split('/')[0]}'"
    assert capsys.readouterr().err.strip() == f"{said}: choose a folder elsewhere"
    loaded = load_dataset(f"folder:{tree}")
    student = pckd.create_model("resnet8", loaded, seed=0)
    for option in ("out", "teacher_cache"):
        with pytest.raises(ValueError, match="is among the images of folder"):
            pckd.distill(student, None, loaded, "supervised", "classroom", **{option: tree / place})
    monkeypatch.chdir(tree)
    with pytest.raises(ValueError, match="is among the images of folder"):
        pckd.fit(student, loaded, out=place)
    assert sorted(tree.rglob("*")) == before


def test_a_folder_beside_the_images_is_fine(tree):  # noqa: F811
    pckd.catalogue.check_outside_images(tree / "training", f"folder:{tree}")
    pckd.catalogue.check_outside_images(tree / "train", "digits")


def test_class_names_that_look_the_same_are_refused(tree):  # noqa: F811
    message = r"the classes 'caf\xe9' and 'cafe\u0301' look the same: rename one of them"
    pair = np.zeros((2, 8, 8), np.uint8), [0, 1]
    with pytest.raises(ValueError) as error:
        Dataset.from_arrays(pair, pair, classes=["caf\xe9", "cafe\u0301"])
    assert str(error.value) == message
    write_image(tree / "train" / "caf\xe9" / "a.png")
    write_image(tree / "test" / "cafe\u0301" / "a.png")
    if len(list((tree / "test").iterdir())) == len(list((tree / "train").iterdir())):
        with pytest.raises(ValueError) as error:
            load_dataset(f"folder:{tree}")
        assert str(error.value) == message


def test_a_refused_download_leaves_no_folder(tmp_path):
    root = tmp_path / "new" / "root"
    with pytest.raises(OSError):
        downloads.download("https://localhost:9/nothing.zip", root / "nothing.zip", lambda path: None)
    assert not (tmp_path / "new").exists()
    root.mkdir(parents=True)
    with pytest.raises(OSError):
        downloads.download("https://localhost:9/nothing.zip", root / "nothing.zip", lambda path: None)
    assert root.is_dir(), "it was there before"


# ------------------------------------------------------------------------------------------------------ one line each


def test_numbers_of_numpy_are_printed_as_plain_ones(data):
    pair = np.zeros((2, 8, 8), np.uint8), [0, 1]
    with pytest.raises(ValueError, match=r"std.0 must be greater than 0, got -1\.0$"):
        Dataset.from_arrays(pair, pair, mean=[0.5], std=[np.float64(-1)])
    model = pckd.create_model("resnet8", data, seed=0)
    with pytest.raises(ValueError, match=r"got \(0\.5,\) and \(-1\.0,\)$"):
        pckd.with_preprocessing(model, data, mean=np.array([0.5]), std=np.array([-1.0]))
    with pytest.raises(ValueError, match=r"got \(0, 8\)$"):
        pckd.with_preprocessing(model, data, size=(np.int16(0), np.int16(8)))
    assert pckd.with_preprocessing(model, data, size=np.array([8, 8])) is model


def test_classes_of_a_figure_are_printed_as_plain_numbers(data, recipe):
    run = pckd.fit(pckd.create_model("resnet8", data, seed=0), data, recipe, progress=False, accelerator="cpu")
    with pytest.raises(ValueError, match=r"got \[0\]$"):
        feature_weight_matrix(run, classes=np.array([0], np.int16))


def test_neighbours_of_one_sample():
    with pytest.raises(ValueError, match="^neighbours need 2 samples or more, got 1$"):
        neighbourhood_purity(np.ones((1, 3)), [0], k=1)


IMAGES = np.arange(6 * 8 * 8, dtype=np.uint64).reshape(6, 8, 8).astype(np.uint8)
NUMBERS = [0, 1, 2, 0, 1, 2]
GOOD_LABELS = {
    "list": NUMBERS, "tuple": tuple(NUMBERS), "int32": np.array(NUMBERS, np.int32),
    "uint8": np.array(NUMBERS, np.uint8), "object": np.array(NUMBERS, object),
    "tensor": torch.tensor(NUMBERS, dtype=torch.int32),
    "numbers of numpy": [*np.array(NUMBERS, np.int16)], "tensors": [*torch.tensor(NUMBERS)],
    "Series": pd.Series(NUMBERS), "names": np.array([*"abcabc"]), "object names": np.array([*"abcabc"], object),
    "category": pd.Series([*"abcabc"], dtype="category"),
}  # fmt: skip
BAD_LABELS = {
    "None": (None, TypeError, "labels must be a list of one number or name per image, got NoneType"),
    "text": ("abcabc", TypeError, "labels must be a list of one number or name per image, got str"),
    "one number": (np.array(1), TypeError, "labels must be a list of one number or name per image, got ndarray"),
    "a None": ([0, 1, None, 0, 1, 2], ValueError, "every image needs a label, that of image 2 is None"),
    "nan": (np.array([0, 1, np.nan, 0, 1, 2]), ValueError, "every image needs a label, that of image 2 is nan"),
    "nan in names": (
        np.array([*"ab", np.nan] * 2, object),
        ValueError,
        "every image needs a label, that of image 2 is",
    ),
    "floats": (np.array(NUMBERS, float), TypeError, "labels must be whole numbers or names, got 0.0 for image 0"),
    "truth": ([True] * 6, TypeError, "labels must be whole numbers or names, got True for image 0"),
    "bytes": ([b"a"] * 6, TypeError, "labels must be whole numbers or names, got b'a' for image 0"),
    "mixed": (np.array(["a", 1] * 3, object), TypeError, "labels must be all numbers or all names, got 'a' and 1"),
    "fewer": ([0, 1, 2], ValueError, "there must be one label per image: 6 images, 3 labels"),
    "more": (NUMBERS * 2, ValueError, "there must be one label per image: 6 images, 12 labels"),
    "one-hot": (np.eye(3)[NUMBERS], TypeError, "labels must be one number or name per image; one-hot labels become"),
    "negative": ([-1, 1, 2] * 2, ValueError, "labels of train must be from 0 to 2, got -1 to 2"),
}


@pytest.mark.parametrize("what", GOOD_LABELS)
def test_labels_of_many_kinds_work(what):
    pair = IMAGES, GOOD_LABELS[what]
    data = Dataset.from_arrays(pair, pair)
    assert data.train.labels.tolist() == NUMBERS and data.train.labels.dtype == torch.int64
    assert data.classes in (("0", "1", "2"), ("a", "b", "c"))


@pytest.mark.parametrize("classes", [None, ["a", "b", "c"]])
@pytest.mark.parametrize("what", BAD_LABELS)
def test_wrong_labels_are_refused_in_one_line(what, classes):
    labels, kind, message = BAD_LABELS[what]
    with pytest.raises(kind) as error:
        Dataset.from_arrays((IMAGES, labels), (IMAGES, NUMBERS), classes=classes)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_names_in_one_split_and_numbers_in_the_other():
    with pytest.raises(TypeError, match="labels of train are names, those of test are numbers: give the list classes="):
        Dataset.from_arrays((IMAGES, [*"abcabc"]), (IMAGES, NUMBERS))
    data = Dataset.from_arrays((IMAGES, [*"abcabc"]), (IMAGES, NUMBERS), classes=["a", "b", "c"])
    assert data.train.labels.tolist() == data.test.labels.tolist() == NUMBERS


BAD_IMAGES = {
    "None": (None, TypeError, "images must be uint8 pixels, or floats in [0, 1], got NoneType"),
    "objects": (
        IMAGES.astype(object),
        TypeError,
        "images must be uint8 pixels, or floats in [0, 1], got ndarray of obj",
    ),
    "paths": (["a.png"] * 6, TypeError, "images must be uint8 pixels, or floats in [0, 1], got list"),
    "int64": (IMAGES.astype(np.int64), TypeError, "images must be uint8 pixels, or floats in [0, 1], got torch.int64"),
    "sizes": ([IMAGES[0], IMAGES[1, :4]] * 3, ValueError, "images must all have the same size and number of channels"),
    "flat": (IMAGES.reshape(6, -1), ValueError, "images must have shape (N, C, H, W), (N, H, W, C) or (N, H, W), got"),
    "no pixels": (IMAGES[:, :0], ValueError, "images must have pixels, got shape (6, 0, 8)"),
    "no images": (IMAGES[:0], ValueError, "there must be one label per image: 0 images, 6 labels"),
}


@pytest.mark.parametrize("what", BAD_IMAGES)
def test_wrong_images_are_refused_in_one_line(what):
    images, kind, message = BAD_IMAGES[what]
    with pytest.raises(kind) as error:
        Dataset.from_arrays((images, NUMBERS), (IMAGES, NUMBERS))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize("images", [IMAGES[:, ::-1], torch.from_numpy(IMAGES).to_sparse(), IMAGES.astype(">f4") / 255])
def test_unusual_layouts_in_memory_work(images):
    data = Dataset.from_arrays((images, NUMBERS), (IMAGES, NUMBERS))
    expected = images.to_dense() if isinstance(images, torch.Tensor) else torch.from_numpy(images.astype(np.float64))
    scale = 255 if expected.max() <= 1 else 1
    assert torch.equal(data.train.images[:, 0], (expected * scale).round().to(torch.uint8))


class Items(list):
    """A data set for torch whose length may be wrong."""

    length = 6

    def __len__(self) -> int:
        return self.length


PICTURES = [torch.from_numpy(image)[None] for image in IMAGES]
BAD_ITEMS = {
    "no pairs": (Items(PICTURES), TypeError, "items of train must be pairs (image, label), got Tensor"),
    "mappings": (Items([{"image": 1}] * 6), TypeError, "items of train must be pairs (image, label), got dict"),
    "fewer": (Items(zip(PICTURES[:3], NUMBERS, strict=False)), ValueError,
              "train says that it has 6 images, and item 3 fails: list index out of range"),
    "None": (Items((image, None) for image in PICTURES), ValueError, "every image needs a label, that of image 0"),
    "one-hot": (Items(zip(PICTURES, torch.eye(3)[NUMBERS], strict=True)), TypeError, "labels must be one number or"),
    "no image": (Items((None, 0) for _ in PICTURES), TypeError, "images must be uint8 pixels, or floats in [0, 1]"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_ITEMS)
def test_wrong_items_of_a_torch_data_set_are_refused_in_one_line(what):
    items, kind, message = BAD_ITEMS[what]
    good = Items(zip(PICTURES, NUMBERS, strict=True))
    assert Dataset.from_torch(good, good).train.labels.tolist() == NUMBERS
    with pytest.raises(kind) as error:
        Dataset.from_torch(items, good)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"root": 5}, TypeError, "root must be a path, got int"),
        ({"table": 5}, TypeError, "table must be the path of a CSV file or a DataFrame, got int"),
        ({"table": "empty.csv"}, ValueError, "'empty.csv' is not a table of comma-separated values: No columns"),
        ({"image_size": "x"}, TypeError, "image_size must be a whole number, got 'x'"),
        ({"workers": "x"}, TypeError, "workers must be a whole number, got 'x'"),
        ({"classes": "ab"}, TypeError, "classes must be a list of names in the order of their numbers, got str"),
        ({"image": "class"}, FileNotFoundError, "4 of 4 images are not there, the first is"),
        ({"label": "half"}, TypeError, "labels must be whole numbers or names, got 0.5 for image 0"),
    ],
)
def test_wrong_arguments_of_a_table_are_refused_in_one_line(tree, monkeypatch, options, kind, message):  # noqa: F811
    monkeypatch.chdir(tree)
    Path("empty.csv").touch()
    paths = [f"{part}/{name}.png" for part in ("train", "test") for name in ("ant/a", "cat/a")]
    split = ["train", "train", "test", "test"]
    table = pd.DataFrame({"path": paths, "class": [0, 1, 0, 1], "split": split, "half": 0.5})
    assert Dataset.from_table(table).train.labels.tolist() == [0, 1]
    with pytest.raises(kind) as error:
        Dataset.from_table(**{"table": table, **options})
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize("root", [5, b"x", ["x"]])
def test_a_root_that_is_no_path(root):
    with pytest.raises(TypeError, match=f"^root must be a path, got {type(root).__name__}$"):
        load_dataset("digits", root)


@pytest.mark.parametrize("labels", [None, np.array([None, None])])
def test_labels_of_a_split_that_are_no_numbers(labels):
    with pytest.raises(TypeError, match="^labels must be whole numbers of shape .N,., got"):
        Split(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), labels)
