"""Commands that train and compare a grid of runs.

An arm is a method with its settings. A point is one run: an arm with one seed and one teacher-student pair.
"""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from typer_injector import Depends

from .. import catalogue
from ..html import counted
from .app import command
from .console import print_error
from .options import GridOptions, GridRequest, Reference, check_names, drop_none, in_grid, in_method

if TYPE_CHECKING:
    import pandas as pd

    from ..experiments import Arm, Grid


class Layout(NamedTuple):
    """How a comparison is printed, see `experiments.format_comparison`.

    Parameters
    ----------
    format : {"text", "markdown", "latex", "csv"}
    pivot : bool
        Whether to have one row per arm and one column per pair.
    """

    format: str
    pivot: bool


def layout_options(
    format: Annotated[
        str,
        in_grid(
            help=f"How to print the comparison: {', '.join(catalogue.TABLE_FORMATS)}. If it is not text, only the "
            "table is printed to stdout, and everything else to stderr."
        ),
    ] = "text",
    pivot: Annotated[
        bool, in_grid("--pivot", help="Print one row per arm and one column per pair, as in most papers.")
    ] = False,
) -> Layout:
    """Return how the comparison is printed.

    Returns
    -------
    Layout

    Raises
    ------
    ValueError
        If the format is unknown, or cannot be pivoted.
    """
    catalogue.check_table_format(format, pivot)
    return Layout(format, pivot)


LayoutOptions = Annotated[Layout, Depends(layout_options)]


@command()
def compare(
    grid: GridOptions,
    layout: LayoutOptions,
    methods: Annotated[
        str | None,
        in_method(
            help="Methods to compare, comma-separated. Settings can follow, as in pckd-strategy=uniform. Default: "
            "supervised,kd,pckd. With --chosen: none."
        ),
    ] = None,
    chosen: Annotated[
        Path | None,
        in_method(
            help="Folder of a finished search. The settings that it chose are compared, too. Data, teacher, student "
            "and recipe must be those of the search."
        ),
    ] = None,
    with_defaults: Annotated[
        bool, in_method("--with-defaults", help="With --chosen: also compare the default settings of each method.")
    ] = False,
    reference: Reference = "kd",
) -> None:
    """Train and compare several methods, over seeds and teacher-student pairs.

    Finished runs are kept, and interrupted ones are resumed.

    With --chosen, the reference is a method with the settings that the search chose for it. If its default settings
    are compared, too, the reference has the default settings.
    """
    if with_defaults and not chosen:
        raise ValueError("--with-defaults needs --chosen, the folder of a search")
    if methods is None:
        methods = "" if chosen else "supervised,kd,pckd"
    names = methods.split(",") if methods or not chosen else []
    check_names(arms=[*names, reference])
    from ..experiments import parse_arm

    arms = [parse_arm(name) for name in names]
    if chosen:
        from ..experiments import Grid, check_same_training, chosen_arms

        found = chosen_arms(chosen)
        arms += [parse_arm(method) for method in found if with_defaults]
        if parse_arm(reference) not in arms:
            reference = str(found.get(str(parse_arm(reference)), reference))
        arms += found.values()
        check_same_training(chosen, built := Grid(**grid.settings, arms=arms))
        return run_grid(grid, built, reference, layout)
    run_grid(grid, arms, reference, layout)


@command()
def ablate(
    grid: GridOptions,
    layout: LayoutOptions,
    reference: Reference = "pckd",
) -> None:
    """Compare PCKD with KD, with supervised training, and with variants of PCKD that lack one part.

    The variants leave out one loss term, replace preview by another weighting strategy, or use one view only.
    """
    check_names(arms=[reference])
    from ..experiments import ablation_arms

    run_grid(grid, ablation_arms(), reference, layout)


@command()
def sweep(
    factor: Annotated[
        list[str],
        in_method(
            help="A setting and the values to compare, as NAME=VALUE,VALUE. For beta_cc, beta_fa, beta_ca and "
            "epsilon_240, NAME alone compares five values. epsilon_240 is the epsilon for 240 epochs, and is converted "
            "to your number of epochs. Repeat the option for several settings."
        ),
    ],
    grid: GridOptions,
    layout: LayoutOptions,
    method: Annotated[str, in_method(help="The method whose setting is varied.")] = "pckd",
    reference: Annotated[
        str | None, in_method(help="The method that all others are compared with, seed by seed. Default: --method.")
    ] = None,
) -> None:
    """Compare several values of a setting.

    If there are several settings, only one of them is varied at a time. Runs that are the same are trained only once.
    """
    check_names(arms=[method, *drop_none(reference=reference).values()])
    factors = []
    for text in factor:
        name, equals, values = text.partition("=")
        if equals and not all(values.split(",")):
            raise ValueError(f"--factor must be NAME or NAME=VALUE,VALUE, got {text!r}")
        parsed = [catalogue.parse_value(value) for value in values.split(",")] if values else []
        factors.append((name, parsed))
        for value in parsed if name == "strategy" else []:
            catalogue.check_strategy(str(value))
    from ..experiments import parse_arm, sweep_arms

    base = parse_arm(method)
    arms = [base]
    for name, parsed in factors:
        arms += sweep_arms(name, parsed, base)
    run_grid(grid, arms, method if reference is None else reference, layout)


