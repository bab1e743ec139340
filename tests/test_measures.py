"""The measures of difficulty, by hand, and what a run records for them."""

import dataclasses
import math
import os
import signal

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import pckd_nb as pckd
from pckd_nb import measures
from pckd_nb.data import Split
from pckd_nb.recording import Recorder

EPOCH_ARRAYS = ("cross_entropy", "difficulty", "margin", "error_norms")
ONCE_ARRAYS = ("prediction", "teacher_cross_entropy", "teacher_margin", "teacher_prediction")


# ------------------------------------------------------------------------------------------------------- equations


def test_margin_is_the_logit_of_the_label_minus_the_largest_other_logit():
    logits = torch.tensor([[3.0, 1.0, -2.0], [3.0, 1.0, -2.0], [-3.0, -1.0, -2.0]])
    assert measures.margin(logits, torch.tensor([0, 2, 1])).tolist() == [2, -5, 1]


def test_the_sign_of_the_margin_says_who_wins_a_tie_or_a_tiny_difference():
    tie, tiny = [2.0, 2.0], [1e-20, 0.0]  # float16 rounds the difference to 0
    logits = torch.tensor([tie, tie, tiny, tiny])
    labels = torch.tensor([0, 1, 0, 1])
    margin = measures.margin(logits, labels).half().numpy()[None]
    assert np.abs(margin).max() == 0
    assert measures.correct(margin).tolist() == [(logits.argmax(1) == labels).tolist()] == [[True, False, True, False]]


def test_correct_follows_argmax_for_random_logits():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(-2, 3, (500, 4), generator=generator).float()  # with many ties
    labels = torch.randint(0, 4, (500,), generator=generator)
    margin = measures.margin(logits, labels).half().numpy()[None]
    assert np.array_equal(measures.correct(margin)[0], logits.argmax(1) == labels)
    assert not measures.correct(np.full((1, 3), np.nan, np.float16)).any()


def test_error_norm_is_the_distance_from_the_one_hot_vector():
    logits = torch.tensor([[math.log(0.5), math.log(0.3), math.log(0.2)]]).repeat(2, 1)
    found = measures.error_norm(logits, torch.tensor([0, 2]))
    by_hand = [(0.5**2 + 0.3**2 + 0.2**2) ** 0.5, (0.5**2 + 0.3**2 + 0.8**2) ** 0.5]
    assert found.tolist() == pytest.approx(by_hand)
    assert measures.error_norm(torch.tensor([[100.0, 0.0]]), torch.tensor([1])).item() == pytest.approx(2**0.5)


def test_data_map_is_mean_and_standard_deviation_of_the_probability():
    p = np.array([[0.9, 0.2, 0.2, 0.4, 0.1, 0.8], [0.8, 0.8, 0.3, 0.4, 0.1, 0.8], [0.7, 0.8, 0.1, 0.4, 0.1, 0.8]])
    found = measures.data_map(-np.log(p))
    assert found["confidence"].tolist() == pytest.approx([0.8, 0.6, 0.2, 0.4, 0.1, 0.8])
    # with three epochs, the squared deviations are divided by 3, not by 2
    by_hand = [(2 * 0.01 / 3) ** 0.5, (0.24 / 3) ** 0.5, (2 * 0.01 / 3) ** 0.5, 0, 0, 0]
    assert found["variability"].tolist() == pytest.approx(by_hand, abs=1e-6)
    assert found["region"].tolist()[1:] == [
        "ambiguous",
        "hard to learn",
        "hard to learn",
        "hard to learn",
        "easy to learn",
    ]
    assert found["region"].cat.categories.tolist() == list(measures.REGIONS)


def test_a_third_of_different_samples_is_ambiguous_and_none_of_equal_ones():
    p = np.random.default_rng(0).uniform(0, 1, (4, 300))
    assert (measures.data_map(-np.log(p))["region"] == "ambiguous").sum() == 100
    assert (measures.data_map(np.zeros((4, 5)))["region"] == "easy to learn").all()


