"""Commands to start with: the demo, a report about this machine, and lists of data sets and networks."""

from pathlib import Path
from typing import Annotated

from .. import catalogue
from .app import command
from .console import NBSP, print_table, print_text
from .options import in_training


@command()
def demo(
    out: Annotated[Path, in_training(help="Folder for the four runs and the report.")] = Path("runs/demo"),
    size: Annotated[
        str | None,
        in_training(
            help="small, medium or full. Default: the largest size that takes at most five minutes on this machine, or "
            "small if all of them take longer."
        ),
    ] = None,
    overwrite: Annotated[bool, in_training("--overwrite", help="Replace the four runs in --out.")] = False,
) -> None:
    """Train a teacher and three students, compare them, and write a report, in about five minutes.

    The same student is trained on labels alone, with KD, and with PCKD. Nothing is downloaded.
    """
    from ..demo import run_demo

    print(run_demo(out, overwrite=overwrite, size=size))


@command()
def doctor() -> None:
    """Show the hardware, the settings that are chosen for training on it, and how long the demo takes."""
    from ..doctor import report_lines

    for line in report_lines():
        print(line, flush=True)


@command("datasets")
def list_datasets() -> None:
    """List the data sets."""
    print_table(catalogue.DATASETS.items(), fit=True)


@command("models")
def list_models() -> None:
    """List the networks, and the teacher-student pairs in which they are compared."""
    rows = [("name", "parameters", "MFLOPs", "features", "pairs (teacher > student)")]
    for name, network in catalogue.NETWORKS.items():
        pairs = [f">{NBSP}{student}" for teacher, student in catalogue.PAIRS if teacher == name]
        pairs += [f"{teacher}{NBSP}>" for teacher, student in catalogue.PAIRS if student == name]
        counts = f"{network.parameters:,}", f"{network.flops / 1e6:,.0f}", str(network.feature_width)
        rows.append((name, *counts, ", ".join(pairs)))
    print_table(rows, right=(1, 2, 3), fit=True)
    print()
    print_text(
        "The numbers are for 100 classes and images of 3×32×32. MFLOPs: millions of floating-point operations in the "
        "forward pass of one image. A multiplication and an addition count as two. Features: number of penultimate "
        "features per image. Pairs: resnet56 > means that resnet56 is a teacher of the network in this row. > resnet20 "
        "means that resnet20 is its student. You can also use torchvision:NAME and timm:NAME, for any network of these "
        "libraries that ends in a linear layer."
    )
