"""Run a network on a data set, and compute its accuracy."""

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import hardware, ranks, views
from .arguments import Network, as_dataset, as_network
from .data import Dataset
from .data.streaming import explain_worker_errors
from .models import Classifier, Output, match_input

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
PIXELS_PER_BATCH = 500 * 32 * 32  # 500 images of 32×32 pixels, fewer if they are larger

for module in ("rank_zero", "distributed"):  # they log the precision and the start of every process
    logging.getLogger(f"lightning_fabric.utilities.{module}").setLevel(logging.WARNING)


class Scores(NamedTuple):
    """Accuracy and cross-entropy of a network on a split.

    Parameters
    ----------
    top1 : float
        Percentage of images for which the correct class has the largest logit.
    top5 : float
        Percentage of images for which the correct class is among the five largest logits. It is 100 for five classes or
        fewer.
    cross_entropy : float
        Mean over the images, with the natural logarithm.
    """

    top1: float
    top5: float
    cross_entropy: float


class Predictions(NamedTuple):
    """Results of a network for all images of a split, in the order of the split. The tensors are on the CPU.

    Parameters
    ----------
    features : Tensor of shape (N, D)
        Penultimate features.
    logits : Tensor of shape (N, C)
    labels : Tensor of shape (N,)
        The correct classes.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor

    def scores(self) -> Scores:
        """Return accuracy and cross-entropy."""
        correct = self.logits.topk(min(5, self.logits.shape[1])).indices == self.labels[:, None]
        top1, top5 = (100 * correct[:, :k].any(1).double().mean().item() for k in (1, 5))
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
    """Return the features and logits of a network for all images of a split.

    The network is in eval mode, and the images are neither augmented nor rotated. If the network was trained with
    another normalisation or image size, the images are converted first, see `models.match_input`. `data` must
    have the classes that the network was trained on. If only their names differ, first write
    `model.trained_on = model.trained_on.without_classes()`.

    Parameters
    ----------
    model : Classifier, Run, nn.Module, str or Path
        A string or Path is the folder of a run.
    data : Dataset or str
        A data set, or its name.
    split : {"test", "train", "val"}
    accelerator, precision : str
        As in `distill`.
    fabric : Fabric, optional
        Used instead of `accelerator` and `precision`.

    Returns
    -------
    Predictions
        features, logits and labels.

    Raises
    ------
    ValueError
        If there is no such split, if the network cannot take the images, if it was trained on other classes, or if
        `accelerator` or `precision` cannot be used.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> model = pckd.create_model("resnet8", data, seed=0)
    >>> predictions = pckd.predict(model, data)
    >>> predictions.features.shape, predictions.logits.shape
    (torch.Size([16, 64]), torch.Size([16, 10]))
    """
    network, data = as_network("model", model), as_dataset(data)
    check_classes(network, data)
    network = match_input(network, data)
    check_input(network, "network", data)
    return compute_outputs(network, data, split, accelerator, precision, fabric)


def check_classes(network: Classifier, data: Dataset) -> None:
    """Raise ValueError unless a network was made for the classes of a data set, as far as this is known.

    Parameters
    ----------
    network : Classifier
    data : Dataset

    Raises
    ------
    ValueError
    """
    if network.num_classes != data.num_classes:
        raise ValueError(
            f"the network has {network.num_classes} classes, but {data.name} has {data.num_classes}: give a network "
            f"that was trained on the classes of {data.name}"
        )
    if network.trained_on:
        network.trained_on.check_classes(data, "network")


def check_split(data: Dataset, split: str) -> None:
    """Raise ValueError unless a data set has a split of this name.

    Parameters
    ----------
    data : Dataset
    split : str

    Raises
    ------
    ValueError
    """
    if split not in ("train", *data.held_out):
        raise ValueError(f"split must be {', '.join(map(repr, ('train', *data.held_out)))}, got {split!r}")


@torch.no_grad()
def compute_outputs(
    model: Classifier,
    data: Dataset,
    split: str,
    accelerator: str = "auto",
    precision: str = "auto",
    fabric: "Fabric | None" = None,
) -> Predictions:
    """Return the same as `predict`, but do not check classes, image size or normalisation, and convert nothing."""
    check_split(data, split)
    fabric = fabric or make_fabric(accelerator, precision)[0]
    mean, std = pixel_statistics(data, fabric.device)
    images_of_split = getattr(data, split).to(fabric.device)
    count = len(images_of_split)
    indices = ranks.local_part(torch.arange(count), fabric)  # each process takes a part of the images
    batches = images_of_split.read(indices.split(images_per_batch(data.size)))
    outputs = list(run_batches(model, batches, mean, std, fabric))
    features = ranks.gather_rows(torch.cat([output.features for output in outputs]), count, fabric)
    logits = ranks.gather_rows(torch.cat([output.logits for output in outputs]), count, fabric)
    return Predictions(features.cpu(), logits.cpu(), images_of_split.labels.cpu())


def images_per_batch(size: tuple[int, int]) -> int:
    """Return how many images of this height and width, in pixels, a network gets at a time when it is evaluated."""
    return max(1, PIXELS_PER_BATCH // (size[0] * size[1]))


@torch.no_grad()
def run_batches(
    model: Classifier, batches: Iterable[Tensor], mean: Tensor, std: Tensor, fabric: "Fabric"
) -> Iterator[Output]:
    """Yield the outputs of a network in eval mode.

    Parameters
    ----------
    model : Classifier
        It is moved to the device of `fabric`.
    batches : iterable of uint8 Tensor of shape (B, C, H, W)
        Images on this device.
    mean, std : Tensor of shape (C,)
    fabric : Fabric

    Yields
    ------
    Output
        In float32.
    """
    model = model.to(fabric.device).to(memory_format=torch.channels_last)
    was_training = model.training
    model.eval()
    with explain_worker_errors():
        for images in batches:
            x = views.normalise(images, mean, std).contiguous(memory_format=torch.channels_last)
            with fabric.autocast():
                output = model(x).float()
            yield output
    model.train(was_training)


@torch.no_grad()
def check_input(model: Classifier, who: str, data: Dataset) -> None:
    """Check that a network can take the images of a data set, by running it on one image.

    Parameters
    ----------
    model : Classifier
    who : str
        Name of the network in the error, such as "student".
    data : Dataset

    Raises
    ------
    ValueError
        If the network cannot take images of this shape, or if its weights are not float32.
    """
    was_training = model.training
    device = next(model.parameters()).device
    try:
        model.eval()(torch.zeros(1, data.channels, *data.size, dtype=torch.float32, device=device))
    # timm raises AssertionError for wrong sizes, WrappedClassifier raises ValueError
    except (RuntimeError, AssertionError, ValueError) as error:
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
    """Return the accuracy and cross-entropy of a network on a split.

    Parameters
    ----------
    model, data, split
        As in `predict`.
    **options
        `accelerator`, `precision` and `fabric`, as in `predict`.

    Returns
    -------
    Scores
        top1 and top5, in percent, and cross_entropy.

    Raises
    ------
    ValueError
        As in `predict`.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> model = pckd.create_model("resnet8", data, seed=0)
    >>> scores = pckd.evaluate(model, data)
    >>> 0 <= scores.top1 <= scores.top5 <= 100
    True
    """
    return predict(model, data, split, **options).scores()


def make_fabric(
    accelerator: str = "auto", precision: str = "auto", devices: int = 1, nodes: int = 1
) -> "tuple[Fabric, str]":
    """Return a Lightning Fabric object, and the precision that it uses.

    Parameters
    ----------
    accelerator, precision, devices, nodes
        As in `distill`. `devices` is the number of processes per machine, `nodes` the number of machines.

    Returns
    -------
    fabric : Fabric
    precision : str
        The precision that is used. If "auto" was given, the default of this machine.

    Raises
    ------
    ValueError
        If the accelerator or the precision is unknown, if the devices do not exist, or if several processes are
        requested in a notebook.
    """
    from lightning_fabric import Fabric  # imported here because it is slow to import
    from lightning_fabric.plugins.environments import LightningEnvironment
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    # Ignore launcher variables, such as those of SLURM, when training in a single process.
    single_process: dict[str, Any] = {"plugins": [LightningEnvironment()]}
    try:
        if precision == "auto":
            device = Fabric(accelerator=accelerator, devices=1, **single_process).device
            precision = hardware.default_precision(device)
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of auto, {', '.join(PRECISIONS)}, got '{precision}'")
        if (
            precision == "16-mixed"
            and Fabric(accelerator=accelerator, devices=1, **single_process).device.type != "cuda"
        ):
            raise ValueError("precision 16-mixed needs a CUDA device: use auto, 32-true or bf16-mixed instead")
        fabric_args: dict[str, Any] = dict(accelerator=accelerator, precision=precision)
        if devices * nodes == 1:
            return Fabric(**fabric_args, devices=1, **single_process), precision
        if hasattr(sys, "ps1"):  # Fabric can't start copies of an interactive interpreter or a notebook
            raise ValueError(
                f"cannot start {devices * nodes} processes from a notebook: use the command pckd-nb distill instead"
            )
        # with a launcher such as torchrun, Fabric reads its variables; otherwise it starts the processes itself
        plugins = {} if ranks.launched_processes() != (1, 1) else single_process
        return Fabric(**fabric_args, **plugins, devices=devices, num_nodes=nodes, strategy="ddp"), precision
    except (RuntimeError, MisconfigurationException, ImportError) as error:
        raise ValueError(f"accelerator '{accelerator}' can't be used: {str(error).splitlines()[0]}") from error


def pixel_statistics(data: Dataset, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and std of a data set as tensors of shape (channels,)."""
    mean, std = (torch.tensor(values, dtype=torch.float32, device=device) for values in (data.mean, data.std))
    return mean, std
