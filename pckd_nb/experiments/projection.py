"""How long the points of a grid take: from finished points of the same kind, or a probe of a few steps."""

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
OF_ONE_POINT = FloatingPointError, RuntimeError, MemoryError  # errors that leave the other points of a grid alone


def projected_seconds(grid: Grid, points: Sequence[Point], jobs: int = 1) -> float:
    """How long training `points` should take: seconds a step of the grid's finished points of the same kind (their
    median), else of a probe of a few steps, times the steps there are. Tests after every epoch are not counted; of a
    probe, neither is what a teacher cache saves and what jobs cost each other."""
    known: dict[tuple, list[float]] = {}
    for point in grid.points():
        if is_finished(point):
            kind, steps = work_of(grid, point)
            known.setdefault(kind, []).append(runs.load_run(point.folder, tables_only=True).seconds / steps)
    total = 0.0
    for point in points:
        kind, steps = work_of(grid, point)
        if kind not in known and (seconds := _seconds_a_step(grid, point)):
            known[kind] = [seconds]
        total += median(known.get(kind, [0])) * steps
    return total / jobs


def work_of(grid: Grid, point: Point) -> tuple[tuple[Path, str, str, int, int], int]:
    """What decides how long a step takes, and the number of steps."""
    method, recipe = point.arm.build(grid.recipe)
    turns = settings_of(method, recipe, grid.loaded).get("views", {"value": method.views})["value"]
    kind = point.teacher, point.student, point.arm.method, turns, recipe.batch_size
    return kind, views.steps(len(grid.loaded.train), recipe.batch_size) * recipe.epochs


def operations(grid: Grid, point: Point) -> int:
    """Of a point's networks in all its training: three forward passes of the student a row, which is forward and
    backward, and one of the teacher. What a teacher cache saves is not known in advance."""
    (*_, turns, batch_size), steps = work_of(grid, point)
    networks = [point.student] * 3
    if point.arm.build(grid.recipe)[0].uses_teacher:
        networks.append(runs.read_settings(point.teacher)["model"]["name"])
    shape = grid.loaded.channels, *grid.loaded.size
    return steps * batch_size * turns * sum(flops_of(name, len(grid.loaded.classes), shape) for name in networks)


def _seconds_a_step(grid: Grid, point: Point) -> float:
    """Measured on a few steps, after as many that don't count; 0 where a loss is not finite as early as that."""
    method, recipe = point.arm.build(grid.recipe)
    data = grid.loaded
    images = min(PROBE_STEPS * recipe.batch_size, len(data.train))
    some = np.arange(images), np.arange(min(recipe.batch_size, len(data.test)))
    small = dataclasses.replace(data, train=data.train.take(some[0]), test=data.test.take(some[1]))
    teacher = runs.load_run(point.teacher) if method.uses_teacher else None
    with warnings.catch_warnings(), suppress(*OF_ONE_POINT):
        warnings.simplefilter("ignore")  # the runs will say it again, of losses that are not finite too
        run = training.distill(
            create_model(point.student, data, seed=point.seed),
            teacher,
            small,
            method,
            get_recipe(recipe, epochs=2),
            progress=False,
            **{name: value for name, value in grid.options.items() if name in ("accelerator", "precision")},
        )
        return float(run.timing["seconds"].iloc[-1]) / views.steps(images, recipe.batch_size)
    return 0.0


def duration(seconds: float) -> str:
    """In words, in the largest unit of which there are two or more."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
