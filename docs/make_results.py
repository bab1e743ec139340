"""Draw the pictures and write the tables of docs/results.md from the recorded runs.

Run it with `python docs/make_results.py`.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd

import pckd_nb as pckd
from pckd_nb.analysis import paired_difference, summarise
from pckd_nb.figures import collection
from pckd_nb.figures.arms import METHODS
from pckd_nb.figures.results import comparison_table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"
PICTURES = ("02_framework", "04_difficulty", "05_sweeps", "09_budget")
ABLATION = r"strategy = \w+|β_\w+ = 0|views = 1"
OTHER_WEIGHTS = r"β_kd = \d+(\.\d+)?|β_fa = 5(, .*)?|β_ca = 100(, .*)?"
EQUAL_WIDTH = "resnet8"  # this student has as many features as the recorded teachers
NAMES = {"shapes100": "shapes100", "fashion_mnist": "Fashion-MNIST", "folder:cifar10": "CIFAR-10"}
TUNED = "β_fa = 5, β_ca = 100, views = 1"  # chosen on seed 0
VARIANTS_BY_TEACHER = ("", TUNED)
SEEDS_PER_TEACHER = 3  # all teachers have students of seeds 0, 1 and 2
MIN_TEACHERS_FOR_MEAN = 3


class Arm(NamedTuple):
    """A method, its settings that differ from the recipe, and its number of epochs, on shapes100."""

    method: str
    variant: str = ""
    epochs: int = 10

    def __str__(self) -> str:
        return ", ".join(part for part in (self.method, self.variant) if part)


# name of a table → pairs of arms; the table shows the first minus the second. A third entry limits the seeds.
DIFFERENCES: dict[str, list[tuple]] = {
    "against_kd": [
        (Arm("PCKD"), Arm("KD")),
        (Arm("PCKD"), Arm("KD", "β_kd = 3")),
        (Arm("PCKD", epochs=20), Arm("KD", epochs=20)),
        (Arm("PCKD", epochs=40), Arm("KD", epochs=40)),
        (Arm("PCKD"), Arm("KD", epochs=40)),
        (Arm("PCKD", "β_cc = 0.05"), Arm("KD")),
    ],
    "tuned_against_kd": [
        (Arm("PCKD", TUNED), Arm("KD"), (1, 2, 3, 4)),
        (Arm("PCKD", TUNED), Arm("KD", "β_kd = 3"), (1, 2, 3, 4)),
        (Arm("PCKD", TUNED, 20), Arm("KD", epochs=20)),
        (Arm("PCKD", TUNED, 40), Arm("KD", epochs=40)),
    ],
    "terms": [(Arm("PCKD"), Arm("PCKD", f"β_{term} = 0")) for term in ("kd", "fa", "ca", "cc")],
    "larger_weights": [
        *((Arm("PCKD", f"β_ca = {weight}"), Arm("PCKD")) for weight in (10, 100, 1000)),
        (Arm("PCKD", "β_cc = 0.05"), Arm("PCKD")),
    ],
    "preview": [
        (Arm("PCKD"), Arm("PCKD", f"strategy = {strategy}"))
        for strategy in ("constant", "uniform", "curriculum", "focal")
    ]
    + [
        (Arm("PCKD", f"strategy = {strategy}"), Arm("PCKD", f"strategy = constant_{strategy}"))
        for strategy in ("curriculum", "focal")
    ],
    "teacher": [
        *((Arm("KD", epochs=epochs), Arm("supervised", epochs=epochs)) for epochs in (10, 20, 40)),
        (Arm("KD"), Arm("supervised", epochs=20)),
        (Arm("PCKD", TUNED), Arm("supervised", epochs=20)),
    ],
}


def tables(runs: list[pckd.Run], others: Mapping[str, list[pckd.Run]]) -> dict[str, str]:
    """Return the tables of the page in Markdown, each with the name that marks its place in the page, see `fill`.

    Parameters
    ----------
    runs : list of Run
        The runs in data/runs.
    others : mapping of str to list of Run
        The runs in data/other_teachers, by the name of their folder.
    """
    students = comparison_table([run for run in runs if run.path and run.path.parent.name != "teachers"])
    students = students[students["data"].isin(NAMES)]
    method_order = students["method"].map({name: place for place, name in enumerate(METHODS)}).fillna(len(METHODS))
    students = students.assign(method_order=method_order, data_order=students["data"].map(list(NAMES).index))
    students = students.sort_values(["data_order", "method_order", "variant"], kind="stable")
    equal_width = students["student"] == EQUAL_WIDTH
    students, unequal = students[equal_width], students[~equal_width]
    plain = students["variant"] == ""
    usual_epochs = students.groupby("data")["epochs"].transform(lambda epochs: epochs.mode()[0]) == students["epochs"]
    ablation = students["variant"].str.fullmatch(ABLATION)
    other_weights = students["variant"].str.fullmatch(OTHER_WEIGHTS) & ~ablation
    shapes, epochs = students["data"] == "shapes100", students.groupby(["data", "method", "variant"])["epochs"]
    several_epochs = epochs.transform("nunique") > 1
    return {
        "measured": markdown(students[usual_epochs & (plain | students["variant"].eq("strategy = uniform"))], "data"),
        "ablation": markdown(students[usual_epochs & shapes & (plain | ablation)]),
        "other_weights": markdown(students[usual_epochs & shapes & other_weights]),
        "budget": markdown(
            students[shapes & (plain | several_epochs)].sort_values("epochs", kind="stable"), "epochs", "compute"
        ),
        "unequal": markdown(unequal, "data", "student"),
        "teachers": markdown(by_teacher([runs, *others.values()]), "teacher", "epochs"),
        **differences(runs),
    }


def differences(runs: list[pckd.Run]) -> dict[str, str]:
    """Return the tables of `DIFFERENCES` in Markdown, by name."""
    accuracies: dict[Arm, dict[int, float]] = defaultdict(dict)
    for run in runs:
        settings = run.settings
        if (settings["data"]["name"], settings["model"]["name"]) == ("shapes100", EQUAL_WIDTH):
            method = run.title.removesuffix(f" {EQUAL_WIDTH}")
            accuracies[Arm(method, run.variant, len(run.history))][settings["seed"]] = run.accuracy
    header = ["first", "second", "epochs", "first minus second", "95 % interval", "seeds"]
    found = {}
    for name, pairs in DIFFERENCES.items():
        lines = [header]
        for first, second, *limit in pairs:
            seeds = limit[0] if limit else accuracies[first].keys()
            measured = {seed: accuracies[first][seed] for seed in seeds}
            one = paired_difference(measured, accuracies[second])
            epochs = " and ".join(map(str, dict.fromkeys((first.epochs, second.epochs))))
            interval = f"{signed(one.low)} … {signed(one.high)}"
            lines.append([str(first), str(second), epochs, signed(one.mean), interval, str(one.count)])
        found[name] = rows_of(lines)
    return found


def by_teacher(runs_by_teacher: list[list[pckd.Run]]) -> pd.DataFrame:
    """Return rows of `comparison_table` for the same students of shapes100 under several teachers.

    An arm is shown if students of at least two teachers were trained with it. With at least three such teachers, one
    more row has the mean difference to KD, with an interval over the teachers.

    Parameters
    ----------
    runs_by_teacher : list of list of Run
        For each teacher its own run and those of its students.
    """
    found = []
    for runs in runs_by_teacher:
        teacher = next(run for run in runs if run.path and run.path.parts[-2:] == ("teachers", "shapes100"))
        settings = teacher.settings
        label = f"seed {settings['seed']}, {settings['data']['train_images']:,} images: {teacher.accuracy:.1f} %"
        students = [run for run in runs if (run.settings["teacher"] or {}).get("fingerprint") == teacher.fingerprint]
        rows = comparison_table([run for run in students if run.settings["seed"] < SEEDS_PER_TEACHER])
        rows = rows[rows["method"].isin(["KD", "PCKD"]) & rows["variant"].isin(VARIANTS_BY_TEACHER)]
        found.append(rows.assign(teacher=label))
    table = pd.concat(found).query("method == 'PCKD' or variant == ''")
    arm = ["epochs", "method", "variant"]
    table = table[table.groupby(arm)["teacher"].transform("size") > 1].sort_values("epochs", kind="stable")
    for (epochs, method, variant), rows in table[table["method"] != "KD"].groupby(arm):
        if len(rows) >= MIN_TEACHERS_FOR_MEAN:
            one = summarise(rows["minus_kd"].tolist())
            mean = {"teacher": f"mean of the {len(rows)} teachers", "epochs": epochs, "method": method}
            mean |= {"variant": variant, "minus_kd": one.mean, "minus_kd_low": one.low, "minus_kd_high": one.high}
            mean |= {"data": "shapes100", "n": 0, "paired_n": one.count, "teraflops": rows["teraflops"].iloc[0]}
            place = table["epochs"].searchsorted(epochs, side="right")
            table = pd.concat([table.iloc[:place], pd.DataFrame([mean]), table.iloc[place:]])
    return table


def markdown(rows: pd.DataFrame, *more: str) -> str:
    """Return some rows of `comparison_table` in Markdown, with the columns `more` before the method."""
    header = [*more, "method", "top-1 %, mean ± sd", "95 % interval", "minus KD, paired", "95 % interval", "seeds"]
    lines = [header]
    for _, row in rows.iterrows():
        cells = {"data": NAMES[row["data"]], "epochs": str(row["epochs"]), "compute": f"{row['teraflops']:.1f}"}
        cells |= {"student": row["student"], "teacher": row["teacher"]}
        method = ", ".join(part for part in (row["method"], row["variant"]) if part)
        several = row["n"] > 1
        accuracy = f"{row['mean']:.1f} ± {row['sd']:.1f}" if several else f"{row['mean']:.1f}" if row["n"] else ""
        interval = f"{row['low']:.1f} … {row['high']:.1f}" if several else ""
        mean, low, high = (signed(row[f"minus_kd{end}"]) for end in ("", "_low", "_high"))
        minus = "" if pd.isna(row["minus_kd"]) else mean
        around = f"{low} … {high}" if row["paired_n"] > 1 else ""
        lines.append([*(cells[name] for name in more), method, accuracy, interval, minus, around, str(row["n"] or "")])
    return rows_of(lines)


def signed(value: float) -> str:
    """Return a number with its sign and one decimal."""
    return f"{value:+.1f}".replace("-0.0", "+0.0")


def rows_of(lines: list[list[str]]) -> str:
    """Return a Markdown table. The first line is its header."""
    rule = ["---"] * len(lines[0])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (lines[0], rule, *lines[1:]))


def fill(text: str, tables: dict[str, str]) -> str:
    """Return `text` with every table in its place, between `<!-- NAME -->` and `<!-- end -->`.

    Raises
    ------
    ValueError
        If the text has no place for a table.
    """
    for name, table in tables.items():
        place = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        if not re.search(place, text, re.S):
            raise ValueError(f"the page has no place <!-- {name} --> … <!-- end -->")
        text = re.sub(place, partial(_filled, table), text, flags=re.S)
    return text


def _filled(table: str, place: re.Match) -> str:
    return f"{place[1]}\n{table}\n\n{place[2]}"


def main() -> None:
    """Write the tables of docs/results.md, and draw the pictures of docs/images."""
    runs, others = ROOT / "data" / "runs", ROOT / "data" / "other_teachers"
    by_folder = {folder.name: pckd.runs.load_runs(folder) for folder in sorted(others.iterdir()) if folder.is_dir()}
    PAGE.write_text(fill(PAGE.read_text("utf-8"), tables(pckd.runs.load_runs(runs), by_folder)), "utf-8")
    collection.draw_all(runs, ROOT / "docs" / "images", PICTURES)


if __name__ == "__main__":
    main()
