"""Checks before the first training step, so that errors are found early."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from .. import views
from ..data import Dataset
from ..evaluation import check_input, evaluate
from ..html import counted
from ..messages import one_line
from ..models import Classifier
from ..models.preprocessing import input_differs
from ..runs import Run
from .callbacks import Callback
from .task import Task, has_batchnorm

TEACHER_TEST_IMAGES = 256  # maximum number of test images in `check_teacher_accuracy`
CALLBACK_METHODS = tuple(name for name in vars(Callback) if name.startswith("on_") or name == "teardown")


def require_callbacks(callbacks: object, loggers: object) -> None:
    """Check the types of callbacks and loggers.

    Parameters
    ----------
    callbacks, loggers : object
        As in `distill`.

    Raises
    ------
    TypeError
        If one of them is not a list, or contains an object that is not a callback or not a logger.
    """
    if not isinstance(callbacks, list | tuple):
        raise TypeError(f"callbacks must be a list, got {type(callbacks).__name__}: write callbacks=[...]")
    accepted = "loggers must be a list of loggers of lightning_fabric, such as [TensorBoardLogger('logs')]"
    if not isinstance(loggers, list | tuple):
        raise TypeError(f"{accepted}, got {type(loggers).__name__}")
    for logger in loggers:
        if isinstance(logger, type):
            raise TypeError(f"{accepted}, got a list with the class {logger.__name__}: write {logger.__name__}(...)")
        if not hasattr(logger, "log_metrics"):
            raise TypeError(f"{accepted}, got a list with {type(logger).__name__}")
    for callback in callbacks:
        if isinstance(callback, type):
            raise TypeError(f"a callback must be an object: write {callback.__name__}(), not {callback.__name__}")
        if not any(callable(getattr(callback, name, None)) for name in CALLBACK_METHODS):
            kind = type(callback).__name__
            raise TypeError(f"{kind} is not a callback: it has none of the methods {', '.join(CALLBACK_METHODS)}")


def check_task(task: Task, processes: int) -> None:
    """Find errors of a training before its first step. Warn about settings that are probably mistakes.

    Parameters
    ----------
    task : Task
    processes : int
        Number of processes on all machines together.

    Raises
    ------
    ValueError
        If two parts of the task do not fit together.
    """
    data, method, recipe = task.data, task.method, task.recipe
    if method.uses_teacher and task.teacher is None:
        raise ValueError(f"the method {method.title} needs a teacher: give a trained network or its run as the teacher")
    if task.teacher and {*map(id, task.teacher.parameters())} & {*map(id, task.student.parameters())}:
        raise ValueError("teacher and student are the same network: the teacher must be another network, or a copy")
    check_transforms(task)
    if 0 < recipe.epochs <= recipe.warmup_epochs:
        warnings.warn(
            f"warmup_epochs is {recipe.warmup_epochs:g}, and training has {counted(recipe.epochs, 'epoch')}: the "
            f"learning rate never reaches lr = {recipe.lr:g}; use fewer warmup_epochs or more epochs",
            stacklevel=3,
        )
    height, width = data.size
    if method.view_kind == "strong" and recipe.mix:
        raise ValueError(f"{method.title} has two views of every image, which can't be mixed: leave out mix")
    if method.views > 1 and method.view_kind == "rotations" and height != width:
        raise ValueError(f"rotated views need square images, {data.name} has {height}×{width}: use views=1")
    check_batches(task, processes)
    for role, model in (("student", task.student), ("teacher", task.teacher)):
        if model is None:
            continue
        if model.num_classes != data.num_classes:
            raise ValueError(
                f"the {role} has {model.num_classes} classes, but {data.name} has {data.num_classes}: create it for "
                "this data set"
            )
        check_parameters(model, role)
        check_input(model, role, data)
    initial_data = task.student.trained_on
    if initial_data and input_differs(initial_data, data):
        warnings.warn(
            f"the student's initial weights were trained on {initial_data.name}, with another image size, pixel mean "
            f"or pixel standard deviation than {data.name} has",
            stacklevel=3,
        )
    if task.teacher and task.teacher_run:
        check_teacher_accuracy(task.teacher, task.teacher_run, data)


def check_transforms(task: Task) -> None:
    """Try the recipe's settings `augment` and `mix` on one black image.

    Parameters
    ----------
    task : Task

    Raises
    ------
    ValueError
        If one of them raises an error or returns something that cannot be used.
    """
    recipe, data = task.recipe, task.data
    image, index = torch.zeros(1, data.channels, *data.size, dtype=torch.uint8), torch.zeros(1, dtype=torch.long)
    if recipe.augment:
        augment = views.find_transform(recipe.augment)
        with wrap_errors("augment"):
            views.apply_transform(augment, image, task.seed, 1, index)
    if recipe.mix:
        mix = views.find_mix(recipe.mix, data.num_classes)
        with wrap_errors("mix"), views.preserve_random_state():
            views.soft_targets(image.float(), index, data.num_classes, mix, recipe.label_smoothing)


@contextmanager
def wrap_errors(argument: str) -> Iterator[None]:
    """Raise any error in the block as a ValueError that names an argument.

    Parameters
    ----------
    argument : str
        Name of the argument whose code runs in the block.

    Raises
    ------
    ValueError
        If there is an error in the block.
    """
    try:
        yield
    except Exception as error:  # users' code can raise anything
        if str(error).startswith(argument):  # the message names the argument already
            raise
        raise ValueError(f"{argument} can't be used: {one_line(error)}") from error


def check_parameters(model: Classifier, role: str) -> None:
    """Check that a network can be used for training in float32.

    Parameters
    ----------
    model : Classifier
    role : {"student", "teacher"}

    Raises
    ------
    ValueError
        If a parameter was created in inference mode, if no parameter of a student requires a gradient, or if torch's
        default dtype is not float32.
    """
    if torch.get_default_dtype() != torch.float32:
        raise ValueError(
            f"torch's default dtype is {torch.get_default_dtype()}, training needs float32: "
            "call torch.set_default_dtype(torch.float32)"
        )
    for parameter in model.parameters():
        if parameter.is_inference():
            raise ValueError(f"the {role} was created in torch.inference_mode(): create it outside")
    if role == "student" and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("no parameter of the student requires a gradient: call student.requires_grad_()")


def check_batches(task: Task, processes: int) -> None:
    """Check that every process gets an image of every batch and held-out split, and BatchNorm at least two rows.

    Parameters
    ----------
    task : Task
    processes : int
        Number of processes on all machines together.

    Raises
    ------
    ValueError
        If a process would get no image, or a batch of one image although the student has BatchNorm.
    """
    data, batch_size = task.data, task.recipe.batch_size
    images_per_step = task.smallest_batch // processes
    if min(images_per_step, *(len(getattr(data, split)) // processes for split in data.held_out)) < 1:
        raise ValueError(
            f"{processes} processes are too many: a batch or split of {data.name} has fewer images; use fewer processes"
        )
    if images_per_step * task.method.views == 1 and has_batchnorm(task.student):
        where = f" for one of {processes} processes" if processes > 1 else ""
        raise ValueError(
            f"batch_size {batch_size} gives a batch of one image{where}: BatchNorm needs at least 2 images, choose "
            "another batch_size"
        )


def check_teacher_accuracy(teacher: Classifier, run: Run, data: Dataset) -> None:
    """Warn if the test accuracy of a teacher is lower on `data` than in its own run.

    Do nothing if `data` has no test images. At most 256 test images are evaluated, so their accuracy varies by chance.
    Differences of less than three standard deviations of this accuracy are ignored, and also differences of less than
    one percentage point.

    Parameters
    ----------
    teacher : Classifier
    run : Run
        The run that trained the teacher.
    data : Dataset
    """
    if data.test is not None and data.fingerprint != run.data_fingerprint:
        rows = np.linspace(0, len(data.test) - 1, min(TEACHER_TEST_IMAGES, len(data.test))).round().astype(int)
        top1 = evaluate(teacher, dataclasses.replace(data, test=data.test.take(rows)), accelerator="cpu").top1
        # the standard deviation of a share p of n images is √(p (1 − p) / n); accuracies are in percent
        tolerance = 3 * (run.accuracy * (100 - run.accuracy) / len(rows)) ** 0.5
        if top1 < run.accuracy - max(tolerance, 1):
            warnings.warn(
                f"the teacher's accuracy is {top1:.1f} % on {len(rows)} test images of {data.name}, but "
                f"{run.accuracy:.1f} % in its own run",
                stacklevel=4,
            )
