"""Figures of the feature space: t-SNE maps, similarities of category centers, and correlations of logits.

A *grouping* sorts the classes of a data set into groups. For example, shapes100 can be grouped by shape and by pattern.
The *embedding* of a run has the features of its test images and its category centers, see `recording.embedding`.
"""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from .. import analysis
from ..runs import Run
from .canvas import (
    CLASS_COLORS,
    DARK_GRAY,
    LIGHT_GRAY,
    Drawing,
    check_runs,
    choose_classes,
    is_teacher,
    new_figure,
    run_label,
)

PAGE_WIDTH = 7.1  # inches: two columns of a journal
SMALL_FONT = 6.5  # points, for text next to small panels
MAX_FEATURES_PER_CLASS = 50  # on a map: more features would hide each other and take long
MARKERS = "os^Dv"  # for groups: the next marker is used after ten colours


def feature_map(runs: Run | Sequence[Run], classes: Sequence[int] | None = None, seed: int = 0) -> Drawing:
    """Draw a t-SNE map of test features and category centers for each run, with the neighbourhood purity.

    Dots are features and stars are category centers. A map shows at most the first 50 features per class. The purity is
    the share of the 5 nearest neighbours that belong to the same class. It is computed in the full feature space, from
    all recorded features of the classes.

    Parameters
    ----------
    runs : Run or sequence of Run
        With embeddings of the same data.
    classes : sequence of int, optional
        1 to 10 classes. By default, 10 classes that are evenly spaced.
    seed : int
        Seed of the maps.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If a run has no embedding, if the runs are of different data, or if `classes` is outside its range.
    """
    runs = check_embeddings(runs)
    info = runs[0].settings["data"]
    classes = choose_classes(classes, len(info["classes"]))
    with new_figure(runs, max(2.05 * len(runs) + 1.4, 5), 3.4) as figure:
        for ax, run in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs, strict=True):
            labels = run.embedding["labels"]
            chosen = np.isin(labels, classes)
            shown = _first_features(labels, classes)
            features, centers = run.embedding["features"][shown], run.embedding["centers"][classes]
            perplexity = min(30, (len(features) + len(centers)) / 4)
            xy, xy_centers = analysis.embed(features, centers, seed, perplexity, memo=run.embedding)
            for color, c, star in zip(CLASS_COLORS, classes, xy_centers, strict=False):
                ax.scatter(*xy[labels[shown] == c].T, s=14, color=color, alpha=0.75, linewidth=0)
                ax.scatter(*star, s=190, marker="*", color=color, edgecolor="black", linewidth=1, zorder=3)
            k = min(5, int(chosen.sum()) - 1)
            purity = analysis.neighbourhood_purity(run.embedding["features"][chosen], labels[chosen], k)
            ax.set_title(run_label(run, runs))
            ax.set_xlabel(f"{100 * purity:.0f} % of {k} nearest\nneighbours share the class")
            _draw_frame(ax)
        marks = _class_marks(info["classes"], classes)
        star = Line2D([], [], marker="*", linestyle="", color="white", markeredgecolor="black", markersize=12)
        star.set_label("category center")
        figure.legend(handles=[*marks, star], loc="outside right upper", handletextpad=0.2)
        figure.suptitle("t-SNE of features and centers", x=0.01, ha="left", fontweight="bold")
    return figure


