"""Published accuracies: the table, what is computed from it, the command, the figure, and the page of the site."""

import copy
import dataclasses
import importlib
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from PIL import Image

import pckd_nb as pckd
from pckd_nb import leaderboard as board
from pckd_nb.catalogue import PAIRS
from pckd_nb.figures import results
from pckd_nb.paths import paper_folder

from .conftest import make_data
from .test_cli import refused, run  # noqa: F401

ROOT = Path(__file__).parents[1]
FILE = ROOT / "data" / "paper" / "published_results.csv"
PAIR = "resnet56", "resnet20"
ROW = {
    "dataset": "cifar100", "teacher": "resnet56", "student": "resnet20", "teacher_top1": "72.34",
    "student_alone_top1": "69.00", "method": "KD", "top1": "70.00", "sd": "", "seeds": "", "epochs": "",
    "views_or_aug": "", "source_kind": "own", "source": "a paper", "checked_in": "owner/repository:README.md@abc",
}  # fmt: skip


@pytest.fixture(scope="module")
def published():
    return board.load_published()


@pytest.fixture
def table(tmp_path):
    """A function that writes and loads a table, with the given changes to `ROW` in each row."""

    def make(*changes: dict[str, str]) -> pd.DataFrame:
        rows = pd.DataFrame([{**ROW, **change} for change in changes], columns=list(ROW))
        rows.to_csv(tmp_path / board.FILE, index=False)
        return board.load_published(tmp_path)

    return make


class TestTheFile:
    def test_it_is_plain_text_and_sorted(self):
        content = FILE.read_bytes()
        assert content.decode("ascii").endswith("\n") and b"\r" not in content and len(content) < 500_000
        rows = pd.read_csv(FILE, dtype=str, keep_default_na=False)
        keys = ["dataset", "teacher", "student", "method", "source_kind", "source", "checked_in", "top1"]
        assert rows[keys].apply(tuple, axis=1).is_monotonic_increasing
        assert len(rows) == 2000 and not rows.duplicated().any() and tuple(rows) == board.COLUMNS

    def test_its_values_are_possible(self, published):
        for name in ("teacher_top1", "student_alone_top1", "top1"):
            assert published[name].dropna().between(30, 90).all()
        assert published["sd"].dropna().between(0.01, 1).all() and published["link"].str.startswith("https://").all()
        assert (published["teacher"] == "").sum() == 4 == (published["student"] == "").sum()
        assert published["year"].dropna().between(2015, 2026).all()

    def test_the_other_mobilenet_is_kept_apart(self, published):
        alone = published.groupby("student")["student_alone_top1"]
        on_cifar = published[published["dataset"] == "cifar100"].groupby("student")["student_alone_top1"]
        assert on_cifar.max()["MobileNetV2"] < 66 and alone.min()["MobileNetV2_HSAKD"] == 73.51
        assert (published["student"] == "MobileNetV2_HSAKD").sum() == 8

    def test_the_wrong_heading_of_mdistiller_is_corrected(self, published):
        rows = published[published["source"].str.contains("column headed MobileNet-V2")]
        assert rows[["teacher", "student"]].drop_duplicates().values.tolist() == [["resnet32x4", "ShuffleV2"]]
        assert dict(zip(rows["method"], rows["top1"], strict=True)) == {"DKD": 77.07, "KD": 74.45}

    def test_the_smaller_table_agrees_with_it(self, published):
        names = {"MLD": "MLKD", "PCKD_without_KD": "PCKD without KD"}
        authors = published[published["source"].str.startswith("PCKD README")].set_index(["teacher", "student"])
        small = pd.read_csv(ROOT / "data" / "paper" / "cifar100_same_family.csv").dropna()
        columns = {"Teacher": "teacher_top1", "Student": "student_alone_top1"}
        for row in small.itertuples():
            rows = authors.loc[(row.teacher, row.student)]
            if column := columns.get(row.method):
                assert rows[column].eq(row.top1_percent).all(), row
            else:
                (found,) = rows.loc[rows["method"] == names.get(row.method, row.method), "top1"]
                assert found == row.top1_percent, row
        assert len(small) == len(authors) + 2 * 7

    def test_pckd_has_no_number_on_imagenet(self, published):
        assert set(published.loc[published["method"].str.startswith("PCKD"), "dataset"]) == {"cifar100"}


