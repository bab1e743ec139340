"""Show the progress of a training: a bar in terminals and notebooks, plain lines in files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Protocol

from tqdm.auto import tqdm
from tqdm.std import tqdm as plain_tqdm

SECONDS_BETWEEN_LINES = 30


class Progress(Protocol):
    """The methods that a progress bar must have."""

    def update(self, n: float = 1) -> object:
        """Report that n more steps are done."""

    def set_postfix_str(self, s: str) -> None:
        """Report the end of an epoch, with its results as text."""


class ProgressLines(plain_tqdm):
    """Prints the progress of tqdm as lines, for a file.

    There is one line per epoch, and at most one per `SECONDS_BETWEEN_LINES` in between.

    Parameters
    ----------
    **options
        As for tqdm.
    """

    def __init__(self, **options: object):
        bar_format = "{desc}: {n:.0f} of {total:.0f} {unit}s, {elapsed} passed, {remaining} left{postfix}"
        intervals = dict(mininterval=SECONDS_BETWEEN_LINES, maxinterval=SECONDS_BETWEEN_LINES)
        super().__init__(**{**options, **intervals, "bar_format": bar_format})

    @staticmethod
    def status_printer(file: IO[str]) -> Callable[[str], None]:
        """Return a function that prints one line to the file."""
        return lambda text: print(text.strip(), file=file, flush=True)

    @classmethod
    def write(cls, s: str, *_: object, **__: object) -> None:
        """Print to stdout. tqdm would first remove the bar, but here is none."""
        print(s, flush=True)

    @staticmethod
    def format_meter(n: float, total: float, *others: object, **options: object) -> str:
        """Return a line. More steps than `total` are shown as `total`, because tqdm would drop the total."""
        return str(plain_tqdm.format_meter(min(n, total), total, *others, **options))

    def clear(self, *_: object, **__: object) -> None:
        """Do nothing: lines are not removed."""

    def moveto(self, n: int) -> None:
        """Do nothing: there are no other bars."""

    def close(self) -> None:
        """Print nothing more after the line of the last epoch."""
        self.disable = True
        self._decr_instances(self)


def in_notebook() -> bool:
    """Return whether tqdm shows its bar as a widget."""
    return any(parent.__module__ == "tqdm.notebook" for parent in tqdm.__mro__)


def make_bar(total: float, title: str, unit: str, initial: float = 0, show: bool = True) -> plain_tqdm:
    """Return a progress bar on stderr, as a context manager.

    Parameters
    ----------
    total : float
        Number of units.
    title : str
    unit : {"step", "second"}
        With "second", a bar shows only the percentage.
    initial : float
        Units that are already done.
    show : bool
        Whether to show the bar.

    Returns
    -------
    tqdm
        A bar in a terminal or notebook, otherwise `ProgressLines`.
    """
    options = dict(total=total, initial=initial, desc=title, unit=unit, disable=not show)
    if show and not in_notebook() and not sys.stderr.isatty():
        return ProgressLines(**options)
    bar_format = "{desc}: {percentage:3.0f} %|{bar}| {elapsed} passed, {remaining} left{postfix}"
    return tqdm(**options, bar_format=bar_format if unit == "second" else None)


class WeightedProgress:
    """Progress of one part of a longer job: each step moves the bar of the job by `weight`.

    Parameters
    ----------
    bar : tqdm
        The bar of the whole job.
    weight : float
        Units of `bar` per step.
    """

    def __init__(self, bar: plain_tqdm, weight: float):
        self.bar, self.weight = bar, weight

    def update(self, n: float = 1) -> None:
        """Report that n more steps are done."""
        self.bar.update(n * self.weight)

    def set_postfix_str(self, s: str) -> None:
        """Show a text after the bar."""
        self.bar.set_postfix_str(s)


def check_progress(progress: object) -> None:
    """Raise TypeError unless `progress` is True, False or an object with a method `update`."""
    if not isinstance(progress, bool) and not callable(getattr(progress, "update", None)):
        raise TypeError(
            f"progress must be True, False or an object with a method update, got {type(progress).__name__}"
        )


@contextmanager
def open_progress(progress: bool | Progress, total: int, title: str, done: int) -> Iterator[Progress]:
    """Return the object that a training reports its steps to, as a context manager.

    Parameters
    ----------
    progress : bool or Progress
        True shows a new bar, False hides it. Anything else is used instead of a bar.
    total : int
        Number of steps.
    title : str
    done : int
        Steps that are already done, in a training that continues.

    Yields
    ------
    Progress
    """
    if not isinstance(progress, bool):
        progress.update(done)
        yield progress
        return
    with make_bar(total, title, "step", done, progress) as bar:
        yield bar
