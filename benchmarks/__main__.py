"""Measure, and write report.md and report.json into this folder.

    python -m benchmarks              measure all parts
    python -m benchmarks PART …       measure some parts
    python -m benchmarks scaling      estimate the cost of training on many GPUs; nothing is measured
    python -m benchmarks methods      measure what a step costs with every method; see `benchmarks.methods`
    python -m benchmarks trials       try every method on everything; see `benchmarks.trials`
    python -m benchmarks gpu          check and time the package on a GPU; see `benchmarks.gpu`

The result of every part is in results/PART.json, with its hardware and date, so the parts can be measured at different
times. The report contains all parts that were measured.
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

from . import gpu, memory, methods, pieces, report, scaling, steps, studies, trials
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
    """Measure one part, and write folder/results/PART.json.

    An interrupted measurement of accuracy continues, if settings and hardware are the same.

    Parameters
    ----------
    part : str
        A key of `PARTS`.
    settings : Settings
    folder : Path
        Folder of the report.
    machine : dict
        The result of `environment`, from before anything was measured.
    """
    file = folder / "results" / f"{part}.json"
    started = time.perf_counter()
    info: dict[str, Any] = {"part": part, "environment": machine, "settings": settings.used_by(part)}
    function = PARTS[part]
    if part == "accuracy":

        def save_rows(rows: list[dict[str, Any]]) -> None:
            write(file, {**info, "finished": False, "details": {"rows": rows}})

        function = partial(function, done=finished_rows(file, info), save_rows=save_rows)
    values, details = function(settings)
    seconds = round(time.perf_counter() - started, 1)
    info["planned_seconds"] = settings.planned.get(part)
    write(file, {**info, "finished": True, "seconds": seconds, "values": values, "details": details})


def finished_rows(file: Path, info: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of an interrupted measurement with the same settings, hardware and versions."""
    before: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"finished": True}
    if before["finished"] or before["settings"] != info["settings"]:
        return []
    same = all(before["environment"][name] == info["environment"][name] for name in ("hardware", "versions"))
    return before["details"]["rows"] if same else []


def write(file: Path, content: dict[str, Any]) -> None:
    """Write a JSON file. It is either written completely or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(unfinished, file)


def assemble(folder: Path) -> None:
    """Write report.json from all finished parts, and report.md from report.json."""
    found = {name: folder / "results" / f"{name}.json" for name in PARTS}
    parts = {name: json.loads(file.read_text()) for name, file in found.items() if file.exists()}
    parts = {name: part for name, part in parts.items() if part["finished"]}
    values = {key: value for part in parts.values() for key, value in part["values"].items()}
    write(folder / "report.json", {**values, "parts": parts})
    (folder / "report.md").write_text(report.render(json.loads((folder / "report.json").read_text())))


def main() -> None:
    """Run the command."""
    if sys.argv[1:2] == ["gpu"]:
        sys.exit(gpu.main(sys.argv[2:]))
    if sys.argv[1:2] == ["methods"]:
        return methods.main(sys.argv[2:])
    if sys.argv[1:2] == ["trials"]:
        sys.exit(trials.main(sys.argv[2:]))
    parser = argparse.ArgumentParser("python -m benchmarks", description="Measure how fast pckd_nb is.")
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help=f"{', '.join(PARTS)}. Default: all of them. Or one word alone: scaling, methods, trials or gpu",
    )
    parser.add_argument("--no-tsne", action="store_true", help="leave out the part tsne, which is slow")
    parser.add_argument("--accelerator", default="auto", help="cpu, cuda or auto")
    parser.add_argument(
        "--full", action="store_true", help="train the teachers, and measure for longer: an hour or more"
    )
    parser.add_argument(
        "--repetitions",
        type=int,
        default=Settings.repetitions,
        help="number of rounds; the report shows the median over rounds",
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the report")
    arguments = parser.parse_args()
    if arguments.parts == ["scaling"]:
        return print(scaling.text())
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        parser.error(
            f"there is no part '{unknown[0]}': choose from {', '.join(PARTS)}, or give scaling, methods, trials or gpu "
            "alone"
        )
    if arguments.repetitions < 1:
        parser.error(f"--repetitions must be 1 or more, got {arguments.repetitions}")
    settings = Settings(accelerator=arguments.accelerator, repetitions=arguments.repetitions)
    settings = (settings.full() if arguments.full else settings).for_device()
    parts = arguments.parts or [part for part in PARTS if not (part == "tsne" and arguments.no_tsne)]
    machine = environment(settings.device)  # before the measurements put load on the machine
    for part in parts:
        print(f"{time.strftime('%H:%M:%S')} {part}", flush=True)
        measure(part, settings, arguments.out, machine)
        assemble(arguments.out)
    print(f"{arguments.out / 'report.md'}")


if __name__ == "__main__":
    main()
