"""Class means and class centers that a training records in every epoch, and what is computed from them."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

import pckd_nb as pckd
from pckd_nb import analysis, collapse, recording, resuming, runs
from pckd_nb.training import RecordTrainGeometry, StopWhen

EXACT = dict(accelerator="cpu", precision="32-true")
QUIET = dict(progress=False, **EXACT)


@pytest.fixture
def run(data, recipe, student):
    return pckd.fit(student, data, recipe, **QUIET)


def same_geometry(a, b):
    return a.geometry.keys() == b.geometry.keys() and all(
        np.array_equal(a.geometry[name], b.geometry[name], equal_nan=True) for name in a.geometry
    )


def test_a_training_records_geometry_of_the_test_images_in_every_epoch(run, data):
    geometry, predictions = run.geometry, pckd.predict(run.model(), data, **EXACT)
    assert geometry["epoch"].tolist() == [1, 2]
    assert {"epoch", "means", "centers", *collapse.MEASURES} == geometry.keys()
    features, logits, labels = (tensor.numpy() for tensor in predictions)
    means = np.stack([features[labels == c].mean(0) for c in range(3)])
    centers = run.student_state["fc.weight"].numpy()
    assert geometry["means"].dtype == geometry["centers"].dtype == np.float16
    assert geometry["means"].shape == geometry["centers"].shape == (2, 3, 64)
    assert np.array_equal(geometry["means"][1], means.astype(np.float16))
    assert np.array_equal(geometry["centers"][1], centers.astype(np.float16))
    expected = collapse.collapse_measures(features, labels, logits.argmax(1), centers, means)
    for name in collapse.MEASURES:
        assert geometry[name].dtype == np.float32 and geometry[name][1] == pytest.approx(expected[name], rel=1e-4)
    assert not np.array_equal(geometry["means"][0], geometry["means"][1])


def test_geometry_is_saved_and_loaded(run, tmp_path):
    run.save(tmp_path / "run")
    assert same_geometry(pckd.load_run(tmp_path / "run"), run)
    table = analysis.geometry_table(tmp_path / "run", str(tmp_path / "run"))
    pd.testing.assert_frame_equal(analysis.geometry_table(run, run), table)
    older = dataclasses.replace(run, geometry=None)
    older.save(tmp_path / "older")
    assert pckd.load_run(tmp_path / "older").geometry is None


def test_without_test_images_the_validation_images_are_measured(data, recipe, student):
    data = data.with_validation(0.25).without_test()
    run = pckd.fit(student, data, recipe, **QUIET)
    predictions = pckd.predict(run.model(), data, "val", **EXACT)
    assert run.embedding is None
    means = collapse.class_means(predictions.features.numpy(), predictions.labels.numpy(), 3)
    assert np.array_equal(run.geometry["means"][-1], means.astype(np.float16))


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_resumed_run_has_the_same_geometry(steps, data, recipe, tmp_path):
    """The training is interrupted within the first epoch, at its end, and within the second epoch."""
    done = []
    stop = StopWhen(lambda: len(done) >= steps)
    stop.on_step_end = lambda trainer: done.append(1) or setattr(trainer, "should_stop", len(done) >= steps)
    starts = [pckd.create_model("resnet8", data, seed=2) for _ in range(3)]
    whole = pckd.fit(starts[0], data, recipe, callbacks=[RecordTrainGeometry()], **QUIET)
    first = pckd.fit(starts[1], data, recipe, out=tmp_path / "run", callbacks=[RecordTrainGeometry(), stop], **QUIET)
    assert not first.finished
    options = dict(resume=True, callbacks=[RecordTrainGeometry()], **QUIET)
    resumed = pckd.fit(starts[2], data, recipe, out=tmp_path / "run", **options)
    assert resumed.fingerprint == whole.fingerprint and same_geometry(resumed, whole)


def test_a_checkpoint_of_an_older_version_can_be_resumed(run, data, recipe, tmp_path):
    """Its first epoch was not recorded."""
    stop = StopWhen(lambda: False)
    stop.on_epoch_end = lambda trainer: setattr(trainer, "should_stop", True)
    start = pckd.create_model("resnet8", data, seed=2)
    pckd.fit(start, data, recipe, out=tmp_path / "run", callbacks=[stop], **QUIET)
    state = resuming.read_checkpoint(tmp_path / "run")
    assert len(state["recorder"].pop("geometry")) == 1
    torch.save(state, tmp_path / "run" / resuming.CHECKPOINT)
    start = pckd.create_model("resnet8", data, seed=2)
    resumed = pckd.fit(start, data, recipe, out=tmp_path / "run", resume=True, **QUIET)
    assert resumed.fingerprint == run.fingerprint and resumed.geometry["epoch"].tolist() == [2]
    assert np.array_equal(resumed.geometry["means"][0], run.geometry["means"][1])
    assert pckd.load_run(tmp_path / "run").geometry["epoch"].tolist() == [2]


@pytest.mark.parametrize("limit, kept", [(2 * 3 * 64 * 2 * 2, True), (2 * 3 * 64 * 2 * 2 - 1, False)])
def test_large_vectors_are_left_out(limit, kept, run, data, recipe, monkeypatch, tmp_path):
    monkeypatch.setattr(recording, "MAX_GEOMETRY_BYTES", limit)
    start = pckd.create_model("resnet8", data, seed=2)
    again = pckd.fit(start, data, recipe, out=tmp_path / "run", **QUIET)
    assert ("means" in again.geometry) == ("centers" in again.geometry) == kept
    for name in ("epoch", *collapse.MEASURES):
        assert np.array_equal(again.geometry[name], run.geometry[name])
    assert same_geometry(pckd.load_run(tmp_path / "run"), again)


def test_features_that_are_not_finite_give_unknown_measures(run, data):
    model, predictions = run.model(), pckd.predict(run.model(), data, **EXACT)
    predictions.features[0, 0] = torch.inf
    found = recording.measure_geometry(model, predictions)
    assert all(np.isnan(found[name]) for name in collapse.MEASURES)
    assert found["means"].isnan().all() and found["centers"].isfinite().all()


def test_the_callback_adds_the_training_images(run, data, recipe, tmp_path):
    start = pckd.create_model("resnet8", data, seed=2)
    both = pckd.fit(start, data, recipe, out=tmp_path / "run", callbacks=[RecordTrainGeometry()], **QUIET)
    assert both.fingerprint == run.fingerprint and both.history.equals(run.history)
    assert {name for name in both.geometry if not name.startswith("train_")} == run.geometry.keys()
    of_train = runs.geometry_of(both.geometry, train=True)
    expected = analysis.class_geometry(both, data, "train", **EXACT)
    assert of_train.keys() == expected.keys() and of_train["epoch"].tolist() == [1, 2]
    for name in ("means", "nc1", "nc4"):
        assert of_train[name][1] == pytest.approx(expected[name][0], rel=1e-4)
    table = analysis.geometry_table(tmp_path / "run", both, train=True)
    assert np.array_equal(table["nc3"].to_numpy(), of_train["nc3"]) and table["rsa_means"][1] == pytest.approx(1)
    assert not np.array_equal(table["nc1"], analysis.geometry_table(both)["nc1"])
    with pytest.raises(ValueError, match=r"no geometry of training images: train it with callbacks=\[RecordTrainG"):
        analysis.geometry_table(run, train=True)


def test_the_callback_uses_the_first_images_of_every_class(data, recipe, student):
    callback = RecordTrainGeometry(images_per_class=2)
    found = pckd.fit(student, data, recipe, callbacks=[callback], **QUIET)
    again = pckd.fit(pckd.create_model("resnet8", data, seed=2), data, recipe, callbacks=[callback], **QUIET)
    assert same_geometry(found, again)
    first = dataclasses.replace(data, train=data.train.take(np.arange(6)))  # the labels are 0, 1, 2, 0, 1, 2, …
    expected = analysis.class_geometry(found, first, "train", **EXACT)
    assert found.geometry["train_nc1"][1] == pytest.approx(expected["nc1"][0], rel=1e-4)
    for wrong, error in ((1, ValueError), (2.5, TypeError), ("2", TypeError)):
        with pytest.raises(error, match="images_per_class must be "):
            RecordTrainGeometry(wrong)


# ------------------------------------------------------------------------------------------------------- what follows


def made_geometry(means, centers, epochs=None):
    """Return the geometry of as many epochs as there are matrices, with made-up measures."""
    arrays = {"epoch": np.array(epochs or range(1, len(means) + 1), np.int32)}
    arrays |= {name: np.full(len(means), place, np.float32) for place, name in enumerate(collapse.MEASURES)}
    return arrays | {"means": np.array(means, np.float16), "centers": np.array(centers, np.float16)}


def test_center_angles_by_hand():
    centers = [[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]  # their mean is 0
    assert analysis.center_angles(centers, centers).tolist() == [0, 0, 0]
    turned = np.array([[1.0, 1.0], [-1.0, -1.0], [0.0, 0.0]]) + 5
    assert analysis.center_angles(centers, turned)[:2] == pytest.approx([45, 45], abs=1e-4)
    assert analysis.center_angles(centers, -np.array(centers))[:2] == pytest.approx([180, 180])
    target = [[0.0, 1.0], [-1.0, 0.0], [1.0, -1.0]]
    assert analysis.center_angles(centers, target) == pytest.approx([90, 0, 90], abs=1e-4)


def test_rsa_is_the_spearman_correlation_of_similarities():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(6, 4)), random.normal(size=(6, 9))
    pairs = np.triu_indices(6, 1)
    similarities = [analysis.center_similarity(x)[pairs] for x in (a, b)]
    assert analysis.center_rsa(a, b) == pytest.approx(scipy.stats.spearmanr(*similarities).statistic)
    assert analysis.center_rsa(a, 3 * a[:, ::-1] + 1) == pytest.approx(1)
    assert np.isnan(analysis.center_rsa(np.ones((4, 2)), a[:4]))


def test_the_table_has_the_recorded_measures_and_the_angle_to_the_last_epoch(run):
    ends = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    half = np.array([[1.0, 1.0], [-1.0, -1.0], [0.0, 0.0]])
    made = dataclasses.replace(run, geometry=made_geometry([half, ends], [half, ends], epochs=[3, 4]))
    table = analysis.geometry_table(made)
    assert table.columns.tolist() == ["epoch", *collapse.MEASURES, "center_angle_to_end"]
    assert table["epoch"].tolist() == [3, 4] and table["nc3"].tolist() == [collapse.MEASURES.index("nc3")] * 2
    assert table["center_angle_to_end"].tolist() == pytest.approx([30, 0], abs=1e-4)  # 45°, 45° and 0°


def test_the_table_compares_every_epoch_with_the_last_one_of_the_teacher(run):
    random = np.random.default_rng(0)
    a, b, teacher = (random.normal(size=(5, 4)).astype(np.float16).astype(float) for _ in range(3))
    made = dataclasses.replace(run, geometry=made_geometry([a, b], [b, teacher]))
    of_teacher = made_geometry([b, a], [b, teacher])
    table = analysis.geometry_table(made, of_teacher)
    assert table["cka_means"].tolist() == pytest.approx([1, analysis.center_cka(b, a)])
    assert table["cka_centers"].tolist() == pytest.approx([analysis.center_cka(b, teacher), 1])
    assert table["rsa_means"].tolist() == pytest.approx([1, analysis.center_rsa(b, a)])
    assert table["rsa_centers"].tolist() == pytest.approx([analysis.center_rsa(b, teacher), 1])
    angle = analysis.center_angles(b, teacher).mean()
    assert table["center_angle_to_teacher"].tolist() == pytest.approx([angle, 0], abs=1e-4)
    assert angle > 20

    wide = made_geometry([np.hstack([x, x]) for x in (b, a)], [np.hstack([x, x]) for x in (b, teacher)])
    wider = analysis.geometry_table(made, dataclasses.replace(run, geometry=wide))
    assert wider["center_angle_to_teacher"].isna().all()
    assert np.allclose(wider["cka_centers"], table["cka_centers"])


def test_classes_without_images_are_left_out_of_the_comparison(run):
    random = np.random.default_rng(0)
    means, teacher = random.normal(size=(2, 5, 4)).astype(np.float16).astype(float)
    means[1], teacher[3] = np.nan, np.nan
    made = dataclasses.replace(run, geometry=made_geometry([means], [np.eye(5, 4)]))
    table = analysis.geometry_table(made, made_geometry([teacher], [np.eye(5, 4)]))
    both = [0, 2, 4]
    assert table["cka_means"][0] == pytest.approx(analysis.center_cka(means[both], teacher[both]))
    means[0] = np.nan
    made.geometry["means"] = np.array([means], np.float16)
    table = analysis.geometry_table(made, made_geometry([teacher], [np.eye(5, 4)]))
    assert np.isnan(table["rsa_means"][0]) and table["rsa_centers"][0] == pytest.approx(1)


def test_geometry_that_was_not_recorded_is_named(run):
    bare = dataclasses.replace(run, geometry=None)
    for arguments in ((bare,), (run, bare)):
        with pytest.raises(ValueError, match=r"has no geometry \(geometry\.npz\): train it again"):
            analysis.geometry_table(*arguments)
    small = {name: array for name, array in run.geometry.items() if name not in ("means", "centers")}
    without_vectors = dataclasses.replace(run, geometry=small)
    assert analysis.geometry_table(without_vectors)["center_angle_to_end"].isna().all()
    for name, arguments in (("run", (without_vectors, run)), ("teacher", (run, small))):
        with pytest.raises(ValueError, match=f"the {name} has recorded no class centers, .*: compare its last epoch"):
            analysis.geometry_table(*arguments)
    with pytest.raises(ValueError, match="the run has 3 classes, but the teacher has 5"):
        analysis.geometry_table(run, made_geometry([np.eye(5)], [np.eye(5)]))
    for wrong in (5, {"means": 1}):
        wanted = "teacher_geometry must be a Run, the folder of one, or the result of class_geometry, got "
        with pytest.raises(TypeError, match=wanted):
            analysis.geometry_table(run, wrong)
    with pytest.raises(TypeError, match="run must be a Run or the folder of one, got dict"):
        analysis.geometry_table(run.geometry)


def test_class_geometry_gives_what_the_training_recorded(run, data):
    found = analysis.class_geometry(run, data, **EXACT)
    assert found.keys() == run.geometry.keys() and found["epoch"].tolist() == [2]
    for name in ("means", "centers"):
        assert np.array_equal(found[name][0], run.geometry[name][1])
    for name in collapse.MEASURES:
        assert found[name] == pytest.approx(run.geometry[name][1:], rel=1e-4)
    train = analysis.class_geometry(run.model(), data, "train", **EXACT)
    assert train["epoch"].tolist() == [0] and not np.array_equal(train["means"], found["means"])
    assert analysis.geometry_table(run, found)["cka_centers"][1] == pytest.approx(1)


def test_fidelity_by_hand(student, data, monkeypatch):
    """Three images. The second one is predicted differently."""
    s = torch.tensor([[0.5, 0.25, 0.25], [0.6, 0.2, 0.2], [0.2, 0.2, 0.6]]).log()
    t = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]]).log() + 3
    answers = iter([s, t])
    monkeypatch.setattr(analysis.predictions, "predict", lambda *_: recording.Predictions(None, next(answers), None))
    found = analysis.fidelity(student, student, data)
    kl = 0 + (0.2 * np.log(1 / 3) + 0.6 * np.log(3)) + (0.2 * np.log(0.5) + 0.8 * np.log(4 / 3))
    assert found == pytest.approx((200 / 3, kl / 3))


def test_fidelity_compares_two_networks(run, teacher, data):
    s, t = (pckd.predict(network, data, **EXACT).logits.softmax(1) for network in (run.model(), teacher))
    found = analysis.fidelity(run, teacher, data, **EXACT)
    assert found.agreement == pytest.approx(100 * (s.argmax(1) == t.argmax(1)).float().mean().item())
    assert found.kl == pytest.approx((t * (t / s).log()).sum(1).mean().item(), rel=1e-4)
    assert found.kl > 0.01
    assert found.kl != pytest.approx(analysis.fidelity(teacher, run, data, **EXACT).kl)


def test_class_gains_name_the_nearest_class_of_the_reference(teacher, student, data):
    with torch.no_grad():
        teacher.head.weight.zero_()[:, :2] = torch.tensor([[1.0, 0.0], [1.0, 1.0], [-2.0, -1.0]])
        student.head.weight.zero_()[:, :2] = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    table = analysis.class_gains(student, teacher, data, **EXACT)
    assert table.columns.tolist() == [
        "class", "images", "accuracy", "reference_accuracy", "gain", "nearest", "reference_angle", "angle",
    ]  # fmt: skip
    assert table["nearest"].tolist() == ["class 1", "class 0", "class 0"]
    assert table["reference_angle"].tolist() == pytest.approx([45, 45, np.degrees(np.arccos(-2 / 5**0.5))], abs=1e-3)
    assert table["angle"].tolist() == pytest.approx([180, 180, 90], abs=1e-3)
    classes = analysis.agreement(student, teacher, data, **EXACT).classes
    assert isinstance(table, pd.DataFrame) and np.allclose(table["gain"], classes["difference"])
    assert np.allclose(table["accuracy"] - table["reference_accuracy"], table["gain"])