class TestLoading:
    def test_text_stays_text_and_empty_numbers_are_nan(self, table):
        found = table({"method": "NA", "seeds": "3", "epochs": "30+100"}, {"teacher_top1": ""}).iloc
        assert found[0]["method"] == "NA" and found[0]["seeds"] == 3 and found[0]["epochs"] == "30+100"
        assert np.isnan(found[1]["teacher_top1"]) and np.isnan(found[1]["seeds"]) and found[1]["epochs"] == ""

    @pytest.mark.parametrize(
        "source, year",
        [
            ("A README (arXiv 1910.10699)", 2019),
            ("B README (ICLR 2023)", 2023),
            ("note on arXiv 2408.07703 (RLD)", 2024),
            ("a report", None),
        ],
    )
    def test_the_year_comes_from_the_source(self, table, source, year):
        found = table({"source": source})["year"][0]
        assert pd.isna(found) if year is None else found == year

    @pytest.mark.parametrize(
        "place, address",
        [
            ("a/b:c.md@1f", "https://github.com/a/b/blob/1f/c.md"),
            ("a/b:x,y z.txt", "https://github.com/a/b/blob/HEAD/x%2Cy%20z.txt"),
            ("https://example.org/x", "https://example.org/x"),
            ("runs/mine", ""),
        ],
    )
    def test_places_become_addresses(self, place, address):
        assert board.web_address(place) == address

    def test_damaged_tables_are_refused_in_one_line(self, tmp_path, table):
        with pytest.raises(
            ValueError, match=r"^no published_results.csv in .*: it is in data/paper .*; pass that folder$"
        ):
            board.load_published(tmp_path)
        with pytest.raises(ValueError, match=r"^'.*' has a value in the column 'top1' that is not a number: .*7o"):
            table({}, {"top1": "7o.12"})
        with pytest.raises(ValueError, match="unknown source_kind 'claimed': use one of own, reproduced, copied$"):
            table({"source_kind": "claimed"})
        with pytest.raises(ValueError, match="unknown source_kind 'ours'"):
            table({"source_kind": "ours"})
        file = tmp_path / board.FILE
        file.write_text("method,top1\nKD,70\n")
        with pytest.raises(ValueError, match="has no column 'dataset': it needs dataset, teacher"):
            board.load_published(tmp_path)
        for content in (b"", b"\xff\xfe\x00a", b'a,b\n"'):
            file.write_bytes(content)
            with pytest.raises(ValueError, match="is not a table of comma-separated values|has no column") as error:
                board.load_published(tmp_path)
            assert "\n" not in str(error.value)


class TestMarks:
    def marks(self, rows: pd.DataFrame) -> list[str]:
        return rows["marks"].tolist()

    def test_more_views(self, table):
        notes = "4 rotated views", "4 rotations as self-supervision", "weak+strong augmentation", "crop+flip", ""
        rows = table(*({"method": f"M{number}", "views_or_aug": note} for number, note in enumerate(notes)))
        assert self.marks(rows) == ["views", "views", "views", "", ""]

    def test_mixed_images(self, table):
        assert self.marks(table({"method": "CutMix+KD"}, {"method": "SuperMix+KD"}, {"method": "KD"})) == [
            "views",
            "views",
            "",
        ]

    def test_what_belongs_to_a_method_marks_all_its_rows(self, table):
        rows = table(
            {"method": "PCKD", "views_or_aug": "4 rotated views"},
            {"method": "PCKD", "source_kind": "copied"},
            {"method": "PCKD", "teacher": "vgg13", "student": "vgg8"},
            {"method": "MLKD+LS", "views_or_aug": "as MLKD: weak+strong augmentation"},
            {"method": "MLKD"},
            {"method": "SimKD", "views_or_aug": "crop+flip; student keeps projector and teacher classifier"},
            {"method": "SimKD"},
        )
        assert self.marks(rows) == ["views"] * 5 + ["network"] * 2

    def test_what_belongs_to_a_training_marks_one_row(self, table):
        note = "crop+flip; loss weights 1:1 with KD term"
        rows = table({"views_or_aug": note}, {}, {"views_or_aug": "other MobileNetV2 than CRD"}, {"epochs": "480"})
        assert self.marks(rows) == ["setting", "", "network", "longer"]

    @pytest.mark.parametrize(
        "dataset, epochs, mark",
        [
            ("cifar100", "240", ""),
            ("cifar100", "241", "longer"),
            ("cifar100", "", ""),
            ("imagenet", "100", ""),
            ("imagenet", "30+100", "longer"),
            ("imagenet", "1+90", ""),
            ("tinyimagenet", "500", ""),
        ],
    )
    def test_longer_trainings(self, table, dataset, epochs, mark):
        assert self.marks(table({"dataset": dataset, "epochs": epochs})) == [mark]

    def test_another_teacher(self, table):
        note = "4 rotations as self-supervision; teacher trained jointly with auxiliary heads"
        assert self.marks(table({"method": "HSAKD*", "views_or_aug": note})) == ["views, teacher"]

    def test_a_range_is_marked_only_if_published_values_differ(self, table):
        rows = table(
            {"method": "A", "top1": "70"},
            {"method": "A", "top1": "70.00", "source_kind": "copied"},
            {"method": "B", "top1": "70"},
            {"method": "B", "top1": "70.01", "source_kind": "copied"},
        )
        compared = board.compare(board.find_numbers(PAIR, published=rows)).set_index("method")
        assert compared["marks"].to_dict() == {"A": "", "B": "range"}
        ours = rows.assign(source_kind=["own", "ours", "own", "ours"], top1=[70, 60, 70, 60.0])
        assert board.compare(ours)["marks"].tolist() == ["", ""]

    def test_every_mark_occurs_in_the_table_and_has_its_own_letter(self, published):
        numbers = [board.find_numbers(pair, published=published) for pair in PAIRS[:-1]]
        found = {mark for rows in numbers for text in board.compare(rows)["marks"] for mark in text.split(", ") if mark}
        assert found == board.MARKS.keys() and len({mark[0] for mark in found}) == len(found)


