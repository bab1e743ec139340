"""Trainings that a check needs in processes of their own.

    python -m benchmarks.gpu_job resume OUT DEVICE
    python -m benchmarks.gpu_job ranks OUT DEVICE PROCESSES

`resume` trains once without a break, and once with an interruption and a resume. It writes OUT/whole.pt and
OUT/resumed.pt. `ranks` trains in as many processes as torchrun has started, and writes OUT/ranks.pt.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
from lightning_fabric import Fabric
from torch import Tensor, distributed, nn

import pckd_nb as pckd
from pckd_nb import training
from pckd_nb.data import Dataset, Split
from pckd_nb.models import Classifier, Output
from pckd_nb.training.callbacks import StopOnSignal

Outcome = dict[str, Any]


def make_data(train: int, test: int, classes: int = 3, size: int = 8, channels: int = 1) -> Dataset:
    """Return a data set whose classes differ in brightness, so that a few training steps learn them."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        labels = torch.arange(count) % classes
        level = labels[:, None, None, None] * (200 // classes) + 30
        noise = torch.randint(0, 25, (count, channels, size, size), generator=generator)
        return Split((level + noise).to(torch.uint8), labels, torch.rand(count, generator=generator))

    names = tuple(f"class {number}" for number in range(classes))
    mean, std = (0.5,) * channels, (0.25,) * channels
    return Dataset("generated", split(train), split(test), names, {}, mean, std, "generated", 4, {})


class DoubleNetwork(Classifier):
    """A small network in float64, so that rounding errors do not matter in a comparison.

    Parameters
    ----------
    width : int
        Number of features.
    seed : int
        Seed of the initial weights.
    normalised : bool
        Whether it has a BatchNorm layer.
    """

    def __init__(self, width: int, seed: int, normalised: bool):
        super().__init__()
        torch.manual_seed(seed)
        norm = nn.BatchNorm2d(6) if normalised else nn.Identity()
        layers = nn.Conv2d(1, 6, 3, 2, 1), norm, nn.ReLU(), nn.Conv2d(6, width, 3, 1, 1), nn.ReLU()
        self.body = nn.Sequential(*layers)
        self.fc = nn.Linear(width, 3)
        self.double()

    def features(self, x: Tensor) -> Tensor:
        """Return the features of images."""
        return self.body(x.double()).mean((2, 3))


class DoublePCKD(pckd.PCKD):
    """PCKD with heads in float64."""

    def bind(self, student: Classifier, teacher: Classifier) -> pckd.PCKD:
        """Bind the method to the networks."""
        return super().bind(student, teacher).double()


def train_ranks(device: str, processes: int) -> Outcome:
    """Train in one process, or in all processes that torchrun has started, and return the result of this process.

    Parameters
    ----------
    device : str
        "cuda" or "cpu".
    processes : int
        Number of processes of the parallel training. The batch size depends on it, also in a single process.

    Returns
    -------
    dict
        Weights, history, backend and number of processes.
    """
    result: Outcome = {"processes": int(os.environ.get("WORLD_SIZE", 1)), "backend": "none", "histories": {}}
    # on a CPU, BatchNorm uses the statistics of its own process only
    batchnorm_variants = (False, True) if device == "cuda" else (False,)
    batch_size = max(12, 3 * processes)
    # the last batch is one image smaller, so that the processes get unequal parts of it
    data = make_data(4 * batch_size - 1, 2 * batch_size - 1)
    recipe = pckd.get_recipe("classroom", epochs=2, batch_size=batch_size)
    with with_process_group():
        for has_norm in batchnorm_variants:
            student, teacher = DoubleNetwork(8, 0, has_norm), DoubleNetwork(8, 1, has_norm)
            run = pckd.distill(
                student, teacher, data, DoublePCKD(), recipe, accelerator=device, precision="32-true", progress=False
            )
            name = "BatchNorm" if has_norm else "no BatchNorm"
            result[name] = {key: value.cpu() for key, value in student.state_dict().items()}
            result["histories"][name] = run.history.to_dict("list")
        if distributed.is_initialized():
            result["backend"] = distributed.get_backend()
    return result


@contextlib.contextmanager
def with_process_group() -> Iterator[None]:
    """Inside the block, a single process under torchrun uses a process group, as several processes do.

    Otherwise a training in one process would not use a group, and NCCL would not be tested on a machine with one GPU.
    """
    if os.environ.get("WORLD_SIZE") != "1":
        yield
        return

    def make_fabric(accelerator: str, precision: Any, devices: int, nodes: int) -> tuple[Fabric, str]:
        fabric_args: dict[str, Any] = dict(
            accelerator=accelerator, precision=precision, devices=devices, num_nodes=nodes
        )
        return Fabric(**fabric_args, strategy="ddp"), precision

    def gather_rows(rows: Tensor, count: int, fabric: Fabric) -> Tensor:
        return cast(Tensor, fabric.all_gather(rows, sync_grads=rows.requires_grad)).reshape(rows.shape)

    def gather(output: Output, count: int, fabric: Fabric) -> Output:
        features, logits = (gather_rows(rows, count, fabric) for rows in (output.features, output.logits))
        return output._replace(features=features, logits=logits)

    with (
        mock.patch.object(training, "make_fabric", make_fabric),
        mock.patch.object(training.ranks, "gather_rows", gather_rows),
        mock.patch.object(training.ranks, "gather", gather),
    ):
        yield


def stop(callback: StopOnSignal, trainer: training.Trainer) -> None:
    """Stop the training after the current step."""
    trainer.should_stop = True


def train_and_resume(out: Path, device: str) -> None:
    """Write the results of a training without a break, and of one that is stopped after its first step and resumed."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    data = make_data(train=48, test=24)
    recipe = pckd.get_recipe("classroom", epochs=2, batch_size=16)

    def train(folder: str, resume: bool = False) -> Outcome:
        student, teacher = (pckd.create_model(name, data, seed=3) for name in ("resnet8", "resnet14"))
        options: dict[str, Any] = {"out": out / folder, "resume": resume, "accelerator": device, "progress": False}
        run = pckd.distill(student, teacher, data, pckd.PCKD(), recipe, **options)
        state = {**run.student_state, **{f"method.{key}": value for key, value in run.method_state.items()}}
        return {"state": state, "finished": run.finished, "steps": torch.from_numpy(run.cross_entropy)}

    torch.save(train("whole"), out / "whole.pt")
    with mock.patch.object(StopOnSignal, "on_step_end", stop):
        interrupted = train("cut")
    torch.save({**train("cut", resume=True), "was_cut": not interrupted["finished"]}, out / "resumed.pt")


def main(job: str, out: str, device: str, processes: str = "1") -> None:
    """Run a job: "resume" or "ranks"."""
    if job == "resume":
        train_and_resume(Path(out), device)
        return
    result = train_ranks(device, int(processes))
    if os.environ.get("RANK", "0") == "0":
        torch.save(result, Path(out) / "ranks.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
