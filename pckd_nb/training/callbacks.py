"""What a training tells others, and what the package itself does with it: progress, checkpoints, stopping.

A callback is any object with one or more of the methods of `Callback`. Each gets the `Trainer`. With several processes
the callbacks run in all of them.
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
from ..progress import Progress
from ..provenance import attributes_of, describe
from ..validation import Count, check

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger

    from ..runs import Run
    from .trainer import Trainer

SECONDS_BETWEEN_SAVES = 10
SHARE_OF_SAVING = 0.05  # of the time, at most


class Callback:
    """What can be done during a training. Every method is optional; this class does nothing.

    `trainer.recorder` says where the training stands: `epoch`, `step` and the rows of `history` so far. A callback with
    `state_dict` and `load_state_dict` is part of every checkpoint. Public attributes are settings: run.json records
    them at the start, and a resumed run needs the same. What changes during a training belongs under a name that begins
    with an underscore.
    """

    def on_run_start(self, trainer: Trainer) -> None:
        """Before the first epoch of this process: also called when a run is resumed."""

    def on_epoch_start(self, trainer: Trainer) -> None:
        """Before the first step of an epoch, or of what is left of it."""

    def on_step_end(self, trainer: Trainer) -> None:
        """After every step, which the recorder has noted."""

    def on_epoch_end(self, trainer: Trainer) -> None:
        """After every whole epoch: `trainer.recorder.history[-1]` is its row of history.csv."""

    def on_save(self, trainer: Trainer, run: Run) -> None:
        """Before a run is written, also while it is running: what is added to it here is kept with it."""

    def on_run_end(self, trainer: Trainer, run: Run) -> None:
        """After the last step, also of a run that was interrupted."""

    def teardown(self, trainer: Trainer) -> None:
        """At the very end, also after an error."""

    def state_dict(self) -> dict[str, Any] | None:
        """What a checkpoint has to keep of this callback: numbers, text and tensors; None for nothing."""
        return None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""


def describe_callback(callback: object) -> str:
    """What run.json says of a callback: its class, its code if it is your own, and its public attributes."""
    attributes = attributes_of(callback).items()
    given = ", ".join(f"{name}={describe(value)}" for name, value in attributes if not name.startswith("_"))
    return f"{describe(type(callback))}({given})"


class EarlyStopping(Callback):
    """Ends a training when a column of history.csv has not improved for some epochs.

    Parameters
    ----------
    monitor : str
        The column, for example "val_top1". Columns that contain "top" should grow, all others should fall.
    patience : int
        After so many epochs without improvement the training ends. The run then counts as finished.
    min_delta : float
        Smaller changes are no improvement.
    """

    def __init__(self, monitor: str = "val_top1", patience: int = 5, min_delta: float = 0.0):
        check(Count, patience=patience)
        self.monitor, self.patience, self.min_delta = monitor, patience, min_delta
        self._best, self._waited = -math.inf, 0

    def on_run_start(self, trainer: Trainer) -> None:
        if (trainer.recorder.epoch, trainer.recorder.step) == (1, 0):  # a new run: forget an earlier one
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
            trainer.finished_early = f"{self.monitor} has not improved for {self.patience} epochs"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best, self._waited = state["best"], state["waited"]


class KeepBest(Callback):
    """Keeps the network of the epoch with the best validation accuracy, if there is a validation split; of several
    equal ones the first."""

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
    """Hands every row of history.csv to loggers of Lightning Fabric, as soon as its epoch is over."""

    def __init__(self, loggers: Sequence[Logger]):
        self.loggers, self._status = loggers, "failed"

    def on_run_start(self, trainer: Trainer) -> None:
        for row in trainer.recorder.history:  # of a run that is resumed
            self.log(trainer, row)

    def on_epoch_end(self, trainer: Trainer) -> None:
        self.log(trainer, trainer.recorder.history[-1])

    def log(self, trainer: Trainer, row: dict[str, float]) -> None:
        """Hand over one row of history.csv."""
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
    """A progress bar, or lines where stderr is a file; or your own `Progress` object."""

    def __init__(self, show: bool | Progress):
        self.show = show
        self.bar: AbstractContextManager[Progress] | None = None

    def on_run_start(self, trainer: Trainer) -> None:
        recorder, steps = trainer.recorder, trainer.steps_per_epoch
        done = (recorder.epoch - 1) * steps + recorder.step
        title = f"{trainer.method.title} {trainer.student.name or 'network'}"
        show = self.show if trainer.fabric.is_global_zero else False
        self.bar = progress.shown(show, trainer.recipe.epochs * steps, title, done)
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
    """Lets the first Ctrl-C end the training after its step; the second one raises KeyboardInterrupt as usual."""

    previous: Any = None

    def on_run_start(self, trainer: Trainer) -> None:
        def request(number: int, frame: FrameType | None) -> None:
            if trainer.should_stop:
                raise KeyboardInterrupt
            trainer.should_stop = True

        if threading.current_thread() is threading.main_thread():  # signals reach the main thread alone
            self.previous = signal.signal(signal.SIGINT, request)

    def teardown(self, trainer: Trainer) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)


class SaveCheckpoints(Callback):
    """Writes checkpoints, which take at most 5 % of the time, and history.csv and timing.csv after every epoch."""

    def on_run_start(self, trainer: Trainer) -> None:
        self.save_at = time.monotonic() + SECONDS_BETWEEN_SAVES
        if trainer.folder:
            resuming.check_state(trainer.optimization.state())

    def on_step_end(self, trainer: Trainer) -> None:
        step = trainer.recorder.step
        due = self.due(trainer) and step < trainer.steps_per_epoch and not trainer.should_stop
        if ranks.any_rank(due, step, trainer.fabric):
            trainer.check_finite()  # in all processes, so that all stop together
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