def aligned_feature_maps(runs: Sequence[Run], classes: Sequence[int] | None = None, seed: int = 0) -> Drawing:
    """Draw one t-SNE map of test features per run, aligned so that the same image has about the same place in all maps.

    The first map is computed alone, and each other map starts from it, see `analysis.aligned_maps`. A thin line shows
    where an image is in the first map. Pass the teacher first to see which images its students place elsewhere.

    Parameters
    ----------
    runs : sequence of Run
        Two or more, with embeddings of the same images.
    classes : sequence of int, optional
        1 to 10 classes. By default, 10 classes that are evenly spaced.
    seed : int
        Seed of the maps.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If a run has no embedding, if the runs are of different images, or if `classes` is outside its range.
    """
    runs = check_embeddings(runs)
    labels = runs[0].embedding["labels"]
    if any(not np.array_equal(run.embedding["labels"], labels) for run in runs):
        raise ValueError("the runs have embeddings of different images: use runs with the same test images")
    names = runs[0].settings["data"]["classes"]
    classes = choose_classes(classes, len(names))
    shown = _first_features(labels, classes)
    maps = analysis.aligned_maps(
        [run.embedding["features"][shown] for run in runs], seed, min(30, len(shown) / 4), True
    )
    limit = 1.06 * np.abs(maps).max()
    with new_figure(runs, max(2.05 * len(runs) + 1.4, 5), 3.2) as figure:
        for number, (ax, run) in enumerate(zip(figure.subplots(1, len(runs), squeeze=False)[0], runs, strict=True)):
            if number:
                lines = np.stack([maps[0], maps[number]], 1)
                ax.add_collection(LineCollection(list(lines), colors=LIGHT_GRAY, linewidths=0.5, zorder=0))
            for color, c in zip(CLASS_COLORS, classes, strict=False):
                ax.scatter(*maps[number][labels[shown] == c].T, s=14, color=color, alpha=0.75, linewidth=0)
            ax.set_title(run_label(run, runs))
            _draw_frame(ax)
            ax.set(xlim=(-limit, limit), ylim=(-limit, limit))
        figure.legend(handles=_class_marks(names, classes), loc="outside right upper", handletextpad=0.2)
        figure.suptitle("Aligned t-SNE maps of test features", x=0.01, ha="left", fontweight="bold")
    return figure


