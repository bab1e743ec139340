"""Output of the command line: help pages, tables and error messages, all in plain text.

The help shows options in groups. The `rich_help_panel` of an option is the name of its group. Lines break only between
words, so that a name is never split, however narrow the terminal is.
"""

import inspect
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from .. import files, launcher
from ..paths import user_path

GROUPS = (  # in this order
    "Arguments", "Networks", "Data", "Method", "Training", "Grid", "Ranking", "Machine", "Options",
)  # fmt: skip
MAX_NAME_WIDTH = 30  # characters; after a longer name, the explanation starts on the next line
NBSP = "\u00a0"  # a non-breaking space; printed as a plain space


class Command(TyperCommand):
    """A command that shows its help in groups and reports all missing options at once."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help of the command.

        Parameters
        ----------
        ctx : Context
        formatter : HelpFormatter
            The text is written to it.
        """
        formatter.write(help_page(self, ctx, formatter.width, options_by_group(self, ctx)))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line as click does, but report all missing options in one error message.

        Parameters
        ----------
        ctx : Context
        args : list of str
            The words of the command line.

        Returns
        -------
        list of str
            The words that were not used.

        Raises
        ------
        UsageError
            If required options or arguments are missing, or for any other error of click.
        """
        words = list(args)
        try:
            rest = super().parse_args(ctx, args)
            ctx.params.update({name: expand_home(value) for name, value in ctx.params.items()})
            return rest
        except typer.BadParameter as error:
            if not hasattr(error, "param_type"):  # only click's MissingParameter has it
                raise
        ctx.resilient_parsing = True  # parse again, this time without raising errors
        super().parse_args(ctx, words)
        required = (parameter for parameter in self.params if parameter.required)
        missing = [option_name(parameter) for parameter in required if ctx.params.get(parameter.name) in (None, (), [])]
        ctx.fail(f"{ctx.info_name} needs {join_names(missing)}")
        return []  # not reached: `fail` raises


def expand_home(value: Any) -> Any:
    """Replace "~" by the home folder in a path or a list of paths. Return any other value unchanged."""
    if isinstance(value, list | tuple):
        return type(value)(map(expand_home, value))
    return user_path(value) if isinstance(value, Path) else value


class Group(TyperGroup):
    """A group of commands. Its help lists every command with the first sentence of its explanation."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help of the group.

        Parameters
        ----------
        ctx : Context
        formatter : HelpFormatter
            The text is written to it.
        """
        commands = [(name, command) for name in self.list_commands(ctx) if (command := self.get_command(ctx, name))]
        rows = [(name, command.get_short_help_str(1000)) for name, command in commands if not command.hidden]
        sections = {**options_by_group(self, ctx), "Commands": rows}
        formatter.write(help_page(self, ctx, formatter.width, sections))


def options_by_group(command: TyperCommand | TyperGroup, ctx: Any) -> dict[str, list[tuple[str, str]]]:
    """Return the options and arguments of a command, by their group in the help. Hidden ones are left out.

    Parameters
    ----------
    command : TyperCommand or TyperGroup
    ctx : Context

    Returns
    -------
    dict
        Name of the group → list of (option, explanation).
    """
    groups: dict[str, list[tuple[str, str]]] = {name: [] for name in GROUPS}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is not None:
            default = "Arguments" if parameter.param_type_name == "argument" else "Options"
            name, text = record
            name = re.sub(r"<list\[(\w+)\]>", lambda found: f"<{found[1].lower()}>", name)  # <path> for <list[Path]>
            record = name, text.replace("[default: ", f"[default:{NBSP}")
            groups.setdefault(getattr(parameter, "rich_help_panel", None) or default, []).append(record)
    return {name: rows for name, rows in groups.items() if rows}


def help_page(
    command: TyperCommand | TyperGroup, ctx: Any, width: int, sections: dict[str, list[tuple[str, str]]]
) -> str:
    """Return the help of a command: usage, explanation, and one table per section.

    Parameters
    ----------
    command : TyperCommand or TyperGroup
    ctx : Context
        The context of the command.
    width : int
        Width of the page in characters.
    sections : dict
        Heading → (name, explanation) of each line.

    Returns
    -------
    str
    """
    usage = ctx.make_formatter()
    command.format_usage(ctx, usage)
    indent = {"initial_indent": "  ", "subsequent_indent": "  "}
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    parts = [usage.getvalue(), *("\n".join(wrap(text, width, **indent)) + "\n" for text in paragraphs)]
    names = [name for rows in sections.values() for name, _ in rows]
    name_width = max((len(name) for name in names if len(name) <= MAX_NAME_WIDTH), default=0) + 2
    for heading, rows in sections.items():
        lines = [f"{heading}:"]
        for name, text in rows:
            explained = wrap(text, width - name_width - 2) or [""]
            if len(name) + 2 > name_width:
                lines.append(f"  {name}")
                name = ""
            lines.append(f"  {name:{name_width}}{explained[0]}".rstrip())
            lines += [" " * (name_width + 2) + line for line in explained[1:]]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts).replace(NBSP, " ")


def wrap(text: str, width: int, **indent: Any) -> list[str]:
    """Split a text into lines, only between words.

    Parameters
    ----------
    text : str
    width : int
        Characters per line, at least 12. A word that is longer gets a line of its own.
    **indent
        initial_indent and subsequent_indent of `textwrap.wrap`.

    Returns
    -------
    list of str
    """
    return textwrap.wrap(text, max(width, 12), break_long_words=False, break_on_hyphens=False, **indent)


def option_name(parameter: Any) -> str:
    """Return the name of an option or argument as the user types it.

    Parameters
    ----------
    parameter : click.Parameter

    Returns
    -------
    str
        Such as "--out", or "SOURCE" for an argument.
    """
    argument = parameter.param_type_name == "argument"
    return str((parameter.metavar or parameter.name.upper()) if argument else parameter.opts[0])


def join_names(names: Sequence[str]) -> str:
    """Join names with commas and "and".

    Parameters
    ----------
    names : sequence of str
        At least one name.

    Returns
    -------
    str
        "a", "a and b", or "a, b and c".
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def print_table(rows: Iterable[Sequence[str]], right: Sequence[int] = (), fit: bool = False) -> None:
    """Print a table with aligned columns.

    Parameters
    ----------
    rows : iterable of sequences of str
        The cells. Text does not break at the character `NBSP`.
    right : sequence of int
        Indices of the columns that are aligned to the right.
    fit : bool
        Whether to wrap the last column if it does not fit into the terminal.
    """
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    last_start = sum(widths[:-1]) + 2 * (len(widths) - 1)
    last_width = shutil.get_terminal_size().columns - last_start
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        last = wrap(row[-1], last_width) if fit and len(row[-1]) > last_width else [cells[-1]]
        lines = ["  ".join([*cells[:-1], last[0]]), *(" " * last_start + line for line in last[1:])]
        print("\n".join(line.rstrip() for line in lines).replace(NBSP, " "))


