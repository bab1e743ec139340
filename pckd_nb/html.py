"""Turn values into text and into the small HTML tables that notebooks show for objects of this package."""

import math
from collections.abc import Mapping
from html import escape
from typing import Any


def table(title: str, rows: Mapping[str, Any]) -> str:
    """Return an HTML table. All text is escaped.

    Parameters
    ----------
    title : str
        Caption of the table.
    rows : mapping of str to object
        Name and value of each row.

    Returns
    -------
    str
    """
    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(str(name))}</th>"
        f"<td style='text-align:left'>{escape(value_text(value))}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table><caption><b>{escape(title)}</b></caption>{cells}</table>"


def value_text(value: Any) -> str:
    """Return a float with four significant digits, and anything else as text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def p_value_text(p: float) -> str:
    """Return a p-value with three decimals, "<0.001" if it is smaller, and a dash for NaN."""
    return "-" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def counted(count: int, noun: str) -> str:
    """Return a count and its noun, such as "1 epoch" or "2 epochs"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
