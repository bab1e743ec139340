"""Training: `distill` and `fit`. The training loop is in `trainer`, and callbacks are in `callbacks`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import faults, ranks, runs, views
from ..arguments import Network, as_network
from ..catalogue import check_outside_images
from ..data import Dataset
from ..deprecation import renamed
from ..evaluation import make_fabric
from ..methods import Method, Supervised
from ..models import TrainingData
from ..progress import Progress, check_progress
from ..recipes import Recipe, get_recipe
from ..runs import Run
from ..validation import Count, Positive, Seed, check, checked
from .callbacks import (
    Callback,
    EarlyStopping,
    KeepBest,
    LogMetrics,
    RecordTrainGeometry,
    SaveCheckpoints,
    ShowProgress,
    StopOnSignal,
    StopWhen,
)
from .checks import check_task, require_callbacks
from .folder import (
    check_output_folder,
    clean_up_after_errors,
    is_same_folder,
    load_finished_run,
    lock_run_folder,
    read_checkpoint_or_start,
    require_cache_folder,
    require_folder,
)
from .loggers import TrackingLogger
from .prepare import make_run_config, make_task
from .teacher import Teacher, cache_key, usable_cache
from .trainer import Trainer, configure_process

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger

__all__ = [
    "Callback", "EarlyStopping", "LogMetrics", "RecordTrainGeometry", "StopWhen", "TrackingLogger", "Trainer",
    "distill", "fit", "is_same_folder",
]  # fmt: skip


def fit(model: Network, data: Dataset | str, recipe: str | Recipe = "classroom", **options: Any) -> Run:
    """Train a network on labels only, without a teacher.

    Use it to train a teacher, or a student as the baseline without distillation.

    Parameters
    ----------
    model : Classifier, nn.Module, str, Run or path
        The network. It is trained in place. A name such as "resnet8" creates a new network with weights that depend on
        the seed. A run or its folder continues from the weights of that run. A module must end in a linear layer.
    data : Dataset or str
        A data set, or the name of one, such as "digits".
    recipe : Recipe or str
        How to train: epochs, batch size, learning rate, augmentation and more. Or the name of a recipe.
    **options
        Any keyword argument of `distill`. The most useful ones: `out` (the run folder), `seed`, `val` (share of images
        for validation), `callbacks`, `progress`, and fields of the recipe to change, such as `epochs` and `lr`.

    Returns
    -------
    Run
        Settings, results and weights.

    Raises
    ------
    ValueError, TypeError, FloatingPointError, OSError
        As in `distill`.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> run = pckd.fit("resnet8", data, epochs=1, progress=False)
    >>> run
    Run('supervised resnet8' on 'digits', seed 0, finished, 1 of 1 epoch, test top-1 ... %)
    """
    if not isinstance(model, str):  # `distill` creates networks from names
        model = as_network("model", model)
    return distill(model, None, data, Supervised(), recipe, **options)


def distill(
    student: Network,
    teacher: Network | None,
    data: Dataset | str,
    method: Method | nn.Module | type | str,
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
    """Train a student network with the help of a frozen teacher.

    The first Ctrl-C stops training after the current step, saves the run and returns it. The second stops at once.

    Parameters
    ----------
    student : Classifier, nn.Module, str, Run or path
        The network. It is trained in place. A name such as "resnet8" creates a new network with weights that depend on
        `seed`. A run or its folder continues from the weights of that run. A module must end in a linear layer.
    teacher : Classifier, nn.Module, Run, path or None
        A trained network, its run, or the folder of its run. None for a method without a teacher.
    data : Dataset or str
        A data set, or the name of one, such as "digits".
    method : Method, nn.Module, class or str
        Computes the loss, such as `PCKD()`. Training uses a copy. Settings that you pass to the method are kept. The
        others come from the recipe or from the data set, or have their defaults. You can also pass a class or a name:
        "pckd" means `PCKD()`.
    recipe : Recipe or str
        How to train: epochs, batch size, learning rate, augmentation and more. Or the name of a recipe.
    seed : int, at least 0
        It determines the order of the images, their augmentation, the initial weights of the method's heads (its own
        layers, such as a projector), and the initial weights of a student that is given by name.
    out : path, optional
        The run folder. None keeps the run in memory.
    resume : bool
        Continue the run in `out`. If there is none, start it.
    overwrite : bool
        Replace the run in `out`.
    val : float, in [0, 1)
        Share of the training images that is used for validation instead. history.csv then has validation scores, and
        `run.model("best")` returns the student after its best epoch.
    callbacks : sequence of Callback
        Objects whose methods run during training, such as `EarlyStopping`.
    loggers : sequence of Logger
        Loggers of Lightning Fabric, or `TrackingLogger`. They receive every row of history.csv.
    accelerator : str
        "cpu", "cuda" or another name of Lightning Fabric. "auto" uses a GPU if there is one.
    precision : str
        "32-true", "bf16-mixed" or another name of Lightning Fabric. "auto" is bf16-mixed if the hardware computes in
        bfloat16, otherwise 32-true. In both cases the teacher may run at a lower precision, if this changes its logits
        by at most 2 %. Pass "32-true" to run student and teacher in float32.
    devices : int, optional
        Number of processes per machine, see `ranks`. Every process gets a part of each batch. The programs torchrun and
        srun start a script in several processes. None means the number that they have started, otherwise 1. If you do
        not use them and `devices` is larger than 1, this function starts your script again for the other processes.
    nodes : int
        Number of machines.
    compile : bool or "auto"
        Whether to use torch.compile for the student. "auto" uses it if that shortens the run. It is not possible with a
        method that compares feature maps.
    teacher_cache : path, optional
        A folder to save the teacher's features in. Later trainings with the same teacher, data, seed and augmentation
        read them. It is not used with a method that compares feature maps.
    teacher_cache_gb : float
        Maximum size of this folder, in 10⁹ bytes.
    progress : bool or Progress
        Whether to show a progress bar. Or an object that is called after every step, see `Progress`.
    **changes
        Fields of the recipe to change, such as epochs=5, lr=0.01 or schedule="cosine". See `Recipe`.

    Returns
    -------
    Run
        Settings, results and weights.

    Raises
    ------
    ValueError
        If arguments do not fit together.
    TypeError
        If an argument has the wrong type.
    FloatingPointError
        If a loss or a gradient is not finite.
    OSError
        If the run folder cannot be written.
    FileExistsError
        If `out` contains a run and neither `resume` nor `overwrite` is set, or if it contains something else.
    BlockingIOError
        If another process trains in the run folder.
    ConnectionError
        If another process of this training has ended.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> teacher = pckd.create_model("resnet14", data, seed=0)
    >>> method = pckd.KD(temperature=2)
    >>> run = pckd.distill("resnet8", teacher, data, method, epochs=1, precision="32-true", progress=False)
    >>> run
    Run('KD resnet8' on 'digits', seed 0, finished, 1 of 1 epoch, test top-1 ... %)
    """
    # 1. Check the arguments.
    require_callbacks(callbacks, loggers)
    out = require_folder(out, resume=resume, overwrite=overwrite)
    teacher_cache = require_cache_folder(teacher_cache)
    check(Positive, teacher_cache_gb=teacher_cache_gb)
    check_progress(progress)
    devices, nodes = checked(Count | None, "devices", devices), checked(Count, "nodes", nodes)
    devices, nodes = ranks.requested_processes(devices, nodes)
    seed = checked(Seed, "seed", seed)
    task = make_task(student, teacher, data, method, get_recipe(recipe, **changes), seed, val)
    check_task(task, devices * nodes)
    for path in (out, teacher_cache):
        if path is not None:
            check_outside_images(path, task.data.name)
    folder = None  # only the first process writes the run folder
    if out is not None and ranks.is_first_rank(devices, nodes):
        folder = check_output_folder(out, task, resume=resume, overwrite=overwrite)

    # 2. Start the other processes, if there are any.
    exact_teacher = precision == "32-true"  # only if the caller asked for it, not if "auto" chooses it
    fabric, precision = make_fabric(accelerator, precision, devices, nodes)
    fabric.launch()
    # Gradients are needed even if the caller has switched them off. The caller's random numbers stay as they were.
    with torch.inference_mode(False), torch.enable_grad(), views.preserve_random_state(), ExitStack() as stack:
        if out is not None:
            lock = partial(lock_run_folder, out, resume=resume, overwrite=overwrite)
            ranks.run_on_first_rank(fabric, lambda: stack.enter_context(lock()))

        # 3. Create the method's heads, and collect the settings for run.json.
        torch.manual_seed(seed)
        task.bind(fabric)
        recorded = [callback for callback in callbacks if not isinstance(callback, StopWhen)]
        config = make_run_config(
            task, fabric, precision, exact=exact_teacher, compile=compile, callbacks=recorded, out=out
        )
        ranks.check_ranks_have_same_settings(fabric, config.dump())

        def find_finished_run() -> Run | None:
            return load_finished_run(folder, config) if resume and folder else None

        if run := ranks.run_on_first_rank(fabric, find_finished_run):
            runs.load_weights(task.student, run.student_state, str(run.path))
            task.student.trained_on = TrainingData.of(task.data)
            return run

        # 4. Move everything to the training device.
        configure_process(fabric.device)
        example = torch.zeros(1, *task.data.train.shape)
        # `safe_gradients` works around a torch bug.
        stack.enter_context(faults.safe_gradients(task.student, example, precision, fabric.device))
        task = task.to(fabric.device)
        frozen_teacher = stack.enter_context(Teacher.of(task, fabric, exact_teacher)) if task.teacher else None
        builtin = [*([LogMetrics(loggers)] if loggers else []), KeepBest(), ShowProgress(progress), SaveCheckpoints()]
        trainer = Trainer(task, frozen_teacher, fabric, folder, config, [StopOnSignal(), *callbacks, *builtin])
        if frozen_teacher and config.teacher:
            cache, key = usable_cache(teacher_cache, config), cache_key(config, task, fabric.device)
            form = frozen_teacher.choose_form(cache, teacher_cache_gb, key)
            config.teacher = config.teacher.model_copy(update=form)

        # 5. Train.
        def prepare_run_folder() -> dict[str, Any] | None:
            return read_checkpoint_or_start(folder, config, resume) if folder else None

        with clean_up_after_errors(folder, fabric):
            if checkpoint := ranks.run_on_first_rank(fabric, prepare_run_folder):
                trainer.resume(checkpoint)
            return trainer.train()


__getattr__ = renamed(__name__)
