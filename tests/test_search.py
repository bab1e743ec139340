"""Searches for settings: trials on 60 digits, chosen on validation images, with the test images out of reach."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

import pandas as pd
import pytest

import pckd_nb as pckd
from pckd_nb import cli, evaluation, experiments, runs
from pckd_nb.experiments import (
    Grid,
    Search,
    chosen_arms,
    parse_arm,
    projection,
    run_search,
    search_summary,
    search_trials,
)
from pckd_nb.experiments.journal import JOURNAL, Journal
from pckd_nb.experiments.search import train_next
from pckd_nb.experiments.space import default_space, read_values, split_space, values_text

from .test_cluster import KILLER, SAVING, assert_continued, wait_for_an_epoch

SIZES = {"train_size": 60, "test_size": 30}
RECIPE = pckd.get_recipe("classroom", epochs=1, batch_size=20)
LR = "supervised:lr=0.01..0.1:log"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    data, folder = pckd.load_dataset("digits", **SIZES), tmp_path_factory.mktemp("teacher") / "run"
    return pckd.fit(pckd.create_model("resnet8", data, seed=9), data, RECIPE, out=folder, progress=False).path


@pytest.fixture
def make(teacher, tmp_path):
    """A function that makes a search in the folder `out` of the test."""

    def search(methods="kd", out="out", **changes):
        arms = [parse_arm(text) for text in methods.split(",")]
        arguments = dict(trials=2, val=0.2, recipe=RECIPE, data_options=SIZES, options={"precision": "32-true"})
        return Search("digits", teacher, "resnet8", arms, tmp_path / out, **{**arguments, **changes})

    return search


def quiet(search, **options):
    lines = []
    return run_search(search, progress=False, print_fn=lines.append, **options), lines


@pytest.fixture
def scores(monkeypatch):
    """Replace training: the validation scores of a trial are those in this dict, or random ones by its settings."""
    given = {}

    def train(self, point, progress=False, stop=None):
        top1, cross_entropy = given.get(point.folder.name, (crc32(str(point.arm).encode()) % 100, 1.0))
        if top1 is None:
            raise FloatingPointError("the loss is not finite")
        history = pd.DataFrame([{"val_top1": float(top1), "val_cross_entropy": cross_entropy}])
        return SimpleNamespace(finished=True, history=history)

    monkeypatch.setattr(Grid, "train", train)
    monkeypatch.setattr("pckd_nb.experiments.search.estimate_seconds", lambda *arguments: 0.0)
    return given


# ----------------------------------------------------------------------------------------------------- the space


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kd:temperature=2..8", "FloatDistribution(high=8.0, log=False, low=2.0, step=None)"),
        ("kd:beta_kd=0.1..10:log", "FloatDistribution(high=10.0, log=True, low=0.1, step=None)"),
        ("pckd:views=1..4", "IntDistribution(high=4, log=False, low=1, step=1)"),
        ("kd:batch_size=16..64:log", "IntDistribution(high=64, log=True, low=16, step=1)"),
        ("kd:label_smoothing=0..0.2", "FloatDistribution(high=0.2, log=False, low=0.0, step=None)"),
        ("pckd:strategy=preview,uniform", "CategoricalDistribution(choices=('preview', 'uniform'))"),
        ("supervised:lr=0.1,0.05", "CategoricalDistribution(choices=(0.1, 0.05))"),
        ("pckd-views=1:beta_cc=0.01..0.1", "FloatDistribution(high=0.1, log=False, low=0.01, step=None)"),
    ],
)
def test_space_is_read_and_written_as_the_same_text(text, expected):
    method, setting, values = split_space(text)
    found = read_values(values, parse_arm(method), setting, RECIPE)
    assert repr(found) == expected and f"{method}:{setting}={values_text(found)}" == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kd", "space must be METHOD:SETTING=LOW..HIGH"),
        ("temperature=2..8", "space must be METHOD:SETTING"),
        ("kd:temperature", "space must be METHOD:SETTING"),
        ("kd:temperature=2..8:linear", "space must be METHOD:SETTING"),
        ("kd:temperature=2 ..8", "space must be METHOD:SETTING"),
        ("DKD:weight=1..2", "space 'DKD:weight=1..2' is for DKD, which is not one of the methods kd"),
        ("kd:temperature=8..2", "kd:temperature=8..2: LOW and HIGH of a range must be numbers, and LOW less than HIGH"),
        ("kd:temperature=2..2", "LOW less than HIGH"),
        ("kd:temperature=2..", "must be numbers"),
        ("kd:temperature=nan..3", "must be numbers"),
        ("kd:temperature=1..inf", "must be numbers"),
        ("kd:beta_kd=0..3:log", "LOW of a range with :log must be more than 0"),
        ("kd:temperature=2", "at least two different values"),
        ("kd:temperature=2,2", "at least two different values"),
        ("kd:temperature=2,,3", "at least two different values"),
        ("kd:temperature=2,3:log", "give a range LOW..HIGH"),
        ("kd:temperature=-1..3", "temperature must be"),
        ("kd:temperature=2,warm", "temperature must be a number"),
        ("kd:nonsense=1..2", "method kd has no setting 'nonsense'"),
        ("kd:epochs=1..2", "epochs cannot be searched"),
    ],
)
def test_wrong_space_is_refused_in_one_line(make, tmp_path, text, message):
    with pytest.raises(ValueError) as caught:
        make(space=[text])
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_space_with_a_setting_twice_or_without_effect_is_refused(make, tmp_path):
    with pytest.raises(ValueError, match="space contains kd:temperature twice"):
        make(space=["kd:temperature=2..8", "kd:temperature=2..9"])
    data = pckd.load_dataset("digits", **SIZES)
    wide = pckd.fit("resnet8x4", data, RECIPE, out=tmp_path / "wide", progress=False).path
    arguments = dict(val=0.2, recipe=RECIPE, data_options=SIZES)
    with pytest.raises(ValueError, match="'pckd-beta_ca=0.1' has no effect: student's category centers have width 64"):
        Search("digits", wide, "resnet8", [parse_arm("pckd")], "out", space=["pckd:beta_ca=0.1..1"], **arguments)
    search = Search("digits", wide, "resnet8", [parse_arm("pckd")], "out", **arguments)
    assert [*search.spaces["pckd"]] == ["beta_kd", "beta_fa", "beta_cc", "temperature"]  # without beta_ca


def test_default_space_has_weights_and_temperature_around_the_defaults(make):
    search = make("kd,pckd-beta_fa=3,DKD,SRRL")
    found = {method: " ".join(f"{key}={value}" for key, value in space.items())
             for method, space in search.record().space.items()}  # fmt: skip
    assert found == {
        "kd": "temperature=1..16:log beta_kd=0.1..10:log",
        # beta_fa is fixed, and the recipe has beta_cc = 0.005
        "pckd-beta_fa=3": "beta_kd=0.1..10:log beta_ca=0.1..10:log beta_cc=0.0005..0.05:log temperature=1..16:log",
        "DKD": "weight=0.1..10:log beta=0.2..20:log temperature=1..16:log",
        "SRRL": "weight=0.1..10:log kd_weight=0.1..10:log temperature=1..16:log",
    }
    assert search.defaults["DKD"] == {"weight": 1, "beta": 2, "temperature": 4}


def test_default_space_is_around_the_settings_published_for_a_pair():
    loaded = pckd.load_dataset("digits", **SIZES)
    grid = SimpleNamespace(recipe=RECIPE, loaded=loaded, network_names=[("resnet32x4", "resnet8x4")], pairs=[()])
    assert values_text(default_space(grid, parse_arm("DKD"))["beta"]) == "0.8..80:log"


def test_method_without_weights_needs_a_space(make):
    message = r"supervised has no setting that is searched by default: give one with space=…, such as supervised:lr="
    with pytest.raises(ValueError, match=message):
        make("supervised")
    assert make("supervised", space=[LR]).record().space == {"supervised": {"lr": "0.01..0.1:log"}}


def test_space_replaces_the_whole_default_space_of_its_method(make):
    search = make("kd,DKD", space=["kd:lr=0.01..0.1"])
    assert {method: [*space] for method, space in search.spaces.items()} == {
        "kd": ["lr"], "DKD": ["weight", "beta", "temperature"],
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------- the trials


def test_finished_trials_are_used_for_the_estimate(make, monkeypatch, tmp_path):
    quiet(make("kd,DKD", trials=1))
    search = make("kd,DKD", trials=3)
    assert [point.folder.relative_to(tmp_path / "out").parts[1:] for point in search.trained_points()] == [
        ("kd", "trial0"), ("DKD", "trial0"),
    ]  # fmt: skip
    monkeypatch.setattr(projection, "_measure_step_seconds", lambda *_: pytest.fail("a training was timed"))
    expected = 2 * sum(pckd.load_run(point.folder, True).seconds for point in search.trained_points())
    found = projection.estimate_seconds(search.grid, search.points(), 1, search.trained_points())
    assert found == pytest.approx(expected) and make("kd", "new").trained_points() == []


def test_every_method_gets_the_same_number_of_trials(make, tmp_path):
    summary, lines = quiet(make("kd,supervised", space=[LR]))
    assert lines[0] == "4 trials, 0 finished, 4 to train" and "estimated time" in lines[1]
    assert [line.split(":")[0] for line in lines[2:]] == [
        "[1/4] kd trial 0", "[2/4] supervised trial 0", "[3/4] kd trial 1", "[4/4] supervised trial 1",
    ]  # fmt: skip
    assert not any("test" in line for line in lines)
    pair = tmp_path / "out" / "resnet8-resnet8"
    found = {str(file.parent.relative_to(pair)): runs.load_run(file.parent) for file in pair.rglob("run.json")}
    assert found.keys() == {"kd/trial0", "kd/trial1", "supervised/trial0", "supervised/trial1"}
    trials = search_trials(tmp_path / "out")
    assert trials["status"].tolist() == ["finished"] * 4 and trials["failure"].tolist() == [""] * 4
    for row in trials.itertuples():
        run = found[f"{row.method}/trial{row.trial}"]
        assert row.val_top1 == run.history["val_top1"].iloc[-1]
        assert row.val_cross_entropy == run.history["val_cross_entropy"].iloc[-1]
        assert (row.arm == row.method) == (row.trial == 0)
        expected = dict(parse_arm(row.arm).settings)
        if row.method == "kd":
            assert run.chosen_settings == expected
        else:
            assert run.settings["recipe"]["lr"] == expected.get("lr", 0.05)
        assert all(value == float(f"{value:.3g}") for value in expected.values())
    assert summary[["method", "trials", "failed"]].values.tolist() == [["kd", 2, 0], ["supervised", 2, 0]]
    written = pd.read_csv(tmp_path / "out" / "trials.csv", keep_default_na=False)
    assert written.equals(trials)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {".lock", "search.json", JOURNAL, "trials.csv", "chosen.json", "resnet8-resnet8"}


OWN_DATA = """
from dataclasses import replace
import pckd_nb as pckd
from pckd_nb.data import Split