class TestComparing:
    def test_gains_are_relative_to_the_student_of_the_same_source(self, table):
        rows = table(
            {"top1": "71", "student_alone_top1": "69"},
            {"top1": "71", "student_alone_top1": "65.5", "source_kind": "reproduced", "source": "another"},
            {"top1": "71", "student_alone_top1": "60", "source_kind": "copied"},
            {"top1": "73", "student_alone_top1": "", "source_kind": "reproduced"},
        )
        assert rows["gain"].tolist()[:2] == [2, 5.5] and rows["gain"][2:].isna().all()
        (row,) = board.compare(rows).itertuples()
        assert (row.gain_low, row.gain, row.gain_high) == (2, 3.75, 5.5)
        assert (row.alone_low, row.alone_high) == (65.5, 69)

    def test_a_copy_of_kd_has_no_gain_over_the_student_of_the_copying_table(self, published):
        """SSKD's README copies KD, which was trained with another teacher, and trains the student again."""
        rows = board.find_numbers(PAIR, method="kd", published=published)
        copies = rows[rows["source"].str.startswith("SSKD")]
        assert (
            copies[["top1", "student_alone_top1"]].values.tolist() == [[70.66, 69.63]] and copies["gain"].isna().all()
        )

    def test_ranges_counts_and_medians(self, table):
        kinds = ("own", "reproduced", "reproduced", "reproduced", "copied")
        values = ("71", "70", "72", "70.5", "69")
        teachers = ("72.34", "73.44", "72.34", "", "75.00")
        rows = table(*(
            {"source_kind": kind, "top1": top1, "teacher_top1": teacher}
            for kind, top1, teacher in zip(kinds, values, teachers, strict=True)
        ))  # fmt: skip
        (row,) = board.compare(rows).to_dict("records")
        expected = {"own": (71, 71, 1), "reproduced": (70, 72, 3), "copied": (69, 69, 1)}
        for kind, (low, high, count) in expected.items():
            assert (row[f"{kind}_low"], row[f"{kind}_high"], row[f"{kind}_count"]) == (low, high, count)
        assert np.isnan(row["ours_low"]) and row["ours_count"] == 0 and row["reproduced_median"] == 70.5
        assert (row["teacher_low"], row["teacher_high"]) == (72.34, 75)

    def test_methods_are_sorted(self, table):
        rows = table(
            {"method": "A", "top1": "71"}, {"method": "A", "top1": "75", "source_kind": "reproduced"},
            {"method": "B", "top1": "72"}, {"method": "B", "top1": "60"},
            {"method": "C", "top1": "74", "source_kind": "reproduced", "student_alone_top1": "60"},
            {"method": "D", "top1": "80", "source_kind": "copied"},
            {"method": "E", "top1": "81", "source_kind": "copied"},
        )  # fmt: skip
        order = {sort: "".join(board.compare(rows, sort)["method"]) for sort in board.SORT_COLUMNS}
        assert order == {"own": "BAEDC", "reproduced": "ACEDB", "gain": "CABED"}

    def test_pairs_count_methods_and_differing_numbers(self, table):
        rows = table({}, {"source_kind": "copied"}, {"method": "A"}, {"method": "A", "top1": "71"},
                     {"teacher": "vgg13", "student": "vgg8"}, {"teacher": "", "student": ""},
                     {"method": board.ALONE})  # fmt: skip
        found = board.list_pairs(rows)
        assert found[["teacher", "methods", "numbers", "differing"]].values.tolist() == [
            ["resnet56", 2, 4, 1],
            ["vgg13", 1, 1, 0],
        ]

    def test_the_usual_pairs_come_first(self, published):
        found = board.list_pairs(published)
        assert tuple(zip(found["teacher"], found["student"], strict=True))[:13] == PAIRS[:-1]
        assert found["methods"].sum() == 748 and found["differing"].sum() == 203

    def test_the_student_alone_is_not_a_method(self, published):
        assert board.ALONE in set(published["method"])
        numbers = board.find_numbers(("resnet32x4", "resnet8x4"), published=published)
        assert board.ALONE not in set(numbers["method"])

    @pytest.mark.parametrize(
        "pair, dataset, message",
        [
            (("resnet20", "resnet56"), "cifar100", "did you mean resnet56,resnet20[?]$"),
            (("resnet56", "resnet21"), "cifar100", "did you mean resnet56,resnet20 or "),
            (("resnet34", "resnet18"), "cifar100", "has no published number on cifar100, but on imagenet$"),
            (PAIR, "cifar10", "dataset must be one of cifar100, .*, got 'cifar10'"),
            (("", ""), "cifar100", "no published number for the pair ','"),
        ],
    )  # fmt: skip
    def test_unknown_pairs_are_refused_with_similar_names(self, published, pair, dataset, message):
        with pytest.raises(ValueError, match=message):
            board.find_numbers(pair, dataset, published=published)

    def test_unknown_methods_are_refused_with_similar_names(self, published):
        with pytest.raises(
            ValueError,
            match="method 'reviewkd2' has no number for resnet56 → resnet20 on cifar100: did you mean ReviewKD,",
        ):
            board.find_numbers(PAIR, method="reviewkd2", published=published)

    @pytest.mark.parametrize("pair", ["resnet56,resnet20", ("resnet56",), (*PAIR, "x"), None, (1, 2), [PAIR]])
    def test_a_pair_has_two_names(self, published, pair):
        with pytest.raises(TypeError, match="pair must be the names of teacher and student"):
            board.find_numbers(pair, published=published)


