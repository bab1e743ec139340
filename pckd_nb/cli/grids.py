"""Commands that train and compare a grid of runs.

An arm is a method with its settings. A point is one run: an arm with one seed and one teacher-student pair.
"""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from .. import catalogue
from ..html import counted
from .app import command
from .console import cell_text, print_table
from .options import GridOptions, GridRequest, Reference, check_names, drop_none, in_method

if TYPE_CHECKING:
    import pandas as pd

    from ..experiments import Arm


@command()
def compare(
    grid: GridOptions,
    methods: Annotated[
        str | None,
        in_method(
            help="Methods to compare, comma-separated. Settings can follow, as in pckd-strategy=uniform. Default: "
            "supervised,kd,pckd, or with --chosen none."
        ),
    ] = None,
    chosen: Annotated[
        Path | None,
        in_method(
            help="Folder of a finished search: also compare the settings that it chose. Data, teacher, student and "
            "recipe must be those of the search."
        ),
    ] = None,
    with_defaults: Annotated[
        bool, in_method("--with-defaults", help="With --chosen: also compare the default settings of each method.")
    ] = False,
    reference: Reference = "kd",
) -> None:
    """Train and compare several methods, over seeds and teacher-student pairs.

    Finished runs are kept, and interrupted ones are resumed.

    With --chosen, the method of --reference has its chosen settings, unless its default settings are compared, too.
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
        check_same_training(chosen, Grid(**grid.settings, arms=arms))
    run_grid(grid, arms, reference)


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
    FloatingPointError
        If points failed with a non-finite loss. The finished points are compared first.
    """
    from .. import experiments

    grid = experiments.Grid(**request.settings, arms=arms)
    reference_arm = experiments.parse_arm(reference)
    reference_arm.build(grid.recipe)
    reference_arm = reference_arm.drop_defaults(grid.recipe, grid.loaded, grid.network_names)
    if reference_arm not in grid.arms:
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
    options: dict[str, Any] = dict(jobs=request.jobs, shard=request.shard, progress=request.jobs == 1)
    failed = None
    try:
        table = experiments.run_grid(grid, **options, print_fn=partial(print, flush=True))
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
        The table of `experiments.comparison`.
    reference : str
        The arm that all others are compared with.
    """
    print("\nmean: top-1 accuracy in percent over seeds, with standard deviation sd and 95 % interval from low to high")
    print(f"difference: mean difference to {reference} with the same seeds, with 95 % interval from d_low to d_high")
    print("pairs: number of seeds that both methods have")
    print_table([tuple(compared.columns), *(tuple(map(cell_text, row)) for row in compared.itertuples(index=False))])
