"""The training job that is compared between one and several processes.

    python -m benchmarks.ranks_job OUT ARM …

For each arm, such as kd-views=4, it writes to OUT: a run folder, and for each rank the gradients of the first steps,
the states of method and student after them, and the sample positions that the rank read. `compare` compares these files
of two jobs. If OUT/cut holds an interrupted run, the job resumes it. For a network with BatchNorm it writes the final
state of each rank.
"""

import copy
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

import pckd_nb as pckd
from pckd_nb import methods, training
from pckd_nb.catalogue import read_arm
from pckd_nb.data import Split
from pckd_nb.models import Classifier
from pckd_nb.training.callbacks import StopOnSignal
from pckd_nb.training.task import Task

from .gpu_checks import difference, require
from .gpu_job import make_data, stop

DATA = make_data(train=23, test=11)  # batches of 12 and 11: parts of unequal size on two and four ranks
RECIPE = pckd.get_recipe("classroom", epochs=2, batch_size=12)
OPTIONS: dict[str, Any] = dict(accelerator="cpu", precision="32-true", progress=False)
CUT_ARM = "pckd"  # of the interrupted run
TOLERANCE = 1e-10  # of gradients and states in float64, relative to the largest value of the tensor


class FirstStates(pckd.Callback):
    """Copies the states of method and student after the first epoch of every stage, and after the first step."""

    def __init__(self) -> None:
        self._states: dict[str, Tensor] = {}

    def copy(self, trainer: training.Trainer, when: str) -> None:
        """Copy both states, unless there is a copy already."""
        for part, module in (("method", trainer.method), ("student", trainer.student)):
            for name, value in module.state_dict().items():
                self._states.setdefault(f"{part}.{name} after {when}", value.clone())

    def on_stage_epoch_end(self, trainer: training.Trainer, stage: dict[str, Any]) -> None:
        """Copy after the first epoch of a stage."""
        self.copy(trainer, f"the stage {stage['name']}")

    def on_step_end(self, trainer: training.Trainer) -> None:
        """Copy after the first step."""
        self.copy(trainer, "the first step")


def networks() -> tuple[Classifier, Classifier]:
    """Return a new student and a new teacher."""
    student, teacher = (pckd.create_model(name, DATA, seed=seed) for seed, name in enumerate(("resnet8", "resnet14")))
    return student, teacher


@contextmanager
def comparable() -> Iterator[None]:
    """Inside the block, trainings do not depend on the number of ranks, except for what this job tests.

    Everything is computed in float64, so that rounding does not hide differences. The student has GroupNorm in place of
    BatchNorm, which on a CPU would see only one rank's part of a batch.
    """
    bind = Task.bind

    def bind_in_float64(task: Task, fabric: Fabric) -> None:
        bind(task, fabric)
        replace_batchnorm(task.student)
        task.method.double()
        for network in (task.student, task.teacher):
            if network is not None:
                use_float64(network)

    with warnings.catch_warnings(), mock.patch.object(Task, "bind", bind_in_float64):
        warnings.filterwarnings("ignore", message="each process computes BatchNorm from its own part")
        yield


