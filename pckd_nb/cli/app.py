"""The typer app, to which all commands belong."""

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
    """Return a decorator that adds a function to the app as a command.

    Parameters
    ----------
    name : str, optional
        Name of the command. The default is the name of the function.

    Returns
    -------
    callable
        The decorator.
    """
    return app.command(name, cls=Command)


def show_version(requested: bool) -> None:
    """Print the version and exit, if the option --version is given.

    Parameters
    ----------
    requested : bool
        Whether the option is given.

    Raises
    ------
    typer.Exit
        If the version was printed.
    """
    if requested:
        from importlib.metadata import version

        print(f"pckd-nb {version('pckd_nb')}")
        raise typer.Exit


@app.callback()
def global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train a teacher network, distil it into a smaller student, and compare the results.

    KD is knowledge distillation: the student also learns from the logits of the teacher. PCKD, preview-based category
    contrastive learning, adds the features and class centers of the teacher.

    Start with: pckd-nb demo. To see the options of a command, use COMMAND --help. To see the traceback of an error, add
    --debug to any command.
    """
