"""The demo of `pckd-nb demo`: a teacher, one student trained in three ways, a table of results, and a report."""

import math
import os
import re
import statistics
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
from nbconvert import HTMLExporter

from . import files, hardware, resuming, runs, training, views
from .data import load_dataset
from .evaluation import make_fabric
from .html import counted
from .methods import KD, PCKD, Method, Supervised
from .models import create_model
from .notebooks import REPOSITORY, execute
from .paths import user_path
from .progress import WeightedProgress, make_bar
from .recipes import Recipe, get_recipe
from .runs import Run
from .training import teacher as teacher_module

NOTEBOOK = REPOSITORY / "notebooks" / "00_start_here.ipynb"
RECORDED = REPOSITORY / "data" / "runs"
RECORDED_TEACHER = Path("teachers") / "shapes100"  # below RECORDED
DEFAULT_RUNS = Path("runs") / "demo"
STAGES = ("teacher", "supervised", "kd", "pckd")


@dataclass(frozen=True)
class Plan:
    """What the demo trains.

    Parameters
    ----------
    teacher, student : str
        Names of the networks.
    train_size, test_size : int
        Number of training and test images of shapes100.
    epochs : int
        Number of epochs of every student.
    teacher_epochs : int
        Number of epochs of the teacher, if it is trained.
    recorded_teacher : bool
        Whether to use the teacher of the recorded runs in place of training one. Only a clone of the repository has it;
        otherwise the teacher is trained.
    seed : int
    """

    teacher: str = "resnet20"
    student: str = "resnet8"
    train_size: int = 4000
    test_size: int = 2000
    epochs: int = 10
    teacher_epochs: int = 10
    recorded_teacher: bool = False
    seed: int = 0

    def recipe(self, stage: str) -> Recipe:
        """Return the recipe of a stage.

        Parameters
        ----------
        stage : str
            One of `STAGES`.

        Returns
        -------
        Recipe
        """
        return get_recipe("classroom", epochs=self.teacher_epochs if stage == "teacher" else self.epochs)

    def steps(self, stage: str) -> int:
        """Return the number of training steps of a stage.

        Parameters
        ----------
        stage : str
            One of `STAGES`.

        Returns
        -------
        int
            0 for a recorded teacher.
        """
        if stage == "teacher" and self.find_recorded_teacher():
            return 0
        recipe = self.recipe(stage)
        return views.steps_per_epoch(self.train_size, recipe.batch_size) * recipe.epochs

    def find_recorded_teacher(self) -> Run | None:
        """Return the run of the recorded teacher.

        Returns
        -------
        Run or None
            None if this plan trains a teacher, or if there are no recorded runs.
        """
        if not (self.recorded_teacher and (RECORDED / RECORDED_TEACHER / "run.json").is_file()):
            return None
        return runs.load_run(RECORDED / RECORDED_TEACHER)

    def stages(self) -> dict[str, tuple[str, str, Method]]:
        """Return what is trained in each stage.

        Returns
        -------
        dict
            Name of the stage → (one sentence about it, name of the network, method).
        """
        if self.find_recorded_teacher():
            teacher = f"Teacher: a {self.teacher} that was trained on the labels. Its recorded run is used."
        else:
            teacher = f"Teacher: a {self.teacher} is trained on the labels."
        supervised = f"Student without a teacher: a much smaller {self.student} is trained on the labels alone."
        kd = f"Student with KD: the same {self.student} also learns to predict the teacher's probabilities."
        pckd = (
            f"Student with PCKD: the same {self.student} also learns the teacher's features and category centers, from "
            "rotated views, easy images first."
        )
        return {
            "teacher": (teacher, self.teacher, Supervised()),
            "supervised": (supervised, self.student, Supervised()),
            "kd": (kd, self.student, KD()),
            "pckd": (pckd, self.student, PCKD()),
        }


# The smaller sizes train for fewer epochs, so their students are less accurate.
SIZES = {
    "small": Plan(epochs=4, recorded_teacher=True),
    "medium": Plan(epochs=6, recorded_teacher=True),
    "full": Plan(),
}
MAX_MINUTES = 5  # the largest size that fits into this time is chosen
TIMED_STEPS = 6  # per stage; the first two are slower, and are not counted
REPORT_STEPS = 250  # making the report takes about as long as this many training steps of the teacher