def print_text(text: str) -> None:
    """Print a paragraph in lines that fit into the terminal, of at most 80 characters.

    Parameters
    ----------
    text : str
    """
    print("\n".join(wrap(text, min(shutil.get_terminal_size().columns, 80))))


def cell_text(value: Any) -> str:
    """Return the text of a table cell.

    Parameters
    ----------
    value : object

    Returns
    -------
    str
        A float with two decimals, a dash for NaN, and str(value) for anything else.
    """
    if not isinstance(value, float):
        return str(value)
    return "-" if math.isnan(value) else f"{value:.2f}"


def printable_line(text: str) -> str:
    """Return a text in one line that is safe to print in a terminal.

    Parameters
    ----------
    text : str

    Returns
    -------
    str
        Line breaks are removed, and control characters are shown as escape sequences. If the text has more than 600
        characters, its middle is left out.
    """
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    return text if len(text) <= 600 else f"{text[:400]} … {text[-150:]}"


def print_error(message: str, status: int) -> int:
    """Print an error message as one line on stderr.

    In a training with several processes, all of them may raise the same error. Until they are connected, only the first
    process prints it.

    Parameters
    ----------
    message : str
    status : int
        Exit status of the command.

    Returns
    -------
    int
        `status`.
    """
    distributed = sys.modules.get("torch.distributed")  # not imported here, because it is slow
    connected = distributed is not None and distributed.is_initialized()
    if launcher.is_first_rank() or connected:
        # the line break ends the progress bar, if there is one
        prefix = f"\npckd-nb, process {distributed.get_rank()}" if distributed and connected else "pckd-nb"
        print(f"{prefix}: {printable_line(message)}", file=sys.stderr)
    return status


def check_new_file(out: Path, overwrite: bool, option: str = "--out") -> None:
    """Check that a file can be written, before anything is computed.

    Parameters
    ----------
    out : Path
    overwrite : bool
        Whether it may exist.
    option : str
        The option that names the file, for error messages.

    Raises
    ------
    OSError
        If it is a folder, if it exists and must not be replaced, or if its folder cannot be written.
    """
    if out.is_dir():
        raise IsADirectoryError(f"{option} '{out}' is a folder: add the name of a file")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{option} '{out}' exists: choose another file, or replace it with --overwrite")
    files.check_writable(out.absolute().parent)


def write_new_file(out: Path, writer: Callable[[Path], Any], size: str) -> None:
    """Write a file as a whole, in a folder that is created if necessary, and print its name and size.

    Parameters
    ----------
    out : Path
    writer : callable
        As in `files.write`.
    size : str
        Such as "20 images".

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write(out, writer)
    print(f"{out}: {size}")
