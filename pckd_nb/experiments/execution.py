"""Train the points of a grid: one after the other, in several processes, or in shards on several machines."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import NamedTuple, cast

import pandas as pd
import torch

from .. import files, ranks
from ..deprecation import renamed_arguments
from ..html import counted
from ..messages import one_line
from ..validation import Count, check
from .grid import RESULTS, Grid, Point, is_finished
from .projection import POINT_ERRORS, estimate_seconds, format_duration, training_flops
from .tables import results

MAX_SHARDS = 10_000


@renamed_arguments(say="print_fn")
def run_grid(
    grid: Grid,
    *,
    jobs: int = 1,
    shard: tuple[int, int] = (1, 1),
    progress: bool = True,
    print_fn: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Train the unfinished points of a grid, and return its table of results.

    The table is also written to OUT/results.csv. Errors of `distill` are passed on.

    Parameters
    ----------
    grid : Grid
    jobs : int
        Points trained at the same time, each in its own process with an equal share of the CPU cores.
    shard : (int, int)
        (i, n) trains only the i-th of n parts of the grid. All parts have about the same work. Useful for job arrays.
    progress : bool
        Whether to show a progress bar. There is none with several jobs.
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
    RuntimeError
        If a process was killed. Also if points failed, for example for lack of memory. In that case it is raised after
        all other points are trained.
    FloatingPointError
        If points failed and each of them had a non-finite loss. It is raised after all other points are trained.
    ValueError
        If `jobs` or `shard` is not valid, or if a launcher such as torchrun has started several processes.
    TypeError
        If `jobs` or `shard` has the wrong type.
    """
    # torchrun and srun start several processes. Each of them would train all points, or would use the other processes
    # as ranks of its own training.
    if ranks.launched_processes() != (1, 1):
        raise ValueError(
            "a grid is trained from one process: start it without torchrun or srun; jobs=… or shard=… train several "
            "runs at the same time"
        )
    own_points, points = shard_points(grid, shard, jobs), grid.points()
    missing = [point for point in own_points if not is_finished(point)]
    prefix = f"shard {shard[0]} of {shard[1]}: " if shard[1] > 1 else ""
    finished = len(own_points) - len(missing)
    print_fn(f"{prefix}{counted(len(own_points), 'run')}, {finished} finished, {len(missing)} to train")
    for point in own_points:
        if point not in missing:
            grid.train(point)  # only checks that the finished run has the settings of the grid, before training starts
    if missing:
        print_fn(f"estimated time: {format_duration(estimate_seconds(grid, missing, min(jobs, len(missing))))}")
    parallel = jobs > 1 and len(missing) > 1
    outcomes = _train_in_processes(grid, missing, jobs) if parallel else _train_in_turn(grid, missing, progress)
    failed = []
    for number, outcome in enumerate(outcomes, 1):
        result = outcome.failure or f"{outcome.accuracy:.2f} %, {outcome.seconds:.0f} s"
        print_fn(f"[{number}/{len(missing)}] {outcome.point}: {result}")
        failed += [outcome] if outcome.failure else []
    table = results(grid)
    if len(table) < len(points):
        unfinished = len(points) - len(table)
        reason = "they belong to other shards" if unfinished > len(failed) else "see the errors above"
        print_fn(f"not finished in this grid: {counted(unfinished, 'run')}; {reason}")
    files.write(grid.out / RESULTS, lambda temporary: table.to_csv(temporary, index=False))
    if failed:
        first = f"{failed[0].point}: {failed[0].failure}"
        kind = FloatingPointError if all(outcome.not_finite for outcome in failed) else RuntimeError
        raise kind(f"{len(failed)} of {len(points)} runs failed, all others were trained; first error: {first}")
    return table


