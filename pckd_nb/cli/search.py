"""The command that searches for settings."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..html import counted
from .app import command
from .console import cell_text, print_table
from .options import (
    DataOptions,
    MachineOptions,
    RecipeOptions,
    Val,
    check_names,
    in_grid,
    in_method,
    in_networks,
)

if TYPE_CHECKING:
    import pandas as pd

    from ..experiments import Search


def show_search(folder: Path | None) -> None:
    """Print what a search has chosen so far and exit, if the option --show is given.

    Parameters
    ----------
    folder : Path, optional
        Folder of the search.

    Raises
    ------
    typer.Exit
        If the table was printed.
    """
    if folder is not None:
        from ..experiments import search_summary

        print_chosen(search_summary(folder))
        raise typer.Exit


@command()
def search(
    teacher: Annotated[Path, in_networks(help="Run folder of the teacher.")],
    student: Annotated[str, in_networks(help="Network to train.")],
    out: Annotated[
        Path,
        in_grid(
            help="Folder with OUT/TEACHER-STUDENT/ARM/trialN for every trial, and OUT/chosen.json for the result. An "
            "arm is a method with its settings."
        ),
    ],
    data: DataOptions,
    recipe: RecipeOptions,
    machine: MachineOptions,
    methods: Annotated[
        str,
        in_method(
            help="Methods to search settings for, comma-separated. A setting that follows, as in pckd-views=1, is the "
            "same in all trials."
        ),
    ] = "kd,pckd",
    space: Annotated[
        list[str] | None,
        in_method(
            help="A setting to search, and its values. METHOD:SETTING=LOW..HIGH is a range. With :log at the end, it "
            "has a logarithmic scale. METHOD:SETTING=A,B,C is a list of values. Repeat the option for several "
            "settings. Default: the loss weights and the temperature of every method. --dry-run lists them."
        ),
    ] = None,
    trials: Annotated[int, in_grid(help="Number of trials per method. The first one has the default settings.")] = 20,
    val: Val = 0.1,
    seed: Annotated[
        int, in_grid(min=0, max=2**31 - 1, help="Seed of all trainings, and of the choice of settings.")
    ] = 0,
    jobs: Annotated[int, in_grid(help="Number of trials to train at the same time. They share cores and GPUs.")] = 1,
    dry_run: Annotated[
        bool, in_grid("--dry-run", help="Only list what is searched, and estimate how long it takes.")
    ] = False,
    show: Annotated[
        Path | None,
        in_grid(
            is_eager=True,
            callback=show_search,
            help="Only show what the search in this folder has chosen so far. Needs no other option.",
        ),
    ] = None,
) -> None:
    """Search for good settings of several methods, on validation images only.

    Every method gets the same number of trials. A trial is one training. Test images are not used. Then train with the
    chosen settings on all training images, and compare on the test images: pckd-nb compare --chosen OUT.

    Finished trials are kept, and interrupted ones are resumed. Several machines can run the same command at the same
    time, with the same OUT.
    """
    check_names(networks=[student], arms=methods.split(","))
    from .. import experiments
    from ..validation import Count, check

    check(Count, jobs=jobs)
    name, data_options = data
    found = experiments.Search(
        name,
        teacher,
        student,
        [experiments.parse_arm(text) for text in methods.split(",")],
        out,
        trials=trials,
        val=val,
        seed=seed,
        space=list(space or ()),
        recipe=recipe,
        data_options=data_options,
        options=machine.options,
        teacher_cache=machine.cache_in(out),
    )
    if dry_run:
        print_space(found, jobs)
        return
    summary = experiments.run_search(found, jobs=jobs, progress=jobs == 1, print_fn=partial(print, flush=True))
    print()
    print_chosen(summary)


def print_space(search: "Search", jobs: int) -> None:
    """Print which settings a search varies, and estimate how long it takes.

    Parameters
    ----------
    search : Search
    jobs : int
        Number of trials at the same time.
    """
    from ..experiments import estimate_seconds, format_duration
    from ..experiments.projection import name_stages
    from ..experiments.space import number_text

    rows = [
        (method, setting, values, number_text(search.defaults[method].get(setting, "default")))
        for method, space in search.record().space.items()
        for setting, values in space.items()
    ]
    print_table([("method", "setting", "values", "first trial"), *rows])
    points = search.points()
    duration = format_duration(estimate_seconds(search.grid, points, jobs, search.trained_points()))
    duration += name_stages(search.arms, search.grid.recipe)
    count = f"{counted(len(search.arms), 'method')} with {counted(search.trials, 'trial')} each"
    print(f"{count}, {len(points)} to train, estimated time: {duration}")


def print_chosen(summary: "pd.DataFrame") -> None:
    """Print what a search has chosen.

    Parameters
    ----------
    summary : DataFrame
        The table of `experiments.search_summary`.
    """
    print("default, best: top-1 accuracy on the validation images in percent, with default and with chosen settings")
    columns = [name for name in summary.columns if name != "cross_entropy"]
    print_table([tuple(columns), *(tuple(map(cell_text, row)) for row in summary[columns].itertuples(index=False))])
