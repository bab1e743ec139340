"""Comparisons as text: for a terminal, and as tables in Markdown, LaTeX and CSV."""

import math
import re
from typing import Any, NamedTuple

import pandas as pd

from ..catalogue import check_table_format
from ..html import p_value_text
from ..validation import check

LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "^": r"\textasciicircum{}",
    "_": r"\_", "~": r"\textasciitilde{}", "%": r"\%", "<": "$<$", ">": "$>$", "±": r"$\pm$", "−": "$-$",
}  # fmt: skip


class Cells(NamedTuple):
    """The cells of a table.

    Parameters
    ----------
    header : list of str
    rows : list of list of str
    best : set of (int, int)
        Row and column of the cells with the best values.
    groups : list of int
        The rows before which a new group begins, except the first row.
    names : int
        Number of columns at the left that have names. The others have numbers.
    """

    header: list[str]
    rows: list[list[str]]
    best: set[tuple[int, int]]
    groups: list[int]
    names: int


def format_comparison(compared: pd.DataFrame, format: str = "text", reference: str = "kd", pivot: bool = False) -> str:
    """Return a comparison as text.

    Accuracies are mean ± standard deviation in percent, differences have their 95 % interval in brackets. In Markdown
    and LaTeX, the best mean of every pair is bold. It may be the best by chance: see its difference and p-value.

    Parameters
    ----------
    compared : DataFrame
        The table of `comparison` or `comparison_over_teachers`.
    format : {"text", "markdown", "latex", "csv"}
        "text" has aligned columns. "latex" is a tabular environment for the package booktabs, with special characters
        escaped. "csv" has all columns of `compared`, with all digits.
    reference : str
        The arm that all others were compared with.
    pivot : bool
        Whether to have one row per arm and one column per pair, with mean ± standard deviation, as in the tables of
        most papers. Not for "csv".

    Returns
    -------
    str
        Without a line break at the end.

    Raises
    ------
    ValueError
        If `format` has another value, if it cannot be pivoted, or if `compared` is not a comparison.
    TypeError
        If `reference` is not a string, or `pivot` not a bool.

    Examples
    --------
    >>> import pandas as pd
    >>> from pckd_nb.experiments import comparison, format_comparison
    >>> rows = [("p", "kd", 0, 60.0), ("p", "kd", 1, 62.0), ("p", "pckd", 0, 63.0), ("p", "pckd", 1, 66.0)]
    >>> compared = comparison(pd.DataFrame(rows, columns=["pair", "arm", "seed", "top1"]))
    >>> print(format_comparison(compared, "markdown", pivot=True))
    | arm | p |
    | :-- | --: |
    | kd | 61.00 ± 1.41 |
    | pckd | **64.50 ± 2.12** |
    """
    check_table_format(format, pivot)
    check(str, reference=reference)
    if not isinstance(compared, pd.DataFrame) or not {"pair", "arm", "mean", "p_holm"} <= set(compared):
        raise ValueError("compared must be a table of comparison or comparison_over_teachers")
    if format == "csv":
        return str(compared.to_csv(index=False)).rstrip("\n")
    compared = compared.reset_index(drop=True)
    cells = _pivoted(compared) if pivot else _cells(compared, reference)
    return {"text": _text, "markdown": _markdown, "latex": _latex}[format](cells)


def _cells(compared: pd.DataFrame, reference: str) -> Cells:
    counted = "teachers" if "teachers" in compared else "seeds"
    header = ["pair", "arm", counted, "top-1 %", f"difference to {reference}", "paired", "p", "p (Holm)"]
    compute = [name for name in ("teraflops", "seconds") if name in compared]
    rows = [
        [
            str(row["pair"]),
            str(row["arm"]),
            str(row[counted]),
            _mean_and_sd(row),
            _difference(row),
            str(row["pairs"]),
            p_value_text(row["p"]),
            p_value_text(row["p_holm"]),
            *(_number(row[name]) for name in compute),
        ]
        for row in compared.to_dict("records")
    ]
    pairs = compared["pair"].tolist()
    groups = [row for row in range(1, len(pairs)) if pairs[row] != pairs[row - 1]]
    return Cells([*header, *compute], rows, {(row, 3) for row in _best_rows(compared)}, groups, names=2)


def _pivoted(compared: pd.DataFrame) -> Cells:
    arms, pairs = (list(dict.fromkeys(compared[name])) for name in ("arm", "pair"))
    rows = [[str(arm), *["-"] * len(pairs)] for arm in arms]
    best, best_rows = set(), _best_rows(compared)
    for number, row in enumerate(compared.to_dict("records")):
        place = arms.index(row["arm"]), 1 + pairs.index(row["pair"])
        rows[place[0]][place[1]] = _mean_and_sd(row)
        best |= {place} if number in best_rows else set()
    return Cells(["arm", *map(str, pairs)], rows, best, [], names=1)


def _best_rows(compared: pd.DataFrame) -> set[int]:
    """Return the rows with the best mean of their pair, as printed. There is none if the pair has only one arm."""
    means = compared["mean"].round(2).groupby(compared["pair"])
    best = (compared["mean"].round(2) == means.transform("max")) & (means.transform("size") > 1)
    return set(compared.index[best])


def _mean_and_sd(row: dict[str, Any]) -> str:
    return f"{row['mean']:.2f}" if math.isnan(row["sd"]) else f"{row['mean']:.2f} ± {row['sd']:.2f}"


def _difference(row: dict[str, Any]) -> str:
    if math.isnan(row["difference"]):
        return "-"
    interval = "" if math.isnan(row["d_low"]) else f" [{row['d_low']:.2f}, {row['d_high']:.2f}]"
    return f"{row['difference']:+.2f}{interval}"


def _number(value: float) -> str:
    """Return a number with about three digits."""
    return "-" if math.isnan(value) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _text(cells: Cells) -> str:
    lines = [cells.header, *cells.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def aligned(line: list[str]) -> str:
        padded = [
            cell.ljust(width) if column < cells.names else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    return "\n".join(map(aligned, lines))


def _markdown(cells: Cells) -> str:
    alignment = [":--"] * cells.names + ["--:"] * (len(cells.header) - cells.names)
    escaped = [[re.sub(r"([\\|*`<])", r"\\\1", cell) for cell in row] for row in [cells.header, *cells.rows]]
    for row, column in cells.best:
        escaped[1 + row][column] = f"**{escaped[1 + row][column]}**"
    return "\n".join(f"| {' | '.join(row)} |" for row in [escaped[0], alignment, *escaped[1:]])


def _latex(cells: Cells) -> str:
    header, *rows = [[_latex_cell(cell) for cell in row] for row in [cells.header, *cells.rows]]
    for row, column in cells.best:
        rows[row][column] = rf"\textbf{{{rows[row][column]}}}"
    lines = [_latex_line(row) for row in rows]
    for row in cells.groups:
        lines[row] = f"\\midrule\n{lines[row]}"
    columns = "l" * cells.names + "r" * (len(header) - cells.names)
    begin = ["% needs \\usepackage{booktabs}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _latex_line(header)]
    return "\n".join([*begin, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}"])


def _latex_cell(text: str) -> str:
    text = re.sub(r"(?<!\w)-(?=\d)", "−", text)  # a minus sign, not a hyphen
    return "".join(LATEX.get(character, character) for character in text)


def _latex_line(cells: list[str]) -> str:
    line = " & ".join(cells) + r" \\"
    return f"{{}}{line}" if line[0] in "[*" else line  # after a line break, LaTeX would read it as an option
