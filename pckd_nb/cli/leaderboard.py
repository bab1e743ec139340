"""The command that compares published accuracies."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..html import counted
from .app import command
from .console import print_table, print_text
from .options import in_data, in_method, in_networks

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("text", "csv", "markdown")
DEFAULT_RUNS = Path("data/runs")
MIN_LAST_WIDTH = 20  # characters; a narrower last column is hard to read
LEGEND = (
    ("own", "published by the authors of the method"),
    ("reproduced", "measured again by others"),
    ("copied", "repeated by a later table, without a new measurement"),
    ("ours", "measured with this package, mean over seeds; --sources shows epochs and images"),
    ("gain", "own and reproduced numbers minus the student trained alone in the same source"),
    ("teacher", "accuracy of the teachers"),
)


@command("leaderboard")
def show_leaderboard(
    pair: Annotated[
        str | None,
        in_networks(metavar="TEACHER,STUDENT", help="Compare all methods for this pair. Default: list all pairs."),
    ] = None,
    dataset: Annotated[
        str | None, in_data(help="Data set. Default: cifar100 with --pair, otherwise all data sets.")
    ] = None,
    method: Annotated[str | None, in_method(help="With --pair: show only this method.")] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            help="With --pair: which method comes first. own: the highest number of the authors. reproduced: the "
            "highest median of what others measured. gain: the highest median gain. Default: own."
        ),
    ] = None,
    sources: Annotated[bool, typer.Option("--sources", help="With --pair: show every number with its source.")] = False,
    table_format: Annotated[str, typer.Option("--format", help="text, csv or markdown.")] = "text",
    runs_folder: Annotated[
        Path | None,
        in_data(
            "--runs",
            help="With --pair: folder of your runs. Those with the same data set, teacher and student are added. "
            f"Damaged ones are left out. Default: {DEFAULT_RUNS}, if there is one.",
        ),
    ] = None,
) -> None:
    """Compare published accuracies: what authors claim, and what others measured.

    A number is own if the authors of the method published it, reproduced if others trained with the method, and copied
    if a later table repeats it.
    """
    if table_format not in FORMATS:
        raise ValueError(f"--format must be one of {', '.join(FORMATS)}, got {table_format!r}")
    from .. import leaderboard as board

    published = board.load_published()
    if pair is None:
        only_with_pair = {"--method": method, "--sort": sort, "--sources": sources or None, "--runs": runs_folder}
        if given := [name for name, value in only_with_pair.items() if value is not None]:
            raise ValueError(f"{given[0]} needs --pair TEACHER,STUDENT, such as --pair resnet56,resnet20")
        return print_pairs(board.list_pairs(published), dataset, table_format)
    names = tuple(pair.split(","))
    if len(names) != 2:
        raise ValueError(f"--pair must be TEACHER,STUDENT, such as resnet56,resnet20, got {pair!r}")
    folder = DEFAULT_RUNS if runs_folder is None and DEFAULT_RUNS.is_dir() else runs_folder
    wanted = names, "cifar100" if dataset is None else dataset, method, published
    try:
        numbers = board.find_numbers(*wanted, folder)
    except FileNotFoundError:
        if runs_folder is not None:
            raise
        folder = None  # the default folder has no finished run
        numbers = board.find_numbers(*wanted)
    table = board.compare(numbers, "own" if sort is None else sort)
    order = {name: row for row, name in enumerate(table["method"])}
    numbers = numbers.sort_values("method", key=lambda names: names.map(order), kind="stable")
    if table_format == "csv":
        print((numbers if sources else table).to_csv(index=False, lineterminator="\n"), end="")
    elif table_format == "markdown":
        print(markdown(number_rows(numbers, links=True) if sources else method_rows(table)))
    else:
        print_numbers(numbers, table, sources, folder)


def print_pairs(pairs: "pd.DataFrame", dataset: str | None, table_format: str) -> None:
    """Print the pairs that have published accuracies.

    Parameters
    ----------
    pairs : DataFrame
        As returned by `leaderboard.list_pairs`.
    dataset : str or None
        Show only the pairs of this data set.
    table_format : str
        One of `FORMATS`.

    Raises
    ------
    ValueError
        If there is no pair of this data set.
    """
    if dataset is not None:
        known = list(dict.fromkeys(pairs["dataset"]))
        if dataset not in known:
            raise ValueError(f"dataset must be one of {', '.join(known)}, got {dataset!r}")
        pairs = pairs[pairs["dataset"] == dataset]
    if table_format == "csv":
        print(pairs.to_csv(index=False, lineterminator="\n"), end="")
        return
    head = "dataset", "teacher", "student", "methods", "numbers", "differ"
    rows = [head, *(tuple(map(str, row)) for row in pairs.itertuples(index=False))]
    if table_format == "markdown":
        print(markdown(rows))
        return
    print_table(rows, right=(3, 4, 5))
    print()
    print_text(
        "Numbers: published top-1 accuracies. Differ: methods with more than one number. To compare the methods of "
        "a pair, use pckd-nb leaderboard --pair TEACHER,STUDENT."
    )


def print_numbers(numbers: "pd.DataFrame", table: "pd.DataFrame", sources: bool, folder: Path | None) -> None:
    """Print the accuracies for one pair, and what the columns and marks mean.

    Parameters
    ----------
    numbers : DataFrame
        As returned by `leaderboard.find_numbers`.
    table : DataFrame
        As returned by `leaderboard.compare`.
    sources : bool
        Whether to print every number instead of one row per method.
    folder : Path or None
        The folder of runs that was searched.
    """
    from .. import leaderboard as board

    first = numbers.iloc[0]
    published = numbers[numbers["source_kind"] != "ours"]
    print_text(
        f"{first['dataset']}, {first['teacher']} > {first['student']}: {counted(len(table), 'method')}, "
        f"{counted(len(published), 'published number')}. Top-1 accuracy in percent."
    )
    print()
    if sources:
        print_fitting(number_rows(numbers), right=(2, 3, 4, 5))
    else:
        print_fitting(method_rows(table, letters=True))
    print()
    has_ours = len(published) < len(numbers)
    legend = [row for row in LEGEND if row[0] != "ours" or has_ours]
    found = {mark for text in table["marks"] for mark in text.split(", ")}
    legend += [(f"{mark[0]} {mark}", text) for mark, text in board.MARKS.items() if mark in found]
    print_table(legend, fit=True)
    if sources:
        print()
        print_table([(f"[{number}]", place) for place, number in source_numbers(numbers).items()], fit=True)
    print()
    if not has_ours:
        found_none = f"No run in {folder} has this data set, teacher and student. "
        print_text(found_none if folder else "No runs were compared. To add yours, use --runs FOLDER.")
    print_text(
        "Numbers with other teachers, other students or longer trainings are not comparable. A weak student alone "
        "makes the gain large."
    )


def print_fitting(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Print a table. If it is wider than the terminal, print one wrapped text per row instead.

    Parameters
    ----------
    rows : sequence of sequences of str
        The first row has the names of the columns.
    right : sequence of int
        As in `print_table`.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    if sum(widths[:-1]) + min(widths[-1], MIN_LAST_WIDTH) + 2 * len(widths) - 2 <= shutil.get_terminal_size().columns:
        print_table(rows, right=right, fit=True)
        return
    head, *body = rows
    short = [
        (
            row[0],
            "; ".join(f"{name} {cell}" for name, cell in zip(head[1:], row[1:], strict=True) if cell not in ("", "-")),
        )
        for row in body
    ]
    print_table(short, fit=True)


def method_rows(table: "pd.DataFrame", letters: bool = False) -> list[tuple[str, ...]]:
    """Return the cells of a table with one row per method.

    Parameters
    ----------
    table : DataFrame
        As returned by `leaderboard.compare`.
    letters : bool
        Whether to shorten the table to 80 characters: every mark to its first letter, "without" to "w/o", and gains and
        teachers to one decimal.

    Returns
    -------
    list of tuple of str
        The first row has the names of the columns. "ours" is left out if there are no such numbers.
    """
    from ..leaderboard import KINDS, range_text

    kinds = [kind for kind in KINDS if kind != "ours" or table["ours_count"].any()]
    rows: list[tuple[str, ...]] = [("method", *kinds, "gain", "teacher", "mark")]
    for _, row in table.iterrows():
        ranges = [range_text(row[f"{kind}_low"], row[f"{kind}_high"]) for kind in kinds]
        ranges += [
            range_text(row[f"{name}_low"], row[f"{name}_high"], 1 if letters else 2) for name in ("gain", "teacher")
        ]
        method, marks = row["method"], row["marks"]
        if letters:
            method, marks = method.replace(" without ", " w/o "), "".join(mark[:1] for mark in marks.split(", "))
        rows.append((method, *ranges, marks))
    return rows


def number_rows(numbers: "pd.DataFrame", links: bool = False) -> list[tuple[str, ...]]:
    """Return the cells of a table with one row per number.

    Parameters
    ----------
    numbers : DataFrame
        As returned by `leaderboard.find_numbers`.
    links : bool
        Whether to show a source as a link in Markdown instead of its number in the list of sources.

    Returns
    -------
    list of tuple of str
        The first row has the names of the columns.
    """
    from .console import cell_text

    places = source_numbers(numbers)
    rows: list[tuple[str, ...]] = [("method", "kind", "top-1", "gain", "alone", "teacher", "from", "settings")]
    for _, row in numbers.iterrows():
        values = [cell_text(row[name]) for name in ("top1", "gain", "student_alone_top1", "teacher_top1")]
        facts = (
            ("sd", cell_text(row["sd"]), row["sd"] > 0),
            ("", f"{row['seeds']:.0f} seeds" if row["seeds"] != 1 else "1 seed", row["seeds"] > 0),
            ("", f"{row['epochs']} epochs", row["epochs"]),
            ("", row["views_or_aug"], row["views_or_aug"]),
        )
        settings = ", ".join(f"{name} {value}".strip() for name, value, known in facts if known)
        place = f"[{places[source_text(row)]}]"
        if links:
            place = f"[{row['source']}]({row['link']})" if row["link"] else row["source"]
        rows.append((row["method"], row["source_kind"], *values, place, settings))
    return rows


def source_text(row: "pd.Series") -> str:
    """Return the source of a number: who published it, the year, and where it was seen."""
    import pandas as pd  # slow to import, so only when needed

    year = "" if pd.isna(row["year"]) or str(row["year"]) in row["source"] else f", {row['year']}"
    return f"{row['source']}{year}: {row['checked_in']}"


def source_numbers(numbers: "pd.DataFrame") -> dict[str, int]:
    """Return the sources of all numbers, each with its number in the list of sources."""
    texts = dict.fromkeys(source_text(row) for _, row in numbers.iterrows())
    return {text: number for number, text in enumerate(texts, 1)}


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown. Special characters are escaped."""
    head, *body = ([cell.replace("\\", r"\\").replace("|", r"\|").replace("*", r"\*") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))
