"""Commands that train a grid of runs."""

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from .. import catalogue
from ..html import counted
from .app import command
from .console import cell_text, print_table
from .options import GridOptions, GridRequest, Reference, check_names, given, in_method

if TYPE_CHECKING:
    import pandas as pd

    from ..experiments import Arm


@command()
def compare(
    grid: GridOptions,
    methods: Annotated[
        str, in_method(help="Arms, comma-separated: METHOD or METHOD-SETTING=VALUE, such as pckd-strategy=uniform.")
    ] = "supervised,kd,pckd",
    reference: Reference = "kd",
) -> None:
    """Train and compare arms over seeds and pairs of networks. Finished points are kept, cut ones resumed."""
    check_names(arms=[*methods.split(","), reference])
    from ..experiments import parse_arm

    run_grid(grid, [parse_arm(text) for text in methods.split(",")], reference)


@command()
def ablate(
    grid: GridOptions,
    reference: Reference = "pckd",
) -> None:
    """PCKD without each of its terms, with every other strategy, with one view; KD and a lone student beside it."""
    check_names(arms=[reference])
    from ..experiments import ablation_arms

    run_grid(grid, ablation_arms(), reference)


@command()
def sweep(
    factor: Annotated[
        list[str],
        in_method(
            help="A setting as NAME=VALUE,VALUE; beta_cc, beta_fa, beta_ca and epsilon_240 need no values. "
            "Several are swept one after the other."
        ),
    ],
    grid: GridOptions,
    method: Annotated[str, in_method(help="The arm whose setting is swept.")] = "pckd",
    reference: Annotated[
        str | None, in_method(help="The arm that the others are compared with, seed by seed. Default: --method.")
    ] = None,
) -> None:
    """One factor after the other: an arm with each of its values, the default point shared by all."""
    check_names(arms=[method, *given(reference=reference).values()])
    factors = []
    for text in factor:
        name, equals, values = text.partition("=")
        if equals and not all(values.split(",")):
            raise ValueError(f"--factor must be NAME or NAME=VALUE,VALUE, got {text!r}")
        listed = [catalogue.parse_value(value) for value in values.split(",")] if values else []
        factors.append((name, listed))
        for value in listed if name == "strategy" else []:
            catalogue.check_strategy(str(value))
    from ..experiments import parse_arm, sweep_arms

    base = parse_arm(method)
    arms = [base]
    for name, listed in factors:
        arms += sweep_arms(name, listed, base)
    run_grid(grid, arms, method if reference is None else reference)


def run_grid(request: GridRequest, arms: "list[Arm]", reference: str) -> None:
    """Train a grid and print the comparison of its arms, or only list its points.

    It also raises the errors of `experiments.Grid`, `experiments.parse_arm` and `experiments.run_grid`.

    Parameters
    ----------
    request : GridRequest
        The options of the command line.
    arms : list of Arm
    reference : str
        The arm that the others are compared with. If the grid does not have it, a note says so on stderr.

    Raises
    ------
    FloatingPointError
        If points failed with a non-finite loss. The comparison of the finished points is printed first.
    """
    from .. import experiments

    grid = experiments.Grid(**request.settings, arms=arms)
    reference_arm = experiments.parse_arm(reference)
    reference_arm.build(grid.recipe)
    reference_arm = reference_arm.without_defaults(grid.recipe, grid.loaded)
    if reference_arm not in grid.arms:
        available = ", ".join(map(str, grid.arms))
        print(f"note: --reference {reference} is not of this grid, no differences are shown; it has {available}",
              file=sys.stderr)  # fmt: skip
    if request.dry_run:
        points = experiments.my_points(grid, request.shard, request.jobs)
        missing = [point for point in points if not experiments.is_finished(point)]
        print("\n".join(f"{'to train' if point in missing else 'finished'}  {point}" for point in points))
        needed = experiments.duration(experiments.projected_seconds(grid, missing, request.jobs))
        print(f"{counted(len(points), 'point')}, {len(missing)} to train, projected: {needed}")
        return
    options: dict[str, Any] = dict(jobs=request.jobs, shard=request.shard, progress=request.jobs == 1)
    failed = None
    try:
        table = experiments.run_grid(grid, **options, say=partial(print, flush=True))
    except FloatingPointError as error:
        failed, table = error, experiments.results(grid)
    if len(table):
        print_comparison(experiments.comparison(table, str(reference_arm)), reference)
    if failed:
        raise failed


def print_comparison(compared: "pd.DataFrame", reference: str) -> None:
    """Print the comparison of arms.

    Parameters
    ----------
    compared : DataFrame
        The table of `experiments.comparison`. Each row is one line.
    reference : str
        The arm that the others are compared with.
    """
    print(f"\ntop-1 accuracy in percent; 95 % intervals; difference to {reference}, paired by seed:")
    print_table([tuple(compared.columns), *(tuple(map(cell_text, row)) for row in compared.itertuples(index=False))])
