"""The training job that tests/test_ranks.py runs in one, two and four processes, with or without torchrun.

    python -m tests.ranks_job OUT

For each method it writes to OUT: a run folder, the gradients of the first step of the stage and of the training, and
the sample positions that each rank read. If OUT/cut holds an interrupted run, the job resumes it. For a network with
BatchNorm it writes the final state of each rank.
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


class NoBatchNorm(pckd.models.Classifier):
    """A network without BatchNorm, which on CPU would see only one rank's part of a batch.

    It computes in float64, so that rounding does not hide differences between numbers of ranks.
    """

    def __init__(self, width: int, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        layers = nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, width, 3, 1, 1), nn.ReLU()
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(width, 3)
        self.stages = ("body.0", "body.1", "body.3")
        self.double()

    def features(self, x):
        return self.body(x.double())

    def repeat_last_stage(self):
        """The head has BatchNorm, because it sees the whole batch on every rank."""
        return nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())


class PCKDInFloat64(pckd.PCKD):
    """PCKD whose heads compute in float64, too."""

    def bind(self, student, teacher):
        return super().bind(student, teacher).double()


class FTInFloat64(pckd.methods.baselines.FT):
    """FT whose heads compute in float64, too."""

    def bind(self, *arguments):
        return super().bind(*arguments).double()


class CRDInFloat64(pckd.methods.baselines.CRD):
    """CRD whose heads and memories are in float64, too."""

    def bind(self, *arguments):
        return super().bind(*arguments).double()


class HSAKDInFloat64(pckd.methods.baselines.HSAKD):
    """HSAKD whose heads compute in float64, too."""

    def bind(self, *arguments):
        return super().bind(*arguments).double()


class WKDLInFloat64(pckd.methods.baselines.WKDL):
    """WKD-L whose class costs are in float64, too."""

    def bind(self, *arguments):
        return super().bind(*arguments).double()


class SimKDInFloat64(pckd.methods.baselines.SimKD):
    """SimKD whose projector has no BatchNorm."""

    def wrap_student(self, *arguments):
        network = super().wrap_student(*arguments)
        for name in ("bn0", "bn1", "bn2"):
            setattr(network.projector, name, nn.Identity())
        return network


LAYERS = ["body.1", "body.3"]
METHODS = {
    "pckd": PCKDInFloat64(),
    "kd": pckd.KD(views=4),
    "attention": pckd.methods.baseline("AT"),
    "memory": CRDInFloat64(negatives=8),
    "reused": SimKDInFloat64(),
    "transport": WKDLInFloat64(),
    "strong": pckd.methods.baseline("MLKD"),
    # The first step of these three belongs to a stage. It trains the student, or a module of the method.
    "flow": pckd.methods.baseline("FSP", layers=LAYERS, teacher_layers=LAYERS),
    "factors": FTInFloat64(),
    "heads": HSAKDInFloat64(),
}
DATA = make_data(train=47, test=23)  # batches of 12 and 11: parts of unequal size on two and four ranks
RECIPE = pckd.get_recipe("classroom", epochs=2, batch_size=12)
OPTIONS = dict(accelerator="cpu", precision="32-true", progress=False)


def stop(callback, trainer):
    trainer.should_stop = True


def interrupt_training(out: Path) -> None:
    """Start a training in `out` and interrupt it after its first step."""
    networks = NoBatchNorm(8, seed=0), NoBatchNorm(8, seed=1)
    with mock.patch.object(StopOnSignal, "on_step_end", stop):
        pckd.distill(*networks, DATA, METHODS["pckd"], RECIPE, out=out, **OPTIONS)


def main(out: Path) -> None:
    read, original_read = [], Split.read

    def recording_read(self, batches, **options):
        batches = list(batches)
        if options:  # for training
            read.append(torch.cat(batches))
        return original_read(self, batches, **options)

    Split.read = recording_read
    for name, method in METHODS.items():
        read.clear()
        gradients, optimizers = {}, []
        student, teacher = NoBatchNorm(8, seed=0), NoBatchNorm(8, seed=1)
        step = torch.optim.SGD.step

        def recording_step(self, *arguments, gradients=gradients, optimizers=optimizers, step=step):
            if self not in optimizers:  # the training has another optimizer than the stage before it
                optimizers.append(self)
                parameters = (x for group in self.param_groups for x in group["params"] if x.grad is not None)
                gradients.update({(len(optimizers), i): x.grad.clone() for i, x in enumerate(parameters)})
            return step(self, *arguments)

        torch.optim.SGD.step = recording_step
        pckd.distill(student, teacher, DATA, method, RECIPE, out=out / name, **OPTIONS)
        torch.optim.SGD.step = step
        torch.save({"gradients": gradients, "read": read}, out / f"{name}-{rank_zero_only.rank}.pt")
    Split.read = original_read

    if (out / "cut").exists():
        options = dict(out=out / "cut", resume=True)
        pckd.distill(
            NoBatchNorm(8, seed=0), NoBatchNorm(8, seed=1), DATA, METHODS["pckd"], RECIPE, **options, **OPTIONS
        )
    student, teacher = (pckd.create_model(name, DATA, seed=3) for name in ("resnet8", "resnet14"))
    recipe = pckd.get_recipe("classroom", epochs=2, batch_size=24)
    run = pckd.distill(student, teacher, DATA, pckd.KD(), recipe, **OPTIONS)
    final = {"state": student.state_dict(), "accuracy": run.accuracy}
    torch.save(final, out / f"normalised-{rank_zero_only.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