@pytest.fixture(scope="module")
def own_runs(tmp_path_factory):
    """A folder of runs on a data set named cifar100 and on another one."""
    folder = tmp_path_factory.mktemp("runs")
    data = dataclasses.replace(make_data(), name="cifar100")
    options = dict(epochs=1, batch_size=16, progress=False, accelerator="cpu")
    teacher = pckd.fit(pckd.create_model("resnet56", data, seed=0), data, **options)
    for method in ("supervised", "kd", "LSKD", "pckd"):
        student = pckd.create_model("resnet20", data, seed=0)
        trained = pckd.distill(student, teacher, data, method, **options)
        for seed, top1 in ((0, 60), (1, 62)):
            settings = copy.deepcopy(trained.settings)
            settings["seed"] = seed
            history = trained.history.assign(test_top1=float(top1) + (method != "supervised") * 5)
            dataclasses.replace(trained, settings=settings, history=history).save(folder / method / str(seed))
            if method == "kd":
                settings = copy.deepcopy(settings)
                settings["data"]["name"] = "cifar10"
                dataclasses.replace(trained, settings=settings, history=history).save(folder / "other" / str(seed))
    return folder


class TestOwnRuns:
    def test_runs_become_numbers(self, own_runs):
        found = board.measured_numbers(own_runs).set_index(["dataset", "method"])
        assert set(found.index) == {("cifar100", name) for name in ("KD", "KD+LS", "PCKD")} | {("cifar10", "KD")}
        kd = found.loc[("cifar100", "KD")]
        assert (kd["teacher"], kd["student"], kd["source_kind"], kd["epochs"]) == (*PAIR, "ours", "1")
        assert (kd["top1"], kd["seeds"], kd["student_alone_top1"], kd["gain"]) == (66, 2, 61, 5)
        assert kd["sd"] == pytest.approx(2**0.5) and kd["views_or_aug"] == "48 training images"
        assert found.loc[("cifar100", "PCKD"), "views_or_aug"] == "4 rotated views; 48 training images"
        assert np.isnan(found.loc[("cifar10", "KD"), "student_alone_top1"])

    def test_other_recipes_and_teachers_are_other_rows_and_trials_are_none(self, own_runs, tmp_path):
        for name in ("kd", "supervised"):
            shutil.copytree(own_runs / name, tmp_path / name)
        kd = pckd.load_run(own_runs / "kd" / "0")
        for what in ("recipe", "teacher", "trial"):
            top1 = float("nan") if what == "trial" else 90.0  # a trial of a search has no test images
            settings, history = copy.deepcopy(kd.settings), kd.history.assign(test_top1=top1)
            if what == "recipe":
                settings["recipe"]["lr"] = 1e-4
            if what == "teacher":
                settings["teacher"]["fingerprint"] = "0" * 16
            dataclasses.replace(kd, settings=settings, history=history).save(tmp_path / what)
        found = board.measured_numbers(tmp_path).sort_values("student_alone_top1", na_position="first")
        assert found["top1"].tolist() == [90, 66, 90] or found["top1"].tolist() == [90, 90, 66]
        assert found["seeds"].tolist().count(2) == 1 and np.isnan(found["student_alone_top1"].iloc[0])

    def test_only_runs_with_the_same_names_are_added(self, own_runs, published):
        numbers = board.find_numbers(PAIR, runs=own_runs, published=published)
        ours = numbers[numbers["source_kind"] == "ours"]
        assert ours["top1"].tolist() == [66, 66, 66] and set(ours["method"]) == {"KD", "KD+LS", "PCKD"}
        other = board.find_numbers(("resnet110", "resnet20"), runs=own_runs, published=published)
        assert "ours" not in set(other["source_kind"])
        compared = board.compare(numbers).set_index("method")
        assert compared.loc["KD", "ours_low"] == 66 and compared["ours_count"].sum() == 3
        without = board.compare(board.find_numbers(PAIR, published=published)).set_index("method")
        assert compared.loc["KD", "gain_high"] == without.loc["KD", "gain_high"]  # the gains are those of others

    def test_recorded_runs_match_no_published_pair(self):
        measured = board.measured_numbers(ROOT / "data" / "runs")
        assert set(measured["dataset"]) == {"shapes100", "fashion_mnist", "folder:cifar10"} and len(measured) > 20

    def test_the_command_shows_them(self, own_runs, run):  # noqa: F811
        status, out, err = run("leaderboard", "--pair", ",".join(PAIR), "--runs", own_runs, "--method", "kd")
        assert status == 0 and not err and "66.00" in out and "No run" not in out
        assert "measured with this package" in out

    def test_the_command_looks_for_them_in_data_runs(self, own_runs, run, tmp_path):  # noqa: F811
        arguments = "leaderboard", "--pair", ",".join(PAIR)
        assert "No runs were compared. To add yours, use --runs FOLDER." in run(*arguments)[1]
        (tmp_path / "data" / "runs").mkdir(parents=True)
        assert "No runs were compared." in run(*arguments)[1]
        shutil.copytree(own_runs, tmp_path / "data" / "runs", dirs_exist_ok=True)
        assert "66.00" in run(*arguments)[1]
        other = run("leaderboard", "--pair", "vgg13,vgg8")[1]
        assert "No run in data/runs has this data set, teacher and student." in other and "66.00" not in other

    def test_the_figure_draws_them(self, own_runs):
        figure = pckd.figures.leaderboard(PAIR, runs=own_runs)
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert labels == ["ours", "own", "reproduced", "copied", "student alone"]


