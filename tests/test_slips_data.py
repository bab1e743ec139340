"""Mistakes in custom images and labels: each case is read correctly or refused with a message of one line."""

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
from torch.utils.data import ConcatDataset, Subset, TensorDataset, random_split
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2.functional import pil_to_tensor

import pckd_nb as pckd
from pckd_nb import downloads, runs, views
from pckd_nb.analysis import neighbourhood_purity
from pckd_nb.cli import main
from pckd_nb.data import Dataset, Split, Streamed, folders, load_dataset, streaming
from pckd_nb.data.dataset import file_fingerprints
from pckd_nb.evaluation import predict
from pckd_nb.figures.diagrams import feature_weight_matrix

from .test_datasets import tree, write_image  # noqa: F401


@pytest.fixture(autouse=True)
def ignore_worker_warnings():
    """Ignore that DataLoader warns of two workers on a machine with one core."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


# ------------------------------------------------------------------------------------ repaired and changed files


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


def train_until_damaged(path: Path, folder: Path, out: Path) -> str:
    """Train until a damaged file stops the training, then repair the file. Return the run's data fingerprint."""
    whole = path.read_bytes()
    callback = DamageAfterOneEpoch(path)
    with pytest.raises(OSError, match=f"cannot read the image .*{path.name}"):
        train(folder, out, callbacks=[callback])
    path.write_bytes(whole + b"repaired")
    return str(runs.read_settings(out)["data"]["fingerprint"])


def test_training_resumes_after_a_damaged_file_was_repaired(streamed, tmp_path):
    path = streamed / "train" / "class1" / "005.png"
    before = train_until_damaged(path, streamed, tmp_path / "run")
    with pytest.warns(UserWarning, match="1 or more image files changed since .*run.json records this"):
        run = train(streamed, tmp_path / "run", resume=True, callbacks=[DamageAfterOneEpoch(path)])
    assert run.finished and len(run.history) == 3
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert recorded["repaired"] == [{"fingerprint": before, "files": 1}] and recorded["fingerprint"] != before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("sizes", "(3 or more image files changed; at most 2 may change)"),
        ("name", "(other file names, labels, classes or image size)"),
        ("label", "(other file names, labels, classes or image size)"),
    ],
)
def test_resume_still_refuses_other_data(streamed, tmp_path, change, reason):
    path = streamed / "train" / "class1" / "005.png"
    train_until_damaged(path, streamed, tmp_path / "run")
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


def test_repairs_of_several_resumes_add_up(streamed, tmp_path):
    path = streamed / "train" / "class1" / "005.png"
    train_until_damaged(path, streamed, tmp_path / "run")
    settings = runs.read_settings(tmp_path / "run")
    settings["data"]["repaired"] = [{"fingerprint": "0" * 16, "files": 2}]
    runs.write_settings(tmp_path / "run", settings)
    with pytest.raises(ValueError, match="3 or more image files changed; at most 2 may change"):
        train(streamed, tmp_path / "run", resume=True, callbacks=[DamageAfterOneEpoch(path)])


def test_run_from_a_version_that_read_images_differently_is_not_resumed(streamed, tmp_path):
    path = streamed / "train" / "class1" / "005.png"
    train_until_damaged(path, streamed, tmp_path / "run")
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


def test_images_in_memory_have_no_file_fingerprints(tree):  # noqa: F811
    assert file_fingerprints(load_dataset(f"folder:{tree}")) is None


# -------------------------------------------------------------------------------------------------- worker processes


def with_workers(tree: Path, monkeypatch) -> Streamed:  # noqa: F811
    monkeypatch.setattr(folders, "memory_limit", lambda: 0)
    train = load_dataset(f"folder:{tree}", workers=0).train
    assert isinstance(train, Streamed)
    return streaming.dataclasses.replace(train, workers=2)


def kill_workers() -> None:
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)
    time.sleep(0.5)  # until the signal reaches DataLoader


