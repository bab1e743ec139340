"""Copy finished runs into data/runs, without the parts that no figure needs.

    python data/runs/record.py FROM TO [--tables-only] [--teachers FOLDER] [--weights]

Weights are kept only for teachers on data sets of this package, so that a class can start without training one.
The first seed of the main methods with resnet8 keeps its per-sample records, thumbnails and features. Two more seeds
on shapes100 keep their per-sample records. Images that we may not publish are removed, and so are their folders' names.
With --tables-only, a run keeps only settings, history and timing. The runs in data/other_teachers are made that way.
With --teachers, the teachers are in this folder already, under their names in FROM. With --weights, the weights of
teachers are kept for all data sets.
"""

import argparse
import os
from pathlib import Path

import pckd_nb as pckd
from pckd_nb.runs import SAMPLE_ARRAYS, Run

MAIN = ("supervised", "kd", "pckd")
EMBEDDED = ("shapes100", "digits")  # data sets that come with the package


def trim(run: Run, teacher: bool, arm: str) -> bool:
    """Remove the parts of a run that are not recorded. Return whether the weights are recorded."""
    data, seed = run.settings["data"]["name"], run.settings["seed"]
    main = arm in MAIN and run.settings["model"]["name"] == "resnet8"
    run.geometry = None
    if not (teacher or (main and seed == 0)):
        run.gallery = run.embedding = None
    main_seeds = data == "shapes100" and main and seed < 3
    other_strategy = data == "shapes100" and arm.startswith("pckd-strategy") and seed == 0
    if teacher or not (main_seeds or other_strategy or (main and arm == "pckd" and seed == 0)):
        for name in SAMPLE_ARRAYS:
            setattr(run, name, None)
    run.geometry = None
    if data.startswith("folder:"):
        run.gallery = None
        run.settings["data"]["name"] = f"folder:{Path(data.removeprefix('folder:')).name}"
    return teacher and data in EMBEDDED


def main(
    source: Path, target: Path, tables_only: bool = False, teachers: Path | None = None, weights: bool = False
) -> None:
    """Copy every finished run below `source` to the same place below `target`."""
    for file in sorted(source.rglob("run.json")):
        where = target / file.parent.relative_to(source)
        if pckd.runs.read_settings(file.parent)["status"] != "finished":
            print(f"left out, not finished: {file.parent}")
            continue
        run = pckd.load_run(file.parent, tables_only)
        teacher = file.parent.parent.name == "teachers"
        keep_weights = (trim(run, teacher, file.parent.parent.name) or (teacher and weights)) and not tables_only
        if teacher_info := run.settings["teacher"]:
            original = file.parent / teacher_info["run"]
            teacher_folder = teachers / original.name if teachers else target / os.path.relpath(original, source)
            teacher_info["run"] = Path(os.path.relpath(teacher_folder, where)).as_posix()
        run.method_state = {}
        # compute the t-SNE maps now: another kind of processor would draw them differently
        if run.embedding is not None:
            pckd.figures.feature_map(run)
            if len(run.settings["data"]["classes"]) >= 30:
                pckd.figures.center_map(run)
        run.save(where, weights=keep_weights)
        print(f"{where}: {run.title}, {run.accuracy:.2f} %")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="FROM")
    parser.add_argument("target", type=Path, metavar="TO")
    parser.add_argument("--tables-only", action="store_true")
    parser.add_argument("--teachers", type=Path, metavar="FOLDER")
    parser.add_argument("--weights", action="store_true")
    main(**vars(parser.parse_args()))
