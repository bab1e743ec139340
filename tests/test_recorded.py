"""The recorded runs can be loaded, contain no paths of a machine, and agree with docs/results.md."""

import copy
import dataclasses
import importlib.util
import json
import time
from pathlib import Path

import numpy as np
import pytest

import pckd_nb as pckd
from pckd_nb.data import shapes
from pckd_nb.figures.arms import study_key
from pckd_nb.figures.collection import FIGURES, draw_all

from .conftest import time_limit

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "data" / "runs"
OTHERS = ROOT / "data" / "other_teachers"
MEGABYTES = 15
SECONDS = 60  # for all figures, on the machine for which the documentation states times


def load_script(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runs():
    return pckd.runs.load_runs(RECORDED)


@pytest.fixture(scope="module")
def others():
    """Runs with other teachers, by folder."""
    return {folder.name: pckd.runs.load_runs(folder) for folder in sorted(OTHERS.iterdir()) if folder.is_dir()}


def test_recorded_runs_are_small_enough_for_git():
    files = (file for folder in (RECORDED, OTHERS) for file in folder.rglob("*"))
    assert sum(file.stat().st_size for file in files if file.is_file()) < MEGABYTES * 1e6


def test_folders_match_the_settings_of_their_runs(runs, others):
    for root, run in [(RECORDED, run) for run in runs] + [
        (OTHERS / name, run) for name in others for run in others[name]
    ]:
        folder, settings = run.path.relative_to(root), run.settings
        if folder.parts[0] == "teachers":
            continue
        data, pair, arm, seed = folder.parts
        assert settings["data"]["name"].removeprefix("folder:") == data and seed == f"seed{settings['seed']}"
        assert pair.split("-")[1] == settings["model"]["name"].replace(":", "_")
        assert arm.split("-")[0] == settings["method"]["name"].lower()
        if settings["teacher"]:
            teacher = pckd.load_run(run.path / settings["teacher"]["run"])
            assert teacher.fingerprint == settings["teacher"]["fingerprint"]
            assert teacher.path.resolve().is_relative_to(root)


def test_fields_that_older_recipes_lack_have_their_defaults_in_studies():
    run = next(iter(pckd.runs.load_runs(RECORDED / "teachers" / "shapes100")))
    older = dataclasses.replace(run, settings=copy.deepcopy(run.settings))
    older.settings["recipe"].pop("crop_per_view", None)
    newer = dataclasses.replace(run, settings=copy.deepcopy(older.settings))
    newer.settings["recipe"]["crop_per_view"] = False
    other = dataclasses.replace(run, settings=copy.deepcopy(older.settings))
    other.settings["recipe"]["crop_per_view"] = True
    assert study_key(older) == study_key(newer) != study_key(other)


def test_runs_with_other_teachers_differ_only_in_the_teacher(runs, others):
    main = {run.path.relative_to(RECORDED).as_posix(): run for run in runs}
    fingerprints = {main["teachers/shapes100"].fingerprint}
    for name, found in others.items():
        other = {run.path.relative_to(OTHERS / name).as_posix(): run for run in found}
        teacher = other.pop("teachers/shapes100")
        fingerprints.add(teacher.fingerprint)
        assert name in (f"seed{teacher.settings['seed']}", f"images{teacher.settings['data']['train_images']}")
        for place, run in other.items():  # everything but the teacher is the same
            main_settings, settings = main[place].settings, run.settings
            assert study_key(run) == study_key(main[place])
            assert settings["recipe"]["epochs"] == main_settings["recipe"]["epochs"]
            assert (settings["seed"], settings["precision"]) == (main_settings["seed"], main_settings["precision"])
            assert settings["model"]["start"] == main_settings["model"]["start"]
            assert run.method_settings == main[place].method_settings
            assert not list(run.path.glob("*.npz")) and not list(run.path.glob("*.safetensors"))
    assert len(fingerprints) == len(others) + 1


def test_recorded_runs_contain_no_paths_of_a_machine(runs, others):
    for run in [*runs, *(run for found in others.values() for run in found)]:
        name = run.settings["data"]["name"]
        assert "/" not in name and "\\" not in name, run.path
        assert not any(str(Path.home()) in text or "/tmp" in text for text in [json.dumps(run.settings)]), run.path


@pytest.mark.parametrize("data", ["shapes100", "digits"])
def test_recorded_teachers_still_have_their_accuracy(data):
    run = pckd.load_run(RECORDED / "teachers" / data)
    loaded = pckd.load_dataset(data, **run.settings["data"]["options"])
    assert loaded.fingerprint == run.data_fingerprint
    assert pckd.evaluate(run.model(), loaded).top1 == pytest.approx(run.accuracy, abs=0.5)


def test_redrawn_images_match_recorded_ones_up_to_one_grey_level(runs, others):
    """Version 1 of shapes100 drew the recorded galleries, on a processor with AVX-512."""
    drawn = {}
    for run in [*runs, *(run for found in others.values() for run in found)]:
        settings = run.settings["data"]
        if settings["name"] != "shapes100":
            continue
        options = json.dumps(settings["options"])
        if options not in drawn:
            drawn[options] = pckd.load_dataset("shapes100", **settings["options"])
        assert drawn[options].fingerprint == run.data_fingerprint
        version_2 = run.settings["method"]["settings"].get("strategy", {}).get("value", "").startswith("constant_")
        assert (settings["fingerprint"] == run.data_fingerprint) == version_2
        if run.gallery:
            redrawn = drawn[options].train.images.numpy()[run.gallery["index"]]
            assert np.abs(redrawn.astype(int) - run.gallery["images"]).max() <= 1
    assert {data.fingerprint for data in drawn.values()} == set(shapes.REDRAWN_FINGERPRINTS.values())


def test_the_results_page_is_up_to_date(runs, others):
    make_results = load_script(ROOT / "docs" / "make_results.py")
    page = make_results.PAGE.read_text("utf-8")
    assert make_results.fill(page, make_results.tables(runs, others)) == page, "run python docs/make_results.py"
    with pytest.raises(ValueError, match="the page has no place <!-- other --> … <!-- end -->"):
        make_results.fill(page, {"other": ""})


@pytest.mark.parametrize("place", ["docs/results.md", "docs/instructors.md", "notebooks/10_comparisons.ipynb"])
def test_the_comparison_with_focal_gives_the_recorded_mean_weights(runs, place):
    """The text gives ranges of mean weights in the last epoch: "0.22 to 0.26 … 0.90 to 0.92"."""
    plain = [run for run in runs if run.title == "PCKD resnet8" and len(run.history) == 10]
    plain = [run for run in plain if run.settings["data"]["name"] == "shapes100"]
    ranges = []
    for variant in ("strategy = focal", ""):
        found = [run.history["mean_weight"].iloc[-1] for run in plain if run.variant == variant]
        assert len(found) == 5
        ranges.append(f"{min(found):.2f} to {max(found):.2f}")
    paragraphs = [
        line for line in (ROOT / place).read_text("utf-8").splitlines() if "ocal" in line and "1.1 to 4.2" in line
    ]
    assert paragraphs
    for paragraph in paragraphs:
        assert all(range_ in paragraph for range_ in ranges) and "mean weight" in paragraph


def test_record_keeps_only_what_figures_need(tmp_path, data, recipe, teacher, student):
    record = load_script(RECORDED / "record.py")
    source, target = tmp_path / "source", tmp_path / "target"
    trained_teacher = pckd.fit(teacher, data, recipe, out=source / "teachers" / "shapes100", progress=False)
    trained_teacher.settings["data"]["name"] = "shapes100"
    trained_teacher.save(trained_teacher.path)
    for arm, seed in (("pckd", 0), ("pckd", 3), ("pckd-beta_cc=0.02", 0)):
        out = source / "tiny" / "resnet14-resnet8" / arm / f"seed{seed}"
        run = pckd.distill(student, trained_teacher, data, pckd.PCKD(), recipe, seed=seed, out=out, progress=False)
        run.settings["data"]["name"] = "folder:/somewhere/photos"
        run.save(out)
    record.main(source, target)

    def kept(*place):
        return {file.name for file in target.joinpath(*place).iterdir()} - {"run.json", "history.csv", "timing.csv"}

    pair = "tiny", "resnet14-resnet8"
    assert kept("teachers", "shapes100") == {"student.safetensors", "embedding.npz", "gallery.npz"}
    assert kept(*pair, "pckd", "seed0") == {"embedding.npz", "samples.npz"}  # no gallery, as photographs may be private
    assert kept(*pair, "pckd", "seed3") == kept(*pair, "pckd-beta_cc=0.02", "seed0") == set()
    record.main(source, tmp_path / "tables", tables_only=True)
    found = [file.name for file in (tmp_path / "tables").rglob("*") if file.is_file()]
    assert sorted(found) == sorted(["run.json", "history.csv", "timing.csv"] * 4)
    copy = pckd.load_run(target.joinpath(*pair, "pckd", "seed0"))
    assert copy.settings["data"]["name"] == "folder:photos"
    assert pckd.load_run(copy.path / copy.settings["teacher"]["run"]).fingerprint == trained_teacher.fingerprint


@pytest.mark.slow
@pytest.mark.alone
def test_all_figures_are_drawn_in_a_minute_and_reproducibly(tmp_path):
    messages, limit = [], time_limit(SECONDS)
    started = time.monotonic()
    first = draw_all(RECORDED, tmp_path / "first", say=messages.append)
    assert time.monotonic() - started < limit
    assert not messages and {path.stem for path in first} >= set(FIGURES)
    for path in draw_all(RECORDED, tmp_path / "second"):
        assert path.read_bytes() == (tmp_path / "first" / path.name).read_bytes(), path.name
