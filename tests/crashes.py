"""Kill trainings again and again, and check that the resumed result equals that of an uninterrupted training.

    python -m tests.crashes --kills 100

Each attempt runs in its own process, forked from a server process that has already imported torch. It ends by SIGKILL.
Either this program sends it at a random time, or the process kills itself just before a random line of the code that
writes checkpoints, or of files.py, runs.py, resuming.py and teacher_cache.py. The next attempt resumes, until one
finishes. The files that are left must be those of an uninterrupted training, byte for byte, with no others. Needs a
system that can fork: Linux or macOS.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import pckd_nb as pckd
from benchmarks.trials import COMPARED, FINISHED_FILES, save_always, use_one_thread
from pckd_nb import cli, files, resuming, runs
from pckd_nb.training import teacher_cache as cache

from .conftest import make_data

KILL_KINDS = "checkpoint", "outside", "checkpoint", "anywhere"  # the kinds of kills, in turn
MAX_KILLS_PER_TRAINING = 5  # at most this many kills per training

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pckd_nb.cli", "pckd_nb.experiments", "tests.conftest", "benchmarks.trials"])


class LineCounter:
    """A trace function that counts executed lines of FILES, the modules that write files. It can kill the process.

    where: "checkpoint" counts only lines of `resuming.write_checkpoint` and the functions it calls; "anywhere" all.
    line: kill the process before this line, counted from 1; 0 for never.
    """

    FILES = {files.__file__, runs.__file__, resuming.__file__, cache.__file__, __file__}

    def __init__(self, where: str, line: int):
        self.where, self.line, self.lines = where, line, {"checkpoint": 0, "anywhere": 0}

    def __call__(self, frame: FrameType, event: str, value: Any) -> Callable | None:
        return self.trace_line if frame.f_code.co_filename in self.FILES else None

    def trace_line(self, frame: FrameType, event: str, value: Any) -> Callable:
        if event == "line":
            self.lines["anywhere"] += 1
            self.lines["checkpoint"] += in_checkpoint(frame)
            if self.line and self.lines[self.where] == self.line:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.trace_line


def in_checkpoint(frame: FrameType | None) -> bool:
    while frame and frame.f_code is not resuming.write_checkpoint.__code__:
        frame = frame.f_back
    return frame is not None


def write_in_two(path: Path, content: bytes | memoryview) -> None:
    """Replace Path.write_bytes by two writes, so that a kill can hit between them."""
    half = len(content) // 2
    with open(path, "wb") as file:
        file.write(content[:half])
        file.flush()
        file.write(content[half:])


def train(folder: Path, teacher_cache: Path | None, often: bool, counter: LineCounter, pipe: Connection) -> None:
    """Run one attempt: twelve steps in four epochs. Report its start and the counted lines through `pipe`."""
    use_one_thread()
    warnings.simplefilter("ignore")
    data = make_data()
    student, teacher = pckd.create_model("resnet8", data, seed=2), pckd.create_model("resnet14", data, seed=1)
    recipe = pckd.get_recipe("classroom", epochs=4, batch_size=16)
    options = dict(accelerator="cpu", precision="32-true", progress=False)
    Path.write_bytes = write_in_two
    if often:
        save_always()
    pipe.send("started")
    started = time.monotonic()
    if often:
        sys.settrace(counter)
    pckd.distill(
        student, teacher, data, pckd.PCKD(), recipe, out=folder, resume=True, teacher_cache=teacher_cache, **options
    )
    sys.settrace(None)
    pipe.send((counter.lines, time.monotonic() - started))


def attempt(
    folder: Path, teacher_cache: Path | None, often: bool = True, counter: LineCounter | None = None, after: float = 0
) -> tuple[dict[str, int], float] | None:
    """Train in a new process. Return the counted lines and the seconds, or None if it was killed.

    after: kill the process this many seconds after its start. Raises AssertionError if it ends in any other way.
    """
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=train, args=(folder, teacher_cache, often, counter or LineCounter("", 0), theirs))
    process.start()
    theirs.close()
    try:
        assert ours.recv() == "started"
        if after and not ours.poll(after):
            os.kill(process.pid, signal.SIGKILL)
        counted = ours.recv()
    except (EOFError, ConnectionError):
        counted = None
    process.join()
    assert process.exitcode == (-signal.SIGKILL if counted is None else 0), f"exit status {process.exitcode}"
    return counted


@dataclass
class Summary:
    """What happened in all trainings.

    kills: all kills. in_checkpoint, in_other_file: kills while a checkpoint or another file was being written.
    before_the_first: kills before the first checkpoint. with_cache: kills of trainings with a teacher cache.
    trainings: trainings that finished. seconds: total time.
    """

    kills: int = 0
    in_checkpoint: int = 0
    in_other_file: int = 0
    before_the_first: int = 0
    with_cache: int = 0
    trainings: int = 0
    seconds: float = 0.0


def survive_kills(folder: Path, kills: int, seed: int = 0, log: Callable[[str], None] = lambda line: None) -> Summary:
    """Train in `folder` until trainings have survived `kills` kills.

    The first kill comes before the first checkpoint, half of the kills while a checkpoint is written, and about half in
    trainings with a teacher cache. Attempts that finish before their kill do not count.

    Raises AssertionError if an attempt fails, or if a result differs from that of an uninterrupted training.
    """
    started, rng, summary = time.monotonic(), random.Random(seed), Summary()
    caches = (None, folder / "cache")
    for number, teacher_cache in enumerate(caches):
        attempt(folder / f"whole{number}", teacher_cache, often=False)
    lines, seconds = attempt(folder / "counted", folder / "cache of counted")
    log(f"lines of {lines}, in {seconds:.1f} s")
    while summary.kills < kills:
        number = int(summary.with_cache < summary.kills / 2)
        run, teacher_cache = folder / "run", caches[number] and folder / "run's cache"
        done, last = False, min(kills, summary.kills + MAX_KILLS_PER_TRAINING)
        while not done:
            kind = KILL_KINDS[summary.kills % len(KILL_KINDS)]
            if summary.kills >= last:
                counter, after = None, 0.0
            elif kind == "outside":
                counter, after = None, rng.uniform(1e-3, seconds / 2)
            else:
                # prefer early lines, so that most trainings are killed more than once
                early = rng.random() ** 2 if summary.kills else 0
                line = 1 + int(lines[kind] * early)
                counter, after = LineCounter(kind, line), 0.0
            done = attempt(run, teacher_cache, counter=counter, after=after) is not None
            if not done:
                count_kill(run, kind, teacher_cache, summary)
                left = ", ".join(sorted(os.listdir(run))) if run.exists() else "nothing"
                log(f"kill {summary.kills}, {kind}: {left}")
        summary.trainings += 1
        for name in COMPARED:
            same = (run / name).read_bytes() == (folder / f"whole{number}" / name).read_bytes()
            assert same, f"{name} of training {summary.trainings} differs from that of an uninterrupted training"
        assert set(os.listdir(run)) == FINISHED_FILES, sorted(os.listdir(run))
        for path in (run, teacher_cache):
            if path:
                shutil.rmtree(path)
    summary.seconds = time.monotonic() - started
    return summary


def count_kill(run: Path, kind: str, teacher_cache: Path | None, summary: Summary) -> None:
    """Add a kill to the summary, classified by the files that it left."""
    left = [path.name for path in run.glob(".*.tmp")] if run.exists() else []
    summary.kills += 1
    in_checkpoint = kind == "checkpoint" or any(name.startswith(f".{resuming.CHECKPOINT}") for name in left)
    summary.in_checkpoint += in_checkpoint
    summary.in_other_file += bool(left) and not in_checkpoint
    summary.before_the_first += not resuming.has_checkpoint(run)
    summary.with_cache += teacher_cache is not None


def kill_before_each_line(folder: Path, scenario: str, pipe: Connection) -> None:
    """Kill a process before each line of a scenario and check the files that are left. Send the number of lines."""
    prepare, act, check = SCENARIOS[scenario]
    Path.write_bytes = write_in_two
    os.fsync = lambda descriptor: None  # slow, and needed only for power cuts
    warnings.simplefilter("ignore")
    for line in count(1):
        shutil.rmtree(folder, ignore_errors=True)
        prepare(folder)
        child = os.fork()
        if child == 0:
            sys.settrace(LineCounter("anywhere", line))
            act(folder)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with files.locked(folder):  # the kill has released it
            assert not list(folder.glob("*.tmp"))
            check(folder)
        if status == 0:
            return pipe.send(line - 1)
        assert status == -signal.SIGKILL


def state(number: int) -> dict[str, Any]:
    return {"number": number, "weights": torch.full((1000,), float(number))}


def with_checkpoints(folder: Path) -> None:
    folder.mkdir()
    runs.write_settings(folder, {"format": runs.FORMAT, "status": "running"})
    for number in (1, 2):
        resuming.write_checkpoint(folder, state(number))


def save_the_third(folder: Path) -> None:
    with files.locked(folder):
        resuming.write_checkpoint(folder, state(3))


def has_second_or_third(folder: Path) -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        kept = resuming.read_checkpoint(folder)
    assert all("it is missing" in str(warning.message) for warning in warned)  # but never half written
    assert kept["number"] in (2, 3) and torch.equal(kept["weights"], state(kept["number"])["weights"])
    resuming.write_checkpoint(folder, state(4))
    assert resuming.read_checkpoint(folder)["number"] == 4


def save_after_damage(folder: Path) -> None:
    with files.locked(folder):
        (folder / resuming.CHECKPOINT).write_bytes(b"damaged")
        resuming.read_checkpoint(folder)
        resuming.write_checkpoint(folder, state(3))


def has_any_checkpoint(folder: Path) -> None:
    assert resuming.read_checkpoint(folder)["number"] in (1, 2, 3)


def make_finished_run(folder: Path) -> None:
    folder.mkdir()
    for name in (*FINISHED_FILES, resuming.CHECKPOINT, resuming.PREVIOUS):  # as after a kill before their removal
        (folder / name).write_text("old")
    runs.write_settings(folder, {"format": runs.FORMAT, "status": "finished"})


def overwrite(folder: Path) -> None:
    with files.locked(folder):
        resuming.start_run(folder, {"format": runs.FORMAT, "status": "new"})


def is_old_or_started(folder: Path) -> None:
    resuming.check_run_folder(folder, resume=True, overwrite=False)
    if json.loads((folder / "run.json").read_text())["status"] == "finished":
        assert set(os.listdir(folder)) - {resuming.CHECKPOINT, resuming.PREVIOUS} == FINISHED_FILES | {files.LOCK}
    else:
        assert not resuming.has_checkpoint(folder)


def remove_run(folder: Path) -> None:
    with files.locked(folder):
        resuming.remove_run(folder)


def can_start(folder: Path) -> None:
    resuming.check_run_folder(folder, resume=True, overwrite=False)


SCENARIOS = {
    "a checkpoint": (with_checkpoints, save_the_third, has_second_or_third),
    "a checkpoint after a damaged one": (with_checkpoints, save_after_damage, has_any_checkpoint),
    "overwriting a finished run": (make_finished_run, overwrite, is_old_or_started),
    "removing an empty run": (make_finished_run, remove_run, can_start),
}


def count_kill_points(folder: Path, scenario: str) -> int:
    """Run `kill_before_each_line` in its own process. Return the number of lines. Raises AssertionError if it fails."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=kill_before_each_line, args=(folder, scenario, theirs))
    process.start()
    theirs.close()
    try:
        lines = ours.recv()
    except EOFError:
        lines = 0
    process.join()
    assert process.exitcode == 0, scenario
    return lines


