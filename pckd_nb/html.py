"""What a notebook shows for a cell that ends in an object of this package: a small table. All text is escaped."""

from collections.abc import Mapping
from html import escape
from typing import Any


def table(title: str, rows: Mapping[str, Any]) -> str:
    """Return a table of two columns as HTML: a caption, and one row per entry."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(str(name))}</th>"
        f"<td style='text-align:left'>{escape(value_text(value))}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table><caption><b>{escape(title)}</b></caption>{cells}</table>"


def value_text(value: Any) -> str:
    """Return a number with four digits, and anything else as text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, "1 epoch" or "2 epochs"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