def return_slowly(images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    time.sleep(0.05)
    return images


@pytest.mark.parametrize("augment", [None, partial(views.Augmentation(0, 0, False), epoch=1)])
def test_error_for_full_shared_memory_suggests_a_remedy(tree, monkeypatch, augment):  # noqa: F811
    def fail(_):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    train = with_workers(tree, monkeypatch)
    monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    with pytest.raises(OSError) as error:
        list(train.read([torch.tensor([0, 1])], augment=augment))
    assert str(error.value) == (
        "the shared memory of the worker processes that read images is full: use workers=0 to read "
        "without worker processes, or enlarge it (shm-size of docker)"
    )


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_error_when_shared_memory_is_too_small_for_the_worker_queues(tree, monkeypatch):  # noqa: F811
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    train = with_workers(tree, monkeypatch)
    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", fail)
    with pytest.raises(OSError, match="shared memory .* is full: use workers=0 to read"):
        list(train.read([torch.tensor([0, 1])]))


def test_error_for_a_killed_worker_suggests_a_remedy(tree, monkeypatch):  # noqa: F811
    train = with_workers(tree, monkeypatch)
    images = train.read(torch.arange(3).repeat(20).split(1), augment=return_slowly)
    next(images)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(OSError, match="a worker process that reads images was killed .*: use workers=0 to read"):
        list(images)
    with pytest.raises(OSError) as error, streaming.explain_worker_errors():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ") from None
    assert str(error.value) == (
        "a worker process that reads images was killed (signal: Killed), often because memory ran out: "
        "use workers=0 to read without worker processes"
    )


def test_worker_killed_during_the_forward_pass_gives_the_same_error(tree, monkeypatch):  # noqa: F811
    monkeypatch.setattr(folders, "memory_limit", lambda: 0)
    data = load_dataset(f"folder:{tree}", workers=0)
    data = streaming.dataclasses.replace(data, test=streaming.dataclasses.replace(data.test, workers=2))
    model = pckd.create_model("resnet8", data, seed=0)
    model.register_forward_pre_hook(lambda *_: kill_workers())
    monkeypatch.setattr("pckd_nb.evaluation.PIXELS_PER_BATCH", 1)
    with pytest.raises(OSError, match="a worker process .* was killed .signal: Killed.*workers=0"):
        predict(model, data, accelerator="cpu")


def test_other_errors_are_not_reported_as_worker_errors():
    with pytest.raises(RuntimeError, match="^mat1 and mat2"), streaming.explain_worker_errors():
        torch.zeros(2, 3) @ torch.zeros(2, 3)


# ------------------------------------------------------------------------------------------------- files of a folder


def test_extensions_are_those_of_torchvision():
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert folders.EXTENSIONS == IMG_EXTENSIONS


def test_folder_reads_the_images_torchvision_reads_and_reports_skipped_files(tree, capsys):  # noqa: F811
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
        "files without an image extension (2), such as cat/i.gif",
        "hidden folders (1), such as cat/.cache",
        "hidden images (1), such as cat/._b.png",
        "images outside of the class folders (1), such as loose.png",
        "links to a parent folder (1), such as cat/inner/loop",
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


def test_error_for_a_class_with_only_skipped_files_lists_them(tree):  # noqa: F811
    (tree / "train" / "dog").mkdir()
    (tree / "train" / "dog" / "a.png").symlink_to("nowhere.png")
    with pytest.raises(ValueError, match="dog has no images: .*; skipped: broken links .1., such as a.png"):
        load_dataset(f"folder:{tree}")


# --------------------------------------------------------------------------------------- how an image is displayed


ARROW = np.zeros((8, 8, 3), np.uint8)
ARROW[:4, :4], ARROW[:4, 4:], ARROW[4:, :4] = (250, 0, 0), (0, 250, 0), (0, 0, 250)


def save_turned(path: Path, orientation: int = 6) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if path.suffix == ".webp" else {"quality": 100} if path.suffix == ".jpg" else {}
    Image.fromarray(np.rot90(ARROW, 1).copy()).save(path, exif=exif, **lossless)


def save_transparent(path: Path) -> None:
    pixels = np.dstack([ARROW, np.full((8, 8), 255, np.uint8)])
    pixels[4:, 4:] = 70, 80, 90, 0  # hidden colours
    Image.fromarray(pixels).save(path)


def save_palette(path: Path) -> None:
    image = Image.fromarray(ARROW).quantize(8)
    image.save(path, transparency=image.getpixel((7, 7)))


def save_levels(path: Path, bits: int) -> None:
    Image.fromarray((np.arange(64).reshape(8, 8) * 2 ** (bits - 6)).astype(np.uint16)).save(path)


UPRIGHT = ARROW.astype(int)
ON_WHITE = np.where((np.arange(8) >= 4)[:, None, None] & (np.arange(8) >= 4)[None, :, None], 255, UPRIGHT)
LEVELS = np.repeat(4 * np.arange(64).reshape(8, 8, 1), 3, 2)
DISPLAYED = {
    "turned.jpg": (save_turned, UPRIGHT, 12),
    "turned.png": (save_turned, UPRIGHT, 0),
    "turned.tif": (save_turned, UPRIGHT, 0),
    "turned.webp": (save_turned, UPRIGHT, 0),
    "alpha.png": (save_transparent, ON_WHITE, 0),
    "palette.png": (save_palette, ON_WHITE, 5),
    "8 bits.png": (partial(save_levels, bits=8), LEVELS, 0),
    "12 bits.png": (partial(save_levels, bits=12), LEVELS, 0),
    "16 bits.png": (partial(save_levels, bits=16), LEVELS, 0),
    "12 bits.tif": (partial(save_levels, bits=12), LEVELS, 0),
}


@pytest.mark.parametrize("name", DISPLAYED)
def test_images_are_read_as_displayed_in_memory_and_streamed(tree, monkeypatch, name):  # noqa: F811
    write, expected, tolerance = DISPLAYED[name]
    write(tree / "test" / "cat" / name)
    write(tree / "train" / "cat" / name)
    place = [path.name for path in sorted((tree / "test" / "cat").iterdir())].index(name) + 1
    data = load_dataset(f"folder:{tree}", image_size=8)
    found = data.test.images[place].permute(1, 2, 0).numpy().astype(int)
    middle = np.ix_([1, 2, 5, 6], [1, 2, 5, 6]) if name.endswith("jpg") else ...  # JPEG blurs the colours at edges
    assert abs(found - expected)[middle].max() <= tolerance
    monkeypatch.setattr(folders, "memory_limit", lambda: 0)
    streamed = load_dataset(f"folder:{tree}", image_size=8, workers=0)
    for split in ("train", "test"):
        (images,) = getattr(streamed, split).read([torch.tensor([place])], seed=0, epoch=1)
        assert torch.equal(images[0], getattr(data, split).images[place])
    assert "turned upright by their EXIF data, transparent parts on white" in streamed._repr_html_()
    assert streamed.notes["images"] == data.notes["images"]


def write_grey(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint16)).save(path)


