"""Copy finished runs into data/runs, without what no figure needs: python data/runs/record.py FROM TO [--tables-only]

Weights are kept of the teachers of data sets that come with the package, so that a class need not wait for one.
Records of single samples, thumbnails and features are kept for the first seed of resnet8's main arms, records of
samples for two more seeds of shapes100. Images that are not ours to publish are dropped, and where they lay.
With --tables-only, as for the runs in data/other_teachers, nothing is kept but settings, history and timing.
"""

import os
import sys
from pathlib import Path

import pckd_nb as pckd
from pckd_nb.runs import Run

MAIN = ("supervised", "kd", "pckd")
EMBEDDED = ("shapes100", "digits")  # data sets that come with the package


def trim(run: Run, teacher: bool, arm: str) -> bool:
    """Drop what is not to be kept of a run; returns whether its weights are."""
    data, seed = run.settings["data"]["name"], run.settings["seed"]
    main = arm in MAIN and run.settings["model"]["name"] == "resnet8"
    if not (teacher or (main and seed == 0)):
        run.gallery = run.embedding = None
    several = data == "shapes100" and main and seed < 3
    strategies = data == "shapes100" and arm.startswith("pckd-strategy") and seed == 0
    if teacher or not (several or strategies or (main and arm == "pckd" and seed == 0)):
        run.cross_entropy = run.difficulty = run.labels = run.ground_truth = None
    if data.startswith("folder:"):
        run.gallery = None
        run.settings["data"]["name"] = f"folder:{Path(data.removeprefix('folder:')).name}"
    return teacher and data in EMBEDDED


def main(source: Path, target: Path, tables_only: bool = False) -> None:
    for file in sorted(source.rglob("run.json")):
        where = target / file.parent.relative_to(source)
        if pckd.runs.read_settings(file.parent)["status"] != "finished":
            print(f"left out, not finished: {file.parent}")
            continue
        run = pckd.load_run(file.parent, tables_only)
        teacher = file.parent.parent.name == "teachers"
        keep_weights = trim(run, teacher, file.parent.parent.name) and not tables_only
        if about := run.settings["teacher"]:
            taught_by = target / os.path.relpath(file.parent / about["run"], source)
            about["run"] = Path(os.path.relpath(taught_by, where)).as_posix()
        run.method_state = {}
        if run.embedding is not None:  # its t-SNE maps, which would look different on another kind of processor
            pckd.figures.feature_map(run)
            if len(run.settings["data"]["classes"]) >= 30:
                pckd.figures.center_map(run)
        run.save(where, weights=keep_weights)
        print(f"{where}: {run.title}, {run.accuracy:.2f} %")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), "--tables-only" in sys.argv[3:])
