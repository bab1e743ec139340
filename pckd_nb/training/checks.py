"""Checks of the arguments of a training, before the first step."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from .. import views
from ..data import Dataset
from ..evaluation import evaluate
from ..models import Classifier, with_preprocessing
from ..runs import Run
from .callbacks import Callback
from .task import Task, has_batchnorm

MAX_SHIFT = 0.15  # in standard deviations: maximum difference between the constants of a teacher and of the data
MEASURED_IMAGES = 256  # test images to evaluate a teacher on data that it was not trained on
EVENTS = tuple(name for name in vars(Callback) if name.startswith("on_") or name == "teardown")


def require_callbacks(callbacks: object, loggers: object) -> None:
    """Check the callbacks and loggers of a training.

    Parameters
    ----------
    callbacks, loggers : object

    Raises
    ------
    TypeError
        If they are not lists of callback objects and of loggers.
    """
    if not isinstance(callbacks, list | tuple):
        raise TypeError(f"callbacks must be a list, got {type(callbacks).__name__}: write callbacks=[...]")
    if not isinstance(loggers, list | tuple) or not all(
        hasattr(logger, "log_metrics") and not isinstance(logger, type) for logger in loggers
    ):
        raise TypeError("loggers must be a list of loggers of lightning_fabric, such as [TensorBoardLogger('logs')]")
    for callback in callbacks:
        if isinstance(callback, type):
            raise TypeError(f"a callback must be an object: write {callback.__name__}(), not {callback.__name__}")
        if not any(callable(getattr(callback, event, None)) for event in EVENTS):
            raise TypeError(f"{type(callback).__name__} is no callback: it has none of {', '.join(EVENTS)}")


def check_task(task: Task, processes: int) -> None:
    """Find all errors that can be detected before the first step.

    Parameters
    ----------
    task : Task
    processes : int
        On all machines together.

    Raises
    ------
    ValueError
        If two parts of the task do not fit together.
    """
    data, method, recipe = task.data, task.method, task.recipe
    if method.uses_teacher and task.teacher is None:
        raise ValueError(f"{method.title} needs a teacher")
    if task.teacher and {*map(id, task.teacher.parameters())} & {*map(id, task.student.parameters())}:
        raise ValueError("the teacher is the student itself: it has to be another network, or a copy")
    if recipe.augment:
        views.find_transform(recipe.augment)
    if recipe.mix:
        views.find_mix(recipe.mix, data.num_classes)
    height, width = data.size
    if method.views > 1 and height != width:
        raise ValueError(f"rotated views need square images, {data.name} has {height}×{width}: use views=1")
    check_batches(task, processes)
    for who, model in (("student", task.student), ("teacher", task.teacher)):
        if model is None:
            continue
        if model.num_classes != data.num_classes:
            raise ValueError(f"the {who} knows {model.num_classes} classes, {data.name} has {data.num_classes}")
        _check_forward(model, who, data)
    if task.teacher and task.teacher_run:
        compare_with_record(task.teacher, task.teacher_run, data)


def check_batches(task: Task, processes: int) -> None:
    """Check that every process gets enough images of every batch.

    Parameters
    ----------
    task : Task
    processes : int

    Raises
    ------
    ValueError
        If a process would get no image, or only one image for a student with BatchNorm.
    """
    data, batch_size = task.data, task.recipe.batch_size
    smallest = task.smallest_batch // processes
    fewest = min(smallest, *(len(getattr(data, name)) // processes for name in data.held_out))
    if fewest < 1:
        raise ValueError(f"{processes} processes are too many: a batch or split of {data.name} has fewer images")
    if smallest * task.method.views == 1 and has_batchnorm(task.student):
        whose = f" for one of {processes} processes" * (processes > 1)
        raise ValueError(f"batch_size {batch_size} leaves a batch of one image{whose}: BatchNorm needs 2 at least")


@torch.no_grad()
def _check_forward(model: Classifier, who: str, data: Dataset) -> None:
    """Run one image through the network, to detect a wrong number of channels before training starts."""
    was_training = model.training
    device = next(model.parameters()).device
    try:
        model.eval()(torch.zeros(1, data.channels, *data.size, device=device))
    except (RuntimeError, AssertionError, ValueError) as error:  # timm asserts sizes, the wrapper raises ValueError
        shape = "×".join(map(str, (data.channels, *data.size)))
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"the {who} can't take images of {shape} pixels from {data.name}: {reason}") from error
    finally:
        model.train(was_training)


def match_teacher_input(teacher: Classifier, run: Run, data: Dataset) -> Classifier:
    """Return a run's teacher with the input size and normalization that it was trained with.

    The teacher is wrapped, with a warning, only if `data` uses another image size or normalization.

    Parameters
    ----------
    teacher : Classifier
    run : Run
        The run that trained the teacher.
    data : Dataset

    Returns
    -------
    Classifier

    Raises
    ------
    ValueError
        If the classes of the run and of `data` differ.
    """
    learned = run.settings["data"]
    if learned["classes"] != list(data.classes):
        raise ValueError(
            f"the teacher was trained on the classes of {learned['name']}, which differ from those of {data.name}"
        )
    pixels = {"mean": learned["mean"], "std": learned["std"], "size": learned["image_size"]}
    if len(learned["mean"]) == data.channels and sees_differently(learned, data):
        teacher = with_preprocessing(teacher, data, **pixels)
        height, width = pixels["size"]
        warnings.warn(
            f"the teacher learned from {height}×{width} pixels with mean {rounded(pixels['mean'])} and std "
            f"{rounded(pixels['std'])}: its input is resized and normalised the same way",
            stacklevel=3,
        )
    return teacher


def compare_with_record(teacher: Classifier, run: Run, data: Dataset) -> None:
    """Warn if a run's teacher is worse on `data` than it was on its own data, by a sample of the test images."""
    if data.fingerprint != run.data_fingerprint:
        rows = np.linspace(0, len(data.test) - 1, min(MEASURED_IMAGES, len(data.test))).round().astype(int)
        top1 = evaluate(teacher, dataclasses.replace(data, test=data.test.take(rows)), accelerator="cpu").top1
        spread = 3 * (run.accuracy * (100 - run.accuracy) / len(rows)) ** 0.5  # three standard deviations
        if top1 < run.accuracy - max(spread, 1):
            warnings.warn(
                f"the teacher has {top1:.1f} % on {len(rows)} test images of {data.name}, "
                f"{run.accuracy:.1f} % in its record",
                stacklevel=4,
            )


def sees_differently(learned: Mapping[str, Any], data: Dataset) -> bool:
    """Return whether images of `data` reach a network at another size or normalization than in its training.

    Normalization counts as different if it differs by more than 15 % of a standard deviation. Constants that were
    computed on another part of the same images differ by less.

    Parameters
    ----------
    learned : mapping
        Settings "image_size", "mean" and "std" of the data that the network was trained on.
    data : Dataset

    Returns
    -------
    bool
    """
    if list(learned["image_size"]) != list(data.size):
        return True
    ours, theirs = (np.array([pair.mean, pair.std]) for pair in (data, SimpleNamespace(**learned)))
    moved, stretched = abs(ours[0] - theirs[0]) / theirs[1], abs(ours[1] / theirs[1] - 1)
    return bool(max(moved.max(), stretched.max()) > MAX_SHIFT)


def rounded(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)