@pytest.mark.parametrize(("largest", "expected"), [(4095, [62, 255]), (65535, [3, 255]), (255, None)])
def test_all_images_with_more_than_8_bits_are_scaled_equally(tmp_path, monkeypatch, largest, expected):
    values = [1000 if expected else 100, largest]
    for part in ("train", "test"):
        for name, value in zip("ab", values, strict=True):
            write_grey(tmp_path / part / name / f"{part}.png", value)
    for limit in (10**9, 0):
        monkeypatch.setattr(folders, "memory_limit", lambda limit=limit: limit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # both parts have the same images
            data = load_dataset(f"folder:{tmp_path}", image_size=8, workers=0)
        images = torch.cat(list(data.test.read([torch.arange(2)])))
        assert images.amax((1, 2, 3)).tolist() == images.amin((1, 2, 3)).tolist() == (expected or values)


def test_image_with_more_bits_than_the_sampled_images_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "DEPTH_SAMPLE_SIZE", 2)
    for part in ("train", "test"):
        for name in "ab":
            for number in range(3):
                write_grey(tmp_path / part / name / f"{number}.png", 5000 if number == 1 else 1000 + number)
    with pytest.raises(OSError, match="it has grey values up to 5000, but other images have 12 bits per pixel"):
        load_dataset(f"folder:{tmp_path}", image_size=8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(tmp_path, orientation):
    stored = {1: ARROW, 2: ARROW[:, ::-1], 3: ARROW[::-1, ::-1], 4: ARROW[::-1], 5: ARROW.transpose(1, 0, 2),
              6: np.rot90(ARROW, 1), 7: np.rot90(ARROW, 2).transpose(1, 0, 2), 8: np.rot90(ARROW, -1)}  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored[orientation])).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(streaming.read_image(tmp_path / "a.png", partial(streaming.resize_and_crop, side=8)), ARROW)


def test_image_with_damaged_exif_data_is_read(tmp_path):
    Image.fromarray(ARROW).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff")
    assert np.array_equal(streaming.read_image(tmp_path / "a.png", partial(streaming.resize_and_crop, side=8)), ARROW)


def test_transparent_images_of_a_torch_data_set_are_put_on_white():
    pixels = np.dstack([ARROW, np.full((8, 8), 255, np.uint8)])
    pixels[4:, 4:] = 70, 80, 90, 0
    pairs = [(Image.fromarray(pixels), 0), (Image.fromarray(pixels), 1)]
    data = Dataset.from_torch(pairs, pairs)
    assert np.array_equal(data.train.images[0].permute(1, 2, 0), ON_WHITE)


# ------------------------------------------------------------------------------------------------- folders and names


@pytest.mark.parametrize("place", ["train", "train/new", "test/cat/run"])
def test_output_folder_among_the_images_is_refused(tree, data, teacher, capsys, monkeypatch, place):  # noqa: F811
    before = sorted(tree.rglob("*"))
    arguments = ["--data", f"folder:{tree}", "--model", "resnet8", "--out", str(tree / place)]
    assert main(["train", *arguments]) == 2
    message = f"pckd-nb: '{tree / place}' is among the images of folder:{tree}, in '{tree / place.split('/')[0]}'"
    assert capsys.readouterr().err.strip() == f"{message}: choose a folder elsewhere"
    loaded = load_dataset(f"folder:{tree}")
    student = pckd.create_model("resnet8", loaded, seed=0)
    for option in ("out", "teacher_cache"):
        with pytest.raises(ValueError, match="is among the images of folder"):
            pckd.distill(student, None, loaded, "supervised", "classroom", **{option: tree / place})
    monkeypatch.chdir(tree)
    with pytest.raises(ValueError, match="is among the images of folder"):
        pckd.fit(student, loaded, out=place)
    assert sorted(tree.rglob("*")) == before


def test_output_folder_beside_the_images_is_accepted(tree):  # noqa: F811
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


def test_a_refused_download_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "RETRY_PAUSES", ())
    root = tmp_path / "new" / "root"
    with pytest.raises(OSError):
        downloads.download("https://localhost:9/nothing.zip", root / "nothing.zip", lambda path: None)
    assert not (tmp_path / "new").exists()
    root.mkdir(parents=True)
    with pytest.raises(OSError):
        downloads.download("https://localhost:9/nothing.zip", root / "nothing.zip", lambda path: None)
    assert root.is_dir(), "an existing folder is kept"


# ------------------------------------------------------------------------------------------ messages of one line


def test_errors_print_numpy_numbers_as_plain_numbers(data):
    pair = np.zeros((2, 8, 8), np.uint8), [0, 1]
    with pytest.raises(ValueError, match=r"std.0 must be greater than 0, got -1\.0$"):
        Dataset.from_arrays(pair, pair, mean=[0.5], std=[np.float64(-1)])
    model = pckd.create_model("resnet8", data, seed=0)
    with pytest.raises(ValueError, match=r"got \(0\.5,\) and \(-1\.0,\)$"):
        pckd.with_preprocessing(model, data, mean=np.array([0.5]), std=np.array([-1.0]))
    with pytest.raises(ValueError, match=r"got \(0, 8\)$"):
        pckd.with_preprocessing(model, data, size=(np.int16(0), np.int16(8)))
    assert pckd.with_preprocessing(model, data, size=np.array([8, 8])) is model


def test_error_prints_numpy_classes_as_plain_numbers(data, recipe):
    run = pckd.fit(pckd.create_model("resnet8", data, seed=0), data, recipe, progress=False, accelerator="cpu")
    with pytest.raises(ValueError, match=r"got \[0\]$"):
        feature_weight_matrix(run, classes=np.array([0], np.int16))


