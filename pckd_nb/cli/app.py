"""The typer app to which the commands belong."""

from collections.abc import Callable
from typing import Annotated

import typer
from typer_injector import InjectingTyper

from .console import Command, Group

app = InjectingTyper(
    cls=Group,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def command(name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that makes a function a command of the app.

    Parameters
    ----------
    name : str, optional
        Name of the command. The default is the name of the function.

    Returns
    -------
    callable
    """
    return app.command(name, cls=Command)


def show_version(asked: bool) -> None:
    """Print the version and exit, if the option --version is given.

    Parameters
    ----------
    asked : bool
        Whether the option is given.

    Raises
    ------
    typer.Exit
        After the version is printed.
    """
    if asked:
        from importlib.metadata import version

        print(f"pckd-nb {version('pckd_nb')}")
        raise typer.Exit


@app.callback()
def general(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train a teacher, distil it into a student by PCKD, KD or not at all, and compare.

    Start with: pckd-nb demo. COMMAND --help explains a command and its options. Add --debug to any command for the
    traceback of an error.
    """
