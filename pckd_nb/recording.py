"""The books of a training: what every step and epoch gave, and what resuming needs."""

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
THUMBNAIL = 96  # pixels, at most
SAMPLES_SHOWN = 16
EMBEDDING_SIZE = 2000


@dataclass
class Recorder:
    """Where a training stands. With the weights and the optimiser it is all that resuming needs.

    epoch, step: the next to do, and the steps of that epoch that are done · seconds: spent on them · log: a row of
    `columns` for each of them, sizes: its images · history, timing: a row for every finished epoch · cross_entropy,
    difficulty: float16 (epochs, samples), NaN where not reached.
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
        """Nothing done yet; the records live on `device`, so that writing to them waits for nothing."""
        return cls(*torch.full((2, epochs, samples), torch.nan, dtype=torch.float16, device=device))

    def to(self, device: torch.device) -> "Recorder":
        """The same books, with their tensors on `device`."""
        log = [row.to(device) for row in self.log]
        return replace(
            self, cross_entropy=self.cross_entropy.to(device), difficulty=self.difficulty.to(device), log=log
        )

    def note(self, index: Tensor, correct: Tensor, terms: Terms) -> None:
        """Write one step down. index: (B,) samples; correct: (B,) whether the upright view was classified right."""
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
        """Raises FloatingPointError for what is not finite in this epoch's log, naming the first and its samples.
        batches: of the epoch, (B,) positions in the training set each."""
        bad = (~torch.stack(self.log).isfinite()).nonzero().tolist()
        if bad:
            step = bad[0][0]
            names = [self.columns[column] for row, column in bad if row == step]
            term = next((name for name in names if name != "total"), "total")  # the total only follows its terms
            index = batches[step]
            alone = ~self.cross_entropy[self.epoch - 1, index].isfinite().cpu()
            index = (index[alone] if alone.any() else index).tolist()  # a term may be bad of all that is in the batch
            raise FloatingPointError(f"{term} is not finite {self.place(step + 1, index, batches)}")

    def place(self, step: int, index: list[int], batches: Sequence[Tensor]) -> str:
        """For messages: the step of this epoch, counted from 1, and samples of it."""
        shown = ", ".join(map(str, index[:SAMPLES_SHOWN])) + ", …" * (len(index) > SAMPLES_SHOWN)
        count = f"{len(index)} of {len(batches[step - 1])} samples"
        return f"in epoch {self.epoch}, step {step}, for {count}: {shown}; a lower learning rate may help"

    def history_table(self) -> pd.DataFrame:
        """history.csv so far: one row per epoch."""
        return pd.DataFrame(self.history or {"epoch": []})

    def timing_table(self) -> pd.DataFrame:
        """timing.csv so far: one row per epoch."""
        return pd.DataFrame(self.timing, columns=["epoch", "seconds", "evaluation_seconds"])

    def write_tables(self, folder: Path) -> None:
        """Write history.csv and timing.csv of a run folder."""
        for name, table in (("history", self.history_table()), ("timing", self.timing_table())):
            files.write(folder / f"{name}.csv", partial(table.to_csv, index=False))

    def end_epoch(self, lr: float, epsilon: float | None, scores: dict[str, float], evaluation_seconds: float) -> None:
        """Average the logged values over the epoch and start the next one. epsilon: of the method, or None."""
        sizes = torch.tensor(self.sizes, dtype=torch.float64)[:, None]
        means = (torch.stack(self.log).cpu().double() * sizes).sum(0) / sizes.sum()
        threshold = {} if epsilon is None else {"threshold": preview.threshold(self.epoch, epsilon)}
        terms = dict(zip(self.columns, means.tolist(), strict=True))
        self.history.append({"epoch": self.epoch, "lr": lr, **threshold, **terms, **scores})
        self.timing.append({"epoch": self.epoch, "seconds": self.seconds, "evaluation_seconds": evaluation_seconds})
        self.epoch, self.step, self.seconds, self.log, self.sizes = self.epoch + 1, 0, 0.0, [], []


def gallery(data: Dataset, difficulty: np.ndarray) -> dict[str, np.ndarray]:
    """At most 100 training images spread evenly from the easiest to the hardest. difficulty: (samples,) γ."""
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
    """uint8 images (N, C, H, W) in another size, channel by channel: Pillow computes in whole numbers, so they are the
    same on every processor."""
    planes = (Image.fromarray(plane.numpy()) for plane in images.flatten(0, 1))
    shrunk = np.stack([np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR)) for plane in planes])
    return torch.from_numpy(shrunk).reshape(*images.shape[:2], height, width)


def embedding(model: Classifier, predictions: Predictions) -> dict[str, np.ndarray]:
    """What figures of the feature space need: features and guesses of test images, and the centers. The images are
    spread evenly over the test set, which may be sorted by class."""
    count = len(predictions.labels)
    chosen = torch.linspace(0, count - 1, min(count, EMBEDDING_SIZE)).round().long()
    features, logits, labels = (tensor[chosen] for tensor in predictions)
    return {
        "features": features.half().numpy(),
        "predictions": logits.argmax(1).short().numpy(),
        "labels": labels.short().numpy(),
        "centers": model.head.weight.detach().half().cpu().numpy(),
    }