def run_grid(request: GridRequest, arms: "list[Arm] | Grid", reference: str, layout: Layout) -> None:
    """Train a grid and print the comparison of its arms. With --dry-run, only list its points.

    Errors of `experiments.Grid`, `experiments.parse_arm` and `experiments.run_grid` are passed on.

    Parameters
    ----------
    request : GridRequest
        The options of the command line.
    arms : list of Arm, or Grid
        The arms of the grid, or the grid itself.
    reference : str
        The arm that all others are compared with. If the grid does not have it, a note is printed.
    layout : Layout
        How the comparison is printed.

    Raises
    ------
    typer.Exit
        If points failed. The finished points are compared first.
    """
    from .. import experiments
    from ..experiments.projection import name_stages

    grid = experiments.Grid(**request.settings, arms=arms) if isinstance(arms, list) else arms
    reference_arm = experiments.parse_arm(reference)
    reference_arm.build(grid.recipe)
    reference_arm = reference_arm.drop_defaults(grid.recipe, grid.loaded, grid.network_names)
    if reference_arm not in grid.arms and len(grid.arms) > 1:
        available = ", ".join(map(str, grid.arms))
        print(f"note: no differences are shown, because --reference {reference} is not one of {available}",
              file=sys.stderr)  # fmt: skip
    if request.dry_run:
        points = experiments.shard_points(grid, request.shard)
        finished = {point: experiments.is_finished(point) for point in points}
        missing = [point for point in points if not finished[point]]
        print("\n".join(f"{'finished' if finished[point] else 'to train'}  {point}" for point in points))
        duration = experiments.format_duration(experiments.estimate_seconds(grid, missing, request.jobs))
        duration += name_stages([point.arm for point in missing], grid.recipe)
        print(f"{counted(len(points), 'run')}, {len(missing)} to train, estimated time: {duration}")
        return
    options: dict[str, Any] = dict(
        jobs=request.jobs, shard=request.shard, progress=request.jobs == 1, **request.cluster
    )
    stream = sys.stdout if layout.format == "text" else sys.stderr
    failed = None
    try:
        experiments.run_grid(grid, **options, print_fn=partial(print, file=stream, flush=True))
    except experiments.FailedRunsError as error:
        failed = error
    table = experiments.results(grid, compute=True)
    if len(table):
        print_comparison(table, str(reference_arm), layout)
    if failed:
        raise typer.Exit(print_error(str(failed), 1))


def print_comparison(table: "pd.DataFrame", reference: str, layout: Layout) -> None:
    """Print the comparison of arms over seeds. If a pair has several teachers, also print it over teachers.

    Parameters
    ----------
    table : DataFrame
        The table of `experiments.results`.
    reference : str
        The arm that all others are compared with.
    layout : Layout
        How the comparison is printed. If the format is not "text", the explanation of the columns goes to stderr. With
        "csv", only the comparison over seeds is printed.
    """
    from .. import experiments

    compared = experiments.comparison(table, reference)
    over_teachers = experiments.comparison_over_teachers(table, reference)
    over_teachers = over_teachers[over_teachers.groupby("pair")["teachers"].transform("max") > 1]
    explained = partial(print, file=sys.stdout if layout.format == "text" else sys.stderr)
    explained("\ntop-1 %: mean accuracy over seeds ± standard deviation")
    if not layout.pivot:
        explained(f"difference: mean difference to {reference} with the same seeds, and its 95 % interval")
        explained("paired: number of seeds that both methods have")
        explained(_explain_p_values(compared, reference))
        explained("teraflops: 10¹² operations of student and teacher in one training. seconds: measured")
    print(experiments.format_comparison(compared, layout.format, reference, layout.pivot))
    if len(over_teachers) and layout.format != "csv":  # a CSV file has one table
        explained("\nover teachers: every teacher counts once, with the mean of its seeds")
        if not over_teachers["teachers"].all():
            explained(
                "teachers 0: a method without a teacher, over its seeds. Its p is Welch's t-test, if it is unpaired"
            )
        if not layout.pivot:
            explained(_explain_p_values(over_teachers, reference))
        print(experiments.format_comparison(over_teachers, layout.format, reference, layout.pivot))


def _explain_p_values(compared: "pd.DataFrame", reference: str) -> str:
    """Return a line about the p-values of a comparison. It says for how many comparisons they are corrected."""
    numbers = sorted({int(number) for number in compared.groupby("pair")["p"].count()})
    if not numbers[-1]:
        return "p: none, because a t-test needs two differences or more that are not all equal"
    text = counted(numbers[0], "comparison") if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]} comparisons"
    several = " in each pair" if compared["pair"].nunique() > 1 else ""
    return f"p: paired t-test. p (Holm): p corrected for {text} with {reference}{several}"
