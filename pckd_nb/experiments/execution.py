"""Train the unfinished points of a grid: one after the other, in several processes, or in shards."""

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
from ..html import counted
from ..messages import one_line
from ..validation import Count, check
from .grid import RESULTS, Grid, Point, is_finished
from .projection import OF_ONE_POINT, duration, operations, projected_seconds
from .tables import results

MAX_SHARDS = 10_000


def run_grid(
    grid: Grid,
    *,
    jobs: int = 1,
    shard: tuple[int, int] = (1, 1),
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Train the unfinished points of a grid, and return its table of results.

    The table is also written to OUT/results.csv. The function also raises the errors of `distill`.

    Parameters
    ----------
    grid : Grid
    jobs : int
        Points trained at the same time, each in its own process with an equal share of the CPU cores.
    shard : (int, int)
        (i, n) trains the i-th of n parts with about the same work, for job arrays.
    progress : bool
        Whether to show a progress bar. Points in several processes have none.
    say : callable
        Called with lines of text: the number of points, the projected time, one line per trained point, and a line
        about points that are not finished.

    Returns
    -------
    DataFrame
        The table of `results`.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C. Everything trained so far is on disk.
    RuntimeError
        If a process was killed. Also if points failed, for example for lack of memory. It is then raised after all
        other points were trained.
    FloatingPointError
        If points failed and every one of them had a non-finite loss. It is raised after all other points were trained.
    ValueError
        If `jobs` or `shard` is not valid, or if a launcher has started several processes.
    TypeError
        If `jobs` or `shard` has the wrong type.
    """
    # each process would train the same points, or treat the others as its own ranks
    if ranks.launched_processes() != (1, 1):
        raise ValueError(
            "a grid is run by one process: start it without torchrun or srun, with jobs=…, or shard=… in jobs"
        )
    shard_points, points = my_points(grid, shard, jobs), grid.points()
    missing = [point for point in shard_points if not is_finished(point)]
    prefix = f"shard {shard[0]} of {shard[1]}: " if shard[1] > 1 else ""
    finished = len(shard_points) - len(missing)
    say(f"{prefix}{counted(len(shard_points), 'point')}, {finished} finished, {len(missing)} to train")
    for point in shard_points:
        if point not in missing:
            grid.train(point)  # trains nothing: compares the run's settings with the grid's, before long work starts
    if missing:
        say(f"projected: {duration(projected_seconds(grid, missing, min(jobs, len(missing))))}")
    train = (
        _in_processes(grid, missing, jobs) if jobs > 1 and len(missing) > 1 else _one_by_one(grid, missing, progress)
    )
    failed = []
    for number, done in enumerate(train, 1):
        outcome = done.failure or f"{done.accuracy:.2f} %, {done.seconds:.0f} s"
        say(f"[{number}/{len(missing)}] {done.point}: {outcome}")
        failed += [done] if done.failure else []
    table = results(grid)
    if len(table) < len(points):
        others = "they belong to other shards" if len(points) - len(table) > len(failed) else "see above"
        say(f"not finished in this grid: {counted(len(points) - len(table), 'point')}; {others}")
    files.write(grid.out / RESULTS, lambda temporary: table.to_csv(temporary, index=False))
    if failed:
        first = f"{failed[0].point}: {failed[0].failure}"
        kind = FloatingPointError if all(done.not_finite for done in failed) else RuntimeError
        raise kind(f"{len(failed)} of {len(points)} points went wrong, all others were trained; {first}")
    return table


def my_points(grid: Grid, shard: tuple[int, int], jobs: int) -> list[Point]:
    """Return the points of one shard of a grid.

    Parameters
    ----------
    grid : Grid
    shard : (int, int)
        (i, n) is the i-th of n parts, 1 ≤ i ≤ n ≤ 10,000.
    jobs : int
        Points trained at the same time. It is only checked here.

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
    return dealt(grid, count)[number - 1]


def dealt(grid: Grid, count: int) -> list[list[Point]]:
    """Return the points of a grid in parts with about the same work.

    The points with most work are assigned first, each to the part with the least work so far. Among points with the
    same work, the seeds of an arm follow each other. The result depends only on the grid, so jobs need not communicate.

    Parameters
    ----------
    grid : Grid
    count : int
        Number of parts.

    Returns
    -------
    list of list of Point
        Every part keeps the order of the grid.
    """
    points = grid.points()
    work = [operations(grid, point) if count > 1 else 1 for point in points]
    parts: list[list[int]] = [[] for _ in range(count)]
    load = [0] * count
    for index in sorted(range(len(points)), key=lambda index: (-work[index], str(points[index].arm))):
        lightest = load.index(min(load))
        parts[lightest].append(index)
        load[lightest] += work[index]
    return [[points[index] for index in sorted(part)] for part in parts]


class Done(NamedTuple):
    """The outcome of training one point.

    Parameters
    ----------
    point : Point
    accuracy : float
        Top-1 accuracy in percent. NaN if the point failed.
    seconds : float
        Seconds that the training took.
    failure : str
        Why the point failed. Empty if it did not.
    not_finite : bool
        Whether it failed with a non-finite loss.
    """

    point: Point
    accuracy: float
    seconds: float
    failure: str = ""
    not_finite: bool = False


def _train(grid: Grid, point: Point, progress: bool = False) -> Done | None:
    """Train a point and return its outcome, or None if it was interrupted.

    A non-finite loss or a lack of memory is returned as an outcome, so that the other points are still trained. A
    ValueError is raised again with the name of the point.
    """
    started = time.monotonic()
    try:
        run = grid.train(point, progress)
    except OF_ONE_POINT as error:
        seconds, reason = time.monotonic() - started, one_line(error)
        return Done(point, float("nan"), seconds, reason, isinstance(error, FloatingPointError))
    except ValueError as error:
        raise ValueError(f"{point}: {error}") from error
    return Done(point, run.accuracy, time.monotonic() - started) if run.finished else None


def _one_by_one(grid: Grid, points: Sequence[Point], progress: bool) -> Iterator[Done]:
    for point in points:
        if (done := _train(grid, point, progress)) is None:
            raise KeyboardInterrupt
        yield done


def _in_processes(grid: Grid, points: Sequence[Point], jobs: int) -> Iterator[Done]:
    """Train points in `jobs` processes, and yield their outcomes.

    Ctrl-C reaches only this process. It is passed on once to the working processes, which finish their step and save.
    An executor of the standard library can hang in this case.
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
                process = context.Process(target=_work, args=(worker_connection, grid, threads))
                process.start()
                worker_connection.close()
                connection.send(waiting.popleft())
                working[connection] = process
        while working:
            for connection in cast(list[Connection], wait(list(working))):
                yield _received(connection)
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


def _received(connection: Connection) -> Done:
    """Return the outcome that a process sent.

    Raises KeyboardInterrupt if the process was interrupted, RuntimeError if it was killed, and any error it sent.
    """
    try:
        message: Done | Exception | None = connection.recv()
    except EOFError as error:
        raise RuntimeError("a process of this grid was killed; the same command goes on from here") from error
    if message is None:
        raise KeyboardInterrupt
    if isinstance(message, Exception):
        raise message
    return message


def _work(connection: Connection, grid: Grid, threads: int) -> None:
    """Train the points that arrive over `connection`, until it is closed. This is the main function of a process."""
    torch.set_num_threads(threads)
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # the terminal's Ctrl-C goes to the parent, which passes it on
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        while True:
            point = connection.recv()
            message: Done | Exception | None
            try:
                message = _train(grid, point)
            except Exception as error:
                message = error
            connection.send(message)


def _end_with_parent() -> None:
    """End this process when its parent ends, because a new parent may train in the same folders."""
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set environment variables within the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
