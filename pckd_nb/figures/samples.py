"""Figures of training samples: their difficulty γ and their weight v.

γ is the cross-entropy of a sample, divided by the mean of its batch. v is the weight of a sample in the loss. The
*gallery* of a run has at most 100 training images, which are stored with the run. Its *recorded samples* are the
cross-entropy and γ of every training sample in every epoch.
"""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator

from .. import analysis, measures, preview
from ..runs import Run, describe_noise, require_parts
from .canvas import (
    CLASS_COLORS,
    COLORS,
    DARK_GRAY,
    LIGHT_GRAY,
    Drawing,
    check_runs,
    class_lines,
    draw_thumbnail,
    label_epoch_axis,
    new_figure,
    run_color,
    run_label,
)

PAGE_WIDTH = 7.1  # inches: two columns of a journal
SMALL_FONT = 6.5  # points, for text next to small images
MAX_POINTS = 25_000  # of a map; more points hide each other
WRONG_TO_RIGHT = LinearSegmentedColormap.from_list("wrong to right", ("#D55E00", "#A8A8A8", "#0072B2"))


def difficulty_gallery(run: Run, rows: int = 4, columns: int = 10) -> Drawing:
    """Draw training images from easy to hard, with their class and γ in the last epoch.

    The images are read like text, from left to right and from top to bottom.

    Parameters
    ----------
    run : Run
        With a gallery.
    rows, columns : int
        Size of the grid.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If the run has no gallery.
    """
    runs = check_runs(run, "gallery")
    gallery = run.gallery
    shown = np.unique(np.linspace(0, len(gallery["images"]) - 1, rows * columns).round().astype(int))
    names = [class_lines(run, *pair, width=14) for pair in zip(gallery["index"], gallery["labels"], strict=True)]
    # The height of a row with its text. The height of an image is 1.
    row_height = 1.4 + 0.12 * (max(len(names[i]) for i in shown) - 1)
    row_count = -(-len(shown) // columns)
    with new_figure(runs, columns * 0.96, row_count * row_height * 0.89 + 0.6) as figure:
        ax = figure.subplots()
        for place, i in enumerate(shown):
            x, y = place % columns * 1.08, place // columns * row_height
            draw_thumbnail(ax, gallery["images"][i], x, y)
            ax.text(x + 0.5, y + 1.05, f"γ = {gallery['difficulty'][i]:.2f}", ha="center", va="top", fontweight="bold",
                    fontsize=8)  # fmt: skip
            ax.text(x + 0.5, y + 1.2, "\n".join(names[i]), ha="center", va="top", fontsize=6.8, linespacing=1.15)
        ax.set(xlim=(-0.02, columns * 1.08 - 0.06), ylim=(row_count * row_height, -0.02), aspect="equal")
        ax.axis("off")
        epoch = len(run.history)
        ax.set_title(f"Training images from easy to hard: γ of {run.title} in epoch {epoch} (1 = average)")
    return figure


def difficulty_galleries(runs: Run | Sequence[Run], rows: int = 2, columns: int = 10) -> Drawing:
    """Draw training images of several data sets from easy (left) to hard (right), one band per data set.

    The images have evenly spaced ranks of γ in the last epoch, from the easiest to the hardest. γ is written under each
    image. For generated images, the known difficulty is written under γ.

    Parameters
    ----------
    runs : Run or sequence of Run
        One run per data set. Runs without a gallery are left out.
    rows, columns : int
        Size of a band. At least 1 row and 2 columns.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If two runs are of the same data set, if no run has a gallery, or if `rows` or `columns` is too small.
    """
    runs = [run for run in check_runs(runs) if run.gallery is not None]
    names = [run.settings["data"]["name"] + describe_noise(run.settings) for run in runs]
    if not runs:
        raise ValueError("none of the runs has a gallery; train one of them for at least one complete epoch")
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"pass one run per data set, got {names.count(twice[0])} runs of {twice[0]}")
    if rows < 1 or columns < 2:
        raise ValueError(f"rows must be at least 1 and columns at least 2, got rows={rows} and columns={columns}")
    left = 2.1  # where the thumbnails start; a thumbnail has width 1
    row_heights = [1.3 if run.ground_truth is None else 1.48 for run in runs]  # a thumbnail and the text under it
    tops = np.cumsum([0.45, *(rows * row_height + 0.25 for row_height in row_heights)])
    right = left + 1.08 * columns
    note = "γ: difficulty in the last epoch (1 = average of the batch)."
    if max(row_heights) > 1.3:
        note += (
            " known: the difficulty with which the image was generated, from 0 to 1. ρ: Spearman correlation over all "
            "training images."
        )
    with new_figure(runs, PAGE_WIDTH, tops[-1] * (PAGE_WIDTH - 0.1) / right + 0.45, note) as figure:
        ax = figure.subplots()
        ax.annotate(
            "",
            (right - 0.6, 0.17),
            (left + 0.6, 0.17),
            arrowprops=dict(arrowstyle="->", color=LIGHT_GRAY, linewidth=1.2),
        )
        ax.text(left, 0.17, "easy", va="center", fontweight="bold", fontsize=8)
        ax.text(right - 0.08, 0.17, "hard", va="center", ha="right", fontweight="bold", fontsize=8)
        for run, top, row_height in zip(runs, tops, row_heights, strict=False):
            gallery = run.gallery
            shown = np.unique(np.linspace(0, len(gallery["images"]) - 1, rows * columns).round().astype(int))
            for place, i in enumerate(shown):
                x, y = left + place // rows * 1.08, top + place % rows * row_height
                draw_thumbnail(ax, gallery["images"][i], x, y)
                style: dict[str, Any] = dict(ha="center", va="top", fontsize=SMALL_FONT)
                ax.text(x + 0.5, y + 1.05, f"γ {_format_gamma(float(gallery['difficulty'][i]))}", **style)
                if run.ground_truth is not None:
                    true_difficulty = float(run.ground_truth[gallery["index"][i]])
                    ax.text(x + 0.5, y + 1.22, f"known {true_difficulty:.2f}", color="#777777", **style)
            description = [*textwrap.wrap(run_label(run, runs), 16), f"epoch {len(run.history)}"]
            description += textwrap.wrap(describe_noise(run.settings).removeprefix(", "), 18)
            if run.ground_truth is not None and run.difficulty is not None:
                description += ["γ and known:", f"ρ = {analysis.difficulty_vs_truth(run):.2f}"]
            name = (
                run.settings["data"]["name"].replace("\\", "/").rsplit("/", 1)[-1]
            )  # the last part of a folder's path
            ax.text(0, top, "\n".join(textwrap.wrap(name, 15)[:1]), va="top", fontweight="bold", fontsize=8)
            ax.text(0, top + 0.28, "\n".join(description), va="top", fontsize=SMALL_FONT, linespacing=1.3)
        ax.set(xlim=(0, right), ylim=(tops[-1], 0), aspect="equal")
        ax.axis("off")
    return figure