def test_neighbourhood_purity_needs_two_samples():
    with pytest.raises(ValueError, match="^features must have 2 rows or more, one per sample, got 1$"):
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
    "None": (None, TypeError, "labels must be a list with one number or name per image, got NoneType"),
    "text": ("abcabc", TypeError, "labels must be a list with one number or name per image, got str"),
    "one number": (np.array(1), TypeError, "labels must be a list with one number or name per image, got ndarray"),
    "a None": ([0, 1, None, 0, 1, 2], ValueError, "every image needs a label, but the label of image 2 is None"),
    "nan": (
        np.array([0, 1, np.nan, 0, 1, 2]),
        ValueError,
        "every image needs a label, but the label of image 2 is nan",
    ),
    "nan in names": (
        np.array([*"ab", np.nan] * 2, object),
        ValueError,
        "every image needs a label, but the label of image 2 is",
    ),
    "floats": (np.array(NUMBERS, float), TypeError, "labels must be whole numbers or names, got 0.0 for image 0"),
    "truth": ([True] * 6, TypeError, "labels must be whole numbers or names, got True for image 0"),
    "bytes": ([b"a"] * 6, TypeError, "labels must be whole numbers or names, got b'a' for image 0"),
    "mixed": (np.array(["a", 1] * 3, object), TypeError, "labels must be all numbers or all names, got 'a' and 1"),
    "fewer": ([0, 1, 2], ValueError, "there must be one label per image, got 6 images and 3 labels"),
    "more": (NUMBERS * 2, ValueError, "there must be one label per image, got 6 images and 12 labels"),
    "one-hot": (np.eye(3)[NUMBERS], TypeError, "labels must be one number or name per image: convert one-hot labels"),
    "negative": ([-1, 1, 2] * 2, ValueError, "labels of train must be from 0 to 2, got -1 to 2"),
}


@pytest.mark.parametrize("what", GOOD_LABELS)
def test_labels_of_many_types_are_accepted(what):
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


NAMES_AND_NUMBERS = "labels of train are names, but labels of test are numbers: pass all names as classes"
NUMBERS_AND_NAMES = "labels of test are names, but labels of train are numbers: pass all names as classes"


def test_names_in_one_split_and_numbers_in_the_other_need_classes():
    with pytest.raises(TypeError, match=f"^{NAMES_AND_NUMBERS}$"):
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
    "no images": (IMAGES[:0], ValueError, "there must be one label per image, got 0 images and 6 labels"),
}


@pytest.mark.parametrize("what", BAD_IMAGES)
def test_wrong_images_are_refused_in_one_line(what):
    images, kind, message = BAD_IMAGES[what]
    with pytest.raises(kind) as error:
        Dataset.from_arrays((images, NUMBERS), (IMAGES, NUMBERS))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize("images", [IMAGES[:, ::-1], torch.from_numpy(IMAGES).to_sparse(), IMAGES.astype(">f4") / 255])
def test_unusual_memory_layouts_are_accepted(images):
    data = Dataset.from_arrays((images, NUMBERS), (IMAGES, NUMBERS))
    expected = images.to_dense() if isinstance(images, torch.Tensor) else torch.from_numpy(images.astype(np.float64))
    scale = 255 if expected.max() <= 1 else 1
    assert torch.equal(data.train.images[:, 0], (expected * scale).round().to(torch.uint8))


class Items(list):
    """A torch data set whose length may be wrong."""

    length = 6

    def __len__(self) -> int:
        return self.length


PICTURES = [torch.from_numpy(image)[None] for image in IMAGES]
BAD_ITEMS = {
    "no pairs": (Items(PICTURES), TypeError, "items of train must be pairs (image, label), got Tensor"),
    "mappings": (Items([{"image": 1}] * 6), TypeError, "items of train must be pairs (image, label), got dict"),
    "fewer": (Items(zip(PICTURES[:3], NUMBERS, strict=False)), ValueError,
              "train has length 6, but reading item 3 failed: list index out of range"),
    "None": (Items((image, None) for image in PICTURES), ValueError,
             "every image needs a label, but the label of image 0"),
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
        ({"table": "empty.csv"}, ValueError, "'empty.csv' is not a table of comma-separated values (No columns"),
        ({"image_size": "x"}, TypeError, "image_size must be a whole number, got 'x'"),
        ({"workers": "x"}, TypeError, "workers must be a whole number, got 'x'"),
        ({"classes": "ab"}, TypeError, "classes must be a list of names, in the order of the label numbers, got str"),
        ({"image": "class"}, FileNotFoundError, "4 of 4 images do not exist, the first is"),
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
def test_root_that_is_not_a_path_is_refused(root):
    with pytest.raises(TypeError, match=f"^root must be a path, got {type(root).__name__}$"):
        load_dataset("digits", root)


@pytest.mark.parametrize("labels", [None, np.array([None, None])])
def test_split_labels_that_are_not_numbers_are_refused(labels):
    with pytest.raises(TypeError, match="^labels must be whole numbers of shape .N,., got"):
        Split(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), labels)


# ------------------------------------------------------------------------------- which class a number or a name means


@pytest.fixture
def abc(tmp_path) -> Path:
    """Six training and four test images of each class, a, b and c, and a second test folder without class a."""
    random = np.random.default_rng(0)
    for part, count, names in (("train", 6, "abc"), ("test", 4, "abc"), ("test_bc", 4, "bc")):
        for name in names:
            for number in range(count):
                path = tmp_path / part / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return tmp_path


def torch_folder(path: Path) -> ImageFolder:
    return ImageFolder(path, pil_to_tensor)