def disk_full(path: Path, pipe: Connection) -> None:
    """Limit files to 64 bytes, to act like a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))


def read_only(path: Path, pipe: Connection) -> None:
    path.parent.chmod(0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)  # root ignores permissions


def removed(path: Path, pipe: Connection) -> None:
    shutil.rmtree(path.parent)


def renamed(path: Path, pipe: Connection) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


def replaced(path: Path, pipe: Connection) -> None:
    """Replace the folder by that of another training."""
    renamed(path, pipe)
    path.parent.mkdir()
    for name in (files.LOCK, "run.json"):
        (path.parent / name).write_text("another's")


def pause(path: Path, pipe: Connection) -> None:
    """Tell the test that this point is reached, and wait for its answer."""
    pipe.send("there")
    pipe.recv()


def command(arguments: list[str], said: Path, event: Callable | None, name: str, time: int, pipe: Connection) -> None:
    """Run a pckd-nb command that saves at every step. Its output goes to the files `said`.out and `said`.err.

    event: called just before the file called `name` is written for the `time`-th time, counted from 1.
    """
    use_one_thread()
    for stream, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(said.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    save_always()
    write, remaining = files.write, [time]

    def write_with_event(path: Path, *arguments: Any, **options: Any) -> None:
        remaining[0] -= path.name == name
        if event and path.name == name and remaining[0] == 0:
            event(path, pipe)
        try:
            write(path, *arguments, **options)
        finally:  # the output files need room, too
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    files.write = write_with_event
    sys.exit(cli.main(arguments))


def start(
    arguments: list[Any], said: Path, event: Callable | None = None, name: str = "", time: int = 1
) -> tuple[BaseProcess, Connection]:
    """Start `command` in a new process. Return the process and the pipe to it."""
    ours, theirs = CONTEXT.Pipe()
    words = [str(argument) for argument in arguments]
    process = CONTEXT.Process(target=command, args=(words, said, event, name, time, theirs))
    process.start()
    theirs.close()
    return process, ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="number of kills")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        summary = survive_kills(Path(folder), arguments.kills, arguments.seed, log=lambda line: print(line, flush=True))
    print(json.dumps(asdict(summary)))


if __name__ == "__main__":
    main()