# right (1) and wrong (0) in six epochs
LEARNED = {
    "always right": ([1, 1, 1, 1, 1, 1], 0, 1, 1),
    "learned and kept": ([0, 0, 1, 1, 1, 1], 0, 3, 4 / 6),
    "forgotten at the end": ([0, 1, 1, 1, 1, 0], 1, 2, 4 / 6),
    "forgotten three times": ([1, 0, 1, 0, 1, 0], 3, 1, 3 / 6),
    "never learned": ([0, 0, 0, 0, 0, 0], math.inf, math.nan, 0),
}


@pytest.mark.parametrize(("right", "events", "first", "share"), LEARNED.values(), ids=LEARNED)
def test_forgetting_events_first_learned_epoch_and_correctness(right, events, first, share):
    margin = np.where(np.array(right, bool), 0.5, -0.5)[:, None].astype(np.float16)
    assert measures.forgetting_events(margin).tolist() == [events]
    assert measures.first_learned(margin).tolist() == pytest.approx([first], nan_ok=True)
    assert measures.correctness(margin).tolist() == pytest.approx([share])


def test_area_under_margin_is_the_mean_and_does_not_overflow():
    margin = np.array([[1.0, -2.0, 60000], [2.0, -4.0, 60000], [6.0, 0.0, 60000]], np.float16)
    assert measures.area_under_margin(margin).tolist() == pytest.approx([3, -2, 60000], rel=1e-3)


def test_el2n_is_the_mean_over_the_chosen_epochs():
    norms = np.array([[1.0, 0.5], [0.5, 0.5], [0.0, 0.2]], np.float16)
    assert measures.el2n(norms).tolist() == pytest.approx([0.5, 0.4], abs=1e-3)
    assert measures.el2n(norms, 2, 2).tolist() == [0.5, 0.5]
    assert measures.el2n(norms, first_epoch=2).tolist() == pytest.approx([0.25, 0.35], abs=1e-3)
    for first, last, message in ((0, 2, "from 1 to 3"), (1, 4, "from 1 to 3"), (3, 2, "from 3 to 3")):
        with pytest.raises(ValueError, match=f"_epoch must be {message}"):
            measures.el2n(norms, first, last)


def test_float16_changes_a_confidence_by_less_than_documented():
    cross_entropy = np.geomspace(1e-9, 20, 200_001)[None]
    error = np.abs(measures.confidence(cross_entropy.astype(np.float16)) - np.exp(-cross_entropy))
    assert 1.5e-4 < error.max() < 2e-4


def test_every_measure_says_which_values_are_hard():
    cross_entropy = np.array([[0.1, 3.0], [0.1, 1.0]])
    margin, norms = np.array([[2.0, -3.0], [2.0, 0.5]]), np.array([[0.1, 1.3], [0.1, 0.9]])
    table = measures.sample_measures(cross_entropy, cross_entropy / cross_entropy.mean(1, keepdims=True), margin, norms)
    assert set(table.select_dtypes("number").columns) == set(measures.HARD_IS)
    for name, sign in measures.HARD_IS.items():
        easy, hard = table[name]
        assert sign * hard > sign * easy or name == "forgetting_events", name
    assert table["first_learned"].tolist() == [1, 2]


# -------------------------------------------------------------------------------------------------------- recording


@pytest.fixture
def seen(monkeypatch):
    """What `record_step` received: one entry per step."""
    steps, record_step = [], Recorder.record_step

    def spy(self, index, labels, logits, terms, teacher_logits=None):
        steps.append((self.epoch, index.clone(), labels.clone(), logits.clone(), teacher_logits))
        record_step(self, index, labels, logits, terms, teacher_logits)

    monkeypatch.setattr(Recorder, "record_step", spy)
    return steps


