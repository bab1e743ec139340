"""The record of a training: the values of every step and epoch, and the state that resuming needs."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from . import files, preview
from .data import Dataset
from .evaluation import Predictions
from .methods import Terms
from .models import Classifier

GALLERY_SIZE = 100
THUMBNAIL = 96  # maximum side length in pixels
SAMPLES_SHOWN = 16
EMBEDDING_SIZE = 2000


@dataclass
class Recorder:
    """The progress of a training and its logged values.

    Together with the weights and the optimizer, this is all that resuming needs.

    Parameters
    ----------
    cross_entropy, difficulty : float16 Tensor of shape (epochs, samples)
        Recorded values of every training sample. NaN where not reached yet.
    epoch : int
        The current epoch, from 1.
    step : int
        Number of steps done in this epoch.
    seconds : float
        Time spent on these steps.
    columns : list of str
        Names of the logged values.
    log : list of Tensor
        Values of `columns`, one row per step of this epoch.
    sizes : list of int
        Number of images of each of these steps.
    history, timing : list of dict
        One row per finished epoch.
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

    @classmethod
    def empty(cls, epochs: int, samples: int, device: torch.device) -> "Recorder":
        """Return an empty record with its tensors on `device`, so that training never waits for a transfer."""
        return cls(*torch.full((2, epochs, samples), torch.nan, dtype=torch.float16, device=device))

    def to(self, device: torch.device) -> "Recorder":
        """Return the same record with its tensors on `device`."""
        log = [row.to(device) for row in self.log]
        return replace(
            self, cross_entropy=self.cross_entropy.to(device), difficulty=self.difficulty.to(device), log=log
        )

    def note(self, index: Tensor, correct: Tensor, terms: Terms) -> None:
        """Record one step.

        Parameters
        ----------
        index : int64 Tensor of shape (B,)
            Positions of the samples in the training set.
        correct : bool Tensor of shape (B,)
            Whether the upright view of each sample was classified correctly.
        terms : Terms
        """
        values = {
            "total": terms.total,
            **terms.terms,
            "train_top1": 100 * correct.float().mean(),
            "mean_weight": terms.weight.mean(),
            "full_weight_share": (terms.weight == 1).float().mean(),
        }
        self.columns = list(values)
        self.log.append(torch.stack([value.detach().float() for value in values.values()]))
        self.sizes.append(len(index))
        self.cross_entropy[self.epoch - 1, index] = terms.cross_entropy.half()
        self.difficulty[self.epoch - 1, index] = terms.difficulty.half()
        self.step += 1

    def check_finite(self, batches: Sequence[Tensor]) -> None:
        """Check the logged values of this epoch.

        Parameters
        ----------
        batches : sequence of int64 Tensor of shape (B,)
            The batches of the epoch, as positions in the training set.

        Raises
        ------
        FloatingPointError
            If a value is not finite. The error names the first one and its samples.
        """
        bad = (~torch.stack(self.log).isfinite()).nonzero().tolist()
        if bad:
            step = bad[0][0]
            names = [self.columns[column] for row, column in bad if row == step]
            term = next((name for name in names if name != "total"), "total")  # name the term, not the total
            index = batches[step]
            affected = ~self.cross_entropy[self.epoch - 1, index].isfinite().cpu()
            index = (index[affected] if affected.any() else index).tolist()  # no single sample: list the whole batch
            raise FloatingPointError(f"{term} is not finite {self.place(step + 1, index, batches)}")

    def place(self, step: int, index: list[int], batches: Sequence[Tensor]) -> str:
        """Describe a step of this epoch, counted from 1, and some of its samples for an error message."""
        shown = ", ".join(map(str, index[:SAMPLES_SHOWN])) + ", …" * (len(index) > SAMPLES_SHOWN)
        count = f"{len(index)} of {len(batches[step - 1])} samples"
        return f"in epoch {self.epoch}, step {step}, for {count}: {shown}; a lower learning rate may help"

    def history_table(self) -> pd.DataFrame:
        """Return history.csv so far: one row per epoch."""
        return pd.DataFrame(self.history or {"epoch": []})

    def timing_table(self) -> pd.DataFrame:
        """Return timing.csv so far: one row per epoch."""
        return pd.DataFrame(self.timing, columns=["epoch", "seconds", "evaluation_seconds"])

    def write_tables(self, folder: Path) -> None:
        """Write history.csv and timing.csv to a run folder."""
        for name, table in (("history", self.history_table()), ("timing", self.timing_table())):
            files.write(folder / f"{name}.csv", partial(table.to_csv, index=False))

    def end_epoch(self, lr: float, epsilon: float | None, scores: dict[str, float], evaluation_seconds: float) -> None:
        """Average the logged values over the epoch and start the next one.

        Parameters
        ----------
        lr : float
            Learning rate.
        epsilon : float or None
            Base of the method's preview threshold. None if it has no threshold.
        scores : dict of str to float
            Columns of history.csv from the evaluation.
        evaluation_seconds : float
        """
        sizes = torch.tensor(self.sizes, dtype=torch.float64)[:, None]
        means = (torch.stack(self.log).cpu().double() * sizes).sum(0) / sizes.sum()
        threshold = {} if epsilon is None else {"threshold": preview.threshold(self.epoch, epsilon)}
        terms = dict(zip(self.columns, means.tolist(), strict=True))
        self.history.append({"epoch": self.epoch, "lr": lr, **threshold, **terms, **scores})
        self.timing.append({"epoch": self.epoch, "seconds": self.seconds, "evaluation_seconds": evaluation_seconds})
        self.epoch, self.step, self.seconds, self.log, self.sizes = self.epoch + 1, 0, 0.0, [], []


def gallery(data: Dataset, difficulty: np.ndarray) -> dict[str, np.ndarray]:
    """Select at most 100 training images, evenly spaced from the easiest to the hardest.

    Parameters
    ----------
    data : Dataset
    difficulty : float array of shape (samples,)
        γ of the training samples.

    Returns
    -------
    dict of str to array
        "images" (uint8, at most 96 pixels per side), "labels", "index" (positions in the training set) and
        "difficulty".
    """
    order = np.argsort(difficulty, kind="stable")
    index = order[np.linspace(0, len(order) - 1, min(GALLERY_SIZE, len(order))).round().astype(int)]
    images = torch.cat(list(data.train.read(torch.from_numpy(index).split(10))))
    if (largest := max(data.size)) > THUMBNAIL:
        height, width = (side * THUMBNAIL // largest for side in data.size)
        images = _shrink(images.cpu(), height, width)
    return {
        "images": images.cpu().numpy(),
        "labels": data.train.labels[index].cpu().numpy(),
        "index": index,
        "difficulty": difficulty[index],
    }


def _shrink(images: Tensor, height: int, width: int) -> Tensor:
    """Resize uint8 images (N, C, H, W) with Pillow, whose integer arithmetic gives equal results on all processors."""
    planes = (Image.fromarray(plane.numpy()) for plane in images.flatten(0, 1))
    shrunk = np.stack([np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR)) for plane in planes])
    return torch.from_numpy(shrunk).reshape(*images.shape[:2], height, width)


def embedding(model: Classifier, predictions: Predictions) -> dict[str, np.ndarray]:
    """Return the data for figures of the feature space.

    The test images are evenly spaced over the test set, because it may be sorted by class. There are at most 2000.

    Parameters
    ----------
    model : Classifier
    predictions : Predictions
        Of the test images.

    Returns
    -------
    dict of str to array
        "features" (float16), "predictions" (int16), "labels" (int16) and the class "centers" (float16).
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
