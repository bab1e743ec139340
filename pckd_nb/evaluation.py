"""What a network says of a data set, and how often it is right."""

import logging
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import hardware, ranks, views
from .arguments import Network, as_dataset, as_network
from .data import Dataset
from .data.streaming import explain_worker_errors
from .models import Classifier, match_input

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


def predict(
    model: Network,
    data: Dataset | str,
    split: str = "test",
    *,
    accelerator: str = "auto",
    precision: str = "auto",
    fabric: "Fabric | None" = None,
) -> Predictions:
    """Run a network in eval mode over a split, upright and without augmentation.

    A network that was trained with other pixel constants or at another image size sees the images that way, see
    `models.match_input`.

    Parameters
    ----------
    model : Classifier, Run, nn.Module or path
        A path is the folder of a run.
    data : Dataset, or the name of one
    split : {"test", "train", "val"}
    accelerator, precision : str
        As in `distill`.
    fabric : Fabric, optional
        Replaces accelerator and precision.

    Returns
    -------
    Predictions

    Raises
    ------
    ValueError
        If there is no such split, if the network cannot take the images, or if it was trained on other classes than
        those of `data`. Also the errors of `make_fabric`. If only the names of the
        classes differ: `model.trained_on = model.trained_on.without_classes()`.
    """
    network, data = as_network("model", model), as_dataset(data)
    if network.num_classes != data.num_classes:
        raise ValueError(f"the network knows {network.num_classes} classes, {data.name} has {data.num_classes}")
    if network.trained_on:
        network.trained_on.check_classes(data, "network")
    network = match_input(network, data)
    check_input(network, "network", data)
    return compute_outputs(network, data, split, accelerator, precision, fabric)


@torch.no_grad()
def compute_outputs(
    model: Classifier,
    data: Dataset,
    split: str,
    accelerator: str = "auto",
    precision: str = "auto",
    fabric: "Fabric | None" = None,
) -> Predictions:
    """Return what `predict` returns, without a comparison of `data` with the training data of the network."""
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
    with explain_worker_errors():
        for images in part.read(mine.split(batch_size)):
            x = views.normalise(images, mean, std).contiguous(memory_format=torch.channels_last)
            with fabric.autocast():
                outputs.append(model(x).float())
    model.train(was_training)
    features = ranks.gather_rows(torch.cat([output.features for output in outputs]), len(part), fabric)
    logits = ranks.gather_rows(torch.cat([output.logits for output in outputs]), len(part), fabric)
    return Predictions(features.cpu(), logits.cpu(), part.labels.cpu())


@torch.no_grad()
def check_input(model: Classifier, who: str, data: Dataset) -> None:
    """Run one image through a network, to detect a wrong number of channels or size.

    Parameters
    ----------
    model : Classifier
    who : str
        How the error names the network, such as "student".
    data : Dataset

    Raises
    ------
    ValueError
        If the network cannot take images of this shape, or does not compute in float32.
    """
    was_training = model.training
    device = next(model.parameters()).device
    try:
        model.eval()(torch.zeros(1, data.channels, *data.size, dtype=torch.float32, device=device))
    except (RuntimeError, AssertionError, ValueError) as error:  # timm asserts sizes, the wrapper raises ValueError
        for name, parameter in model.named_parameters():
            if parameter.dtype != torch.float32:
                kind = f"{name} in {parameter.dtype} instead of float32"
                raise ValueError(f"the {who} has {kind}: write {who}.float()") from error
        shape = "×".join(map(str, (data.channels, *data.size)))
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"the {who} can't take images of {shape} pixels from {data.name}: {reason}") from error
    finally:
        model.train(was_training)


def evaluate(model: Network, data: Dataset | str, split: str = "test", **options: Any) -> Scores:
    """Return the accuracy of a network on a split of `data`. Options and errors are those of `predict`."""
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
    mean, std = (torch.tensor(values, dtype=torch.float32, device=device) for values in (data.mean, data.std))
    return mean, std
