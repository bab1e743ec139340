import dataclasses
import json
import os

import numpy as np
import pytest
import torch

import pckd_nb as pckd
from pckd_nb import recording, runs
from pckd_nb.evaluation import Predictions


@pytest.fixture
def run(data, recipe, tmp_path):
    student, teacher = pckd.create_model("resnet8", data, seed=2), pckd.create_model("resnet14", data, seed=1)
    return pckd.distill(student, teacher, data, pckd.PCKD(), recipe, out=tmp_path / "run", progress=False)


def test_load_run_returns_what_was_saved(run, data):
    loaded = pckd.load_run(run.path)
    assert loaded.settings == json.loads(json.dumps(run.settings))
    assert loaded.history.equals(run.history) and loaded.timing.equals(run.timing)
    for name in ("cross_entropy", "difficulty", "labels", "ground_truth"):
        assert np.array_equal(getattr(loaded, name), getattr(run, name))
    for ours, theirs in ((loaded.student_state, run.student_state), (loaded.method_state, run.method_state)):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert loaded.method_state.keys() >= {"projector.0.weight", "embed_student.weight"}
    assert loaded.title == "PCKD resnet8" and loaded.finished and loaded.seconds > 0
    assert loaded.accuracy == pckd.evaluate(loaded.model(), data).top1
    assert loaded.parameters == sum(parameter.numel() for parameter in loaded.model().parameters())


def test_a_run_folder_has_the_documented_files(run):
    documented = {
        "run.json",
        "history.csv",
        "timing.csv",
        "samples.npz",
        "student.safetensors",
        "gallery.npz",
        "embedding.npz",
        "geometry.npz",
    }
    assert {file.name for file in run.path.iterdir()} == documented
    assert all(name in runs.__doc__ for name in documented)


def test_gallery_is_sorted_from_easy_to_hard(run, data):
    gallery = pckd.load_run(run.path).gallery
    assert (np.diff(gallery["difficulty"].astype(float)) >= 0).all() and len(gallery["index"]) == 48
    assert np.array_equal(gallery["images"], data.train.images[gallery["index"]])
    assert np.array_equal(gallery["difficulty"], run.difficulty[-1][gallery["index"]])


def test_embedding_holds_features_of_the_test_images(run, data):
    embedding = pckd.load_run(run.path).embedding
    predictions = pckd.predict(run.model(), data)
    assert np.array_equal(embedding["features"], predictions.features.half())
    assert np.array_equal(embedding["labels"], data.test.labels)
    assert np.array_equal(embedding["predictions"], predictions.logits.argmax(1))
    assert np.array_equal(embedding["centers"], run.student_state["fc.weight"].half())


def test_summary_has_a_row_for_every_run(run):
    table = runs.summary([run, run])
    assert table["method"].tolist() == ["PCKD", "PCKD"] and table["top-1 %"].tolist() == [run.accuracy] * 2
    assert table["parameters"].tolist() == [run.parameters] * 2 and table["epochs"].tolist() == [2, 2]


def test_a_run_can_be_saved_without_weights(run, tmp_path):
    run.save(tmp_path / "record", weights=False)
    record = pckd.load_run(tmp_path / "record")
    assert not (tmp_path / "record" / "student.safetensors").exists()
    assert record.fingerprint == runs.fingerprint(run.student_state) and record.history.equals(run.history)
    with pytest.raises(ValueError, match="saved without weights"):
        record.model()


def test_missing_parts_of_a_run_are_named(run):
    assert runs.require_parts(run, *runs.REQUIRED_ARRAYS) is run
    for part, arrays in runs.REQUIRED_ARRAYS.items():
        bare = dataclasses.replace(run, **{arrays[-1]: None})
        with pytest.raises(ValueError, match=rf"PCKD resnet8 has no {part} \({part}\.npz\): train it again"):
            runs.require_parts(bare, *runs.REQUIRED_ARRAYS)
        with pytest.raises(ValueError, match=rf"has no {part} .*: it is written after the first complete epoch"):
            runs.require_parts(dataclasses.replace(bare, history=run.history[:0]), part)


def test_tables_only_loads_no_arrays_or_weights(run):
    loaded = pckd.load_run(run.path, tables_only=True)
    assert loaded.settings == json.loads(json.dumps(run.settings)) and loaded.path == run.path
    assert loaded.history.equals(run.history) and loaded.seconds == run.seconds
    assert not loaded.student_state and loaded.embedding is loaded.gallery is loaded.cross_entropy is None


def test_folders_without_a_run_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        pckd.load_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no run\.json"):
        pckd.load_run(tmp_path)