def shard_points(grid: Grid, shard: tuple[int, int], jobs: int) -> list[Point]:
    """Return the points of one shard of a grid.

    Parameters
    ----------
    grid : Grid
    shard : (int, int)
        (i, n) is the i-th of n parts, 1 ≤ i ≤ n ≤ 10,000.
    jobs : int
        Points trained at the same time. This function only checks the value.

    Returns
    -------
    list of Point

    Raises
    ------
    ValueError
        If `shard` or `jobs` is out of range.
    TypeError
        If `shard` is not a pair of whole numbers, or `jobs` not a whole number.
    """
    if not isinstance(shard, tuple) or len(shard) != 2:
        raise TypeError(f"shard must be a pair (i, n), got {type(shard).__name__}")
    number, count = shard
    check(Count, jobs=jobs)
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
    work = [training_flops(grid, point) if count > 1 else 1 for point in points]
    shards: list[list[int]] = [[] for _ in range(count)]
    load = [0] * count
    # points with equal work are sorted by arm, so that the seeds of an arm go to different shards
    for index in sorted(range(len(points)), key=lambda index: (-work[index], str(points[index].arm))):
        lightest = load.index(min(load))
        shards[lightest].append(index)
        load[lightest] += work[index]
    return [[points[index] for index in sorted(shard)] for shard in shards]


class Outcome(NamedTuple):
    """What happened in the training of one point.

    Parameters
    ----------
    point : Point
    accuracy : float
        Top-1 accuracy in percent. NaN if the point failed.
    seconds : float
        Seconds that the training took.
    failure : str
        The error message. Empty if the training did not fail.
    not_finite : bool
        Whether the training failed with a non-finite loss.
    """

    point: Point
    accuracy: float
    seconds: float
    failure: str = ""
    not_finite: bool = False


def _train(grid: Grid, point: Point, progress: bool = False) -> Outcome | None:
    """Train a point, and return the outcome, or None if it was interrupted.

    A non-finite loss or a lack of memory is an outcome, so that the other points are still trained.
    """
    started = time.monotonic()
    try:
        run = grid.train(point, progress)
    except POINT_ERRORS as error:
        seconds, reason = time.monotonic() - started, one_line(error)
        return Outcome(point, float("nan"), seconds, reason, isinstance(error, FloatingPointError))
    except ValueError as error:
        raise ValueError(f"{point}: {error}") from error
    return Outcome(point, run.accuracy, time.monotonic() - started) if run.finished else None


def _train_in_turn(grid: Grid, points: Sequence[Point], progress: bool) -> Iterator[Outcome]:
    for point in points:
        if (outcome := _train(grid, point, progress)) is None:
            raise KeyboardInterrupt
        yield outcome


def _train_in_processes(grid: Grid, points: Sequence[Point], jobs: int) -> Iterator[Outcome]:
    """Train points in `jobs` processes, and yield their outcomes.

    After Ctrl-C, the worker processes finish their step and save. An executor of the standard library could hang here.
    """
    jobs = min(jobs, len(points))
    threads = max(1, torch.get_num_threads() // jobs)
    context = multiprocessing.get_context("spawn")
    waiting = deque(points)
    working: dict[Connection, SpawnProcess] = {}
    idle: list[tuple[Connection, SpawnProcess]] = []
    try:
        with _environment(OMP_NUM_THREADS=str(threads)):  # read at the start of a process
            for _ in range(jobs):
                connection, worker_connection = context.Pipe()
                process = context.Process(target=_worker_main, args=(worker_connection, grid, threads))
                process.start()
                worker_connection.close()
                connection.send(waiting.popleft())
                working[connection] = process
        while working:
            for connection in cast(list[Connection], wait(list(working))):
                yield _receive(connection)
                if waiting:
                    connection.send(waiting.popleft())
                else:
                    idle.append((connection, working.pop(connection)))
    finally:
        for process in working.values():
            if process.pid and process.is_alive():
                os.kill(process.pid, signal.SIGINT)
        for connection, process in [*working.items(), *idle]:
            connection.close()  # tells the process that there is no more work
            process.join()


def _receive(connection: Connection) -> Outcome:
    """Return the outcome that a worker process sent, or raise its error."""
    try:
        message: Outcome | Exception | None = connection.recv()
    except EOFError as error:
        raise RuntimeError("a process of this grid was killed: start the same command again to continue") from error
    if message is None:
        raise KeyboardInterrupt
    if isinstance(message, Exception):
        raise message
    return message


def _worker_main(connection: Connection, grid: Grid, threads: int) -> None:
    """Train the points that arrive over `connection`, until it is closed."""
    torch.set_num_threads(threads)
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C in the terminal then reaches only the parent process, which passes it on
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        while True:
            point = connection.recv()
            message: Outcome | Exception | None
            try:
                message = _train(grid, point)
            except Exception as error:
                message = error
            connection.send(message)


def _end_with_parent() -> None:
    """End this process when its parent ends: another command may already train in the same folders."""
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set environment variables inside the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
