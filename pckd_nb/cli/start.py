"""Commands to start with: the demo, a check of this machine, and lists of data sets and networks."""

from pathlib import Path
from typing import Annotated

from .. import catalogue
from .app import command
from .console import TOGETHER, print_table, print_text
from .options import Overwrite, in_training


@command()
def demo(
    out: Annotated[Path, in_training(help="Folder for the four runs and the report.")] = Path("runs/demo"),
    size: Annotated[
        str | None,
        in_training(help="small, medium or full. Default: the largest that ends in five minutes on this machine."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """The whole story in five minutes, nothing to download: a teacher, one student trained three ways, a report."""
    from ..demo import run_demo

    print(run_demo(out, overwrite=overwrite, size=size))


@command()
def doctor() -> None:
    """What this machine is, what training would choose on it and why, and how long the demo would take."""
    from ..doctor import report as examine

    for line in examine():
        print(line, flush=True)


@command("datasets")
def list_datasets() -> None:
    """List the data sets."""
    print_table(catalogue.DATASETS.items(), fit=True)


@command("models")
def list_models() -> None:
    """List the networks, and the teacher-student pairs they are compared in."""
    rows = [("name", "parameters", "MFLOPs", "features", "pairs (teacher > student)")]
    for name, network in catalogue.NETWORKS.items():
        pairs = [f">{TOGETHER}{student}" for teacher, student in catalogue.PAIRS if teacher == name]
        pairs += [f"{teacher}{TOGETHER}>" for teacher, student in catalogue.PAIRS if student == name]
        counts = f"{network.parameters:,}", f"{network.flops / 1e6:,.0f}", str(network.feature_width)
        rows.append((name, *counts, ", ".join(pairs)))
    print_table(rows, right=(1, 2, 3), fit=True)
    print()
    print_text(
        "For 100 classes and images of 3×32×32. MFLOPs: millions of operations of one image's forward pass, a "
        "multiplication and an addition counting as two. Features: how many penultimate features an image has. Also "
        "torchvision:NAME and timm:NAME, any network of these libraries that ends in a linear layer."
    )
