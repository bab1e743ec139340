"""How the command line writes: help in groups, tables, and errors in one line. Plain text, no torch.

An option belongs to the group that its `rich_help_panel` names. Lines break between words only, so that names stay
whole at every width of the terminal.
"""

import inspect
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from .. import launcher

GROUPS = ("Arguments", "Networks", "Data", "Method", "Training", "Grid", "Machine", "Options")  # in this order
MAX_NAME = 30  # characters; the explanation of a longer name starts on the next line
TOGETHER = "\u00a0"  # a space at which no line is broken; printed as a plain one


class Command(TyperCommand):
    """A command with its help in groups. Names all missing options at once."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(help_page(self, ctx, formatter.width, options_by_group(self, ctx)))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As click does, but if something required is missing, say all of it in one line."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            if not hasattr(error, "param_type"):  # only click's MissingParameter has it
                raise
        ctx.resilient_parsing = True  # once more, now without an error
        super().parse_args(ctx, given)
        required = (parameter for parameter in self.params if parameter.required)
        missing = [name_of(each) for each in required if ctx.params.get(each.name) in (None, (), [])]
        ctx.fail(f"{ctx.info_name} needs {listed(missing)}")
        return []  # not reached: `fail` raises


class Group(TyperGroup):
    """The list of commands, with the whole first sentence of each."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        commands = [(name, command) for name in self.list_commands(ctx) if (command := self.get_command(ctx, name))]
        rows = [(name, command.get_short_help_str(1000)) for name, command in commands if not command.hidden]
        sections = {**options_by_group(self, ctx), "Commands": rows}
        formatter.write(help_page(self, ctx, formatter.width, sections))


def options_by_group(command: TyperCommand | TyperGroup, ctx: Any) -> dict[str, list[tuple[str, str]]]:
    """Return group → (option, explanation) of every option and argument that is not hidden."""
    groups: dict[str, list[tuple[str, str]]] = {name: [] for name in GROUPS}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is not None:
            default = "Arguments" if parameter.param_type_name == "argument" else "Options"
            name, text = record
            record = name, text.replace("[default: ", f"[default:{TOGETHER}")
            groups.setdefault(getattr(parameter, "rich_help_panel", None) or default, []).append(record)
    return {name: rows for name, rows in groups.items() if rows}


def help_page(
    command: TyperCommand | TyperGroup, ctx: Any, width: int, sections: dict[str, list[tuple[str, str]]]
) -> str:
    """Return the help of a command: usage, explanation, and sections whose second columns stand below each other.

    Parameters
    ----------
    command : TyperCommand or TyperGroup
        The command.
    ctx : Context
        Its context.
    width : int
        Columns of the page.
    sections : dict
        Heading → (name, explanation) of each line.
    """
    usage = ctx.make_formatter()
    command.format_usage(ctx, usage)
    indent = {"initial_indent": "  ", "subsequent_indent": "  "}
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    parts = [usage.getvalue(), *("\n".join(wrapped(text, width, **indent)) + "\n" for text in paragraphs)]
    names = [name for rows in sections.values() for name, _ in rows]
    first = max((len(name) for name in names if len(name) <= MAX_NAME), default=0) + 2
    for heading, rows in sections.items():
        lines = [f"{heading}:"]
        for name, text in rows:
            explained = wrapped(text, width - first - 2) or [""]
            if len(name) + 2 > first:
                lines.append(f"  {name}")
                name = ""
            lines += [f"  {name:{first}}{explained[0]}".rstrip(), *(" " * (first + 2) + line for line in explained[1:])]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts).replace(TOGETHER, " ")


def wrapped(text: str, width: int, **indent: Any) -> list[str]:
    """Return `text` in lines of at most `width` characters, broken between words only."""
    return textwrap.wrap(text, max(width, 12), break_long_words=False, break_on_hyphens=False, **indent)


def name_of(parameter: Any) -> str:
    """Return the name of an option or argument as its user writes it."""
    argument = parameter.param_type_name == "argument"
    return str((parameter.metavar or parameter.name.upper()) if argument else parameter.opts[0])


def listed(names: Sequence[str]) -> str:
    """Return "a", "a and b", or "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def print_table(rows: Iterable[Sequence[str]], right: Sequence[int] = (), fit: bool = False) -> None:
    """Print columns below each other.

    Parameters
    ----------
    rows : iterable of sequences of str
        The cells. `TOGETHER` is a space at which no line is broken.
    right : sequence of int
        Columns that are flush right.
    fit : bool
        Break the last column into lines where it does not fit into the terminal.
    """
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = sum(widths[:-1]) + 2 * (len(widths) - 1)
    room = shutil.get_terminal_size().columns - left
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        last = wrapped(row[-1], room) if fit and len(row[-1]) > room else [cells[-1]]
        lines = ["  ".join([*cells[:-1], last[0]]), *(" " * left + line for line in last[1:])]
        print("\n".join(line.rstrip() for line in lines).replace(TOGETHER, " "))


def print_text(text: str) -> None:
    """Print a paragraph in lines that fit into the terminal."""
    print("\n".join(wrapped(text, min(shutil.get_terminal_size().columns, 80))))


def cell_text(value: Any) -> str:
    """Return a number with two decimals, or a dash for NaN."""
    return str(value) if not isinstance(value, float) else "-" if value != value else f"{value:.2f}"


def describe(error: Exception) -> str:
    """The message in one line; without the errno that OSError puts before it."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(text.split()) or type(error).__name__


def one_line(text: str) -> str:
    """Without line breaks, with what a terminal would obey made visible, and its middle left out where it is long."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    return text if len(text) <= 600 else f"{text[:400]} … {text[-150:]}"


def complain(message: str, status: int) -> int:
    """One line on stderr. Of several processes only the first says what all find before they have met."""
    distributed = sys.modules.get("torch.distributed")  # processes meet through it
    together = distributed is not None and distributed.is_initialized()
    if launcher.is_first() or together:
        # the first process may have died in the middle of a line, its progress bar
        who = f"\npckd-nb, process {distributed.get_rank()}" if distributed and together else "pckd-nb"
        print(f"{who}: {one_line(message)}", file=sys.stderr)
    return status
