"""Try every method on everything, and write trials.json into this folder.

    python -m benchmarks trials               try all methods
    python -m benchmarks trials METHOD …      try some methods; the record keeps the results of the others

`TRIALS` are the trials. Each trial is a function of the name of a method and a `Place`. It returns a remark, or raises
CheckFailedError or RefusedError. The tests use the same functions.
"""

import argparse
import contextlib
import inspect
import io
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import pckd_nb as pckd
from pckd_nb import catalogue, cli, methods, resuming, runs, training
from pckd_nb.messages import one_line
from pckd_nb.training import callbacks

from . import ranks_job
from .gpu_checks import CheckFailedError, require, run_job
from .gpu_job import make_data
from .measure import environment

FILE = Path(__file__).parent / "trials.json"
PASSED, REFUSED, FAILED = "passed", "refused", "failed"
PAIRS = (("resnet14", "resnet8"), ("vgg8", "resnet8"), ("wrn_16_2", "ShuffleV1"))  # teacher, student
TRANSFORMER = "timm:test_vit,img_size=32"  # the smallest vision transformer of timm: 370,000 parameters
# What makes a trial short, and what makes it test more: a warm-up and a stage that are longer than one epoch.
SETTINGS = {"negatives": 8, "warmup_epochs": 4, "stage_epochs": 2}
SIZES = {"digits": (60, 40), "shapes100": (100, 100)}  # training and test images
EPOCHS, STEPS = 2, 3  # of digits: number of epochs, and of steps per epoch
KILLED_IN = 2, 2  # epoch and step, counted from 1; the last checkpoint is from the step before
# Files of a run that are the same after a resume.
COMPARED = "student.safetensors", "history.csv", "samples.npz", "geometry.npz"
FINISHED_FILES = {"run.json", "timing.csv", "gallery.npz", "embedding.npz", *COMPARED}


class RefusedError(Exception):
    """The method cannot train these networks, and says so in one line."""


@dataclass(frozen=True)
class Result:
    """The result of a trial.

    Parameters
    ----------
    status : str
        "passed", "refused" or "failed".
    found : str
        What the trial returned, or the error message.
    """

    status: str
    found: str = ""


class Place:
    """A folder for trials, with what several trials use.

    Parameters
    ----------
    folder : Path
        An empty folder.
    names : sequence of str
        The methods that will be trained in two processes. One job trains all of them.
    """

    def __init__(self, folder: Path, names: Sequence[str] = ()):
        self.folder, self.waiting = folder, [arm_of(name) for name in names]

    def command(self, name: str, data: str, out: Path) -> list[str]:
        """Return the words of the command that trains a student with a method.

        Parameters
        ----------
        name : str
        data : str
            A key of `SIZES`.
        out : Path
            The run folder.
        """
        words = ["distill", *small(data), "--student", "resnet8", "--method", arm_of(name), "--out", str(out)]
        if needs_views(name):
            words += ["--views", "4"]
        if data == "digits":
            batch_size = SIZES[data][0] // STEPS
            words += ["--batch-size", str(batch_size), "--epochs", str(EPOCHS), "--precision", "32-true"]
        return [*words, "--teacher", str(self.teacher(data))]

    def teacher(self, data: str) -> Path:
        """Return the run folder of the teacher for a data set. The first call trains it."""
        out = self.folder / f"teacher for {data}"
        if not out.exists():
            call(["train", *small(data), "--model", "resnet14", "--out", str(out)])
        return out

    def trained(self, name: str, data: str) -> Path:
        """Return the run folder of a student. The first call trains it."""
        out = self.folder / f"{file_name(name)} on {data}"
        if not out.exists():
            call(self.command(name, data, out))
        return out

    def ranks(self, arm: str) -> tuple[Path, Path]:
        """Return the folders of `ranks_job` in one process and in two processes, which contain an arm.

        The first call trains the arms of all methods that are waiting. If a method ends this job, it and those after it
        are trained in a job of their own.
        """
        alone, together = self.folder / "one process", self.folder / "two processes"
        waiting, self.waiting = self.waiting, []
        if arm in waiting:
            with contextlib.suppress(CheckFailedError):
                train_on_ranks(waiting, alone, together)
        if not (together / f"{arm}-1.pt").exists():
            alone, together = (self.folder / f"{folder.name}, {arm}" for folder in (alone, together))
            train_on_ranks([arm], alone, together)
        return alone, together


