"""How a training shows how far it is: a bar in terminals and notebooks, plain lines in files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Protocol

from tqdm.auto import tqdm
from tqdm.std import tqdm as plain_tqdm

SECONDS_BETWEEN_LINES = 30


class Progress(Protocol):
    """What a training tells of itself, step by step."""

    def update(self, n: float = 1) -> object:
        """n more steps are done."""

    def set_postfix_str(self, s: str) -> None:
        """An epoch is done; s says how it went."""


class Lines(plain_tqdm):
    """tqdm's numbers as whole lines, for a file: one per `SECONDS_BETWEEN_LINES` at most, and one per epoch."""

    def __init__(self, **options: object):
        form = "{desc}: {n:.0f} of {total:.0f} {unit}s, {elapsed} passed, {remaining} left{postfix}"
        pace = dict(mininterval=SECONDS_BETWEEN_LINES, maxinterval=SECONDS_BETWEEN_LINES)
        super().__init__(**{**options, **pace, "bar_format": form})

    @staticmethod
    def status_printer(file: IO[str]) -> Callable[[str], None]:
        return lambda text: print(text.strip(), file=file, flush=True)

    @classmethod
    def write(cls, s: str, *_: object, **__: object) -> None:
        """Print to stdout. There is no bar to move out of the way."""
        print(s, flush=True)

    @staticmethod
    def format_meter(n: float, total: float, *others: object, **options: object) -> str:
        """A line. A job that takes longer than was planned stays at its end: tqdm would forget the total."""
        return str(plain_tqdm.format_meter(min(n, total), total, *others, **options))

    def clear(self, *_: object, **__: object) -> None:
        """A line that was written stays."""

    def moveto(self, n: int) -> None:
        """There are no bars above or below."""

    def close(self) -> None:
        """Write nothing more: the last epoch's line says it all."""
        self.disable = True
        self._decr_instances(self)


def in_notebook() -> bool:
    """Whether tqdm draws its bar as a widget."""
    return any(parent.__module__ == "tqdm.notebook" for parent in tqdm.__mro__)


def make_bar(total: float, title: str, unit: str, initial: float = 0, show: bool = True) -> plain_tqdm:
    """A progress bar on stderr, or `Lines` where that is neither a terminal nor a notebook; use it as a context.

    unit: what `total` counts, "step"; or "second", of which a bar shows no more than the share.
    """
    how = dict(total=total, initial=initial, desc=title, unit=unit, disable=not show)
    if show and not in_notebook() and not sys.stderr.isatty():
        return Lines(**how)
    form = "{desc}: {percentage:3.0f} %|{bar}| {elapsed} passed, {remaining} left{postfix}"
    return tqdm(**how, bar_format=form if unit == "second" else None)


class Share:
    """A part of a longer job's bar: every step counts as `weight` of it."""

    def __init__(self, bar: plain_tqdm, weight: float):
        self.bar, self.weight = bar, weight

    def update(self, n: float = 1) -> None:
        self.bar.update(n * self.weight)

    def set_postfix_str(self, s: str) -> None:
        self.bar.set_postfix_str(s)


def require_progress(progress: object) -> None:
    """Raise TypeError unless `progress` is True, False or an object with a method `update`."""
    if not isinstance(progress, bool) and not callable(getattr(progress, "update", None)):
        raise TypeError(f"progress must be True, False or a progress bar, got {type(progress).__name__}")


@contextmanager
def shown(progress: bool | Progress, total: int, title: str, done: int) -> Iterator[Progress]:
    """What a training of `total` steps reports to: `progress` itself, or a bar, invisible for False."""
    if not isinstance(progress, bool):
        progress.update(done)
        yield progress
        return
    with make_bar(total, title, "step", done, progress) as bar:
        yield bar
