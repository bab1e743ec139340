"""Callbacks: what happens during training besides the training steps, such as early stopping and checkpoints.

A callback is any object that has at least one of the methods of `Callback`. If training uses several processes, the
callbacks run in each of them.
"""

from __future__ import annotations

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field
from torch import Tensor

from .. import progress, ranks, recording, resuming, runs
from ..evaluation import compute_outputs
from ..html import counted
from ..progress import Progress
from ..provenance import attributes_of, describe
from ..validation import Count, Real, check, checked, plain

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger

    from ..runs import Run
    from .trainer import Trainer

ImagesPerClass = Annotated[int, BeforeValidator(plain), Field(ge=2, le=10**9)]
MIN_SECONDS_BETWEEN_SAVES = 10
MAX_SAVING_SHARE = 0.05  # maximum share of the training time that is spent on writing checkpoints
SECONDS_BETWEEN_QUESTIONS = 0.5  # of `StopWhen`, whose question may go to another machine


class Callback:
    """Base class of callbacks. Override the methods that you need; here they do nothing.

    `trainer` is the `Trainer`. Its `recorder` has the current `epoch` and `step`, and the rows of history.csv in
    `history`. In `on_epoch_end`, `epoch` is already the next one. Set `trainer.should_stop = True` to interrupt the run
    after this step, so that it can be resumed. Set `trainer.finished_early = "a reason"` to finish the run after this
    epoch. run.json records the reason.

    run.json records the public attributes of a callback, and a resumed run must have the same ones. If a value changes
    during training, begin its name with an underscore. To save it in checkpoints, override `state_dict` and
    `load_state_dict`.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> class PrintColumns(pckd.Callback):
    ...     def on_epoch_end(self, trainer):
    ...         row = trainer.recorder.history[-1]
    ...         print(row["epoch"], [name for name in row if name.startswith("test_")])
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> run = pckd.fit("resnet8", data, epochs=2, callbacks=[PrintColumns()], progress=False)
    1 ['test_top1', 'test_top5', 'test_cross_entropy']
    2 ['test_top1', 'test_top5', 'test_cross_entropy']
    """

    def on_run_start(self, trainer: Trainer) -> None:
        """Run once, before training starts or is resumed."""

    def on_stage_epoch_end(self, trainer: Trainer, stage: dict[str, Any]) -> None:
        """Run after every epoch of a stage of the method, see `methods.Stage`.

        Parameters
        ----------
        trainer : Trainer
        stage : dict
            "name", "epochs", and "loss" with one value per epoch so far.
        """

    def on_epoch_start(self, trainer: Trainer) -> None:
        """Run before the first step of an epoch, or before its remaining steps after a resume."""

    def on_step_end(self, trainer: Trainer) -> None:
        """Run after every step. The recorder already has the values of this step."""

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Run after every complete epoch. `trainer.recorder.history[-1]` is its row of history.csv."""

    def on_save(self, trainer: Trainer, run: Run) -> None:
        """Change `run` before it is saved or returned. This happens at the end, and sometimes during training."""

    def on_run_end(self, trainer: Trainer, run: Run) -> None:
        """Run after the last step, also if the run was interrupted."""

    def teardown(self, trainer: Trainer) -> None:
        """Run at the very end, also after an error."""

    def state_dict(self) -> dict[str, Any] | None:
        """Return what a checkpoint must contain: a dict of numbers, text and tensors. None if there is nothing."""
        return None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""


def describe_callback(callback: object) -> str:
    """Return the description of a callback for run.json.

    Parameters
    ----------
    callback : object

    Returns
    -------
    str
        Its class and its public attributes. If the class is not part of this package, also a fingerprint of its code.
    """
    attributes = attributes_of(callback).items()
    settings = ", ".join(f"{name}={describe(value)}" for name, value in attributes if not name.startswith("_"))
    return f"{describe(type(callback))}({settings})"


class EarlyStopping(Callback):
    """Finish the training early, when a score has stopped improving.

    Parameters
    ----------
    monitor : str
        A column of history.csv. If its name contains "top" (an accuracy), larger values are better. Otherwise smaller
        values are better. The columns that begin with `val_` need a validation split, for example val=0.1.
    patience : int, at least 1
        Number of epochs without improvement after which training ends.
    min_delta : float
        Only a change by more than this value counts as an improvement.

    Raises
    ------
    ValueError
        If `patience` is below 1. During training: if history.csv has no column `monitor`.
    TypeError
        If an argument has the wrong type.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> stopping = pckd.EarlyStopping("test_top1", patience=1, min_delta=100)  # no epoch can be that much better
    >>> run = pckd.fit("resnet8", data, epochs=5, callbacks=[stopping], progress=False)
    >>> len(run.history), run.finished, run.settings["finished_early"]
    (2, True, 'test_top1 has not improved for 1 epoch')
    """

    def __init__(self, monitor: str = "val_top1", patience: int = 5, min_delta: float = 0.0):
        check(str, monitor=monitor)
        self.monitor, self.patience = monitor, checked(Count, "patience", patience)
        self.min_delta = checked(Real, "min_delta", min_delta)
        self._best, self._epochs_without_improvement = -math.inf, 0

    def on_run_start(self, trainer: Trainer) -> None:
        """Start without a best score, because an earlier run may have used this callback too."""
        if (trainer.recorder.epoch, trainer.recorder.step) == (1, 0):  # a resumed run keeps its best score
            self._best, self._epochs_without_improvement = -math.inf, 0

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Compare the score with the best one so far."""
        row = trainer.recorder.history[-1]
        if self.monitor not in row:
            hint = "; a validation score needs a validation split: val=0.1" if self.monitor.startswith("val_") else ""
            raise ValueError(f"history.csv has no column {self.monitor!r}, it has {', '.join(row)}{hint}")
        value = row[self.monitor] if "top" in self.monitor else -row[self.monitor]
        if value > self._best + self.min_delta:
            self._best, self._epochs_without_improvement = value, 0
        else:
            self._epochs_without_improvement += 1
        if self._epochs_without_improvement >= self.patience:
            trainer.finished_early = f"{self.monitor} has not improved for {counted(self.patience, 'epoch')}"

    def state_dict(self) -> dict[str, Any]:
        """Return the best score, and the number of epochs since then."""
        return {"best": self._best, "waited": self._epochs_without_improvement}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        self._best, self._epochs_without_improvement = state["best"], state["waited"]


