"""Projected training time of a grid, from finished points of the same kind or from a probe of a few steps."""

import dataclasses
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median

import numpy as np

from .. import runs, training, views
from ..models import create_model, flops_of
from ..recipes import get_recipe
from .arms import settings_of
from .grid import Grid, Point, is_finished

PROBE_STEPS = 4
OF_ONE_POINT = FloatingPointError, RuntimeError, MemoryError  # errors of one point; the other points still train


def projected_seconds(grid: Grid, points: Sequence[Point], jobs: int = 1) -> float:
    """Return how long the training of `points` should take.

    The projection is seconds per step times the number of steps. Seconds per step are the median of the grid's finished
    points of the same kind. If there are none, a probe of a few steps is timed. A probe does not include the tests
    after every epoch, the time that a teacher cache saves, or the slowdown by parallel jobs.

    Parameters
    ----------
    grid : Grid
    points : sequence of Point
        The points to train.
    jobs : int
        Points trained at the same time.

    Returns
    -------
    float
        Seconds.
    """
    measured: dict[tuple, list[float]] = {}
    for point in grid.points():
        if is_finished(point):
            kind, steps = work_of(grid, point)
            measured.setdefault(kind, []).append(runs.load_run(point.folder, tables_only=True).seconds / steps)
    total = 0.0
    for point in points:
        kind, steps = work_of(grid, point)
        if kind not in measured and (seconds := _seconds_a_step(grid, point)):
            measured[kind] = [seconds]
        total += median(measured.get(kind, [0])) * steps
    return total / jobs


def work_of(grid: Grid, point: Point) -> tuple[tuple[Path, str, str, int, int], int]:
    """Return what decides how long a step of a point takes, and the number of its steps.

    Parameters
    ----------
    grid : Grid
    point : Point

    Returns
    -------
    kind : tuple
        Run folder of the teacher, name of the student, name of the method, number of views and batch size. Points with
        equal kinds need the same time per step.
    steps : int
        Steps in all epochs.
    """
    method, recipe = point.arm.build(grid.recipe)
    view_count = settings_of(method, recipe, grid.loaded).get("views", {"value": method.views})["value"]
    kind = point.teacher, point.student, point.arm.method, view_count, recipe.batch_size
    return kind, views.steps_per_epoch(len(grid.loaded.train), recipe.batch_size) * recipe.epochs


def operations(grid: Grid, point: Point) -> int:
    """Return the number of floating point operations that the networks of a point need in the whole training.

    A row costs three forward passes of the student, which stand for forward and backward pass. A method that uses a
    teacher costs one forward pass of the teacher more. The savings of a teacher cache are not known in advance, and not
    subtracted.

    Parameters
    ----------
    grid : Grid
    point : Point

    Returns
    -------
    int
        Floating point operations. A multiplication and an addition count as two.
    """
    (*_, view_count, batch_size), steps = work_of(grid, point)
    networks = [point.student] * 3
    if point.arm.build(grid.recipe)[0].uses_teacher:
        networks.append(runs.read_settings(point.teacher)["model"]["name"])
    shape = grid.loaded.channels, *grid.loaded.size
    return steps * batch_size * view_count * sum(flops_of(name, len(grid.loaded.classes), shape) for name in networks)


def _seconds_a_step(grid: Grid, point: Point) -> float:
    """Return the seconds per step, measured after a warm-up epoch, or 0 if the probe fails (non-finite loss)."""
    method, recipe = point.arm.build(grid.recipe)
    data = grid.loaded
    images = min(PROBE_STEPS * recipe.batch_size, len(data.train))
    indices = np.arange(images), np.arange(min(recipe.batch_size, len(data.test)))
    small = dataclasses.replace(data, train=data.train.take(indices[0]), test=data.test.take(indices[1]))
    teacher = runs.load_run(point.teacher) if method.uses_teacher else None
    with warnings.catch_warnings(), suppress(*OF_ONE_POINT):
        warnings.simplefilter("ignore")  # the runs repeat these warnings, also about non-finite losses
        run = training.distill(
            create_model(point.student, data, seed=point.seed),
            teacher,
            small,
            method,
            get_recipe(recipe, epochs=2),
            progress=False,
            **{name: value for name, value in grid.options.items() if name in ("accelerator", "precision")},
        )
        return float(run.timing["seconds"].iloc[-1]) / views.steps_per_epoch(images, recipe.batch_size)
    return 0.0


def duration(seconds: float) -> str:
    """Return a duration as text, in the largest unit of which there are at least two.

    Parameters
    ----------
    seconds : float

    Returns
    -------
    str
        Such as "2.5 hours", "3.0 minutes" or "40 seconds".
    """
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
