"""Commands that write a page about runs, as one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

from .. import files
from .app import command
from .console import check_new_file
from .evaluation import Split, check_split
from .options import Accelerator, ImageSize, Precision, Root, TestSize, Workers, check_names, drop_none, in_data
from .sources import load_common_data, load_data_of_run

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file in --out.")]


@command()
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    overwrite: Overwrite = False,
    data: Annotated[str | None, in_data(help="Data set to evaluate on. Default: that of the run.")] = None,
    test_size: TestSize = None,
    image_size: ImageSize = None,
    workers: Workers = None,
    root: Root = None,
    accelerator: Accelerator = "auto",
    precision: Precision = "auto",
) -> None:
    """Write a page about one run, as one HTML file.

    It shows learning curves, confusion matrix, accuracy by class, calibration, mistakes, the difficulty of training
    images, maps and settings. Parts that need weights or images are left out if the run does not have them.
    """
    check_new_file(out, overwrite)
    check_names(data=data)
    from ..pages import report_page
    from ..runs import load_run

    run = load_run(run_folder)
    options = drop_none(test_size=test_size, image_size=image_size, workers=workers)
    dataset = load_data_of_run(run, data, root, options) if run.student_state else None
    write_page(out, report_page(run, dataset, accelerator=accelerator, precision=precision))


@command("diff")
def difference(
    first: Annotated[Path, typer.Argument(metavar="A", help="Run folder of the first network, A.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Run folder of the second network, B.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("difference.html"),
    overwrite: Overwrite = False,
    data: Annotated[str | None, in_data(help="Data set to compare on. Default: that of both runs.")] = None,
    split: Split = "test",
    test_size: TestSize = None,
    image_size: ImageSize = None,
    workers: Workers = None,
    root: Root = None,
    accelerator: Accelerator = "auto",
    precision: Precision = "auto",
) -> None:
    """Write a page that compares two networks image by image, as one HTML file.

    It shows images on which only one of the networks is right, the accuracy of both by class, and the settings that
    differ. The command agree prints the numbers.
    """
    check_new_file(out, overwrite)
    check_split(split)
    check_names(data=data)
    from ..pages import difference_page
    from ..runs import load_run

    runs = load_run(first), load_run(second)
    for run in runs:
        run.model()  # if weights are missing, it raises an error before the images are read
    dataset = load_common_data(runs, data, root, drop_none(test_size=test_size, image_size=image_size, workers=workers))
    write_page(out, difference_page(*runs, dataset, split, accelerator=accelerator, precision=precision))


def write_page(out: Path, page: str) -> None:
    """Write a page to a file, and print its name.

    Parameters
    ----------
    out : Path
    page : str
        HTML.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write(out, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    print(f"{out}: {len(page) / 1e6:.1f} MB")
