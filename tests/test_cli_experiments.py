"""The commands compare, ablate, sweep and figures."""

import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import pckd_nb as pckd
from pckd_nb import cli
from pckd_nb.analysis import summarise
from pckd_nb.cli.grids import Layout, print_comparison
from pckd_nb.cli.options import parse_seeds

from .test_cli import SMALL, refused, run, teacher  # noqa: F401


def grid(teacher, *more):  # noqa: F811
    return [*SMALL, "--teacher", teacher, "--student", "resnet8", "--out", "grid", "--seeds", "0,1", *more]


def test_compare_prints_a_table_with_intervals(run, teacher):  # noqa: F811
    arms = "supervised,kd,kd-temperature=2"
    more = ["--methods", arms, "--epochs", "6", "--batch-size", "10"]
    status, out, _ = run("compare", *grid(teacher, *more))
    assert status == 0
    assert "6 runs, 0 finished, 6 to train" in out and "estimated time:" in out and "[6/6]" in out
    lines = out.splitlines()
    header = next(number for number, line in enumerate(lines) if line.startswith("pair "))
    assert [line.split()[1] for line in lines[header + 1 :]] == arms.split(",")
    row = lines[header + 1].split()
    table = pd.read_csv("grid/results.csv")
    scores, kd = (table[table["arm"] == arm]["top1"].to_numpy() for arm in ("supervised", "kd"))
    assert row[2:6] == ["2", f"{scores.mean():.2f}", "±", f"{scores.std(ddof=1):.2f}"]
    found = summarise(scores - kd)
    assert row[6:9] == [f"{found.mean:+.2f}", f"[{found.low:.2f},", f"{found.high:.2f}]"]
    assert row[9] == "2" and row[10] == ("-" if np.isnan(found.p_value) else f"{found.p_value:.3f}")
    tested = sum(line.split()[-3] != "-" for line in lines[header + 1 :])  # no p-value if both differences are equal
    assert f"p (Holm): p corrected for {tested} comparison" in out or tested == 0
    assert lines[header + 2].split()[6:10] == ["-", "0", "-", "-"]  # the reference itself
    seconds = [pckd.load_run(f"grid/resnet8-resnet8/kd/seed{seed}").seconds for seed in (0, 1)]
    assert float(lines[header + 2].split()[-1]) == pytest.approx(np.mean(seconds), rel=0.01)

    status, out, _ = run("compare", *grid(teacher, *more))
    assert status == 0 and "6 runs, 6 finished, 0 to train" in out and "estimated" not in out


def test_other_formats_print_only_the_table_to_stdout(run, teacher):  # noqa: F811
    arms = ["--methods", "supervised,kd", "--epochs", "1"]
    status, out, err = run("compare", *grid(teacher, *arms, "--format", "csv"))
    table = pd.read_csv(io.StringIO(out))
    assert status == 0 and table["arm"].tolist() == ["supervised", "kd"] and table["seconds"].min() > 0
    assert "4 runs, 0 finished, 4 to train" in err and "paired: number of seeds that both methods have" in err
    status, out, err = run("compare", *grid(teacher, *arms, "--format", "latex", "--pivot"))
    assert status == 0 and out.startswith("% needs") and out.endswith("\\end{tabular}\n")
    assert "paired: " not in " ".join(err)  # the pivoted table has no such column
    status, out, _ = run("compare", *grid(teacher, *arms, "--format", "markdown"))
    assert status == 0 and len(out.splitlines()) == 4 and out.count("|") == 4 * 11


def test_several_teachers_give_a_second_table(capsys):
    scores = {("a", "kd"): 60, ("a", "pckd"): 63, ("b", "kd"): 60, ("b", "pckd"): 66, ("c", "kd"): 5, ("c", "pckd"): 6}
    rows = [(*key, seed, value + seed) for key, value in scores.items() for seed in (0, 1)]
    table = pd.DataFrame(rows, columns=["pair", "arm", "seed", "top1"]).assign(data="digits", student="resnet8")
    table["teacher"] = ["resnet20"] * 8 + ["vgg13"] * 4
    print_comparison(table, "kd", Layout("text", False))
    over_seeds, over_teachers = capsys.readouterr().out.split("over teachers: ")
    assert "p: none, because a t-test needs two differences or more that are not all equal" in over_seeds
    assert "p (Holm): p corrected for 1 comparison with kd\n" in over_teachers
    *_, kd, distilled = over_teachers.splitlines()
    assert kd.split()[:3] == ["resnet20-resnet8", "kd", "2"]
    assert distilled.split()[1:9] == ["pckd", "2", "65.00", "±", "2.12", "+4.50", "[-14.56,", "23.56]"]
    assert "vgg13" not in over_teachers  # it has one teacher
    assert "teachers 0" not in over_teachers
    alone = table.query("arm == 'pckd' and pair != 'c'").assign(arm="supervised", teacher=None, top1=[50, 52] * 2)
    print_comparison(pd.concat([table, alone]), "kd", Layout("text", False))
    over_teachers = capsys.readouterr().out.split("over teachers: ")[1]
    assert "teachers 0: a method without a teacher, over its seeds." in over_teachers
    assert over_teachers.splitlines()[-1].split()[1:6] == ["supervised", "0", "51.00", "±", "1.41"]
    print_comparison(table.query("pair != 'b'"), "kd", Layout("text", False))
    assert "over teachers" not in capsys.readouterr().out
    print_comparison(table, "kd", Layout("csv", False))
    assert len(pd.read_csv(io.StringIO(capsys.readouterr().out))) == 6


