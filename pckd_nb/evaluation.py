"""What a network says of a data set, and how often it is right."""

import logging
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import hardware, ranks, views
from .data import Dataset
from .data.streaming import clear_worker_errors
from .models import Classifier

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
EVALUATION_PIXELS = 500 * 32 * 32  # of one batch

for talks in ("rank_zero", "distributed"):  # announces every precision; every process
    logging.getLogger(f"lightning_fabric.utilities.{talks}").setLevel(logging.WARNING)


class Scores(NamedTuple):
    """top1, top5: accuracy in percent (top5: of the five best guesses, or all where there are fewer categories);
    cross_entropy: mean, in nats."""

    top1: float
    top5: float
    cross_entropy: float


class Predictions(NamedTuple):
    """What a network says of a split, in its order, on the CPU. features: (N, D) · logits: (N, C) · labels: (N,)."""

    features: Tensor
    logits: Tensor
    labels: Tensor

    def scores(self) -> Scores:
        """Accuracy and cross-entropy of these predictions."""
        best = self.logits.topk(min(5, self.logits.shape[1])).indices == self.labels[:, None]
        top1, top5 = (100 * best[:, :k].any(1).double().mean().item() for k in (1, 5))
        return Scores(top1, top5, F.cross_entropy(self.logits, self.labels).item())


@torch.no_grad()
def predict(
    model: Classifier,
    data: Dataset,
    split: str = "test",
    *,
    accelerator: str = "auto",
    precision: str = "auto",
    fabric: "Fabric | None" = None,
) -> Predictions:
    """Run `model`, in eval mode, over data.test or data.train, upright and without augmentation.

    accelerator, precision: as in `distill`; fabric: one that exists already, instead of both. Raises ValueError for
    another split, and as `make_fabric`.
    """
    if split not in ("train", *data.held_out):
        raise ValueError(f"split must be {', '.join(map(repr, ('train', *data.held_out)))}, got {split!r}")
    fabric = fabric or make_fabric(accelerator, precision)[0]
    mean, std = pixel_statistics(data, fabric.device)
    part = getattr(data, split).to(fabric.device)
    mine = ranks.part(torch.arange(len(part)), fabric)
    batch_size = max(1, EVALUATION_PIXELS // (data.size[0] * data.size[1]))
    model = model.to(fabric.device).to(memory_format=torch.channels_last)
    was_training = model.training
    model.eval()
    outputs = []
    with clear_worker_errors():
        for images in part.read(mine.split(batch_size)):
            x = views.normalise(images, mean, std).contiguous(memory_format=torch.channels_last)
            with fabric.autocast():
                outputs.append(model(x).float())
    model.train(was_training)
    features = ranks.gather_rows(torch.cat([output.features for output in outputs]), len(part), fabric)
    logits = ranks.gather_rows(torch.cat([output.logits for output in outputs]), len(part), fabric)
    return Predictions(features.cpu(), logits.cpu(), part.labels.cpu())


def evaluate(model: Classifier, data: Dataset, split: str = "test", **options: Any) -> Scores:
    """Accuracy of `model` on a split of `data`, "test" or "train"; options and errors as in `predict`."""
    return predict(model, data, split, **options).scores()


def make_fabric(
    accelerator: str = "auto", precision: str = "auto", devices: int = 1, nodes: int = 1
) -> "tuple[Fabric, str]":
    """Lightning Fabric on one device, or for `devices` processes on each of `nodes` machines, and the precision in use.

    Raises ValueError for a name that Fabric does not know, devices that are not there, or several processes from
    within a notebook.
    """
    from lightning_fabric import Fabric  # slow to import: only when it is needed
    from lightning_fabric.plugins.environments import LightningEnvironment
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    # A process that trains alone asks no launcher: what SLURM or a cluster says of several is not about it.
    alone: dict[str, Any] = {"plugins": [LightningEnvironment()]}
    try:
        if precision == "auto":
            device = Fabric(accelerator=accelerator, devices=1, **alone).device
            precision = hardware.default_precision(device)
        if precision not in PRECISIONS:
            raise ValueError(f"unknown precision '{precision}'; known: auto, {', '.join(PRECISIONS)}")
        if precision == "16-mixed" and Fabric(accelerator=accelerator, devices=1, **alone).device.type != "cuda":
            raise ValueError("precision 16-mixed, float16 with scaled gradients, needs a CUDA device")
        how: dict[str, Any] = dict(accelerator=accelerator, precision=precision)
        if devices * nodes == 1:
            return Fabric(**how, devices=1, **alone), precision
        if hasattr(sys, "ps1"):  # an interactive interpreter or a notebook, which can't be started a second time
            raise ValueError(f"a notebook is one process: start {devices * nodes} by the command line, pckd-nb distill")
        started = {} if ranks.started() != (1, 1) else alone
        return Fabric(**how, **started, devices=devices, num_nodes=nodes, strategy="ddp"), precision
    except (RuntimeError, MisconfigurationException, ImportError) as error:
        raise ValueError(f"accelerator '{accelerator}' can't be used: {str(error).splitlines()[0]}") from error


def pixel_statistics(data: Dataset, device: torch.device) -> tuple[Tensor, Tensor]:
    """The data set's mean and std, each (C,), as tensors."""
    return torch.tensor(data.mean, device=device), torch.tensor(data.std, device=device)
