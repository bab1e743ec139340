"""Trainings that are killed again and again, and must end as if nothing had happened.

    python -m tests.crashes --kills 100

Every attempt is a process of its own, forked from one that has imported torch and waits. It ends by SIGKILL: sent from
outside at a random time, or by itself just before a random line of what writes checkpoints, or of anything in files.py,
runs.py, resuming.py and teacher_cache.py. Then the next attempt resumes, until one comes to the end. What is left must
be, byte for byte, what a training left that was never interrupted, and nothing else. Needs a system that can fork:
Linux or macOS.
"""

import argparse
import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
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
from tqdm import tqdm

import pckd_nb as pckd
from pckd_nb import cli, files, resuming, runs
from pckd_nb.training import callbacks
from pckd_nb.training import teacher_cache as cache

from .conftest import make_data

COMPARED = "student.safetensors", "history.csv", "samples.npz"
WHOLE = {"run.json", "timing.csv", "gallery.npz", "embedding.npz", *COMPARED}  # what a finished run leaves
MOMENTS = "checkpoint", "outside", "checkpoint", "anywhere"  # the kinds of kills, one after the other
KILLS_OF_ONE = 5  # at most so many kills of a training

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pckd_nb.cli", "pckd_nb.experiments", "tests.conftest"])


class LineCounter:
    """Counts the lines that this process executes in FILES, those of all that writes; kills it before one.

    where: "checkpoint" counts those of `resuming.write_checkpoint` and what it calls alone · line: which to be killed
    before, from 1; 0 for none.
    """

    FILES = {files.__file__, runs.__file__, resuming.__file__, cache.__file__, __file__}

    def __init__(self, where: str, line: int):
        self.where, self.line, self.lines = where, line, {"checkpoint": 0, "anywhere": 0}

    def __call__(self, frame: FrameType, event: str, value: Any) -> Callable | None:
        return self.executed if frame.f_code.co_filename in self.FILES else None

    def executed(self, frame: FrameType, event: str, value: Any) -> Callable:
        if event == "line":
            self.lines["anywhere"] += 1
            self.lines["checkpoint"] += in_checkpoint(frame)
            if self.line and self.lines[self.where] == self.line:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.executed


def in_checkpoint(frame: FrameType | None) -> bool:
    while frame and frame.f_code is not resuming.write_checkpoint.__code__:
        frame = frame.f_back
    return frame is not None


def write_in_two(path: Path, content: bytes | memoryview) -> None:
    """Path.write_bytes, with a line before which half of it is written."""
    half = len(content) // 2
    with open(path, "wb") as file:
        file.write(content[:half])
        file.flush()
        file.write(content[half:])


def calm() -> None:
    """Only what a process can do without: one thread, so that all compute the same, and no semaphore of tqdm, which
    would outlive a kill."""
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())


def save_always() -> None:
    """Save at every step, whatever that costs."""
    callbacks.MIN_SECONDS_BETWEEN_SAVES, callbacks.MAX_SAVING_SHARE = -1, math.inf


def train(folder: Path, teacher_cache: Path | None, often: bool, counter: LineCounter, pipe: Connection) -> None:
    """One attempt, in its own process: twelve steps in four epochs. Says when it starts, and what it has counted."""
    calm()
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
    """Let a process train; what it has counted and its seconds, or None where it was killed. after: kill it that many
    seconds after its start. Raises AssertionError where it ends in another way."""
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
    """kills, and of them those while a checkpoint was being written, while another file was, and before there was
    any checkpoint · trainings: that were finished all the same · with_cache: of the kills, those with a teacher cache ·
    seconds: all took."""

    kills: int = 0
    in_checkpoint: int = 0
    in_other_file: int = 0
    before_the_first: int = 0
    with_cache: int = 0
    trainings: int = 0
    seconds: float = 0.0


def endure(folder: Path, kills: int, seed: int = 0, say: Callable[[str], None] = lambda line: None) -> Summary:
    """Train below `folder` until that many kills are survived, the first of them before there is any checkpoint, half
    of them in one, and about half with a teacher cache. (An attempt that no kill reached is made up for.)

    Raises AssertionError where an attempt fails, or where a training does not end as one never interrupted.
    """
    started, chance, found = time.monotonic(), random.Random(seed), Summary()
    caches = (None, folder / "cache")
    for number, teacher_cache in enumerate(caches):
        attempt(folder / f"whole{number}", teacher_cache, often=False)
    lines, seconds = attempt(folder / "counted", folder / "cache of counted")
    say(f"lines of {lines}, in {seconds:.1f} s")
    while found.kills < kills:
        number = int(found.with_cache < found.kills / 2)
        run, teacher_cache = folder / "run", caches[number] and folder / "run's cache"
        done, last = False, min(kills, found.kills + KILLS_OF_ONE)
        while not done:
            kind = MOMENTS[found.kills % len(MOMENTS)]
            if found.kills >= last:
                counter, after = None, 0.0
            elif kind == "outside":
                counter, after = None, chance.uniform(1e-3, seconds / 2)
            else:
                early = chance.random() ** 2 if found.kills else 0  # rather early: else few are killed twice
                line = 1 + int(lines[kind] * early)
                counter, after = LineCounter(kind, line), 0.0
            done = attempt(run, teacher_cache, counter=counter, after=after) is not None
            if not done:
                note(run, kind, teacher_cache, found)
                say(f"kill {found.kills}, {kind}: {', '.join(sorted(os.listdir(run))) if run.exists() else 'nothing'}")
        found.trainings += 1
        for name in COMPARED:
            same = (run / name).read_bytes() == (folder / f"whole{number}" / name).read_bytes()
            assert same, f"{name} of training {found.trainings} is not that of a training never interrupted"
        assert set(os.listdir(run)) == WHOLE, sorted(os.listdir(run))
        for path in (run, teacher_cache):
            if path:
                shutil.rmtree(path)
    found.seconds = time.monotonic() - started
    return found


