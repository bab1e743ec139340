"""Grids of runs on 60 digits: which runs are trained, skipped, resumed, refused and counted."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import pckd_nb as pckd
from pckd_nb import experiments, runs, training
from pckd_nb.analysis import holm, paired_difference, summarise, training_flops
from pckd_nb.experiments import Arm, Grid, parse_arm, projection, run_grid

from .conftest import time_limit

SIZES = {"train_size": 60, "test_size": 30}


@pytest.fixture(scope="module")
def data():
    return pckd.load_dataset("digits", **SIZES)


def train_teacher(name, data, folder):
    recipe = pckd.get_recipe("classroom", epochs=1)
    return pckd.fit(pckd.create_model(name, data, seed=0), data, recipe, out=folder, progress=False).path


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    return train_teacher("resnet14", data, tmp_path_factory.mktemp("teacher") / "run")


@pytest.fixture(scope="module")
def wide_teacher(data, tmp_path_factory):
    return train_teacher("resnet8x4", data, tmp_path_factory.mktemp("wide") / "run")


def make_grid(teacher, out, arms="supervised,kd", seeds=(0, 1), epochs=1, student="resnet8", **others):
    recipe = pckd.get_recipe("classroom", epochs=epochs, batch_size=20)
    arms = [parse_arm(text) for text in arms.split(",")]
    return Grid("digits", [(teacher, student)], arms, seeds, out, recipe, SIZES, **others)


def quiet(grid, **options):
    lines = []
    return run_grid(grid, progress=False, print_fn=lines.append, **options), lines


# ------------------------------------------------------------------------------------------------------ arms


@pytest.mark.parametrize(
    "text", ["kd", "AT", "pckd-strategy=uniform", "pckd-beta_cc=0.002-views=1", "kd-epochs=40", "pckd-beta_cc=1e-05"]
)
def test_arm_is_parsed_and_printed_as_the_same_text(text):
    assert str(parse_arm(text)) == text
    assert parse_arm(str(parse_arm(text))) == parse_arm(text)


def test_numeric_settings_are_parsed_as_numbers():
    assert parse_arm("PCKD-views=1-beta_cc=0.5-strategy=focal") == Arm(
        "pckd", (("views", 1), ("beta_cc", 0.5), ("strategy", "focal"))
    )


@pytest.mark.parametrize("text", ["", "p c", "pckd-", "-views=1", "pckd/..", "pckd-views=1-views=2"])
def test_invalid_arms_are_refused(text):
    with pytest.raises(ValueError, match="is not an arm|twice"):
        parse_arm(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kd-beta_cc=1", "no setting 'beta_cc'; its settings: temperature, beta_kd"),
        ("supervised-beta_kd=1", "its settings: none"),
        ("pckd-views=7", "views must be"),
        ("pckd-beta_cc=much", "beta_cc"),
        ("pckd-strategy=none", "unknown strategy"),
        ("kd-epochs=0", "epochs must be"),
        ("nonsense", "unknown method 'nonsense'"),
    ],
)
def test_arm_with_an_invalid_setting_cannot_be_built(text, message):
    with pytest.raises(ValueError, match=message):
        parse_arm(text).build(pckd.get_recipe("classroom"))


def test_arm_changes_method_and_recipe():
    method, recipe = parse_arm("pckd-beta_cc=0.25-epochs=40-epsilon_240=1.01").build(pckd.get_recipe("classroom"))
    assert (method.beta_cc, recipe.epochs) == (0.25, 40)
    assert method.epsilon == pytest.approx(1.01**6) and method.epsilon**40 == pytest.approx(1.01**240)
    assert "beta_fa" not in method.explicit


def test_drop_defaults_removes_settings_without_effect(data):
    recipe = pckd.get_recipe("classroom")

    def short(text):
        return str(parse_arm(text).drop_defaults(recipe, data))

    same = "pckd-beta_cc=0.005", "pckd-epsilon_240=1.005", "pckd-views=1", "pckd-epochs=10", "pckd-strategy=preview"
    assert {short(text) for text in same} == {"pckd"}
    assert short("pckd-beta_fa=20-views=4-beta_cc=0.05") == "pckd-views=4-beta_cc=0.05"


def test_old_names_work_with_a_warning(teacher, tmp_path, data):
    recipe, grid = pckd.get_recipe("classroom"), make_grid(teacher, tmp_path, "kd", [0])
    with pytest.warns(DeprecationWarning, match="Arm.plus is now called with_setting"):
        arm = Arm("pckd").plus("views", 1)
    assert arm == Arm("pckd").with_setting("views", 1)
    with pytest.warns(DeprecationWarning, match="Arm.without_defaults is now called drop_defaults"):
        assert arm.without_defaults(recipe, data) == arm.drop_defaults(recipe, data) == Arm("pckd")
    lines = []
    with pytest.warns(DeprecationWarning, match="argument say of run_grid is now called print_fn"):
        run_grid(grid, progress=False, say=lines.append)
    assert lines[0] == "1 run, 0 finished, 1 to train"
    with pytest.raises(TypeError, match="unexpected keyword argument 'say'"):
        run_grid(grid, say=lines.append, print_fn=lines.append)


def test_ablation_arms_remove_each_term_and_strategy_once():
    names = [str(arm) for arm in experiments.ablation_arms()]
    assert len(names) == len(set(names)) == 14
    assert {f"pckd-beta_{term}=0" for term in ("kd", "fa", "ca", "cc")} < set(names)
    assert {f"pckd-strategy={name}" for name in pckd.preview.STRATEGIES if name != "preview"} < set(names)


def test_sweep_arms_have_one_arm_per_value():
    assert [str(arm) for arm in experiments.sweep_arms("views", [1, 4])] == ["pckd-views=1", "pckd-views=4"]
    assert len(experiments.sweep_arms("beta_cc")) == 5
    with pytest.raises(ValueError, match="factor lr needs values, as in lr=VALUE,VALUE; only beta_cc"):
        experiments.sweep_arms("lr")


# ------------------------------------------------------------------------------------------------------ grids


def test_finished_runs_of_a_grid_are_not_trained_again(teacher, tmp_path):
    grid = make_grid(teacher, tmp_path, teacher_cache=tmp_path / "cache")
    table, lines = quiet(grid)
    assert lines[0] == "4 runs, 0 finished, 4 to train" and lines[1].startswith("estimated time: ")
    assert [line.split("]")[0] for line in lines[2:]] == ["[1/4", "[2/4", "[3/4", "[4/4"]
    folders = [tmp_path / "resnet14-resnet8" / arm / f"seed{seed}" for seed in (0, 1) for arm in ("supervised", "kd")]
    assert [point.folder for point in grid.points()] == folders
    assert table["top1"].tolist() == [pckd.load_run(folder).accuracy for folder in folders]
    assert table["arm"].tolist() == ["supervised", "kd"] * 2 and table["seed"].tolist() == [0, 0, 1, 1]
    assert pd.read_csv(tmp_path / "results.csv")["top1"].tolist() == pytest.approx(table["top1"].tolist())
    weights = [folder / "student.safetensors" for folder in folders]
    before = [file.stat().st_mtime_ns for file in weights]

    again, lines = quiet(make_grid(teacher, tmp_path, teacher_cache=tmp_path / "cache"))
    assert again.equals(table) and lines == ["4 runs, 4 finished, 0 to train"]
    assert [file.stat().st_mtime_ns for file in weights] == before


def test_grid_trains_the_same_run_as_distill(teacher, tmp_path, data):
    grid = make_grid(teacher, tmp_path / "grid", "pckd-beta_cc=0.02", [3])
    quiet(grid)
    student = pckd.create_model("resnet8", data, seed=3)
    method = pckd.PCKD(beta_cc=0.02)
    alone = pckd.distill(student, pckd.load_run(teacher), data, method, grid.recipe, seed=3, progress=False)
    point = pckd.load_run(grid.points()[0].folder)
    assert point.fingerprint == alone.fingerprint and point.history.equals(alone.history)
    assert projection.training_flops(grid, grid.points()[0]) == training_flops(point)
    (with_compute,) = experiments.results(grid, compute=True).to_dict("records")
    assert with_compute["teraflops"] == training_flops(point) / 1e12 and with_compute["seconds"] == point.seconds
    assert not {"teraflops", "seconds"} & set(experiments.results(grid))


def test_operations_of_points_are_those_of_their_runs(wide_teacher, tmp_path):
    recipe = pckd.get_recipe("classroom", epochs=2, batch_size=25)  # the last batch of an epoch is smaller
    arms = [parse_arm(text) for text in ("supervised", "kd", "pckd-views=4", "SimKD")]
    grid = Grid("digits", [(wide_teacher, "resnet8")], arms, [0], tmp_path, recipe, SIZES)
    found = [projection.training_flops(grid, point) for point in grid.points()]
    assert found == [training_flops(grid.train(point)) for point in grid.points()] and len(set(found)) == 4


@pytest.mark.slow
def test_shards_give_the_same_table(teacher, tmp_path):
    whole, _ = quiet(make_grid(teacher, tmp_path / "whole", seeds=(0, 1, 2)))
    grid = make_grid(teacher, tmp_path / "parts", seeds=(0, 1, 2))
    first, lines = quiet(grid, shard=(1, 2))
    assert len(first) == 3 and lines[0].startswith("shard 1 of 2: 3 runs") and "other shards" in lines[-1]
    second, _ = quiet(grid, shard=(2, 2))
    assert second.equals(whole)
    assert (tmp_path / "parts" / "results.csv").read_bytes() == (tmp_path / "whole" / "results.csv").read_bytes()


def test_empty_shard_and_failed_runs_write_the_table(teacher, tmp_path):
    table, lines = quiet(make_grid(teacher, tmp_path / "one", "supervised", [0]), shard=(2, 2))
    assert len(table) == 0 and (tmp_path / "one" / "results.csv").is_file()
    assert lines[0] == "shard 2 of 2: 0 runs, 0 finished, 0 to train"
    assert lines[-1] == "not finished in this grid: 1 run, 1 in other shards"
    grid = make_grid(teacher, tmp_path / "failed", "supervised-lr=1e30", [0, 1])
    with pytest.raises(experiments.FailedRunsError, match="^1 of 1 run failed, all others of this shard"):
        quiet(grid, shard=(1, 2))
    assert (tmp_path / "failed" / "results.csv").is_file()


def test_shards_have_about_the_same_work(teacher, tmp_path):
    grid = make_grid(teacher, tmp_path, "supervised,kd,pckd,pckd-views=4")
    place = {point: i for i, point in enumerate(grid.points())}
    for count in (1, 2, 3, 9):
        parts = experiments.split_into_shards(grid, count)
        assert len(parts) == count and sorted(place[point] for part in parts for point in part) == list(range(8))
        assert all(part == sorted(part, key=place.get) for part in parts)
    one, other = experiments.split_into_shards(grid, 2)  # two seeds, so each shard has every arm once
    assert {point.arm for point in one} == {point.arm for point in other} == set(grid.arms)
    work = [
        sum(projection.training_flops(grid, point) for point in part) for part in experiments.split_into_shards(grid, 3)
    ]
    assert max(work) <= 1.1 * sum(work) / 3


@pytest.mark.parametrize("shard", [(0, 2), (3, 2), (1, 0)])
def test_invalid_shards_and_jobs_are_refused(teacher, tmp_path, shard):
    with pytest.raises(ValueError, match="shard must be"):
        quiet(make_grid(teacher, tmp_path), shard=shard)
    with pytest.raises(ValueError, match="jobs must be"):
        quiet(make_grid(teacher, tmp_path), jobs=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_several_processes_give_the_same_table(teacher, tmp_path, monkeypatch):
    one, _ = quiet(make_grid(teacher, tmp_path / "one"))
    monkeypatch.setattr(Grid, "train", lambda *_: pytest.fail("trained in this process"))
    two, _ = quiet(make_grid(teacher, tmp_path / "two"), jobs=2)
    assert two.equals(one)


def test_folder_of_another_grid_is_refused(teacher, tmp_path):
    quiet(make_grid(teacher, tmp_path, "kd", [0]))
    with pytest.raises(ValueError, match="was started with epochs 1, not 2"):
        quiet(make_grid(teacher, tmp_path, "kd", [0], epochs=2))


def test_records_without_weights_count_as_finished(teacher, tmp_path):
    grid = make_grid(teacher, tmp_path, "kd", [0])
    table, _ = quiet(grid)
    (grid.points()[0].folder / "student.safetensors").unlink()
    assert quiet(grid)[0].equals(table)
    with pytest.raises(ValueError, match="another run"):
        quiet(make_grid(teacher, tmp_path, "kd", [0], epochs=2))


def test_settings_without_effect_are_refused(teacher, wide_teacher, tmp_path):
    with pytest.raises(ValueError, match="'pckd-beta_ca=5' has no effect: .* width 64, the teacher's 256"):
        make_grid(wide_teacher, tmp_path, "kd,pckd-beta_ca=5")
    with pytest.raises(ValueError, match="has no effect: strategy uniform has no threshold"):
        make_grid(teacher, tmp_path, "pckd-strategy=uniform-epsilon=1.1")
    assert make_grid(teacher, tmp_path, "pckd-beta_ca=5").arms == (parse_arm("pckd-beta_ca=5"),)
    assert not list(tmp_path.iterdir())


def test_empty_grid_is_refused_and_duplicate_runs_are_merged(teacher, tmp_path):
    with pytest.raises(ValueError, match="needs at least one seed"):
        make_grid(teacher, tmp_path, seeds=())
    assert len(Grid("digits", [(teacher, "resnet8")] * 2, [Arm("kd")], [0], tmp_path, data_options=SIZES).points()) == 1
    assert len(make_grid(teacher, tmp_path, "pckd,pckd-views=1,pckd-beta_cc=0.005", (1, 1)).points()) == 1


# ------------------------------------------------------------------------------------------ pairs and teachers


@pytest.fixture(scope="module")
def teachers(data, tmp_path_factory):
    """Three trained teachers: two of one network, and one of another."""
    folder, recipe = tmp_path_factory.mktemp("teachers"), pckd.get_recipe("classroom", epochs=1)
    for name, seed in (("resnet14", 0), ("resnet14", 1), ("resnet20", 0)):
        pckd.fit(name, data, recipe, seed=seed, out=folder / name / f"seed{seed}", progress=False)
    return folder


def grid_of(teachers, out, *teacher_folders, arms="supervised,kd"):
    arms = [parse_arm(text) for text in arms.split(",")]
    pairs = [(teachers / name, "resnet8") for name in teacher_folders]
    return Grid("digits", pairs, arms, [0], out, pckd.get_recipe("classroom", epochs=1, batch_size=20), SIZES)


def test_all_trained_teachers_of_a_network_are_found(teachers, tmp_path):
    found = experiments.find_pairs(teachers, [("resnet20", "resnet8"), ("resnet14", "resnet8")])
    folders = ["resnet20/seed0", "resnet14/seed0", "resnet14/seed1"]
    assert found == [(teachers / folder, "resnet8") for folder in folders]
    with pytest.raises(
        FileNotFoundError, match="no finished supervised run of resnet56 .*, but of: resnet14, resnet20"
    ):
        experiments.find_pairs(teachers, [("resnet56", "resnet8")])
    with pytest.raises(FileNotFoundError, match="but of: none of any network"):
        experiments.find_pairs(tmp_path, [("resnet56", "resnet8")])


def test_only_finished_supervised_runs_with_weights_are_teachers(teachers, data, tmp_path):
    options = dict(epochs=1, batch_size=20, progress=False)
    pckd.distill("resnet8", teachers / "resnet14" / "seed0", data, "kd", out=tmp_path / "kd", **options)
    pckd.fit("resnet8", data, out=tmp_path / "records", **options)
    (tmp_path / "records" / "student.safetensors").unlink()
    cut = pckd.fit("resnet8", data, out=tmp_path / "cut", callbacks=[training.StopWhen(lambda: True)], **options)
    assert not cut.finished
    with pytest.raises(FileNotFoundError, match="of resnet8 with weights below"):
        experiments.find_pairs(tmp_path, [("resnet8", "resnet8")])


def test_teachers_of_one_network_have_folders_with_their_seeds(teachers, tmp_path):
    grid = grid_of(teachers, tmp_path, "resnet14/seed0", "resnet14/seed1", "resnet20/seed0")
    names = ["resnet14.seed0-resnet8", "resnet14.seed1-resnet8", "resnet20-resnet8"]
    assert list(grid.pair_names.values()) == names
    table, _ = quiet(grid)
    assert table["pair"].unique().tolist() == names
    fingerprints = [pckd.load_run(teacher).fingerprint for teacher, _ in grid.pairs]
    assert table.loc[table["arm"] == "kd", "teacher_run"].tolist() == [
        f"seed0-{fingerprints[0]}", f"seed1-{fingerprints[1]}", f"seed0-{fingerprints[2]}",
    ]  # fmt: skip
    assert table.loc[table["arm"] == "supervised", ["teacher", "teacher_run"]].isna().all(axis=None)
    # one of them alone keeps its folder
    assert quiet(grid_of(teachers, tmp_path, "resnet14/seed1"))[1] == ["2 runs, 2 finished, 0 to train"]


@pytest.mark.parametrize("finished", ["supervised,kd", "supervised"])
def test_a_teacher_that_is_added_later_changes_no_finished_run(finished, teachers, tmp_path):
    quiet(grid_of(teachers, tmp_path, "resnet14/seed0", arms=finished))
    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    grid = grid_of(teachers, tmp_path, "resnet14/seed0", "resnet14/seed1")
    assert list(grid.pair_names.values()) == ["resnet14-resnet8", "resnet14.seed1-resnet8"]
    _, lines = quiet(grid)
    assert lines[0] == f"3 runs, {len(files)} finished, {3 - len(files)} to train"
    assert {file: file.stat().st_mtime_ns for file in files} == files
    again = grid_of(teachers, tmp_path, "resnet14/seed1", "resnet14/seed0")
    assert again.pair_names == grid.pair_names and quiet(again)[1] == ["3 runs, 3 finished, 0 to train"]


def test_pairs_of_a_student_share_its_runs_without_a_teacher(teachers, tmp_path):
    grid = grid_of(teachers, tmp_path, "resnet14/seed0", "resnet14/seed1", "resnet20/seed0")
    shared = tmp_path / "resnet8" / "supervised" / "seed0"
    assert [point.folder for point in grid.points() if str(point.arm) == "supervised"] == [shared]
    assert len(grid.points()) == 4 and len(grid.points_by_pair()) == 6
    shards = [point for shard in experiments.split_into_shards(grid, 2) for point in shard]
    assert sorted(map(str, shards)) == sorted(map(str, grid.points()))
    table, lines = quiet(grid)
    assert lines[0] == "4 runs, 0 finished, 4 to train" and len(list(tmp_path.rglob("run.json"))) == 4
    supervised = table[table["arm"] == "supervised"]
    assert supervised["pair"].tolist() == list(grid.pair_names.values()) and supervised["top1"].nunique() == 1
    over_teachers = experiments.comparison_over_teachers(table, "kd").set_index(["pair", "arm"])
    row = over_teachers.loc["resnet14-resnet8", "supervised"]
    assert (
        np.isnan([row["sd"], row["low"], row["high"]]).all() and row["mean"] == supervised["top1"].iloc[0]
    )  # one seed
    assert row["teachers"] == row["pairs"] == 0 and not np.isnan(over_teachers.loc["resnet14-resnet8", "kd"]["sd"])
    assert quiet(grid_of(teachers, tmp_path, "resnet20/seed0"))[1] == ["2 runs, 2 finished, 0 to train"]


def test_a_finished_run_without_a_teacher_comes_before_an_interrupted_one(teachers, tmp_path):
    grid = grid_of(teachers, tmp_path, "resnet14/seed0", "resnet20/seed0", arms="supervised")
    first, second = (tmp_path / grid.pair_names[pair] / "supervised" / "seed0" for pair in grid.pairs)
    stop = [training.StopWhen(lambda: True)]
    assert not pckd.fit("resnet8", grid.loaded, grid.recipe, out=first, callbacks=stop, progress=False).finished
    assert [point.folder for point in grid.points()] == [first]
    pckd.fit("resnet8", grid.loaded, grid.recipe, out=second, progress=False)
    assert [point.folder for point in grid.points()] == [second]


def test_another_teacher_does_not_get_the_runs_of_the_first_one(teachers, tmp_path):
    quiet(grid_of(teachers, tmp_path, "resnet14/seed1", arms="kd"))
    with pytest.raises(ValueError, match="was started with teacher"):
        quiet(grid_of(teachers, tmp_path, "resnet14/seed0", arms="kd"))
    grid = grid_of(teachers, tmp_path, "resnet14/seed0", "resnet14/seed1", arms="kd")
    assert list(grid.pair_names.values()) == ["resnet14.seed0-resnet8", "resnet14-resnet8"]


def test_teachers_with_the_same_seed_are_refused(teachers, tmp_path):
    (tmp_path / "copy").symlink_to(teachers / "resnet14" / "seed0")
    with pytest.raises(ValueError, match="both give the pair 'resnet14.seed0-resnet8': train teachers with different"):
        grid_of(teachers, tmp_path / "out", "resnet14/seed0", tmp_path / "copy")


def test_grid_without_teachers_trains_teachers(tmp_path):
    recipe = pckd.get_recipe("classroom", epochs=1, batch_size=20)
    pairs = [(None, "resnet8"), (None, "resnet14")]
    grid = Grid("digits", pairs, [parse_arm("supervised")], [0, 1], tmp_path, recipe, SIZES)
    table, lines = quiet(grid)
    assert str(grid.points()[0]) == "resnet8 supervised seed 0" and lines[0].startswith("4 runs")
    assert table["pair"].tolist() == ["resnet8", "resnet14"] * 2 and table["teacher_run"].isna().all()
    assert len(experiments.find_pairs(tmp_path, [("resnet14", "resnet8")])) == 2
    assert experiments.split_into_shards(grid, 2)
    with pytest.raises(ValueError, match="method kd needs teacher=…, the run folder of a trained network"):
        Grid("digits", pairs, [parse_arm("supervised"), parse_arm("kd")], [0], tmp_path, recipe, SIZES)


# ------------------------------------------------------------------------------------------------------- time


def test_estimated_time_is_proportional_to_the_steps(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(projection, "_measure_step_seconds", lambda grid, point: {"kd": 2, "pckd": 5}[point.arm.method])
    grid = make_grid(teacher, tmp_path, "kd,pckd,kd-epochs=3", [0])
    kd, pckd_, longer = grid.points()
    assert experiments.estimate_seconds(grid, [kd]) == 2 * 3  # 60 images in batches of 20
    assert experiments.estimate_seconds(grid, [kd, pckd_, longer], jobs=2) == (6 + 15 + 18) / 2
    seconds = grid.train(kd).seconds  # from now on, the finished run is the basis of the estimate
    assert experiments.estimate_seconds(grid, [longer]) == pytest.approx(3 * seconds)


def test_stages_that_the_estimate_leaves_out_are_named(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments.execution, "estimate_seconds", lambda *_: 180)
    monkeypatch.setattr(experiments.execution, "train_in_turn", lambda grid, points, progress: iter(points))
    for arms, note in (
        ("kd", ""),
        ("kd,FT,FT-weight=100,FSP", ", without the stages of FT, FSP before the first epoch"),
    ):
        grid, lines = make_grid(teacher, tmp_path, arms, [0]), []
        assert list(experiments.execution.train_here(grid, grid.points(), 1, False, lines.append)) == grid.points()
        assert lines == [f"estimated time: 3.0 minutes{note}"]


def test_durations_use_the_largest_unit_that_fits_twice():
    lines = [experiments.format_duration(seconds) for seconds in (4.4, 119, 120, 7199, 7200)]
    assert lines == ["4 seconds", "119 seconds", "2.0 minutes", "120.0 minutes", "2.0 hours"]


def test_measuring_a_step_writes_no_files(teacher, tmp_path):
    grid = make_grid(teacher, tmp_path, "pckd", [0])
    assert 0 < projection._measure_step_seconds(grid, grid.points()[0]) < time_limit(20)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------- statistics


def test_comparison_is_paired_by_seed():
    top1 = {"kd": [60.0, 70.0, 65.0], "pckd": [61.0, 72.0, 68.0], "supervised": [50.0, 55.0]}
    rows = [("p", arm, seed, value) for arm, values in top1.items() for seed, value in enumerate(values)]
    rows += [("q", "pckd", 0, 10.0)]
    found = experiments.comparison(pd.DataFrame(rows, columns=["pair", "arm", "seed", "top1"])).set_index(
        ["pair", "arm"]
    )
    assert tuple(found.loc[("p", "pckd"), ["mean", "sd", "low", "high", "seeds"]]) == summarise(top1["pckd"])
    difference = paired_difference(dict(enumerate(top1["supervised"])), dict(enumerate(top1["kd"])))
    row = found.loc[("p", "supervised")]
    assert (row["difference"], row["d_low"], row["d_high"]) == (difference.mean, difference.low, difference.high)
    assert np.isnan(found.loc[("p", "kd"), "difference"]) and np.isnan(found.loc[("q", "pckd"), "difference"])
    assert found["pairs"].to_dict() == {("p", "kd"): 0, ("p", "pckd"): 3, ("p", "supervised"): 2, ("q", "pckd"): 0}


def rows_of(scores, **columns):
    """Return a table of results: pair → arm → top1 of seeds 0, 1 and so on."""
    rows = [
        (pair, arm, seed, top1)
        for pair, arms in scores.items()
        for arm, values in arms.items()
        for seed, top1 in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["pair", "arm", "seed", "top1"]).assign(**columns)


def test_comparison_corrects_p_values_within_each_pair():
    kd = [60.0, 62.0, 61.0]
    scores = {
        "p": {"kd": kd, "a": [61, 64, 63], "b": [61, 62, 62.5], "c": [70.0]},  # c has one seed, so it is not tested
        "q": {"kd": kd, "a": [61, 64, 63]},
    }
    found = experiments.comparison(rows_of(scores)).set_index(["pair", "arm"])
    # of a, the differences are 1, 2 and 2: t = (5/3) / (1/√3 / √3) = 5 with 2 degrees of freedom
    a, b = found.loc[("p", "a"), "p"], found.loc[("p", "b"), "p"]
    assert a == pytest.approx(0.0377, abs=5e-5) and a < b
    assert b == paired_difference({0: 61, 1: 62, 2: 62.5}, dict(enumerate(kd))).p_value
    assert found.loc["p", "p_holm"].tolist() == pytest.approx([np.nan, *holm([a, b]), np.nan], nan_ok=True)
    assert found.loc[("p", "a"), "p_holm"] == 2 * a and found.loc[("q", "a"), "p_holm"] == a
    assert np.isnan(found.loc[("p", "c"), ["p", "p_holm", "d_low"]].astype(float)).all()
    assert found.loc[("p", "c"), "difference"] == 10 and np.isnan(found.loc[("p", "kd"), "p"])


def test_comparison_has_the_mean_compute_of_each_arm():
    table = rows_of({"p": {"kd": [60, 62], "pckd": [63, 66]}}, teraflops=[1, 1, 4, 4], seconds=[10, 20, 30, 50])
    found = experiments.comparison(table)
    assert found["teraflops"].tolist() == [1, 4] and found["seconds"].tolist() == [15, 40]
    assert "teraflops" not in experiments.comparison(table[["pair", "arm", "seed", "top1"]])


def test_tables_that_cannot_be_compared_are_refused():
    table = rows_of({"p": {"kd": [60, 62], "pckd": [63, 66]}}, teacher="vgg13", student="vgg8")
    for compare in (experiments.comparison, experiments.comparison_over_teachers):
        with pytest.raises(
            ValueError, match="several rows of pair p, arm kd, seed 0: .* give each teacher its own pair"
        ):
            compare(pd.concat([table, table]))
        with pytest.raises(ValueError, match="has no seed, only pair, arm, top1"):
            compare(table.drop(columns="seed"))
    with pytest.raises(ValueError, match="has no teacher"):
        experiments.comparison_over_teachers(table.drop(columns="teacher"))
    two = pd.concat([table.assign(data="digits"), table.assign(data="cifar10", pair="q")])
    with pytest.raises(ValueError, match="several data sets, digits, cifar10: select one"):
        experiments.comparison_over_teachers(two)


def test_over_teachers_every_teacher_counts_once():
    scores = {
        "first": {"supervised": [50, 50], "kd": [60, 62], "pckd": [61, 64]},  # pckd − kd: 1 and 2, so 1.5
        "second": {"supervised": [50], "kd": [70, 71, 72], "pckd": [74, 75, 76]},  # 4
        "third": {"kd": [80, 80], "pckd": [80, 81, 99]},  # 0 and 1; seed 2 has no pair: 0.5
        "other": {"kd": [10], "pckd": [90]},
    }
    table = rows_of(scores, data="digits", student="resnet8")
    table["teacher"] = np.where(table["pair"] == "other", "vgg13", "resnet20")
    table.loc[table["arm"] == "supervised", "teacher"] = None  # as in the table of `results`
    found = experiments.comparison_over_teachers(table).set_index(["pair", "arm"])
    expected = summarise([1.5, 4.0, 0.5])
    row = found.loc[("resnet20-resnet8", "pckd")]
    assert tuple(row[["difference", "d_low", "d_high", "pairs", "p"]]) == pytest.approx(
        (2, expected.low, expected.high, 3, expected.p_value)
    )
    # t(0.975, 2 degrees of freedom) = 4.303, standard deviation of 1.5, 4 and 0.5: √3.25
    assert row["d_high"] == pytest.approx(2 + 4.3027 * 3.25**0.5 / 3**0.5, abs=1e-3)
    assert row["teachers"] == 3 and row["mean"] == pytest.approx(np.mean([62.5, 75, 260 / 3]))
    supervised = found.loc[("resnet20-resnet8", "supervised")]
    assert supervised["teachers"] == supervised["pairs"] == 0
    assert row["p_holm"] == pytest.approx(holm([row["p"], supervised["p"]])[0])
    one = found.loc[("vgg13-resnet8", "pckd")]
    assert (one["teachers"], one["difference"]) == (1, 80) and np.isnan([one["d_low"], one["p"], one["p_holm"]]).all()


def test_over_teachers_an_arm_without_a_teacher_is_compared_over_its_seeds():
    alone = {"supervised": [50, 52, 54], "supervised-lr=0.1": [51, 54, 54]}  # the same runs in both pairs
    scores = {"first": {**alone, "kd": [60, 61, 62]}, "second": {**alone, "kd": [64, 65, 66]}}
    table = rows_of(scores, teacher="resnet20", student="resnet8")
    table.loc[table["arm"] != "kd", "teacher"] = None
    found = experiments.comparison_over_teachers(table).set_index("arm")
    assert found["teachers"].to_dict() == {"supervised": 0, "supervised-lr=0.1": 0, "kd": 2}
    row = found.loc["supervised"]
    assert tuple(row[["mean", "sd", "low", "high"]]) == summarise([50, 52, 54])[:4]
    # 52 − 63, with variance 4/3 + 8/2 and 4.6875²/(1.3333²/2 + 4²/1) degrees of freedom
    assert row["difference"] == -11 and row["pairs"] == 0
    freedom = (4 / 3 + 8 / 2) ** 2 / ((4 / 3) ** 2 / 2 + (8 / 2) ** 2)
    half = stats.t.ppf(0.975, freedom) * (4 / 3 + 8 / 2) ** 0.5
    assert tuple(row[["d_low", "d_high"]]) == pytest.approx((-11 - half, -11 + half))
    assert row["p"] == pytest.approx(2 * stats.t.sf(11 / (4 / 3 + 8 / 2) ** 0.5, freedom))
    by_reference = experiments.comparison_over_teachers(table, "supervised").set_index("arm")
    assert by_reference.loc["kd", "difference"] == 11 and by_reference.loc["kd", "p"] == pytest.approx(row["p"])
    other = by_reference.loc["supervised-lr=0.1"]
    assert (other["difference"], other["pairs"], other["d_high"]) == (1, 3, summarise([1, 2, 0]).high)
    one_seed = experiments.comparison_over_teachers(table[table["seed"] == 0]).set_index("arm").loc["supervised"]
    assert one_seed["difference"] == 50 - 62 and np.isnan(one_seed[["sd", "d_low", "p"]].astype(float)).all()


def test_many_seeds_of_one_teacher_do_not_narrow_the_interval_over_teachers():
    """If teachers matter more than seeds, the interval over the seeds of one teacher misses the other teachers."""
    random = np.random.default_rng(0)
    gain = {"first": 5, "second": 0, "third": -4}
    kd = {pair: random.normal(70, 1, 20) for pair in gain}
    scores = {pair: {"kd": kd[pair], "pckd": kd[pair] + gain[pair] + random.normal(0, 0.1, 20)} for pair in gain}
    table = rows_of(scores, teacher="resnet20", student="resnet8")
    by_teacher = experiments.comparison(table).query("arm == 'pckd'")
    assert (by_teacher["d_high"] - by_teacher["d_low"]).max() < 0.2 and by_teacher["p_holm"].iloc[0] < 1e-9
    over = experiments.comparison_over_teachers(table).query("arm == 'pckd'").iloc[0]
    assert over["d_low"] < -9 and over["d_high"] > 9 and over["p"] > 0.5


# ------------------------------------------------------------------------------------------------- formatted


@pytest.fixture
def compared():
    scores = {
        "resnet14-resnet8": {"kd": [60, 62, 61], "pckd-beta_cc=0.02": [61, 64, 63], "supervised": [50.0]},
        "a&b_c": {"kd": [60, 62, 61], "supervised": [59, 60, 61]},
    }
    return experiments.comparison(rows_of(scores, teraflops=1234.5, seconds=2.0))


def test_text_has_aligned_columns(compared):
    header, kd, pckd_, *_ = lines = experiments.format_comparison(compared).splitlines()
    assert len({len(line) for line in lines}) == 1  # numbers are aligned at the right
    assert header.split("  ")[0] == "pair" and "difference to kd" in header
    assert "61.00 ± 1.00" in kd and pckd_.split()[2:4] == ["3", "62.67"]
    assert "+1.67 [0.23, 3.10]" in pckd_ and "0.038" in pckd_ and "1,234" in pckd_  # 1,234.5 is rounded to even
    assert lines[3].split()[2:6] == ["1", "50.00", "-10.00", "1"]  # one seed: no spread and no interval
    assert "difference to pckd" in experiments.format_comparison(compared, reference="pckd")


def test_markdown_has_a_bold_best_mean_per_pair(compared):
    lines = experiments.format_comparison(compared, "markdown").splitlines()
    cells = [line.strip("|").split("|") for line in lines]
    assert {len(row) for row in cells} == {10} and set("".join(cells[1])) == set(" :-")
    assert [line.count("**") // 2 for line in lines[2:]] == [0, 1, 0, 1, 0]
    assert cells[3][3].strip() == "**62.67 ± 1.53**" and cells[5][3].strip() == "**61.00 ± 1.00**"
    odd = compared.assign(arm=["a|b", "*c*", "d", "e", "f"])
    assert r"| a\|b |" in experiments.format_comparison(odd, "markdown")
    assert r"| \*c\* |" in experiments.format_comparison(odd, "markdown")


def cells_of_latex(line):
    assert line.endswith(r" \\")
    return [cell.strip() for cell in re.split(r"(?<!\\)&", line.removesuffix(r"\\"))]


def test_latex_is_a_tabular_of_booktabs(compared):
    lines = experiments.format_comparison(compared, "latex").splitlines()
    assert lines[:3] == [r"% needs \usepackage{booktabs}", r"\begin{tabular}{llrrrrrrrr}", r"\toprule"]
    assert [number for number, line in enumerate(lines) if line == r"\midrule"] == [4, 8]  # header, pairs
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    rows = [cells_of_latex(line) for line in lines if "&" in line]
    assert len(rows) == 6 and {len(row) for row in rows} == {10}
    assert rows[2][:2] == ["resnet14-resnet8", r"pckd-beta\_cc=0.02"] and rows[4][0] == r"a\&b\_c"
    assert rows[2][3] == r"\textbf{62.67 $\pm$ 1.53}" and rows[0][3] == r"top-1 \%"
    assert rows[3][4] == "$-$10.00" and rows[2][4] == "+1.67 [0.23, 3.10]"
    assert sum(cell.startswith(r"\textbf") for row in rows for cell in row) == 2


def test_latex_escapes_every_special_character(compared):
    odd = compared.assign(pair="[1]", arm=r"\{}$&#^_~%<>", p=1e-9)
    rows = experiments.format_comparison(odd, "latex").splitlines()[5:-2]
    escaped = r"\textbackslash{}\{\}\$\&\#\textasciicircum{}\_\textasciitilde{}\%$<$$>$"
    assert all(cells_of_latex(row)[:2] == ["{}[1]", escaped] for row in rows)  # \\[1] would be a distance
    assert all(cells_of_latex(row)[6] == "$<$0.001" for row in rows)
    assert all(row.count("{") == row.count("}") for row in rows)


def test_pivoted_tables_have_one_column_per_pair(compared):
    text = experiments.format_comparison(compared, pivot=True).splitlines()
    assert re.split(r"\s{2,}", text[0]) == ["arm", "resnet14-resnet8", "a&b_c"]
    assert [re.split(r"\s{2,}", line) for line in text[1:]] == [
        ["kd", "61.00 ± 1.00", "61.00 ± 1.00"],
        ["pckd-beta_cc=0.02", "62.67 ± 1.53", "-"],
        ["supervised", "50.00", "60.00 ± 1.00"],
    ]
    latex = experiments.format_comparison(compared, "latex", pivot=True).splitlines()
    assert latex[1] == r"\begin{tabular}{lrr}"
    assert cells_of_latex(latex[6]) == [r"pckd-beta\_cc=0.02", r"\textbf{62.67 $\pm$ 1.53}", "-"]
    assert cells_of_latex(latex[5])[2] == r"\textbf{61.00 $\pm$ 1.00}" and len(latex) == 10


def test_csv_has_all_digits(compared):
    read = pd.read_csv(io.StringIO(experiments.format_comparison(compared, "csv")))
    pd.testing.assert_frame_equal(read, compared)


def test_a_filtered_comparison_can_be_formatted(compared):
    some = compared[compared["arm"] != "kd"]
    lines = experiments.format_comparison(some, "markdown").splitlines()
    assert len(lines) == 5 and lines[2].count("**") == 2 and "**" not in lines[4]  # the only arm of its pair


def test_formats_of_the_table_over_teachers():
    scores = {pair: {"kd": [60, 61], "pckd": [62, gain]} for pair, gain in (("a", 64), ("b", 65))}
    table = rows_of(scores, teacher="resnet20", student="resnet8")
    line = experiments.format_comparison(experiments.comparison_over_teachers(table), "markdown").splitlines()[-1]
    assert line.split(" | ")[:4] == ["| resnet20-resnet8", "pckd", "2", "**63.25 ± 0.35**"]


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("format must be text, markdown, latex or csv, got 'html'", {"format": "html"}),
        ("pivot needs format text, markdown or latex", {"format": "csv", "pivot": True}),
    ],
)
def test_unknown_formats_are_refused(compared, message, options):
    with pytest.raises(ValueError, match=message):
        experiments.format_comparison(compared, **options)
    with pytest.raises(ValueError, match="must be a table of comparison"):
        experiments.format_comparison(compared[["pair", "mean"]])


# ------------------------------------------------------------------------------------- from the command line


def command(teacher, out, *more, sizes=("--train-size", "60", "--test-size", "30")):
    words = ["compare", "--data", "digits", *sizes, "--teacher", teacher, "--student", "resnet8", "--out", out]
    return [sys.executable, "-m", "pckd_nb", *map(str, words), *more]


ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # with other numbers of threads, the last bits of results differ


def start(words):
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(words, env=ONE_THREAD, start_new_session=True, **pipes)


def wait_for(condition, process, seconds=300):
    started = time.monotonic()
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() - started < seconds
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_interrupted_grid_continues_without_repeating_finished_runs(tmp_path, jobs, number):
    sizes = "--train-size", "600", "--test-size", "30"
    data = pckd.load_dataset("digits", train_size=600, test_size=30)
    teacher = train_teacher("resnet14", data, tmp_path / "teacher")
    more = "--methods", "kd,pckd", "--seeds", "0-1", "--epochs", "3", "--batch-size", "20"
    out = tmp_path / "cut"
    process = start(command(teacher, out, *more, "--jobs", jobs, sizes=sizes))
    wait_for(lambda: set(states(out).values()) > {"finished"}, process)
    time.sleep(0.3)
    process.send_signal(number)
    assert process.wait(60) == (-number if number == signal.SIGKILL else 130)
    process.communicate(timeout=300)  # wait until its child processes, which hold its pipes, have ended
    finished = {file: file.stat().st_mtime_ns for file, state in states(out).items() if state == "finished"}
    assert finished

    again = start(command(teacher, out, *more, "--jobs", jobs, sizes=sizes))
    output, errors = again.communicate(timeout=300)
    assert again.returncode == 0 and "4 runs" in output and "Traceback" not in errors, errors
    assert finished == {file: file.stat().st_mtime_ns for file in finished}, "finished runs must not be written again"
    assert len(pd.read_csv(out / "results.csv")) == 4
    whole = start(command(teacher, tmp_path / "whole", *more, sizes=sizes))
    assert whole.wait(300) == 0
    assert (out / "results.csv").read_bytes() == (tmp_path / "whole" / "results.csv").read_bytes()


def states(out: Path) -> dict[Path, str]:
    return {file: runs.read_settings(file.parent)["status"] for file in out.rglob("run.json")}
