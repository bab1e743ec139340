"""Callbacks of the training loop, and those of the package: progress, logging, early stopping and checkpoints.

A callback is any object with one or more of the methods of `Callback`. Each method receives the `Trainer`. With several
processes, the callbacks run in all of them.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .. import progress, ranks, resuming, runs
from ..html import counted
from ..progress import Progress
from ..provenance import attributes_of, describe
from ..validation import Count, Real, check, checked

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger

    from ..runs import Run
    from .trainer import Trainer

SECONDS_BETWEEN_SAVES = 10
SHARE_OF_SAVING = 0.05  # maximum share of the time


class Callback:
    """Base class of callbacks. Every method is optional and does nothing here.

    `trainer.recorder` holds the progress of training: `epoch`, `step` and the rows of `history` so far.

    A callback with `state_dict` and `load_state_dict` is part of every checkpoint. Public attributes are settings.
    run.json records them at the start, and a resumed run needs the same values. Give values that change during training
    a name that begins with an underscore.

    Examples
    --------
    >>> class PrintAccuracy(Callback):
    ...     def on_epoch_end(self, trainer):
    ...         print(trainer.recorder.history[-1]["test_top1"])
    """

    def on_run_start(self, trainer: Trainer) -> None:
        """Called before the first epoch of this process, and also when a run is resumed."""

    def on_epoch_start(self, trainer: Trainer) -> None:
        """Called before the first step of an epoch, or before its remaining steps after a resume."""

    def on_step_end(self, trainer: Trainer) -> None:
        """Called after every step. The recorder has already recorded it."""

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Called after every complete epoch. `trainer.recorder.history[-1]` is its row of history.csv."""

    def on_save(self, trainer: Trainer, run: Run) -> None:
        """Called before a run is written, also during training. Anything added to `run` here is saved with it."""

    def on_run_end(self, trainer: Trainer, run: Run) -> None:
        """Called after the last step, also if the run was interrupted."""

    def teardown(self, trainer: Trainer) -> None:
        """Called at the very end, also after an error."""

    def state_dict(self) -> dict[str, Any] | None:
        """Return numbers, text and tensors to save in a checkpoint, or None if there is nothing to save."""
        return None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""


def describe_callback(callback: object) -> str:
    """Return the description of a callback for run.json.

    Parameters
    ----------
    callback : object

    Returns
    -------
    str
        Its class, the code of that class if it is not part of this package, and its public attributes.
    """
    attributes = attributes_of(callback).items()
    given = ", ".join(f"{name}={describe(value)}" for name, value in attributes if not name.startswith("_"))
    return f"{describe(type(callback))}({given})"


class EarlyStopping(Callback):
    """End training when a column of history.csv has stopped improving.

    Parameters
    ----------
    monitor : str
        The column, for example "val_top1". Columns that contain "top" should increase, all others should decrease.
    patience : int
        Number of epochs without improvement after which training ends. The run then counts as finished.
    min_delta : float
        A change must be larger than this to count as an improvement.

    Raises
    ------
    ValueError
        If `patience` is below 1. During training: if history.csv has no column `monitor`.
    TypeError
        If `patience` is not an integer.

    Examples
    --------
    >>> run = distill(student, teacher, data, PCKD(), val=0.1, callbacks=[EarlyStopping(patience=3)])
    """

    def __init__(self, monitor: str = "val_top1", patience: int = 5, min_delta: float = 0.0):
        check(str, monitor=monitor)
        self.monitor, self.patience = monitor, checked(Count, "patience", patience)
        self.min_delta = checked(Real, "min_delta", min_delta)
        self._best, self._waited = -math.inf, 0

    def on_run_start(self, trainer: Trainer) -> None:
        if (trainer.recorder.epoch, trainer.recorder.step) == (1, 0):  # a new run: forget the previous one
            self._best, self._waited = -math.inf, 0

    def on_epoch_end(self, trainer: Trainer) -> None:
        row = trainer.recorder.history[-1]
        if self.monitor not in row:
            hint = "; val_top1 needs a validation split: val=0.1" if self.monitor.startswith("val_") else ""
            raise ValueError(f"history.csv has no column {self.monitor!r}, it has {', '.join(row)}{hint}")
        value = row[self.monitor] if "top" in self.monitor else -row[self.monitor]
        if value > self._best + self.min_delta:
            self._best, self._waited = value, 0
        else:
            self._waited += 1
        if self._waited >= self.patience:
            trainer.finished_early = f"{self.monitor} has not improved for {counted(self.patience, 'epoch')}"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best, self._waited = state["best"], state["waited"]


class KeepBest(Callback):
    """Keep the network of the epoch with the best validation accuracy, if there is a validation split.

    If several epochs are equally good, keep the first.
    """

    def __init__(self) -> None:
        self._best: dict[str, float] = {}
        self._weights: dict[str, Tensor] = {}

    def on_epoch_end(self, trainer: Trainer) -> None:
        row = trainer.recorder.history[-1]
        if "val_top1" in row and row["val_top1"] > self._best.get("val_top1", -1):
            self._best = {name: row[name] for name in ("epoch", "val_top1", "test_top1")}
            self._weights = runs.weights_of(trainer.optimization.evaluated)

    def on_save(self, trainer: Trainer, run: Run) -> None:
        if self._best:
            run.settings["best"], run.best_state = dict(self._best), self._weights

    def state_dict(self) -> dict[str, Any] | None:
        return {"best": self._best, "weights": self._weights} if self._best else None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best, self._weights = state["best"], state["weights"]


