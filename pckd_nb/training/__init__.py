"""Training: `distill` and `fit`. The loop is in `trainer`, what happens around it in `callbacks`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import faults, files, ranks, recording, resuming, runs, views
from ..compiling import compiles
from ..datasets import Dataset, load_dataset
from ..evaluation import make_fabric
from ..methods import Method, Supervised, make, resolve
from ..models import Classifier
from ..progress import Progress
from ..recipes import Recipe, get_recipe
from ..runs import Run
from .callbacks import (
    Callback,
    EarlyStopping,
    KeepBest,
    LogMetrics,
    SaveCheckpoints,
    ShowProgress,
    StopOnSignal,
    describe_callback,
)
from .checks import check_training, fed_as_it_learned, has_batchnorm, require_parts, same_folder
from .teacher import FrozenTeacher, Teacher, cache_key, usable_cache
from .trainer import Trainer, configure_process

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger

__all__ = ["Callback", "EarlyStopping", "LogMetrics", "Trainer", "distill", "fit", "same_folder"]


def fit(model: Classifier, data: Dataset | str, recipe: str | Recipe = "classroom", **options: Any) -> Run:
    """Train `model` on labels alone, as a teacher or as the baseline. Options and errors: see `distill`."""
    return distill(model, None, data, Supervised(), recipe, **options)


def distill(
    student: Classifier,
    teacher: Classifier | Run | None,
    data: Dataset | str,
    method: Method | nn.Module | str,
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
    student : Classifier
        `as_classifier` makes one of any network that ends in a linear layer.
    teacher : Classifier, Run or None
        A network, the run of one, or None for a method that uses none.
    data : Dataset, or the name of one
    method : Method, nn.Module with bind and forward, or the name of one, such as "pckd"
        Settings that its caller left open come from the recipe, then the data set, then the published values. It is
        copied, not changed.
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
    loggers : sequence of Lightning Fabric's loggers
        They get every row of history.csv when its epoch is over.
    accelerator, precision : str
        Lightning Fabric's names. "auto" finds the device. It takes bf16-mixed if the hardware computes in bfloat16,
        else 32-true. The teacher then takes the fastest form whose logits stay within 2 % of float32, see
        `training.teacher`. With precision="32-true" the teacher is not approximated.
    devices, nodes : int
        Processes on each machine, and machines, see `ranks`; None takes one, or what torchrun or srun have started.
        Each gets its part of every batch of the recipe's size. Where nothing has started them, the running script is
        started once more for each. The first process writes the run folder; all return the run.
    compile : bool or "auto"
        Run the student through torch.compile; "auto" does so where that was measured to pay back within the run.
    teacher_cache : path, optional
        A folder that keeps the teacher's features for other trainings with the same teacher, data, seed and
        augmentation, at most teacher_cache_gb gigabytes (10⁹ bytes) of them. A method that compares feature maps gets
        them by hooks: then the student runs uncompiled and nothing is cached.
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
    data = load_dataset(data) if isinstance(data, str) else data
    method = make(method) if isinstance(method, str) else method
    recipe = get_recipe(recipe, **changes)
    teacher_run = teacher if isinstance(teacher, Run) else None
    known = teacher.model() if isinstance(teacher, Run) else teacher
    if devices is None:
        if nodes != 1:
            raise ValueError("nodes needs devices: how many processes each machine runs")
        devices, nodes = ranks.started()
    require_parts(student, known, data, method, callbacks, loggers)
    data = data.with_validation(val) if val else data
    recipe = recipe.for_network(student.name)
    method, settings = resolve(method, recipe.method_settings(), {"views": data.default_views})
    if teacher_run and known and method.uses_teacher:
        known = fed_as_it_learned(known, teacher_run, data)
    check_training(student, known, data, method, recipe, seed, devices, nodes)
    if out is not None and overwrite and teacher_run and teacher_run.path and same_folder(teacher_run.path, out):
        raise ValueError(f"the teacher's run lies in '{out}', which would be overwritten: choose another folder")
    writes = out is not None and ranks.is_first(devices, nodes)
    folder = resuming.prepare(out, resume=resume, overwrite=overwrite) if out is not None and writes else None
    exact = precision == "32-true"
    fabric, precision = make_fabric(accelerator, precision, devices, nodes)
    fabric.launch()
    with views.callers_random_numbers(), ExitStack() as held:

        def hold() -> None:
            assert folder is not None
            held.enter_context(files.locked(folder))
            resuming.prepare(folder, resume=resume, overwrite=overwrite)  # another process may have been here meanwhile

        if out is not None:
            ranks.by_first(fabric, hold)
        torch.manual_seed(seed)
        example = torch.zeros(1, data.channels, *data.size)
        method.bind(student, known, *([example] if method.needs_maps else []))
        for term, reason in method.left_out.items():
            warnings.warn(f"{term} is left out: {reason}", stacklevel=2)
        known = known if method.uses_teacher else None
        if fabric.world_size > 1 and has_batchnorm(student):
            if fabric.device.type == "cuda":
                nn.SyncBatchNorm.convert_sync_batchnorm(student)
            elif fabric.is_global_zero:
                warnings.warn("BatchNorm sees its process's part of a batch: only GPUs synchronise it", stacklevel=2)
        how = fabric.device, precision, exact, fabric.world_size
        about = recording.settings_of(student, known, data, method, settings, recipe, seed, *how)
        about["callbacks"] = [describe_callback(callback) for callback in callbacks]
        ranks.check_one_job(fabric, about)
        rows = recipe.epochs * len(data.train) * method.views
        shape = data.train.shape
        about["compile"] = compiles(compile, student, rows, shape, fabric.device, precision, method.needs_maps)
        if teacher_run and known:
            about["teacher"]["test_top1"] = teacher_run.accuracy
            if teacher_run.path and folder:
                about["teacher"]["run"] = recording.relative_path(teacher_run.path, folder)
        run = ranks.by_first(fabric, lambda: _finished(folder, about) if resume and folder else None)
        if run:
            runs.load_weights(student, run.student_state, str(run.path))
            return run
        if fabric.device.type == "cpu" and precision == "bf16-mixed":
            for hook in faults.zero_unseen_gradients(student, example):
                held.callback(hook.remove)
        configure_process(fabric.device)
        data = data.to(fabric.device)
        asked = None
        if known:
            held.callback(known.train, known.training)  # the caller may want to train it on
            maps = method.needs_maps, method.teacher_layers
            asked = Teacher(FrozenTeacher(known, data, method.views, fabric, exact, *maps), fabric)
            held.callback(asked.close)
        own = [KeepBest(), ShowProgress(progress), SaveCheckpoints(), StopOnSignal()]
        every = [*callbacks, *([LogMetrics(loggers)] if loggers else []), *own]
        trainer = Trainer(student, asked, data, method, recipe, seed, fabric, folder, about, every)
        if asked:
            asked.choose(usable_cache(teacher_cache, about), teacher_cache_gb, cache_key(about, data, recipe, fabric))
            about["teacher"].update(asked.chosen)
        try:
            state = ranks.by_first(fabric, lambda: _begin(folder, about, resume) if folder else None)
            if state:
                trainer.resume(state)
            return trainer.train()
        except BaseException as error:
            with suppress(OSError):
                if folder and not resuming.worth_keeping(folder):
                    resuming.clear(folder)  # nothing to go on with: leave nothing half-written
                elif folder and isinstance(error, OSError) and error.strerror and resuming.has_checkpoint(folder):
                    error.strerror += "; the last checkpoint is as it was, --resume goes on from it"
            if fabric.world_size > 1 and isinstance(error, RuntimeError) and ranks.lost(error):
                raise ConnectionError(
                    "another process of this training is gone: the same command with --resume goes on"
                ) from error
            raise


def _finished(folder: Path, about: dict[str, Any]) -> Run | None:
    """The run in a `locked` folder, if it has these settings and is done. Raises ValueError where they differ."""
    if not (folder / "run.json").exists():
        return None
    resuming.check_same(folder, about)
    if runs.read_settings(folder)["status"] != "finished":
        return None
    resuming.remove_checkpoints(folder)
    return runs.load_run(folder)


def _begin(folder: Path, about: dict[str, Any], resume: bool) -> dict[str, Any] | None:
    """The checkpoint to go on from; or begin the run in a `locked` folder, and None."""
    if resume and resuming.has_checkpoint(folder):
        return resuming.read_checkpoint(folder)
    resuming.begin(folder, about)
    return None
