"""Label noise: which labels are wrong, what a run records of it, and how well measures find wrong labels."""

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import pckd_nb as pckd
from pckd_nb import analysis, figures, leaderboard, measures, runs, widgets
from pckd_nb.data import Dataset, Split, Streamed, noise, rebuild
from pckd_nb.data.dataset import file_fingerprints
from pckd_nb.data.split import proportional_sample
from pckd_nb.figures import collection

from .conftest import make_data
from .test_cache import teacher_calls  # noqa: F401
from .test_cli import SMALL, refused, run, teacher  # noqa: F401

QUIET = dict(accelerator="cpu", precision="32-true", progress=False, batch_size=16)
KINDS = ("uniform", "confusable")


def wrong_rows(data: Dataset) -> np.ndarray:
    return (data.train.labels != data.train.true_labels).numpy()


def label_hash(data: Dataset) -> str:
    return hashlib.sha256(data.train.labels.numpy()).hexdigest()[:16]


def stream(data: Dataset, folder, side: int = 8) -> Dataset:
    """Write the images of an RGB data set to files, and return the same data set with a streamed training split."""
    names = [f"{row:03}.png" for row in range(len(data.train))]
    for name, image in zip(names, data.train.images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / name)
    train = Streamed(folder, np.array(list(map(os.fsencode, names))), data.train.labels, side, workers=0)
    return dataclasses.replace(data, train=train)


# ------------------------------------------------------------------------------------------------ wrong labels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0.1, 0.2, 0.4, 0.95])
def test_exactly_the_given_share_of_every_class_is_wrong(kind, rate):
    clean = pckd.load_dataset("digits")
    data = pckd.load_dataset("digits", label_noise=rate, noise=kind)
    wrong = wrong_rows(data)
    assert wrong.sum() == round(rate * len(clean.train))
    assert torch.equal(data.train.true_labels, clean.train.labels) and torch.equal(data.test.labels, clean.test.labels)
    assert data.test.true_labels is None and torch.equal(data.train.images, clean.train.images)
    in_class = clean.train.labels.bincount().numpy()
    wrong_in_class = clean.train.labels[torch.from_numpy(wrong)].bincount(minlength=10).numpy()
    assert np.abs(wrong_in_class - rate * in_class).max() <= 1


def test_the_same_share_of_classes_of_very_different_size_is_wrong():
    labels = torch.tensor([0] * 1000 + [1] * 100 + [2] * 10)
    assert labels[proportional_sample(labels, 111, 3, seed=0)].bincount().tolist() == [100, 10, 1]
    assert labels[proportional_sample(labels, 555, 3, seed=5)].bincount().tolist() == [500, 50, 5]


@pytest.mark.parametrize("kind", KINDS)
def test_a_higher_rate_keeps_all_wrong_labels(kind):
    clean = pckd.load_dataset("digits")
    few, many = (clean.with_label_noise(rate, kind, seed=3) for rate in (0.13, 0.37))
    rows = wrong_rows(few)
    assert wrong_rows(many)[rows].all() and torch.equal(few.train.labels[rows], many.train.labels[rows])
    other = clean.with_label_noise(0.13, kind, seed=4)
    assert (wrong_rows(other) != rows).any() and other.fingerprint != few.fingerprint


def test_noise_is_the_same_on_all_processors_and_data_without_noise_keep_their_fingerprint():
    digits = pckd.load_dataset("digits")
    shapes = pckd.load_dataset("shapes100", train_size=400, test_size=100)
    assert digits.fingerprint == "6a6b79ef2769cfea" and digits.with_validation(0.1).fingerprint == "b220db545ccc0530"
    assert noise.nearest_classes(digits.train, 10).tolist() == [9, 8, 8, 9, 1, 8, 4, 8, 1, 3]
    assert label_hash(digits.with_label_noise(0.2)) == "13822029aa01cff7"
    assert label_hash(digits.with_label_noise(0.2, "confusable")) == "571ecd3be5e3639d"
    assert label_hash(shapes.with_label_noise(0.2)) == "66be147c8abdf6d8"
    assert label_hash(shapes.with_label_noise(0.2, "confusable")) == "fb37e38923d210d0"


