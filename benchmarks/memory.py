"""Measure whether the memory of a process grows during a long training.

    python -m benchmarks.memory OPTIONS

OPTIONS are the arguments of `training` as JSON. The command prints the result of `training` as JSON. It runs in a new
process. A process that has done other work has freed memory. The training could use it again, and its growth would not
be seen. So the teacher is trained in another process, and read from its run folder.
"""

import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch

import pckd_nb as pckd
from pckd_nb.data import Dataset
from pckd_nb.training import Trainer

from .settings import Settings

ROOT = Path(__file__).parents[1]
WARMUP_EPOCHS = 2  # after these epochs, the memory should no longer grow
Row = dict[str, float]


def run(settings: Settings) -> tuple[dict[str, float], dict[str, Any]]:
    """Measure memory, tensors and open files at the end of every epoch of a long training, for each data set."""
    if not Path("/proc/self/fd").exists():
        return {}, {}
    values: dict[str, float] = {}
    details: dict[str, Any] = {}
    for name, epochs in settings.memory_epochs.items():
        rows, after = train_in_process(settings, name, epochs)
        settled = {field: value for field, value in rows[WARMUP_EPOCHS - 1].items() if field != "epoch"}
        found = {field: {"settled": value, **extremes(rows, field)} for field, value in settled.items()}
        some_epochs = rows[: WARMUP_EPOCHS + 1] + rows[9::10]
        details[name] = {"epochs": epochs, **found, "when_done": after, "some_epochs": some_epochs}
        values[f"memory_growth_{name}"] = growth(rows)
    return values, details


def growth(rows: list[Row]) -> float:
    """Return by how many percent the resident memory grew after the second epoch.

    Parameters
    ----------
    rows : list of dict
        The result of `record_usage`: one row per epoch.

    Returns
    -------
    float
        From the end of epoch 2 to the largest later value. It is negative if the memory only shrank.

    Raises
    ------
    ValueError
        If there are fewer than three rows.
    """
    if len(rows) <= WARMUP_EPOCHS:
        raise ValueError(f"growth needs at least {WARMUP_EPOCHS + 1} epochs, got {len(rows)}")
    return 100 * (extremes(rows, "resident_mib")["max"] / rows[WARMUP_EPOCHS - 1]["resident_mib"] - 1)


def extremes(rows: list[Row], field: str) -> dict[str, float]:
    """Return the smallest and largest value of a field after the second epoch."""
    values = [row[field] for row in rows[WARMUP_EPOCHS:]]
    return {"min": min(values), "max": max(values)}


def train_in_process(settings: Settings, name: str, epochs: int) -> tuple[list[Row], Row]:
    """Train a teacher here, and return the result of `training` in a new process."""
    teacher, student = settings.memory_networks
    root = settings.root and str(settings.root)
    source: dict[str, Any] = {"name": name, "train_size": settings.memory_train_size, "root": root}
    accelerator = settings.accelerator
    with TemporaryDirectory() as folder:
        data = load(**source)
        recipe = pckd.get_recipe("classroom", epochs=settings.memory_teacher_epochs)
        network = pckd.create_model(teacher, data, seed=0)
        pckd.fit(network, data, recipe, out=f"{folder}/teacher", accelerator=accelerator, progress=False)
        options = {"epochs": epochs, "teacher": f"{folder}/teacher", "student": student, "accelerator": accelerator}
        command = [sys.executable, "-m", "benchmarks.memory", json.dumps({"source": source, **options})]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    rows, after = json.loads(done.stdout)
    return rows, after


def load(name: str, train_size: int, root: str | None) -> Dataset:
    """Load a data set. `train_size` is for shapes100, whose size can be chosen."""
    sizes: dict[str, Any] = {"train_size": train_size, "test_size": 100} if name == "shapes100" else {}
    return pckd.load_dataset(name, root, **sizes)


def training(
    source: dict[str, Any], epochs: int, teacher: str, student: str, accelerator: str
) -> tuple[list[Row], Row]:
    """Distil a student with PCKD, and write a run folder.

    Parameters
    ----------
    source : dict
        Arguments of `load`.
    epochs : int
    teacher : str
        Run folder of the teacher.
    student : str
        Name of the network.
    accelerator : str

    Returns
    -------
    rows : list of dict
        What the process uses at the end of every epoch.
    after : dict
        What it uses after the training.
    """
    data = load(**source)
    network = pckd.create_model(student, data, seed=0)
    recipe = pckd.get_recipe("classroom", epochs=epochs)
    with TemporaryDirectory() as folder, record_usage() as rows:
        options: dict[str, Any] = {"out": f"{folder}/run", "accelerator": accelerator, "progress": False}
        pckd.distill(network, pckd.load_run(teacher), data, pckd.PCKD(), recipe, **options)
    return rows, current_usage()


@contextmanager
def record_usage() -> Iterator[list[Row]]:
    """Yield a list. Inside the block, every training adds the `current_usage` at the end of every epoch to it."""
    rows: list[Row] = []
    end_epoch = Trainer.end_epoch

    def end_and_record(trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
        result = end_epoch(trainer, *args, **kwargs)
        rows.append({"epoch": len(trainer.recorder.history), **current_usage()})
        return result

    with mock.patch.object(Trainer, "end_epoch", end_and_record):
        yield rows


def current_usage() -> Row:
    """Return the memory, tensors and open files of this process. It needs Linux.

    Returns
    -------
    dict
        resident_mib: resident memory in MiB. anonymous_mib: the part of it that belongs to no file. peak_mib: the
        largest resident memory so far. tensors: tensors that are not freed yet. files: open files.
    """
    status = Path("/proc/self/status").read_text()
    fields = {"resident_mib": "VmRSS", "anonymous_mib": "RssAnon", "peak_mib": "VmHWM"}
    memory = {name: int(re.findall(rf"{field}:\s*(\d+) kB", status)[0]) / 1024 for name, field in fields.items()}
    # isinstance would load modules that are imported lazily
    tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    open_files = len(os.listdir("/proc/self/fd")) - 1  # `listdir` itself opens one
    return {**memory, "tensors": tensors, "files": open_files}


if __name__ == "__main__":
    print(json.dumps(training(**json.loads(sys.argv[1]))))
