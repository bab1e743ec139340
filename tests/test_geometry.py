"""Class means and class centers that a training records in every epoch, and what is computed from them."""

import dataclasses

import numpy as np
import pytest
import torch

import pckd_nb as pckd
from pckd_nb import collapse, recording, resuming
from pckd_nb.training import StopWhen

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
def test_resumed_run_has_the_same_geometry(steps, run, data, recipe, tmp_path):
    """The training is interrupted within the first epoch, at its end, and within the second epoch."""
    done = []
    stop = StopWhen(lambda: len(done) >= steps)
    stop.on_step_end = lambda trainer: done.append(1) or setattr(trainer, "should_stop", len(done) >= steps)
    start = pckd.create_model("resnet8", data, seed=2)
    first = pckd.fit(start, data, recipe, out=tmp_path / "run", callbacks=[stop], **QUIET)
    assert not first.finished
    start = pckd.create_model("resnet8", data, seed=2)
    resumed = pckd.fit(start, data, recipe, out=tmp_path / "run", resume=True, **QUIET)
    assert resumed.fingerprint == run.fingerprint and same_geometry(resumed, run)


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