def test_uniform_noise_uses_all_other_classes_equally():
    data = make_data(train=30000, size=1)
    noisy = data.with_label_noise(0.5)
    rows = wrong_rows(noisy)
    pairs = 3 * noisy.train.true_labels[rows] + noisy.train.labels[rows]
    counts = pairs.bincount(minlength=9).reshape(3, 3).numpy()
    assert (counts.diagonal() == 0).all()
    assert np.abs(counts[~np.eye(3, dtype=bool)] - 2500).max() < 200  # four standard deviations


def test_confusable_shapes_have_the_same_shape_or_the_same_pattern():
    data = pckd.load_dataset("shapes100", train_size=1000, test_size=100, label_noise=0.5, noise="confusable")
    shape, pattern = (np.array(data.groups[name]) for name in ("shape", "pattern"))
    rows = wrong_rows(data)
    true, given = data.train.true_labels[rows].numpy(), data.train.labels[rows].numpy()
    same_shape, same_pattern = shape[true] == shape[given], pattern[true] == pattern[given]
    assert (same_shape != same_pattern).all()
    assert 0.4 < same_shape.mean() < 0.6  # 9 classes each


def test_a_class_that_is_alone_in_its_group_is_confused_with_the_nearest_class():
    data = dataclasses.replace(make_data(train=60, classes=5), groups={"kind": ("a", "b", "b", "c", "a")})
    found = noise.confusable_classes(data.train, 5, data.groups)
    assert [classes.tolist() for classes in found] == [[4], [2], [1], [4], [0]]  # 3 is alone; 2 and 4 are next to it


def test_nearest_class_is_that_of_exact_arithmetic():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (90, 2, 3, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 8, (90,), generator=generator)
    labels[labels == 5] = 6  # class 5 has no image, and is never the nearest one
    found = noise.nearest_classes(Split(images, labels), 8)
    means = {}
    for label in set(range(8)) - {5}:
        pixels = images[labels == label].flatten(1).tolist()
        means[label] = [sum(map(Fraction, column)) / len(column) for column in zip(*pixels, strict=True)]
    for label, mean in means.items():
        distance = {other: sum((a - b) ** 2 for a, b in zip(mean, means[other], strict=True)) for other in means}
        del distance[label]
        assert found[label] == min(distance, key=distance.get)


def test_two_classes_of_which_one_has_no_images():
    data = make_data(train=12, classes=2)
    train = dataclasses.replace(data.train, labels=torch.zeros(12, dtype=torch.int64))
    noisy = dataclasses.replace(data, train=train).with_label_noise(0.25, "confusable")
    assert wrong_rows(noisy).sum() == 3 and noisy.train.labels.bincount().tolist() == [9, 3]


# ------------------------------------------------------------------------------- with the other options of a data set


def test_noise_and_validation_split_in_any_order_are_the_same():
    clean = pckd.load_dataset("digits", train_size=200)
    loaded = pckd.load_dataset("digits", train_size=200, val=0.25, val_seed=1, label_noise=0.2, noise_seed=2)
    first = clean.with_label_noise(0.2, seed=2).with_validation(0.25, seed=1)
    last = clean.with_validation(0.25, seed=1).with_label_noise(0.2, seed=2)
    assert loaded.fingerprint == first.fingerprint == last.fingerprint
    assert loaded.options == first.options == last.options
    assert wrong_rows(loaded).sum() == 30 and len(loaded.train) == 150
    assert torch.equal(loaded.val.labels, clean.with_validation(0.25, seed=1).val.labels)
    assert loaded.val.true_labels is None
    unseen = loaded.without_test()
    assert torch.equal(unseen.train.labels, loaded.train.labels) and unseen.options["label_noise"] == 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_data_set_of_a_run_json_has_the_same_noise(kind):
    data = pckd.load_dataset("digits", train_size=100, val=0.2, label_noise=0.3, noise=kind, noise_seed=7, test=False)
    info = {"name": "digits", "options": json.loads(json.dumps(data.options)), "image_size": [16, 16]}
    again = rebuild(info)
    assert again.fingerprint == data.fingerprint and torch.equal(again.train.true_labels, data.train.true_labels)
    assert rebuild(info, label_noise=0).fingerprint == data.with_true_labels().fingerprint