class KeepBest(Callback):
    """Keep the weights of the epoch with the best validation accuracy, if there is a validation split.

    If several epochs are equally good, the first one is kept.
    """

    def __init__(self) -> None:
        self._best: dict[str, float] = {}
        self._weights: dict[str, Tensor] = {}

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Copy the weights if this epoch is the best one so far."""
        row = trainer.recorder.history[-1]
        if "val_top1" in row and row["val_top1"] > self._best.get("val_top1", -1):
            self._best = {name: row[name] for name in ("epoch", "val_top1", "test_top1") if name in row}
            self._weights = runs.weights_of(trainer.optimization.evaluated_model)

    def on_save(self, trainer: Trainer, run: Run) -> None:
        """Add scores and weights of the best epoch to the run."""
        if self._best:
            run.settings["best"], run.best_state = dict(self._best), self._weights

    def state_dict(self) -> dict[str, Any] | None:
        """Return scores and weights of the best epoch. None before the first epoch."""
        return {"best": self._best, "weights": self._weights} if self._best else None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        self._best, self._weights = state["best"], state["weights"]


class RecordTrainGeometry(Callback):
    """Record class means, class centers and measures of neural collapse of training images after every epoch.

    Every training records them for the test images, see `Run.geometry`, because these are evaluated anyway. Neural
    collapse is defined on the training images. With this callback, geometry.npz has them too: its arrays "train_nc1",
    "train_means" and so on. The images are neither augmented nor rotated, and the network is in eval mode.

    This takes time: one more forward pass of the student for each of these images. For all training images, a training
    without a teacher becomes at most about a third longer.

    Parameters
    ----------
    images_per_class : int, optional
        Use only the first images of each class. By default, all images are used. With few images, their mean is close
        to each of them, so NC1 is too small. With n images per class, its numerator is too small by about 1/n.

    Raises
    ------
    ValueError, TypeError
        If `images_per_class` is not a whole number of 2 or more.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> from pckd_nb.training import RecordTrainGeometry
    >>> data = pckd.load_dataset("digits", train_size=40, test_size=16)
    >>> run = pckd.fit("resnet8", data, epochs=2, callbacks=[RecordTrainGeometry()], progress=False)
    >>> pckd.analysis.geometry_table(run, train=True)["epoch"].tolist()
    [1, 2]
    """

    def __init__(self, images_per_class: int | None = None):
        self.images_per_class = checked(ImagesPerClass | None, "images_per_class", images_per_class)
        self._rows: list[dict[str, Any]] = []

    def on_run_start(self, trainer: Trainer) -> None:
        """Choose the images. Forget those of an earlier run that used this callback."""
        if (trainer.recorder.epoch, trainer.recorder.step) == (1, 0):  # a resumed run keeps its rows
            self._rows = []
        self._data = trainer.data
        if self.images_per_class:
            labels = trainer.data.train.labels.cpu().numpy()
            first = [np.flatnonzero(labels == c)[: self.images_per_class] for c in range(trainer.data.num_classes)]
            train = trainer.data.train.take(np.sort(np.concatenate(first)))
            self._data = dataclasses.replace(trainer.data, train=train)

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Evaluate the training images."""
        model, epoch = trainer.optimization.evaluated_model, trainer.recorder.history[-1]["epoch"]
        predictions = compute_outputs(model, self._data, "train", fabric=trainer.fabric)
        row = recording.geometry_row(model, predictions, int(epoch), trainer.recipe.epochs)
        recording.add_geometry(self._rows, row)

    def on_save(self, trainer: Trainer, run: Run) -> None:
        """Add the arrays to the run, if it gets the geometry of its test images."""
        if self._rows and run.geometry is not None:
            arrays = recording.stack_geometry(self._rows)
            run.geometry |= {runs.TRAIN_PREFIX + name: array for name, array in arrays.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the rows of all epochs."""
        return {"rows": self._rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        self._rows = list(state["rows"])


class LogMetrics(Callback):
    """Send every row of history.csv to loggers at the end of its epoch.

    Parameters
    ----------
    loggers : sequence of Logger
        Loggers of Lightning Fabric, or `TrackingLogger`.
    """

    def __init__(self, loggers: Sequence[Logger]):
        self.loggers, self._status = loggers, "failed"  # until `on_run_end` is called

    def on_run_start(self, trainer: Trainer) -> None:
        """Log the epochs that were complete before a resume."""
        for row in trainer.recorder.history:
            self.log(trainer, row)

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Log the last epoch."""
        self.log(trainer, trainer.recorder.history[-1])

    def log(self, trainer: Trainer, row: dict[str, float]) -> None:
        """Send one row of history.csv to all loggers, in the first process only.

        Parameters
        ----------
        trainer : Trainer
        row : dict of str to float
        """
        if trainer.fabric.is_global_zero:
            metrics = {name: value for name, value in row.items() if name != "epoch"}
            for logger in self.loggers:
                logger.log_metrics(metrics, step=int(row["epoch"]))
                logger.save()

    def on_run_end(self, trainer: Trainer, run: Run) -> None:
        """Remember for `teardown` that training ended without an error."""
        self._status = "success"

    def teardown(self, trainer: Trainer) -> None:
        """Close the loggers."""
        if trainer.fabric.is_global_zero:
            for logger in self.loggers:
                logger.finalize(self._status)


class ShowProgress(Callback):
    """Show the progress of training.

    Parameters
    ----------
    show : bool or Progress
        True shows a progress bar, or prints lines of text if stderr is a file. False shows nothing. Or an object of
        your own, see `Progress`.
    """

    def __init__(self, show: bool | Progress):
        self.show = show
        self.bar: AbstractContextManager[Progress] | None = None

    def on_run_start(self, trainer: Trainer) -> None:
        """Show the bar. After a resume, it does not start at zero."""
        recorder, steps = trainer.recorder, trainer.steps_per_epoch
        steps_done = (recorder.epoch - 1) * steps + recorder.step
        title = f"{trainer.method.title} {trainer.student.name or 'network'}"
        show = self.show if trainer.fabric.is_global_zero else False
        self.bar = progress.open_progress(show, trainer.recipe.epochs * steps, title, steps_done)
        self.shown = self.bar.__enter__()

    def on_stage_epoch_end(self, trainer: Trainer, stage: dict[str, Any]) -> None:
        """Show the loss of the stage. The bar counts only the steps after the stages."""
        done, loss = len(stage["loss"]), stage["loss"][-1]
        self.shown.set_postfix_str(f"first: {stage['name']}, epoch {done} of {stage['epochs']}, loss {loss:.3g}")

    def on_step_end(self, trainer: Trainer) -> None:
        """Advance the bar by one step."""
        self.shown.update()

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Show the test accuracy, or the validation accuracy if there are no test images."""
        row, split = trainer.recorder.history[-1], trainer.data.held_out[0]
        self.shown.set_postfix_str(f"epoch {row['epoch']}, {split} {row[f'{split}_top1']:.1f} %")

    def teardown(self, trainer: Trainer) -> None:
        """Close the bar."""
        if self.bar:
            self.bar.__exit__(None, None, None)


class StopOnSignal(Callback):
    """Stop training after the current step at the first Ctrl-C. The second Ctrl-C raises KeyboardInterrupt."""

    previous_handler: Any = None

    def on_run_start(self, trainer: Trainer) -> None:
        """Replace Python's signal handler."""

        def request_stop(number: int, frame: FrameType | None) -> None:
            if trainer.should_stop:
                raise KeyboardInterrupt
            trainer.should_stop = True

        if threading.current_thread() is threading.main_thread():  # only the main thread receives signals
            self.previous_handler = signal.signal(signal.SIGINT, request_stop)

    def teardown(self, trainer: Trainer) -> None:
        """Restore the previous signal handler."""
        if self.previous_handler is not None:
            signal.signal(signal.SIGINT, self.previous_handler)


class StopWhen(Callback):
    """Interrupt the training when a function returns True. The run is saved and can be resumed.

    run.json does not record this callback, because it does not change the result of the run.

    Parameters
    ----------
    condition : callable
        It is called without arguments after a step, at most every half second.

    Raises
    ------
    TypeError
        If `condition` is not callable.

    Examples
    --------
    >>> import time
    >>> import pckd_nb as pckd
    >>> from pckd_nb.training import StopWhen
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> end = time.monotonic() + 3600  # in one hour
    >>> run = pckd.fit("resnet8", data, epochs=1, callbacks=[StopWhen(lambda: time.monotonic() > end)], progress=False)
    >>> run.finished, run.settings["callbacks"]
    (True, [])
    """

    def __init__(self, condition: Callable[[], bool]):
        if not callable(condition):
            raise TypeError(f"condition must be a function without arguments, got {type(condition).__name__}")
        self.condition, self._ask_at = condition, -math.inf

    def on_stage_epoch_end(self, trainer: Trainer, stage: dict[str, Any]) -> None:
        """Ask whether to stop."""
        self.on_step_end(trainer)

    def on_step_end(self, trainer: Trainer) -> None:
        """Ask whether to stop, if the last question was long enough ago."""
        if time.monotonic() >= self._ask_at:
            trainer.should_stop = trainer.should_stop or self.condition()
            self._ask_at = time.monotonic() + SECONDS_BETWEEN_QUESTIONS


class SaveCheckpoints(Callback):
    """Write checkpoints, and after every epoch history.csv and timing.csv.

    There are at least 10 seconds between two checkpoints. Writing them takes at most 5 % of the training time.
    """

    def on_run_start(self, trainer: Trainer) -> None:
        """Check that a checkpoint can be read again."""
        self.save_at = time.monotonic() + MIN_SECONDS_BETWEEN_SAVES
        if trainer.folder:
            resuming.check_state(trainer.optimization.state())

    def on_step_end(self, trainer: Trainer) -> None:
        """Write a checkpoint if it is time."""
        step = trainer.recorder.step
        save_now = self.is_time_to_save(trainer) and step < trainer.steps_per_epoch and not trainer.should_stop
        if ranks.any_rank(save_now, step, trainer.fabric):
            trainer.check_finite()  # in all processes, so that an error stops all of them
            trainer.update_seconds()
            if trainer.folder:
                started = time.monotonic()
                resuming.write_checkpoint(trainer.folder, trainer.state())
                self.schedule_next(started)

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Write the run folder if it is time, otherwise history.csv and timing.csv only."""
        ends_now = trainer.recorder.epoch > trainer.recipe.epochs or trainer.should_stop or trainer.finished_early
        if trainer.folder and not ends_now:  # at the end of training, `Trainer.train` saves the run
            if self.is_time_to_save(trainer):
                started = time.monotonic()
                trainer.save("running")
                self.schedule_next(started)
            else:
                trainer.recorder.write_tables(trainer.folder)

    def is_time_to_save(self, trainer: Trainer) -> bool:
        """Return whether it is time for the next checkpoint."""
        return trainer.folder is not None and time.monotonic() > self.save_at

    def schedule_next(self, started: float) -> None:
        """Set the time of the next checkpoint.

        Parameters
        ----------
        started : float, in seconds
            `time.monotonic()` before the last checkpoint was written.
        """
        now = time.monotonic()
        self.save_at = now + max(MIN_SECONDS_BETWEEN_SAVES, (now - started) / MAX_SAVING_SHARE)
