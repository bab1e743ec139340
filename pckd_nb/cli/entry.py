"""`main`: run one command. Every error is one line on stderr and gives a non-zero exit status."""

import os
import sys
import warnings
from typing import Any

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
        if isinstance(error, ValueError | OSError):
            return complain(describe(error), 2)
        if isinstance(error, FloatingPointError):
            return complain(describe(error), 1)
        return complain(f"{type(error).__name__}: {describe(error)} (--debug shows where)", 1)
