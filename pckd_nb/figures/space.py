"""The feature space and the category centers in it."""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from .. import analysis
from ..runs import Run
from .canvas import CLASS_COLORS, INK, PALE, Drawing, canvas, checked, is_teacher, label_of

PAGE = 7.1  # inches: two columns of a journal
SMALL = 6.5  # points, of what stands beside small panels
SHOWN = 50  # features of a class on a map: more hide each other and take long
MARKERS = "os^Dv"  # of groups, when ten colours are used up


def feature_map(runs: Run | Sequence[Run], classes: Sequence[int] | None = None, seed: int = 0) -> Drawing:
    """t-SNE of test features with the category centers (stars), a panel a run, and how pure neighbourhoods are.

    classes: at most ten numbers; left out, ten spread evenly over all. seed: of the maps. A map has at most the first
    50 features of a class; neighbourhoods are those in the full space, among all recorded features of the classes.
    """
    runs = with_embeddings(runs)
    about = runs[0].settings["data"]
    if classes is None:
        count = len(about["classes"])
        classes = np.unique(np.linspace(0, count - 1, min(count, len(CLASS_COLORS))).round().astype(int)).tolist()
    if not 1 <= len(classes) <= len(CLASS_COLORS) or not all(0 <= c < len(about["classes"]) for c in classes):
        raise ValueError(f"classes must be 1 to {len(CLASS_COLORS)} numbers below {len(about['classes'])}")
    with canvas(runs, max(2.05 * len(runs) + 1.4, 5), 3.4) as figure:
        for ax, run in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs, strict=True):
            labels = run.embedding["labels"]
            chosen = np.isin(labels, classes)
            shown = np.sort(np.concatenate([np.flatnonzero(labels == c)[:SHOWN] for c in classes]))
            features, centers = run.embedding["features"][shown], run.embedding["centers"][classes]
            perplexity = min(30, (len(features) + len(centers)) / 4)
            xy, xy_centers = analysis.embed(features, centers, seed, perplexity, memo=run.embedding)
            for color, c, star in zip(CLASS_COLORS, classes, xy_centers, strict=False):
                ax.scatter(*xy[labels[shown] == c].T, s=14, color=color, alpha=0.75, linewidth=0)
                ax.scatter(*star, s=190, marker="*", color=color, edgecolor="black", linewidth=1, zorder=3)
            k = min(5, int(chosen.sum()) - 1)
            purity = analysis.neighbourhood_purity(run.embedding["features"][chosen], labels[chosen], k)
            ax.set_title(label_of(run, runs))
            ax.set_xlabel(f"{100 * purity:.0f} % of {k} nearest\nneighbours share the class")
            _frame(ax)
        marks = [
            Line2D([], [], marker="o", linestyle="", color=color, label=textwrap.shorten(about["classes"][c], 24))
            for color, c in zip(CLASS_COLORS, classes, strict=False)
        ]
        star = Line2D([], [], marker="*", linestyle="", color="white", markeredgecolor="black", markersize=12)
        star.set_label("category center")
        figure.legend(handles=[*marks, star], loc="outside right upper", handletextpad=0.2)
        figure.suptitle("t-SNE of features and centers", x=0.01, ha="left", fontweight="bold")
    return figure


