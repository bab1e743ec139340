"""Check and time the package on a GPU, in at most eight minutes, and write gpu.md.

    python -m benchmarks gpu                            on a GPU: writes benchmarks/gpu.md and gpu.json
    python -m benchmarks gpu --dry-run --out FOLDER     on the CPU, at toy sizes: tests the command itself

The checks of `benchmarks.gpu_checks` come first, then the samples per second of both pairs of networks. The parts run
one after the other, the most important ones first, in a process of their own. If the time runs out, the remaining parts
are reported as skipped. A part that crashes its process is reported as failed, and the next one starts in a new
process.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from . import gpu_checks, steps
from .measure import environment, memory_bandwidth
from .report import LINES, interval, table
from .settings import PAIRS, Settings

FOLDER = Path(__file__).parent
MINUTES = 8.0
RESERVED_SECONDS = 5.0  # to end the last part and write the report
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
NO_TIME = "out of time"
NO_GPU = "there is no CUDA device: use --dry-run --out FOLDER to test this command on the CPU, at toy sizes"
SPEEDS = [(pair, position) for position in (0, 1) for pair in PAIRS]  # pair of networks, index of the batch size
TOY_PAIRS = {"wrn": ("resnet14", "resnet8"), "resnet": ("resnet8", "resnet8")}


@dataclass(frozen=True)
class Result:
    """The result of a part.

    Parameters
    ----------
    status : str
        "passed", "failed" or "skipped".
    found : str
        One sentence about what was found.
    seconds : float
        The time of the part.
    details : dict
        Measured values.
    """

    status: str
    found: str
    seconds: float = 0.0
    details: dict[str, Any] | None = None


def settings_for(dry_run: bool, root: str | Path) -> Settings:
    """Return the settings of the measurements. `root` is the folder of generated data."""
    common: dict[str, Any] = {"root": Path(root), "planned": {"steps": 45.0}, "warmup": 2}
    if dry_run:
        return Settings(
            accelerator="cpu", repetitions=2, batch_sizes=(8, 16), train_size=100, workers=0, teacher_train_size=100,
            steps=1, pairs=TOY_PAIRS, peak_side=64, peak_seconds=0.01, copied_mebibytes=1, **{**common, "warmup": 1},
        )  # fmt: skip
    return Settings(
        accelerator="cuda", repetitions=7, batch_sizes=(64, 1024), train_size=4096, steps=5, peak_side=8192,
        peak_seconds=0.5, **common,
    )  # fmt: skip


def parts(dry_run: bool, root: str | Path) -> dict[str, Callable[[], Result]]:
    """Return all parts by name, the most important first."""
    sizes = gpu_checks.Sizes.toy() if dry_run else gpu_checks.Sizes()
    settings = settings_for(dry_run, root)
    functions: dict[str, Callable[[], Result]] = {name: partial(check, name, sizes) for name in gpu_checks.CHECKS}
    for pair, position in SPEEDS:
        batch_size = settings.batch_sizes[position]
        functions[f"speed, {' → '.join(settings.pairs[pair])}, batch {batch_size}"] = partial(
            speed, replace(settings, batch_sizes=(batch_size,), pairs={pair: settings.pairs[pair]}), pair
        )
    return functions


def check(name: str, sizes: gpu_checks.Sizes) -> Result:
    """Run one of `gpu_checks.CHECKS`."""
    try:
        return Result(PASSED, gpu_checks.CHECKS[name](sizes))
    except gpu_checks.CheckSkippedError as reason:
        return Result(SKIPPED, str(reason))
    except gpu_checks.CheckFailedError as problem:
        return Result(FAILED, str(problem))


def speed(settings: Settings, pair: str) -> Result:
    """Measure the samples per second of one pair of networks at one batch size."""
    (batch_size,) = settings.batch_sizes
    peak = steps.peaks(settings)
    bandwidth = memory_bandwidth(settings.device, settings.copied_mebibytes, settings.peak_seconds)
    with TemporaryDirectory() as folder:
        found = steps.measure_pair(settings, pair, batch_size, Path(folder), peak, bandwidth)
    live, cached = (found["ratios"][f"{name}_over_plain"]["value"] for name in ("live", "cached"))
    sentence = (
        f"with a live teacher {live:.2f} times as fast as the plain loop, with the teacher cache {cached:.2f} times"
    )
    return Result(PASSED, sentence, details={**found, "peaks_flops": peak, "bytes_per_second": bandwidth})


def run_parts(names: list[str], dry_run: bool, root: str, file: Path) -> None:
    """Run parts in this process. Append one line to the file before and one after each part."""
    functions = parts(dry_run, root)
    with file.open("a") as lines:
        for name in names:
            print(json.dumps({"part": name}), file=lines, flush=True)
            started = time.perf_counter()
            try:
                result = functions[name]()
            except Exception as error:
                traceback.print_exc()
                result = Result(FAILED, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
            result = replace(result, seconds=round(time.perf_counter() - started, 1))
            print(json.dumps({"part": name, **vars(result)}), file=lines, flush=True)


def supervise(
    names: list[str], command: Callable[[list[str], Path], list[str]], deadline: float, **popen_args: Any
) -> Iterator[tuple[str, Result]]:
    """Run parts in processes of their own, and yield the name and result of each part.

    Parameters
    ----------
    names : list of str
        The parts, the most important first.
    command : callable
        Gets names of parts and a file. Returns the command that runs these parts and writes the file, as `run_parts`
        does.
    deadline : float
        At this value of `time.monotonic`, the process is ended, and the remaining parts are skipped.
    **popen_args
        Arguments of `subprocess.Popen`.

    Yields
    ------
    name : str
    result : Result
    """
    remaining = list(names)
    while remaining and time.monotonic() < deadline:
        with TemporaryDirectory() as folder:
            file = Path(folder) / "results.jsonl"
            file.touch()
            process = subprocess.Popen(command(remaining, file), start_new_session=True, **popen_args)
            seen, started_part = 0, None
            try:
                while True:
                    ended = process.poll() is not None
                    text = file.read_text()
                    lines = text[: text.rfind("\n") + 1].splitlines()
                    for line in lines[seen:]:
                        content = json.loads(line)
                        started_part = content.pop("part")
                        if content:
                            remaining.remove(started_part)
                            yield started_part, Result(**content)
                            started_part = None
                    seen = len(lines)
                    if ended or time.monotonic() >= deadline:
                        break
                    time.sleep(0.1)
            finally:
                stop(process)
        if remaining and time.monotonic() < deadline:
            # if the process ended before the first part, a new process would end there too
            failed_parts = [started_part] if started_part else list(remaining)
            for name in failed_parts:
                remaining.remove(name)
                yield name, Result(FAILED, f"its process ended with code {process.returncode}")
    for name in remaining:
        yield name, Result(SKIPPED, NO_TIME)


def stop(process: subprocess.Popen) -> None:
    """End a process and the processes that it has started, if it is still running."""
    if process.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, 9)
        else:
            process.kill()
        process.wait()


def gpu_environment() -> dict[str, Any]:
    """Return the GPU, its driver and the versions of CUDA libraries. Without a GPU, the result is empty."""
    if not torch.cuda.is_available():
        return {}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.split()
    except (OSError, subprocess.SubprocessError):
        driver = []
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "gpus": torch.cuda.device_count(),
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": driver[0] if driver else "unknown",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else None,
    }


def render(report: dict[str, Any]) -> str:
    """Return the text of gpu.md, from the content of gpu.json."""
    environment_info, results = report["environment"], report["parts"]
    gpu = report["gpu"]
    if report["dry_run"]:
        head = "**No GPU was used. This is a dry run on a CPU at toy sizes: its numbers say nothing about a GPU.**"
    else:
        head = f"# Checked on {gpu['gpu']}"
    counts = {status: sum(result["status"] == status for result in results.values()) for status in STATUSES}
    facts = {
        "device": f"{gpu['gpus']} × {gpu['gpu']}, {gpu['gpu_memory_gib']} GiB" if gpu else "none",
        "driver": gpu.get("driver", "none"),
        "CUDA, cuDNN, NCCL": ", ".join(str(gpu[name]) for name in ("cuda", "cudnn", "nccl")) if gpu else "none",
        "processor": f"{environment_info['cpu']}, {environment_info['cpu_cores']} cores",
        "versions": ", ".join(f"{name} {version}" for name, version in environment_info["versions"].items()),
        "python": environment_info["python"],
        "date (UTC)": environment_info["date"],
        "time taken": f"{report['seconds'] / 60:.1f} of {report['minutes']:g} minutes",
    }
    text = [
        head,
        f"Made by `python -m benchmarks gpu{' --dry-run' * report['dry_run']}` from gpu.json.",
        table(("", ""), facts.items()),
        "## Checks and measurements",
        ", ".join(f"{count} {status}" for status, count in counts.items()) + ".",
        table(
            ("part", "result", "seconds", "found"),
            (
                (
                    name,
                    result["status"] if result["status"] != FAILED else "**failed**",
                    f"{result['seconds']:.1f}",
                    result["found"].replace("|", "\\|"),
                )
                for name, result in results.items()
            ),
        ),
    ]
    measured = [result["details"] for result in results.values() if result["details"]]
    if measured:
        text += [
            "## Speed",
            "Samples per second are medians over rounds, with (min – max). In each round, all lines are timed one "
            "after the other. A sample is an image with its four views. The plain loop is benchmarks/reference.py. The "
            "teachers are not trained: they have initial weights with small residual branches, BatchNorm statistics of "
            "training images, and class means as the last layer.",
            *(part for found in measured for part in speed_tables(found)),
        ]
    return "\n\n".join(text) + "\n"


STATUSES = (PASSED, FAILED, SKIPPED)


def speed_tables(found: dict[str, Any]) -> list[str]:
    """Return a heading, a sentence and the tables of one pair at one batch size."""
    ratios = {"live": "live_over_plain", "cached": "cached_over_plain"}
    lines = [name for name in found["lines"] if name != "bare, eager" or found["compiled"]]
    bare = found["lines"]["bare"]["samples_per_second"]["median"]

    def row(name: str) -> tuple[str, ...]:
        line = found["lines"][name]
        speed = line["samples_per_second"]
        plain = f"{found['ratios'][ratios[name]]['value']:.2f}" if name in ratios else ""
        share = f"{line['share_of_peak']:.1%} of {line['peak']}"
        return (LINES[name], interval(speed, ",.1f"), plain, f"{speed['median'] / bare:.2f}", share)

    return [
        f"### {found['teacher']} → {found['student']}, batch {found['batch_size']}",
        f"The student is {'' if found['compiled'] else 'not '}compiled. The teacher runs in {found['teacher_form']}, "
        f"and its logits have a relative error of {found['teacher_logits_error']:.2%}.",
        table(("", "samples/s", "÷ plain loop", "÷ networks alone", "share of peak"), map(row, lines)),
        table(
            ("share of the time of a step", *next(iter(found["profile"].values()))),
            (
                (LINES[name], *(f"{share:.1%}" for share in shares.values()))
                for name, shares in found["profile"].items()
            ),
        ),
    ]


def main(arguments: list[str]) -> int:
    """Run the command. Return 0, or 1 if a part failed, or 2 if there is no GPU."""
    started = time.monotonic()
    parser = argparse.ArgumentParser("python -m benchmarks gpu", description="Check and time pckd_nb on a GPU.")
    parser.add_argument("--dry-run", action="store_true", help="test this command on the CPU, at toy sizes")
    parser.add_argument("--out", type=Path, help="folder of gpu.md and gpu.json. Default: benchmarks")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time for all parts; the rest is skipped")
    chosen = parser.parse_args(arguments)
    out = chosen.out or FOLDER
    if chosen.dry_run and out.resolve() == FOLDER.resolve():
        parser.error("--dry-run needs --out FOLDER, and not the folder benchmarks, which is for real reports")
    if not chosen.dry_run and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    info = environment(torch.device("cpu" if chosen.dry_run else "cuda"))
    report: dict[str, Any] = {
        "dry_run": chosen.dry_run,
        "minutes": chosen.minutes,
        "environment": info,
        "gpu": {} if chosen.dry_run else gpu_environment(),
        "parts": {},
    }
    with TemporaryDirectory() as root:

        def command(names: list[str], file: Path) -> list[str]:
            return [sys.executable, "-m", "benchmarks.gpu", json.dumps([names, chosen.dry_run, root, str(file)])]

        popen_args: dict[str, Any] = {"cwd": FOLDER.parent}
        if chosen.dry_run:
            hidden = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
            popen_args["env"] = {**os.environ, **hidden}
        deadline = started + 60 * chosen.minutes - RESERVED_SECONDS
        for name, result in supervise(list(parts(chosen.dry_run, root)), command, deadline, **popen_args):
            print(f"{time.strftime('%H:%M:%S')} {name}: {result.status}, {result.found}", flush=True)
            report["parts"][name] = vars(result)
    report["seconds"] = round(time.monotonic() - started, 1)
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "gpu.md").write_text(render(json.loads((out / "gpu.json").read_text())))
    print(out / "gpu.md")
    return int(any(result["status"] == FAILED for result in report["parts"].values()))


if __name__ == "__main__":
    chosen_names, is_dry_run, data_root, results = json.loads(sys.argv[1])
    run_parts(chosen_names, is_dry_run, data_root, Path(results))
