"""The main job, as `pckd-nb demo` runs it: a teacher, one student trained three ways, a table and a report."""

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
from .training import teacher as teaching

NOTEBOOK = REPOSITORY / "notebooks" / "00_start_here.ipynb"
RECORDED, RECORD = REPOSITORY / "data" / "runs", Path("teachers") / "shapes100"
DEFAULT_RUNS = Path("runs") / "demo"
STAGES = ("teacher", "supervised", "kd", "pckd")


@dataclass(frozen=True)
class Plan:
    """What the demo trains, on how many images of shapes100, and for how many epochs.

    recorded_teacher: take the teacher of the recorded runs, where they are at hand, as in a clone of the repository.
    Else it is trained, for `teacher_epochs`.
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
        """Of a stage."""
        return get_recipe("classroom", epochs=self.teacher_epochs if stage == "teacher" else self.epochs)

    def steps(self, stage: str) -> int:
        """Training steps of a stage."""
        if stage == "teacher" and self.record():
            return 0
        recipe = self.recipe(stage)
        return views.steps_per_epoch(self.train_size, recipe.batch_size) * recipe.epochs

    def record(self) -> Run | None:
        """The recorded teacher, if the plan wants it and it is there."""
        if not (self.recorded_teacher and (RECORDED / RECORD / "run.json").is_file()):
            return None
        return runs.load_run(RECORDED / RECORD)

    def stages(self) -> dict[str, tuple[str, str, Method]]:
        """By name: what happens in a stage, the network it trains, and how."""
        learns = f"A {self.teacher} has learned from the labels; its run is recorded." if self.record() else (
            f"A {self.teacher} learns from the labels."
        )  # fmt: skip
        first = f"{learns} It will be the teacher."
        alone = f"A {self.student}, much smaller, learns alone. What follows has to beat it."
        by_kd = f"The same {self.student} also copies the teacher's probabilities: KD."
        by_pckd = f"The same {self.student} also learns its categories, from four sides, easy first: PCKD."
        return {
            "teacher": (first, self.teacher, Supervised()),
            "supervised": (alone, self.student, Supervised()),
            "kd": (by_kd, self.student, KD()),
            "pckd": (by_pckd, self.student, PCKD()),
        }


# The same story at several lengths: in fewer epochs the students are further from their end.
SIZES = {
    "small": Plan(epochs=4, recorded_teacher=True),
    "medium": Plan(epochs=6, recorded_teacher=True),
    "full": Plan(),
}
MINUTES = 5  # what the size is chosen for
MEASURED_STEPS = 6  # of each stage; the first two are slower, and left out
REPORT_STEPS = 250  # of the teacher: the time in which the report is made


class Clock:
    """Told of every step, it remembers when that was."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def update(self, n: float = 1) -> None:
        self.times.append(time.perf_counter())

    def set_postfix_str(self, s: str) -> None:
        """An epoch says nothing of a step's time."""

    @property
    def seconds(self) -> float:
        """Of a step."""
        return statistics.median(np.diff(self.times[2:]))


def measure_steps(plan: Plan | None = None) -> dict[str, float]:
    """Seconds of one training step of every stage on this machine, found by doing a few. Takes some ten seconds."""
    plan = plan or Plan()
    recipe = get_recipe("classroom", epochs=1)
    data = load_dataset("shapes100", train_size=MEASURED_STEPS * recipe.batch_size, test_size=100)
    seconds, teacher = {}, None
    for name, (_, model, method) in plan.stages().items():
        network, clock = create_model(model, data, seed=plan.seed), Clock()
        # a teacher that knows nothing yet takes the form of one that does: only its speed matters here
        with mock.patch.object(teaching, "TOLERANCE", math.inf), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            training.distill(network, teacher, data, method, recipe, progress=clock)
        seconds[name] = clock.seconds
        teacher = teacher or network
    return seconds


