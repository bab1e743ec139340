"""Figure of what networks look at: Grad-CAM maps over images."""

import dataclasses
import textwrap
from collections.abc import Sequence

import numpy as np
import torch

from .. import analysis
from ..arguments import as_dataset
from ..data import Dataset
from ..evaluation import predict
from ..runs import Run
from .canvas import Drawing, as_rgb, check_runs, new_figure, run_label

__all__ = ["grad_cam"]


def grad_cam(runs: Run | Sequence[Run], data: Dataset | str, rows: Sequence[int], split: str = "test") -> Drawing:
    """Draw where networks see evidence for the correct class of some images, one row per network.

    The first row has the images. The other rows show Grad-CAM maps over them, see `analysis.grad_cam`. Below each map
    is the predicted class, and its probability.

    Parameters
    ----------
    runs : Run or sequence of Run
        Runs with weights, for example a teacher and its students.
    data : Dataset or str
        A data set with the classes of the runs, or its name.
    rows : sequence of int
        Positions of the images in the split.
    split : {"test", "train", "val"}

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If a run has no weights, or as in `analysis.grad_cam`.
    TypeError
        If an argument has the wrong type.
    """
    runs, data = check_runs(runs), as_dataset(data)
    maps = [analysis.grad_cam(run, data, rows, split=split) for run in runs]
    chosen = getattr(data, split).take(np.asarray(rows))
    images = [as_rgb(image.cpu().numpy()) for batch in chosen.read([torch.arange(len(chosen))]) for image in batch]
    predictions = [predict(run, dataclasses.replace(data, **{split: chosen}), split) for run in runs]
    size = 1.15
    with new_figure(runs, 1.1 + size * len(images), 0.9 + 1.4 * size * (len(runs) + 1)) as figure:
        axes = figure.subplots(len(runs) + 1, len(images), squeeze=False)
        for ax, image, label in zip(axes[0], images, chosen.labels.tolist(), strict=True):
            ax.imshow(image)
            ax.set_title(textwrap.fill(data.classes[label], 14), fontsize=7, loc="center")
        for row, run, cams, found in zip(axes[1:], runs, maps, predictions, strict=True):
            p, predicted = found.logits.softmax(1).max(1)
            for ax, image, cam, number, share in zip(row, images, cams, predicted.tolist(), p.tolist(), strict=True):
                ax.imshow(image.mean(2), cmap="gray", vmin=0, vmax=255)
                ax.imshow(cam, cmap="inferno", alpha=0.55, vmin=0, vmax=1)
                ax.set_xlabel(f"{textwrap.fill(data.classes[number], 14)}\n{100 * share:.0f} %", fontsize=7)
            row[0].set_ylabel(textwrap.fill(run_label(run, runs), 12), fontsize=8)
        for ax in axes.flat:
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
        figure.suptitle("Where networks see the correct class (Grad-CAM)", x=0.01, ha="left", fontweight="bold")
    return figure