def distilled(data, recipe, method=None, **options):
    student, teacher = (pckd.create_model(name, data, seed=seed) for name, seed in (("resnet8", 2), ("resnet14", 1)))
    return pckd.distill(student, teacher, data, method or pckd.PCKD(), recipe, progress=False, **options)


def test_a_run_records_what_the_upright_view_says(seen, data, recipe):
    run = distilled(data, recipe)
    assert {len(logits) for _, _, _, logits, _ in seen} == {16}  # one row per image, not per view
    assert run.margin.dtype == run.error_norms.dtype == np.float16 and run.prediction.dtype == np.int32
    for epoch, index, labels, logits, _ in seen:
        row = epoch - 1, index.numpy()
        assert np.array_equal(run.cross_entropy[row], F.cross_entropy(logits, labels, reduction="none").half())
        assert np.array_equal(run.margin[row], measures.margin(logits, labels).half())
        assert np.array_equal(run.error_norms[row], measures.error_norm(logits, labels).half())
        assert np.array_equal(measures.correct(run.margin)[row], logits.argmax(1) == labels)
        if epoch == 2:
            assert np.array_equal(run.prediction[index], logits.argmax(1))
    # 48 images in three batches of 16
    assert 100 * measures.correct(run.margin).mean(1) == pytest.approx(run.history["train_top1"].to_numpy())


def test_the_teachers_view_is_averaged_over_the_epochs(seen, data, recipe):
    run = distilled(data, recipe)
    sums, margins = np.zeros(48), np.zeros(48)
    for _, index, labels, _, logits in seen:
        sums[index] += F.cross_entropy(logits, labels, reduction="none").numpy()
        margins[index] += measures.margin(logits, labels).numpy()
    epochs = len(run.history)
    assert run.teacher_cross_entropy == pytest.approx(sums / epochs, rel=1e-5)
    assert run.teacher_margin == pytest.approx(margins / epochs, rel=1e-4, abs=1e-5)
    last = {int(i): int(c) for _, index, _, _, logits in seen for i, c in zip(index, logits.argmax(1), strict=True)}
    assert run.teacher_prediction.tolist() == [last[i] for i in range(48)]


def test_runs_without_a_teacher_have_no_view_of_it(data, recipe):
    run = pckd.fit("resnet8", data, recipe, progress=False)
    assert all(getattr(run, name) is None for name in ONCE_ARRAYS[1:])
    assert not [name for name in run.samples() if name.startswith("teacher")]


def test_error_norms_are_recorded_in_early_epochs_only(data, monkeypatch):
    monkeypatch.setattr(measures, "EL2N_EPOCHS", 2)
    recipe = pckd.get_recipe("classroom", epochs=3, batch_size=24)
    run = distilled(data, recipe)
    assert run.error_norms.shape == (2, 48) and np.isfinite(run.error_norms).all()
    assert run.samples()["el2n"].to_numpy() == pytest.approx(run.error_norms.astype(float).mean(0))


def stop_after(steps, monkeypatch):
    """Press Ctrl-C after some steps of the next training."""
    record_step, done = Recorder.record_step, []

    def interrupted(self, *arguments):
        record_step(self, *arguments)
        done.append(1)
        if len(done) == steps:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Recorder, "record_step", interrupted)


def test_a_resumed_run_has_the_same_records_to_the_bit(data, recipe, tmp_path, monkeypatch):
    whole = distilled(data, recipe, out=tmp_path / "whole")
    stop_after(4, monkeypatch)
    stopped = distilled(data, recipe, out=tmp_path / "stopped")
    assert not stopped.finished and np.isnan(stopped.margin[1]).sum() == 32
    assert np.isfinite(stopped.teacher_margin).all()
    resumed = distilled(data, recipe, out=tmp_path / "stopped", resume=True)
    assert (tmp_path / "whole" / "samples.npz").read_bytes() == (tmp_path / "stopped" / "samples.npz").read_bytes()
    loaded = pckd.load_run(tmp_path / "stopped")
    for name in (*EPOCH_ARRAYS, *ONCE_ARRAYS):
        assert np.array_equal(getattr(loaded, name), getattr(whole, name)), name
        assert np.array_equal(getattr(resumed, name), getattr(whole, name)), name


