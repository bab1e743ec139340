"""The command that draws figures."""

from pathlib import Path
from typing import Annotated

import typer

from .app import command


@command()
def figures(
    runs_folder: Annotated[Path, typer.Option("--runs", help="Folder of the runs to draw.")] = Path("data/runs"),
    out: Annotated[Path, typer.Option(help="Folder for the figures and their captions.")] = Path("figures"),
    only: Annotated[
        str | None,
        typer.Option(help="Names of figures, comma-separated, or their beginnings, such as 05. Default: all figures."),
    ] = None,
) -> None:
    """Draw all figures whose runs are in the folder. Nothing is trained."""
    chosen = None if only is None else only.split(",")
    if chosen is not None and not all(chosen):
        raise ValueError(f"--only must be names of figures, or their beginnings, comma-separated, got {only!r}")
    from .. import files
    from ..figures.collection import draw_all

    files.check_writable(out)
    for path in draw_all(runs_folder, out, chosen):
        print(path)