WRAPPED = {
    "itself": lambda images: images,
    "part": lambda images: random_split(images, [15, 3], torch.Generator().manual_seed(0))[0],
    "part of a part": lambda images: Subset(Subset(images, range(17)), range(16)),
    "two parts": lambda images: ConcatDataset([Subset(images, range(8)), Subset(images, range(8, 18))]),
    "part of two": lambda images: Subset(ConcatDataset([images, images]), range(3, 18)),
}


@pytest.mark.parametrize("what", WRAPPED)
def test_class_names_are_found_inside_wrapped_torch_data_sets(abc, what):
    images = torch_folder(abc / "train")
    chosen = WRAPPED[what](images)
    data = Dataset.from_torch(chosen, torch_folder(abc / "test"))
    assert data.classes == ("a", "b", "c")
    assert data.train.labels.tolist() == [label for _, label in chosen]
    assert data.test.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    swapped = Dataset.from_torch(images, Subset(torch_folder(abc / "test_bc"), range(2, 7)), val=chosen)
    assert swapped.test.labels.tolist() == [1, 1, 2, 2, 2], "the test folder counts b as 0"
    assert swapped.val.labels.tolist() == data.train.labels.tolist()


def test_combined_data_sets_with_different_classes_are_refused(abc):
    mixed = ConcatDataset([torch_folder(abc / "train"), torch_folder(abc / "test_bc")])
    with pytest.raises(ValueError) as error:
        Dataset.from_torch(mixed, torch_folder(abc / "test"))
    assert str(error.value) == (
        "train combines data sets with different classes, a, b, c and b, c: give all of them the same classes"
    )


def test_torch_data_sets_with_names_and_numbers_need_classes(abc):
    named, numbers = torch_folder(abc / "train"), [(torch.full((3, 8, 8), 9 * n, dtype=torch.uint8), n) for n in (2, 1)]
    with pytest.raises(TypeError, match=f"^{NAMES_AND_NUMBERS}$"):
        Dataset.from_torch(named, numbers)
    with pytest.raises(TypeError, match=f"^{NUMBERS_AND_NAMES}$"):
        Dataset.from_torch(numbers, Subset(named, [0]))
    data = Dataset.from_torch(named, numbers, classes=["c", "b", "a"])
    assert data.train.labels.tolist() == [2] * 6 + [1] * 6 + [0] * 6 and data.test.labels.tolist() == [2, 1]


@pytest.mark.parametrize("labels", [[0, 3], [-1, 1]])
def test_label_without_a_class_name_is_refused(abc, labels):
    class Wrong(TensorDataset):
        classes = ["a", "b", "c"]

    wrong = Wrong(torch.rand(2, 3, 8, 8), torch.tensor(labels))
    with pytest.raises(ValueError) as error:
        Dataset.from_torch(torch_folder(abc / "train"), wrong)
    found = f"{labels[0]} to {labels[1]}"
    assert str(error.value) == f"labels of test must be from 0 to 2, because it has 3 classes, got {found}"


def test_numbers_and_numbers_as_text_are_refused_together():
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    numbers = np.arange(40) % 12
    with pytest.raises(TypeError, match=f"^{NUMBERS_AND_NAMES}$"):
        Dataset.from_arrays((images, numbers), (images, [str(number) for number in numbers]))


NOT_TRAINED = "test has classes that are not in train: c"


def test_classes_missing_from_train_are_refused(abc):
    pair = IMAGES, [*"abcabc"]
    for name, labels in (("test", NUMBERS), ("val", [0, 2, 2, 2, 2, 2])):
        parts = {"test": pair, name: (IMAGES, ["abc"[number] for number in labels])}
        with pytest.raises(ValueError) as error:
            Dataset.from_arrays((IMAGES, [*"abaaba"]), parts.pop("test"), **parts)
        assert str(error.value) == NOT_TRAINED
    with pytest.raises(ValueError, match="^val has classes that are not in train: c$"):
        Dataset.from_arrays((IMAGES, [*"abaaba"]), (IMAGES, [*"abaaba"]), val=pair)
    with pytest.raises(ValueError, match=f"^{NOT_TRAINED}$"):
        Dataset.from_arrays((IMAGES, [0, 1] * 3), (IMAGES, NUMBERS), classes=["a", "b", "c"])
    with pytest.raises(ValueError, match="^test has classes that are not in train: 2$"):
        Dataset.from_arrays((IMAGES, [0, 1] * 3), (IMAGES, NUMBERS))
    with pytest.raises(ValueError, match=f"^{NOT_TRAINED}$"):
        Dataset.from_torch(Subset(torch_folder(abc / "train"), range(12)), torch_folder(abc / "test"))
    rows = [
        (f"{part}/{name}/0.png", name, part) for part, names in (("train", "ab"), ("test", "abc")) for name in names
    ]
    with pytest.raises(ValueError, match=f"^{NOT_TRAINED}$"):
        Dataset.from_table(pd.DataFrame(rows, columns=["path", "class", "split"]), root=abc)


def test_class_without_training_images_gives_a_warning():
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8), np.uint8)
    with pytest.warns(UserWarning) as caught:
        data = Dataset.from_arrays((images[:6], [1, 2, 3] * 2), (images[6:], [1, 2, 3]))
    assert data.classes == ("0", "1", "2", "3")
    assert [str(warning.message) for warning in caught] == [
        "train has no images of 1 of 4 classes, such as '0': add images, or number the labels from 0 without gaps"
    ]
    assert caught[0].filename == __file__


# -------------------------------------------------------------------------------------------------- cells of a table