class LogMetrics(Callback):
    """Send every row of history.csv to Fabric loggers when its epoch is over.

    Parameters
    ----------
    loggers : sequence of Logger
        Loggers of Lightning Fabric.
    """

    def __init__(self, loggers: Sequence[Logger]):
        self.loggers, self._status = loggers, "failed"

    def on_run_start(self, trainer: Trainer) -> None:
        for row in trainer.recorder.history:  # the epochs before a resume
            self.log(trainer, row)

    def on_epoch_end(self, trainer: Trainer) -> None:
        self.log(trainer, trainer.recorder.history[-1])

    def log(self, trainer: Trainer, row: dict[str, float]) -> None:
        """Send one row of history.csv to all loggers."""
        if trainer.fabric.is_global_zero:
            metrics = {name: value for name, value in row.items() if name != "epoch"}
            for logger in self.loggers:
                logger.log_metrics(metrics, step=int(row["epoch"]))
                logger.save()

    def on_run_end(self, trainer: Trainer, run: Run) -> None:
        self._status = "success"

    def teardown(self, trainer: Trainer) -> None:
        if trainer.fabric.is_global_zero:
            for logger in self.loggers:
                logger.finalize(self._status)


class ShowProgress(Callback):
    """Show the progress of training.

    Parameters
    ----------
    show : bool or Progress
        True for a progress bar, or for lines of text if stderr is a file. False shows nothing. Or your own `Progress`
        object.
    """

    def __init__(self, show: bool | Progress):
        self.show = show
        self.bar: AbstractContextManager[Progress] | None = None

    def on_run_start(self, trainer: Trainer) -> None:
        recorder, steps = trainer.recorder, trainer.steps_per_epoch
        done = (recorder.epoch - 1) * steps + recorder.step
        title = f"{trainer.method.title} {trainer.student.name or 'network'}"
        show = self.show if trainer.fabric.is_global_zero else False
        self.bar = progress.open_progress(show, trainer.recipe.epochs * steps, title, done)
        self.shown = self.bar.__enter__()

    def on_step_end(self, trainer: Trainer) -> None:
        self.shown.update()

    def on_epoch_end(self, trainer: Trainer) -> None:
        row = trainer.recorder.history[-1]
        self.shown.set_postfix_str(f"epoch {row['epoch']}, test {row['test_top1']:.1f} %")

    def teardown(self, trainer: Trainer) -> None:
        if self.bar:
            self.bar.__exit__(None, None, None)


class StopOnSignal(Callback):
    """Stop training after the current step at the first Ctrl-C. The second Ctrl-C raises KeyboardInterrupt as usual."""

    previous: Any = None

    def on_run_start(self, trainer: Trainer) -> None:
        def request(number: int, frame: FrameType | None) -> None:
            if trainer.should_stop:
                raise KeyboardInterrupt
            trainer.should_stop = True

        if threading.current_thread() is threading.main_thread():  # only the main thread receives signals
            self.previous = signal.signal(signal.SIGINT, request)

    def teardown(self, trainer: Trainer) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)


class SaveCheckpoints(Callback):
    """Write checkpoints, and write history.csv and timing.csv after every epoch.

    Checkpoints take at most 5 % of the time.
    """

    def on_run_start(self, trainer: Trainer) -> None:
        self.save_at = time.monotonic() + SECONDS_BETWEEN_SAVES
        if trainer.folder:
            resuming.check_state(trainer.optimization.state())

    def on_step_end(self, trainer: Trainer) -> None:
        step = trainer.recorder.step
        due = self.due(trainer) and step < trainer.steps_per_epoch and not trainer.should_stop
        if ranks.any_rank(due, step, trainer.fabric):
            trainer.check_finite()  # in all processes, so that they stop together
            trainer.add_time()
            if trainer.folder:
                started = time.monotonic()
                resuming.write_checkpoint(trainer.folder, trainer.state())
                self.schedule_next(started)

    def on_epoch_end(self, trainer: Trainer) -> None:
        last = trainer.recorder.epoch > trainer.recipe.epochs or trainer.should_stop or trainer.finished_early
        if trainer.folder and not last:
            if self.due(trainer):
                started = time.monotonic()
                trainer.save("running")
                self.schedule_next(started)
            else:
                trainer.recorder.write_tables(trainer.folder)

    def due(self, trainer: Trainer) -> bool:
        return trainer.folder is not None and time.monotonic() > self.save_at

    def schedule_next(self, started: float) -> None:
        now = time.monotonic()
        self.save_at = now + max(SECONDS_BETWEEN_SAVES, (now - started) / SHARE_OF_SAVING)
