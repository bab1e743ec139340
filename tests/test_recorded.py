"""The recorded runs load, do not name the machine they were made on, and agree with docs/results.md."""

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
SECONDS = 60  # for all figures, on the machine for which times are stated


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
    """Runs under other teachers, by folder."""
    return {folder.name: pckd.runs.load_runs(folder) for folder in sorted(OTHERS.iterdir()) if folder.is_dir()}


def test_they_are_small_enough_for_git():
    files = (file for folder in (RECORDED, OTHERS) for file in folder.rglob("*"))
    assert sum(file.stat().st_size for file in files if file.is_file()) < MEGABYTES * 1e6


def test_they_lie_where_their_settings_say(runs, others):
    for root, run in [(RECORDED, run) for run in runs] + [
        (OTHERS / name, run) for name in others for run in others[name]
    ]:
        folder, about = run.path.relative_to(root), run.settings
        if folder.parts[0] == "teachers":
            continue
        data, pair, arm, seed = folder.parts
        assert about["data"]["name"].removeprefix("folder:") == data and seed == f"seed{about['seed']}"
        assert pair.split("-")[1] == about["model"]["name"].replace(":", "_")
        assert arm.split("-")[0] == about["method"]["name"].lower()
        if about["teacher"]:
            teacher = pckd.load_run(run.path / about["teacher"]["run"])
            assert teacher.fingerprint == about["teacher"]["fingerprint"]
            assert teacher.path.resolve().is_relative_to(root)


def test_other_teachers_are_others_of_the_same_students(runs, others):
    main = {run.path.relative_to(RECORDED).as_posix(): run for run in runs}
    fingerprints = {main["teachers/shapes100"].fingerprint}
    for name, found in others.items():
        of = {run.path.relative_to(OTHERS / name).as_posix(): run for run in found}
        teacher = of.pop("teachers/shapes100")
        fingerprints.add(teacher.fingerprint)
        assert name in (f"seed{teacher.settings['seed']}", f"images{teacher.settings['data']['train_images']}")
        for place, run in of.items():  # all but the teacher is as it is there
            beside, here = main[place].settings, run.settings
            assert study_key(run) == study_key(main[place]) and here["recipe"]["epochs"] == beside["recipe"]["epochs"]
            assert (here["seed"], here["precision"]) == (beside["seed"], beside["precision"])
            assert (
                here["model"]["start"] == beside["model"]["start"]
                and run.method_settings == main[place].method_settings
            )
            assert not list(run.path.glob("*.npz")) and not list(run.path.glob("*.safetensors"))
    assert len(fingerprints) == len(others) + 1


def test_they_name_no_folder_of_the_machine_they_were_made_on(runs, others):
    for run in [*runs, *(run for found in others.values() for run in found)]:
        name = run.settings["data"]["name"]
        assert "/" not in name and "\\" not in name, run.path
        assert not any(str(Path.home()) in text or "/tmp" in text for text in [json.dumps(run.settings)]), run.path


@pytest.mark.parametrize("data", ["shapes100", "digits"])
def test_a_class_need_not_wait_for_a_teacher(data):
    run = pckd.load_run(RECORDED / "teachers" / data)
    loaded = pckd.load_dataset(data, **run.settings["data"]["options"])
    assert loaded.fingerprint == run.data_fingerprint
    assert pckd.evaluate(run.model(), loaded).top1 == pytest.approx(run.accuracy, abs=0.5)


def test_pictures_drawn_today_are_the_recorded_ones_up_to_one_grey_level(runs, others):
    """Recorded galleries were drawn by version 1 of shapes100, on a processor with AVX-512."""
    drawn = {}
    for run in [*runs, *(run for found in others.values() for run in found)]:
        about = run.settings["data"]
        if about["name"] != "shapes100":
            continue
        options = json.dumps(about["options"])
        if options not in drawn:
            drawn[options] = pckd.load_dataset("shapes100", **about["options"])
        assert drawn[options].fingerprint == run.data_fingerprint != about["fingerprint"]
        if run.gallery:
            now = drawn[options].train.images.numpy()[run.gallery["index"]]
            assert np.abs(now.astype(int) - run.gallery["images"]).max() <= 1
    assert {data.fingerprint for data in drawn.values()} == set(shapes.REDRAWN_FINGERPRINTS.values())


def test_the_results_page_follows_them(runs, others):
    make_results = load_script(ROOT / "docs" / "make_results.py")
    page = make_results.PAGE.read_text("utf-8")
    assert make_results.fill(page, make_results.tables(runs, others)) == page, "run python docs/make_results.py"
    with pytest.raises(ValueError, match="no markers <!-- other -->"):
        make_results.fill(page, {"other": ""})


@pytest.mark.parametrize("place", ["docs/results.md", "docs/instructors.md", "notebooks/10_comparisons.ipynb"])
def test_the_comparison_with_focal_is_said_to_differ_in_the_mean_weight(runs, place):
    """Mean weights of the last epoch, as the text gives them: "0.22 to 0.26 … 0.90 to 0.92"."""
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


def test_a_record_keeps_what_figures_need_and_nothing_else(tmp_path, data, recipe, teacher, student):
    record = load_script(RECORDED / "record.py")
    source, target = tmp_path / "source", tmp_path / "target"
    taught_by = pckd.fit(teacher, data, recipe, out=source / "teachers" / "shapes100", progress=False)
    taught_by.settings["data"]["name"] = "shapes100"
    taught_by.save(taught_by.path)
    for arm, seed in (("pckd", 0), ("pckd", 3), ("pckd-beta_cc=0.02", 0)):
        out = source / "tiny" / "resnet14-resnet8" / arm / f"seed{seed}"
        run = pckd.distill(student, taught_by, data, pckd.PCKD(), recipe, seed=seed, out=out, progress=False)
        run.settings["data"]["name"] = "folder:/somewhere/photos"
        run.save(out)
    record.main(source, target)

    def kept(*place):
        return {file.name for file in target.joinpath(*place).iterdir()} - {"run.json", "history.csv", "timing.csv"}

    pair = "tiny", "resnet14-resnet8"
    assert kept("teachers", "shapes100") == {"student.safetensors", "embedding.npz", "gallery.npz"}
    assert kept(*pair, "pckd", "seed0") == {"embedding.npz", "samples.npz"}  # no photographs of others
    assert kept(*pair, "pckd", "seed3") == kept(*pair, "pckd-beta_cc=0.02", "seed0") == set()
    record.main(source, tmp_path / "tables", tables_only=True)
    found = [file.name for file in (tmp_path / "tables").rglob("*") if file.is_file()]
    assert sorted(found) == sorted(["run.json", "history.csv", "timing.csv"] * 4)
    copy = pckd.load_run(target.joinpath(*pair, "pckd", "seed0"))
    assert copy.settings["data"]["name"] == "folder:photos"
    assert pckd.load_run(copy.path / copy.settings["teacher"]["run"]).fingerprint == taught_by.fingerprint


@pytest.mark.slow
@pytest.mark.alone
def test_all_figures_are_drawn_in_a_minute_and_twice_the_same(tmp_path):
    said, limit = [], time_limit(SECONDS)
    started = time.monotonic()
    first = draw_all(RECORDED, tmp_path / "first", say=said.append)
    assert time.monotonic() - started < limit
    assert not said and {path.stem for path in first} >= set(FIGURES)
    for path in draw_all(RECORDED, tmp_path / "second"):
        assert path.read_bytes() == (tmp_path / "first" / path.name).read_bytes(), path.name
