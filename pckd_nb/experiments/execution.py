"""Training what is missing of a grid: one point after the other, in several processes, or in shards."""

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
from ..downloads import one_line
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
    """Train what is missing of a grid, and return `results` of it, also written to OUT/results.csv.

    jobs: points trained at a time, each in a process with its share of the cores. shard: (i, n), the i-th of n parts
    with about the same work, for the jobs of an array. say: gets a line about what is to come, with the projected time,
    and one a point. Raises KeyboardInterrupt after Ctrl-C, with all that was done on disk, RuntimeError where a
    process was killed or, when all others are trained, where points failed, for example for want of memory;
    FloatingPointError likewise, where all of these had a loss that is not finite; ValueError for impossible jobs or
    shards or several processes that a launcher started, and what `distill` raises.
    """
    if ranks.started() != (1, 1):  # each would train the same points, or take the others for ranks of its own
        raise ValueError(
            "a grid is run by one process: start it without torchrun or srun, with --jobs, or --shard in jobs"
        )
    mine, points = my_points(grid, shard, jobs), grid.points()
    left = [point for point in mine if not is_finished(point)]
    part = f"shard {shard[0]} of {shard[1]}: " if shard[1] > 1 else ""
    say(f"{part}{len(mine)} points, {len(mine) - len(left)} finished, {len(left)} to train")
    for point in mine:
        if point not in left:
            grid.train(point)  # only compares its settings with the grid's: before anything costs time
    if left:
        say(f"projected: {duration(projected_seconds(grid, left, min(jobs, len(left))))}")
    train = _in_processes(grid, left, jobs) if jobs > 1 and len(left) > 1 else _one_by_one(grid, left, progress)
    failed = []
    for number, done in enumerate(train, 1):
        how = done.failure or f"{done.accuracy:.2f} %, {done.seconds:.0f} s"
        say(f"[{number}/{len(left)}] {done.point}: {how}")
        failed += [done] if done.failure else []
    table = results(grid)
    if len(table) < len(points):
        others = "they belong to other shards" if len(points) - len(table) > len(failed) else "see above"
        say(f"{len(points) - len(table)} points of the grid are not finished: {others}")
    files.write(grid.out / RESULTS, lambda temporary: table.to_csv(temporary, index=False))
    if failed:
        first = f"{failed[0].point}: {failed[0].failure}"
        kind = FloatingPointError if all(done.not_finite for done in failed) else RuntimeError
        raise kind(f"{len(failed)} of {len(points)} points went wrong, all others were trained; {first}")
    return table


def my_points(grid: Grid, shard: tuple[int, int], jobs: int) -> list[Point]:
    """The points of the i-th of n parts, shard = (i, n). Raises ValueError or TypeError for shards and jobs that can't
    be."""
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
    """The points of a grid in `count` parts with about the same work: the longest first, each to the part that has the
    least so far, an arm's seeds one after the other. Nothing but the grid decides, so that jobs need not ask each
    other. A part keeps the grid's order."""
    points = grid.points()
    work = [operations(grid, point) if count > 1 else 1 for point in points]
    parts: list[list[int]] = [[] for _ in range(count)]
    load = [0] * count
    for place in sorted(range(len(points)), key=lambda place: (-work[place], str(points[place].arm))):
        least = load.index(min(load))
        parts[least].append(place)
        load[least] += work[place]
    return [[points[place] for place in sorted(part)] for part in parts]


class Done(NamedTuple):
    """A point, its accuracy in percent and the seconds it took; or why there is no accuracy."""

    point: Point
    accuracy: float
    seconds: float
    failure: str = ""
    not_finite: bool = False


def _train(grid: Grid, point: Point, progress: bool = False) -> Done | None:
    """None where it was interrupted. A loss that is not finite, or a lack of memory, is the point's own: others go on.
    Raises ValueError that names the point."""
    started = time.monotonic()
    try:
        run = grid.train(point, progress)
    except OF_ONE_POINT as error:
        seconds, what = time.monotonic() - started, one_line(error)
        return Done(point, float("nan"), seconds, what, isinstance(error, FloatingPointError))
    except ValueError as error:
        raise ValueError(f"{point}: {error}") from error
    return Done(point, run.accuracy, time.monotonic() - started) if run.finished else None


def _one_by_one(grid: Grid, points: Sequence[Point], progress: bool) -> Iterator[Done]:
    for point in points:
        if (done := _train(grid, point, progress)) is None:
            raise KeyboardInterrupt
        yield done


def _in_processes(grid: Grid, points: Sequence[Point], jobs: int) -> Iterator[Done]:
    """The same with `jobs` processes. Ctrl-C reaches this one alone, which passes it on once to those at work: they
    finish their step and save. (An executor of the standard library can hang at that.)"""
    jobs = min(jobs, len(points))
    threads = max(1, torch.get_num_threads() // jobs)
    context = multiprocessing.get_context("spawn")
    waiting = deque(points)
    working: dict[Connection, SpawnProcess] = {}
    idle: list[tuple[Connection, SpawnProcess]] = []
    try:
        with _environment(OMP_NUM_THREADS=str(threads)):  # read when a process starts
            for _ in range(jobs):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs, grid, threads))
                process.start()
                theirs.close()
                ours.send(waiting.popleft())
                working[ours] = process
        while working:
            for ours in cast(list[Connection], wait(list(working))):
                yield _received(ours)
                if waiting:
                    ours.send(waiting.popleft())
                else:
                    idle.append((ours, working.pop(ours)))
    finally:
        for process in working.values():
            if process.pid and process.is_alive():
                os.kill(process.pid, signal.SIGINT)
        for ours, process in [*working.items(), *idle]:
            ours.close()  # nothing more to do
            process.join()


def _received(connection: Connection) -> Done:
    """Raises KeyboardInterrupt where the process was interrupted, RuntimeError where it is gone, and what it raised."""
    try:
        said: Done | Exception | None = connection.recv()
    except EOFError as error:
        raise RuntimeError("a process of this grid was killed; the same command goes on from here") from error
    if said is None:
        raise KeyboardInterrupt
    if isinstance(said, Exception):
        raise said
    return said


def _work(connection: Connection, grid: Grid, threads: int) -> None:
    """A process: train the points that `connection` brings, until it is closed."""
    torch.set_num_threads(threads)
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # the terminal's Ctrl-C goes to the parent, which passes it on
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        while True:
            point = connection.recv()
            said: Done | Exception | None
            try:
                said = _train(grid, point)
            except Exception as error:
                said = error
            connection.send(said)


def _end_with_parent() -> None:
    """A parent that was killed leaves nobody who wants the work, and another one may start on the same folders."""
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
