"""The record of a training: the logged values of every step and epoch, and images and features for figures."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from . import collapse, files, measures, preview
from .data import Dataset
from .evaluation import Predictions
from .methods import Terms
from .models import Classifier

GALLERY_SIZE = 100  # maximum number of training images in gallery.npz
MAX_GALLERY_SIDE = 96  # pixels; larger images are resized
MAX_SAMPLES_IN_MESSAGE = 16
EMBEDDING_SIZE = 2000  # maximum number of test images in embedding.npz
VECTORS = ("means", "centers")  # in geometry.npz
MAX_GEOMETRY_BYTES = 2**26  # of class means and centers in geometry.npz; above it, only the measures are kept


@dataclass
class Recorder:
    """The progress of a training and its logged values.

    A checkpoint contains the recorder, the weights and the state of the optimizer.

    It needs 6 bytes per sample and epoch, 2 more in the first 20 epochs, and 4 more per sample, or 16 with a teacher.
    For 50,000 samples and 240 epochs, these are 75 MB. What follows from other values is not recorded. The sign of the
    margin says whether the prediction is correct. The probability of the label follows from the cross-entropy. The
    error norm does not follow from the others, but its only use is a score of early training.

    The tensors after `difficulty` are None if an earlier version of the package has started the training. Those of the
    teacher are also None if no teacher runs during the epochs.

    Parameters
    ----------
    cross_entropy : float16 Tensor of shape (epochs, samples), in nats
        Cross-entropy of every training sample in every epoch. NaN in epochs that were not reached yet.
    difficulty : float16 Tensor of shape (epochs, samples), at least 0
        Difficulty γ of every training sample in every epoch, see `preview.difficulty`. NaN as above.
    margin : float16 Tensor of shape (epochs, samples), optional
        Margin of every training sample in every epoch, see `measures.margin`. NaN as above.
    error_norms : float16 Tensor of shape (early epochs, samples), optional
        `measures.error_norm` of every training sample in the first 20 epochs. NaN as above.
    prediction : int32 Tensor of shape (samples,), optional
        Class that the student predicted when it last saw each training sample. -1 if it has not seen it.
    teacher_cross_entropy, teacher_margin : float32 Tensor of shape (samples,), optional
        Cross-entropy and margin of the teacher. They depend on the crop of the image, which changes from epoch to
        epoch, so they are averaged over the epochs. NaN if the teacher has not seen the sample.
    teacher_prediction : int32 Tensor of shape (samples,), optional
        Class that the teacher predicted when it last saw each training sample. -1 if it has not seen it.
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
        Class means, class centers and measures of neural collapse of every complete epoch, see `add_geometry`.
    """

    cross_entropy: Tensor
    difficulty: Tensor
    margin: Tensor | None = None
    error_norms: Tensor | None = None
    prediction: Tensor | None = None
    teacher_cross_entropy: Tensor | None = None
    teacher_margin: Tensor | None = None
    teacher_prediction: Tensor | None = None
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
    def empty(cls, epochs: int, samples: int, device: torch.device, teacher: bool = False) -> "Recorder":
        """Return a recorder for a new training.

        Parameters
        ----------
        epochs, samples : int
            Number of epochs and of training images.
        device : torch.device
            The training device. If the recorder's tensors are there too, no step waits for a copy to another device.
        teacher : bool
            Whether to record what the teacher predicts for the training images.

        Returns
        -------
        Recorder
        """
        options: dict[str, Any] = {"dtype": torch.float16, "device": device}
        cross_entropy, difficulty, margin = torch.full((3, epochs, samples), torch.nan, **options)
        error_norms = torch.full((min(epochs, measures.EL2N_EPOCHS), samples), torch.nan, **options)
        prediction = torch.full((samples,), -1, dtype=torch.int32, device=device)
        recorder = cls(cross_entropy, difficulty, margin, error_norms, prediction)
        if teacher:
            recorder.teacher_cross_entropy, recorder.teacher_margin = torch.full((2, samples), torch.nan, device=device)
            recorder.teacher_prediction = prediction.clone()
        return recorder

    def to(self, device: torch.device) -> "Recorder":
        """Return the same recorder with its tensors on `device`."""
        required = "cross_entropy", "difficulty"  # of a damaged checkpoint they may be anything
        tensors: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if name in required or isinstance(value, Tensor)
        }
        return replace(self, **tensors, log=[row.to(device) for row in self.log])

    def arrays(self) -> dict[str, Any]:
        """Return the values of every sample: name → array."""
        return {name: value.cpu().numpy() for name, value in vars(self).items() if isinstance(value, Tensor)}

    def record_step(
        self, index: Tensor, labels: Tensor, logits: Tensor, terms: Terms, teacher_logits: Tensor | None = None
    ) -> None:
        """Record the values of one training step.

        Parameters
        ----------
        index : int64 Tensor of shape (B,)
            Positions of the samples in the training set.
        labels : int64 Tensor of shape (B,)
            Their classes.
        logits : float Tensor of shape (B, C)
            Logits of the student for the upright view of each sample, without gradient.
        terms : Terms
            The total loss, its terms, and the cross-entropy, difficulty and preview weight of each sample.
        teacher_logits : float Tensor of shape (B, C), optional
            The same logits of the teacher. None if it does not run in this step.
        """
        prediction = logits.argmax(1)
        correct = prediction == labels
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
        if self.margin is not None:
            self.margin[self.epoch - 1, index] = measures.margin(logits, labels).half()
        if self.error_norms is not None and self.epoch <= len(self.error_norms):
            self.error_norms[self.epoch - 1, index] = measures.error_norm(logits, labels).half()
        if self.prediction is not None:
            self.prediction[index] = prediction.int()
        if teacher_logits is not None and self.teacher_prediction is not None:
            self.teacher_prediction[index] = teacher_logits.argmax(1).int()
            cross_entropy = F.cross_entropy(teacher_logits, labels, reduction="none")
            self._update_mean(self.teacher_cross_entropy, index, cross_entropy)
            self._update_mean(self.teacher_margin, index, measures.margin(teacher_logits, labels))
        self.step += 1

    def _update_mean(self, means: Tensor | None, index: Tensor, values: Tensor) -> None:
        """Add the values of this epoch to means over the epochs. In the first epoch, they replace NaN."""
        if means is not None:
            means[index] = torch.lerp(means[index].nan_to_num(), values.float(), 1 / self.epoch)

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


def add_geometry(rows: list[dict[str, Any]], row: dict[str, Any]) -> None:
    """Add the geometry of an epoch to that of the earlier ones.

    The last row has the class means and centers of all epochs, as one tensor each. So the number of tensors in memory
    does not grow with the number of epochs.

    Parameters
    ----------
    rows : list of dict
        It is changed.
    row : dict
        As `geometry_row` returns it.
    """
    for name in VECTORS:
        if name in row:
            earlier = [rows[-1].pop(name)] if rows and name in rows[-1] else []
            row[name] = torch.cat([*earlier, row[name][None]])
    rows.append(row)


def stack_geometry(rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return the geometry of all epochs as arrays, for geometry.npz.

    Parameters
    ----------
    rows : sequence of dict
        One epoch or more, as `add_geometry` has added them.

    Returns
    -------
    dict of str to array
        "epoch" (int32), every measure of `collapse.MEASURES` (float32), "means" and "centers" (float16, E × C × D), for
        E epochs, C classes and features of length D. Without "means" and "centers" if they were left out.
    """
    arrays = {"epoch": np.array([row["epoch"] for row in rows], np.int32)}
    arrays |= {name: np.array([row[name] for row in rows], np.float32) for name in collapse.MEASURES}
    return arrays | {name: rows[-1][name].numpy() for name in VECTORS if name in rows[-1]}