class TestTheCommand:
    def test_it_lists_all_pairs(self, run, published):  # noqa: F811
        status, out, err = run("leaderboard")
        assert status == 0 and not err
        rows = [line.split() for line in out.splitlines()]
        assert rows[0] == ["dataset", "teacher", "student", "methods", "numbers", "differ"]
        expected = board.list_pairs(published).astype(str).values.tolist()
        assert rows[1 : 1 + len(expected)] == expected
        assert max(map(len, out.splitlines())) <= 80

    def test_the_list_can_be_limited_to_a_data_set(self, run):  # noqa: F811
        out = run("leaderboard", "--dataset", "imagenet", "--format", "csv")[1]
        assert pd.read_csv(io.StringIO(out))["dataset"].eq("imagenet").sum() == 3

    @pytest.mark.parametrize("pair", [*PAIRS[:-1], ("resnet34", "resnet18")])
    def test_a_pair_is_one_table_of_80_columns(self, pair, run, published):  # noqa: F811
        dataset = "imagenet" if pair == ("resnet34", "resnet18") else "cifar100"
        status, out, err = run("leaderboard", "--pair", ",".join(pair), "--dataset", dataset)
        assert status == 0 and not err and max(map(len, out.splitlines())) <= 80
        lines = out.partition("\n\n")[2].splitlines()
        assert lines[0].split() == ["method", "own", "reproduced", "copied", "gain", "teacher", "mark"]
        table = board.compare(board.find_numbers(pair, dataset, published=published))
        for line, (_, row) in zip(lines[1 : len(table) + 1], table.iterrows(), strict=True):
            assert line.startswith(row["method"].replace(" without ", " w/o "))
            assert line.split()[-1] == "".join(re.findall(r"\b\w", row["marks"])) or not row["marks"]
            assert board.range_text(row["own_low"], row["own_high"]) in line

    def test_the_legend_explains_all_marks_that_occur(self, run):  # noqa: F811
        out = run("leaderboard", "--pair", "resnet32x4,resnet8x4")[1]
        assert re.findall(r"^(\w) (\w+) ", out, re.M) == [
            ("r", "range"), ("v", "views"), ("l", "longer"), ("t", "teacher"), ("n", "network"), ("s", "setting"),
        ]  # fmt: skip
        out = run("leaderboard", "--pair", ",".join(PAIR), "--method", "CTKD")[1]
        assert not re.findall(r"^(\w) (\w+) ", out, re.M) and "No runs were compared" in out

    @pytest.mark.parametrize("sources", [[], ["--sources"]])
    def test_it_wraps_at_60_columns(self, sources, run, monkeypatch):  # noqa: F811
        monkeypatch.setenv("COLUMNS", "60")
        out = run("leaderboard", "--pair", ",".join(PAIR), *sources)[1]
        long = [line for line in out.splitlines() if len(line) > 60 and len(line.split()) > 1]
        assert not long and "own 71.16" in out.replace("kind own; top-1", "own")

    def test_every_number_has_its_source(self, run):  # noqa: F811
        out = run("leaderboard", "--pair", ",".join(PAIR), "--method", "DIST", "--sources")[1]
        assert "DIST    own         71.75  2.69  69.06    72.34  [1]   sd 0.30, 240 epochs" in out
        assert "DIST    copied      71.75     -  69.06    72.34  [3]" in out
        out = run("leaderboard", "--pair", ",".join(PAIR), "--sort", "gain", "--sources", "--format", "csv")[1]
        assert pd.read_csv(io.StringIO(out))["method"].drop_duplicates().tolist()[:2] == ["SKD", "MLKD"]

    def test_sources_are_listed(self, run):  # noqa: F811
        out = run("leaderboard", "--pair", ",".join(PAIR), "--method", "DIST", "--sources")[1]
        assert "[1]  DIST README (arXiv 2205.10536), 2022: hunto/DIST_KD:README.md@2418f18" in out

    def test_csv_escapes_commas_quotes_and_lines(self, run, table, monkeypatch):  # noqa: F811
        odd = 'a "quoted", long\nsource; ünïcode'
        rows = table({"source": odd, "method": 'A,"B"', "top1": "71.5"}, {})
        monkeypatch.setattr(board, "load_published", lambda: rows)
        out = run("leaderboard", "--pair", ",".join(PAIR), "--sources", "--format", "csv")[1]
        back = pd.read_csv(io.StringIO(out), keep_default_na=False)
        assert back["source"].tolist() == [odd, "a paper"] and back["method"].tolist() == ['A,"B"', "KD"]
        assert back["top1"].tolist() == [71.5, 70] and list(back) == list(rows)
        out = run("leaderboard", "--pair", ",".join(PAIR), "--format", "csv")[1]
        assert pd.read_csv(io.StringIO(out))["own_high"].tolist() == [71.5, 70]

    def test_markdown_escapes_pipes_and_stars(self, run, table, monkeypatch):  # noqa: F811
        rows = table({"method": "A|B*", "source": "x|y"})
        monkeypatch.setattr(board, "load_published", lambda: rows)
        out = run("leaderboard", "--pair", ",".join(PAIR), "--format", "markdown")[1]
        head, line, row = out.splitlines()
        assert row == r"| A\|B\* | 70.00 | - | - | 1.00 | 72.34 |  |" and line.count("---") == head.count(" | ") + 1
        out = run("leaderboard", "--pair", ",".join(PAIR), "--format", "markdown", "--sources")[1]
        assert r"[x\|y](https://github.com/owner/repository/blob/abc/README.md)" in out

    def test_wrong_options_are_refused(self, refused):  # noqa: F811
        pair = "--pair", ",".join(PAIR)
        refused(
            "--pair must be TEACHER,STUDENT, such as resnet56,resnet20, got 'resnet56'",
            "leaderboard",
            "--pair",
            "resnet56",
        )
        refused("did you mean resnet56,resnet20[?]", "leaderboard", "--pair", "resnet20,resnet56")
        refused("method 'CRDD' has no number .* did you mean CRD", "leaderboard", *pair, "--method", "CRDD")
        refused("sort must be one of own, reproduced, gain, got 'best'", "leaderboard", *pair, "--sort", "best")
        refused("--format must be one of text, csv, markdown, got 'html'", "leaderboard", "--format", "html")
        refused("no finished run below 'nowhere'", "leaderboard", *pair, "--runs", "nowhere")
        for option in (("--sources",), ("--method", "KD"), ("--sort", "own"), ("--runs", ".")):
            refused(f"{option[0]} needs --pair TEACHER,STUDENT", "leaderboard", *option)