def center_map(runs: Run | Sequence[Run], seed: int = 0) -> Drawing:
    """Do related categories lie together? t-SNE of all category centers, a column a run, a row a grouping.

    Under each panel: how often the 3 nearest centers (cosine, in the full space) are of the same group, and what
    chance would give. Below 30 classes a map says little: then the cosine similarities of all centers, ordered by
    group, and under each the most similar pair where the classes have no groups. seed: of the maps.
    Raises ValueError where 30 classes or more have no groups, or fewer than 4 classes have some.
    """
    runs = with_embeddings(runs)
    about = runs[0].settings["data"]
    count, groups = len(about["classes"]), about["groups"]
    if count < 30:
        return _small_center_map(runs)
    if not groups:
        raise ValueError(f"the classes of {about['name']} have no groups; center_geometry shows all pairs of centers")
    maps = [analysis.embed_centers(run.embedding["centers"], seed, memo=run.embedding) for run in runs]
    side = _side(runs, beside=1.2)
    heights = [max(side + 0.4, 0.15 * len(set(names)) + 0.4) for names in groups.values()]
    with canvas(runs, side * len(runs) + 1.2, sum(heights) + 0.7) as figure:
        grid = figure.add_gridspec(len(groups), len(runs) + 1, width_ratios=[side] * len(runs) + [1.1])
        for row, (grouping, of_class) in enumerate(groups.items()):
            names = list(dict.fromkeys(of_class))
            looks: list[dict[str, Any]] = [
                dict(marker=MARKERS[i // len(CLASS_COLORS) % len(MARKERS)], color=CLASS_COLORS[i % len(CLASS_COLORS)])
                for i in range(len(names))
            ]
            for column, (run, xy) in enumerate(zip(runs, maps, strict=True)):
                ax = figure.add_subplot(grid[row, column])
                for name, look in zip(names, looks, strict=True):
                    x, y = xy[np.array(of_class) == name].T
                    ax.scatter(x, y, s=17, linewidth=0, alpha=0.9, **look)
                if not row:
                    ax.set_title(_panel_title(run, runs), fontsize=8)
                ax.set_xlabel(_nearest_share(run, grouping, of_class), fontsize=SMALL)
                _frame(ax)
            side_ax = figure.add_subplot(grid[row, -1])
            side_ax.axis("off")
            marks = [
                Line2D([], [], linestyle="", markersize=4.5, label=textwrap.shorten(name, 20, placeholder=" …"), **look)
                for name, look in zip(names, looks, strict=True)
            ]
            side_ax.legend(
                handles=marks, title=grouping, loc="center left", fontsize=SMALL, title_fontsize=8, handletextpad=0,
                labelspacing=0.25, borderaxespad=0, alignment="left",
            )  # fmt: skip
        figure.suptitle("t-SNE of all category centers", x=0.01, ha="left", fontweight="bold", fontsize=9)
    return figure


def _small_center_map(runs: list[Run]) -> Drawing:
    about = runs[0].settings["data"]
    side = _side(runs, len(about["classes"]), beside=1.9)
    with canvas(runs, side * len(runs) + 1.9, side + 1.35) as figure:
        axes = figure.subplots(1, len(runs), squeeze=False)[0]
        for ax, run in zip(axes, runs, strict=True):
            similarity = analysis.center_similarity(run.embedding["centers"])
            image = _matrix(ax, similarity, run, names=ax is axes[0])
            ax.set_title(_panel_title(run, runs), fontsize=8)
            shares = [_nearest_share(run, *grouping) for grouping in about["groups"].items()]
            ax.set_xlabel("\n".join(shares) or _closest_pair(similarity, about["classes"]), fontsize=7)
        bar = figure.colorbar(image, ax=list(axes), shrink=0.8, aspect=25, pad=0.02)
        _small_bar(bar, "cosine similarity")
        figure.suptitle("Similarity of all category centers", x=0.01, ha="left", fontweight="bold", fontsize=9)
    return figure


def logit_correlation(runs: Sequence[Run]) -> Drawing:
    """Correlation of every two logits over test images, a panel a network, and how students' differ from the teacher's.

    Logits are features · centers: the bias is the same for every image and changes no correlation. Classes are ordered
    by their first grouping. runs: a teacher and students of it, on the same data; ValueError otherwise.
    """
    teacher, students = _teacher_and_students(runs)
    runs = [teacher, *students]
    matrices = [analysis.logit_correlation(run.embedding["features"], run.embedding["centers"]) for run in runs]
    apart = [matrix - matrices[0] for matrix in matrices[1:]]
    off_diagonal = np.concatenate([np.abs(matrix).ravel() for matrix in apart])
    largest = max(0.1, np.ceil(10 * np.quantile(off_diagonal, 0.99)) / 10)
    note = "r: correlation over all pairs of classes."
    with _two_rows(runs, "Correlation of logits over test images", note) as (figure, axes, corner):
        for ax, run, matrix in zip(axes[0], runs, matrices, strict=True):
            image = _matrix(ax, matrix, run, names=run is teacher)
            ax.set_title(_panel_title(run, runs), fontsize=8)
        for ax, run, matrix, difference in zip(axes[1][1:], students, matrices[1:], apart, strict=True):
            difference_image = _matrix(ax, difference, run, cmap="PuOr_r", limit=largest)
            mean, correlation = analysis.difference_of_pairs(matrix, matrices[0])
            ax.set_title("minus the teacher's", fontsize=8, fontweight="normal")
            ax.set_xlabel(f"mean |difference| {mean:.3f}\nr of the pairs {correlation:.2f}", fontsize=7)
        for y, shown, name in ((0.78, image, "correlation"), (0.38, difference_image, "difference")):
            bar = figure.colorbar(shown, cax=corner.inset_axes((0.05, y, 0.85, 0.07)), orientation="horizontal")
            _small_bar(bar, name)
    return figure


def center_geometry(runs: Sequence[Run]) -> Drawing:
    """Do students arrange their categories as the teacher does? Cosine similarities of all pairs of category centers.

    Above, as matrices, classes ordered by their first grouping; below, every pair: the student's against the teacher's
    similarity, coloured by what both classes share. Widths may differ: compared are not the centers but their
    similarities, by correlation over pairs (r) and linear CKA.
    runs: a teacher and students of it, on the same data, with 3 classes or more; ValueError otherwise.
    """
    teacher, students = _teacher_and_students(runs)
    runs = [teacher, *students]
    centers = [run.embedding["centers"] for run in runs]
    similarities = [analysis.center_similarity(c) for c in centers]
    agreements = [(analysis.center_agreement(c, centers[0]), analysis.center_cka(c, centers[0])) for c in centers[1:]]
    groups = teacher.settings["data"]["groups"]
    first, second = np.triu_indices(len(centers[0]), 1)
    shared = np.zeros(len(first), int)  # by both classes of a pair: nothing, or the number of a grouping
    for number, of_class in enumerate(groups.values(), 1):
        shared[np.array(of_class)[first] == np.array(of_class)[second]] = number
    colors = [PALE if groups else INK, *CLASS_COLORS]
    size = 3 if len(first) > 1000 else 14
    pairs = [similarity[first, second] for similarity in similarities]
    low, high = min(p.min() for p in pairs) - 0.05, max(p.max() for p in pairs) + 0.05
    note = "r: correlation over all pairs of classes; CKA: linear, of the centers."
    with _two_rows(runs, "Similarity of category centers", note) as (figure, axes, corner):
        for ax, run, similarity in zip(axes[0], runs, similarities, strict=True):
            image = _matrix(ax, similarity, run, names=run is teacher)
            ax.set_title(_panel_title(run, runs), fontsize=8)
        for ax, run, of_student, (correlation, cka) in zip(axes[1][1:], students, pairs[1:], agreements, strict=True):
            for number in range(len(groups) + 1):
                chosen = shared == number
                ax.scatter(pairs[0][chosen], of_student[chosen], s=size, color=colors[number], linewidth=0, alpha=0.6,
                           rasterized=True)  # fmt: skip
            ax.plot([low, high], [low, high], color=INK, linewidth=0.8, linestyle=":")
            ax.set(xlim=(low, high), box_aspect=1)
            ax.set_title(f"r = {correlation:.2f}, CKA = {cka:.2f}", fontsize=8, fontweight="normal")
            ax.set_xlabel("teacher's similarity", fontsize=7)
            if run is students[0]:
                ax.set_ylabel("student's, same scale", fontsize=7)
            ax.set_yticks(ax.get_xticks(), [""] * len(ax.get_xticks()))
            ax.set(xlim=(low, high), ylim=(low, high))
            ax.tick_params(labelsize=SMALL)
        bar = figure.colorbar(image, cax=corner.inset_axes((0.05, 0.85, 0.85, 0.07)), orientation="horizontal")
        _small_bar(bar, "cosine similarity")
        if groups:
            kinds = ["nothing", *groups]
            marks = [Line2D([], [], marker="o", linestyle="", markersize=4, color=colors[i]) for i in range(len(kinds))]
            corner.legend(
                marks, kinds, title="pairs that share", loc="lower left", fontsize=SMALL, title_fontsize=7,
                bbox_to_anchor=(-0.02, -0.05), handletextpad=0, labelspacing=0.25, borderaxespad=0, alignment="left",
            )  # fmt: skip
    return figure


def with_embeddings(runs: Run | Sequence[Run]) -> list[Run]:
    """`checked`, and every run has an embedding of the same data."""
    runs = checked(runs, "embedding")
    if len({run.data_fingerprint for run in runs}) > 1:
        raise ValueError("maps of feature spaces side by side need runs on the same data")
    return runs


def _teacher_and_students(runs: Run | Sequence[Run]) -> tuple[Run, list[Run]]:
    runs = with_embeddings(runs)
    teachers = [run for run in runs if is_teacher(run, runs)]
    if len(teachers) != 1:
        raise ValueError(f"students are compared with their one teacher, and {len(teachers)} of these runs are one")
    return teachers[0], [run for run in runs if run is not teachers[0]]


@contextmanager
def _two_rows(runs: list[Run], title: str, note: str) -> Iterator[tuple[Drawing, np.ndarray, Axes]]:
    """A canvas with a row of matrices, the teacher's first, and below each student's another panel; the corner below
    the teacher's is left for what explains them. Gives figure, axes (2, runs), corner."""
    side = _side(runs)
    with canvas(runs, side * len(runs) + 1, 2 * side + 1.6, note) as figure:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=9)
        axes = figure.subplots(2, len(runs))
        axes[1, 0].axis("off")
        yield figure, axes, axes[1, 0]


def _side(runs: list[Run], names: int = 10, beside: float = 1) -> float:
    """Of a square panel, inches: what fits on a page with `beside` left free, and room for as many names."""
    return max(min(2.4, (PAGE - beside) / len(runs)), 1.3, 0.13 * names)


def _frame(ax: Axes) -> None:
    ax.set(xticks=[], yticks=[], box_aspect=1)
    for side in ax.spines.values():
        side.set_visible(True)


def _matrix(
    ax: Axes, matrix: np.ndarray, run: Run, names: bool = False, cmap: str = "RdBu_r", limit: float = 1
) -> AxesImage:
    """A (C, C) matrix with classes ordered by their first grouping, whose groups, or else classes, are named."""
    about = run.settings["data"]
    grouped = next(iter(about["groups"].values()), None)
    of_class = list(grouped or about["classes"])
    blocks = list(dict.fromkeys(of_class))
    order = np.argsort([blocks.index(name) for name in of_class], kind="stable")
    image = ax.imshow(matrix[np.ix_(order, order)], cmap=cmap, vmin=-limit, vmax=limit, interpolation="nearest")
    _frame(ax)
    ax.grid(visible=False)
    if names and len(blocks) <= 30:
        ends = np.cumsum([of_class.count(name) for name in blocks])
        middles = (ends + np.concatenate([[0], ends[:-1]]) - 1) / 2
        ax.set_yticks(middles, [textwrap.shorten(name, 18, placeholder=" …") for name in blocks], fontsize=SMALL)
    return image


def _small_bar(bar: Any, name: str) -> None:
    bar.set_label(name, fontsize=7)
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)