def projected_seconds(plan: Plan, step_seconds: Mapping[str, float]) -> float:
    """Seconds that the whole demo takes, by those of one step of every stage.

    Testing needs a forward pass, a third of a step of one view, for every batch of test images after every epoch.
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
    """The largest of `SIZES` that ends within `MINUTES`; the smallest where none does."""
    fitting = [name for name, plan in SIZES.items() if projected_seconds(plan, step_seconds) <= 60 * MINUTES]
    return fitting[-1] if fitting else next(iter(SIZES))


def is_finished(folder: Path) -> bool:
    """Whether there is a finished run in a folder."""
    return (folder / "run.json").is_file() and runs.read_settings(folder)["status"] == "finished"


def size_of(out: Path) -> str | None:
    """The size of the demo that was begun in `out`; None where there is none, or it is of no size."""
    try:
        if (out / "supervised" / "run.json").is_file():
            begun = runs.read_settings(out / "supervised")
            found = begun["data"]["train_images"], begun["recipe"]["epochs"]
            return next((name for name, plan in SIZES.items() if (plan.train_size, plan.epochs) == found), None)
        begun, record = runs.read_settings(out / "teacher"), SIZES["small"].record()
        return None if record and begun.get("fingerprint") == record.fingerprint else "full"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def take_teacher(record: Run, folder: Path, overwrite: bool) -> Run:
    """A copy of the recorded run in a folder of the demo. Raises ValueError where another teacher is there."""
    if (folder / "run.json").is_file() and not overwrite:
        if runs.read_settings(folder).get("fingerprint") != record.fingerprint:
            how = "overwrite=True replaces it, another out=… keeps it"
            raise ValueError(f"'{folder}' holds another teacher than this size needs: {how}")
    else:
        if folder.is_dir():
            resuming.remove_run(folder)
        record.save(folder)
    return runs.load_run(folder)


def run_demo(
    out: str | Path = DEFAULT_RUNS, overwrite: bool = False, size: str | None = None, plan: Plan | None = None
) -> Path:
    """Train a teacher and three students into out/teacher, out/supervised, out/kd and out/pckd, and compare them.

    Parameters
    ----------
    out : path
        The folder. Runs that are there are gone on with, or kept where they are finished.
    overwrite : bool
        Start over.
    size : str, optional
        One of `SIZES`. Left out, it is the size that was begun in `out`, else the largest that ends in five minutes on
        this machine, which is measured first.
    plan : Plan, optional
        What to train, instead of a size.

    Returns
    -------
    Path
        The report, or `out` where the notebook it is made of is not installed.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C, with what was done so far on disk.
    ValueError
        For an unknown size, and others as `distill`.
    """
    out = user_path(out, "out")
    if size is not None and size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size}")
    for name in STAGES:  # before anything costs time
        resuming.check_run_folder(out / name, resume=not overwrite, overwrite=overwrite)
    begun = None if overwrite else size_of(out)
    if not overwrite and all(is_finished(out / name) for name in STAGES):  # nothing to train, so nothing to measure
        plan, step_seconds = plan or SIZES[size or begun or "full"], dict.fromkeys(STAGES, 0.0)
    else:
        print(f"This machine: {hardware.describe(make_fabric()[0].device)}. Measuring how fast it trains …", flush=True)
        step_seconds = measure_steps(plan)
    if plan is None:
        size = size or begun or choose_size(step_seconds)
        plan = SIZES[size]
        print("\n".join(describe_sizes(step_seconds, size)))
    data = load_dataset("shapes100", train_size=plan.train_size, test_size=plan.test_size)
    print(
        f"shapes100: {len(data.train):,} training and {len(data.test):,} test images of {data.num_classes} categories"
    )
    trained: list[Run] = []
    with make_bar(projected_seconds(plan, step_seconds), "demo", "second") as bar:
        planned = 0.0
        for number, (name, (why, model, method)) in enumerate(plan.stages().items(), 1):
            bar.write(f"\n{number}/5 {why}")
            if name == "teacher" and (record := plan.record()):
                run = take_teacher(record, out / name, overwrite)
            else:
                network = create_model(model, data, seed=plan.seed)  # the same seed: students start alike
                run = training.distill(
                    network, trained[0] if trained else None, data, method, plan.recipe(name),
                    seed=plan.seed, out=out / name, resume=not overwrite, overwrite=overwrite,
                    progress=WeightedProgress(bar, step_seconds[name]),
                )  # fmt: skip
            if not run.finished:
                print("the same command goes on from here", file=sys.stderr)
                raise KeyboardInterrupt
            planned += plan.steps(name) * step_seconds[name]
            bar.update(planned - bar.n)  # where a finished run was kept, or had begun
            spent = (
                f"{counted(len(run.history), 'epoch')}, {run.seconds:.0f} s of training on {run.settings['hardware']}"
            )
            bar.write(f"    {run.accuracy:.1f} % of the test images right, after {spent}")
            trained.append(run)
        bar.write("\n" + comparison(trained))
        if not NOTEBOOK.is_file():
            bar.write("\n5/5 No report: it is made of a notebook, and notebooks come with a clone of the repository.")
            return out
        bar.write(f"\n5/5 {NOTEBOOK.name} is executed on these runs and becomes a report.")
        report = write_report(out)
        bar.update(bar.total - bar.n)
    return report


def describe_sizes(step_seconds: Mapping[str, float], chosen: str) -> list[str]:
    """A line per size: what it trains, and how long that takes on this machine."""
    lines = []
    for name, plan in SIZES.items():
        minutes = projected_seconds(plan, step_seconds) / 60
        teacher = (
            "recorded teacher" if plan.record() else f"teacher trained for {counted(plan.teacher_epochs, 'epoch')}"
        )
        what = f"{teacher}, students for {plan.epochs}"
        mark = "  ← this one" if name == chosen else f"  (size {name})"
        lines.append(f"    {name:7} about {minutes:4.1f} minutes: {what}{mark}")
    return lines


def comparison(compared: list[Run]) -> str:
    """`runs.summary` as aligned text, the teacher's row first."""
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
    words = ("", "method", "network")  # flush left; numbers flush right
    rows = [columns.keys(), *zip(*columns.values(), strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(widths[name]) if name in words else cell.rjust(widths[name])
            for name, cell in zip(columns, row, strict=True)
        ).rstrip()
        for row in rows
    )


