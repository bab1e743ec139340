"""What tests/test_ranks.py runs in one, two and four processes: python -m tests.ranks_job OUT, under torchrun or not.

In OUT it leaves a run folder a method, the gradients of the first step, and the positions every rank has read; a run
that goes on from OUT/cut, if that is there; and of a network with BatchNorm what every rank ends with.
"""

import sys
from pathlib import Path
from unittest import mock

import torch
from lightning_fabric.utilities.rank_zero import rank_zero_only
from torch import nn

import pckd_nb as pckd
from pckd_nb.data import Split
from pckd_nb.training.callbacks import StopOnSignal

from .conftest import make_data


class Plain(pckd.models.Classifier):
    """No BatchNorm, which sees one rank's part of a batch where there is no GPU; and in float64, so that what is
    compared is the mathematics and not the rounding."""

    def __init__(self, width: int, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        layers = nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, width, 3, 1, 1), nn.ReLU()
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(width, 3)
        self.double()

    def features(self, x):
        return self.body(x.double())


class InDouble(pckd.PCKD):
    """Its heads, too."""

    def bind(self, student, teacher):
        return super().bind(student, teacher).double()


METHODS = {"pckd": InDouble(), "kd": pckd.KD(), "attention": pckd.methods.baseline("AT")}
DATA = make_data(train=47, test=23)  # four batches of 12 and 11: shards of unequal size in two and four ranks
RECIPE = pckd.get_recipe("classroom", epochs=2, batch_size=12)
HOW = dict(accelerator="cpu", precision="32-true", progress=False)


def stop(callback, trainer):
    trainer.should_stop = True


def cut(out: Path) -> None:
    """A training that was interrupted after its first step."""
    networks = Plain(8, seed=0), Plain(8, seed=1)
    with mock.patch.object(StopOnSignal, "on_step_end", stop):
        pckd.distill(*networks, DATA, METHODS["pckd"], RECIPE, out=out, **HOW)


def main(out: Path) -> None:
    read, plain_read = [], Split.read

    def noting_read(self, batches, **how):
        batches = list(batches)
        if how:  # for training
            read.append(torch.cat(batches))
        return plain_read(self, batches, **how)

    Split.read = noting_read
    for name, method in METHODS.items():
        read.clear()
        gradients = {}
        student, teacher = Plain(8, seed=0), Plain(8, seed=1)
        step = torch.optim.SGD.step

        def noting_step(self, *arguments, gradients=gradients, step=step):
            if not gradients:
                gradients.update(enumerate(x.grad.clone() for group in self.param_groups for x in group["params"]))
            return step(self, *arguments)

        torch.optim.SGD.step = noting_step
        pckd.distill(student, teacher, DATA, method, RECIPE, out=out / name, **HOW)
        torch.optim.SGD.step = step
        torch.save({"gradients": gradients, "read": read}, out / f"{name}-{rank_zero_only.rank}.pt")
    Split.read = plain_read

    if (out / "cut").exists():
        folder = dict(out=out / "cut", resume=True)
        pckd.distill(Plain(8, seed=0), Plain(8, seed=1), DATA, METHODS["pckd"], RECIPE, **folder, **HOW)
    student, teacher = (pckd.create_model(name, DATA, seed=3) for name in ("resnet8", "resnet14"))
    recipe = pckd.get_recipe("classroom", epochs=2, batch_size=24)
    run = pckd.distill(student, teacher, DATA, pckd.KD(), recipe, **HOW)
    ends = {"state": student.state_dict(), "accuracy": run.accuracy}
    torch.save(ends, out / f"normalised-{rank_zero_only.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