def test_grid_can_use_a_validation_split(run, teacher):  # noqa: F811
    status, _, _ = run("compare", *grid(teacher, "--methods", "supervised", "--val", "0.2", "--epochs", "1"))
    table = pd.read_csv("grid/results.csv")
    assert status == 0 and table["val_top1"].between(0, 100).all() and len(table) == 2


def test_teachers_are_trained_and_used_for_pairs(run):  # noqa: F811
    networks = ["--student", "resnet14", "--student", "resnet20"]
    sizes = [*SMALL, "--batch-size", "20", "--seeds", "0"]
    status, out, err = run("compare", *sizes, *networks, "--methods", "supervised", "--out", "teachers")
    assert status == 0 and "2 runs, 0 finished" in out and not err
    pairs = ["--pairs", "resnet14:resnet8,resnet20:resnet14", "--teachers", "teachers"]
    status, out, err = run("compare", *sizes, *pairs, "--methods", "supervised,kd", "--out", "grid", "--dry-run")
    assert status == 0 and "resnet14-resnet8 kd seed 0" in out and "resnet20-resnet14 kd seed 0" in out
    assert "4 runs, 4 to train" in out and not err


def test_dry_run_only_counts_runs(run, teacher, tmp_path):  # noqa: F811
    status, out, _ = run("sweep", *grid(teacher, "--factor", "beta_fa=0,20", "--factor", "views=1,2", "--dry-run"))
    assert status == 0
    assert out.count("to train  ") == 2 * 3 and "pckd-views=2 seed 1" in out and "views=1" not in out
    assert "6 runs, 6 to train, estimated time:" in out
    assert not list(tmp_path.iterdir())

    status, out, _ = run("sweep", *grid(teacher, "--factor", "beta_fa=0,20,40", "--shard", "2/2", "--dry-run"))
    assert status == 0 and out.count("to train  ") == 3 and "3 runs, 3 to train" in out