def replace_batchnorm(network: nn.Module) -> None:
    """Replace all BatchNorm layers of a network by GroupNorm with one group."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            network.set_submodule(name, nn.GroupNorm(1, layer.num_features))


def use_float64(network: Classifier) -> None:
    """Let a network compute in float64, also for inputs in float32."""
    features = network.double().features
    network.features = lambda x: features(x.double())  # type: ignore[method-assign]


def interrupt_training(out: Path) -> None:
    """Start a training in `out` and interrupt it after its first step."""
    with comparable(), mock.patch.object(StopOnSignal, "on_step_end", stop):
        pckd.distill(*networks(), DATA, CUT_ARM, RECIPE, out=out, **OPTIONS)


def train(arm: str, out: Path) -> dict[str, Any]:
    """Train an arm, and return what `compare` needs besides the run folder.

    Parameters
    ----------
    arm : str
        As in `catalogue.read_arm`.
    out : Path
        The run folder.

    Returns
    -------
    dict
        - gradients: (number of the optimizer, number of the parameter) → gradient in its first step,
        - states: see `FirstStates`,
        - read: the positions of the images that this rank read, one tensor per epoch. Those of stages come first.
    """
    optimizers: list[torch.optim.Optimizer] = []  # a stage has one of its own
    gradients: dict[tuple[int, int], Tensor] = {}
    read: list[Tensor] = []
    step, read_images, first = torch.optim.SGD.step, Split.read, FirstStates()

    def recording_step(self: torch.optim.SGD, *arguments: Any) -> Any:
        if self not in optimizers:
            optimizers.append(self)
            parameters = [x for group in self.param_groups for x in group["params"] if x.grad is not None]
            gradients.update({(len(optimizers), i): x.grad.clone() for i, x in enumerate(parameters)})
        return step(self, *arguments)

    def recording_read(self: Split, batches: Sequence[Tensor], **options: Any) -> Iterator[Tensor]:
        if options:  # for training
            read.append(torch.cat(list(batches)))
        return read_images(self, batches, **options)

    name, settings = read_arm(arm)
    with (
        comparable(),
        mock.patch.object(torch.optim.SGD, "step", recording_step),
        mock.patch.object(Split, "read", recording_read),
    ):
        method = methods.make(name, **settings)
        pckd.distill(*networks(), DATA, method, RECIPE, out=out, callbacks=[first], **OPTIONS)
    return {"gradients": gradients, "states": first._states, "read": read}


def compare(one: Path, many: Path, arm: str, ranks: int) -> float:
    """Compare the training of an arm in one process with that in several processes.

    Parameters
    ----------
    one, many : Path
        The folders OUT of both jobs.
    arm : str
    ranks : int
        Number of processes of the second job.

    Returns
    -------
    float
        The largest difference of a gradient or state, relative to the largest value of the tensor.

    Raises
    ------
    CheckFailedError
        If something differs.
    """
    alone, *together = (
        torch.load(folder / f"{arm}-{rank}.pt") for folder, rank in [(one, 0), *((many, rank) for rank in range(ranks))]
    )
    first, worst = together[0], 0.0
    for kind in ("gradients", "states"):
        require(alone[kind].keys() == first[kind].keys(), f"the {kind} are not those of the same tensors")
        # a very small gradient may be only rounding error: for example, that of a bias before BatchNorm is 0
        largest = max((float(x.abs().max()) for x in alone[kind].values() if kind == "gradients"), default=0.0)
        for name, expected in alone[kind].items():
            off = difference(first[kind][name], expected, largest / 1000)
            require(off <= TOLERANCE, f"{kind}: {name} is off by {off:.1e}, allowed {TOLERANCE:.0e}")
            worst = max(worst, off)
            for rank, other in enumerate(together):  # the same update on all ranks, so that they stay equal
                require(torch.equal(other[kind][name], first[kind][name]), f"{kind}: {name} differs on rank {rank}")
    require(len(first["gradients"]) >= 4, f"only {len(first['gradients'])} parameters have a gradient")

    for epoch, _ in enumerate(alone["read"]):  # each image once per epoch, each rank its own part
        parts = [rank["read"][epoch] for rank in together]
        counts = [len(part) for part in parts]
        once = torch.cat(parts).sort().values.tolist() == list(range(len(DATA.train)))
        require(once, f"the ranks did not read every image once in epoch {epoch + 1}")
        require(max(counts) - min(counts) <= 2, f"the ranks read {counts} images in epoch {epoch + 1}")

    theirs, ours = (pckd.load_run(folder / arm) for folder in (one, many))
    found = theirs.settings["ranks"], ours.settings["ranks"]
    require(found == (1, ranks), f"the runs used {found} processes, not {(1, ranks)}")
    require(len(ours.history) == RECIPE.epochs, f"{len(ours.history)} epochs are recorded")
    require(np.allclose(theirs.history, ours.history, rtol=1e-5, atol=1e-6), "history.csv differs")
    teacher = [] if theirs.teacher_margin is None else ["teacher_cross_entropy", "teacher_margin"]
    for record in ("cross_entropy", "difficulty", "margin", "error_norms", *teacher):  # most are stored as float16
        expected, value = (getattr(run, record).astype(float) for run in (theirs, ours))
        require(np.isfinite(value).all(), f"the {record} of an image is not finite")
        require(np.allclose(expected, value, rtol=2e-3, atol=1e-6), f"the {record} of an image differs")
    for record in ("labels", "prediction", *(["teacher_prediction"] if teacher else [])):
        require(np.array_equal(getattr(theirs, record), getattr(ours, record)), f"the {record} differ")
    return worst


def main(out: Path, arms: Sequence[str]) -> None:
    """Run the job.

    Parameters
    ----------
    out : Path
    arms : sequence of str
    """
    rank = os.environ.get("RANK", "0")  # torchrun sets it
    torch.set_num_threads(1)
    for arm in arms:
        torch.save(train(arm, out / arm), out / f"{arm}-{rank}.pt")
    if (out / "cut").exists():
        with comparable():
            pckd.distill(*networks(), DATA, CUT_ARM, RECIPE, out=out / "cut", resume=True, **OPTIONS)
    student, teacher = networks()
    run = pckd.distill(student, copy.deepcopy(teacher), DATA, pckd.KD(), RECIPE, **OPTIONS)
    final = {"state": student.state_dict(), "accuracy": run.accuracy}
    torch.save(final, out / f"normalised-{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