class Forbidden(Split):
    def read(self, *arguments, **options):
        raise AssertionError("test images are read")

def make():
    data = pckd.load_dataset("digits", train_size=60, test_size=30)
    return replace(data, test=Forbidden(data.test.images, data.test.labels), options={})
"""


def test_test_images_are_never_read(make, teacher, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN_DATA)
    splits, compute_outputs = [], evaluation.compute_outputs

    def recorded(model, data, split, *arguments, **options):
        splits.append(split)
        return compute_outputs(model, data, split, *arguments, **options)

    for module in ("evaluation", "training.trainer"):
        monkeypatch.setattr(f"pckd_nb.{module}.compute_outputs", recorded)
    name = f"{tmp_path / 'own.py'}:make"
    search = Search(name, teacher, "resnet8", [parse_arm("kd")], tmp_path / "out", trials=2, val=0.2, recipe=RECIPE)
    quiet(search)
    assert set(splits) == {"val"} and search.grid.loaded.test is None
    for file in (tmp_path / "out").rglob("history.csv"):
        assert not [name for name in pd.read_csv(file) if "test" in name]
    for file in (tmp_path / "out").rglob("run.json"):
        assert "test" not in file.read_text().replace('"test": false', "")
    arm, grid_data = [parse_arm("kd")], {}
    grid = Grid(name, [(teacher, "resnet8")], arm, [0], tmp_path / "grid", RECIPE, grid_data)
    with pytest.raises(AssertionError, match="test images are read"):  # so the data set does detect it
        experiments.run_grid(grid, progress=False, print_fn=lambda line: None)


def test_same_search_has_the_same_trials(make, tmp_path):
    for out in ("a", "b"):
        quiet(make("kd,DKD", out, trials=3))
    assert (tmp_path / "a" / "trials.csv").read_bytes() == (tmp_path / "b" / "trials.csv").read_bytes()
    assert search_trials(tmp_path / "a")["arm"].nunique() == 6
    quiet(make("kd,DKD", "c", trials=3, seed=1))
    seeds = [set(search_trials(tmp_path / out)["arm"]) for out in "ac"]
    assert seeds[0] & seeds[1] == {"kd", "DKD"}


def test_stopped_search_continues_with_the_same_trials(make, tmp_path, scores):
    whole, _ = quiet(make("kd,DKD", "whole", trials=15))  # after ten trials, the sampler learns from them
    for count in range(1, 12):
        search = make("kd,DKD", "cut", trials=15)
        search.start()
        for _ in range(count):
            train_next(search)
    quiet(make("kd,DKD", "cut", trials=15))
    assert (tmp_path / "cut" / "trials.csv").read_bytes() == (tmp_path / "whole" / "trials.csv").read_bytes()
    assert len(set(search_trials(tmp_path / "cut")["arm"])) == 30 and whole["trials"].tolist() == [15, 15]


def test_sampler_learns_from_finished_trials(make, tmp_path, monkeypatch, scores):
    def train(self, point, progress=False, stop=None):
        temperature = dict(point.arm.settings).get("temperature", 4)
        history = pd.DataFrame([{"val_top1": 100 - abs(temperature - 12), "val_cross_entropy": 1.0}])
        return SimpleNamespace(finished=True, history=history)

    monkeypatch.setattr(Grid, "train", train)
    quiet(make(trials=40, space=["kd:temperature=1..1000:log"]))
    best = search_trials(tmp_path / "out")["val_top1"]
    assert best[25:].mean() > best[:11].mean() + 50 and best.max() > 98


def test_default_outside_the_range_is_still_the_first_trial(make, tmp_path, scores):
    search = make(trials=12, space=["kd:temperature=6..9", "kd:beta_kd=0.5,2"])
    quiet(search)
    arms = search_trials(tmp_path / "out")["arm"]
    assert arms[0] == "kd"
    settings = [dict(parse_arm(text).settings) for text in arms[1:]]
    assert all(6 <= found["temperature"] <= 9 and found["beta_kd"] in (0.5, 2) for found in settings)


def test_failed_trial_counts(make, tmp_path, scores):
    scores["trial1"] = (None, None)
    summary, lines = quiet(make(trials=3))
    trials = search_trials(tmp_path / "out")
    assert trials["status"].tolist() == ["finished", "failed", "finished"]
    assert trials["failure"].tolist() == ["", "the loss is not finite", ""] and trials["val_top1"].isna()[1]
    assert summary[["trials", "failed"]].values.tolist() == [[3, 1]] and "the loss is not finite" in lines[3]
    assert quiet(make(trials=3))[1] == ["3 trials, 3 finished, 0 to train"]

    scores.update({f"trial{number}": (None, None) for number in range(3)})
    with pytest.raises(FloatingPointError, match="all trials of kd failed: see .*trials.csv"):
        quiet(make(out="failed", trials=3))
    assert (tmp_path / "failed" / "trials.csv").exists() and not (tmp_path / "failed" / "chosen.json").exists()
    scores["trial1"] = (50, 1.0)
    summary, _ = quiet(make(out="default failed", trials=3))
    assert summary["default"].isna().all() and summary["best"].tolist() == [50.0]
    content = json.loads((tmp_path / "default failed" / "chosen.json").read_text())
    assert content["chosen"][0]["default_val_top1"] is None


def test_trial_with_a_real_non_finite_loss_fails(make, tmp_path):
    quiet(make("supervised", space=["supervised:lr=1e29..1e30"]))
    trials = search_trials(tmp_path / "out")
    assert trials["status"].tolist() == ["finished", "failed"] and "not finite in epoch 1" in trials["failure"][1]


@pytest.mark.parametrize("error", [ValueError, RuntimeError, KeyboardInterrupt])
def test_trial_with_another_error_stops_the_search_and_is_repeated(make, tmp_path, scores, monkeypatch, error):
    def train(self, point, progress=False, stop=None):
        raise error("the disk is on fire")

    with monkeypatch.context() as patched:
        patched.setattr(Grid, "train", train)
        with pytest.raises(error, match="the disk is on fire"):
            quiet(make())
    assert search_trials(tmp_path / "out")["status"].tolist() == ["running"]
    assert [path.name for path in (tmp_path / "out").glob(".*.lock")] == []
    quiet(make())
    assert search_trials(tmp_path / "out")["status"].tolist() == ["finished"] * 2


# ------------------------------------------------------------------------------------------------------ choosing


def test_trial_with_the_best_validation_accuracy_is_chosen(make, tmp_path, scores):
    scores.update(trial0=(70.0, 1.0), trial1=(80.0, 2.0), trial2=(80.0, 1.5), trial3=(79.0, 0.1), trial4=(80.0, 1.5))
    summary, _ = quiet(make(trials=5))
    trials = search_trials(tmp_path / "out")
    (row,) = summary.itertuples()
    assert (row.default, row.best, row.cross_entropy, row.trial) == (70.0, 80.0, 1.5, 2)
    assert row.chosen == trials["arm"][2] == str(chosen_arms(tmp_path / "out")["kd"])
    assert search_summary(tmp_path / "out").equals(summary)
    content = json.loads((tmp_path / "out" / "chosen.json").read_text())
    assert content["chosen"] == [
        {"method": "kd", "arm": row.chosen, "trial": 2, "val_top1": 80.0, "val_cross_entropy": 1.5,
         "default_val_top1": 70.0},
    ]  # fmt: skip


def test_defaults_can_be_chosen(make, tmp_path, scores):
    scores.update(trial0=(90.0, 1.0), trial1=(80.0, 1.0))
    quiet(make("kd,pckd-views=1"))
    assert {method: str(arm) for method, arm in chosen_arms(tmp_path / "out").items()} == {"kd": "kd", "pckd": "pckd"}


def test_search_that_is_not_finished_has_chosen_nothing(make, tmp_path, scores):
    with pytest.raises(FileNotFoundError, match="is not a search: there is no such folder"):
        chosen_arms(tmp_path / "out")
    search = make()
    search.start()
    assert len(search_trials(tmp_path / "out")) == 0 and search_summary(tmp_path / "out")["trials"].tolist() == [0]
    train_next(search)
    with pytest.raises(ValueError, match="is not finished: start its command again"):
        chosen_arms(tmp_path / "out")
    quiet(search)
    assert chosen_arms(tmp_path / "out")
    make(trials=3).start()  # more trials
    with pytest.raises(ValueError, match="is not finished"):
        chosen_arms(tmp_path / "out")


def test_own_method_can_be_searched(make, tmp_path, scores):
    (tmp_path / "mine.py").write_text(
        "import pckd_nb as pckd\n"
        "class Mine(pckd.KD):\n"
        "    def __init__(self, gamma=2.0, weight=3.0):\n"
        "        super().__init__()\n"
        "        self.gamma, self.weight = gamma, weight\n"
    )
    search = make(f"{tmp_path / 'mine.py'}:Mine", space=[f"{tmp_path / 'mine.py'}:Mine:gamma=1..9"])
    assert search.record().space == {"Mine": {"gamma": "1..9"}}
    assert make(f"{tmp_path / 'mine.py'}:Mine", "other").record().space["Mine"]["weight"] == "0.3..30:log"
    quiet(search)
    trained = search_trials(tmp_path / "out")["arm"].tolist()
    assert trained[0] == "Mine" and trained[1].startswith("Mine-gamma=")
    with pytest.raises(ValueError, match="chose Mine.*, and this method is your own: write file.py:Mine"):
        chosen_arms(tmp_path / "out")


def test_own_method_must_not_have_the_name_of_another_one(make, tmp_path):
    (tmp_path / "mine.py").write_text("import pckd_nb as pckd\nclass KD(pckd.KD):\n    pass\n")
    with pytest.raises(ValueError, match=r"mine\.py:KD has the name of a method of this package: rename your class$"):
        make(f"{tmp_path / 'mine.py'}:KD")


def test_figure_shows_every_trial_and_the_best_so_far(make, tmp_path, scores):
    scores.update(trial0=(70.0, 1.0), trial1=(60.0, 2.0), trial2=(None, None), trial3=(80.0, 0.1))
    make("kd,DKD").start()
    with pytest.raises(ValueError, match="no trial of the search in .* is finished yet"):
        pckd.figures.search(tmp_path / "out")
    quiet(make("kd,DKD", trials=4))
    figure = pckd.figures.search(tmp_path / "out")
    lines = [line.get_xydata().tolist() for line in figure.axes[0].lines]
    best, dots = [[0, 70], [1, 70], [3, 80]], [[0, 70], [1, 60], [3, 80]]
    assert lines == 2 * [best, dots, [[0, 70]], [[2, 0.03]]]
    colors = [line.get_color() for line in figure.axes[0].lines]
    assert colors == [pckd.figures.COLORS["KD"]] * 4 + [pckd.figures.MORE_COLORS[0]] * 4
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["KD", "DKD"]
    assert "digits, resnet8 → resnet8, 1 epoch, 4 trials per method" in figure.get_supxlabel()
    with pytest.raises(FileNotFoundError, match="is not a search"):
        pckd.figures.search(tmp_path)


def test_figure_compares_chosen_and_default_settings_on_test_images(make, teacher, tmp_path):
    make("kd,kd-views=2", space=["kd:temperature=2,8", "kd-views=2:temperature=2,8"]).start()
    with pytest.raises(ValueError, match="is not finished"):
        pckd.figures.chosen_settings(tmp_path / "out", pckd.load_run(teacher))
    quiet(make("kd,kd-views=2", space=["kd:temperature=2,8", "kd-views=2:temperature=2,8"]))
    chosen = chosen_arms(tmp_path / "out")
    arms = [parse_arm("supervised"), *map(parse_arm, chosen), *chosen.values(), parse_arm("kd-beta_kd=3")]
    grid = Grid("digits", [(teacher, "resnet8")], arms, [0, 1], tmp_path / "grid", RECIPE, SIZES)
    experiments.run_grid(grid, progress=False, print_fn=lambda line: None)
    runs = pckd.runs.load_runs(tmp_path / "grid")
    figure = pckd.figures.chosen_settings(tmp_path / "out", runs)
    ax, table = figure.axes[0], experiments.comparison(experiments.results(grid)).set_index("arm")
    drawn = {}
    for line in ax.lines:
        if len(line.get_xdata()) == 1:
            drawn.setdefault(line.get_markerfacecolor() == "white", []).append(line.get_xdata()[0])
    assert sorted(drawn[True]) == pytest.approx(sorted(table.loc[list(chosen), "mean"]))
    assert drawn[False] == pytest.approx(sorted(table.loc[[str(arm) for arm in chosen.values()], "mean"]))
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert sorted(labels) == ["KD", "KD, views = 2"]
    assert [text.get_text() for text in figure.legends[0].get_texts()][2:] == ["supervised"]
    assert len(figure.runs) == len({run.path for run in runs if run.path.parent.name != "kd-beta_kd=3"})
    with pytest.raises(ValueError, match="no run has settings that the search in .* chose: train kd"):
        pckd.figures.chosen_settings(tmp_path / "out", pckd.load_run(teacher))
    shorter = pckd.get_recipe(RECIPE, epochs=2)
    other = Grid("digits", [(teacher, "resnet8")], [parse_arm("supervised")], [0], tmp_path / "other", shorter, SIZES)
    experiments.run_grid(other, progress=False, print_fn=lambda line: None)
    mixed = [*pckd.runs.load_runs(tmp_path / "other"), *(run for run in runs if run.path.parent.name != "supervised")]
    with pytest.raises(ValueError, match="the runs have different data, students, recipes or numbers of epochs"):
        pckd.figures.chosen_settings(tmp_path / "out", mixed)


# ------------------------------------------------------------------------------------- the folder of the search


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": ["kd:temperature=2..8"]}, "a search with space.kd.temperature 1..16:log, not 2..8"),
        ({"val": 0.3}, "a search with data.options.val 0.2, not 0.3"),
        ({"seed": 1}, "a search with seed 0, not 1"),
        ({"recipe": pckd.get_recipe(RECIPE, lr=0.1)}, "a search with recipe.lr 0.05, not 0.1"),
        ({"recipe": pckd.get_recipe(RECIPE, epochs=2)}, "a search with recipe.epochs 1, not 2"),
        ({"data_options": {**SIZES, "train_size": 80}}, "a search with data.options.train_size 60, not 80"),
        ({"options": {"precision": "bf16-mixed"}}, "a search with precision 32-true, not bf16-mixed"),
        ({"methods": "kd,DKD"}, "a search with space.DKD.weight not set, not 0.1..10:log"),
        ({"trials": 1}, "a search with 2 trials per method, not 1: there can only be more of them"),
    ],
)
def test_another_search_in_the_same_folder_is_refused(make, tmp_path, changes, message):
    make().start()
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match="^'.*out' has ") as caught:
        make(**changes)
    assert message in str(caught.value)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_another_teacher_is_refused(make, teacher, tmp_path):
    make().start()
    data = pckd.load_dataset("digits", **SIZES)
    other = pckd.fit(pckd.create_model("resnet8", data, seed=8), data, RECIPE, out=tmp_path / "t", progress=False).path
    with pytest.raises(ValueError, match=r"has a search with teacher.fingerprint \w+, not \w+"):
        Search(
            "digits", other, "resnet8", [parse_arm("kd")], tmp_path / "out", 2, 0.2, recipe=RECIPE,
            data_options=SIZES, options={"precision": "32-true"},
        )  # fmt: skip


def test_more_trials_continue_the_search(make, tmp_path, scores):
    quiet(make(trials=2))
    first = search_trials(tmp_path / "out")
    summary, lines = quiet(make(trials=5))
    assert lines[0] == "5 trials, 2 finished, 3 to train" and summary["trials"].tolist() == [5]
    assert search_trials(tmp_path / "out")[:2].equals(first)
    quiet(make(out="whole", trials=5))
    assert (tmp_path / "out" / "trials.csv").read_bytes() == (tmp_path / "whole" / "trials.csv").read_bytes()
    assert (tmp_path / "out" / "search.json").read_bytes() == (tmp_path / "whole" / "search.json").read_bytes()


def test_half_written_line_of_the_journal_is_removed(make, tmp_path, scores):
    quiet(make(trials=2))
    journal = tmp_path / "out" / JOURNAL
    journal.write_bytes(journal.read_bytes() + b'{"op_code": 4, "worker_id": "3')
    summary, _ = quiet(make(trials=4))
    assert summary["trials"].tolist() == [4]
    for line in journal.read_text().splitlines():
        assert isinstance(json.loads(line), dict)


def test_reading_a_search_changes_nothing_in_its_folder(make, tmp_path, scores):
    quiet(make("kd,DKD"))
    folder = tmp_path / "out"
    (folder / ".lock").unlink()  # as in a copy of a recorded search

    def files():
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}

    before = files()
    assert len(search_trials(folder)) == 4 and len(search_summary(folder)) == 2 and len(chosen_arms(folder)) == 2
    assert files() == before


def test_journal_has_every_study_once(make, tmp_path, scores):
    quiet(make("kd,DKD"))
    quiet(make("kd,DKD", trials=3))
    lines = [json.loads(line) for line in (tmp_path / "out" / JOURNAL).read_text().splitlines()]
    assert [line["study_name"] for line in lines if "study_name" in line] == ["kd", "DKD"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (JOURNAL, b'{"op_code": 4\n{}\n'), (JOURNAL, b"\xff\n\n"), (JOURNAL, b"[]\n"), ("search.json", b"{}"),
        ("search.json", b"[1]"), ("search.json", b"\xff"), ("search.json", b"[" * 100_000), ("chosen.json", b"{}"),
        ("chosen.json", b'{"format": 1, "trials": 2, "chosen": [{"method": "kd", "arm": "kd"}]}'),
    ],
)  # fmt: skip
def test_damaged_file_gives_one_line(make, tmp_path, scores, file, content):
    quiet(make())
    (tmp_path / "out" / file).write_bytes(content)
    read = chosen_arms if file == "chosen.json" else search_trials
    with pytest.raises(ValueError) as caught:
        read(tmp_path / "out")
    assert f"{file}' is damaged: " in str(caught.value) and "\n" not in str(caught.value)
    if file != "chosen.json":
        with pytest.raises(ValueError, match="is damaged"):
            quiet(make())


def test_other_version_and_missing_search_file_are_refused(make, tmp_path, scores):
    quiet(make())
    path = tmp_path / "out" / "search.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format": 2}))
    with pytest.raises(ValueError, match="search.json' was written by another version of pckd_nb"):
        make()
    path.unlink()
    with pytest.raises(ValueError, match="has a journal.jsonl, but no search.json: choose another folder"):
        make()


# ------------------------------------------------------------------------------------------- several processes


def test_trial_of_a_living_process_is_left_alone(make, tmp_path, scores):
    search = make(trials=2)
    search.start()
    arguments = search.arms, search.spaces, search.defaults, search.trials, 0
    first, second = Journal(tmp_path / "out"), Journal(tmp_path / "out")
    a, b = first.claim(*arguments), second.claim(*arguments)
    assert (a.number, b.number, str(a)) == (0, 1, "kd trial 0") and second.claim(*arguments) is None
    assert quiet(search)[1][-1] == "not finished: 2 trials of other processes; start this command again later"
    assert not (tmp_path / "out" / "chosen.json").exists()
    first.release(a)  # as if its process had been killed
    again = second.claim(*arguments)
    assert (again.number, again.arm) == (0, a.arm)
    assert search.missing_trials() == [(search.arms[0], 0), (search.arms[0], 1)]
    for claim in (b, again):
        second.finish(claim, val_top1=50.0, val_cross_entropy=1.0)
        second.release(claim)
    assert second.claim(*arguments) is None and quiet(search)[0]["trials"].tolist() == [2]


def test_a_process_can_choose_its_trial(make, tmp_path, scores):
    search = make("kd,DKD", trials=3)
    search.start()
    kd, dkd = search.arms
    arguments, journal = (search.arms, search.spaces, search.defaults, search.trials, 0), Journal(tmp_path / "out")
    for _ in range(2):
        journal.release(journal.claim(*arguments))  # kd 0, as if its process had been killed
    claims = [journal.claim(*arguments, first) for first in ((dkd, 0), (kd, 1), (kd, 0), (kd, 0))]
    # DKD 0 and kd 1 are new, so kd 0 is left to others. At last, another process trains it, so another one is begun.
    assert [claim[:2] for claim in claims] == [(dkd, 0), (kd, 1), (kd, 0), (dkd, 1)]
    journal.finish(claims[2], val_top1=50.0, val_cross_entropy=1.0)
    assert search.missing_trials() == [(dkd, 0), (kd, 1), (dkd, 1), (kd, 2), (dkd, 2)]


START = """
import os, signal, sys, warnings
import torch
torch.set_num_threads(1)
warnings.simplefilter("ignore")
from pckd_nb import cli, resuming, runs
from pckd_nb.training import callbacks
callbacks.MIN_SECONDS_BETWEEN_SAVES, callbacks.MAX_SAVING_SHARE = -1, float("inf")
write, remaining = resuming.write_checkpoint, [int(os.environ.get("KILL_AT", 0))]
def write_and_kill(*arguments):
    write(*arguments)
    remaining[0] -= 1
    if remaining[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
resuming.write_checkpoint = write_and_kill
read = resuming.read_checkpoint
def read_and_tell(folder):
    print("resumed", folder.name)
    return read(folder)
resuming.read_checkpoint = read_and_tell
sys.exit(cli.main(sys.argv[1:]))
"""


def words(teacher, out, *more):
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in SIZES.items()]
    fixed = ["--data", "digits", *sizes, "--teacher", teacher, "--student", "resnet8", "--epochs", "1"]
    return ["search", *map(str, fixed), "--batch-size", "20", "--precision", "32-true", "--out", str(out), *more]


def start(arguments, **environment):
    command = [sys.executable, "-c", textwrap.dedent(START), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_search_resumes_its_trial_from_the_checkpoint(teacher, tmp_path):
    more = "--methods", "kd", "--trials", "2", "--val", "0.2", "--epochs", "2"
    whole = start(words(teacher, tmp_path / "whole", *more))
    killed = start(words(teacher, tmp_path / "cut", *more), KILL_AT="8")  # a trial has six steps
    assert killed.wait(200) == -signal.SIGKILL and search_trials(tmp_path / "cut")["status"].tolist()[-1] == "running"
    again = start(words(teacher, tmp_path / "cut", *more))
    output, errors = again.communicate(timeout=200)
    assert again.returncode == 0 and "Traceback" not in errors, errors
    assert "2 trials, 1 finished, 1 to train" in output and "resumed trial1" in output
    assert whole.wait(200) == 0
    for name in ("trials.csv", "chosen.json", *(f"resnet8-resnet8/kd/trial{n}/student.safetensors" for n in range(2))):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_two_processes_share_the_trials_of_one_search(teacher, tmp_path):
    more = "--methods", "kd,DKD", "--trials", "3", "--val", "0.2"
    processes = [start(words(teacher, tmp_path / "out", *more)) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    trained = [
        line.split("]")[1].split(":")[0] for output, _ in outputs for line in output.splitlines() if "] " in line
    ]
    assert sorted(trained) == sorted(f" {method} trial {number}" for method in ("kd", "DKD") for number in range(3))
    trials = search_trials(tmp_path / "out")
    assert trials["status"].tolist() == ["finished"] * 6 and chosen_arms(tmp_path / "out").keys() == {"kd", "DKD"}
    assert len(list((tmp_path / "out").rglob("run.json"))) == 6 and not list((tmp_path / "out").glob(".*.trial*"))


@pytest.mark.slow
def test_jobs_train_the_same_trials(make, tmp_path):
    make_search = lambda out: make("kd,DKD", out, trials=3)  # noqa: E731
    summary, lines = quiet(make_search("two"), jobs=2)
    assert len(lines) == 8 and summary["trials"].tolist() == [3, 3]
    quiet(make_search("one"))
    pd.testing.assert_frame_equal(search_trials(tmp_path / "one"), search_trials(tmp_path / "two"))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_jobs_end_with_their_command(teacher, tmp_path, number):
    more = "--methods", "kd,DKD", "--trials", "2", "--val", "0.2", "--epochs", "400", "--jobs", "2"
    process = start(words(teacher, tmp_path / "out", *more))
    started = time.monotonic()
    while len(list((tmp_path / "out").rglob("history.csv"))) < 2:
        assert process.poll() is None and time.monotonic() - started < 200
        time.sleep(0.1)
    process.send_signal(number)
    process.communicate(timeout=60)  # waits for the end of its processes, which hold its pipes
    assert process.returncode == (-number if number == signal.SIGKILL else 130)
    search = tmp_path / "out"
    assert search_trials(search)["status"].tolist() == ["running"] * 2
    if number == signal.SIGINT:  # both have saved the step where they were stopped
        assert [runs.read_settings(file.parent)["status"] for file in search.rglob("run.json")] == ["interrupted"] * 2
    before = sorted((file, file.stat().st_mtime_ns) for file in search.rglob("history.csv"))
    time.sleep(1)
    assert sorted((file, file.stat().st_mtime_ns) for file in search.rglob("history.csv")) == before


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_trial_whose_process_is_killed_is_continued_by_another_one(teacher, tmp_path):
    (tmp_path / "saving.py").write_text(SAVING)
    method = f"{tmp_path / 'saving.py'}:Saving"
    more = "--methods", method, "--trials", "3", "--val", "0.2", "--epochs", "60", "--jobs", "2"
    process = start(words(teacher, tmp_path / "out", *more))
    cut = wait_for_an_epoch(tmp_path / "out", process, [process.pid])
    cut.process.kill()
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 0 and "[3/3]" in output, errors
    assert_continued(cut)
    assert search_trials(tmp_path / "out")["status"].tolist() == ["finished"] * 3
    for file in (tmp_path / "out").rglob("history.csv"):
        assert pd.read_csv(file)["epoch"].tolist() == list(range(1, 61))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_trial_that_kills_its_process_stops_the_search(teacher, tmp_path):
    (tmp_path / "killer.py").write_text(KILLER)
    more = "--methods", f"{tmp_path / 'killer.py'}:Killer,kd", "--trials", "1", "--val", "0.2", "--jobs", "2"
    process = start(words(teacher, tmp_path / "out", *more))
    _, errors = process.communicate(timeout=400)
    lines = [line for line in errors.splitlines() if line.startswith("pckd-nb: ")]
    assert process.returncode != 0 and len(lines) == 1, errors
    assert lines == ["pckd-nb: Killer trial 0: its process was killed 3 times: it may need too much memory"]
    assert search_trials(tmp_path / "out")["status"].tolist() == ["running", "finished"]  # Killer, kd
    assert not (tmp_path / "out" / "chosen.json").exists()


# --------------------------------------------------------------------------------------- from the command line


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        status = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, [line for line in captured.err.splitlines() if line.strip() and "step" not in line]

    return call


def test_search_then_compare(run, teacher, tmp_path):
    arguments = words(teacher, "found", "--methods", "supervised,kd", "--space", LR, "--trials", "2", "--val", "0.2")
    status, out, err = run(*arguments, "--dry-run")
    assert status == 0 and not err and not (tmp_path / "found").exists()
    rows = [line.split() for line in out.splitlines()[:-1]]
    assert rows == [
        ["method", "setting", "values", "first", "trial"], ["supervised", "lr", "0.01..0.1:log", "0.05"],
        ["kd", "temperature", "1..16:log", "4"], ["kd", "beta_kd", "0.1..10:log", "1"],
    ]  # fmt: skip
    assert out.splitlines()[-1].startswith("2 methods with 2 trials each, 4 to train, estimated time: ")

    status, out, err = run(*arguments)
    assert status == 0 and not err and "test" not in out
    table = out[out.index("default, best:") :]
    status, shown, err = run("search", "--show", "found")
    assert status == 0 and not err and shown == table
    assert run(*arguments)[1].endswith(table)
    chosen = chosen_arms("found")
    assert [line.split()[-1] for line in table.splitlines()[2:]] == [str(arm) for arm in chosen.values()]

    compare = ["compare", *arguments[1:-8], "--chosen", "found", "--seeds", "0,1"]
    compare[compare.index("--out") + 1] = "compared"
    status, out, err = run(*compare)
    assert status == 0 and not err and f"difference: mean difference to {chosen['kd']} with" in out
    results = pd.read_csv("compared/results.csv")
    assert set(results["arm"]) == {str(arm) for arm in chosen.values()} and len(results) == 4
    compared = {file.parent: runs.read_settings(file.parent) for file in Path("compared").rglob("run.json")}
    assert {settings["data"]["train_images"] for settings in compared.values()} == {60}  # all training images
    status, out, err = run(*compare, "--with-defaults", "--reference", "supervised")
    assert status == 0 and not err and "difference: mean difference to supervised with" in out
    assert set(pd.read_csv("compared/results.csv")["arm"]) == {"kd", "supervised", *map(str, chosen.values())}

    for message, more in [
        ("the search in 'found' had recipe.lr 0.05, not 0.01", ["--lr", "0.01"]),
        ("the search in 'found' had data.options.train_size 60, not 50", ["--train-size", "50"]),
        ("the search in 'found' had student resnet8, not resnet14", ["--student", "resnet14"]),
        ("chosen settings are compared after a training on all training images: use --val 0", ["--val", "0.2"]),
        ("'nowhere' is not a search: there is no such folder", ["--chosen", "nowhere"]),
    ]:
        changed = [word for word in compare if not word.startswith("--train-size") or "--train-size" not in more]
        if more[0] in changed and more[0] != "--val":
            changed[changed.index(more[0]) + 1] = more[1]
        else:
            changed += more
        changed[changed.index("--out") + 1] = "other"
        status, out, err = run(*changed)
        assert status == 2 and len(err) == 1 and message in err[0], (err, message)
        assert not out and not Path("other").exists()
    status, _, err = run(*[word for word in compare if word not in ("--chosen", "found")], "--with-defaults")
    assert status == 2 and err == ["pckd-nb: --with-defaults needs --chosen, the folder of a search"]


@pytest.mark.parametrize(
    ("message", "more"),
    [
        ("give one with --space …, such as supervised:lr=0.01..0.2:log", ["--methods", "supervised"]),
        ("digits needs a validation split if its test images are left out: pass --val 0.1", ["--val", "0"]),
        ("trials must be at least 1, got 0", ["--trials", "0"]),
        ("jobs must be at least 1, got 0", ["--jobs", "0"]),
        ("there is no such folder", ["--teacher", "nowhere"]),
        ("unknown method 'nonsense'", ["--methods", "kd,nonsense"]),
        ("--teacher-cache-gb must be 0 or more", ["--teacher-cache-gb", "-1"]),
        ("'nowhere' is not a search: there is no such folder", ["--show", "nowhere"]),
        ("is not a search: it has no search.json", ["--show", "."]),
    ],
)
def test_wrong_options_are_refused_in_one_line(run, teacher, tmp_path, message, more):
    status, out, err = run(*words(teacher, "out", "--val", "0.2"), *more)
    assert status == 2 and not out and len(err) == 1 and message in err[0], err
    assert not list(tmp_path.iterdir())


def test_launchers_are_refused(make, monkeypatch):
    monkeypatch.setattr("pckd_nb.ranks.launched_processes", lambda: (2, 1))
    with pytest.raises(ValueError, match="a search is run from one process"):
        quiet(make())