def test_true_labels_can_be_restored():
    clean = pckd.load_dataset("digits", train_size=100)
    noisy = clean.with_label_noise(0.2, "confusable")
    assert noisy.fingerprint != clean.fingerprint
    restored = noisy.with_true_labels()
    assert restored.fingerprint == clean.fingerprint and restored.options == clean.options
    assert restored.train.true_labels is None and clean.with_true_labels() is clean
    assert "20 of 100 training images, confusable" in noisy._repr_html_()
    assert "wrong labels" not in clean._repr_html_()


def test_wrong_labels_of_your_own(data):
    given = data.train.labels.clone()
    given[:5] = (given[:5] + 1) % 3
    train = dataclasses.replace(data.train, labels=given, true_labels=data.train.labels.tolist())
    own = dataclasses.replace(data, train=train)
    assert own.train.true_labels.dtype == torch.int64 and "label_noise" not in own.options
    assert own.fingerprint == dataclasses.replace(own, train=dataclasses.replace(train, true_labels=None)).fingerprint
    split = own.with_validation(0.25)
    chosen = data.with_validation(0.25)
    assert torch.equal(split.val.labels, chosen.val.labels) and torch.equal(split.train.images, chosen.train.images)
    assert torch.equal(split.train.true_labels, chosen.train.labels)
    assert "5 of 48 training images" in own._repr_html_()
    moved = own.to("meta")
    assert moved.train.true_labels.device.type == "meta"
    rows = np.array([4, 0])
    assert own.train.take(rows).true_labels.tolist() == data.train.labels[rows].tolist()
    with pytest.raises(ValueError, match="one label per image, got 48 images and 2 labels"):
        dataclasses.replace(train, true_labels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"labels of train\.true_labels must be from 0 to 2, got 0 to 3"):
        dataclasses.replace(own, train=dataclasses.replace(train, true_labels=torch.arange(48) % 4))


