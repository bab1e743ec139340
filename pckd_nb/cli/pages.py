"""Commands that write a page about runs, as one HTML file."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..html import counted
from ..validation import checked
from .app import command
from .console import cell_text, check_new_file, print_table, printable_line, write_new_file
from .evaluation import Split, check_split
from .options import (
    EvaluationOptions,
    Root,
    Workers,
    check_names,
    drop_none,
    in_data,
    in_ranking,
)
from .sources import load_common_data, load_data_of_run

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file in --out.")]


@command()
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    shared: EvaluationOptions,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    overwrite: Overwrite = False,
    data: Annotated[str | None, in_data(help="Data set to evaluate on. Default: that of the run.")] = None,
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
    dataset = load_data_of_run(run, data, shared.root, shared.data) if run.student_state else None
    write_page(out, report_page(run, dataset, **shared.machine))


@command()
def rank(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    by: Annotated[
        str,
        in_ranking(
            help="Measure of difficulty, such as cross_entropy_mean, area_under_margin, forgetting_events or "
            "teacher_cross_entropy. An unknown name prints the list."
        ),
    ] = "cross_entropy_mean",
    top: Annotated[int, in_ranking(help="Number of images. With --per-class: for every class.")] = 20,
    classes: Annotated[
        list[str] | None, in_ranking("--class", help="Only images with this label. Repeat the option for several.")
    ] = None,
    per_class: Annotated[bool, in_ranking("--per-class", help="Rank the images of each class separately.")] = False,
    suspects: Annotated[
        bool,
        in_ranking(
            "--suspects",
            help="Only images with a negative area under the margin: in training, the largest other logit was above "
            "that of the label, on average. The label may be wrong, or the image hard.",
        ),
    ] = False,
    csv: Annotated[Path | None, typer.Option(help="CSV file to write, with all measures.")] = None,
    html: Annotated[Path | None, typer.Option(help="Page to write, with the images.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files in --csv and --html.")] = False,
    data: Annotated[
        str | None, in_data(help="Data set of the run, for --html. Only needed if it is your own file.py:NAME.")
    ] = None,
    workers: Workers = None,
    root: Root = None,
) -> None:
    """Rank the training images of a run, the hardest first.

    With --html, these images are shown on a page, where they can be sorted by other measures.
    """
    check_names(data=data)
    if data is not None and html is None:
        raise ValueError("--data needs --html: it is the data set whose images the page shows")
    if csv and html and csv.absolute() == html.absolute():
        raise ValueError("--csv and --html must be different files")
    for option, path in (("--csv", csv), ("--html", html)):
        if path:
            check_new_file(path, overwrite, option)
    from ..analysis import rank_samples
    from ..data.own import Workers as WorkerCount
    from ..measures import DIRECTIONS
    from ..runs import load_run

    checked(WorkerCount, "workers", workers)
    run = load_run(run_folder)
    table = rank_samples(run, by, top, classes=classes or (), per_class=per_class, suspects=suspects)
    page = ""
    if html:
        from ..pages import ranking_page

        page = ranking_page(run, table, load_data_of_run(run, data, root, drop_none(workers=workers)), by)
    if csv:
        write_csv = partial(table.to_csv, index_label="position", lineterminator="\n", float_format="%.6g")
        write_new_file(csv, write_csv, counted(len(table), "image"))
    if html:
        write_page(html, page)
    if not csv and not html:
        shown = ["id", "class", *(["predicted_class"] if "predicted_class" in table else []), by]
        more = [name for name in ("cross_entropy_mean", "area_under_margin") if name in table and name not in shown]
        rows = [
            tuple(printable_line(cell_text(cell)) for cell in row)
            for row in table[[*shown, *more]].itertuples(index=False)
        ]
        right = range(len(shown) - 1, len(shown) + len(more))
        print_table([(*shown, *more), *rows], right=tuple(right))
        kind = "large" if DIRECTIONS[by] > 0 else "small"
        print(f"{counted(len(table), 'image')}. Hard images have {kind} values of {by}.")


@command("diff")
def difference(
    first: Annotated[Path, typer.Argument(metavar="A", help="Run folder of the first network, A.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Run folder of the second network, B.")],
    shared: EvaluationOptions,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("difference.html"),
    overwrite: Overwrite = False,
    data: Annotated[str | None, in_data(help="Data set to compare on. Default: that of both runs.")] = None,
    split: Split = "test",
) -> None:
    """Write a page that compares two networks image by image, as one HTML file.

    It shows images on which only one of the networks is right, the accuracy of both by class, and the settings that
    differ. The command agree prints the numbers as text.
    """
    check_new_file(out, overwrite)
    check_split(split)
    check_names(data=data)
    from ..pages import difference_page
    from ..runs import load_run

    runs = load_run(first), load_run(second)
    for run in runs:
        run.model()  # if weights are missing, it raises an error before the images are read
    dataset = load_common_data(runs, data, shared.root, shared.data)
    write_page(out, difference_page(*runs, dataset, split, **shared.machine))


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
    write_new_file(out, lambda temporary: temporary.write_text(page, encoding="utf-8"), f"{len(page) / 1e6:.1f} MB")