def note(run: Path, kind: str, teacher_cache: Path | None, found: Summary) -> None:
    """Count a kill by what it has left."""
    left = [path.name for path in run.glob(".*.tmp")] if run.exists() else []
    found.kills += 1
    in_checkpoint = kind == "checkpoint" or any(name.startswith(f".{resuming.CHECKPOINT}") for name in left)
    found.in_checkpoint += in_checkpoint
    found.in_other_file += bool(left) and not in_checkpoint
    found.before_the_first += not resuming.has_checkpoint(run)
    found.with_cache += teacher_cache is not None


def at_every_line(folder: Path, scenario: str, pipe: Connection) -> None:
    """Kill a process before every single line of a scenario, and check what is left; says how many lines there are."""
    prepare, act, check = SCENARIOS[scenario]
    Path.write_bytes = write_in_two
    os.fsync = lambda descriptor: None  # slow, and for power cuts only
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
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        kept = resuming.read_checkpoint(folder)
    assert all("it is missing" in str(warning.message) for warning in told)  # but never half there
    assert kept["number"] in (2, 3) and torch.equal(kept["weights"], state(kept["number"])["weights"])
    resuming.write_checkpoint(folder, state(4))
    assert resuming.read_checkpoint(folder)["number"] == 4


def save_after_damage(folder: Path) -> None:
    with files.locked(folder):
        (folder / resuming.CHECKPOINT).write_bytes(b"damaged")
        resuming.read_checkpoint(folder)
        resuming.write_checkpoint(folder, state(3))


def has_one(folder: Path) -> None:
    assert resuming.read_checkpoint(folder)["number"] in (1, 2, 3)


def finished(folder: Path) -> None:
    folder.mkdir()
    for name in (*WHOLE, resuming.CHECKPOINT, resuming.PREVIOUS):  # as a kill before their removal leaves it
        (folder / name).write_text("old")
    runs.write_settings(folder, {"format": runs.FORMAT, "status": "finished"})


def overwrite(folder: Path) -> None:
    with files.locked(folder):
        resuming.start_run(folder, {"format": runs.FORMAT, "status": "new"})


def is_old_or_begun(folder: Path) -> None:
    resuming.check_run_folder(folder, resume=True, overwrite=False)
    if json.loads((folder / "run.json").read_text())["status"] == "finished":
        assert set(os.listdir(folder)) - {resuming.CHECKPOINT, resuming.PREVIOUS} == WHOLE | {files.LOCK}
    else:
        assert not resuming.has_checkpoint(folder)


def clear(folder: Path) -> None:
    with files.locked(folder):
        resuming.remove_run(folder)


def may_be_begun(folder: Path) -> None:
    resuming.check_run_folder(folder, resume=True, overwrite=False)


SCENARIOS = {
    "a checkpoint": (with_checkpoints, save_the_third, has_second_or_third),
    "a checkpoint after a damaged one": (with_checkpoints, save_after_damage, has_one),
    "overwriting a finished run": (finished, overwrite, is_old_or_begun),
    "removing what came to nothing": (finished, clear, may_be_begun),
}


def killed_at_every_line(folder: Path, scenario: str) -> int:
    """`at_every_line` in a process of its own: how many lines there are. Raises AssertionError where it fails."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=at_every_line, args=(folder, scenario, theirs))
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
    """No file may grow beyond 64 bytes, as on a disk that has no more room."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))


def read_only(path: Path, pipe: Connection) -> None:
    path.parent.chmod(0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)  # root may write everywhere


def removed(path: Path, pipe: Connection) -> None:
    shutil.rmtree(path.parent)


def renamed(path: Path, pipe: Connection) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


def replaced(path: Path, pipe: Connection) -> None:
    """By the folder of another training."""
    renamed(path, pipe)
    path.parent.mkdir()
    for name in (files.LOCK, "run.json"):
        (path.parent / name).write_text("another's")


def told(path: Path, pipe: Connection) -> None:
    """Say that it has come so far, and wait for an answer."""
    pipe.send("there")
    pipe.recv()


def command(arguments: list[str], said: Path, event: Callable | None, name: str, time: int, pipe: Connection) -> None:
    """A command line in its own process, saving at every step, with its output in files `said`.out and `said`.err.
    event: what happens just before the file called `name` is written for that `time`, from 1."""
    calm()
    for stream, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(said.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    save_always()
    write, left = files.write, [time]

    def writes(path: Path, *how: Any, **more: Any) -> None:
        left[0] -= path.name == name
        if event and path.name == name and left[0] == 0:
            event(path, pipe)
        try:
            write(path, *how, **more)
        finally:  # the output is a file too
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    files.write = writes
    sys.exit(cli.main(arguments))


def start(
    arguments: list[Any], said: Path, event: Callable | None = None, name: str = "", time: int = 1
) -> tuple[BaseProcess, Connection]:
    """`command`, with what it may talk through."""
    ours, theirs = CONTEXT.Pipe()
    words = [str(argument) for argument in arguments]
    process = CONTEXT.Process(target=command, args=(words, said, event, name, time, theirs))
    process.start()
    theirs.close()
    return process, ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="how many to survive")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = endure(Path(folder), chosen.kills, chosen.seed, say=lambda line: print(line, flush=True))
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