@pytest.mark.parametrize(
    "name, content, error",
    [("run.json", b"{", "damaged"), ("run.json", b"[]", "damaged"), ("run.json", b'{"format": 99}', "format 99")]
    + [("student.safetensors", b"<html>", "damaged"), ("samples.npz", b"PK\x03\x04", "damaged")]
    + [("history.csv", b"", "damaged"), ("history.csv", None, "history.csv is missing")],
)
def test_damaged_files_give_a_one_line_error(name, content, error, run):
    if content is None:
        (run.path / name).unlink()
    else:
        (run.path / name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=error) as caught:
        pckd.load_run(run.path)
    assert "\n" not in str(caught.value)


def test_a_pickle_in_an_array_file_is_not_loaded(run):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(run.path / "opened"),))

    np.savez(run.path / "samples.npz", cross_entropy=np.array([Evil()], dtype=object))
    with pytest.raises(ValueError, match="damaged"):
        pckd.load_run(run.path)
    assert not (run.path / "opened").exists()


def test_weights_of_another_network_are_refused(run):
    run.settings["model"]["name"] = "resnet14"
    with pytest.raises(
        ValueError, match=r"these weights belong to another network: 'layer1\.1\.conv1\.weight' is missing"
    ):
        run.model()
    run.settings["model"].update(name="resnet8", num_classes=5)
    with pytest.raises(ValueError, match=r"'fc\.weight' has shape \(3, 64\) instead of \(5, 64\)"):
        run.model()
    run.settings["model"].update(num_classes=3)
    run.student_state["extra"] = torch.zeros(1)
    with pytest.raises(ValueError, match="'extra' does not exist in this one"):
        run.model()
    run.settings["model"]["name"] = None
    with pytest.raises(ValueError, match="your own"):
        run.model()


def test_fingerprint_changes_with_any_name_or_weight():
    state = {"a": torch.zeros(3), "b": torch.ones(2)}
    expected = runs.fingerprint(state)
    assert expected == runs.fingerprint({"b": torch.ones(2), "a": torch.zeros(3)}) and len(expected) == 16
    assert expected != runs.fingerprint({"a": torch.zeros(3), "c": torch.ones(2)})
    assert expected != runs.fingerprint({"a": torch.tensor([0, 0, 1e-30]), "b": torch.ones(2)})


def test_load_runs_and_table_combine_many_runs(data, recipe, teacher, tmp_path):
    uniform = pckd.PCKD(strategy="uniform", beta_fa=0, beta_cc=0.25)
    for name, method, seed in (("a", pckd.Supervised(), 0), ("b", uniform, 3)):
        student = pckd.create_model("resnet8", data, seed=seed)
        pckd.distill(student, teacher, data, method, recipe, seed=seed, out=tmp_path / name, progress=False)
    (tmp_path / "c").mkdir()
    half = runs.read_settings(tmp_path / "a") | {"status": "interrupted"}
    (tmp_path / "c" / "run.json").write_text(json.dumps(half))

    loaded = runs.load_runs(tmp_path)
    assert [run.path.name for run in loaded] == ["a", "b"]
    assert [run.variant for run in loaded] == ["", "β_fa = 0, β_cc = 0.25, strategy = uniform"]
    assert loaded[1].chosen_settings == {"beta_fa": 0, "beta_cc": 0.25, "strategy": "uniform"}
    assert loaded[1].method_settings["beta_cc"] == 0.25 and loaded[1].method_settings["beta_kd"] == 1
    table = runs.table(loaded)
    assert table["method"].tolist() == ["supervised", "PCKD"] and table["seed"].tolist() == [0, 3]
    assert table["teacher"].isna().tolist() == [True, False] and table["teacher"][1] == "resnet14"
    assert set(table["student"]) == {"resnet8"}
    assert np.isnan(table["beta_cc"][0]) and table["beta_cc"][1] == 0.25
    assert table["top1"].tolist() == [run.accuracy for run in loaded] and set(table["epochs"]) == {2}
    with pytest.raises(FileNotFoundError, match="no finished run"):
        runs.load_runs(tmp_path / "c")


def test_a_subsampled_embedding_covers_all_classes(student):
    labels = torch.arange(3).repeat_interleave(3000)  # sorted, as a folder of images is
    predictions = Predictions(torch.rand(9000, 64), torch.rand(9000, 3), labels)
    found = recording.embedding(student, predictions)
    assert len(found["labels"]) == recording.EMBEDDING_SIZE
    assert np.bincount(found["labels"]).tolist() == [667, 666, 667]
    assert np.array_equal(found["features"][-1], predictions.features[-1].half())
