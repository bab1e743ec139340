"""Transfer learning: test the features of a trained network on another data set.

The protocol is that of the paper: the network is frozen, and a linear probe is trained on its penultimate features
with the labels of the other data set.

References
----------
Ding et al., "Preview-based category contrastive learning for knowledge distillation", arXiv 2410.14143.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from .arguments import as_dataset, as_network, as_run
from .data import Dataset, Split
from .evaluation import Predictions, compute_outputs
from .models import Classifier, TrainingData
from .runs import Run, create_network


class TransferScores(NamedTuple):
    """Accuracy of the linear probe.

    Parameters
    ----------
    top1 : float
        Accuracy on the test images, in percent.
    train_top1 : float
        Accuracy on the images that the probe was trained on, in percent.
    """

    top1: float
    train_top1: float


def transfer(
    run: Run | str | Path, data: Dataset | str, *, model: Classifier | None = None, **options: Any
) -> TransferScores:
    """Train a linear probe on the frozen features of a run's network, and return its accuracy on other data.

    The images are converted to the image size and normalisation of the network's training. If the network takes colour
    images, the channel of grey images is repeated. There is no augmentation.

    The features are standardised with the mean and standard deviation of the training images. The probe is the
    LogisticRegression of scikit-learn (L2 penalty, C = 1). The result does not depend on a seed.

    Parameters
    ----------
    run : Run, str or Path
        A run, or its folder.
    data : Dataset or str
        The other data set, or its name.
    model : Classifier, optional
        A network to use instead of the one of `run`.
    **options
        `accelerator` and `precision`, as in `predict`.

    Returns
    -------
    TransferScores
        top1 and train_top1, in percent.

    Raises
    ------
    ValueError
        If the images cannot be converted to the input of the network, or if `Run.model` raises it.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> model = pckd.create_model("resnet8", data, seed=0)
    >>> run = pckd.fit(model, data, epochs=1, out="run", progress=False)
    >>> other = pckd.load_dataset("digits", train_size=64, test_size=32, seed=1)
    >>> scores = pckd.transfer(run, other)
    >>> 0 <= scores.top1 <= 100
    True
    """
    from sklearn.exceptions import ConvergenceWarning  # imported here because it is slow to import
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    run = as_run(run)
    model = run.model() if model is None else as_network("model", model)
    data = convert_to_network_input(run, as_dataset(data), model.trained_on)
    train, test = (compute_outputs(model, data, split, **options) for split in ("train", "test"))
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)  # the accuracy of an unfinished probe would be meaningless
        probe.fit(train.features.numpy(), train.labels.numpy())
    return TransferScores(*(100 * _accuracy(probe, predictions) for predictions in (test, train)))


def transfer_table(runs: Sequence[Run | str | Path], data: Dataset | str, **options: Any) -> pd.DataFrame:
    """Return a table of `transfer` results, with one row per run.

    For each kind of network there is one more row, "untrained": the same network with random weights. A trained
    network has learned something useful only if it is better than that.

    Parameters
    ----------
    runs : sequence of Run, str or Path
        Runs, or their folders.
    data : Dataset or str
        The other data set, or its name.
    **options
        `accelerator` and `precision`, as in `predict`.

    Returns
    -------
    DataFrame
        Its columns are:

        - "method", "network": what was trained.
        - "learned on": the data set that the network was trained on.
        - "top-1 % there": the accuracy on that data set.
        - "top-1 % by probe", "probe's training images": the results of `transfer`, top1 and train_top1.

    Raises
    ------
    ValueError
        If `transfer` raises it.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> model = pckd.create_model("resnet8", data, seed=0)
    >>> run = pckd.fit(model, data, epochs=1, out="run", progress=False)
    >>> other = pckd.load_dataset("digits", train_size=64, test_size=32, seed=1)
    >>> table = pckd.transfer_table([run], other)
    >>> table["network"].tolist()
    ['resnet8', 'resnet8']
    >>> table["method"].tolist()[1]
    'untrained'
    """
    rows: list[dict[str, Any]] = []
    run_of_network: dict[str, Run] = {}
    data = as_dataset(data)
    for run in map(as_run, runs):
        network = run.settings["model"]
        scores = transfer(run, data, **options)
        rows.append(_row(run, run.settings["method"]["title"], scores, run.accuracy))
        run_of_network.setdefault(f"{network['name']} {network.get('projector')}", run)
    for run in run_of_network.values():
        model = create_network(run.settings["model"], seed=0)
        rows.append(_row(run, "untrained", transfer(run, data, model=model, **options), float("nan")))
    return pd.DataFrame(rows)


def convert_to_network_input(run: Run, data: Dataset, trained_on: TrainingData | None = None) -> Dataset:
    """Convert a data set to the number of channels, image size and normalisation that a network was trained with.

    Parameters
    ----------
    run : Run
        The run that trained the network.
    data : Dataset
    trained_on : TrainingData, optional
        Training data of the network. Default: the training data of `run`.

    Returns
    -------
    Dataset

    Raises
    ------
    ValueError
        If the numbers of channels differ and the images are not grey. Also if channels or image size differ and the
        images are read from files during training, because such images cannot be converted here.
    """
    data_of_run = TrainingData.model_validate(run.settings["data"])
    target = trained_on or data_of_run
    channels, size = len(target.mean), list(target.image_size)
    if data.channels not in (1, channels):
        accepted = "grey images" + (f" or images of {channels} channels" if channels > 1 else "")
        raise ValueError(f"{data.name} has {data.channels} channels: the network of '{run.path}' takes only {accepted}")
    splits: dict[str, Any] = {}
    if [data.channels, *data.size] != [channels, *size]:
        from torchvision.transforms.v2.functional import resize  # imported here because it is slow to import

        for name in ("train", "test"):
            split = getattr(data, name)
            if not isinstance(split, Split):
                needed = f"{size[0]}×{size[1]}"
                raise ValueError(f"the network of '{run.path}' takes images of {needed}: load {data.name} in that size")
            images = split.images.expand(-1, channels, -1, -1)
            images = torch.cat([resize(part, size, antialias=True) for part in images.split(1000)])
            splits[name] = dataclasses.replace(split, images=images)
    same = (target.mean, target.std) == (data_of_run.mean, data_of_run.std)
    normalisation = run.settings["data"]["normalisation"] if same else f"as in the training on {target.name}"
    return dataclasses.replace(data, **splits, mean=target.mean, std=target.std, normalisation=normalisation)


def _accuracy(probe: Any, predictions: Predictions) -> float:
    return float(probe.score(predictions.features.numpy(), predictions.labels.numpy()))


def _row(run: Run, method: str, scores: TransferScores, accuracy: float) -> dict[str, Any]:
    return {
        "method": method,
        "network": run.settings["model"]["name"],
        "learned on": run.settings["data"]["name"],
        "top-1 % there": accuracy,
        "top-1 % by probe": scores.top1,
        "probe's training images": scores.train_top1,
    }
