"""The small HTML tables that notebooks show for objects of this package. All text is escaped."""

from collections.abc import Mapping
from html import escape
from typing import Any


def table(title: str, rows: Mapping[str, Any]) -> str:
    """Return an HTML table with a caption and one row for each name and value."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(str(name))}</th>"
        f"<td style='text-align:left'>{escape(value_text(value))}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table><caption><b>{escape(title)}</b></caption>{cells}</table>"


def value_text(value: Any) -> str:
    """Return a float with four significant digits, and anything else as text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def counted(count: int, noun: str) -> str:
    """Return a count and its noun, such as "1 epoch" or "2 epochs"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