@pytest.fixture(scope="module")
def drawn():
    return results.leaderboard(PAIR)


class TestTheFigure:
    def test_every_number_is_drawn_in_its_row(self, drawn, published):
        (ax,) = drawn.axes
        numbers = board.find_numbers(PAIR, published=published)
        names = [label.get_text().removesuffix(" †") for label in ax.get_yticklabels()]
        assert names == board.compare(numbers)["method"].tolist()
        points = {dots.get_label(): dots.get_offsets() for dots in ax.collections}
        for kind, rows in numbers.groupby("source_kind"):
            expected = sorted(zip(rows["top1"], map(names.index, rows["method"]), strict=True))
            assert np.allclose(sorted(map(tuple, points[kind])), expected)
        ranges = {int(line.get_ydata()[0]): line.get_xdata() for line in ax.lines}
        assert list(ranges[names.index("CRD")]) == [67.28, 71.68]

    def test_methods_that_are_not_comparable_have_a_dagger(self, drawn):
        labels = {label.get_text() for label in drawn.axes[0].get_yticklabels()}
        assert {"PCKD †", "HSAKD* †", "CutMix+KD †", "MLKD+LS †", "KD", "CRD"} <= labels

    def test_kinds_differ_in_colour_and_shape(self):
        looks = list(results.KIND_MARKERS.values())
        colors = {to_hex(look.get("color") or look["edgecolors"]) for look in looks}
        assert len(colors) == len({look["marker"] for look in looks}) == 4

    def test_no_text_is_cut_off(self, drawn):
        canvas = FigureCanvasAgg(drawn)
        canvas.draw()
        ax = drawn.axes[0]
        for text in (*ax.get_yticklabels(), ax._left_title, ax.xaxis.label, drawn._supxlabel, *drawn.legends):
            box = text.get_window_extent(canvas.get_renderer())
            assert box.x0 >= -1 and box.x1 <= drawn.bbox.x1 + 1 and box.y0 >= -1 and box.y1 <= drawn.bbox.y1 + 1, text
        assert not drawn.runs

    def test_wrong_arguments_are_refused(self):
        with pytest.raises(ValueError, match="did you mean resnet56,resnet20"):
            results.leaderboard(("resnet20", "resnet56"))
        with pytest.raises(ValueError, match="sort must be one of"):
            results.leaderboard(PAIR, sort="top")


