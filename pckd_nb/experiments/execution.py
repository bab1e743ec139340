"""Train a grid: on this machine, on a cluster, or in shards on several machines that do not communicate."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import pandas as pd

from .. import files, ranks
from ..deprecation import renamed_arguments
from ..html import counted
from ..launcher import check_cluster
from ..validation import Count, check
from .cluster import train_on_cluster
from .engines import Outcome, assign_gpus, train_in_processes, train_in_turn
from .grid import RESULTS, Grid, Point, is_finished
from .projection import estimate_seconds, format_duration, name_stages, training_flops
from .tables import results

MAX_SHARDS = 10_000
MAX_DELAY = 60  # seconds until this machine sees a run that another machine has finished
NOT_VISIBLE = "a worker has trained it, but this machine does not see the run: all machines must share this folder"


class FailedRunsError(RuntimeError):
    """Some runs of a grid failed. All others are trained. The message names the first failed run and its error."""


@renamed_arguments(say="print_fn")
def run_grid(
    grid: Grid,
    *,
    jobs: int = 1,
    shard: tuple[int, int] = (1, 1),
    scheduler: str | None = None,
    slurm: str | None = None,
    progress: bool = True,
    print_fn: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Train the unfinished points of a grid, and return its table of results.

    The table is also written to OUT/results.csv. An error of a point does not stop the others.

    Parameters
    ----------
    grid : Grid
    jobs : int
        Points trained at the same time, each in its own process with an equal share of the CPU cores, and on one GPU if
        there are any. With `slurm`, the number of SLURM jobs.
    shard : (int, int)
        (i, n) trains only the i-th of n parts of the grid. All parts have about the same work. Useful for job arrays.
    scheduler : str, optional
        Address of a Dask scheduler, such as "node1:8786". Each of its workers trains one point at a time.
    slurm : str, optional
        Options of SLURM jobs that train the points, such as "partition=gpu,gpus=1,cores=8,memory=32GB". Each job trains
        one point at a time.
    progress : bool
        Whether to show a progress bar. There is none if several points are trained at the same time.
    print_fn : callable
        Called with every line of output: the number of runs, the estimated time, one line per trained run, and a line
        about runs that are not finished.

    Returns
    -------
    DataFrame
        The table of `results`.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C. Everything trained so far is on disk.
    FailedRunsError
        If points failed, for example with a non-finite loss. It is raised after all other points are trained.
    ValueError
        If an option is not valid or excludes another one, if teachers, students and data set do not fit together, if a
        finished run has other settings than the grid, or if a launcher such as torchrun has started several processes.
    TypeError
        If an option has the wrong type.
    ConnectionError
        If there is no Dask scheduler at the address, or if it ends.
    """
    # torchrun and srun start several processes. Each of them would train all points, or would use the other processes
    # as ranks of its own training.
    if ranks.launched_processes() != (1, 1):
        raise ValueError(
            "a grid is trained from one process: start it without torchrun or srun; jobs=… or shard=… train several "
            "runs at the same time"
        )
    check(Count, jobs=jobs)
    check_cluster(scheduler, slurm, jobs, shard)
    own_points, points = shard_points(grid, shard), grid.points()
    finished_points: list[Point] = []
    missing: list[Point] = []
    for point in own_points:
        (finished_points if is_finished(point) else missing).append(point)
    prefix = f"shard {shard[0]} of {shard[1]}: " if shard[1] > 1 else ""
    runs_text = counted(len(own_points), "run")
    print_fn(f"{prefix}{runs_text}, {len(finished_points)} finished, {len(missing)} to train")
    for point in finished_points:
        with suppress(BlockingIOError):  # another command checks the same run at this moment
            grid.train(point)  # only checks that the finished run has the settings of the grid, before training starts
    grid.check_pairs(missing)
    outcomes: Iterator[Outcome] = iter(())
    on_cluster = (scheduler, slurm) != (None, None)
    if missing and on_cluster:
        outcomes = train_on_cluster(grid, missing, scheduler, slurm, jobs, print_fn)
    elif missing:
        outcomes = train_here(grid, missing, jobs, progress, print_fn)
    failed: list[Outcome] = []
    trained: list[Outcome] = []
    try:
        for number, outcome in enumerate(outcomes, 1):
            result = outcome.failure or f"{outcome.accuracy:.2f} %, {outcome.seconds:.0f} s"
            print_fn(f"[{number}/{len(missing)}] {outcome.point}: {result}")
            (failed if outcome.failure else trained).append(outcome)
    except KeyboardInterrupt:
        print_fn("interrupted: the same command continues this grid")
        raise
    if on_cluster:
        for point in wait_until_visible([outcome.point for outcome in trained]):
            failed.append(Outcome(point, float("nan"), 0, NOT_VISIBLE))
            print_fn(f"{point}: {NOT_VISIBLE}")
    with files.locked(grid.out, MAX_DELAY):  # another shard may end at the same time
        table = results(grid)
        files.write(grid.out / RESULTS, lambda temporary: table.to_csv(temporary, index=False))
    if unfinished := sum(not is_finished(point) for point in points):
        others = unfinished - len(failed)
        reasons = [f"{others} in other shards"] if others else []
        reasons += [f"{len(failed)} with the errors above"] if failed else []
        print_fn(f"not finished in this grid: {counted(unfinished, 'run')}, {', '.join(reasons)}")
    if failed:
        first = f"{failed[0].point}: {failed[0].failure}"
        raise FailedRunsError(
            f"{len(failed)} of {runs_text} failed, all others{' of this shard' if prefix else ''} were trained; "
            f"first error: {first}"
        )
    return table