def train_on_ranks(arms: list[str], alone: Path, together: Path) -> None:
    """Run `ranks_job` in this process and in two processes."""
    alone.mkdir()
    together.mkdir()
    ranks_job.main(alone, arms)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run_job([*command, "-m", "benchmarks.ranks_job", str(together), *arms])


def small(data: str) -> list[str]:
    """Return the options of the command line for a short training on a part of a data set."""
    train_size, test_size = map(str, SIZES[data])
    sizes = ["--train-size", train_size, "--test-size", test_size]
    return ["--data", data, *sizes, "--epochs", "1", "--accelerator", "cpu"]


def file_name(name: str) -> str:
    """Return a name of a method that can be a part of a file name."""
    return re.sub(r"\W+", "_", name)


def arm_of(name: str) -> str:
    """Return the arm of a method, with those of the `SETTINGS` that it has, such as "CRD-negatives=8"."""
    parameters = inspect.signature(type(methods.make(name))).parameters
    return "-".join([name, *(f"{key}={value}" for key, value in SETTINGS.items() if key in parameters)])


def needs_views(name: str) -> bool:
    """Return whether a method refuses to train with one view of every image."""
    if "views" not in inspect.signature(type(methods.make(name))).parameters:
        return False
    try:
        methods.make(name, views=1)
    except ValueError:
        return True
    return False


def call(arguments: list[str]) -> None:
    """Run a pckd-nb command in this process.

    Raises
    ------
    CheckFailedError
        With the last line that was printed, if the command fails.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        status = cli.main(arguments)
    lines = printed.getvalue().splitlines()
    require(status == 0, f"exit status {status}: {lines[-1] if lines else 'nothing was printed'}")


# ------------------------------------------------------------------------------------------------------ the trials


def trains(name: str, place: Place, data: str) -> str:
    """Train a student from the command line.

    Parameters
    ----------
    name : str
        The method.
    place : Place
    data : str
        A key of `SIZES`.

    Returns
    -------
    str
        Empty.

    Raises
    ------
    CheckFailedError
        If the command fails, or if the run is not as it should be.
    """
    run = pckd.load_run(place.trained(name, data))
    settings, method = run.settings, methods.make(name)
    require(run.finished, f"the run is {settings['status']}")
    require(settings["method"]["name"] == type(method).__name__, f"the method was {settings['method']['name']}")
    check_finite(run)
    require(settings["fingerprint"] != settings["model"]["start"], "the weights of the student did not change")
    return ""


def check_finite(run: pckd.Run) -> None:
    """Check that all recorded losses are finite."""
    losses = [loss for stage in run.settings.get("stages", []) for loss in stage["loss"]]
    require(bool(np.isfinite(losses).all()), "a loss of a stage is not finite")
    require(bool(np.isfinite(run.history.to_numpy(float)).all()), "history.csv has a value that is not finite")
    require(bool(np.isfinite(run.cross_entropy).all()), "the cross-entropy of an image is not finite")


def resumes(name: str, place: Place) -> str:
    """Kill a training with SIGKILL and resume it: the files must be those of a training that was not killed.

    It is killed in the second epoch, after a checkpoint in this epoch. If the method has a stage, another training is
    killed in the stage.

    Parameters
    ----------
    name : str
    place : Place

    Returns
    -------
    str
        Whether it was also killed in a stage.

    Raises
    ------
    CheckFailedError
        If the command fails, or if a file differs.
    """
    whole = place.trained(name, "digits")
    moments = ["stage", "epoch"] if pckd.load_run(whole).settings.get("stages") else ["epoch"]
    for moment in moments:
        out = place.folder / f"{file_name(name)}, killed in {moment}"
        command = place.command(name, "digits", out)
        run_killed(command, moment)
        if moment == "stage":
            status = runs.read_settings(out)["status"]
            require(status == "running" and not resuming.has_checkpoint(out), "it was not killed in its stage")
        else:
            recorder = resuming.read_checkpoint(out)["recorder"]
            saved = recorder["epoch"], recorder["step"]
            require(saved == (KILLED_IN[0], KILLED_IN[1] - 1), f"the checkpoint is from epoch and step {saved}")
        with mock.patch.object(training.Trainer, "step", autospec=True, side_effect=training.Trainer.step) as step:
            call([*command, "--resume"])
        remaining = EPOCHS * STEPS - (moment == "epoch") * ((KILLED_IN[0] - 1) * STEPS + KILLED_IN[1] - 1)
        require(step.call_count == remaining, f"{step.call_count} steps were trained after the kill, not {remaining}")
        for file in COMPARED:
            same = (out / file).read_bytes() == (whole / file).read_bytes()
            require(same, f"killed in the {moment} and resumed, {file} differs")
        require(set(os.listdir(out)) == FINISHED_FILES, f"the run folder has {sorted(os.listdir(out))}")
        shutil.rmtree(out)
    return "also in its stage" if "stage" in moments else ""


def run_killed(arguments: list[str], moment: str) -> None:
    """Run a pckd-nb command in a new process that kills itself.

    Parameters
    ----------
    arguments : list of str
    moment : {"stage", "epoch"}
        "stage" is the end of the first epoch of a stage, "epoch" is the step `KILLED_IN`.

    Raises
    ------
    CheckFailedError
        If it was not killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.__main__"])
    process = context.Process(target=kill_in, args=(arguments, moment))
    process.start()
    process.join()
    require(process.exitcode == -signal.SIGKILL, f"exit status {process.exitcode} instead of a kill in the {moment}")


