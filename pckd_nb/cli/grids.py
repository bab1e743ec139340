"""Commands that train and compare a grid of runs.

An arm is a method with its settings. A point is one run: an arm with one seed and one teacher-student pair.
"""

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import catalogue
from ..html import counted
from .app import command
from .console import cell_text, print_error, print_table
from .options import GridOptions, GridRequest, Reference, check_names, drop_none, in_method

if TYPE_CHECKING:
    import pandas as pd

    from ..experiments import Arm


@command()
def compare(
    grid: GridOptions,
    methods: Annotated[
        str, in_method(help="Methods to compare, comma-separated. Settings can follow, as in pckd-strategy=uniform.")
    ] = "supervised,kd,pckd",
    reference: Reference = "kd",
) -> None:
    """Train and compare several methods, over seeds and teacher-student pairs.

    Finished runs are kept, and interrupted ones are resumed.
    """
    check_names(arms=[*methods.split(","), reference])
    from ..experiments import parse_arm

    run_grid(grid, [parse_arm(text) for text in methods.split(",")], reference)


@command()
def ablate(
    grid: GridOptions,
    reference: Reference = "pckd",
) -> None:
    """Compare PCKD with KD, with supervised training, and with variants of PCKD that lack one part.

    The variants leave out one loss term, replace preview by another weighting strategy, or use one view only.
    """
    check_names(arms=[reference])
    from ..experiments import ablation_arms

    run_grid(grid, ablation_arms(), reference)


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
    run_grid(grid, arms, method if reference is None else reference)


def run_grid(request: GridRequest, arms: "list[Arm]", reference: str) -> None:
    """Train a grid and print the comparison of its arms. With --dry-run, only list its points.

    Errors of `experiments.Grid`, `experiments.parse_arm` and `experiments.run_grid` are passed on.

    Parameters
    ----------
    request : GridRequest
        The options of the command line.
    arms : list of Arm
    reference : str
        The arm that all others are compared with. If the grid does not have it, a note is printed.

    Raises
    ------
    typer.Exit
        If points failed. The finished points are compared first.
    """
    from .. import experiments

    grid = experiments.Grid(**request.settings, arms=arms)
    reference_arm = experiments.parse_arm(reference)
    reference_arm.build(grid.recipe)
    reference_arm = reference_arm.drop_defaults(grid.recipe, grid.loaded, grid.network_names)
    if reference_arm not in grid.arms and len(grid.arms) > 1:
        available = ", ".join(map(str, grid.arms))
        print(f"note: no differences are shown, because --reference {reference} is not one of {available}",
              file=sys.stderr)  # fmt: skip
    if request.dry_run:
        points = experiments.shard_points(grid, request.shard, request.jobs)
        missing = [point for point in points if not experiments.is_finished(point)]
        print("\n".join(f"{'to train' if point in missing else 'finished'}  {point}" for point in points))
        duration = experiments.format_duration(experiments.estimate_seconds(grid, missing, request.jobs))
        print(f"{counted(len(points), 'run')}, {len(missing)} to train, estimated time: {duration}")
        return
    options: dict[str, Any] = dict(
        jobs=request.jobs, shard=request.shard, progress=request.jobs == 1, **request.cluster
    )
    failed = None
    try:
        table = experiments.run_grid(grid, **options, print_fn=partial(print, flush=True))
    except experiments.FailedRunsError as error:
        failed, table = error, experiments.results(grid)
    if len(table):
        print_comparison(experiments.comparison(table, str(reference_arm)), reference)
    if failed:
        raise typer.Exit(print_error(str(failed), 1))


def print_comparison(compared: "pd.DataFrame", reference: str) -> None:
    """Print the comparison of arms.

    Parameters
    ----------
    compared : DataFrame
        The table of `experiments.comparison`.
    reference : str
        The arm that all others are compared with.
    """
    print("\nmean: top-1 accuracy in percent over seeds, with standard deviation sd and 95 % interval from low to high")
    print(f"difference: mean difference to {reference} with the same seeds, with 95 % interval from d_low to d_high")
    print("pairs: number of seeds that both methods have")
    print_table([tuple(compared.columns), *(tuple(map(cell_text, row)) for row in compared.itertuples(index=False))])