class StepTimer:
    """Records the time of every training step. It takes the place of a progress bar in `distill`."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def update(self, n: float = 1) -> None:
        """Record the time at the end of a step.

        Parameters
        ----------
        n : float
            Not used. A progress bar has this argument.
        """
        self.times.append(time.perf_counter())

    def set_postfix_str(self, s: str) -> None:
        """Do nothing. A progress bar has this method.

        Parameters
        ----------
        s : str
            Not used.
        """

    @property
    def step_seconds(self) -> float:
        """Median of the seconds per step, without the first two steps."""
        return statistics.median(np.diff(self.times[2:]))


def measure_steps(plan: Plan | None = None) -> dict[str, float]:
    """Measure how long a training step of each stage takes on this machine. This takes about ten seconds.

    Parameters
    ----------
    plan : Plan, optional
        The default is the plan of size full.

    Returns
    -------
    dict
        Name of the stage → seconds per step.
    """
    plan = plan or Plan()
    recipe = get_recipe("classroom", epochs=1)
    data = load_dataset("shapes100", train_size=TIMED_STEPS * recipe.batch_size, test_size=100)
    seconds, teacher = {}, None
    for name, (_, model, method) in plan.stages().items():
        network, timer = create_model(model, data, seed=plan.seed), StepTimer()
        # use the fast form of the teacher, though it is inaccurate before training: only the speed matters
        with mock.patch.object(teacher_module, "MAX_LOGITS_ERROR", math.inf), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            training.distill(network, teacher, data, method, recipe, progress=timer)
        seconds[name] = timer.step_seconds
        teacher = teacher or network
    return seconds


def estimate_seconds(plan: Plan, step_seconds: Mapping[str, float]) -> float:
    """Estimate how long the whole demo takes.

    Evaluation after every epoch is included. Its forward pass takes about a third of a training step with one view.

    Parameters
    ----------
    plan : Plan
    step_seconds : dict
        The result of `measure_steps`.

    Returns
    -------
    float
        Seconds.
    """
    total = REPORT_STEPS * step_seconds["teacher"]
    for stage in STAGES:
        total += plan.steps(stage) * step_seconds[stage]
        if plan.steps(stage):
            forward = step_seconds["teacher" if stage == "teacher" else "supervised"] / 3
            recipe = plan.recipe(stage)
            total += recipe.epochs * views.steps_per_epoch(plan.test_size, recipe.batch_size) * forward
    return total


def choose_size(step_seconds: Mapping[str, float]) -> str:
    """Return the largest size of the demo that takes at most `MAX_MINUTES`.

    Parameters
    ----------
    step_seconds : dict
        The result of `measure_steps`.

    Returns
    -------
    str
        A key of `SIZES`. The smallest size, if all of them take longer.
    """
    fast_enough = [name for name, plan in SIZES.items() if estimate_seconds(plan, step_seconds) <= 60 * MAX_MINUTES]
    return fast_enough[-1] if fast_enough else next(iter(SIZES))


def is_finished(folder: Path) -> bool:
    """Return whether there is a finished run in a folder.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    bool

    Raises
    ------
    ValueError
        If the run.json in the folder cannot be read.
    """
    return (folder / "run.json").is_file() and runs.read_settings(folder)["status"] == "finished"


def find_size(out: Path) -> str | None:
    """Return the size of a demo that was started before.

    Parameters
    ----------
    out : Path
        Folder of the demo.

    Returns
    -------
    str or None
        A key of `SIZES`. None if no demo was started in this folder, or if its size is unknown.
    """
    try:
        if (out / "supervised" / "run.json").is_file():
            settings = runs.read_settings(out / "supervised")
            found = settings["data"]["train_images"], settings["recipe"]["epochs"]
            return next((name for name, plan in SIZES.items() if (plan.train_size, plan.epochs) == found), None)
        settings, recorded = runs.read_settings(out / "teacher"), SIZES["small"].find_recorded_teacher()
        return None if recorded and settings.get("fingerprint") == recorded.fingerprint else "full"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def copy_recorded_teacher(recorded: Run, folder: Path, overwrite: bool) -> Run:
    """Copy the recorded teacher into the folder of the demo.

    Parameters
    ----------
    recorded : Run
    folder : Path
        The run folder to create. It can already have the same run.
    overwrite : bool
        Whether to replace a run in the folder.

    Returns
    -------
    Run

    Raises
    ------
    ValueError
        If the folder has another run and `overwrite` is False.
    """
    if (folder / "run.json").is_file() and not overwrite:
        if runs.read_settings(folder).get("fingerprint") != recorded.fingerprint:
            advice = "overwrite=True replaces it, another out=… keeps it"
            raise ValueError(f"'{folder}' has another teacher than this size needs: {advice}")
    else:
        if folder.is_dir():
            resuming.remove_run(folder)
        recorded.save(folder)
    return runs.load_run(folder)


def run_demo(
    out: str | Path = DEFAULT_RUNS, overwrite: bool = False, size: str | None = None, plan: Plan | None = None
) -> Path:
    """Train a teacher and three students, print a table that compares them, and write a report.

    The runs go to out/teacher, out/supervised, out/kd and out/pckd.

    Parameters
    ----------
    out : path
        The folder. Finished runs in it are kept, and interrupted ones are resumed.
    overwrite : bool
        Whether to start again from the beginning.
    size : str, optional
        A key of `SIZES`. The default is the size that was started in `out`. If there is none, it is the largest size
        that takes at most five minutes on this machine.
    plan : Plan, optional
        What to train, in place of a size.

    Returns
    -------
    Path
        The report. If the notebook for the report is not installed, it is `out`.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C. Everything trained so far is on disk.
    ValueError
        If the size is unknown, or if `out` has runs with other settings.
    OSError
        If `out` cannot be written, or if one of its folders is not a run.
    """
    out = user_path(out, "out")
    if size is not None and size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size}")
    for name in STAGES:  # before anything that takes time
        resuming.check_run_folder(out / name, resume=not overwrite, overwrite=overwrite)
    started_size = None if overwrite else find_size(out)
    if not overwrite and all(is_finished(out / name) for name in STAGES):  # nothing to train or to measure
        plan, step_seconds = plan or SIZES[size or started_size or "full"], dict.fromkeys(STAGES, 0.0)
    else:
        print(f"This machine: {hardware.describe(make_fabric()[0].device)}. Measuring how fast it trains …", flush=True)
        step_seconds = measure_steps(plan)
    if plan is None:
        size = size or started_size or choose_size(step_seconds)
        plan = SIZES[size]
        print("\n".join(describe_sizes(step_seconds, size)))
    data = load_dataset("shapes100", train_size=plan.train_size, test_size=plan.test_size)
    print(
        f"shapes100: {len(data.train):,} training and {len(data.test):,} test images of {data.num_classes} categories"
    )
    trained: list[Run] = []
    with make_bar(estimate_seconds(plan, step_seconds), "demo", "second") as bar:
        estimated = 0.0
        for number, (name, (sentence, model, method)) in enumerate(plan.stages().items(), 1):
            bar.write(f"\n{number}/5 {sentence}")
            if name == "teacher" and (recorded := plan.find_recorded_teacher()):
                run = copy_recorded_teacher(recorded, out / name, overwrite)
            else:
                # with the same seed, all students have the same initial weights
                network = create_model(model, data, seed=plan.seed)
                run = training.distill(
                    network, trained[0] if trained else None, data, method, plan.recipe(name),
                    seed=plan.seed, out=out / name, resume=not overwrite, overwrite=overwrite,
                    progress=WeightedProgress(bar, step_seconds[name]),
                )  # fmt: skip
            if not run.finished:
                print("start the same command again to continue", file=sys.stderr)
                raise KeyboardInterrupt
            estimated += plan.steps(name) * step_seconds[name]
            bar.update(estimated - bar.n)  # count also the steps that were trained in an earlier run
            trained_for = f"{counted(len(run.history), 'epoch')} ({run.seconds:.0f} s on {run.settings['hardware']})"
            bar.write(f"    {run.accuracy:.1f} % accuracy on the test images, after {trained_for}")
            trained.append(run)
        bar.write("\n" + comparison_text(trained))
        if not NOTEBOOK.is_file():
            bar.write("\n5/5 No report: it is made from a notebook, which only a clone of the repository has.")
            return out
        bar.write(f"\n5/5 Report: {NOTEBOOK.name} is executed with these runs.")
        report = write_report(out)
        bar.update(bar.total - bar.n)
    return report


def describe_sizes(step_seconds: Mapping[str, float], chosen: str) -> list[str]:
    """Describe all sizes of the demo: what is trained, and how long it takes on this machine.

    Parameters
    ----------
    step_seconds : dict
        The result of `measure_steps`.
    chosen : str
        The size to mark.

    Returns
    -------
    list of str
        One line per size.
    """
    lines = []
    for name, plan in SIZES.items():
        minutes = estimate_seconds(plan, step_seconds) / 60
        if plan.find_recorded_teacher():
            teacher = "recorded teacher"
        else:
            teacher = f"teacher trained for {counted(plan.teacher_epochs, 'epoch')}"
        students = f"students trained for {counted(plan.epochs, 'epoch')}"
        mark = "  ← chosen size" if name == chosen else f"  (size {name})"
        lines.append(f"    {name:7} about {minutes:4.1f} minutes: {teacher}, {students}{mark}")
    return lines


def comparison_text(compared: list[Run]) -> str:
    """Return a table that compares runs, as text with aligned columns.

    Parameters
    ----------
    compared : list of Run
        The teacher first.

    Returns
    -------
    str
        One line per run.
    """
    table = runs.summary(compared)
    roles = ["teacher", *["student"] * (len(compared) - 1)]
    columns = {
        "": roles,
        "method": table["method"],
        "network": table["network"],
        "parameters": [f"{count:,}" for count in table["parameters"]],
        "top-1 %": [f"{value:.1f}" for value in table["top-1 %"]],
        "top-5 %": [f"{value:.1f}" for value in table["top-5 %"]],
        "seconds": [f"{value:.0f}" for value in table["seconds"]],
    }
    widths = {name: max(len(name), *map(len, cells)) for name, cells in columns.items()}
    left_aligned = ("", "method", "network")
    rows = [columns.keys(), *zip(*columns.values(), strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(widths[name]) if name in left_aligned else cell.rjust(widths[name])
            for name, cell in zip(columns, row, strict=True)
        ).rstrip()
        for row in rows
    )


# ---------------------------------------------------------------------------------------- the report


def find_runs() -> Path | None:
    """Return the folder with the runs of the demo.

    This is the folder in the environment variable PCKD_RUNS, if it is set. Otherwise it is runs/demo in the current
    folder, in a folder above it, or in the repository.

    Returns
    -------
    Path or None
        None if there is no such folder, or if one of its four runs is not finished.
    """
    from_environment = os.environ.get("PCKD_RUNS")
    here = Path.cwd()
    folders = (
        [user_path(from_environment, "PCKD_RUNS")]
        if from_environment
        else [parent / DEFAULT_RUNS for parent in (here, *here.parents, REPOSITORY)]
    )
    for folder in folders:
        if all(is_finished(folder / stage) for stage in STAGES):
            return folder
    return None


# The page template of nbconvert, without what it loads from the internet: require.js, MathJax, Mermaid and widgets.
PAGE_TEMPLATE = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_css -%}
<style>
main { max-width: 1000px; margin: 0 auto; padding: 1em 0 4em }
.jp-OutputArea-output img { max-width: 100%; height: auto }
</style>
{%- endblock -%}
"""


def write_report(folder: Path) -> Path:
    """Execute the first notebook with the runs in a folder, and write the result as an HTML page.

    Parameters
    ----------
    folder : Path
        Folder with the four runs of the demo.

    Returns
    -------
    Path
        folder/report.html, which includes all pictures and styles.

    Raises
    ------
    RuntimeError
        If a cell of the notebook fails.
    """
    notebook = execute(NOTEBOOK, folder)
    notebook.metadata["title"] = "PCKD: a teacher and three students"
    exporter = HTMLExporter(
        raw_template=PAGE_TEMPLATE, embed_images=True, exclude_input_prompt=True, exclude_output_prompt=True
    )
    page, _ = exporter.from_notebook_node(notebook)
    page = re.sub(r'<a class="anchor-link".*?</a>', "", page)
    report = folder / "report.html"
    files.write(report, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return report
