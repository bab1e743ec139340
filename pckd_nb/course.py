"""Functions for the notebooks of the course: recorded runs, short trainings, and answers to exercises.

Examples
--------
>>> from pckd_nb.course import check
>>> check(0.5, 1 / 2)
Right.
>>> check(0.4, 1 / 2, hint="Compute the mean, not the sum.")
Not yet. Compute the mean, not the sum.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import hardware
from .deprecation import renamed_arguments
from .html import counted
from .runs import Run, load_run, load_runs

RECORDED = Path(__file__).resolve().parent.parent / "data" / "runs"


def recorded(place: str) -> Run:
    """Load a recorded run: one of the runs that the repository contains, so that a lesson need not train it.

    Parameters
    ----------
    place : str
        Path below data/runs, such as "teachers/shapes100" or "shapes100/resnet20-resnet8/pckd/seed0".

    Returns
    -------
    Run

    Raises
    ------
    FileNotFoundError
        If there is no such run, or no recorded runs at all. Only a clone of the repository has them.
    """
    return load_run(_folder(place))


def recorded_runs(place: str = "") -> list[Run]:
    """Load all recorded runs in a folder and the folders below it.

    Parameters
    ----------
    place : str
        Path below data/runs. The default is all recorded runs.

    Returns
    -------
    list of Run

    Raises
    ------
    FileNotFoundError
        If there are no recorded runs. Only a clone of the repository has them.
    """
    return load_runs(_folder(place))


@renamed_arguments(least="minimum")
def live_epochs(epochs: int, minimum: int = 1) -> int:
    """Return how many epochs a notebook trains on this machine, and print a note if it is fewer than planned.

    Parameters
    ----------
    epochs : int
        Number of epochs on a machine of ordinary speed.
    minimum : int
        Number of epochs that the lesson needs at least.

    Returns
    -------
    int
        On a slow machine, `epochs` divided by how many times slower it is (see `hardware.slowness`), but at least
        `minimum`. Otherwise `epochs`. If the environment variable PCKD_ALL_EPOCHS is set, always `epochs`.
        `notebooks.store` sets it.
    """
    if os.environ.get("PCKD_ALL_EPOCHS"):
        return epochs
    slowness = hardware.slowness()
    chosen = min(epochs, max(minimum, round(epochs / slowness)))
    if chosen < epochs:
        fewer = f"{counted(chosen, 'epoch')} instead of {epochs}"
        print(f"This machine trains {slowness:.1f} times slower than most: {fewer}.")
    return chosen


def check(answer: Any, expected: Any, hint: str = "", tolerance: float = 1e-4) -> None:
    """Print whether the answer to an exercise is right, and a hint if it is not.

    Numbers, arrays and tensors are compared up to a tolerance. An array with one element counts as a number. All other
    objects must be equal.

    Parameters
    ----------
    answer : object
        The student's answer. None and `...` mean that there is no answer yet.
    expected : object
        The right answer.
    hint : str
        Printed after a wrong answer.
    tolerance : float
        Relative and absolute tolerance for numbers.

    Examples
    --------
    >>> from pckd_nb.course import check
    >>> check(0.33333, 1 / 3)
    Right.
    """
    if answer is None or answer is ...:
        print("No answer yet.")
    elif _same(answer, expected, tolerance):
        print("Right.")
    else:
        print(f"Not yet. {hint}".rstrip())


def _same(answer: Any, expected: Any, tolerance: float) -> bool:
    try:
        a, b = (_numbers(x) for x in (answer, expected))
    except (TypeError, ValueError):
        return bool(np.array_equal(answer, expected))
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=tolerance, atol=tolerance))


def _numbers(x: Any) -> np.ndarray:
    if isinstance(x, (list, tuple)):
        x = [_numbers(part) for part in x]
    numbers = np.asarray(x.detach().cpu() if isinstance(x, torch.Tensor) else x, dtype=float)
    return numbers.reshape(()) if numbers.size == 1 else numbers


def _folder(place: str) -> Path:
    if not RECORDED.is_dir():
        raise FileNotFoundError(f"there are no recorded runs in '{RECORDED}': they come with a clone of the repository")
    return RECORDED / place