@pytest.fixture(scope="module")
def make_leaderboard():
    """The script that writes the page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")
        yield importlib.import_module("make_leaderboard")


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "docs" / "leaderboard.md").read_text("utf-8")


class TestThePage:
    def test_it_is_up_to_date(self, make_leaderboard, page):
        assert make_leaderboard.fill(page, make_leaderboard.tables()) == page, "run python docs/make_leaderboard.py"

    def test_every_pair_has_a_table_with_all_its_numbers(self, page, published):
        sections = re.split(r"^## ", page, flags=re.M)
        for pair in PAIRS[:-1]:
            title = " → ".join(pair).replace("_", r"\_")
            (section,) = [text for text in sections if text.startswith(f"{title}\n")]
            rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in section.splitlines() if line.startswith("| ")]
            cells = {row[0].strip().replace("\\", ""): row for row in rows}
            numbers = board.find_numbers(pair, published=published)
            assert cells.keys() - {"method", "---"} == set(numbers["method"])
            columns = {"own": 2, "reproduced": 3, "copied": 4}
            for row in numbers.itertuples():
                shown = re.findall(r"\d\d\.\d+(?= \[)", cells[row.method][columns[row.source_kind]])
                assert row.top1 in map(float, shown), row
            picture = re.search(r"!\[(.*?)\]\((images/.*?)\)", section)
            with Image.open(ROOT / "docs" / picture[2]) as image:
                assert image.width == 800
            assert len(picture[1]) > 100

    def test_every_link_has_an_address(self, page):
        addresses = dict(re.findall(r"^\[(s\d+)\]: (https://\S+)$", page, re.M))
        assert set(re.findall(r"\]\[(s\d+)\]", page)) == addresses.keys()
        assert len(addresses) == len(set(addresses.values())) > 50

    @pytest.mark.parametrize(
        "source, name",
        [
            ("RepDistiller README (arXiv 1910.10699)", "RepDistiller"),
            ("giakoumoglou/distillers README (2024)", "distillers"),
            ("LSKD issue 12 (author, log of one run, best epoch)", "LSKD issue 12"),
            ("LSKD released log, best epoch", "LSKD log"),
            ("note on arXiv 2408.07703 (RLD)", "note on RLD"),
            ("KD++ README (arXiv 2305.17007), earlier table", "KD++"),
            ("ML Reproducibility Challenge 2021, ReviewKD", "ML Reproducibility Challenge"),
        ],
    )
    def test_sources_have_short_names(self, make_leaderboard, source, name):
        assert make_leaderboard.short_name(source) == name

    def test_own_runs_get_a_column(self, make_leaderboard, own_runs, published):
        numbers = board.find_numbers(PAIR, runs=own_runs, published=published)
        table = make_leaderboard.pair_table(numbers, board.compare(numbers), make_leaderboard.source_addresses(numbers))
        assert "| ours |" in table.splitlines()[0] and "| 66.00 this package |" in table
        assert "has 3 results" in make_leaderboard.ours(numbers)

    def test_a_damaged_run_is_left_out_with_a_note(self, own_runs, published, tmp_path):
        shutil.copytree(own_runs, tmp_path / "runs")
        damaged = next(
            file
            for file in (tmp_path / "runs").rglob("run.json")
            if "fingerprint" in (json.loads(file.read_text())["teacher"] or ())
        )
        damaged.write_text("{")
        with pytest.raises(ValueError, match="run.json"):
            pckd.runs.load_runs(tmp_path / "runs")
        with pytest.warns(UserWarning, match=f"left out: .*{re.escape(damaged.parent.name)}"):
            numbers = board.find_numbers(PAIR, runs=tmp_path / "runs", published=published)
        whole = board.find_numbers(PAIR, runs=own_runs, published=published)
        assert numbers["seeds"].sum() == whole["seeds"].sum() - 1

    def test_its_code_runs(self, page):
        (code,) = re.findall(r"^```python\n(.*?)^```", page, re.S | re.M)
        names: dict = {}
        exec(compile(code, "page", "exec"), names)
        assert names["methods"]["method"][0] == "SKD" and names["figure"].axes


class TestClaimsAboutPublishedNumbers:
    """Numbers that pages mention are in the table."""

    def rows(self, published, pair=PAIR, **wanted):
        found = published[(published["teacher"] == pair[0]) & (published["student"] == pair[1])]
        for name, value in wanted.items():
            found = found[found[name] == value]
        return found

    def test_the_leaderboard_page_compares_two_students(self, page, published):
        text = re.search(
            r"in one source (\w+) reaches ([\d.]+) % alone and ([\d.]+) % with KD, "
            r"in another one ([\d.]+) % and ([\d.]+) %",
            page,
        )
        assert text[1] == PAIR[1]
        for alone, top1 in ((text[2], text[3]), (text[4], text[5])):
            assert len(
                self.rows(
                    published, method="KD", source_kind="reproduced", top1=float(top1), student_alone_top1=float(alone)
                )
            )

    def test_the_leaderboard_page_names_the_standard_deviations(self, page, published):
        text = re.search(r"standard deviation over seeds is known, it is ([\d.]+) to ([\d.]+) points", page)
        assert [published["sd"].min(), published["sd"].max()] == [float(text[1]), float(text[2])]
        assert published["sd"].isna().mean() > 0.5  # "most sources do not report one"

    def test_the_readme_of_the_folder_names_the_slips(self, published):
        text = (ROOT / "data" / "paper" / "README.md").read_text("utf-8")
        assert f"{len(published):,} published accuracies of {published['method'].nunique() - 1} methods" in text
        alone = re.search(r"it reaches ([\d.]+) % alone instead of ([\d.]+) %", text)
        students = published.groupby("student")["student_alone_top1"]
        assert students.min()["MobileNetV2_HSAKD"] == float(alone[1])
        assert float(alone[2]) in students.get_group("MobileNetV2").unique()
        sskd = re.search(r"([\d.]+) instead of ([\d.]+) for resnet56 → resnet20", text)
        assert self.rows(published, method="SSKD", source_kind="copied")["top1"].tolist() == [float(sskd[1])]
        assert self.rows(published, method="SSKD", source_kind="own")["top1"].tolist() == [float(sskd[2])]
        wrong = 0
        for row in published[published["method"] == "LSKD"].itertuples():
            authors = self.rows(published, (row.teacher, row.student))
            authors = authors[authors["method"].str.endswith("+LS") & authors["source"].str.startswith("LSKD README")]
            wrong += row.top1 not in authors["top1"].tolist()
        assert wrong == 4 and "For four of its five pairs" in text

    def test_the_page_of_networks_expects_published_accuracies(self, published):
        text = (ROOT / "docs" / "networks.md").read_text("utf-8")
        expected = dict(re.findall(r"--model (?:torchvision:)?(\w+) .*--expect ([\d.]+)", text))
        assert len(expected) == 2
        for network, top1 in expected.items():
            assert float(top1) in published.loc[published["teacher"] == network, "teacher_top1"].unique()

    def test_instructors_are_told_the_gains_of_kd(self, published):
        text = (ROOT / "docs" / "instructors.md").read_text("utf-8")
        low, high = re.search(r"published gains of KD, ([\d.]+) to ([\d.]+) points", text).groups()
        rows = published[published["source"].str.startswith("RepDistiller README") & (published["method"] == "KD")]
        family = pd.read_csv(ROOT / "data" / "paper" / "cifar100_same_family.csv")
        rows = rows[rows["teacher"].isin(family["teacher"]) & rows["student"].isin(family["student"])]
        gains = rows["gain"].round(1)
        assert len(rows) == 7 and (gains.min(), gains.max()) == (float(low), float(high))

    def test_the_readme_claims_no_numbers_on_imagenet(self, published):
        text = (ROOT / "README.md").read_text("utf-8")
        assert "| ImageNet results | none yet | **with weights** | **with weights** | no numbers |" in text
        assert not len(published[(published["dataset"] == "imagenet") & published["source"].str.startswith("PCKD")])


class TestPackaging:
    def test_the_repository_is_read_where_nothing_is_installed(self):
        assert paper_folder() == ROOT / "data" / "paper"

    def test_an_installed_package_has_the_tables(self, tmp_path):
        """Build a wheel, unpack it somewhere else, and use the command there."""
        pytest.importorskip("setuptools")
        source = tmp_path / "source"
        for name in ("pckd_nb", "data/paper"):
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        code = "import sys, setuptools.build_meta as build; print(build.build_wheel(sys.argv[1]))"
        done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=source, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        with zipfile.ZipFile(tmp_path / done.stdout.splitlines()[-1]) as wheel:
            names = set(wheel.namelist())
            for table in (ROOT / "data" / "paper").glob("*.csv"):
                assert wheel.read(f"pckd_nb/paper/{table.name}") == table.read_bytes()
            wheel.extractall(tmp_path / "installed")
        assert not {"setup.py", "pckd_nb/setup.py"} & names
        command = "import pckd_nb; print(pckd_nb.__file__); from pckd_nb.cli import main; main(['leaderboard'])"
        environment = {"PYTHONPATH": str(tmp_path / "installed"), "PATH": ""}
        done = subprocess.run(
            [sys.executable, "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.startswith(str(tmp_path / "installed")) and "resnet56    resnet20" in done.stdout
