"""Training: `distill` and `fit`. The loop is in `trainer`, what happens around it in `callbacks`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import faults, ranks, runs, views
from ..arguments import Network, as_network
from ..catalogue import check_outside_images
from ..data import Dataset
from ..evaluation import make_fabric
from ..methods import Method, Supervised
from ..models import TrainingData
from ..progress import Progress, require_progress
from ..recipes import Recipe, get_recipe
from ..runs import Run
from ..validation import Count, Positive, Seed, check, checked
from .callbacks import Callback, EarlyStopping, KeepBest, LogMetrics, SaveCheckpoints, ShowProgress, StopOnSignal
from .checks import check_task, require_callbacks
from .folder import (
    begin,
    claim,
    finished_run,
    hold,
    require_cache_folder,
    require_folder,
    same_folder,
    tidied_after_errors,
)
from .loggers import TrackingLogger
from .prepare import make_run_config, make_task
from .teacher import Teacher, cache_key, usable_cache
from .trainer import Trainer, configure_process

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger

__all__ = ["Callback", "EarlyStopping", "LogMetrics", "TrackingLogger", "Trainer", "distill", "fit", "same_folder"]


def fit(model: Network, data: Dataset | str, recipe: str | Recipe = "classroom", **options: Any) -> Run:
    """Train `model` on labels alone, as a teacher or as the baseline. Options and errors: see `distill`."""
    if not isinstance(model, str):  # `distill` makes networks of their names
        model = as_network("model", model)
    return distill(model, None, data, Supervised(), recipe, **options)


def distill(
    student: Network,
    teacher: Network | None,
    data: Dataset | str,
    method: Method | nn.Module | type[nn.Module] | str,
    recipe: str | Recipe = "classroom",
    *,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    val: float = 0,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    accelerator: str = "auto",
    precision: str = "auto",
    devices: int | None = None,
    nodes: int = 1,
    compile: bool | str = "auto",
    teacher_cache: str | Path | None = None,
    teacher_cache_gb: float = 20,
    progress: bool | Progress = True,
    **changes: Any,
) -> Run:
    """Train `student` in place, with the help of a frozen `teacher`, and return the record of it.

    Both networks are left on the device that trained. The first Ctrl-C (or kernel interrupt) finishes the step, saves,
    and returns the run so far; a second one stops at once.

    Parameters
    ----------
    student : Classifier, or any nn.Module that ends in a linear layer
        Or the name of a network, which is made from `seed`; or a Run or its folder, to train on from its weights.
    teacher : Classifier, Run or None
        A network as above, the run of one or its folder, or None for a method that uses none.
    data : Dataset, or the name of one
    method : Method, nn.Module with bind and forward, or the name of one, such as "pckd"
        A class is made with its defaults. A setting that you did not pass is looked up in the recipe, then in the data
        set, and else has its default. The method is copied, not changed.
    recipe : str or Recipe
    **changes
        Fields of the recipe to change: epochs=5, optimizer=partial(torch.optim.AdamW, lr=1e-3), schedule="cosine",
        augment=v2.RandAugment(), … See `Recipe`.
    seed : int
        Order and augmentation of the images, and the start of the method's heads.
    out : path, optional
        The run folder; None keeps the run in memory.
    resume, overwrite : bool
        resume: go on with the run in `out`, or start it where there is none. overwrite: replace the run in `out`.
    val : float
        Share of the training images that is held out as a validation split. Its scores are in history.csv, and
        run.model("best") is the network of its best epoch.
    callbacks : sequence of Callback
        What else to do, see `Callback`. Their classes and public attributes are recorded, and compared on resume.
    loggers : sequence of Lightning Fabric's loggers, or `TrackingLogger`
        They get every row of history.csv when its epoch is over.
    accelerator, precision : str
        Lightning Fabric's names. "auto" finds the device, and takes bf16-mixed if the hardware computes in bfloat16,
        else 32-true. The teacher takes the fastest form whose logits stay within 2 % of float32, see
        `training.teacher`. Pass precision="32-true" for a teacher that is not approximated.
    devices, nodes : int
        Processes on each machine, and machines, see `ranks`. None takes one, or what torchrun or srun have started.
        Each process gets its part of every batch; the recipe's batch_size is the total. Without torchrun or srun, your
        script is started once more for every other process. The first process writes the run folder; all return the
        run.
    compile : bool or "auto"
        Run the student through torch.compile; "auto" does so where that was measured to pay back within the run.
    teacher_cache : path, optional
        A folder that keeps the teacher's features for other trainings with the same teacher, data, seed and
        augmentation, at most teacher_cache_gb gigabytes (10⁹ bytes) of them. A method that compares feature maps
        disables the cache and compile.
    progress : bool or Progress
        Whether to show a progress bar (lines, where stderr is a file); or what is to be told of every step.

    Returns
    -------
    Run

    Raises
    ------
    ValueError
        If settings do not fit together.
    TypeError
        If an argument has the wrong type.
    FloatingPointError
        If a loss is not finite.
    OSError
        If the run folder cannot be written. BlockingIOError: another process trains in it. ConnectionError: another
        process of this training is gone. FileExistsError and others: see `resuming.prepare`.
    """
    require_callbacks(callbacks, loggers)
    out = require_folder(out, resume=resume, overwrite=overwrite)
    teacher_cache = require_cache_folder(teacher_cache)
    check(Positive, teacher_cache_gb=teacher_cache_gb)
    require_progress(progress)
    devices, nodes = checked(Count | None, "devices", devices), checked(Count, "nodes", nodes)
    devices, nodes = ranks.requested_processes(devices, nodes)
    seed = checked(Seed, "seed", seed)
    task = make_task(student, teacher, data, method, get_recipe(recipe, **changes), seed, val)
    check_task(task, devices * nodes)
    for place in (out, teacher_cache):
        if place is not None:
            check_outside_images(place, task.data.name)
    is_writer = out is not None and ranks.is_first(devices, nodes)
    folder = claim(out, task, resume=resume, overwrite=overwrite) if out is not None and is_writer else None
    exact = precision == "32-true"  # as the caller has it, not what "auto" finds
    fabric, precision = make_fabric(accelerator, precision, devices, nodes)
    fabric.launch()
    with torch.inference_mode(False), torch.enable_grad(), views.callers_random_numbers(), ExitStack() as stack:
        if out is not None:
            ranks.run_on_first_rank(fabric, lambda: stack.enter_context(hold(out, resume=resume, overwrite=overwrite)))
        torch.manual_seed(seed)
        task.bind(fabric)
        config = make_run_config(task, fabric, precision, exact=exact, compile=compile, callbacks=callbacks, out=out)
        ranks.check_same_settings(fabric, config.dump())
        if run := ranks.run_on_first_rank(fabric, lambda: finished_run(folder, config) if resume and folder else None):
            runs.load_weights(task.student, run.student_state, str(run.path))
            task.student.trained_on = TrainingData.of(task.data)
            return run
        configure_process(fabric.device)
        example = torch.zeros(1, *task.data.train.shape)
        stack.enter_context(faults.safe_gradients(task.student, example, precision, fabric.device))
        task = task.to(fabric.device)
        frozen = stack.enter_context(Teacher.of(task, fabric, exact)) if task.teacher else None
        builtin = [*([LogMetrics(loggers)] if loggers else []), KeepBest(), ShowProgress(progress), SaveCheckpoints()]
        trainer = Trainer(task, frozen, fabric, folder, config, [StopOnSignal(), *callbacks, *builtin])
        if frozen and config.teacher:
            root, key = usable_cache(teacher_cache, config), cache_key(config, task, fabric.device)
            config.teacher = config.teacher.model_copy(update=frozen.choose(root, teacher_cache_gb, key))
        with tidied_after_errors(folder, fabric):
            if state := ranks.run_on_first_rank(fabric, lambda: begin(folder, config, resume) if folder else None):
                trainer.resume(state)
            return trainer.train()
