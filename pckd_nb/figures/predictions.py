"""Figures of a network's predictions: which classes it confuses, and whether its confidence matches its accuracy.

Unlike other figures, they need predictions for the images of a data set, as `predict` returns them.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import confusion_matrix as count_predictions

from .. import analysis
from ..evaluation import Predictions
from ..html import counted
from ..runs import Run
from .canvas import DARK_GRAY, LIGHT_GRAY, Drawing, check_runs, new_figure, run_color

__all__ = ["confusion", "reliability"]

MAX_CELLS = 12  # classes; a matrix of more has no numbers in its cells
MAX_NAMES = 40  # classes; a matrix of more has no names at its axes
FEW_IMAGES = 10  # an open marker shows a bin with fewer images
CONFUSED_PAIRS = 12  # of the list beside a matrix without numbers


def confusion(run: Run, predictions: Predictions) -> Drawing:
    """Draw the confusion matrix: for each class, the share of its images that the network assigns to every class.

    For more than 12 classes, a list beside the matrix names the pairs that are confused most often.

    Parameters
    ----------
    run : Run
        Has the names of the classes.
    predictions : Predictions
        Of its network, as `predict` returns them.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If the predictions have another number of classes than the run.
    """
    runs, classes = check_runs(run), run.settings["data"]["classes"]
    _check_classes(run, predictions)
    count = len(classes)
    matrix = count_predictions(predictions.labels, predictions.logits.argmax(1), labels=range(count))
    images = matrix.sum(1, keepdims=True)
    share = 100 * matrix / np.maximum(images, 1)
    with_list = count > MAX_CELLS
    note = f"{len(predictions.labels):,} images. A row shows how the images of one class are classified."
    with new_figure(runs, 8.2 if with_list else 5.6, 5.0, note) as figure:
        axes = figure.subplots(1, 1 + with_list, width_ratios=(3, 1.6)[: 1 + with_list], squeeze=False)[0]
        ax = axes[0]
        image = ax.imshow(share, cmap="Blues", vmin=0, vmax=100)
        bar = figure.colorbar(image, ax=ax, shrink=0.7, aspect=25, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label("images of the class (%)")
        ax.grid(False)
        ax.set(title=f"{run.title}: confusion matrix", xlabel="predicted class", ylabel="correct class")
        if count <= MAX_NAMES:
            size = 8 if count <= MAX_CELLS else 6
            ax.set_xticks(range(count), classes, rotation=90, fontsize=size)
            ax.set_yticks(range(count), classes, fontsize=size)
        if not with_list:
            for (row, column), value in np.ndenumerate(share):
                color = "white" if value > 55 else DARK_GRAY if value >= 0.5 else LIGHT_GRAY
                ax.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=color)
        else:
            _list_confused_pairs(axes[1], matrix, classes)
    return figure


def _list_confused_pairs(ax: Axes, matrix: np.ndarray, classes: Sequence[str]) -> None:
    """Draw the number of images of the pairs of classes that are confused most often, in either direction."""
    both = np.triu(matrix + matrix.T, 1)
    order = np.argsort(both, axis=None, kind="stable")[::-1][:CONFUSED_PAIRS]
    pairs = [(*map(int, np.unravel_index(place, both.shape)), int(both.flat[place])) for place in order]
    pairs = [pair for pair in pairs if pair[2]][::-1]
    ax.barh(range(len(pairs)), [number for *_, number in pairs], color=LIGHT_GRAY, height=0.6)
    for place, (one, other, number) in enumerate(pairs):
        ax.text(0, place + 0.38, f"{classes[one]} – {classes[other]}: {number}", fontsize=7, va="bottom")
    ax.set_yticks([])
    ax.set(title="most often confused", xlabel="images", ylim=(-0.6, max(len(pairs), 1)))
    ax.grid(False)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def reliability(run: Run, predictions: Predictions, bins: int = 15) -> Drawing:
    """Draw a reliability diagram: accuracy against confidence, and how many images have which confidence.

    Points on the dotted line are calibrated: of the images with a confidence of 80 %, 80 % are classified correctly.
    Points below the line show overconfidence. Open points have fewer than 10 images. See `analysis.calibration`.

    Parameters
    ----------
    run : Run
        Names the network.
    predictions : Predictions
        Of its network, as `predict` returns them.
    bins : int
        Number of bins of confidence.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If the predictions have another number of classes than the run, or if `bins` is less than 1.
    """
    runs = check_runs(run)
    _check_classes(run, predictions)
    found = analysis.calibration(predictions, bins)
    table = found.bins[found.bins["images"] > 0]
    color = run_color(run, runs)
    note = (
        f"{counted(len(predictions.labels), 'image')}, {counted(bins, 'bin')} of confidence. Mean confidence "
        f"{found.confidence:.1f} %, accuracy {found.accuracy:.1f} %."
    )
    with new_figure(runs, 4.6, 5.0, note) as figure:
        ax, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
        ax.plot([0, 100], [0, 100], color=DARK_GRAY, linewidth=0.8, linestyle=":")
        ax.plot(table["confidence"], table["accuracy"], "-", color=color)
        for few, face in ((False, color), (True, "white")):
            rows = table[(table["images"] < FEW_IMAGES) == few]
            ax.plot(rows["confidence"], rows["accuracy"], "o", color=color, markerfacecolor=face)
        ax.vlines(table["confidence"], table["confidence"], table["accuracy"], color=color, alpha=0.3, linewidth=4)
        ax.set(ylabel="accuracy (%)", ylim=(0, 102), xlim=(0, 102))
        ax.set_title(f"{run.title}: reliability, ECE = {found.ece:.1f} points")
        below.bar(found.bins["low"], found.bins["images"], 100 / bins, align="edge", color=color, alpha=0.6)
        below.set(xlabel="confidence (%)", ylabel="images")
        below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    return figure


def _check_classes(run: Run, predictions: Predictions) -> None:
    expected, found = len(run.settings["data"]["classes"]), predictions.logits.shape[1]
    if expected != found:
        raise ValueError(f"the run {run.title} has {expected} classes, but the predictions have {found}: use its own")
