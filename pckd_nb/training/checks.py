"""Checks of the arguments of a training, before the first step."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from .. import views
from ..data import Dataset
from ..downloads import one_line
from ..evaluation import check_input, evaluate
from ..html import counted
from ..models import Classifier
from ..models.preprocessing import input_differs
from ..runs import Run
from .callbacks import Callback
from .task import Task, has_batchnorm

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
    check_plugs(task)
    if 0 < recipe.epochs <= recipe.warmup_epochs:
        warnings.warn(
            f"the learning rate rises for {recipe.warmup_epochs:g} of {counted(recipe.epochs, 'epoch')}: it never "
            f"reaches lr = {recipe.lr:g}",
            stacklevel=3,
        )
    height, width = data.size
    if method.views > 1 and height != width:
        raise ValueError(f"rotated views need square images, {data.name} has {height}×{width}: use views=1")
    check_batches(task, processes)
    for who, model in (("student", task.student), ("teacher", task.teacher)):
        if model is None:
            continue
        if model.num_classes != data.num_classes:
            raise ValueError(f"the {who} knows {model.num_classes} classes, {data.name} has {data.num_classes}")
        check_numbers(model, who)
        check_input(model, who, data)
    before = task.student.trained_on
    if before and input_differs(before, data):
        warnings.warn(
            f"the student's first weights were trained on {before.name}, with other pixel constants or another image "
            f"size than {data.name} has",
            stacklevel=3,
        )
    if task.teacher and task.teacher_run:
        compare_with_record(task.teacher, task.teacher_run, data)


def check_plugs(task: Task) -> None:
    """Try the augmentation and the mixing of a recipe on one black image.

    Parameters
    ----------
    task : Task

    Raises
    ------
    ValueError
        If one of them cannot be used.
    """
    recipe, data = task.recipe, task.data
    black, index = torch.zeros(1, data.channels, *data.size, dtype=torch.uint8), torch.zeros(1, dtype=torch.long)
    if recipe.augment:
        augment = views.find_transform(recipe.augment)
        with naming("augment"):
            views.transform(augment, black, task.seed, 1, index)
    if recipe.mix:
        mix = views.find_mix(recipe.mix, data.num_classes)
        with naming("mix"), views.callers_random_numbers():
            views.soften(black.float(), index, data.num_classes, mix, recipe.label_smoothing)


@contextmanager
def naming(argument: str) -> Iterator[None]:
    """Raise any error in the block as a ValueError that names the argument that caused it."""
    try:
        yield
    except Exception as error:  # the code of users may raise anything
        if str(error).startswith(argument):
            raise
        raise ValueError(f"{argument} can't be used: {one_line(error)}") from error


def check_numbers(model: Classifier, who: str) -> None:
    """Check that gradients can be computed, in float32, and that a student has something to train.

    Parameters
    ----------
    model : Classifier
    who : {"student", "teacher"}

    Raises
    ------
    ValueError
        If the parameters cannot be trained, or if torch's default dtype is not float32.
    """
    if torch.get_default_dtype() != torch.float32:
        raise ValueError(
            f"torch's default dtype is {torch.get_default_dtype()}, training needs float32: "
            "torch.set_default_dtype(torch.float32)"
        )
    for parameter in model.parameters():
        if parameter.is_inference():
            raise ValueError(f"the {who} was made within torch.inference_mode(): make it outside")
    if who == "student" and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("no parameter of the student can be trained: write student.requires_grad_()")


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
