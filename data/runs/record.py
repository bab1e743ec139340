"""Copy finished runs into data/runs without their weights: what figures and tables are drawn from.

python data/runs/record.py FROM TO     every run below FROM, to the same place below TO
"""

import sys
from pathlib import Path

import pckd_nb as pckd


def main(source: Path, target: Path) -> None:
    for file in sorted(source.rglob("run.json")):
        run = pckd.load_run(file.parent)
        if not run.finished:
            print(f"left out, not finished: {run.path}")
            continue
        where = target / file.parent.relative_to(source)
        if run.settings["seed"] != 0:  # pictures are drawn of the first seed, numbers of all
            run.gallery = run.embedding = None
        name = run.settings["data"]["name"]
        if name.startswith("folder:"):  # its images are not ours to publish; where it lay says nothing to others
            run.gallery = None
            run.settings["data"]["name"] = f"folder:{Path(name.removeprefix('folder:')).name}"
        run.save(where, weights=False)
        print(f"{where}: {run.title}, {run.accuracy:.2f} %")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