def test_own_function_with_noise(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from tests.conftest import make_data as make\n\n\ndef data():\n    return make()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    data = pckd.load_dataset("mine.py:data", label_noise=0.25, val=0.25, noise="confusable")
    assert len(data.train) == 36 and wrong_rows(data).sum() == 9
    assert torch.equal(data.train.true_labels, make_data().with_validation(0.25).train.labels)


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_images_have_the_same_noise_as_images_in_memory(kind, tmp_path):
    data = make_data(train=45, classes=5, channels=3)
    streamed = stream(data, tmp_path)
    in_memory, noisy = data.with_label_noise(0.2, kind), streamed.with_label_noise(0.2, kind)
    assert isinstance(noisy.train, Streamed) and torch.equal(noisy.train.labels, in_memory.train.labels)
    assert torch.equal(noisy.train.true_labels, data.train.labels)
    assert noisy.fingerprint != streamed.fingerprint == noisy.with_true_labels().fingerprint
    assert file_fingerprints(noisy)["names"] != file_fingerprints(streamed)["names"]
    rows = np.array([7, 2])
    assert noisy.train.take(rows).true_labels.tolist() == data.train.labels[rows].tolist()
    assert noisy.to("meta").train.true_labels.device.type == "meta"
    (images,) = dataclasses.replace(noisy.train, workers=1).read([torch.tensor([3, 1])])
    assert torch.equal(images, data.train.images[[3, 1]])


def test_nearest_classes_of_many_large_streamed_images_are_those_of_small_samples(tmp_path, monkeypatch):
    data = stream(make_data(train=40, classes=4, size=40, channels=3), tmp_path, side=40)
    monkeypatch.setattr(noise, "MAX_STREAMED_IMAGES", 8)
    shapes, read = [], Streamed.read

    def reading(self, batches, **options):
        for images in read(self, batches, **options):
            shapes.append(tuple(images.shape))
            yield images

    monkeypatch.setattr(Streamed, "read", reading)
    found = noise.nearest_classes(data.train, 4)
    assert found[0] == 1 and found[3] == 2  # the others have two neighbours
    assert shapes == [(8, 3, 32, 32)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(label_noise=1.0), "label_noise must be less than 1, got 1.0"),
        (dict(label_noise=-0.1), "label_noise must be at least 0, got -0.1"),
        (dict(label_noise="0.1"), "label_noise must be a number, got '0.1'"),
        (dict(label_noise=20), "label_noise must be less than 1, got 20"),
        (dict(label_noise=0.004), "label_noise=0.004 makes no label of the 100 training images of digits wrong"),
        (dict(label_noise=0.2, noise="similar"), "noise must be uniform or confusable, got 'similar'"),
        (dict(noise=["uniform"]), "noise must be uniform or confusable, got list"),
        (dict(noise_seed=-1), "noise_seed must be at least 0, got -1"),
    ],
)
def test_wrong_values_are_refused_in_one_line(options, message):
    with pytest.raises((ValueError, TypeError)) as error:
        pckd.load_dataset("digits", train_size=100, **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_noise_is_refused_where_it_makes_no_sense(data):
    with pytest.raises(ValueError, match=r"labels of tiny are wrong already: start from data.with_true_labels\(\)"):
        data.with_label_noise(0.2).with_label_noise(0.2)
    train = data.train.take(np.arange(0, 48, 3))
    one = dataclasses.replace(data, train=train, test=train, classes=("only",))
    with pytest.raises(ValueError, match="label_noise needs two classes or more, tiny has one"):
        one.with_label_noise(0.2)


# ------------------------------------------------------------------------------------------------- runs


@pytest.fixture
def noisy(data):
    return data.with_label_noise(0.25)


def test_run_records_true_labels(noisy, data, tmp_path):
    trained = pckd.fit("resnet8", noisy, epochs=1, out=tmp_path / "noisy", **QUIET)
    loaded = pckd.load_run(tmp_path / "noisy")
    for found in (trained, loaded):
        assert np.array_equal(found.labels, noisy.train.labels) and np.array_equal(found.true_labels, data.train.labels)
    assert loaded.settings["data"]["options"] == {"label_noise": 0.25, "noise": "uniform", "noise_seed": 0}
    assert loaded.data_fingerprint == noisy.fingerprint
    assert "25 % wrong labels (uniform)" in loaded._repr_html_() and "25 % wrong" in figures.caption(loaded)
    clean = pckd.fit("resnet8", data, epochs=1, out=tmp_path / "clean", **QUIET)
    assert clean.true_labels is None and pckd.load_run(tmp_path / "clean").true_labels is None
    with np.load(tmp_path / "clean" / "samples.npz") as arrays:
        assert "true_labels" not in arrays
    assert "wrong" not in clean._repr_html_() + figures.caption(clean)
    wrong = np.flatnonzero(trained.labels != trained.true_labels)
    right = np.flatnonzero(trained.labels == trained.true_labels)
    assert trained.true_class(wrong[0]) == f"class {trained.true_labels[wrong[0]]}"
    assert trained.true_class(right[0]) is None and clean.true_class(wrong[0]) is None


@pytest.mark.parametrize(
    ("true_labels", "message"),
    [
        (np.arange(48) % 4, "labels must be whole numbers from 0 to 2"),
        (np.zeros(48), "labels must be whole numbers from 0 to 2"),
        (np.zeros(47, int), "different numbers of samples"),
    ],
)
def test_damaged_true_labels_are_refused(true_labels, message, noisy, tmp_path):
    trained = pckd.fit("resnet8", noisy, epochs=1, **QUIET)
    trained.true_labels = true_labels
    trained.save(tmp_path / "run")
    with pytest.raises(ValueError, match=f"'.*run' is damaged: .*{message}"):
        pckd.load_run(tmp_path / "run")


def test_resumed_run_with_noise_is_the_same_run(noisy, data, tmp_path):
    class StopOnce(pckd.Callback):
        _stops = 1

        def on_step_end(self, trainer):
            trainer.should_stop = trainer.recorder.epoch == 2 and self._stops > 0
            self._stops -= trainer.should_stop

    stop = StopOnce()
    options = dict(epochs=2, callbacks=[stop], **QUIET)
    assert not pckd.fit("resnet8", noisy, out=tmp_path / "stopped", **options).finished
    for other in (data, data.with_label_noise(0.25, seed=1), data.with_label_noise(0.5)):
        with pytest.raises(ValueError, match="was started with data .*, not .*: resume with the same settings"):
            pckd.fit("resnet8", other, out=tmp_path / "stopped", resume=True, **options)
    again = make_data().with_label_noise(0.25)
    resumed = pckd.fit("resnet8", again, out=tmp_path / "stopped", resume=True, **options)
    whole = pckd.fit("resnet8", noisy, out=tmp_path / "whole", **options)
    assert resumed.finished and resumed.fingerprint == whole.fingerprint and resumed.history.equals(whole.history)
    files = [(tmp_path / name / "samples.npz").read_bytes() for name in ("stopped", "whole")]
    assert files[0] == files[1]


def test_teacher_of_clean_labels_and_student_of_wrong_labels_and_vice_versa(noisy, data, tmp_path, recwarn):
    for name, first, second in (("a", data, noisy), ("b", noisy, data)):
        network = pckd.fit("resnet14", first, epochs=1, out=tmp_path / name, **QUIET)
        student = pckd.distill("resnet8", network, second, "kd", epochs=1, **QUIET)
        assert student.finished and student.settings["teacher"]["fingerprint"] == network.fingerprint
    assert not [warning for warning in recwarn if "accuracy" in str(warning.message)]


def test_trainings_with_and_without_noise_share_the_teacher_cache(noisy, data, tmp_path, teacher_calls):  # noqa: F811
    network = pckd.create_model("resnet14", data, seed=1)

    def train(dataset, cache):
        student = pckd.create_model("resnet8", data, seed=2)
        return pckd.distill(student, network, dataset, "pckd", epochs=2, teacher_cache=cache, **QUIET)

    train(data, tmp_path / "cache")
    uncached = train(noisy, None)
    teacher_calls[0] = 0
    cached = train(noisy, tmp_path / "cache")
    assert teacher_calls[0] == 0 and cached.fingerprint == uncached.fingerprint
    split = noisy.with_validation(0.25)
    train(split, tmp_path / "cache")
    assert teacher_calls[0] > 0, "other images"


def test_galleries_show_the_true_class_too(noisy, data, tmp_path):
    trained = pckd.fit("resnet8", noisy, epochs=2, out=tmp_path / "run", **QUIET)
    wrong = int(np.flatnonzero(trained.labels != trained.true_labels)[0])
    true = f"class {trained.true_labels[wrong]}"

    def texts(drawing):
        return [text.get_text() for ax in drawing.axes for text in ax.texts] + [
            text.get_text() for text in drawing.texts
        ]

    shown = [text for text in texts(figures.difficulty_gallery(trained, rows=5)) if "true:" in text]
    assert len(shown) == (trained.labels != trained.true_labels).sum() == 12
    assert sorted(shown) == sorted(
        f"class {given}\ntrue: class {label}"
        for given, label in zip(trained.labels, trained.true_labels, strict=True)
        if given != label
    )
    page = widgets.difficulty_page(trained, category=int(trained.labels[wrong]))
    assert any(text.endswith(f"class {trained.labels[wrong]}\ntrue: {true}") for text in texts(page))
    trajectory = widgets.sample_trajectory(trained, wrong)
    assert f"class {trained.labels[wrong]}\ntrue: {true}\nsample {wrong}" in texts(trajectory)
    assert f"class {trained.labels[wrong]} (true: {true})" in trajectory.alt
    clean = pckd.fit("resnet8", data, epochs=1, **QUIET)
    assert not any("true:" in text for text in texts(figures.difficulty_gallery(clean)))


# --------------------------------------------------------------------------------------------- the command line


def test_runs_with_and_without_noise_are_not_mixed(noisy, data, tmp_path):
    network = pckd.fit("resnet14", data, epochs=1, out=tmp_path / "teacher", **QUIET)
    for name, dataset in (("clean", data), ("noisy", noisy)):
        pckd.distill("resnet8", network, dataset, "pckd", epochs=1, out=tmp_path / name, **QUIET)
    loaded = runs.load_runs(tmp_path)
    assert runs.table(loaded)["data"].tolist() == ["tiny", "tiny, 25 % wrong labels (uniform)", "tiny"]
    numbers = leaderboard.measured_numbers(tmp_path)
    assert sorted(numbers["dataset"]) == ["tiny", "tiny, 25 % wrong labels (uniform)"]
    galleries = collection.difficulty(runs.table(loaded))
    texts = [text.get_text() for text in galleries.axes[0].texts]
    assert sum("25 % wrong labels\n(uniform)" in text for text in texts) == 1
    collection.draw_all(tmp_path, tmp_path / "figures", only=["04_difficulty"])


def test_train_and_evaluate_with_noise(run, refused, tmp_path):  # noqa: F811
    command = ["train", *SMALL, "--model", "resnet8"]
    noise_options = ["--label-noise", "0.2", "--noise", "confusable"]
    assert run(*command, *noise_options, "--val", "0.25", "--out", "noisy")[0] == 0
    trained = pckd.load_run(tmp_path / "noisy")
    assert (trained.labels != trained.true_labels).sum() == 9 and len(trained.labels) == 45
    data = rebuild(trained.settings["data"])
    assert data.fingerprint == trained.data_fingerprint and data.options["noise"] == "confusable"
    status, out, err = run("evaluate", "noisy")
    assert status == 0 and not err and f"top-1 {trained.accuracy:.2f} %" in out
    refused(
        "--noise needs the fraction of wrong labels: add --label-noise", *command, "--noise", "uniform", "--out", "x"
    )
    refused("noise must be uniform or confusable, got 'x'", *command, *noise_options[:3], "x", "--out", "x")
    refused("label_noise must be less than 1, got 1.0", *command, "--label-noise", "1", "--out", "x")
    refused("--label-noise 0.001 makes no label", *command, "--label-noise", "0.001", "--out", "x")


def test_grid_and_search_with_noise(run, teacher, tmp_path):  # noqa: F811
    grid = [*SMALL, "--teacher", teacher, "--student", "resnet8", "--label-noise", "0.2"]
    status, _, err = run("search", *grid, "--methods", "kd", "--trials", "1", "--val", "0.25", "--out", "search")
    assert status == 0, err
    status, _, err = run("compare", *grid, "--chosen", "search", "--methods", "kd", "--seeds", "0", "--out", "grid")
    assert status == 0, err
    table = pd.read_csv(tmp_path / "grid" / "results.csv")
    assert table[["label_noise", "noise"]].to_numpy().tolist() == [[0.2, "uniform"]]
    (point,) = runs.load_runs(tmp_path / "grid")
    assert (point.labels != point.true_labels).sum() == 12
    status, _, err = run("compare", *grid[:-1], "0.4", "--chosen", "search", "--seeds", "0", "--out", "other")
    assert status != 0 and "the search in 'search' had data" in err[-1]
    status, _, err = run("compare", *grid[:-2], "--methods", "kd", "--seeds", "0", "--out", "clean")
    assert status == 0 and "label_noise" not in pd.read_csv(tmp_path / "clean" / "results.csv")


# -------------------------------------------------------------------------------------- finding the wrong labels


def test_precision_at_k_by_hand():
    scores, flipped = [5.0, 4.0, 3.0, 2.0, 1.0], [True, False, True, True, False]
    assert [analysis.precision_at_k(scores, flipped, k) for k in (1, 2, 3, 4, 5)] == [1, 1 / 2, 2 / 3, 3 / 4, 3 / 5]
    assert analysis.precision_at_k([np.inf, 0, -np.inf], [False, True, False], 2) == 1 / 2
    # three images with equal scores compete for two places, and two of the three labels are wrong
    assert analysis.precision_at_k([9, 1, 1, 1, 0], [True, True, True, False, True], 3) == pytest.approx(
        (1 + 4 / 3) / 3
    )


def test_precision_at_k_of_ties_is_the_mean_over_all_orders():
    rng = np.random.default_rng(0)
    scores, flipped = rng.integers(0, 4, 40), rng.random(40) < 0.3
    found = [flipped[np.lexsort((rng.random(40), -scores))][:17].mean() for _ in range(4000)]
    assert analysis.precision_at_k(scores, flipped, 17) == pytest.approx(np.mean(found), abs=0.005)


def test_noise_detection_takes_all_measures_of_a_run():
    data = pckd.load_dataset("digits", train_size=200, test_size=20, label_noise=0.2)
    trained = pckd.fit("resnet8", data, epochs=8, batch_size=20, progress=False, precision="32-true")
    table, wrong = trained.samples(), trained.labels != trained.true_labels
    assert table["first_learned"].isna().any()
    found = analysis.noise_detection(table, wrong, k=(20,)).set_index("measure")
    assert list(found.index) == list(measures.HARD_IS)
    one = analysis.noise_detection(table, wrong, {"area_under_margin": -1}, k=(20,)).iloc[0]
    assert found.loc["area_under_margin", "auc"] == one["auc"] > 0.8
    assert "precision_at_200" in analysis.noise_detection(table, wrong)
    assert "precision_at_100" not in analysis.noise_detection(table[:60], wrong[:60])
    with pytest.raises(ValueError, match=r"another index than the table: pass flipped\[table.index\], or an array"):
        analysis.noise_detection(table.sort_values("gamma"), pd.Series(wrong))


def test_noise_detection_by_hand():
    table = pd.DataFrame({"good": [4, 3, 2, 1], "mixed": [4.0, 1.0, 3.0, 2.0], "same": 0.5}, index=[7, 3, 5, 1])
    found = analysis.noise_detection(table, np.array([True, True, False, False]), ["good", "mixed", "same"], k=(1, 2))
    assert found.columns.tolist() == ["measure", "precision_at_1", "precision_at_2", "average_precision", "auc"]
    assert found.to_numpy().tolist() == [
        ["good", 1.0, 1.0, 1.0, 1.0],
        ["mixed", 1.0, 0.5, 0.75, 0.5],  # wrong labels on the places 1 and 4: (1/1 + 2/4) / 2
        ["same", 0.5, 0.5, 0.5, 0.5],
    ]
    low = analysis.noise_detection(table, [True, True, False, False], {"good": -1}, k=(2,))
    assert low.iloc[0].tolist()[1:] == [0.0, pytest.approx((1 / 3 + 2 / 4) / 2), 0.0]
    never = table.assign(first=[np.inf, 9.0, 2.0, 1.0])
    assert analysis.noise_detection(never, [True, True, False, False], ["first"], k=[2])["auc"].tolist() == [1.0]


def call(**changes) -> Callable:
    table = pd.DataFrame({"ce": [2.0, 1.0, 0.0], "name": ["a", "b", "c"], "gap": [1.0, np.nan, 2.0]})
    arguments = dict(table=table, flipped=[True, False, False], measures=["ce"], k=(1,))
    return analysis.noise_detection(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(table=[1.0]), "table must be a DataFrame, got list"),
        (dict(flipped=[1, 0, 0]), "flipped must be True or False for each image, got int64"),
        (dict(flipped=[True, False]), "flipped must have one value per row of the table, 3, got 2"),
        (dict(flipped=[[True], [False], [False]]), r"flipped must have shape \(samples,\), got \(3, 1\)"),
        (dict(flipped=[False] * 3), "flipped must have right and wrong labels, got 0 wrong ones of 3"),
        (dict(flipped=[True] * 3), "flipped must have right and wrong labels, got 3 wrong ones of 3"),
        (dict(measures=["aum"]), "measures must be columns of the table, got 'aum', its columns are ce, name, gap"),
        (dict(measures="ce"), "measures must be a list of columns, or a dict of 1 and -1, got str"),
        (dict(measures=[]), "measures must have at least one name"),
        (dict(measures={"ce": 2}), "measures must be 1 or -1, got 2 for 'ce'"),
        (dict(measures=["name"]), "name must be numbers, one per image"),
        (dict(measures=["gap"]), "gap must have one number per image, got 1 NaN"),
        (dict(k=5), "k must be a list of whole numbers, got int"),
        (dict(k=(4,)), "k must be at most 3, the number of images, got 4"),
        (dict(k=(0,)), "k must be at least 1, got 0"),
        (dict(k=(1.5,)), "k must be a whole number, got 1.5"),
    ],
)
def test_noise_detection_refuses_wrong_arguments_in_one_line(changes, message):
    with pytest.raises((ValueError, TypeError), match=message) as error:
        call(**changes)
    assert "\n" not in str(error.value)


