"""Commands to start with: the demo, a report about this machine, and lists of data sets, networks and methods."""

from pathlib import Path
from typing import Annotated

import typer

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


@command("methods")
def list_methods(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show one method with its settings. Default: list all.")
    ] = None,
) -> None:
    """List the methods: what they compare, the paper, and the published weight.

    With NAME, show the settings of one method, and the settings that were published for teacher-student pairs.
    """
    if name is not None:
        catalogue.find_method(name)  # an error before torch is imported
        return show_method(name)
    from ..methods.overview import FAMILIES, method_info, method_names

    infos = [method_info(method) for method in method_names()]
    width = max(len(info.name) for info in infos)
    for family in FAMILIES:
        print(f"{family}:")
        rows = [info for info in infos if info.family == family]
        print_table(
            [
                (f"  {info.name:{width}}", f"{info.source or '-':16}", f"{info.compares}. Published: {info.weight}")
                for info in rows
            ],
            fit=True,
        )
        print()
    print_text("To see the settings of a method, use pckd-nb methods NAME. To train with it, use --method NAME.")


def show_method(name: str) -> None:
    """Print what a method compares, its settings with their defaults, and the settings published for pairs.

    Parameters
    ----------
    name : str
        As in `catalogue.find_method`.

    Raises
    ------
    ValueError
        If this package has no method of this name.
    """
    from ..methods.overview import method_info, settings_text

    info = method_info(name)
    print(info.title)
    print_text(f"{info.summary} {info.explanation}".replace("`", ""))
    print()
    print_table([("source", info.source or "-"), ("published", info.weight)], fit=True)
    print("\nSettings and their defaults:")
    if info.settings:
        print_table([(f"  {setting}", str(value)) for setting, value in info.settings.items()], fit=True)
    else:
        print("  none")
    if info.published:
        print()
        print_text("Published settings of teacher-student pairs, used instead of the defaults:")
        pairs = info.published.items()
        print_table(
            [(f"  {teacher} > {student}", settings_text(found)) for (teacher, student), found in pairs], fit=True
        )