def test_reference_may_be_given_by_any_of_its_names(run, teacher):  # noqa: F811
    arms = ["--methods", "kd,supervised", "--seeds", "0", "--epochs", "1"]
    for name in ("kd", "KD", "kd-temperature=4", "kd-epochs=1"):
        status, out, err = run("compare", *grid(teacher, *arms, "--reference", name))
        kd = next(line.split() for line in out.splitlines() if " kd " in line and "±" not in line and "%" not in line)
        assert status == 0 and kd[4:6] == ["-", "0"] and out.splitlines()[-1].split()[5] == "1" and not err
    status, out, err = run("compare", *grid(teacher, *arms, "--reference", "pckd"))
    assert status == 0 and "note: no differences are shown, because --reference pckd is not one of kd, " in err[0]
    status, out, err = run("sweep", *grid(teacher, "--factor", "temperature=2", "--method", "kd", "--dry-run"))
    assert status == 0 and not err


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_run_with_a_non_finite_loss_does_not_stop_the_others(teacher, jobs, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    arms = "kd-lr=1e30,kd,kd-temperature=2"
    for found in ("0", "2"):
        more = ["--methods", arms, "--seeds", "0", "--jobs", jobs]
        status = cli.main(["compare", *map(str, grid(teacher, *more))])
        out, err = capsys.readouterr()
        assert status == 1 and f"3 runs, {found} finished" in out
        last = err.splitlines()[-1]
        assert (
            "1 of 3 runs failed, all others were trained; first error: resnet" in last
            and "kd-lr=1e+30 seed 0: " in last
        )
        assert "is not finite in epoch 1" in last and "kd-temperature=2 " in out.splitlines()[-1]
        assert pd.read_csv("grid/results.csv")["arm"].tolist() == ["kd", "kd-temperature=2"]


def test_dry_run_of_ablate_counts_runs(run, teacher):  # noqa: F811
    status, out, _ = run("ablate", *grid(teacher, "--dry-run"))
    assert status == 0 and "26 runs, 26 to train" in out  # one of the 14 arms is the default for digits


@pytest.mark.parametrize(
    ("match", "command", "more"),
    [
        ("unknown method 'nonsense'", "compare", ["--methods", "kd,nonsense"]),
        ("method kd has no setting 'beta_cc'", "compare", ["--methods", "kd-beta_cc=1"]),
        ("shard must be i/n", "compare", ["--shard", "0/2"]),
        ("--shard must be i/n", "compare", ["--shard", "two"]),
        ("jobs must be", "compare", ["--jobs", "0"]),
        ("jobs must be", "compare", ["--jobs", "-5", "--dry-run"]),
        ("shard must be i/n", "compare", ["--shard", "2/1", "--dry-run"]),
        ("epsilon_240 must be a positive number up to 10", "compare", ["--methods", "pckd-epsilon_240=1e300"]),
        ("kd has no setting 'name'", "compare", ["--methods", "kd-name=x"]),
        ("--seeds must be numbers", "compare", ["--seeds", "one"]),
        ("empty range", "compare", ["--seeds", "3-1"]),
        ("factor lr needs values, as in lr=VALUE,VALUE", "sweep", ["--factor", "lr"]),
        ("no setting 'nonsense'", "sweep", ["--factor", "nonsense=1"]),
        ("strategy focal has no threshold", "sweep", ["--factor", "epsilon=1", "--method", "pckd-strategy=focal"]),
        ("there is no such folder", "compare", ["--teacher", "nowhere"]),
        ("'p c' is not an arm", "compare", ["--reference", "p c"]),
        (
            "format must be text, markdown, latex or csv, got 'html'",
            "sweep",
            ["--format", "html", "--factor", "beta_cc"],
        ),
        ("pivot needs format text, markdown or latex", "ablate", ["--format", "csv", "--pivot"]),
        ("--pairs and --teachers are used together, instead of --teacher", "compare", ["--pairs", "resnet14:resnet8"]),
        ("--pairs and --teachers are used together", "compare", ["--teachers", "."]),
    ],
)
def test_invalid_options_are_refused(refused, teacher, match, command, more):  # noqa: F811
    refused(match, command, *grid(teacher, *more))


@pytest.mark.parametrize(
    ("match", "more"),
    [
        ("no network to train: use --student, or --pairs with --teachers", []),
        ("method kd needs --teacher …, the run folder of a trained network", ["--student", "resnet8"]),
        ("pairs must be TEACHER:STUDENT, comma-separated, or paper", ["--pairs", "resnet8", "--teachers", "."]),
        ("unknown model 'resnet9'", ["--pairs", "resnet14:resnet9", "--teachers", "."]),
        ("no finished supervised run of resnet14 with weights", ["--pairs", "resnet14:resnet8", "--teachers", "."]),
    ],
)
def test_pairs_that_are_missing_are_refused(refused, match, more):  # noqa: F811
    refused(match, "compare", *SMALL, "--out", "grid", *more)


def test_figures_need_finished_runs(refused):  # noqa: F811
    refused("no finished run below 'nowhere'", "figures", "--runs", "nowhere")


def test_seeds_are_parsed():
    assert parse_seeds("0,1,5-7") == [0, 1, 5, 6, 7]


# --------------------------------------------------------------------------------------------------------- help


def help_of(command, capsys, monkeypatch) -> str:
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main([command, "--help"]) == 0
    return capsys.readouterr().out


def test_help_and_pages_name_the_folders_of_runs_in_the_same_way(capsys, monkeypatch):
    texts = [help_of(command, capsys, monkeypatch) for command in ("search", "compare", "ablate", "sweep")]
    texts += [
        (Path(__file__).parents[1] / "docs" / name).read_text("utf-8") for name in ("experiments.md", "cluster.md")
    ]
    found = set(re.findall(r"OUT/[\w-]+/[\w/-]+", "\n".join(texts)))
    assert found == {"OUT/TEACHER-STUDENT/ARM/seedN", "OUT/TEACHER-STUDENT/ARM/trialN"}


def test_grids_and_searches_have_the_same_machine_options(capsys, monkeypatch):
    sections = [
        re.search(r"^Machine:\n((?:  .*\n)+)", help_of(command, capsys, monkeypatch), re.M)[1].split()
        for command in ("search", "compare", "ablate", "sweep")
    ]
    assert sections[0].count("--teacher-cache") == 1 and sections == [sections[0]] * 4
