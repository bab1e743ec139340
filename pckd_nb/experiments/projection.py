"""Estimate how long the training of a grid takes."""

import dataclasses
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from .. import runs, training, views
from ..data import Dataset
from ..html import counted
from ..methods import Method
from ..models import count_flops, count_flops_by_name, create_model
from ..recipes import Recipe, get_recipe
from .arms import Arm, resolve_settings
from .grid import Grid, Point, is_finished

TIMED_STEPS = 4


def estimate_seconds(
    grid: Grid, points: Sequence[Point], jobs: int = 1, trained: Sequence[Point] | None = None
) -> float:
    """Estimate how long the training of `points` takes.

    The estimate is seconds per step times the number of steps. Seconds per step are the median of the finished points
    of the same kind. If there are none, a few training steps are timed. The estimate leaves out the evaluation after
    every epoch, the stages of a method before the first epoch, the time that a teacher cache saves, and the slowdown by
    parallel jobs.

    Parameters
    ----------
    grid : Grid
    points : sequence of Point
        The points to train.
    jobs : int
        Points trained at the same time.
    trained : sequence of Point, optional
        Other points, such as the trials of a search. The finished ones are used for the estimate. Default: the points
        of the grid.

    Returns
    -------
    float
        Seconds.
    """
    measured: dict[tuple, list[float]] = {}
    for point in grid.points() if trained is None else trained:
        if is_finished(point):
            kind, steps = step_kind_and_count(grid, point)
            measured.setdefault(kind, []).append(runs.load_run(point.folder, tables_only=True).seconds / steps)
    total = 0.0
    for point in points:
        kind, steps = step_kind_and_count(grid, point)
        if kind not in measured and (seconds := _measure_step_seconds(grid, point)):
            measured[kind] = [seconds]
        total += median(measured.get(kind, [0])) * steps  # 0 if the timed training failed
    return total / max(1, min(jobs, len(points)))


def step_kind_and_count(grid: Grid, point: Point) -> tuple[tuple[Path | None, str, str, int, int], int]:
    """Return what decides how long one training step of a point takes, and the number of steps.

    Parameters
    ----------
    grid : Grid
    point : Point

    Returns
    -------
    kind : tuple
        Run folder of the teacher, name of the student, name of the method, number of views, and batch size. Points of
        the same kind need the same time per step.
    steps : int
        Number of steps in all epochs.
    """
    method, recipe = point.arm.build(grid.recipe)
    view_count = resolve_settings(method, recipe, grid.loaded).get("views", {"value": method.views})["value"]
    kind = point.teacher, point.student, point.arm.method, view_count, recipe.batch_size
    return kind, views.steps_per_epoch(len(grid.loaded.train), recipe.batch_size) * recipe.epochs


def training_flops(grid: Grid, point: Point) -> int:
    """Return the number of floating-point operations in the training of a point, see `analysis.training_flops`.

    Parameters
    ----------
    grid : Grid
    point : Point

    Returns
    -------
    int
    """
    from ..analysis.compute import forward_flops, total_flops  # slow to import, because of scikit-learn

    (*_, view_count, _), _ = step_kind_and_count(grid, point)
    method, recipe = point.arm.build(grid.recipe)
    data, teacher = grid.loaded, None
    if method.uses_teacher and point.teacher:
        teacher = {**runs.read_settings(point.teacher)["model"], "in_channels": data.channels}
    return total_flops(
        recipe.epochs * len(data.train) * view_count,
        _student_flops(point.student, teacher, method, data),
        forward_flops(teacher, data.size),
    )


def _student_flops(student: str, teacher: dict[str, Any] | None, method: Method, data: Dataset) -> int:
    """Return the operations of one forward pass of the network that a method trains, for one image."""
    shape = data.channels, *data.size
    if teacher is None or type(method).wrap_student is Method.wrap_student:
        return count_flops_by_name(student, len(data.classes), shape)
    networks = create_model(student, data, seed=0), runs.create_network(teacher)
    return count_flops(method.wrap_student(*networks, torch.zeros(1, *shape)), shape)


def _measure_step_seconds(grid: Grid, point: Point) -> float:
    """Return the measured seconds per step, after a warm-up epoch, or 0 if the training fails.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C.
    """
    method, recipe = point.arm.build(grid.recipe)
    data = grid.loaded
    images = min(TIMED_STEPS * recipe.batch_size, len(data.train))
    held_out = {name: getattr(data, name) for name in data.held_out}
    few = {name: split.take(np.arange(min(recipe.batch_size, len(split)))) for name, split in held_out.items()}
    small = dataclasses.replace(data, train=data.train.take(np.arange(images)), **few)
    with warnings.catch_warnings(), suppress(Exception):  # the training itself reports the error
        warnings.simplefilter("ignore")  # the training itself gives the same warnings
        run = training.distill(
            create_model(point.student, data, seed=point.seed),
            runs.load_run(point.teacher) if method.uses_teacher and point.teacher else None,
            small,
            method,
            get_recipe(recipe, epochs=2),
            progress=False,
            **{name: value for name, value in grid.options.items() if name in ("accelerator", "precision")},
        )
        if not run.finished:
            raise KeyboardInterrupt  # Ctrl-C
        return float(run.timing["seconds"].iloc[-1]) / views.steps_per_epoch(images, recipe.batch_size)
    return 0.0


def name_stages(arms: Iterable[Arm], recipe: Recipe) -> str:
    """Return which stages `estimate_seconds` leaves out, as the end of a sentence.

    Parameters
    ----------
    arms : iterable of Arm
    recipe : Recipe
        The recipe of the grid.

    Returns
    -------
    str
        Such as ", without the stages of FT before the first epoch". Empty if no method has stages.
    """
    found = {arm.method: type(arm.build(recipe)[0]) for arm in arms}
    names = [name for name, kind in found.items() if issubclass(kind, Method) and kind.stages is not Method.stages]
    return f", without the stages of {', '.join(names)} before the first epoch" if names else ""


def format_duration(seconds: float) -> str:
    """Return a duration as text, in hours or minutes if there are at least two of them.

    Parameters
    ----------
    seconds : float

    Returns
    -------
    str
        Such as "2.5 hours", "3.0 minutes" or "40 seconds".

    Examples
    --------
    >>> from pckd_nb.experiments import format_duration
    >>> format_duration(9000)
    '2.5 hours'
    """
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return counted(round(seconds), "second")
