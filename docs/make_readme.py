"""Draw the README's pictures and write its tables from the recorded runs: python docs/make_readme.py"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pandas as pd

import pckd_nb as pckd
from pckd_nb.analysis import summarise
from pckd_nb.figures import collection
from pckd_nb.figures.arms import METHODS
from pckd_nb.figures.results import comparison_table

ROOT = Path(__file__).parents[1]
PICTURES = ("02_framework", "04_difficulty", "05_sweeps", "09_budget")
ABLATION = r"strategy = \w+|β_\w+ = 0|views = 1"
TUNED = r"β_kd = \d+(\.\d+)?|β_fa = 5(, .*)?|β_ca = 100(, .*)?"  # without what the ablation has
EQUAL_WIDTH = "resnet8"  # the student that is as wide as the recorded teachers
NAMES = {"shapes100": "shapes100", "fashion_mnist": "Fashion-MNIST", "folder:cifar10": "CIFAR-10"}
BY_TEACHER = ("", "β_fa = 5, β_ca = 100, views = 1")  # variants that other teachers were tried with
OF_TEACHERS = 3  # seeds of the students that all teachers have


def tables(runs: list[pckd.Run], others: Mapping[str, list[pckd.Run]]) -> dict[str, str]:
    """Name of a place in the README → its table, in Markdown. others: the runs by folder of data/other_teachers."""
    students = comparison_table([run for run in runs if run.path and run.path.parent.name != "teachers"])
    students = students[students["data"].isin(NAMES)]
    order = students["method"].map({name: place for place, name in enumerate(METHODS)}).fillna(len(METHODS))
    students = students.assign(place=order, on=students["data"].map(list(NAMES).index))
    students = students.sort_values(["on", "place", "variant"], kind="stable")
    equal_width = students["student"] == EQUAL_WIDTH
    students, unequal = students[equal_width], students[~equal_width]
    plain = students["variant"] == ""
    usual = students.groupby("data")["epochs"].transform(lambda epochs: epochs.mode()[0]) == students["epochs"]
    ablation = students["variant"].str.fullmatch(ABLATION)
    shapes, lengths = students["data"] == "shapes100", students.groupby(["data", "method", "variant"])["epochs"]
    several = lengths.transform("nunique") > 1
    return {
        "measured": markdown(students[usual & (plain | students["variant"].eq("strategy = uniform"))], "data"),
        "ablation": markdown(students[usual & shapes & (plain | ablation)]),
        "tuned": markdown(students[usual & shapes & (students["variant"].str.fullmatch(TUNED) & ~ablation)]),
        "budget": markdown(
            students[shapes & (plain | several)].sort_values("epochs", kind="stable"), "epochs", "compute"
        ),
        "unequal": markdown(unequal, "data", "student"),
        "teachers": markdown(by_teacher([runs, *others.values()]), "teacher", "epochs"),
    }


def by_teacher(grids: list[list[pckd.Run]]) -> pd.DataFrame:
    """The same students on shapes100 by teacher, a grid each: rows of `comparison_table`, of the same seeds everywhere,
    as far as two teachers have them; where three have, also the difference to KD with the teachers as the sample."""
    found = []
    for runs in grids:
        teacher = next(run for run in runs if run.path and run.path.parts[-2:] == ("teachers", "shapes100"))
        about = teacher.settings["data"]
        said = f"seed {teacher.settings['seed']}, {about['train_images']:,} images: {teacher.accuracy:.1f} %"
        students = [run for run in runs if (run.settings["teacher"] or {}).get("fingerprint") == teacher.fingerprint]
        rows = comparison_table([run for run in students if run.settings["seed"] < OF_TEACHERS])
        found.append(rows[rows["method"].isin(["KD", "PCKD"]) & rows["variant"].isin(BY_TEACHER)].assign(teacher=said))
    table = pd.concat(found).query("method == 'PCKD' or variant == ''")
    arm = ["epochs", "method", "variant"]
    table = table[table.groupby(arm)["teacher"].transform("size") > 1].sort_values("epochs", kind="stable")
    for (epochs, method, variant), rows in table[table["method"] != "KD"].groupby(arm):
        if len(rows) >= OF_TEACHERS:
            one = summarise(rows["minus_kd"].tolist())
            mean = {"teacher": f"mean of the {len(rows)} teachers", "epochs": epochs, "method": method}
            mean |= {"variant": variant, "minus_kd": one.mean, "minus_kd_low": one.low, "minus_kd_high": one.high}
            mean |= {"data": "shapes100", "n": 0, "paired_n": one.count, "teraflops": rows["teraflops"].iloc[0]}
            place = table["epochs"].searchsorted(epochs, side="right")
            table = pd.concat([table.iloc[:place], pd.DataFrame([mean]), table.iloc[place:]])
    return table


def markdown(rows: pd.DataFrame, *more: str) -> str:
    """A table of some rows of `comparison_table`; more: columns before the method."""
    header = [*more, "method", "top-1 %, mean ± sd", "95 % interval", "minus KD, by seed", "95 % interval", "seeds"]
    lines = [header, ["---"] * len(header)]
    for _, row in rows.iterrows():
        shown = {"data": NAMES[row["data"]], "epochs": str(row["epochs"]), "compute": f"{row['teraflops']:.1f}"}
        shown |= {"student": row["student"], "teacher": row["teacher"]}
        method = ", ".join(part for part in (row["method"], row["variant"]) if part)
        several = row["n"] > 1
        score = f"{row['mean']:.1f} ± {row['sd']:.1f}" if several else f"{row['mean']:.1f}" if row["n"] else ""
        interval = f"{row['low']:.1f} … {row['high']:.1f}" if several else ""
        less, low, high = (f"{row[f'minus_kd{end}']:+.1f}".replace("-0.0", "+0.0") for end in ("", "_low", "_high"))
        minus = "" if pd.isna(row["minus_kd"]) else less
        around = f"{low} … {high}" if row["paired_n"] > 1 else ""
        lines.append([*(shown[name] for name in more), method, score, interval, minus, around, str(row["n"] or "")])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def fill(text: str, tables: dict[str, str]) -> str:
    """`text` with every table in its place, between <!-- NAME --> and <!-- end -->."""
    for name, table in tables.items():
        place = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        if not re.search(place, text, re.S):
            raise ValueError(f"the README has no place <!-- {name} --> … <!-- end -->")
        text = re.sub(place, partial(_filled, table), text, flags=re.S)
    return text


def _filled(table: str, place: re.Match) -> str:
    return f"{place[1]}\n{table}\n\n{place[2]}"


def main() -> None:
    runs, others = ROOT / "data" / "runs", ROOT / "data" / "other_teachers"
    readme = ROOT / "README.md"
    by_folder = {folder.name: pckd.runs.load_runs(folder) for folder in sorted(others.iterdir()) if folder.is_dir()}
    readme.write_text(fill(readme.read_text("utf-8"), tables(pckd.runs.load_runs(runs), by_folder)), "utf-8")
    collection.draw_all(runs, ROOT / "docs" / "images", PICTURES)


if __name__ == "__main__":
    main()