def write_table(folder: Path, classes: list, paths: list[str] | None = None, **options) -> Path:
    """Write a table with one training and one test image per class. Each image has its own colour."""
    rows, colour = [], 0
    for part in ("train", "test"):
        for number, label in enumerate(classes):
            path = paths[len(rows)] if paths else f"{part}{number}"
            colour += 1
            with open(folder / path, "wb") as file:
                Image.new("RGB", (8, 8), (colour, 9, 9)).save(file, format="PNG")
            rows.append((path, label, part))
    pd.DataFrame(rows, columns=["path", "class", "split"]).to_csv(folder / "table.csv", index=False, **options)
    return folder / "table.csv"


CLASSES_IN_A_TABLE = {  # as written in the file → names of the classes
    "leading zeros": (["002", "001", "010"], ("001", "002", "010")),
    "zip codes": (["80331", "20095", "10115"], ("10115", "20095", "80331")),
    "numbers from 1": (["1", "2", "3"], ("1", "2", "3")),
    "numbers from 0": ([*map(str, range(12))], tuple(map(str, range(12)))),
    "missing values for pandas": (["NA", "None", "null", "nan"], ("NA", "None", "nan", "null")),
    "booleans for pandas": (["True", "False"], ("False", "True")),
    "numbers and names": (["10", "9", "b"], ("10", "9", "b")),
}


@pytest.mark.parametrize("what", CLASSES_IN_A_TABLE)
def test_class_names_of_a_table_are_kept_as_written(tmp_path, what):
    written, classes = CLASSES_IN_A_TABLE[what]
    data = Dataset.from_table(write_table(tmp_path, written), image_size=8)
    assert data.classes == classes
    for split in (data.train, data.test):
        assert [classes[label] for label in split.labels.tolist()] == written


@pytest.mark.parametrize(
    ("written", "classes"),
    [([10115, 80331, 20095], ("10115", "20095", "80331")), ([1, 2, 3], ("1", "2", "3")), ([0, 2, 10], ("0", "2", "10")),
     ([0, 1, 2], ("0", "1", "2"))],
)  # fmt: skip
def test_numbers_in_a_data_frame_are_class_names(tmp_path, written, classes):
    rows = pd.read_csv(write_table(tmp_path, written), dtype={"path": str})
    assert rows["class"].dtype == np.int64
    data = Dataset.from_table(rows, root=tmp_path, image_size=8)
    assert data.classes == classes and data.test.labels.tolist() == [classes.index(str(label)) for label in written]


def test_numbers_in_a_table_are_positions_if_classes_are_given(tmp_path):
    table = write_table(tmp_path, [1, 0])
    for given in (table, pd.read_csv(table)):
        data = Dataset.from_table(given, root=tmp_path, image_size=8, classes=["cat", "dog"])
        assert data.classes == ("cat", "dog") and data.train.labels.tolist() == [1, 0]
    assert Dataset.from_table(table, image_size=8, classes=["1", "0"]).train.labels.tolist() == [0, 1]


def test_image_names_may_be_numbers(tmp_path):
    table = write_table(tmp_path, ["a", "b"], ["000", "001", "002", "003"])
    assert Dataset.from_table(table, image_size=8).test.ids.tolist() == [b"002", b"003"]
    rows = pd.read_csv(write_table(tmp_path, ["a", "b"], ["0", "1", "2", "3"]))
    assert rows["path"].dtype == np.int64
    assert Dataset.from_table(rows, root=tmp_path, image_size=8).test.images[1, 0, 0, 0] == 4


@pytest.mark.parametrize("empty", ["", " "])
@pytest.mark.parametrize("column", ["path", "class", "split"])
def test_empty_cells_of_a_table_are_refused(tmp_path, column, empty):
    table = write_table(tmp_path, ["a", "b"])
    rows = pd.read_csv(table, dtype=str)
    rows.loc[1, column] = empty
    rows.to_csv(table, index=False)
    message = f"has empty cells in column '{column}' in 1 of 4 rows, the first is row 2"
    with pytest.raises(ValueError) as error:
        Dataset.from_table(table)
    assert str(error.value) == f"'{table}' {message}"
    with pytest.raises(ValueError) as error:
        Dataset.from_table(rows.replace({column: {empty: None}}))
    assert str(error.value) == f"the table {message}"


