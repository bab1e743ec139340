"""Run one command. Every error gives one line on stderr and a non-zero exit status."""

import os
import re
import sys
import warnings
from typing import Any

import typer

from .. import launcher
from ..messages import error_message
from .app import app
from .console import print_error

# Importing these modules adds their commands to the app, in the order of the help.
# isort: off
from . import start as start
from . import training as training
from . import evaluation as evaluation
from . import grids as grids
from . import search as search
from . import drawing as drawing
from . import leaderboard as leaderboard
from . import pages as pages
# isort: on

# Advice in an error message of `TrainingData.check_classes`. It is for Python, so `use_option_names` replaces it.
PYTHON_ADVICE = "set trained_on to trained_on.without_classes()"


def main(arguments: list[str] | None = None) -> int:
    """Run one command of the command line.

    Parameters
    ----------
    arguments : list of str, optional
        The words after the name of the program. The default is sys.argv[1:]. An empty list shows the help.

    Returns
    -------
    int
        Exit status: 0 after success, 2 for invalid input or an OSError, 130 after Ctrl-C, and 1 for any other error.

    Raises
    ------
    Exception
        If the command fails and --debug is among the arguments.
    """
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    debug = "--debug" in arguments

    def print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
        if launcher.is_first_rank():
            print(f"note: {message}", file=sys.stderr)

    warnings.showwarning = print_warning
    try:
        status = app([argument for argument in arguments if argument != "--debug"], standalone_mode=False)
        if sys.stdout:  # None if it was closed
            sys.stdout.flush()  # here and not at exit, so that a BrokenPipeError is caught below
        return status if isinstance(status, int) else 0
    except KeyboardInterrupt:
        return print_error("interrupted", 130)
    except BrokenPipeError:  # the program that reads the output has ended, such as `head` in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        if hasattr(error, "format_message"):  # an error of click
            return print_error(f"{error.format_message()} (see --help)", 2)
        message = use_option_names(error_message(error), arguments[0])
        if isinstance(error, ValueError | OSError):
            return print_error(message, 2)
        if isinstance(error, FloatingPointError):
            return print_error(message, 1)
        return print_error(f"{type(error).__name__}: {message} (add --debug to see where)", 1)


def use_option_names(message: str, command: str = "") -> str:
    """Replace names of Python arguments and attributes in an error message by the options of the command line.

    Parameters
    ----------
    message : str
        Such as "resume=True continues the run". An argument is replaced only if some command has that option.
    command : str
        Name of the command that failed.

    Returns
    -------
    str
        Such as "--resume continues the run".
    """
    commands: Any = typer.main.get_command(app)
    options_of = {name: {parameter.name for parameter in found.params} for name, found in commands.commands.items()}
    options = set().union(*options_of.values())
    has_option = "same_classes" in options_of.get(command, ())
    advice = "add --same-classes" if has_option else "give the classes the same names in both data sets"
    message = message.replace(PYTHON_ADVICE, advice)

    def option(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in options:
            return found[0]
        return f"--{name.replace('_', '-')}" + ("" if value == "True" else f" {value}")

    # names and paths that contain "=" are not changed, such as pckd-views=1 or 'runs/lr=0.1'
    return re.sub(r"(?<![\w'/.,-])(\w+)=(True|…|\d+(?:\.\d+)?)(?![\w'/.-])", option, message)