def kill_in(arguments: list[str], moment: str) -> None:
    """Run a pckd-nb command, and kill this process at a moment, see `run_killed`."""

    def kill(callback: Any, trainer: training.Trainer, *stage: Any) -> None:
        if stage or (trainer.recorder.epoch, trainer.recorder.step) == KILLED_IN:
            os.kill(os.getpid(), signal.SIGKILL)

    use_one_thread()
    save_always()
    event = "on_stage_epoch_end" if moment == "stage" else "on_step_end"
    setattr(callbacks.ShowProgress, event, kill)  # it runs before the checkpoint of the step is written
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
    sys.exit(cli.main(arguments))


def use_one_thread() -> None:
    """Use one thread, so that all processes compute the same bits, and no semaphore in tqdm, which a kill leaks."""
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())


def save_always() -> None:
    """Save a checkpoint at every step, however long that takes."""
    callbacks.MIN_SECONDS_BETWEEN_SAVES, callbacks.MAX_SAVING_SHARE = -1, math.inf


def two_ranks(name: str, place: Place) -> str:
    """Compare a training in two processes with that in one process, see `ranks_job.compare`.

    Parameters
    ----------
    name : str
    place : Place

    Returns
    -------
    str
        Empty.

    Raises
    ------
    CheckFailedError
        If something differs.
    """
    ranks_job.compare(*place.ranks(arm_of(name)), arm_of(name), ranks=2)
    return ""


class Unchanged(pckd.Callback):
    """Finds the parameters of the student that no step has changed.

    Attributes
    ----------
    names : list of str
        After the training. Layers that are frozen are not among them.
    """

    def __init__(self) -> None:
        self._before: dict[str, Tensor] = {}
        self.names: list[str] = []

    def on_run_start(self, trainer: training.Trainer) -> None:
        """Copy the parameters that are trained."""
        parameters = trainer.student.named_parameters()
        self._before = {name: value.detach().clone() for name, value in parameters if value.requires_grad}

    def on_run_end(self, trainer: training.Trainer, run: pckd.Run) -> None:
        """Compare."""
        now = dict(trainer.student.named_parameters())
        self.names = [name for name, value in self._before.items() if torch.equal(value, now[name])]