def _first_features(labels: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Return the positions of the features that a map shows: the first ones of each class."""
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:MAX_FEATURES_PER_CLASS] for c in classes]))


def _class_marks(names: Sequence[str], classes: Sequence[int]) -> list[Line2D]:
    """Return the entries of a legend with one colour per class."""
    return [
        Line2D([], [], marker="o", linestyle="", color=color, label=textwrap.shorten(names[c], 24))
        for color, c in zip(CLASS_COLORS, classes, strict=False)
    ]


def center_map(runs: Run | Sequence[Run], seed: int = 0) -> Drawing:
    """Draw a t-SNE map of all category centers, with one column per run and one row per grouping, such as by shape.

    The map shows whether related categories lie together. The text under a panel says how many of the 3 nearest centers
    are in the same group on average, and how many would be by chance. Nearest means the largest cosine similarity in
    the full feature space.

    A map of fewer than 30 centers says little. Then the figure shows the cosine similarities of all centers, ordered by
    group. If the data has no grouping, the text under a panel names the most similar pair.

    Parameters
    ----------
    runs : Run or sequence of Run
        With embeddings of the same data.
    seed : int
        Seed of the maps.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If a run has no embedding, if the runs are of different data, if there are 30 classes or more without a
        grouping, or if there are fewer than 4 classes with a grouping.
    """
    runs = check_embeddings(runs)
    info = runs[0].settings["data"]
    count, groups = len(info["classes"]), info["groups"]
    if count < 30:
        return _small_center_map(runs)
    if not groups:
        raise ValueError(f"the classes of {info['name']} have no groups; use center_geometry, which shows all pairs")
    maps = [analysis.embed_centers(run.embedding["centers"], seed, memo=run.embedding) for run in runs]
    side = _panel_size(runs, margin=1.2)
    heights = [max(side + 0.4, 0.15 * len(set(names)) + 0.4) for names in groups.values()]
    with new_figure(runs, side * len(runs) + 1.2, sum(heights) + 0.7) as figure:
        grid = figure.add_gridspec(len(groups), len(runs) + 1, width_ratios=[side] * len(runs) + [1.1])
        for row, (grouping, class_groups) in enumerate(groups.items()):
            names = list(dict.fromkeys(class_groups))
            styles: list[dict[str, Any]] = [
                dict(marker=MARKERS[i // len(CLASS_COLORS) % len(MARKERS)], color=CLASS_COLORS[i % len(CLASS_COLORS)])
                for i in range(len(names))
            ]
            for column, (run, xy) in enumerate(zip(runs, maps, strict=True)):
                ax = figure.add_subplot(grid[row, column])
                for name, style in zip(names, styles, strict=True):
                    x, y = xy[np.array(class_groups) == name].T
                    ax.scatter(x, y, s=17, linewidth=0, alpha=0.9, **style)
                if not row:
                    ax.set_title(panel_title(run, runs), fontsize=8)
                ax.set_xlabel(_nearest_share(run, grouping, class_groups), fontsize=SMALL_FONT)
                _draw_frame(ax)
            side_ax = figure.add_subplot(grid[row, -1])
            side_ax.axis("off")
            marks = [
                Line2D(
                    [], [], linestyle="", markersize=4.5, label=textwrap.shorten(name, 20, placeholder=" …"), **style
                )
                for name, style in zip(names, styles, strict=True)
            ]
            side_ax.legend(
                handles=marks, title=grouping, loc="center left", fontsize=SMALL_FONT, title_fontsize=8,
                handletextpad=0, labelspacing=0.25, borderaxespad=0, alignment="left",
            )  # fmt: skip
        figure.suptitle("t-SNE of all category centers", x=0.01, ha="left", fontweight="bold", fontsize=9)
    return figure


def _small_center_map(runs: list[Run]) -> Drawing:
    info = runs[0].settings["data"]
    side = _panel_size(runs, len(info["classes"]), margin=1.9)
    with new_figure(runs, side * len(runs) + 1.9, side + 1.35) as figure:
        axes = figure.subplots(1, len(runs), squeeze=False)[0]
        for ax, run in zip(axes, runs, strict=True):
            similarity = analysis.center_similarity(run.embedding["centers"])
            image = _draw_matrix(ax, similarity, run, names=ax is axes[0])
            ax.set_title(panel_title(run, runs), fontsize=8)
            shares = [_nearest_share(run, *grouping) for grouping in info["groups"].items()]
            ax.set_xlabel("\n".join(shares) or _closest_pair(similarity, info["classes"]), fontsize=7)
        bar = figure.colorbar(image, ax=list(axes), shrink=0.8, aspect=25, pad=0.02)
        _style_colorbar(bar, "cosine similarity")
        figure.suptitle("Similarity of all category centers", x=0.01, ha="left", fontweight="bold", fontsize=9)
    return figure


def logit_correlation(runs: Sequence[Run]) -> Drawing:
    """Draw the correlation of all pairs of logits for each network, and the difference between student and teacher.

    The correlation is over test images. The logits are features · centers, without the bias. The bias is the same for
    all images, so it does not change a correlation. Classes of a group are next to each other.

    Parameters
    ----------
    runs : sequence of Run
        One teacher and its students, in any order, with embeddings of the same data.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If a run has no embedding, if the runs are of different data, or if there is not exactly one teacher.
    """
    teacher, students = _teacher_and_students(runs)
    runs = [teacher, *students]
    matrices = [analysis.logit_correlation(run.embedding["features"], run.embedding["centers"]) for run in runs]
    differences = [matrix - matrices[0] for matrix in matrices[1:]]
    sizes = np.concatenate([np.abs(matrix).ravel() for matrix in differences])
    largest = max(0.1, np.ceil(10 * np.quantile(sizes, 0.99)) / 10)
    note = "r: correlation of student and teacher over all pairs of classes."
    with _two_rows(runs, "Correlation of logits over test images", note) as (figure, axes, corner):
        for ax, run, matrix in zip(axes[0], runs, matrices, strict=True):
            image = _draw_matrix(ax, matrix, run, names=run is teacher)
            ax.set_title(panel_title(run, runs), fontsize=8)
        for ax, run, matrix, difference in zip(axes[1][1:], students, matrices[1:], differences, strict=True):
            difference_image = _draw_matrix(ax, difference, run, cmap="PuOr_r", limit=largest)
            mean, correlation = analysis.difference_of_pairs(matrix, matrices[0])
            ax.set_title("student − teacher", fontsize=8, fontweight="normal")
            ax.set_xlabel(f"mean |difference| {mean:.3f}\nr over pairs {correlation:.2f}", fontsize=7)
        for y, shown, name in ((0.78, image, "correlation"), (0.38, difference_image, "difference")):
            bar = figure.colorbar(shown, cax=corner.inset_axes((0.05, y, 0.85, 0.07)), orientation="horizontal")
            _style_colorbar(bar, name)
    return figure


def center_geometry(runs: Sequence[Run]) -> Drawing:
    """Draw the cosine similarities of all pairs of category centers, and compare the students with the teacher.

    The figure shows whether students arrange the categories like the teacher. The upper row shows the similarities as
    matrices, with the classes of a group next to each other. The lower row plots the student's similarity against the
    teacher's, one point per pair. The colour of a point says what the two classes share.

    The networks may have different widths, because similarities are compared and not centers. r is explained in
    `analysis.center_agreement`, and CKA in `analysis.center_cka`.

    Parameters
    ----------
    runs : sequence of Run
        One teacher and its students, in any order, with embeddings of the same data of 3 classes or more.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If a run has no embedding, if the runs are of different data, if there are fewer than 3 classes, or if there is
        not exactly one teacher.
    """
    teacher, students = _teacher_and_students(runs)
    runs = [teacher, *students]
    centers = [run.embedding["centers"] for run in runs]
    similarities = [analysis.center_similarity(c) for c in centers]
    agreements = [(analysis.center_agreement(c, centers[0]), analysis.center_cka(c, centers[0])) for c in centers[1:]]
    groups = teacher.settings["data"]["groups"]
    first, second = np.triu_indices(len(centers[0]), 1)
    shared = np.zeros(len(first), int)  # number of the grouping that puts a pair into one group, or 0
    for number, class_groups in enumerate(groups.values(), 1):
        shared[np.array(class_groups)[first] == np.array(class_groups)[second]] = number
    colors = [LIGHT_GRAY if groups else DARK_GRAY, *CLASS_COLORS]
    size = 3 if len(first) > 1000 else 14
    pairs = [similarity[first, second] for similarity in similarities]
    low, high = min(p.min() for p in pairs) - 0.05, max(p.max() for p in pairs) + 0.05
    note = "r: correlation of student and teacher over all pairs of classes. CKA: linear CKA of the centers."
    with _two_rows(runs, "Similarity of category centers", note) as (figure, axes, corner):
        for ax, run, similarity in zip(axes[0], runs, similarities, strict=True):
            image = _draw_matrix(ax, similarity, run, names=run is teacher)
            ax.set_title(panel_title(run, runs), fontsize=8)
        for ax, run, of_student, (correlation, cka) in zip(axes[1][1:], students, pairs[1:], agreements, strict=True):
            for number in range(len(groups) + 1):
                chosen = shared == number
                ax.scatter(pairs[0][chosen], of_student[chosen], s=size, color=colors[number], linewidth=0, alpha=0.6,
                           rasterized=True)  # fmt: skip
            ax.plot([low, high], [low, high], color=DARK_GRAY, linewidth=0.8, linestyle=":")
            ax.set(xlim=(low, high), box_aspect=1)
            ax.set_title(f"r = {correlation:.2f}, CKA = {cka:.2f}", fontsize=8, fontweight="normal")
            ax.set_xlabel("teacher's similarity", fontsize=7)
            if run is students[0]:
                ax.set_ylabel("student's (same scale)", fontsize=7)
            ax.set_yticks(ax.get_xticks(), [""] * len(ax.get_xticks()))
            ax.set(xlim=(low, high), ylim=(low, high))
            ax.tick_params(labelsize=SMALL_FONT)
        bar = figure.colorbar(image, cax=corner.inset_axes((0.05, 0.85, 0.85, 0.07)), orientation="horizontal")
        _style_colorbar(bar, "cosine similarity")
        if groups:
            kinds = ["nothing", *groups]
            marks = [Line2D([], [], marker="o", linestyle="", markersize=4, color=colors[i]) for i in range(len(kinds))]
            corner.legend(
                marks, kinds, title="pairs that share", loc="lower left", fontsize=SMALL_FONT, title_fontsize=7,
                bbox_to_anchor=(-0.02, -0.05), handletextpad=0, labelspacing=0.25, borderaxespad=0, alignment="left",
            )  # fmt: skip
    return figure


def check_embeddings(runs: Run | Sequence[Run]) -> list[Run]:
    """Return one run or several runs as a list, after checking that they have embeddings of the same data.

    Parameters
    ----------
    runs : Run or sequence of Run

    Returns
    -------
    list of Run

    Raises
    ------
    ValueError
        If there is no run, if a run has no embedding, or if the runs are of different data.
    """
    runs = check_runs(runs, "embedding")
    if len({run.data_fingerprint for run in runs}) > 1:
        raise ValueError("feature spaces can be compared only if all runs use the same data; leave the others out")
    return runs


def _teacher_and_students(runs: Run | Sequence[Run]) -> tuple[Run, list[Run]]:
    runs = check_embeddings(runs)
    teachers = [run for run in runs if is_teacher(run, runs)]
    if len(teachers) != 1:
        raise ValueError(f"runs must contain students and exactly one teacher of them, got {len(teachers)} teachers")
    return teachers[0], [run for run in runs if run is not teachers[0]]


@contextmanager
def _two_rows(runs: list[Run], title: str, note: str) -> Iterator[tuple[Drawing, np.ndarray, Axes]]:
    """Open a figure of two rows: one matrix per run, the teacher first, and one more panel under each student.

    Yields the figure, its axes of shape (2, runs), and the empty corner under the teacher for colour bars and legends.
    """
    side = _panel_size(runs)
    with new_figure(runs, side * len(runs) + 1, 2 * side + 1.6, note) as figure:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=9)
        axes = figure.subplots(2, len(runs))
        axes[1, 0].axis("off")
        yield figure, axes, axes[1, 0]


def _panel_size(runs: list[Run], label_count: int = 10, margin: float = 1) -> float:
    """Return the width of a square panel in inches, such that all panels fit on a page next to a margin."""
    return max(min(2.4, (PAGE_WIDTH - margin) / len(runs)), 1.3, 0.13 * label_count)


def _draw_frame(ax: Axes) -> None:
    ax.set(xticks=[], yticks=[], box_aspect=1)
    for side in ax.spines.values():
        side.set_visible(True)


def _draw_matrix(
    ax: Axes, matrix: np.ndarray, run: Run, names: bool = False, cmap: str = "RdBu_r", limit: float = 1
) -> AxesImage:
    """Draw a (C, C) matrix with classes ordered by their first grouping, and name its groups (or the classes)."""
    info = run.settings["data"]
    grouped = next(iter(info["groups"].values()), None)
    class_groups = list(grouped or info["classes"])
    blocks = list(dict.fromkeys(class_groups))
    order = np.argsort([blocks.index(name) for name in class_groups], kind="stable")
    image = ax.imshow(matrix[np.ix_(order, order)], cmap=cmap, vmin=-limit, vmax=limit, interpolation="nearest")
    _draw_frame(ax)
    ax.grid(visible=False)
    if names and len(blocks) <= 30:
        ends = np.cumsum([class_groups.count(name) for name in blocks])
        middles = (ends + np.concatenate([[0], ends[:-1]]) - 1) / 2
        ax.set_yticks(middles, [textwrap.shorten(name, 18, placeholder=" …") for name in blocks], fontsize=SMALL_FONT)
    return image


def _style_colorbar(bar: Any, name: str) -> None:
    bar.set_label(name, fontsize=7)
    bar.ax.tick_params(labelsize=SMALL_FONT)
    bar.outline.set_visible(False)


def panel_title(run: Run, runs: Sequence[Run]) -> str:
    """Return the label of a run on several lines: the network, then the variant if there is one.

    Parameters
    ----------
    run : Run
    runs : sequence of Run
        All runs of the figure.

    Returns
    -------
    str
    """
    name, *variant = run_label(run, runs).split(", ", 1)
    lines = textwrap.wrap(
        " ".join(variant).replace(" = ", "="), 24
    )  # without spaces, a setting and its value stay on one line
    return "\n".join([name, *(line.replace("=", " = ") for line in lines)])


def _nearest_share(run: Run, grouping: str, class_groups: Sequence[str]) -> str:
    """Return the text under a map: the share of the 3 nearest centers in the same group, and the share by chance."""
    labels = np.unique(np.array(class_groups), return_inverse=True)[1]
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
