"""What the notebooks of the course share: recorded runs, and the check of an answer."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import hardware
from .html import counted
from .runs import Run, load_run, load_runs

RECORDED = Path(__file__).resolve().parent.parent / "data" / "runs"


def recorded(place: str) -> Run:
    """A recorded run by its place below data/runs: "teachers/shapes100", "shapes100/resnet20-resnet8/pckd/seed0".

    Raises FileNotFoundError where there is none; recorded runs come with a clone of the repository.
    """
    return load_run(_folder(place))


def recorded_runs(place: str = "") -> list[Run]:
    """All recorded runs below a place; errors as `recorded`."""
    return load_runs(_folder(place))


def live_epochs(epochs: int, least: int = 1) -> int:
    """How many epochs a live training of a notebook gets on this machine, and say so where it is fewer.

    Parameters
    ----------
    epochs : int
        What the text of the notebook speaks of, on a machine of ordinary speed.
    least : int
        What the lesson needs.

    Returns
    -------
    int
        `epochs` divided by how much slower this machine is, see `hardware.slowness`; from `least` to `epochs`. All of
        them where the environment variable PCKD_ALL_EPOCHS is set, as for the notebooks that are stored.
    """
    if os.environ.get("PCKD_ALL_EPOCHS"):
        return epochs
    slowness = hardware.slowness()
    found = min(epochs, max(least, round(epochs / slowness)))
    if found < epochs:
        fewer = f"{counted(found, 'epoch')} in place of {epochs}"
        print(f"This machine trains {slowness:.1f} times slower than most: {fewer}.")
    return found


def check(answer: Any, expected: Any, hint: str = "", tolerance: float = 1e-4) -> None:
    """Say whether the answer to an exercise is right; if not, give the hint. Numbers, arrays and tensors, with a
    gradient or without, are compared to a tolerance, relative and absolute, all else by equality; an array of one
    element is a number. None and ... are no answer yet."""
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
        raise FileNotFoundError(f"recorded runs come with a clone of the repository; '{RECORDED}' is not there")
    return RECORDED / place
