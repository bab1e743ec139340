"""Trainings without test images: nothing can evaluate them, and nothing records a number about them."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

import pckd_nb as pckd
from pckd_nb import cli, evaluation, runs
from pckd_nb.data import rebuild
from pckd_nb.figures import collection

from .conftest import make_data
from .test_cli import run  # noqa: F401

QUIET = dict(accelerator="cpu", precision="32-true", progress=False, batch_size=16)


@pytest.fixture
def unseen(data):
    return data.with_validation(0.25).without_test()


@pytest.fixture
def teacher_run(data, tmp_path):
    return pckd.fit(pckd.create_model("resnet14", data, seed=1), data, epochs=1, out=tmp_path / "teacher", **QUIET)


@pytest.fixture
def trial(unseen, teacher_run, tmp_path):
    return pckd.distill("resnet8", teacher_run, unseen, "kd", epochs=2, out=tmp_path / "trial", **QUIET)


def test_data_set_without_test_images_has_only_a_validation_split(data, unseen):
    assert unseen.test is None and unseen.held_out == ("val",) and unseen.options["test"] is False
    assert data.with_validation(0.25).held_out == ("test", "val") and data.held_out == ("test",)
    assert repr(unseen) == "Dataset('tiny': 36 + 12 images of 1×8×8, 3 classes)"
    assert "test" not in unseen._repr_html_() and "val images" in unseen._repr_html_()
    with pytest.raises(ValueError, match="tiny needs a validation split if its test images are left out: pass val=0.1"):
        data.without_test()
    with pytest.raises(ValueError, match="tiny has neither test images nor a validation split"):
        dataclasses.replace(data, test=None)


def test_fingerprint_does_not_depend_on_test_images(unseen):
    other = make_data()
    other = dataclasses.replace(other, test=dataclasses.replace(other.test, labels=(other.test.labels + 1) % 3))
    assert other.fingerprint != make_data().fingerprint
    assert other.with_validation(0.25).without_test().fingerprint == unseen.fingerprint


def test_no_test_number_is_recorded(trial, tmp_path):
    assert [name for name in trial.history if "test" in name] == []
    assert trial.history["val_top1"].between(0, 100).all() and trial.settings["best"].keys() == {"epoch", "val_top1"}
    assert "test" not in (tmp_path / "trial" / "run.json").read_text().replace('"test": false', "")
    assert trial.embedding is None and not (tmp_path / "trial" / "embedding.npz").exists()
    assert trial.accuracy != trial.accuracy and runs.summary([trial])["top-5 %"].isna().all()
    assert runs.table([trial])["top1"].isna().all()
    assert f"val top-1 {trial.history['val_top1'].iloc[-1]:.2f} %" in repr(trial)
    assert "val top1" in trial._repr_html_() and "val top-1 by epoch" in trial._repr_html_()
    loaded = pckd.load_run(tmp_path / "trial")
    assert loaded.history.equals(pckd.load_run(tmp_path / "trial", tables_only=True).history)
    assert repr(loaded) == repr(trial)


def test_only_the_validation_split_is_evaluated(unseen, teacher_run, monkeypatch):
    splits = []
    compute_outputs = evaluation.compute_outputs

    def recorded(model, data, split, *arguments, **options):
        splits.append(split)
        return compute_outputs(model, data, split, *arguments, **options)

    for module in ("evaluation", "training.trainer"):
        monkeypatch.setattr(f"pckd_nb.{module}.compute_outputs", recorded)
    pckd.distill("resnet8", teacher_run, unseen, "kd", epochs=2, **QUIET)
    assert splits == ["val", "val"]
    with pytest.raises(ValueError, match="split must be 'train', 'val', got 'test'"):
        pckd.evaluate(teacher_run, unseen)


def test_training_without_test_images_is_the_same_training(data, unseen, teacher_run, trial):
    seen = pckd.distill("resnet8", teacher_run, data.with_validation(0.25), "kd", epochs=2, **QUIET)
    assert seen.fingerprint == trial.fingerprint
    assert seen.history[list(trial.history)].equals(trial.history)


def test_run_without_test_images_can_be_resumed(unseen, tmp_path):
    class StopOnce(pckd.Callback):
        _stops = 1

        def on_step_end(self, trainer):
            trainer.should_stop = trainer.recorder.epoch == 2 and self._stops > 0
            self._stops -= trainer.should_stop

    stop, out = StopOnce(), tmp_path / "run"
    whole = pckd.fit("resnet8", unseen, epochs=2, **QUIET)
    assert not pckd.fit("resnet8", unseen, epochs=2, out=out, callbacks=[stop], **QUIET).finished
    resumed = pckd.fit("resnet8", unseen, epochs=2, out=out, resume=True, callbacks=[stop], **QUIET)
    assert resumed.finished and resumed.fingerprint == whole.fingerprint
    assert resumed.history.equals(whole.history)


def test_progress_shows_the_validation_accuracy(unseen):
    lines = []
    bar = SimpleNamespace(update=lambda steps=1: None, set_postfix_str=lines.append)
    history = pckd.fit("resnet8", unseen, epochs=1, **{**QUIET, "progress": bar}).history
    assert lines == [f"epoch 1, val {history['val_top1'].iloc[0]:.1f} %"]


def test_damaged_history_is_refused(trial, tmp_path):
    trial.history.drop(columns="val_top1").to_csv(tmp_path / "trial" / "history.csv", index=False)
    with pytest.raises(ValueError, match="history.csv has no column 'val_top1'"):
        pckd.load_run(tmp_path / "trial")
    del trial.settings["data"]["val_images"]
    runs.write_settings(tmp_path / "trial", trial.settings)
    with pytest.raises(ValueError, match="test_images is missing"):
        pckd.load_run(tmp_path / "trial")


def test_figures_leave_out_runs_without_test_images(trial, data, teacher_run, tmp_path):
    with pytest.raises(ValueError, match="the run KD resnet8 was trained without test images"):
        pckd.figures.learning_curves([trial])
    with pytest.raises(ValueError, match="all runs in .* were trained without test images"):
        collection.draw_all(tmp_path / "trial", tmp_path / "figures")
    seen = pckd.distill("resnet8", teacher_run, data, "kd", epochs=2, out=tmp_path / "seen", **QUIET)
    _, text = collection.draw_all(tmp_path, tmp_path / "figures", only=["11"], say=lambda line: None)
    assert seen.fingerprint[:8] in text.read_text() and trial.fingerprint[:8] not in text.read_text()


def test_run_of_a_named_data_set_is_evaluated_on_its_validation_split(run, tmp_path):  # noqa: F811
    data = pckd.load_dataset("digits", train_size=60, test_size=30, val=0.2, test=False)
    assert torch.equal(data.val.labels, pckd.load_dataset("digits", train_size=60, test_size=30, val=0.2).val.labels)
    trained = pckd.fit("resnet8", data, epochs=1, out=tmp_path / "run", **QUIET)
    assert rebuild(trained.settings["data"]).fingerprint == data.fingerprint
    status, out, err = run("evaluate", "run", "--split", "val")
    assert status == 0 and not err and f"top-1 {trained.history['val_top1'].iloc[0]:.2f} %" in out
    status, out, err = run("evaluate", "run")
    assert status == 2 and err == ["pckd-nb: split must be 'train', 'val', got 'test'"]
    assert cli.main(["figures", "--runs", str(tmp_path / "run")]) == 2
