"""`main`: run one command. Every error is one line on stderr and gives a non-zero exit status."""

import os
import re
import sys
import warnings
from typing import Any

import typer

from .. import launcher
from .app import app
from .console import complain, describe

# Commands register themselves on import. The order of the imports is their order in the help.
# isort: off
from . import start as start
from . import training as training
from . import evaluation as evaluation
from . import grids as grids
from . import drawing as drawing
# isort: on


def main(arguments: list[str] | None = None) -> int:
    """Run one command of the command line.

    Parameters
    ----------
    arguments : list of str, optional
        Words of the command line after the name of the program. The default is sys.argv[1:]. An empty list shows the
        help.

    Returns
    -------
    int
        Exit status: 0 after success, 2 for bad input, 130 after Ctrl-C, 1 for any other error.

    Raises
    ------
    Exception
        Any error of the command, if --debug is among the arguments.
    """
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    debug = "--debug" in arguments

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        if launcher.is_first():
            print(f"note: {message}", file=sys.stderr)

    warnings.showwarning = note
    try:
        status = app([argument for argument in arguments if argument != "--debug"], standalone_mode=False)
        if sys.stdout:  # None if it was closed
            sys.stdout.flush()  # raises BrokenPipeError here instead of at exit
        return status if isinstance(status, int) else 0
    except KeyboardInterrupt:
        return complain("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has ended, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        if hasattr(error, "format_message"):  # an error of the command line itself
            return complain(f"{error.format_message()} (see --help)", 2)
        message = with_options(describe(error))
        if isinstance(error, ValueError | OSError):
            return complain(message, 2)
        if isinstance(error, FloatingPointError):
            return complain(message, 1)
        return complain(f"{type(error).__name__}: {message} (--debug shows where)", 1)


def with_options(message: str) -> str:
    """Return an error of the Python API with options in place of arguments.

    Parameters
    ----------
    message : str
        Such as "run folder 'x' exists: resume=True goes on with it". Only arguments that are an option of some command
        are replaced.

    Returns
    -------
    str
        Such as "run folder 'x' exists: --resume goes on with it".
    """
    commands: Any = typer.main.get_command(app)
    options = {parameter.name for command in commands.commands.values() for parameter in command.params}

    def option(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in options:
            return found[0]
        return f"--{name.replace('_', '-')}" + ("" if value == "True" else f" {value}")

    # not in names and paths, such as pckd-views=1 or 'runs/lr=0.1'
    return re.sub(r"(?<![\w'/.,-])(\w+)=(True|…|\d+(?:\.\d+)?)(?![\w'/.-])", option, message)