def test_a_run_of_an_earlier_version_can_be_resumed_and_has_no_margins(data, recipe, tmp_path, monkeypatch):
    stop_after(3, monkeypatch)
    distilled(data, recipe, out=tmp_path / "run")
    for file in tmp_path.glob("run/*.pt"):
        state = torch.load(file, weights_only=True)
        for name in ("margin", "error_norms", *ONCE_ARRAYS):
            del state["recorder"][name]
        torch.save(state, file)
    run = distilled(data, recipe, out=tmp_path / "run", resume=True)
    assert run.finished and np.isfinite(run.cross_entropy).all()
    assert all(getattr(run, name) is None for name in ("margin", "error_norms", *ONCE_ARRAYS))
    assert "area_under_margin" not in run.samples() and "confidence" in run.samples()


def test_label_smoothing_does_not_change_what_is_recorded(seen, data):
    smoothed = pckd.get_recipe("classroom", epochs=1, batch_size=16, label_smoothing=0.3)
    run = distilled(data, smoothed, pckd.KD())
    for epoch, index, labels, logits, _ in seen:
        p = logits.softmax(1)[torch.arange(len(labels)), labels].numpy()
        assert measures.confidence(run.cross_entropy)[epoch - 1, index.numpy()] == pytest.approx(p, abs=2e-4)
    assert run.history["cross_entropy"].iloc[0] != pytest.approx(run.cross_entropy.astype(float).mean(), rel=1e-3)


# ------------------------------------------------------------------------------------------------- the table of a run


def test_samples_has_one_row_per_image_with_all_columns(data, recipe):
    run = distilled(data, recipe)
    table = run.samples()
    assert list(table) == [
        "id", "label", "class", "prediction", "predicted_class", "known_difficulty",
        "gamma", "gamma_mean", "cross_entropy", "cross_entropy_mean", "confidence", "variability", "region",
        "correctness", "forgetting_events", "first_learned", "area_under_margin", "el2n",
        "teacher_cross_entropy", "teacher_margin", "teacher_prediction",
    ]  # fmt: skip
    assert table["id"].tolist() == table.index.tolist() == list(range(48))
    assert table["label"].tolist() == data.train.labels.tolist()
    assert table["class"].tolist() == [data.classes[label] for label in data.train.labels]
    assert table["predicted_class"].tolist() == [data.classes[found] for found in run.prediction]
    assert table["gamma"].to_numpy() == pytest.approx(run.difficulty[-1].astype(np.float32))
    assert table["known_difficulty"].to_numpy() == pytest.approx(data.train.difficulty.numpy(), abs=1e-3)
    assert table["cross_entropy_mean"].to_numpy() == pytest.approx(run.cross_entropy.astype(float).mean(0))


def test_samples_counts_complete_epochs_only(data, recipe):
    run = distilled(data, recipe)
    first = dataclasses.replace(run, history=run.history[:1])
    table = first.samples()
    assert np.array_equal(table["gamma"], run.difficulty[0].astype(np.float32))
    assert table["area_under_margin"].to_numpy() == pytest.approx(run.margin[0].astype(float))
    with pytest.raises(ValueError, match="no complete epoch"):
        dataclasses.replace(run, history=run.history[:0]).samples()
    with pytest.raises(ValueError, match="has no samples"):
        dataclasses.replace(run, cross_entropy=None).samples()


def test_samples_has_the_true_labels_that_a_run_knows(data, recipe):
    run = distilled(data, recipe)
    run.true_labels = 2 - run.labels
    assert run.samples()["true_label"].tolist() == (2 - run.labels).tolist()


