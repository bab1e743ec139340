"""The main job, as `pckd-nb demo` runs it: a teacher, one student trained three ways, a table and a report."""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbconvert import HTMLExporter

from . import files, resuming, runs, training
from .datasets import load_dataset
from .methods import KD, PCKD, Method, Supervised
from .models import create_model
from .notebooks import REPOSITORY, execute
from .recipes import get_recipe
from .runs import Run

NOTEBOOK = REPOSITORY / "notebooks" / "00_start_here.ipynb"
DEFAULT_RUNS = Path("runs") / "demo"
STAGES = ("teacher", "supervised", "kd", "pckd")


@dataclass(frozen=True)
class Plan:
    """What the demo trains, on how many images of shapes100, and for how many epochs if not the classroom recipe's."""

    teacher: str = "resnet20"
    student: str = "resnet8"
    train_size: int = 4000
    test_size: int = 2000
    epochs: int | None = None
    seed: int = 0


def run_demo(out: str | Path = DEFAULT_RUNS, overwrite: bool = False, plan: Plan | None = None) -> Path:
    """Train what the plan says into out/teacher, out/supervised, out/kd and out/pckd, and compare them.

    Runs that are there are gone on with, or kept where they are finished; overwrite starts over.
    Returns the path of the report, or `out` where the notebook it is made of is not installed.
    Raises KeyboardInterrupt after Ctrl-C, with what was done so far on disk; ValueError and others as `distill`.
    """
    out, plan = Path(out), plan or Plan()
    for name in STAGES:  # before anything costs time
        resuming.prepare(out / name, resume=not overwrite, overwrite=overwrite)
    data = load_dataset("shapes100", train_size=plan.train_size, test_size=plan.test_size)
    print(
        f"shapes100: {len(data.train):,} training and {len(data.test):,} test images of {data.num_classes} categories"
    )

    def stage(number: int, name: str, why: str, model: str, teacher: Run | None, method: Method) -> Run:
        print(f"\n{number}/5 {why}", flush=True)
        network = create_model(model, data, seed=plan.seed)  # the same seed: students start from the same weights
        recipe = get_recipe("classroom", **({"epochs": plan.epochs} if plan.epochs else {}))
        options: dict[str, Any] = dict(seed=plan.seed, out=out / name, resume=not overwrite, overwrite=overwrite)
        run = training.distill(network, teacher, data, method, recipe, **options)
        if not run.finished:
            print("the same command goes on from here", file=sys.stderr)
            raise KeyboardInterrupt
        print(f"    {run.accuracy:.1f} % of the test images right, after {run.seconds:.0f} s of training")
        return run

    why = f"A {plan.teacher} learns from the labels. It will be the teacher."
    teacher = stage(1, "teacher", why, plan.teacher, None, Supervised())
    lessons: tuple[tuple[str, str, Method], ...] = (
        ("supervised", f"A {plan.student}, much smaller, learns alone. What follows has to beat it.", Supervised()),
        ("kd", f"The same {plan.student} also copies the teacher's probabilities: KD.", KD()),
        ("pckd", f"The same {plan.student} also learns its categories, from four sides, easy first: PCKD.", PCKD()),
    )
    students = [
        stage(number, name, why, plan.student, teacher, method) for number, (name, why, method) in enumerate(lessons, 2)
    ]
    print("\n" + comparison([teacher, *students]))

    if not NOTEBOOK.is_file():
        print("\n5/5 No report: it is made of a notebook, and notebooks come with a clone of the repository.")
        return out
    print(f"\n5/5 {NOTEBOOK.name} is executed on these runs and becomes a report.", flush=True)
    return write_report(out)


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
    folders = [Path(given)] if given else [place / DEFAULT_RUNS for place in (here, *here.parents, REPOSITORY)]
    for folder in folders:
        if all((folder / stage / "run.json").is_file() for stage in STAGES):
            if all(runs.read_settings(folder / stage)["status"] == "finished" for stage in STAGES):
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