def write_spreadsheet(path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>" * 50)


NO_TABLE = {
    "cp1252": lambda path: path.write_bytes("path,class,split\na,Bär,train\n".encode("cp1252")),
    "UTF-16": lambda path: path.write_bytes("path,class,split\na,Bär,train\n".encode("utf-16")),
    "image": lambda path: Image.new("RGB", (64, 64), (200, 0, 0)).save(path, format="PNG"),
    "spreadsheet": write_spreadsheet,
    "empty": lambda path: path.touch(),
    "ragged": lambda path: path.write_text("path,class,split\n" + "a,b\n" * 3 + '"a,b,c,d\n'),
}


@pytest.mark.parametrize("what", NO_TABLE)
def test_error_for_a_file_that_is_not_a_table_suggests_a_remedy(tmp_path, what):
    path = tmp_path / "birds.csv"
    NO_TABLE[what](path)
    with pytest.raises(ValueError) as error:
        Dataset.from_table(path)
    assert str(error.value).startswith(f"'{path}' is not a table of comma-separated values (")
    assert str(error.value).endswith("): save it as CSV in UTF-8") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ([["a.png", "a", "train"]], TypeError, "DataFrame, got list: convert it with pandas.DataFrame(table)"),
        ({"path": ["a.png"]}, TypeError, "DataFrame, got dict: convert it with pandas.DataFrame(table)"),
        (pd.DataFrame({"path": [], "class": [], "split": []}), ValueError, "the table has no rows"),
        (pd.DataFrame([[1, 2, 3, 4]], columns=["path", "class", "class", "split"]), ValueError,
         "the table has two columns 'class': remove one of them"),
        (pd.DataFrame({"file": []}), ValueError, "the table has no column 'path', its columns are file"),
    ],
)  # fmt: skip
def test_wrong_tables_are_refused_in_one_line(given, kind, message):
    with pytest.raises(kind) as error:
        Dataset.from_table(given)
    assert str(error.value).endswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "kind", "message"),
    [
        ({"image_size": 0}, ValueError, "image_size must be at least 8, got 0"),
        ({"image_size": -3}, ValueError, "image_size must be at least 8, got -3"),
        ({"image_size": 4}, ValueError, "image_size must be at least 8, got 4"),
        ({"image_size": "32"}, TypeError, "image_size must be a whole number, got '32'"),
        ({"workers": -1}, ValueError, "workers must be at least 0, got -1"),
    ],
)
def test_sizes_of_a_table_are_checked(tmp_path, option, kind, message):
    with pytest.raises(kind) as error:
        Dataset.from_table(write_table(tmp_path, ["a", "b"]), **option)
    assert str(error.value) == message


def test_trailing_commas_do_not_shift_columns(tmp_path):
    table = write_table(tmp_path, ["a", "b"])
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header, *(f"{row}," for row in rows)]))
    assert Dataset.from_table(table, image_size=8).classes == ("a", "b")


@pytest.mark.parametrize("other", ["a ", " a", "a\xa0", "a\t"])
def test_class_names_that_differ_in_spaces_are_refused(tmp_path, other):
    with pytest.raises(ValueError) as error:
        Dataset.from_table(write_table(tmp_path, ["a", "b", other]))
    one, two = sorted(["a", other])
    assert str(error.value) == f"the classes {ascii(one)} and {ascii(two)} look the same: rename one of them"


# ------------------------------------------------------------------------------------------- invalid splits


def test_labels_of_shape_n_1_are_accepted():
    column = np.array(NUMBERS)[:, None]
    for labels in (column, torch.from_numpy(column), column.tolist(), pd.DataFrame({"class": NUMBERS})):
        assert Dataset.from_arrays((IMAGES, labels), (IMAGES, labels)).train.labels.tolist() == NUMBERS
    names = np.array([*"abcabc"])[:, None]
    assert Dataset.from_arrays((IMAGES, names), (IMAGES, names)).test.labels.tolist() == NUMBERS
    pixels = torch.zeros(6, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"shape .N,., got torch.int64 of shape .6, 1.: pass labels\[:, 0\]$"):
        Split(pixels, column)
    with pytest.raises(TypeError, match=r"convert one-hot labels with labels\.argmax\(1\)$"):
        Split(pixels, np.eye(3, dtype=int)[NUMBERS])


@pytest.mark.parametrize("given", ["images/train", {"a": 1}, b"images", [{"image": 1, "label": 0}]])
def test_objects_that_are_not_torch_data_sets_are_refused_in_one_line(given):
    good = Items(zip(PICTURES, NUMBERS, strict=True))
    with pytest.raises(TypeError) as error:
        Dataset.from_torch(given, good)
    kind = type(given).__name__
    no_data_set = f"train must be a torch.utils.data.Dataset with __getitem__ and __len__, got {kind}"
    no_pair = "items of train must be pairs (image, label), got dict"
    assert str(error.value) == (no_pair if kind == "list" else no_data_set)


def test_error_names_the_missing_item_of_a_torch_data_set():
    class Keys(Items):
        def __getitem__(self, row):
            return {"first": (PICTURES[0], 0)}[row]

    with pytest.raises(ValueError, match="^train has length 6, but reading item 0 failed: 0$"):
        Dataset.from_torch(Keys(), Items(zip(PICTURES, NUMBERS, strict=True)))


SCALES = [((123, 117, 104), (58, 57, 57)), ((0.5, 0.5, 0.5), (58.0, 57.0, 57.0)), ((-0.1, 0.5, 0.5), (0.2, 0.2, 0.2))]


@pytest.mark.parametrize(("mean", "std"), SCALES)
def test_mean_and_std_outside_the_pixel_range_are_refused(mean, std):
    images = np.zeros((3, 8, 8, 3), np.uint8)
    message = r"^mean must be in \[0, 1\] and std at most 1, got .*: if pixels are in \[0, 255\], divide both by 255$"
    with pytest.raises(ValueError, match=message):
        Dataset.from_arrays((images, [0, 1, 2]), (images, [0, 1, 2]), mean=mean, std=std)
    data = Dataset.from_arrays((images, [0, 1, 2]), (images, [0, 1, 2]), mean=(0, 0.5, 1), std=(1, 1 / 255, 0.5))
    with pytest.raises(ValueError, match=message):
        pckd.with_preprocessing(pckd.create_model("resnet8", data, seed=0), data, mean=mean, std=std)
    with pytest.raises(ValueError, match=message):
        pckd.catalogue.read_normalisation("/".join(",".join(map(str, part)) for part in (mean, std)))


# ---------------------------------------------------------------------------------------- validation and shared images