@pytest.mark.parametrize("folder", ["fashion_mnist/resnet20-resnet8/pckd/seed0", "cifar10/resnet32-resnet8/pckd/seed0"])
def test_recorded_runs_of_earlier_versions_have_a_table(folder):
    run = pckd.course.recorded(folder)
    assert run.margin is None and run.prediction is None
    table = run.samples()
    assert len(table) == len(run.labels) and {"confidence", "variability", "region", "gamma"} <= set(table)
    assert not {"correctness", "area_under_margin", "el2n", "prediction"} & set(table)


ODD_NAMES = [
    "a,b.png",
    'say "cheese".png',
    "two\nlines.png",
    "tab\t.png",
    "carriage\rreturn.png",
    "ä ☃.png",
    "NA",
    "=1+1",
]


def test_tables_of_odd_file_names_are_written_and_read_again(data, recipe, tmp_path):
    names = [*(name.encode() for name in ODD_NAMES), b"caf\xe9.png"]
    names += [f"{i}.png".encode() for i in range(len(names), 48)]
    train = dataclasses.replace(data.train, ids=np.array(names))
    run = distilled(dataclasses.replace(data, train=train), recipe, out=tmp_path / "run")
    table = pckd.load_run(tmp_path / "run").samples()
    readable = [name.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r") for name in ODD_NAMES]
    assert table["id"].tolist()[:9] == [*readable, "caf\\xe9.png"]
    table.to_csv(tmp_path / "table.csv")
    again = pd.read_csv(tmp_path / "table.csv", index_col=0, keep_default_na=False, na_values=[""])
    assert again["id"].tolist() == table["id"].tolist()
    assert again["area_under_margin"].to_numpy() == pytest.approx(table["area_under_margin"].to_numpy())
    assert run.ids.tolist() == names


def test_folders_in_memory_keep_their_file_names(tmp_path, recipe):
    from PIL import Image

    names = [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(8)]
    for green, split in enumerate(("train", "test")):
        for i, name in enumerate(names):
            file = tmp_path / "data" / split / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (15 * i, green, 0)).save(file)
    data = pckd.load_dataset(f"folder:{tmp_path / 'data'}")
    assert isinstance(data.train, Split)
    run = pckd.fit("resnet8", data, recipe, progress=False, out=tmp_path / "run")
    table = pckd.load_run(run.path).samples()
    assert table["id"].tolist() == names and table["class"].tolist() == [name[:3] for name in names]


def test_torch_data_sets_may_have_names(data):
    pairs = [torch.utils.data.TensorDataset(split.images, split.labels) for split in (data.train, data.test)]
    names = [f"{i}.png" for i in range(48)]
    assert pckd.Dataset.from_torch(*pairs, ids=names).train.ids.tolist() == names
    with pytest.raises(ValueError, match="one id per image, got 48 images and 3 ids"):
        pckd.Dataset.from_torch(*pairs, ids=names[:3])


def test_names_with_characters_that_utf8_lacks_can_be_written(data, recipe):
    run = pckd.fit("resnet8", data, recipe, progress=False)
    run.ids = np.array([f"caf\udce9 {i}" for i in range(48)])
    assert run.samples()["id"][1] == "caf\\udce9 1"


@pytest.mark.parametrize("kind", ["list", "Series", "object array", "numbers"])
def test_own_names_are_stored_and_come_back(kind, data, recipe, tmp_path):
    names = [f"picture {i}" for i in range(48)]
    given = {"list": names, "Series": pd.Series(names), "object array": np.array(names, object), "numbers": range(48)}
    images, labels = data.train.images, data.train.labels
    own = pckd.Dataset.from_arrays((images, labels), (data.test.images, data.test.labels), ids=given[kind])
    run = pckd.fit("resnet8", own, recipe, progress=False, out=tmp_path / "run")
    assert pckd.load_run(run.path).samples()["id"].tolist() == (list(range(48)) if kind == "numbers" else names)
