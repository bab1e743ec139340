"""Transfer: what a trained network's features are worth on another data set.

The paper's protocol: the network is frozen, and a linear probe on its features learns the other data set's labels.
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
from .models import Classifier, TrainingData, create_model
from .runs import Run


class TransferScores(NamedTuple):
    """Accuracy of the probe on test and training images, in percent."""

    top1: float
    train_top1: float


def transfer(
    run: Run | str | Path, data: Dataset | str, *, model: Classifier | None = None, **options: Any
) -> TransferScores:
    """Freeze the network of `run` and train a linear probe on its features of `data`.

    The images are shown as the network learned to see: grey ones repeated over its channels, scaled to its image
    size, normalised by the constants of its own training data. The probe is scikit-learn's LogisticRegression (L2,
    C = 1) on features standardised by the training images; no augmentation, nothing random.
    run: a Run or its folder. data: a data set, or the name of one. model: another network to probe in place of the
    run's. options: accelerator and precision, as in `evaluate`.
    Raises ValueError where the images can't be shown to this network, or as `Run.model`.
    """
    from sklearn.exceptions import ConvergenceWarning  # slow to import: only when asked for
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    run = as_run(run)
    model = run.model() if model is None else as_network("model", model)
    data = as_learned(run, as_dataset(data), model.trained_on)
    train, test = (compute_outputs(model, data, split, **options) for split in ("train", "test"))
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)  # an unfinished probe is no measurement
        probe.fit(train.features.numpy(), train.labels.numpy())
    return TransferScores(*(100 * _accuracy(probe, seen) for seen in (test, train)))


def transfer_table(runs: Sequence[Run | str | Path], data: Dataset | str, **options: Any) -> pd.DataFrame:
    """`transfer` of several runs, a row each, and for every kind of network one with its first, random weights.

    What random features reach is the height above which something was learned.
    """
    rows: list[dict[str, Any]] = []
    untrained: dict[str, Run] = {}
    data = as_dataset(data)
    for run in map(as_run, runs):
        about = run.settings["model"]
        scores = transfer(run, data, **options)
        rows.append(_row(run, run.settings["method"]["title"], scores, run.accuracy))
        untrained.setdefault(about["name"], run)
    for name, run in untrained.items():
        about = run.settings["model"]
        fresh = create_model(name, num_classes=about["num_classes"], in_channels=about["in_channels"], seed=0)
        rows.append(_row(run, "untrained", transfer(run, data, model=fresh, **options), float("nan")))
    return pd.DataFrame(rows)


def as_learned(run: Run, data: Dataset, trained_on: TrainingData | None = None) -> Dataset:
    """Return a data set as a network learned to see: its channels, image size and normalisation.

    Parameters
    ----------
    run : Run
    data : Dataset
    trained_on : TrainingData, optional
        Of the network. Default: what the network of `run` is shown.

    Returns
    -------
    Dataset

    Raises
    ------
    ValueError
        If the images cannot be shown that way.
    """
    own = TrainingData.model_validate(run.settings["data"])
    learned = trained_on or own
    channels, size = len(learned.mean), list(learned.image_size)
    if data.channels not in (1, channels):
        raise ValueError(f"'{run.path}' learned grey images; {data.name} has {data.channels} channels")
    splits: dict[str, Any] = {}
    if [data.channels, *data.size] != [channels, *size]:
        from torchvision.transforms.v2.functional import resize  # slow to import: only when needed

        for name in ("train", "test"):
            split = getattr(data, name)
            if not isinstance(split, Split):
                raise ValueError(f"'{run.path}' learned images of {size[0]}×{size[1]}: load {data.name} in that size")
            images = split.images.expand(-1, channels, -1, -1)
            images = torch.cat([resize(part, size, antialias=True) for part in images.split(1000)])
            splits[name] = dataclasses.replace(split, images=images)
    same = (learned.mean, learned.std) == (own.mean, own.std)
    how = run.settings["data"]["normalisation"] if same else f"as in the training on {learned.name}"
    return dataclasses.replace(data, **splits, mean=learned.mean, std=learned.std, normalisation=how)


def _accuracy(probe: Any, seen: Predictions) -> float:
    return float(probe.score(seen.features.numpy(), seen.labels.numpy()))


def _row(run: Run, method: str, scores: TransferScores, accuracy: float) -> dict[str, Any]:
    return {
        "method": method,
        "network": run.settings["model"]["name"],
        "learned on": run.settings["data"]["name"],
        "top-1 % there": accuracy,
        "top-1 % by probe": scores.top1,
        "probe's training images": scores.train_top1,
    }
