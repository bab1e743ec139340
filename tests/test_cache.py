import json
import os
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import pckd_nb as pckd
from pckd_nb.training.teacher_cache import TeacherCache

from .conftest import make_data


@pytest.fixture(scope="module")
def data():
    return make_data(train=40, size=16)


@pytest.fixture(scope="module")
def teacher(data):
    return pckd.create_model("resnet14", data, seed=1)


def make_trainer(root, data, teacher):
    """Return a function that trains a student in `root`, with the cache unless told otherwise. It returns the bytes of
    the run's history, samples and weights."""
    recipe = pckd.get_recipe("classroom", epochs=2, batch_size=16)

    def call(name, cache="cache", precision="bf16-mixed", seed=0, method=None, student_seed=2, **options):
        student = pckd.create_model("resnet8", data, seed=student_seed)
        cache = cache and root / cache
        options = dict(out=root / name, seed=seed, precision=precision, accelerator="cpu", progress=False, **options)
        pckd.distill(student, teacher, data, method or pckd.PCKD(), recipe, teacher_cache=cache, **options)
        return [(root / name / file).read_bytes() for file in ("history.csv", "samples.npz", "student.safetensors")]

    return call


@pytest.fixture
def train(data, teacher, tmp_path):
    return make_trainer(tmp_path, data, teacher)


@pytest.fixture(scope="module")
def cached(data, teacher, tmp_path_factory):
    """Return a folder with a filled cache, and the output of the training that filled it."""
    root = tmp_path_factory.mktemp("cached")
    return root, make_trainer(root, data, teacher)("first")


@pytest.fixture
def teacher_calls(monkeypatch):
    """Return a list whose only number counts how often a teacher computed features."""
    count = [0]
    features = pckd.training.teacher.FrozenTeacher.features

    def counting(self, x):
        count[0] += 1
        return features(self, x)

    monkeypatch.setattr(pckd.training.teacher.FrozenTeacher, "features", counting)
    return count


def epoch_files(tmp_path):
    return sorted((tmp_path / "cache").rglob("epoch-*.npy"))


def test_results_are_identical_without_a_cache_while_filling_it_and_from_it(train, teacher_calls, tmp_path):
    without = train("without", cache=None)
    steps = teacher_calls[0]
    assert train("filling") == without
    teacher_calls[0] = 0
    assert train("reading") == without
    assert steps > 0 and teacher_calls[0] == 0
    assert len(epoch_files(tmp_path)) == 2 and np.load(epoch_files(tmp_path)[0]).shape == (40, 4, 64)


def test_separate_crops_share_the_cache_with_each_other_only(train, teacher_calls):
    live = train("live", cache=None, crop_per_view=True)
    one_crop = train("one crop")
    teacher_calls[0] = 0
    assert train("first", crop_per_view=True) == live != one_crop and teacher_calls[0]
    teacher_calls[0] = 0
    assert train("second", crop_per_view=True) == live and not teacher_calls[0]
    upright = pckd.PCKD(views=1)
    assert train("upright", cache=None, method=upright) == train("same", None, method=upright, crop_per_view=True)


def test_the_cache_keeps_full_precision(train, tmp_path):
    without, filling = (train(name, cache, "32-true") for name, cache in (("a", None), ("b", "cache")))
    assert without == filling == train("c", precision="32-true")
    assert {np.load(file).dtype for file in epoch_files(tmp_path)} == {np.dtype("float32")}


def test_runs_share_the_cache_only_with_the_same_seed_and_views(train, tmp_path, teacher_calls):
    train("first")
    teacher_calls[0] = 0
    train("other betas", method=pckd.PCKD(beta_cc=0.01, strategy="uniform"), student_seed=5)
    assert teacher_calls[0] == 0
    train("other seed", seed=1)
    train("other views", method=pckd.KD())
    assert len(epoch_files(tmp_path)) == 6 and len({path.parent for path in epoch_files(tmp_path)}) == 3
    assert teacher_calls[0] > 0


@pytest.mark.parametrize("damage", ["byte", "short", "no seal", "no json", "other shape", "not numpy"])
def test_damaged_cache_files_are_rebuilt(damage, cached, train, tmp_path):
    root, expected = cached
    shutil.copytree(root / "cache", tmp_path / "cache")
    path = epoch_files(tmp_path)[0]
    seal = path.with_suffix(".json")
    whole = path.read_bytes()
    if damage == "byte":
        path.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    elif damage == "short":
        path.write_bytes(whole[:-100])
    elif damage == "no seal":
        seal.unlink()
    elif damage == "no json":
        seal.write_text("{")
    elif damage == "other shape":
        np.save(path, np.zeros((3, 4, 5), np.float16))
    else:
        path.write_bytes(b"hello")
    warned = pytest.warns(UserWarning, match="epoch-0001.npy' is outdated or damaged: its features are computed again")
    # a missing .json file gives no warning: another process may be about to write it
    with nullcontext() if damage == "no seal" else warned:
        assert train("second") == expected
    assert path.read_bytes() == whole and json.loads(seal.read_text())["shape"] == [40, 4, 64]


def test_the_cache_never_exceeds_its_size_limit(train, tmp_path):
    expected = train("without", cache=None)
    with pytest.warns(UserWarning, match="the teacher cache .* is full"):
        assert train("first", teacher_cache_gb=30e-6) == expected
    size = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file())
    assert len(epoch_files(tmp_path)) == 1 and size <= 30e3
    with pytest.raises(ValueError, match="teacher_cache_gb must be greater than 0, got 0"):
        train("second", teacher_cache_gb=0)


def test_a_failed_training_leaves_no_temporary_cache_file(train, tmp_path):
    with pytest.raises(FloatingPointError):
        train("failing", method=pckd.PCKD(beta_cc=1e30))
    assert not list((tmp_path / "cache").rglob("*.tmp")) and not list((tmp_path / "cache").rglob("epoch-*"))
    assert train("next") == train("without", cache=None)


def test_files_renamed_by_other_processes_do_no_harm(tmp_path, monkeypatch):
    cache = TeacherCache(tmp_path, {"teacher": "x"}, (6, 2, 3), 1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".epoch-0001.npy.1.tmp").write_bytes(b"")
    stat = type(tmp_path).stat

    def stat_after_rename(self, **options):
        if self.name.endswith(".1.tmp") and os.path.exists(self):
            os.unlink(self)
            raise FileNotFoundError(str(self))
        return stat(self, **options)

    monkeypatch.setattr(type(tmp_path), "stat", stat_after_rename)
    cache.begin_epoch(1)
    assert cache.new_file is not None
    cache.close()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_incomplete_epoch_is_not_kept(tmp_path):
    cache = TeacherCache(tmp_path, {"teacher": "x"}, (6, 2, 3), 1)
    features = torch.randn(8, 3).half()
    cache.begin_epoch(1)
    cache.write(torch.tensor([5, 0, 2, 1]), features)
    cache.end_epoch()
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []
    cache.begin_epoch(1)
    cache.write(torch.tensor([5, 0, 2, 1]), features)
    cache.write(torch.tensor([3, 4]), features[:4])
    cache.end_epoch()
    cache.begin_epoch(1)
    # view-major, in the requested order
    assert torch.equal(cache.read(torch.tensor([0, 5])), features[[1, 0, 5, 4]])
    assert sorted(file.suffix for file in tmp_path.rglob("*") if file.is_file()) == [".json", ".npy"]