# ---------------------------------------------------------------------------------------- the notebook on runs


def find_runs() -> Path | None:
    """The folder of the demo's runs: $PCKD_RUNS, else runs/demo here, in a folder above or in the repository.

    None where there is none, or where one of its four runs is not finished.
    """
    given = os.environ.get("PCKD_RUNS")
    here = Path.cwd()
    folders = (
        [user_path(given, "PCKD_RUNS")]
        if given
        else [place / DEFAULT_RUNS for place in (here, *here.parents, REPOSITORY)]
    )
    for folder in folders:
        if all(is_finished(folder / stage) for stage in STAGES):
            return folder
    return None


# nbconvert's page without what it would load from elsewhere: require.js, MathJax, Mermaid and widgets.
PAGE = """{%- extends 'lab/index.html.j2' -%}
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
    """Execute the first notebook on the runs in `folder`; write and return folder/report.html, one file with all."""
    book = execute(NOTEBOOK, folder)
    book.metadata["title"] = "PCKD: a teacher and three students"
    exporter = HTMLExporter(raw_template=PAGE, embed_images=True, exclude_input_prompt=True, exclude_output_prompt=True)
    page, _ = exporter.from_notebook_node(book)
    page = re.sub(r'<a class="anchor-link".*?</a>', "", page)
    report = folder / "report.html"
    files.write(report, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return report