def train_here(
    grid: Grid, points: Sequence[Point], jobs: int, progress: bool, print_fn: Callable[[str], None]
) -> Iterator[Outcome]:
    """Train points on this machine.

    Parameters
    ----------
    grid : Grid
    points : sequence of Point
    jobs, progress, print_fn
        As in `run_grid`.

    Returns
    -------
    iterator of Outcome
    """
    jobs = min(jobs, len(points))
    duration = format_duration(estimate_seconds(grid, points, jobs))
    print_fn(f"estimated time: {duration}{name_stages([point.arm for point in points], grid.recipe)}")
    if 0 < (gpus := len(set(assign_gpus(grid, jobs)))) < jobs:
        print_fn(f"{jobs} jobs share {counted(gpus, 'GPU')}: every run uses one of them")
    return train_in_processes(grid, points, jobs) if jobs > 1 else train_in_turn(grid, points, progress)


def wait_until_visible(points: Sequence[Point]) -> list[Point]:
    """Wait until this machine sees finished runs of other machines. A network file system can take some seconds.

    Parameters
    ----------
    points : sequence of Point

    Returns
    -------
    list of Point
        Those that are still missing after `MAX_DELAY` seconds.
    """
    end = time.monotonic() + MAX_DELAY
    missing = [point for point in points if not is_finished(point)]
    while missing and time.monotonic() < end:
        time.sleep(1)
        missing = [point for point in missing if not is_finished(point)]
    return missing


def shard_points(grid: Grid, shard: tuple[int, int]) -> list[Point]:
    """Return the points of one shard of a grid.

    Parameters
    ----------
    grid : Grid
    shard : (int, int)
        (i, n) is the i-th of n parts, 1 ≤ i ≤ n ≤ 10,000.

    Returns
    -------
    list of Point

    Raises
    ------
    ValueError
        If `shard` is out of range.
    TypeError
        If `shard` is not a pair of whole numbers.
    """
    if not isinstance(shard, tuple) or len(shard) != 2:
        raise TypeError(f"shard must be a pair (i, n), got {type(shard).__name__}")
    number, count = shard
    for value in shard:
        check(int, shard=value)
    if not 1 <= number <= count <= MAX_SHARDS:
        raise ValueError(f"shard must be i/n with 1 ≤ i ≤ n ≤ {MAX_SHARDS:,}, got {number}/{count}")
    return split_into_shards(grid, count)[number - 1]


def split_into_shards(grid: Grid, count: int) -> list[list[Point]]:
    """Split the points of a grid into shards with about the same work.

    The points with the most work are assigned first, each to the shard with the least work so far. The result depends
    only on the grid, so jobs on several machines need not communicate.

    Parameters
    ----------
    grid : Grid
    count : int
        Number of shards.

    Returns
    -------
    list of list of Point
        One list per shard. Its points are in the order of the grid.
    """
    points = grid.points()
    kinds = {(point.teacher, point.student, point.arm): point for point in points if count > 1}
    flops = {kind: training_flops(grid, point) for kind, point in kinds.items()}  # the same for all seeds
    work = [flops.get((point.teacher, point.student, point.arm), 1) for point in points]
    shards: list[list[int]] = [[] for _ in range(count)]
    load = [0] * count
    # points with equal work are sorted by arm, so that the seeds of an arm go to different shards
    for index in sorted(range(len(points)), key=lambda index: (-work[index], str(points[index].arm))):
        lightest = load.index(min(load))
        shards[lightest].append(index)
        load[lightest] += work[index]
    return [[points[index] for index in sorted(shard)] for shard in shards]
