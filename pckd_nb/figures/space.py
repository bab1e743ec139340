"""The feature space and the category centers in it."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .. import analysis
from ..runs import Run
from .canvas import CLASS_COLORS, canvas, checked, label_of


def feature_map(runs: Run | Sequence[Run], classes: Sequence[int] | None = None, seed: int = 0) -> Figure:
    """t-SNE of test features with the category centers (stars), a panel a run, and how pure neighbourhoods are.

    classes: at most ten numbers; left out, ten spread evenly over all. seed: of the maps.
    """
    runs = checked(runs)
    if any(run.embedding is None for run in runs):
        raise ValueError("a run has no embedding: it has no whole epoch yet")
    about = runs[0].settings["data"]
    if any(run.settings["data"]["fingerprint"] != about["fingerprint"] for run in runs):
        raise ValueError("feature maps side by side need runs on the same data")
    if classes is None:
        count = len(about["classes"])
        classes = np.unique(np.linspace(0, count - 1, min(count, len(CLASS_COLORS))).round().astype(int)).tolist()
    if not 1 <= len(classes) <= len(CLASS_COLORS) or not all(0 <= c < len(about["classes"]) for c in classes):
        raise ValueError(f"classes must be 1 to {len(CLASS_COLORS)} numbers below {len(about['classes'])}")
    with canvas(runs, max(2.05 * len(runs) + 1.4, 5), 3.4) as figure:
        for ax, run in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs, strict=True):
            labels = run.embedding["labels"]
            chosen = np.isin(labels, classes)
            features, centers = run.embedding["features"][chosen], run.embedding["centers"][classes]
            xy, xy_centers = analysis.embed(features, centers, seed, min(30, (len(features) + len(centers)) / 4))
            for color, c, star in zip(CLASS_COLORS, classes, xy_centers, strict=False):
                ax.scatter(*xy[labels[chosen] == c].T, s=14, color=color, alpha=0.75, linewidth=0)
                ax.scatter(*star, s=190, marker="*", color=color, edgecolor="black", linewidth=1, zorder=3)
            k = min(5, len(features) - 1)
            purity = analysis.neighbourhood_purity(features, labels[chosen], k)
            ax.set(title=label_of(run, runs), xticks=[], yticks=[], box_aspect=1)
            ax.set_xlabel(f"{100 * purity:.0f} % of {k} nearest\nneighbours share the class")
            for side in ax.spines.values():
                side.set_visible(True)
        marks = [
            Line2D([], [], marker="o", linestyle="", color=color, label=textwrap.shorten(about["classes"][c], 24))
            for color, c in zip(CLASS_COLORS, classes, strict=False)
        ]
        star = Line2D([], [], marker="*", linestyle="", color="white", markeredgecolor="black", markersize=12)
        star.set_label("category center")
        figure.legend(handles=[*marks, star], loc="outside right upper", handletextpad=0.2)
        figure.suptitle("t-SNE of features and centers", x=0.01, ha="left", fontweight="bold")
    return figure
