"""python -m benchmarks [PART …]: measure, and write report.md and report.json into this folder.

python -m benchmarks scaling measures nothing: it prints what a training on many GPUs would cost.
python -m benchmarks gpu checks and times the package on a GPU, see `benchmarks.gpu`.

Every part is kept in results/PART.json with its hardware and date, so parts can be measured one by one. The report is
made of all parts that are there.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from . import gpu, memory, pieces, report, scaling, steps, studies
from .measure import environment
from .settings import Settings

PARTS: dict[str, Callable] = {
    "steps": steps.run,
    "data": pieces.data,
    "folders": pieces.folders,
    "contrast": pieces.contrast,
    "import": pieces.imports,
    "sweep": studies.sweep,
    "tsne": studies.tsne,
    "accuracy": studies.accuracy,
    "memory": memory.run,
}


def measure(part: str, settings: Settings, folder: Path, machine: dict[str, Any]) -> None:
    """Run one part and write folder/results/PART.json. accuracy goes on where an interrupted run of the same settings
    on the same hardware stopped. machine: its `environment` before anything was measured."""
    file = folder / "results" / f"{part}.json"
    started = time.perf_counter()
    about: dict[str, Any] = {"part": part, "environment": machine, "settings": settings.used_by(part)}
    function = PARTS[part]
    if part == "accuracy":

        def keep(rows: list[dict[str, Any]]) -> None:
            write(file, {**about, "finished": False, "details": {"rows": rows}})

        function = partial(function, done=left_over(file, about), keep=keep)
    values, details = function(settings)
    seconds = round(time.perf_counter() - started, 1)
    about["planned_seconds"] = settings.planned.get(part)
    write(file, {**about, "finished": True, "seconds": seconds, "values": values, "details": details})


def left_over(file: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that an interrupted run of the same settings, hardware and versions left in `file`."""
    before: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"finished": True}
    if before["finished"] or before["settings"] != about["settings"]:
        return []
    same = all(before["environment"][name] == about["environment"][name] for name in ("hardware", "versions"))
    return before["details"]["rows"] if same else []


def write(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(unfinished, file)


def assemble(folder: Path) -> None:
    """report.json of all finished parts, and report.md of it."""
    found = {name: folder / "results" / f"{name}.json" for name in PARTS}
    parts = {name: json.loads(file.read_text()) for name, file in found.items() if file.exists()}
    parts = {name: part for name, part in parts.items() if part["finished"]}
    values = {key: value for part in parts.values() for key, value in part["values"].items()}
    write(folder / "report.json", {**values, "parts": parts})
    (folder / "report.md").write_text(report.render(json.loads((folder / "report.json").read_text())))


def main() -> None:
    if sys.argv[1:2] == ["gpu"]:
        sys.exit(gpu.main(sys.argv[2:]))
    parser = argparse.ArgumentParser("python -m benchmarks", description="Measure how fast pckd_nb is.")
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all unless said; or scaling, or gpu"
    )
    parser.add_argument("--no-tsne", action="store_true", help="leave out the maps, which are slow")
    parser.add_argument("--accelerator", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--full", action="store_true", help="trained teachers and longer studies: an hour or more")
    parser.add_argument("--repetitions", type=int, default=Settings.repetitions, help="rounds that a median is of")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the report")
    arguments = parser.parse_args()
    if arguments.parts == ["scaling"]:
        return print(scaling.text())
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        parser.error(f"there is no part '{unknown[0]}'; known: {', '.join(PARTS)}")
    if arguments.repetitions < 1:
        parser.error(f"repetitions must be 1 or more, got {arguments.repetitions}")
    settings = Settings(accelerator=arguments.accelerator, repetitions=arguments.repetitions)
    settings = (settings.full() if arguments.full else settings).for_device()
    parts = arguments.parts or [part for part in PARTS if not (part == "tsne" and arguments.no_tsne)]
    machine = environment(settings.device)  # now, while nothing of ours loads it
    for part in parts:
        print(f"{time.strftime('%H:%M:%S')} {part}", flush=True)
        measure(part, settings, arguments.out, machine)
        assemble(arguments.out)
    print(f"{arguments.out / 'report.md'}")


if __name__ == "__main__":
    main()