def test_precision_at_k_refuses_other_lengths():
    with pytest.raises(ValueError, match="there must be one score per image, got 2 scores for 3 images"):
        analysis.precision_at_k([1.0, 2.0], [True, False, True], 1)


def made_probabilities() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return given labels, true labels, and probabilities of a network that knows the true ones quite well."""
    rng = np.random.default_rng(0)
    true = np.arange(300) % 3
    labels = np.where(np.arange(300) < 45, (true + 1) % 3, true)
    logits = 2.5 * np.eye(3)[true] + rng.normal(size=(300, 3))
    return labels, true, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_confident_learning_finds_wrong_labels_in_the_order_of_cleanlab():
    filters = pytest.importorskip("cleanlab.filter", reason="needs the extra analysis")
    labels, true, probabilities = made_probabilities()
    scores = analysis.confident_learning(labels, probabilities)
    ranked = filters.find_label_issues(labels, probabilities, return_indices_ranked_by="normalized_margin", n_jobs=1)
    assert np.array_equal(np.argsort(-scores, kind="stable")[: len(ranked)], ranked)
    assert (scores >= 1).sum() == len(ranked) and scores.min() >= 0 and scores.max() <= 2
    found = analysis.noise_detection(pd.DataFrame({"cleanlab": scores}), labels != true, ["cleanlab"], k=(20,))
    assert found["precision_at_20"].item() > 0.9 and found["auc"].item() > 0.9


def test_confident_learning_needs_cleanlab(monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    labels, _, probabilities = made_probabilities()
    with pytest.raises(ValueError, match=r"needs the package cleanlab: pip install 'pckd_nb\[analysis\]'"):
        analysis.confident_learning(labels, probabilities)


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, 1], np.eye(3), r"got int64 of shape \(2,\) and shape \(3, 3\)"),
        ([0.0, 1.0], np.eye(2), r"got float64 of shape \(2,\)"),
        ([0, 2], np.eye(2), "labels must be from 0 to 1"),
        ([0, 0], np.eye(2), "each class must occur in labels, but class 1 does not"),
        ([0, 1], 2 * np.eye(2), "probabilities must be from 0 to 1, and each row must add up to 1"),
        ([0, 1], np.eye(2) / 2, "each row must add up to 1: use logits.softmax"),
        ([0, 1], np.full((2, 2), np.nan), "probabilities must be from 0 to 1"),
    ],
)
def test_confident_learning_refuses_wrong_arguments_in_one_line(labels, probabilities, message):
    with pytest.raises(ValueError, match=message) as error:
        analysis.confident_learning(labels, probabilities)
    assert "\n" not in str(error.value)


def test_measures_of_a_training_find_wrong_labels():
    data = pckd.load_dataset("digits", train_size=400, label_noise=0.2)
    trained = pckd.fit("resnet8", data, epochs=4, **{**QUIET, "batch_size": 32})
    ce = trained.cross_entropy.astype(np.float32)
    table = pd.DataFrame({"cross_entropy_mean": ce.mean(0), "confidence": np.exp(-ce).mean(0)})
    found = analysis.noise_detection(
        table, trained.labels != trained.true_labels, {"cross_entropy_mean": 1, "confidence": -1}, k=[40]
    )
    assert (found["auc"] > 0.8).all() and (found["precision_at_40"] > 0.6).all()
    assert runs.describe_noise(trained.settings) == ", 20 % wrong labels (uniform)"
