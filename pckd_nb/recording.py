"""The record of a training: the logged values of every step and epoch, and images and features for figures."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from . import collapse, files, preview
from .data import Dataset
from .evaluation import Predictions
from .methods import Terms
from .models import Classifier

GALLERY_SIZE = 100  # maximum number of training images in gallery.npz
MAX_GALLERY_SIDE = 96  # pixels; larger images are resized
MAX_SAMPLES_IN_MESSAGE = 16
EMBEDDING_SIZE = 2000  # maximum number of test images in embedding.npz
MAX_GEOMETRY_BYTES = 2**26  # of class means and centers in geometry.npz; above it, only the measures are kept


@dataclass
class Recorder:
    """The progress of a training and its logged values.

    A checkpoint contains the recorder, the weights and the state of the optimizer.

    Parameters
    ----------
    cross_entropy : float16 Tensor of shape (epochs, samples), in nats
        Cross-entropy of every training sample in every epoch. NaN in epochs that were not reached yet.
    difficulty : float16 Tensor of shape (epochs, samples), at least 0
        Difficulty γ of every training sample in every epoch, see `preview.difficulty`. NaN as above.
    epoch : int
        The current epoch, counted from 1.
    step : int
        Number of steps that are done in this epoch.
    seconds : float
        Duration of these steps, in seconds.
    columns : list of str
        Names of the values that are logged in every step.
    log : list of Tensor of shape (columns,)
        The logged values of every step of this epoch.
    sizes : list of int
        Batch size of every step of this epoch.
    history, timing : list of dict
        One row of history.csv and timing.csv per complete epoch.
    geometry : list of dict
        Class means, class centers and measures of neural collapse of every complete epoch, see `geometry_row`.
    """

    cross_entropy: Tensor
    difficulty: Tensor
    epoch: int = 1
    step: int = 0
    seconds: float = 0.0
    columns: list[str] = field(default_factory=list)
    log: list[Tensor] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    timing: list[dict[str, float]] = field(default_factory=list)
    geometry: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def empty(cls, epochs: int, samples: int, device: torch.device) -> "Recorder":
        """Return a recorder for a new training.

        Parameters
        ----------
        epochs, samples : int
            Number of epochs and of training images.
        device : torch.device
            The training device. If the recorder's tensors are there too, no step waits for a copy to another device.

        Returns
        -------
        Recorder
        """
        return cls(*torch.full((2, epochs, samples), torch.nan, dtype=torch.float16, device=device))

    def to(self, device: torch.device) -> "Recorder":
        """Return the same recorder with its tensors on `device`."""
        log = [row.to(device) for row in self.log]
        return replace(
            self, cross_entropy=self.cross_entropy.to(device), difficulty=self.difficulty.to(device), log=log
        )

    def record_step(self, index: Tensor, correct: Tensor, terms: Terms) -> None:
        """Record the values of one training step.

        Parameters
        ----------
        index : int64 Tensor of shape (B,)
            Positions of the samples in the training set.
        correct : bool Tensor of shape (B,)
            Whether the upright view of each sample was classified correctly.
        terms : Terms
            The total loss, its terms, and the cross-entropy, difficulty and preview weight of each sample.
        """
        values = {
            "total": terms.total,
            **terms.terms,
            "train_top1": 100 * correct.float().mean(),
            "mean_weight": terms.weight.mean(),
            "full_weight_share": (terms.weight == 1).float().mean(),  # share of the samples with preview weight 1
        }
        self.columns = list(values)
        self.log.append(torch.stack([value.detach().float() for value in values.values()]))
        self.sizes.append(len(index))
        self.cross_entropy[self.epoch - 1, index] = terms.cross_entropy.half()
        self.difficulty[self.epoch - 1, index] = terms.difficulty.half()
        self.step += 1

    def check_finite(self, batches: Sequence[Tensor]) -> None:
        """Check that all values logged in this epoch are finite.

        Parameters
        ----------
        batches : sequence of int64 Tensor of shape (B,)
            The batches of the epoch: positions in the training set.

        Raises
        ------
        FloatingPointError
            If a value is not finite. The message names the first such value, and its samples.
        """
        not_finite = (~torch.stack(self.log).isfinite()).nonzero().tolist()
        if not_finite:
            step = not_finite[0][0]
            names = [self.columns[column] for other_step, column in not_finite if other_step == step]
            term = next((name for name in names if name != "total"), "total")  # "total" only if no term is affected
            index = batches[step]
            affected = ~self.cross_entropy[self.epoch - 1, index].isfinite().cpu()
            index = (index[affected] if affected.any() else index).tolist()
            raise FloatingPointError(f"{term} is not finite {self.describe_step(step + 1, index, batches)}")

    def describe_step(self, step: int, index: list[int], batches: Sequence[Tensor]) -> str:
        """Describe a step of this epoch and its affected samples, for an error message.

        Parameters
        ----------
        step : int
            Counted from 1.
        index : list of int
            Positions of the affected samples in the training set.
        batches : sequence of int64 Tensor of shape (B,)
            The batches of the epoch.

        Returns
        -------
        str
        """
        return describe_step(self.epoch, step, index, len(batches[step - 1]))

    def history_table(self) -> pd.DataFrame:
        """Return the content of history.csv: one row per complete epoch."""
        return pd.DataFrame(self.history or {"epoch": []})

    def timing_table(self) -> pd.DataFrame:
        """Return the content of timing.csv: one row per complete epoch."""
        return pd.DataFrame(self.timing, columns=["epoch", "seconds", "evaluation_seconds"])

    def write_tables(self, folder: Path) -> None:
        """Write history.csv and timing.csv to a run folder."""
        for name, table in (("history", self.history_table()), ("timing", self.timing_table())):
            files.write(folder / f"{name}.csv", partial(table.to_csv, index=False))

    def end_epoch(self, lr: float, epsilon: float | None, scores: dict[str, float], evaluation_seconds: float) -> None:
        """Average the logged values over the epoch, add a row to both tables, and start the next epoch.

        Parameters
        ----------
        lr : float
            Learning rate of the last step.
        epsilon : float or None
            Base ε of the preview threshold. None if the method has no threshold.
        scores : dict of str to float
            Scores of the evaluation, such as "test_top1".
        evaluation_seconds : float
            Duration of the evaluation, in seconds.
        """
        sizes = torch.tensor(self.sizes, dtype=torch.float64)[:, None]
        means = (torch.stack(self.log).cpu().double() * sizes).sum(0) / sizes.sum()
        threshold = {} if epsilon is None else {"threshold": preview.threshold(self.epoch, epsilon)}
        terms = dict(zip(self.columns, means.tolist(), strict=True))
        self.history.append({"epoch": self.epoch, "lr": lr, **threshold, **terms, **scores})
        self.timing.append({"epoch": self.epoch, "seconds": self.seconds, "evaluation_seconds": evaluation_seconds})
        self.epoch, self.step, self.seconds, self.log, self.sizes = self.epoch + 1, 0, 0.0, [], []


def describe_step(epoch: int, step: int, index: list[int], batch_size: int) -> str:
    """Describe a step and its affected samples, for an error message.

    Parameters
    ----------
    epoch, step : int
        Counted from 1.
    index : list of int
        Positions of the affected samples in the training set.
    batch_size : int
        Number of all samples of this step.

    Returns
    -------
    str
    """
    samples = ", ".join(map(str, index[:MAX_SAMPLES_IN_MESSAGE])) + ", …" * (len(index) > MAX_SAMPLES_IN_MESSAGE)
    count = f"{len(index)} of {batch_size} samples"
    return f"in epoch {epoch}, step {step}, for {count}: {samples}; a lower learning rate may help"


def gallery(data: Dataset, difficulty: np.ndarray) -> dict[str, np.ndarray]:
    """Select at most 100 training images, evenly spaced from the easiest to the hardest.

    Parameters
    ----------
    data : Dataset
    difficulty : float array of shape (samples,)
        Difficulty γ of every training image.

    Returns
    -------
    dict of str to array
        "images" (uint8, at most 96 pixels per side), "labels", "index" (positions in the training set) and
        "difficulty".
    """
    order = np.argsort(difficulty, kind="stable")
    index = order[np.linspace(0, len(order) - 1, min(GALLERY_SIZE, len(order))).round().astype(int)]
    images = torch.cat(list(data.train.read(torch.from_numpy(index).split(10))))
    if (largest := max(data.size)) > MAX_GALLERY_SIDE:
        height, width = (side * MAX_GALLERY_SIDE // largest for side in data.size)
        images = _shrink(images.cpu(), height, width)
    return {
        "images": images.cpu().numpy(),
        "labels": data.train.labels[index].cpu().numpy(),
        "index": index,
        "difficulty": difficulty[index],
    }


def _shrink(images: Tensor, height: int, width: int) -> Tensor:
    """Resize uint8 images (N, C, H, W) with Pillow. Its results are the same on all processors."""
    planes = (Image.fromarray(plane.numpy()) for plane in images.flatten(0, 1))
    shrunk = np.stack([np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR)) for plane in planes])
    return torch.from_numpy(shrunk).reshape(*images.shape[:2], height, width)


def embedding(model: Classifier, predictions: Predictions) -> dict[str, np.ndarray]:
    """Return features of test images and the category centers, for figures of the feature space.

    The category centers are the rows of the last layer's weight. At most 2000 test images are used. These images are
    evenly spaced over the test set, because it may be sorted by class.

    Parameters
    ----------
    model : Classifier
        The network that made the predictions.
    predictions : Predictions
        Outputs for all test images.

    Returns
    -------
    dict of str to array
        "features" (float16, N × D), "predictions" (int16, N), "labels" (int16, N) and "centers" (float16, C × D), for N
        images, C classes and features of length D.
    """
    count = len(predictions.labels)
    chosen = torch.linspace(0, count - 1, min(count, EMBEDDING_SIZE)).round().long()
    features, logits, labels = (tensor[chosen] for tensor in predictions)
    return {
        "features": features.half().numpy(),
        "predictions": logits.argmax(1).short().numpy(),
        "labels": labels.short().numpy(),
        "centers": model.head.weight.detach().half().cpu().numpy(),
    }


def measure_geometry(model: Classifier, predictions: Predictions) -> dict[str, Any]:
    """Return class means, class centers and measures of neural collapse of a network.

    Parameters
    ----------
    model : Classifier
        The network that made the predictions.
    predictions : Predictions
        Outputs for all images of a split.

    Returns
    -------
    dict
        "means" and "centers" (float16 Tensor, C × D): the mean penultimate feature of every class, NaN for a class
        without images, and the rows of the last layer's weight. All other keys are `collapse.MEASURES`, with one float
        each. The measures are computed before the vectors are rounded to 16 bit. If a feature or a center is not
        finite, all measures and means are NaN.
    """
    features, logits, labels = (tensor.numpy() for tensor in predictions)
    centers = model.head.weight.detach().float().cpu()
    if not (np.isfinite(features).all() and centers.isfinite().all()):
        unknown = torch.full_like(centers, torch.nan)
        return {"means": unknown.half(), "centers": centers.half()} | dict.fromkeys(collapse.MEASURES, float("nan"))
    means = collapse.class_means(features, labels, len(centers))
    measures = collapse.collapse_measures(features, labels, logits.argmax(1), centers.numpy(), means)
    return {"means": torch.from_numpy(means).half(), "centers": centers.half(), **measures}


def geometry_row(model: Classifier, predictions: Predictions, epoch: int, epochs: int) -> dict[str, Any]:
    """Return what geometry.npz keeps of one epoch.

    Parameters
    ----------
    model, predictions
        As in `measure_geometry`. The predictions are for the same images in every epoch.
    epoch : int
        Counted from 1.
    epochs : int
        Number of epochs of the training. The vectors are left out if those of all epochs would need more than 64 MiB.

    Returns
    -------
    dict
        "epoch", and the result of `measure_geometry`, perhaps without "means" and "centers".
    """
    measured = measure_geometry(model, predictions)
    if 2 * epochs * measured["centers"].nbytes > MAX_GEOMETRY_BYTES:  # means and centers
        del measured["means"], measured["centers"]
    return {"epoch": epoch, **measured}


def stack_geometry(rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return the geometry of all epochs as arrays, for geometry.npz.

    Parameters
    ----------
    rows : sequence of dict
        The `geometry_row` of one epoch or more.

    Returns
    -------
    dict of str to array
        "epoch" (int32), every measure of `collapse.MEASURES` (float32), "means" and "centers" (float16, E × C × D), for
        E epochs, C classes and features of length D. Without "means" and "centers" if they were left out.
    """
    arrays = {"epoch": np.array([row["epoch"] for row in rows], np.int32)}
    arrays |= {name: np.array([row[name] for row in rows], np.float32) for name in collapse.MEASURES}
    vectors = [name for name in ("means", "centers") if all(name in row for row in rows)]
    return arrays | {name: torch.stack([row[name] for row in rows]).numpy() for name in vectors}