def _panel_title(run: Run, runs: list[Run]) -> str:
    """The network and, where there is one, its variant below."""
    name, *variant = label_of(run, runs).split(", ", 1)
    lines = textwrap.wrap(" ".join(variant).replace(" = ", "="), 24)  # a setting and its value stay on one line
    return "\n".join([name, *(line.replace("=", " = ") for line in lines)])


def _nearest_share(run: Run, grouping: str, of_class: Sequence[str]) -> str:
    """The number under a map: how often the 3 nearest centers are of the same group, and by chance."""
    labels = np.unique(np.array(of_class), return_inverse=True)[1]
    share = analysis.neighbourhood_purity(run.embedding["centers"], labels, 3)
    chance = 100 * analysis.chance_purity(labels)
    return f"{100 * share:.0f} % of 3 nearest share\nthe {grouping} (chance {chance:.0f} %)"


def _closest_pair(similarity: np.ndarray, classes: Sequence[str]) -> str:
    pairs = np.triu_indices(len(similarity), 1)
    if not len(pairs[0]):
        return ""
    best = int(similarity[pairs].argmax())
    a, b = (textwrap.shorten(classes[side[best]], 16, placeholder=" …") for side in pairs)
    return f"closest: {a}\nand {b} ({similarity[pairs][best]:.2f})"