def _format_gamma(gamma: float) -> str:
    return f"{max(0.0, gamma):.2f}" if gamma < 9.995 else f"{gamma:.1f}"  # max: γ may be -0.0


def weights_over_epochs(runs: Run | Sequence[Run]) -> Drawing:
    """Draw the mean weight of the samples and the share of samples with v = 1 by epoch, one line per run.

    If the runs differ only in their strategy, the legend names the strategy. A method without weights has v = 1 for all
    samples. Seeds of the same method share a colour and a legend entry.

    Parameters
    ----------
    runs : Run or sequence of Run

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If there is no run, or if a run has no complete epoch.
    """
    runs = check_runs(runs, whole_epoch=True)
    names = _strategies_or_labels(runs)
    line_styles: dict[str, dict[str, Any]] = {}
    spare = [
        color for color in CLASS_COLORS if color not in (COLORS["PCKD"], "#F0E442")
    ]  # yellow lines are hard to see
    for name, run in zip(names, runs, strict=True):
        if name not in line_styles:
            line_style: dict[str, Any] = {"color": spare[len(line_styles) % len(spare)], "linewidth": 1.8, "zorder": 3}
            # Lines may overlap. The dashes of every three lines start at different places, so that all can be seen.
            line_style |= {"linestyle": (3 * (len(line_styles) % 3), (5, 4)), "label": name}
            if (
                run.settings["method"]["title"] == "PCKD" and not run.variant
            ):  # wide, so that it can be seen under the others
                line_style |= {"color": COLORS["PCKD"], "linestyle": "-", "linewidth": 3.6, "zorder": 2}
            line_styles[name] = line_style
    columns = max(1, min(5, 110 // (max(map(len, line_styles)) + 11)))
    with new_figure(runs, PAGE_WIDTH, 2.75 + 0.17 * -(-len(line_styles) // columns)) as figure:
        axes = figure.subplots(1, 2)
        panels = (("mean_weight", "mean weight"), ("full_weight_share", "share of samples with v = 1"))
        for ax, (column, title) in zip(axes, panels, strict=True):
            for name, run in zip(names, runs, strict=True):
                dot = "o" if len(run.history) == 1 else None  # a line needs two epochs
                ax.plot(run.history["epoch"], run.history[column], marker=dot, markersize=4, **line_styles[name])
            ax.set(title=title, ylim=(-0.03, 1.05))
            label_epoch_axis(ax)
        axes[0].set_ylabel("mean of v")
        axes[1].set_ylabel("share of samples")
        marks = [Line2D([], [], **line_style) for line_style in line_styles.values()]
        figure.legend(handles=marks, loc="outside upper left", ncols=columns, fontsize=8, handlelength=3.8)
    return figure


def _strategies_or_labels(runs: list[Run]) -> list[str]:
    """Return the legend entries: the strategies if the runs differ in nothing else, their labels otherwise."""

    def everything_else(run: Run) -> tuple[object, ...]:
        return run.title, len(run.history), {**run.method_settings, "strategy": None}

    strategies = [run.method_settings.get("strategy") for run in runs]
    if (
        len(set(strategies)) > 1
        and None not in strategies
        and all(everything_else(run) == everything_else(runs[0]) for run in runs)
    ):
        return [str(strategy) for strategy in strategies]
    return [run_label(run, runs) for run in runs]


def trajectories(run: Run, each: int = 3) -> Drawing:
    """Draw cross-entropy and γ of single training samples by epoch, for the kinds of `analysis.kinds_of_samples`.

    The kinds are learned early, learned late and never learned. Samples in the run's gallery are preferred, because
    their images can be shown. The chosen samples have evenly spaced ranks of mean cross-entropy. The frame of an image
    has the colour of its lines. Grey shows the median and the middle half of all samples. The dotted line is the
    threshold ε_t.

    Parameters
    ----------
    run : Run
    each : int, from 1 to 5
        Largest number of samples per kind.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If `each` is outside its range, or if the run has fewer than two complete epochs or no recorded samples.
    """
    runs = check_runs(run)
    if not 1 <= each <= 5:
        raise ValueError(f"each must be 1 to 5 samples per kind, got {each}")
    run, kinds = runs[0], analysis.kinds_of_samples(runs[0])
    epochs = run.history["epoch"]
    values = {
        "cross-entropy (nats)": run.cross_entropy[: len(epochs)].astype(np.float32),
        "difficulty γ": run.difficulty[: len(epochs)].astype(np.float32),
    }
    note = (
        f"{run.cross_entropy.shape[1]:,} training images. An image counts as learned in an epoch if its label has a "
        "probability above one half. Learned early: in every epoch after the first third. Learned late: in no epoch of "
        "the first half, and in every epoch of the last quarter. Never learned: in no epoch."
    )
    with new_figure(runs, PAGE_WIDTH, 5.6, note) as figure:
        figure.suptitle(
            f"Single training samples of {run.title}, {run.settings['data']['name']}",
            x=0.01, ha="left", fontweight="bold", fontsize=9,
        )  # fmt: skip
        axes = figure.subplots(3, 3, sharey="row", height_ratios=(0.62, 1, 1))
        for column, (kind, found) in enumerate(kinds.items()):
            picked = _choose_samples(run, found, each)
            share = 100 * len(found) / run.cross_entropy.shape[1]
            axes[0, column].set_title(f"{kind}: {len(found):,} ({share:.1f} %)", fontsize=8.5)
            _draw_thumbnails(axes[0, column], run, picked, each)
            for ax, by_epoch in zip(axes[1:, column], values.values(), strict=True):
                low, middle, high = np.quantile(by_epoch, (0.25, 0.5, 0.75), axis=1)
                ax.fill_between(
                    epochs, low, high, color=LIGHT_GRAY, alpha=0.4, linewidth=0, label="middle half of all samples"
                )
                ax.plot(epochs, middle, color="#888888", linewidth=1.2, label="median of all samples")
                for color, sample in zip(CLASS_COLORS, picked, strict=False):
                    ax.plot(epochs, by_epoch[:, sample], color=color, linewidth=1.4)
                label_epoch_axis(ax)
                ax.tick_params(labelsize=7)
            axes[1, column].set_xlabel("")
            axes[2, column].xaxis.label.set_size(8)
            if "threshold" in run.history:
                axes[2, column].plot(
                    epochs, run.history["threshold"], ":", color=DARK_GRAY, linewidth=1.2, label="threshold ε_t"
                )
        for ax, name in zip(axes[1:, 0], values, strict=True):
            ax.set_ylabel(name, fontsize=8)
        axes[1, 0].set_ylim(bottom=0)
        # Linear up to γ = 1 (the average), then logarithmic: γ of a sample that is never learned grows past 10.
        axes[2, 0].set_yscale("symlog", linthresh=1)
        axes[2, 0].set(ylim=(0, 1.15 * max(line.get_ydata().max() for ax in axes[2] for line in ax.lines)))
        axes[2, 0].yaxis.set_major_locator(FixedLocator([0, 0.5, 1, 2, 5, 10, 20, 50, 100]))
        axes[2, 0].yaxis.set_major_formatter("{x:g}")
        axes[2, 0].yaxis.set_minor_locator(FixedLocator([]))
        # The curves of samples that are learned early leave space for the legends.
        look: dict[str, Any] = dict(fontsize=SMALL_FONT, handlelength=1.5, labelspacing=0.3, borderaxespad=0.1)
        axes[1, 0].legend(loc="upper right", **look)
        if "threshold" in run.history:
            axes[2, 0].legend(handles=[axes[2, 0].lines[-1]], loc="upper left", **look)
    return figure


def _choose_samples(run: Run, found: np.ndarray, each: int) -> np.ndarray:
    """Choose up to `each` samples, evenly spaced by their mean cross-entropy. Prefer those in the gallery."""
    in_gallery = found[np.isin(found, run.gallery["index"])] if run.gallery else found[:0]
    others = np.setdiff1d(found, in_gallery)

    def spread(samples: np.ndarray, count: int) -> np.ndarray:
        means = run.cross_entropy[: len(run.history), samples].astype(np.float32).mean(0)
        ranks = np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int)
        return samples[np.argsort(means, kind="stable")][ranks]

    first = spread(in_gallery, each)
    return np.concatenate([first, spread(others, each - len(first))])


def _draw_thumbnails(ax: Axes, run: Run, picked: np.ndarray, each: int) -> None:
    """Draw samples side by side. The frame of an image has the colour of its line. Without an image, it is empty."""
    places = {int(sample): i for i, sample in enumerate(run.gallery["index"])} if run.gallery else {}
    for place, (color, sample) in enumerate(zip(CLASS_COLORS, picked.tolist(), strict=False)):
        x = 1.25 * place
        if sample in places:
            draw_thumbnail(ax, run.gallery["images"][places[sample]], x, 0)
        else:
            ax.text(x + 0.5, 0.5, "not in the\ngallery", ha="center", va="center", fontsize=SMALL_FONT, color="#777777")
        ax.add_patch(Rectangle((x, 0), 1, 1, fill=False, edgecolor=color, linewidth=2.2))
        name = class_lines(run, sample, int(run.labels[sample]), width=12)
        ax.text(x + 0.5, 1.08, "\n".join(name), ha="center", va="top", fontsize=SMALL_FONT, linespacing=1.1)
    if not len(picked):
        ax.text(0, 0.5, "none", va="center", fontsize=8)
    ax.set(xlim=(-0.12, 1.25 * max(3, each) - 0.13), ylim=(1.5, -0.05), aspect="equal", anchor="W")
    ax.axis("off")


def preview_weights(run: Run) -> Drawing:
    """Draw threshold and weights by epoch, and γ with its weights in the first and last epoch.

    Parameters
    ----------
    run : Run
        Trained with a strategy of the `preview` module.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If the run has no complete epoch or no recorded samples, or if its method uses no strategy of `preview`.
    """
    runs = check_runs(run, whole_epoch=True)
    name = run.method_settings.get("strategy")
    if "threshold" not in run.history or name not in preview.STRATEGIES:
        raise ValueError(f"the run {run.title} was not trained with a strategy of `pckd_nb.preview`; use a PCKD run")
    require_parts(run, "samples")
    color, history = run_color(run, runs), run.history
    with new_figure(runs, 9.6, 4.4) as figure:
        grid = figure.add_gridspec(2, 3, width_ratios=(1.1, 1, 1))
        ax = figure.add_subplot(grid[0, 0])
        ax.plot(history["epoch"], history["threshold"], color=DARK_GRAY)
        ax.set(title="threshold ε_t", ylabel="γ")
        label_epoch_axis(ax)
        ax = figure.add_subplot(grid[1, 0])
        ax.plot(history["epoch"], history["mean_weight"], color=color, label="mean weight")
        ax.plot(
            history["epoch"], history["full_weight_share"], color=DARK_GRAY, dashes=(2, 2), label="share with v = 1"
        )
        ax.set(title="weights v", ylabel="mean, share", ylim=(0, 1.03))
        ax.legend(loc="lower right", bbox_to_anchor=(1.02, 0))
        label_epoch_axis(ax)

        last = len(history)
        gammas = run.difficulty[[0, last - 1]].astype(np.float32)
        x_max = max(4, float(np.quantile(gammas, 0.995)), 1.2 * float(history["threshold"].max()))
        for column, epoch, gamma in zip((1, 2), (1, last), gammas, strict=True):
            row = epoch - 1
            threshold = float(history["threshold"][row])
            above, below = (figure.add_subplot(grid[grid_row, column]) for grid_row in (0, 1))
            above.hist(gamma.clip(0, x_max), bins=40, range=(0, x_max), color=LIGHT_GRAY)
            above.set(title=f"epoch {epoch}: difficulty γ", ylabel="training images")
            ce = run.cross_entropy[row].astype(np.float32)
            weights = preview.STRATEGIES[name](torch.from_numpy(ce), torch.from_numpy(gamma), threshold).numpy()
            below.plot(gamma.clip(0, x_max), weights, ".", color=color, markersize=3, alpha=0.5, rasterized=True)
            below.set(title=f"epoch {epoch}: weights v", ylabel="v", ylim=(-0.03, 1.06))
            for ax in (above, below):
                ax.axvline(threshold, color=DARK_GRAY, linewidth=1, linestyle=":")
                ax.set(xlim=(0, x_max), xlabel="γ")
            side, shift = ("right", -4) if threshold > 0.6 * x_max else ("left", 4)
            place: dict[str, Any] = dict(xycoords=("data", "axes fraction"), textcoords="offset points")
            above.annotate(f"ε_t = {threshold:.2f}", (threshold, 0.9), (shift, 0), ha=side, **place)
        figure.suptitle(f"{run.title}: weights of the strategy {name}", x=0.01, ha="left", fontweight="bold")
    return figure


def data_map(run: Run, marked: int = 10) -> Drawing:
    """Draw the data map (dataset cartography) of the training images: confidence against variability.

    Confidence and variability are the mean and the standard deviation, over the epochs, of the probability of the
    label. The colour is the share of epochs in which the image was classified correctly. If the run has no margins, it
    is the share of epochs in which the label had a probability above one half. Dotted lines are the borders of the
    regions, see `measures.data_map`. At most 25,000 images are drawn, evenly spaced over the training set.

    Parameters
    ----------
    run : Run
        With recorded samples of two complete epochs or more.
    marked : int
        How many of the hardest images (lowest confidence) and of the most ambiguous ones (highest variability) are
        marked. At least 0.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If `marked` is negative, or if the run has fewer than two complete epochs or no recorded samples.

    References
    ----------
    Swayamdipta et al., arXiv 2009.10795.
    """
    runs = check_runs(run, "samples")
    run, epochs = runs[0], len(runs[0].history)
    if marked < 0:
        raise ValueError(f"marked must be at least 0 images, got {marked}")
    if epochs < 2:
        raise ValueError(f"a data map needs two complete epochs, but the run {run.title} has {epochs}: train it longer")
    cross_entropy = run.cross_entropy[:epochs]
    places = measures.data_map(cross_entropy)
    x, y, count = places["variability"].to_numpy(), places["confidence"].to_numpy(), len(places)
    if run.margin is None:
        share, meaning = (measures.confidence(cross_entropy) > 0.5).mean(0), "its label has p > 1/2"
    else:
        share, meaning = measures.correctness(run.margin[:epochs]), "it is classified correctly"
    drawn = np.linspace(0, count - 1, min(count, MAX_POINTS)).round().astype(int)
    drawn = drawn[np.argsort(-share[drawn], kind="stable")]  # the few images that are often wrong are drawn on top
    note = (
        f"{count:,} training images. Confidence and variability: mean and standard deviation of the probability p of "
        f"the label over {epochs} epochs."
    )
    with new_figure(runs, 6.5, 4.6, note) as figure:
        ax = figure.subplots()
        ax.scatter(
            x[drawn], y[drawn], 9, share[drawn], cmap=WRONG_TO_RIGHT, vmin=0, vmax=1, alpha=0.7, linewidths=0,
            rasterized=True,
        )  # fmt: skip
        colors = ScalarMappable(Normalize(0, 1), WRONG_TO_RIGHT)  # not those of the dots, which are transparent
        bar = figure.colorbar(colors, ax=ax, shrink=0.8, aspect=25, pad=0.02)
        bar.set_label(f"share of epochs in which {meaning}", fontsize=8)
        bar.outline.set_visible(False)
        for order, shape, name in ((y, "v", "hardest"), (-x, "s", "most ambiguous")):
            if chosen := np.argsort(order, kind="stable")[:marked].tolist():
                ax.plot(x[chosen], y[chosen], shape, color=DARK_GRAY, markersize=7, fillstyle="none",
                        label=f"the {len(chosen)} {name}")  # fmt: skip
        line: dict[str, Any] = dict(color=DARK_GRAY, linewidth=1, linestyle=":")
        ambiguous = places["region"] == "ambiguous"
        border = float(x[ambiguous].min()) if ambiguous.any() else 0.52
        ax.plot([border, border], [0, 1], **line)
        ax.plot([0, border], [0.5, 0.5], **line)
        percent = 100 * places["region"].value_counts(normalize=True)
        heights = (0.98, "top"), (0.5, "center"), (0.02, "bottom")
        for (region, value), (height, side) in zip(percent.reindex(measures.REGIONS).items(), heights, strict=True):
            text = f"{region}:\n{value:.1f} %"
            ax.text(0.99, height, text, transform=ax.transAxes, ha="right", va=side, fontsize=8)
        ax.set(xlim=(-0.01, 0.6), ylim=(-0.02, 1.02), xlabel="variability", ylabel="confidence")
        ax.set_title(f"{run.title}: data map of {run.settings['data']['name']}")
        if marked:
            figure.legend(loc="outside upper left", ncols=2, fontsize=8)
    return figure


def difficulty_against_truth(run: Run, bins: int = 8) -> Drawing:
    """Draw γ in the last epoch against the known difficulty of the training images.

    For each bin of known difficulty, the figure shows the median of γ and the ranges of the middle 50 % and 90 %.

    Parameters
    ----------
    run : Run
        Trained on images whose difficulty is known, such as shapes100.
    bins : int
        Number of bins.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If the difficulty of the images is not known, or if the run has no complete epoch.
    """
    runs = check_runs(run)
    correlation = analysis.difficulty_vs_truth(run)
    frame = pd.DataFrame({"truth": run.ground_truth.astype(np.float32), "gamma": analysis.last_difficulty(run)})
    frame["bin"] = (frame["truth"] * bins).astype(int).clip(0, bins - 1)
    spread = frame.groupby("bin")["gamma"].quantile([0.05, 0.25, 0.5, 0.75, 0.95]).unstack()
    x = (spread.index + 0.5) / bins
    with new_figure(runs, 6.5, 4) as figure:
        ax = figure.subplots()
        color = run_color(run, runs)
        ax.fill_between(x, spread[0.05], spread[0.95], color=color, alpha=0.15, linewidth=0, label="5 – 95 %")
        ax.fill_between(x, spread[0.25], spread[0.75], color=color, alpha=0.35, linewidth=0, label="25 – 75 %")
        ax.plot(x, spread[0.5], "o-", color=color, label="median")
        ax.axhline(1, color=DARK_GRAY, linewidth=1, linestyle=":")
        ax.set(xlim=(0, 1), xlabel="known difficulty of the image (from 0 to 1)", ylabel="γ (1 = average of the batch)")
        ax.set_ylim(bottom=0)
        ax.set_title(f"{run.title}: γ against known difficulty, Spearman ρ = {correlation:.2f}")
        figure.legend(loc="outside right upper")
    return figure