def test_a_validation_folder_is_the_validation_split(abc, capsys):
    name = f"folder:{abc}"
    before = load_dataset(name)
    assert before.val is None
    (abc / "test_bc").rename(abc / "val")
    data = load_dataset(name, image_size=8)
    assert data.held_out == ("test", "val") and data.val.labels.tolist() == [1] * 4 + [2] * 4
    assert data.mean == before.mean and data.std == before.std and torch.equal(data.train.images, before.train.images)
    assert data.fingerprint != before.fingerprint
    message = f"{name} already has a validation split of 8 images: do not pass val"
    with pytest.raises(ValueError) as error:
        load_dataset(name, val=0.2)
    assert str(error.value) == message
    arguments = ["train", "--data", name, "--model", "resnet8", "--epochs", "1", "--accelerator", "cpu"]
    assert main([*arguments, "--val", "0.2", "--out", str(abc / "no")]) == 2
    assert capsys.readouterr().err.strip() == f"pckd-nb: {message}" and not (abc / "no").exists()
    assert main([*arguments, "--out", str(abc / "run")]) == 0
    run = pckd.load_run(abc / "run")
    assert "val_top1" in run.history and run.settings["data"]["val_images"] == 8
    write_image(abc / "val" / "dog" / "a.png")
    with pytest.raises(ValueError, match="val has class folders that are not in train: dog; rename or remove them$"):
        load_dataset(name)


def test_splits_too_big_for_memory_together_are_streamed(abc, monkeypatch):
    (abc / "test_bc").rename(abc / "val")
    whole = load_dataset(f"folder:{abc}")
    monkeypatch.setattr(folders, "memory_limit", lambda: len(whole.train.images.ravel()) * 30 / 18)
    data = load_dataset(f"folder:{abc}", workers=0)
    assert all(isinstance(split, Streamed) for split in (data.train, data.test, data.val)), "38 images, room for 30"
    (images,) = data.val.read([torch.arange(8)])
    assert torch.equal(images, whole.val.images)


@pytest.mark.parametrize("limit", [0, 10**9])
def test_images_in_two_splits_give_a_warning(abc, monkeypatch, limit):
    monkeypatch.setattr(folders, "memory_limit", lambda: limit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_dataset(f"folder:{abc}", workers=0)
    (abc / "test_bc").rename(abc / "val")
    for number in range(3):
        copy = (abc / "train" / "a" / f"{number}.png").read_bytes()
        (abc / "test" / "b" / f"copy{number}.png").write_bytes(copy)
    (abc / "val" / "b" / "0.png").write_bytes((abc / "train" / "b" / "0.png").read_bytes())
    with pytest.warns(UserWarning) as caught:
        load_dataset(f"folder:{abc}", workers=0)
    assert [(str(warning.message), warning.filename) for warning in caught] == [
        ("3 of 15 test images are also in train: remove them from one split", __file__),
        ("1 of 8 val images are also in train: remove them from one split", __file__),
    ]


def test_many_streamed_files_are_not_compared(abc, monkeypatch):
    monkeypatch.setattr(folders, "memory_limit", lambda: 0)
    (abc / "test" / "b" / "copy.png").write_bytes((abc / "train" / "a" / "0.png").read_bytes())
    with pytest.warns(UserWarning, match="^1 of 13 test images are also in train: remove them from one split$"):
        load_dataset(f"folder:{abc}", workers=0)
    monkeypatch.setattr("pckd_nb.data.checks.MAX_COMPARED_FILES", 31)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_dataset(f"folder:{abc}", workers=0)


def test_shared_images_of_custom_data_give_a_warning(abc):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8), np.uint8)
    labels = [0, 1, 2] * 4
    folder = torch_folder(abc / "train")
    table = write_table(abc, ["a", "b"])
    rows = pd.read_csv(table)
    rows.loc[3, "path"] = "train0"
    for make, message in (
        (lambda: Dataset.from_arrays((images[:9], labels[:9]), (images[6:], labels[6:])), "3 of 6"),
        (lambda: Dataset.from_torch(folder, Subset(folder, [0, 7])), "2 of 2"),
        (lambda: Dataset.from_table(rows, root=abc, image_size=8), "1 of 2"),
    ):
        with pytest.warns(UserWarning) as caught:
            make()
        found = [(str(warning.message), warning.filename) for warning in caught]
        assert found == [(f"{message} test images are also in train: remove them from one split", __file__)]


def test_a_test_folder_that_is_the_training_folder_is_refused(tree):  # noqa: F811
    (tree / "test").rename(tree / "unused")
    (tree / "test").symlink_to("train")
    with pytest.raises(ValueError) as error:
        load_dataset(f"folder:{tree}")
    assert str(error.value) == (
        f"{tree / 'test'} and {tree / 'train'} are the same folder: use different images for each split"
    )


def test_test_images_of_only_one_class_give_a_warning(abc):
    for name in "bc":
        (abc / "test" / name).rename(abc / f"no {name}")
    message = "^test has images of only one class, 'a': check its labels$"
    with pytest.warns(UserWarning, match=message):
        load_dataset(f"folder:{abc}")
    with pytest.warns(UserWarning, match=message):
        Dataset.from_torch(torch_folder(abc / "train"), torch_folder(abc / "test"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied", "x"), "Permission denied): get permission to read it"),
        (OSError(5, "Input/output error", "x"), "Input/output error): check the disk"),
        (OSError("image file is truncated"), "image file is truncated): replace it"),
    ],
)
def test_error_says_why_a_file_could_not_be_read(tree, monkeypatch, error, message):  # noqa: F811
    def fail(path):
        raise error

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError) as caught:
        load_dataset(f"folder:{tree}", image_size=8)
    assert str(caught.value) == f"cannot read the image {tree / 'train' / 'ant' / 'a.png'} ({message}"
