"""Long runs keep their memory: what a process holds at the end of every epoch of a distillation.

python -m benchmarks.memory OPTIONS prints what `training` returns with these options, both as JSON. A process of its
own, so that nothing freed earlier is used again unseen; the teacher is read from a run folder, as trained before.
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
SETTLED = 2  # epochs after which nothing may grow any more
Row = dict[str, float]


def run(settings: Settings) -> tuple[dict[str, float], dict[str, Any]]:
    """Memory, tensors and open files of a long training on each data set, at the end of every epoch."""
    if not Path("/proc/self/fd").exists():
        return {}, {}
    values: dict[str, float] = {}
    details: dict[str, Any] = {}
    for name, epochs in settings.memory_epochs.items():
        rows, after = in_process(settings, name, epochs)
        settled = {field: value for field, value in rows[SETTLED - 1].items() if field != "epoch"}
        found = {field: {"settled": value, **extremes(rows, field)} for field, value in settled.items()}
        some = rows[: SETTLED + 1] + rows[9::10]
        details[name] = {"epochs": epochs, **found, "when_done": after, "some_epochs": some}
        values[f"memory_growth_{name}"] = growth(rows)
    return values, details


def growth(rows: list[Row]) -> float:
    """Percent by which resident memory was ever larger than at the end of epoch 2; below 0 where it only shrank.

    rows: of `watch`, an epoch each. Raises ValueError for fewer than three.
    """
    if len(rows) <= SETTLED:
        raise ValueError(f"growth needs {SETTLED + 1} epochs at least, got {len(rows)}")
    return 100 * (extremes(rows, "resident_mib")["max"] / rows[SETTLED - 1]["resident_mib"] - 1)


def extremes(rows: list[Row], field: str) -> dict[str, float]:
    """The lowest and the highest of a field after the second epoch."""
    values = [row[field] for row in rows[SETTLED:]]
    return {"min": min(values), "max": max(values)}


def in_process(settings: Settings, name: str, epochs: int) -> tuple[list[Row], Row]:
    """What `training` returns, from a fresh process; the teacher is trained here."""
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
    """train_size: of shapes100, the one data set that can be had in any size."""
    sizes = {"train_size": train_size, "test_size": 100} if name == "shapes100" else {}
    return pckd.load_dataset(name, root, **sizes)


def training(
    source: dict[str, Any], epochs: int, teacher: str, student: str, accelerator: str
) -> tuple[list[Row], Row]:
    """Distil a student by PCKD, writing a run folder: a row of every epoch, and what is held when the run is done.
    source: what `load` takes · teacher: its run folder."""
    data = load(**source)
    network = pckd.create_model(student, data, seed=0)
    recipe = pckd.get_recipe("classroom", epochs=epochs)
    with TemporaryDirectory() as folder, watch() as rows:
        options: dict[str, Any] = {"out": f"{folder}/run", "accelerator": accelerator, "progress": False}
        pckd.distill(network, pckd.load_run(teacher), data, pckd.PCKD(), recipe, **options)
    return rows, held()


@contextmanager
def watch() -> Iterator[list[Row]]:
    """A list that gets what is `held` at the end of every epoch of any training within the block."""
    rows: list[Row] = []
    end_epoch = Trainer.end_epoch

    def ended(trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
        result = end_epoch(trainer, *args, **kwargs)
        rows.append({"epoch": len(trainer.recorder.history), **held()})
        return result

    with mock.patch.object(Trainer, "end_epoch", ended):
        yield rows


def held() -> Row:
    """What this process holds now: resident memory, of it what is no file's, and its highest point so far, in MiB;
    tensors alive, those of cycles not yet collected counted; open file descriptors. Linux only."""
    status = Path("/proc/self/status").read_text()
    fields = {"resident_mib": "VmRSS", "anonymous_mib": "RssAnon", "peak_mib": "VmHWM"}
    memory = {name: int(re.findall(rf"{field}:\s*(\d+) kB", status)[0]) / 1024 for name, field in fields.items()}
    # by type: isinstance would wake up lazy modules
    tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    return {**memory, "tensors": tensors, "files": len(os.listdir("/proc/self/fd")) - 1}  # - 1: of the listing itself


if __name__ == "__main__":
    print(json.dumps(training(**json.loads(sys.argv[1]))))
