"""Splits that are read from files: images do not depend on the batch or the worker, and no process is left running."""

import multiprocessing
import os
import pickle
import signal
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pckd_nb import views
from pckd_nb.data import streaming as streams
from pckd_nb.data.streaming import Streamed


@pytest.fixture(autouse=True)
def few_cores():
    """Ignore the warning of DataLoader about two workers on a machine with one core."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


def make_split(folder: Path, count: int = 12, **options) -> Streamed:
    rng = np.random.default_rng(0)
    names = [f"{row:02} ä.png" for row in range(count)]
    for row, name in enumerate(names):
        pixels = rng.integers(0, 256, (20 + row, 30 - row, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    names = np.array([os.fsencode(name) for name in names])
    return Streamed(folder, names, torch.arange(count) % 3, **{"side": 16, "workers": 0, **options})


def with_workers(split: Streamed, workers: int) -> Streamed:
    return streams.dataclasses.replace(split, workers=workers)


def read_by_index(split: Streamed, batches: list[list[int]], **when) -> dict[int, torch.Tensor]:
    images = torch.cat(list(split.read([torch.tensor(batch) for batch in batches], **when)))
    return dict(zip(sum(batches, []), images, strict=True))


def all_equal(one: dict[int, torch.Tensor], two: dict[int, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[row], two[row]) for row in one)


def test_split_attributes_and_take(tmp_path):
    split = make_split(tmp_path)
    assert len(split) == 12 and split.shape == (3, 16, 16) and split.device.type == "cpu"
    assert split.padding == 2 and make_split(tmp_path, random_crop=True).padding == 0 and split.difficulty is None
    assert split.to("meta").device.type == "meta" and split.path(3) == tmp_path / "03 ä.png"
    part = split.take(np.array([7, 2]))
    assert part.labels.tolist() == [1, 2] and part.path(0).name == "07 ä.png"
    (images,) = part.read([torch.tensor([1, 0])])
    assert images.dtype == torch.uint8 and torch.equal(images, next(split.read([torch.tensor([2, 7])])))


def test_random_crop_depends_only_on_seed_epoch_and_index(tmp_path):
    split = make_split(tmp_path, random_crop=True)
    first = read_by_index(split, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]], seed=1, epoch=1)
    other_batches = [[11, 3], [7], [5, 0, 8, 1, 9], [2, 10, 4, 6]]
    assert all_equal(first, read_by_index(split, other_batches, seed=1, epoch=1))
    assert all_equal(first, read_by_index(with_workers(split, 2), other_batches, seed=1, epoch=1))
    for other in ({"seed": 1, "epoch": 2}, {"seed": 2, "epoch": 1}):
        changed = read_by_index(split, [list(range(12))], **other)
        assert not any(torch.equal(first[row], changed[row]) for row in range(12))
    twice = read_by_index(split.take(np.zeros(2, np.int64)), [[0, 1]], seed=1, epoch=1)
    assert torch.equal(twice[0], first[0]) and not torch.equal(twice[0], twice[1]), "crops differ between samples"


def test_random_crop_matches_torchvision(tmp_path):
    from torchvision.transforms import v2

    split = make_split(tmp_path, random_crop=True)
    image = Image.open(split.path(4))
    bits = views.random_bits(5, 6, torch.tensor([4]), streams.CROP_STREAM)
    with torch.random.fork_rng():
        torch.manual_seed(bits.item())
        expected = v2.functional.pil_to_tensor(v2.RandomResizedCrop(16)(image))
    assert torch.equal(read_by_index(split, [[4]], seed=5, epoch=6)[4], expected)
    assert streams.CROP_STREAM not in (views.ORDER, views.SHIFT_Y, views.SHIFT_X, views.FLIP)


def test_without_an_epoch_the_center_is_cropped(tmp_path):
    from torchvision.transforms import v2

    split = make_split(tmp_path, random_crop=True)
    image = Image.open(split.path(4))
    expected = v2.functional.pil_to_tensor(v2.CenterCrop(16)(v2.Resize(18)(image)))
    assert torch.equal(read_by_index(split, [[3, 4]])[4], expected)


def test_without_random_crop_the_epoch_does_not_matter(tmp_path):
    split = make_split(tmp_path)
    images = read_by_index(split, [[0, 4], [2]])
    assert all_equal(images, read_by_index(split, [[2, 0, 4]], seed=1, epoch=3))
    fitted = streams.read_image(split.path(4), lambda image: streams.resize_and_crop(image, 16))
    assert np.array_equal(images[4].permute(1, 2, 0), fitted)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "LA", "1", "I;16"])
@pytest.mark.parametrize("random_crop", [False, True])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode, random_crop):
    split = make_split(tmp_path, 1, random_crop=random_crop)
    image = Image.new("L" if mode == "I;16" else "RGB", (20, 24), 90).convert(mode)
    image.save(split.path(0), "jpeg" if mode == "CMYK" else "png")
    for epoch in (None, 1):
        assert read_by_index(split, [[0]], seed=0, epoch=epoch)[0].shape == (3, 16, 16)


def test_random_state_of_the_caller_stays_unchanged(tmp_path):
    split = make_split(tmp_path, random_crop=True)
    before = torch.get_rng_state()
    for workers in (0, 1):
        read_by_index(with_workers(split, workers), [[0, 1]], seed=1, epoch=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_is_named_in_one_line(tmp_path, workers):
    split = make_split(tmp_path, workers=workers)
    whole = split.path(5).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"no image"):
        split.path(5).write_bytes(damaged)
        images = split.read(torch.arange(12).split(2))
        with pytest.raises(OSError) as error:
            list(images)
        text = str(error.value)
        assert type(error.value) is OSError and "\n" not in text
        assert text.startswith(f"cannot read the image {split.path(5)} (") and text.endswith("): replace it")
        assert multiprocessing.active_children() == [], "workers must stop even while the exception is still referenced"


def test_leaving_the_loop_early_stops_the_workers(tmp_path):
    split = make_split(tmp_path, workers=2, random_crop=True)
    for index, images in zip(batches := torch.arange(12).split(1), split.read(batches, seed=0, epoch=1), strict=True):
        assert len(images) == 1 and len(multiprocessing.active_children()) == 2
        if index == 3:
            break
    assert multiprocessing.active_children() == []

    started = split.read(batches, seed=0, epoch=1)
    next(started)
    started.close()
    assert multiprocessing.active_children() == []


def test_workers_ignore_ctrl_c(tmp_path):
    split = make_split(tmp_path, workers=2)
    images = split.read(torch.arange(12).split(1))
    for _ in range(2):  # one batch from each worker, so both have started
        next(images)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGINT)
    time.sleep(0.1)
    assert len(list(images)) == 10


def test_objects_for_workers_can_be_pickled(tmp_path, monkeypatch):
    """Without fork, Python pickles everything for the workers. Labels are left out, since they may be on a GPU."""
    augment = partial(views.Augmentation(1, 2, True), epoch=1)
    reader = streams._Reader(make_split(tmp_path, random_crop=True).to("meta"), streams.load_upright, 1, 1, augment)
    assert pickle.loads(pickle.dumps(reader)).split.labels.device.type == "cpu"
    assert all(pickle.loads(pickle.dumps(function)) for function in (streams._init_worker, streams._identity))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_augment_like_the_main_process(tmp_path, workers):
    split, batches = make_split(tmp_path, workers=workers), (torch.tensor([5, 2, 9]), torch.tensor([0, 11]))
    augmentation = views.Augmentation(3, 2, True, lambda image: image.roll(int(torch.randint(16, ())), 1))
    augment = partial(augmentation, epoch=4)
    plain = split.read(batches)
    found = split.read(batches, seed=3, epoch=4, augment=augment)
    for index, images, stored in zip(batches, found, plain, strict=True):
        assert torch.equal(images, augmentation(stored, index, 4)) and not torch.equal(images, stored)


def test_augmentation_errors_are_one_line(tmp_path):
    split = make_split(tmp_path, workers=2)
    with pytest.raises(TypeError, match="^augment must return a uint8 tensor") as error:
        list(split.read([torch.tensor([1])], augment=partial(views.Augmentation(0, 0, False, str), epoch=1)))
    assert "\n" not in str(error.value)


def test_an_augmentation_that_cannot_be_pickled_runs_in_the_main_process(tmp_path, monkeypatch):
    monkeypatch.setattr(streams.multiprocessing, "get_start_method", lambda: "spawn")
    split = make_split(tmp_path, workers=2)
    expected = "augment cannot be pickled for worker processes .*: the main process reads the images; define"
    with pytest.warns(UserWarning, match=expected):
        (images,) = split.read([torch.tensor([1])], augment=lambda images, index: 255 - images)
    assert torch.equal(images, 255 - next(iter(split.read([torch.tensor([1])]))))


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_errors_keep_their_type_if_they_can_be_pickled(tmp_path, workers):
    class OddError(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one}\n{two}")

    split = make_split(tmp_path, workers=workers)
    with pytest.raises(AttributeError, match="^'Tensor' object has no attribute 'nothing'$"):
        list(split.read([torch.tensor([1])], augment=lambda images, index: images.nothing))

    def fail(images, index):
        raise OddError("a", "b")

    with pytest.raises(RuntimeError, match="^OddError: a$"):  # OddError cannot be unpickled
        list(split.read([torch.tensor([1])], augment=fail))