def networks(name: str, place: Place, teacher: str, student: str) -> str:
    """Train one epoch with a few images of 32×32 pixels.

    Parameters
    ----------
    name : str
        The method.
    place : Place
    teacher, student : str
        Names of networks.

    Returns
    -------
    str
        The loss terms that the method leaves out, because it cannot compute them for these networks.

    Raises
    ------
    CheckFailedError
        If a value is not finite, or if a parameter of the student does not change.
    RefusedError
        If the method refuses the networks.
    """
    data = make_data(train=16, test=8, classes=4, size=32, channels=3)
    kind, settings = catalogue.read_arm(arm_of(name))
    method = methods.make(kind, **settings)
    models = pckd.create_model(student, data, seed=0), pckd.create_model(teacher, data, seed=1)
    recipe, unchanged = pckd.get_recipe("classroom", epochs=1, batch_size=8), Unchanged()
    options: dict[str, Any] = {"accelerator": "cpu", "precision": "32-true", "progress": False}
    out = place.folder / file_name(f"{name} {teacher} {student}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the loss term .* is left out")  # it is returned
            run = pckd.distill(*models, data, method, recipe, out=out, callbacks=[unchanged], **options)
    except ValueError as error:
        require("\n" not in str(error), f"the error message has several lines: {one_line(error)}")
        require(not out.exists(), f"a run folder was written before the error: {error}")
        raise RefusedError(str(error)) from None
    check_finite(run)
    require(not unchanged.names, f"{len(unchanged.names)} parameters of the student did not change: {unchanged.names}")
    return ", ".join(f"without {term}" for term in run.settings["method"]["left_out"])


def transformer(name: str, place: Place) -> str:
    """Train one epoch with a vision transformer as the teacher, see `networks`."""
    if not methods.make(name).uses_teacher:
        raise RefusedError(f"{name} uses no teacher")
    return networks(name, place, TRANSFORMER, "resnet8")


def title(teacher: str, student: str) -> str:
    """Return the name of the trial of a pair of networks."""
    return f"{teacher} → {student}"


VIT = "vision transformer"
TRIALS: dict[str, Callable[[str, Place], str]] = {
    "digits": partial(trains, data="digits"),
    "shapes100": partial(trains, data="shapes100"),
    "resumes": resumes,
    "two ranks": two_ranks,
    **{title(*pair): partial(networks, teacher=pair[0], student=pair[1]) for pair in PAIRS},
    VIT: transformer,
}
MAY_REFUSE = {*(title(*pair) for pair in PAIRS[1:]), VIT}  # the first pair has equal widths and stages


def attempt(trial: str, name: str, place: Place) -> Result:
    """Try a method, and return the result.

    Parameters
    ----------
    trial : str
        A key of `TRIALS`.
    name : str
        The method.
    place : Place

    Returns
    -------
    Result
    """
    try:
        return Result(PASSED, TRIALS[trial](name, place))
    except RefusedError as reason:
        return Result(REFUSED if trial in MAY_REFUSE else FAILED, str(reason))
    except CheckFailedError as problem:
        return Result(FAILED, str(problem))
    except Exception as error:  # whatever a method raises
        return Result(FAILED, f"{type(error).__name__}: {one_line(error)}")


# ------------------------------------------------------------------------------------------------------ the record


def main(arguments: Sequence[str]) -> int:
    """Try methods, and write the JSON file.

    Parameters
    ----------
    arguments : sequence of str
        The words after "trials" on the command line.

    Returns
    -------
    int
        0, or 1 if a trial failed.
    """
    parser = argparse.ArgumentParser("python -m benchmarks trials", description="Try every method on everything.")
    parser.add_argument("names", nargs="*", metavar="METHOD", help="default: all methods")
    parser.add_argument("--out", type=Path, default=FILE, help="the JSON file")
    options = parser.parse_args(arguments)
    known = [*catalogue.METHODS, *catalogue.BASELINES]
    try:
        names = [catalogue.find_method(name) for name in options.names] or known
    except ValueError as error:
        parser.error(str(error))
    use_one_thread()
    machine = environment(torch.device("cpu"))
    before = json.loads(options.out.read_text("utf-8"))["methods"] if options.out.exists() else {}
    found: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        place = Place(Path(folder), names)
        for name in names:
            results = {trial: attempt(trial, name, place) for trial in TRIALS}
            outcomes = {trial: {key: text for key, text in vars(x).items() if text} for trial, x in results.items()}
            found[name] = {"date": machine["date"], "trials": outcomes}
            print(name, ", ".join(f"{trial}: {result.status}" for trial, result in results.items()), flush=True)
    record = {name: found.get(name) or before[name] for name in known if name in found or name in before}
    text = json.dumps({"environment": machine, "methods": record}, indent=1, ensure_ascii=False)
    options.out.write_text(text + "\n", "utf-8")
    print(options.out)
    return int(any(result["status"] == FAILED for one in found.values() for result in one["trials"].values()))
