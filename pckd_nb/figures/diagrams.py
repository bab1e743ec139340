"""Diagrams of the method: the parts of a network it uses, the framework, and the product of features and centers.

Coordinates are in tenths of an inch, on axes without a frame. The numbers in a diagram come from a run.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch, Rectangle
from matplotlib.path import Path

from .. import preview
from ..data import shapes
from ..runs import Run, require_parts
from ..validation import plain
from .canvas import (
    COLORS,
    DARK_GRAY,
    LIGHT_GRAY,
    MORE_COLORS,
    Drawing,
    as_rgb,
    check_runs,
    label_epoch_axis,
    new_figure,
    run_color,
)

TRAINED_COLOR, FROZEN_COLOR = COLORS["PCKD"], COLORS["teacher"]
PREVIEW_COLOR, FEATURES_COLOR = MORE_COLORS[1], MORE_COLORS[3]
DARK_GREEN, DARK_ORANGE = "#00694C", "#A84800"  # darker versions of TRAINED_COLOR and PREVIEW_COLOR, for text
DASHED = (0, (3, 1.6))
FIGURE_WIDTH, FONT_SIZE = 8.6, 8  # inches and points; on a page of 180 mm, the font becomes 6.6 points
DIVERGING_COLORMAP = "RdBu_r"  # blue, white at 0, red; colour-blind readers can distinguish them


def motivation(run: Run) -> Drawing:
    """Draw the motivation of PCKD: the parts of a network it uses, and how the preview strategy weights images.

    Part (a) shows the parts of a network that KD, feature methods and PCKD use. Part (b) shows the difficulty γ of the
    training images and their weight v in the first, middle and last epoch, and threshold and weights by epoch.

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

    References
    ----------
    Figure 1 of Ding et al., arXiv 2410.14143.
    """
    runs = check_runs(run, whole_epoch=True)
    strategy = run.method_settings.get("strategy")
    if "threshold" not in run.history or strategy not in preview.STRATEGIES:
        raise ValueError(f"the run {run.title} was not trained with a strategy of `pckd_nb.preview`; use a PCKD run")
    require_parts(run, "samples")
    last = len(run.history)
    epochs = np.unique([1, (1 + last) // 2, last])
    thresholds = run.history["threshold"].to_numpy()
    x_max = max(4, float(np.quantile(run.difficulty[epochs - 1].astype(np.float32), 0.995)), 1.2 * thresholds.max())
    note = (
        "(b) γ: cross-entropy of an image, divided by the mean of its batch. Easy: γ ≤ εₜ. Hard: γ > εₜ. The last bar "
        "also counts all larger γ."
    )
    with new_figure(runs, FIGURE_WIDTH, 6.3, note) as figure:
        grid = figure.add_gridspec(3, 4, height_ratios=(3.3, 1, 1), width_ratios=(1, 1, 1, 1.1))
        ax = figure.add_subplot(grid[0, :])
        _draw_distilled_parts(ax, _example_image(run))
        title = f"(b)  How much each image counts: strategy {strategy}, {run.title}"
        ax.text(0, -7, title, fontsize=10, fontweight="bold", va="center")
        last_ax: Axes | None = None
        for column, epoch in enumerate(epochs):
            last_ax = ax = figure.add_subplot(grid[1:, column], sharey=last_ax)
            _draw_epoch(ax, run, strategy, epoch, x_max)
            ax.tick_params(labelleft=column == 0)
            ax.set_ylabel("share of images (%)" if column == 0 else "")
        weight = ax.twinx()
        weight.set_ylim(0, WEIGHT_AXIS_MAX)
        weight.set_ylabel("weight v", color=run_color(run, runs))
        weight.set_yticks([0, 0.5, 1], ["0", "½", "1"])
        weight.yaxis.set_label_coords(1.14, 0.5 / WEIGHT_AXIS_MAX)
        weight.grid(visible=False)
        weight.spines["right"].set_visible(False)

        above, below = (figure.add_subplot(grid[row, 3]) for row in (1, 2))
        above.plot(run.history["epoch"], thresholds, color=DARK_GRAY)
        above.plot(epochs, thresholds[epochs - 1], "o", color=DARK_GRAY, markersize=4)
        above.set(title="threshold εₜ", ylabel="γ")
        above.set_ylim(bottom=0)
        below.plot(run.history["epoch"], run.history["mean_weight"], color=run_color(run, runs), label="mean")
        share = run.history["full_weight_share"]
        below.plot(run.history["epoch"], share, color=DARK_GRAY, dashes=(2, 2), label="share with v = 1")
        below.set(title="weights v", ylabel="mean, share", ylim=(0, 1.05))
        below.legend(loc="lower right", fontsize=FONT_SIZE, borderaxespad=0.1, labelspacing=0.2)
        label_epoch_axis(below)
        above.sharex(below)
        above.tick_params(labelbottom=False)
        for ax in (above, below, weight):
            ax.tick_params(labelsize=FONT_SIZE)
    return figure


def framework(run: Run | None = None) -> Drawing:
    """Draw the framework of PCKD: the views of an image, both networks, all losses, and where the weight v enters.

    Parameters
    ----------
    run : Run, optional
        The image comes from the gallery of this run. Without a gallery or a run, an image like those of shapes100 is
        generated.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If `run` is not a `Run`.

    References
    ----------
    Figure 2 of Ding et al., arXiv 2410.14143.
    """
    runs = [] if run is None or check_runs(run)[0].gallery is None else check_runs(run)
    note = (
        "Each loss names what it uses. B images give N = 4 B rows. C classes, D features. g, A: trained layers. "
        "eₛ and eₜ are Aₛ fₛ and Aₜ fₛ, scaled to length 1."
    )
    note += " The image is from a run on" if runs else " The image was generated like those of shapes100."
    with new_figure(runs, FIGURE_WIDTH, 5.3, note) as figure:
        figure.suptitle("PCKD: four views of an image, two networks, five losses, one weight per image", x=0.01,
                        ha="left", fontsize=10, fontweight="bold")  # fmt: skip
        ax = _page_axes(figure, (0, 86.4), (-6.2, 41.6))
        top, upper, middle, lower, bottom = 33, 25.75, 18.5, 11.25, 4  # the y of five rows of boxes

        # One image becomes four views, and both networks see all of them.
        picture = _example_image(runs[0] if runs else None)
        _image(ax, picture, (2.9, middle), 5.4)
        ax.text(2.9, middle - 3.2, "image,\nlabel y", ha="center", va="top", fontsize=FONT_SIZE, linespacing=1.15)
        _arrow(ax, [(5.6, middle), (7.7, middle)], gradient=False)
        _box(ax, (11.2, middle), (7, 34.8), "", LIGHT_GRAY, fill="#FAFAFA")
        for turn in range(4):
            y = middle + 13.1 - 8.3 * turn
            _image(ax, picture, (11.2, y), 5, turn)
            angle = "0°, upright" if turn == 0 else f"{90 * turn}°"
            ax.text(11.2, y - 2.8, angle, ha="center", va="top", fontsize=FONT_SIZE)

        # The student's row and the teacher's row.
        for y, who, state, subscript, color in (
            (top, "student", "trained", "ₛ", TRAINED_COLOR), (bottom, "teacher", "frozen", "ₜ", FROZEN_COLOR)
        ):  # fmt: skip
            gradient = who == "student"
            _arrow(ax, [(14.7, y), (16.8, y)], gradient=False)
            _box(ax, (21.1, y), (8.6, 5), f"{who}\n{state}", color, bold=True, shift=0 if gradient else 1.2)
            _arrow(ax, [(25.4, y), (27.4, y)], gradient)
            _box(ax, (32.6, y), (10.4, 5), f"features\nf{subscript}   (N, D{subscript})", color)
            _arrow(ax, [(37.8, y), (44.8, y)], gradient)
            _box(ax, (53.2, y), (16.8, 5), f"category centers\nW{subscript}, b{subscript}   (C, D{subscript})", color)
            _arrow(ax, [(61.6, y), (64.6, y)], gradient)
            _box(ax, (68.8, y), (8.4, 5), f"logits\nz{subscript}   (N, C)", color)
        _snowflake(ax, (18.3, bottom), 1)

        # Features, centers and logits are compared, one column each.
        _arrow(ax, [(30.6, top - 2.5), (30.6, upper + 1.9)])
        _box(ax, (30.6, upper), (4, 3.8), "g", TRAINED_COLOR)
        _arrow(ax, [(30.6, upper - 1.9), (30.6, middle + 2.5)])
        _arrow(ax, [(30.6, bottom + 2.5), (30.6, middle - 2.5)], gradient=False)
        _arrow(ax, [(36, top - 2.5), (36, upper), (38, upper)])
        _arrow(ax, [(36, upper), (36, lower), (38, lower)])
        for lane, y, subscript in ((top, upper, "ₛ"), (bottom, lower, "ₜ")):
            gradient, down = lane == top, 1 if lane == top else -1  # towards the middle
            _box(ax, (40, y), (4, 3.8), f"A{subscript}", TRAINED_COLOR)
            _arrow(ax, [(42, y), (44.8, y)])
            ax.text(43.2, y + 0.7, f"e{subscript}", ha="center", va="bottom", fontsize=FONT_SIZE)
            _box(ax, (49, y), (8.4, 3.8), f"u{subscript} = W{subscript} e{subscript}", LIGHT_GRAY, fill="white")
            _arrow(ax, [(49, lane - 2.5 * down), (49, y + 1.9 * down)], gradient)
            _arrow(ax, [(49, y - 1.9 * down), (49, middle + 2.5 * down)])
            for x in (58.4, 68.8):
                _arrow(ax, [(x, lane - 2.5 * down), (x, middle + 2.5 * down)], gradient)
        for x, name, rows in ((30.6, "L_FA", "all views"), (49, "L_CC", "all views"), (58.4, "L_CA", "centers"),
                              (68.8, "L_KD", "upright")):  # fmt: skip
            _box(ax, (x, middle), (6.4, 5), f"{name}\n{rows}", DARK_GRAY, fill=DARK_GRAY)

        # The contrast needs labels: rows of the same category are positives.
        _box(ax, (55.8, upper), (4, 3.8), "label\ny", LIGHT_GRAY, fill="white")
        _arrow(ax, [(54.6, upper - 1.9), (54.6, middle + 1.2), (52.2, middle + 1.2)], gradient=False)

        # Cross-entropy gives the difficulty of an image, and the difficulty gives its weight.
        x = 79.9
        _box(ax, (x, 39.8), (7, 3), "label y", LIGHT_GRAY, fill="white")
        _arrow(ax, [(x, 38.3), (x, top + 2.5)], gradient=False)
        _arrow(ax, [(73, top), (x - 3.2, top)])
        _box(ax, (x, top), (6.4, 5), "L_CE\nupright", DARK_GRAY, fill=DARK_GRAY)
        _arrow(ax, [(x, top - 2.5), (x, upper + 2.4)], gradient=False)
        _box(ax, (x, upper), (12.4, 4.8), "difficulty\nγᵢ = CEᵢ / mean CE", PREVIEW_COLOR)
        _arrow(ax, [(x, upper - 2.4), (x, middle + 3.1)], gradient=False)
        _box(ax, (x, middle), (10.6, 6.2), "weight vᵢ =\n1 if γᵢ ≤ εₜ,\nelse exp(−γᵢ²)", PREVIEW_COLOR)
        _arrow(ax, [(x, lower + 2.4), (x, middle - 3.1)], gradient=False)
        _box(ax, (x, lower), (12.4, 4.8), "threshold\nεₜ = ε^epoch", PREVIEW_COLOR)
        _arrow(ax, [(x - 5.3, middle), (72, middle)], gradient=False, color=PREVIEW_COLOR)
        _arrow(ax, [(75.4, middle - 3.1), (75.4, 14.4), (53.9, 14.4), (53.9, middle - 1), (52.2, middle - 1)],
               gradient=False,
               color=PREVIEW_COLOR)  # fmt: skip

        objective = "L  =  mean CE  +  β_kd · mean(v · L_KD)  +  β_fa · L_FA  +  β_ca · L_CA  +  β_cc · mean(v · L_CC)"
        _box(ax, (43.2, -1.7), (86, 3), objective, DARK_GRAY, fill="white", fontsize=9.5, bold=True)
        meanings = (TRAINED_COLOR, "trained"), (FROZEN_COLOR, "frozen"), (PREVIEW_COLOR, "preview")
        marks: list[Artist] = [Patch(facecolor=_tint(color), edgecolor=color, label=label) for color, label in meanings]
        marks += [
            Patch(facecolor=DARK_GRAY, label="loss"),
            Line2D([], [], color=DARK_GRAY, linewidth=1.1, label="forward, and gradient back"),
            Line2D([], [], color=DARK_GRAY, linewidth=1.1, linestyle=DASHED, label="forward only, no gradient"),
        ]
        ax.legend(handles=marks, ncols=6, loc="center", fontsize=FONT_SIZE, columnspacing=1.5, handlelength=2.2,
                  bbox_to_anchor=(43.2, -5), bbox_transform=ax.transData)  # fmt: skip
    return figure


def feature_weight_matrix(run: Run, classes: Sequence[int] | None = None, samples: int = 8) -> Drawing:
    r"""Draw features × weights = logits for a run, where each column of weights is a category center.

    .. math:: Z = X W^T

    X holds the features of B images, of shape (B, K). W holds the centers of C categories, of shape (C, K). Z holds the
    logits without the bias, of shape (B, C). As in the paper's figure, K is the number of features.

    Parameters
    ----------
    run : Run
        With an embedding, see `recording.embedding`.
    classes : sequence of int, optional
        2 to 12 different classes. By default, 8 classes that are evenly spaced.
    samples : int, from 1 to 16
        Number of test images. They are evenly spaced over the classes and ordered by class.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If the run has no embedding, if `classes` or `samples` is outside its range, or if a class has no test image.

    References
    ----------
    Figure 3 of Ding et al., arXiv 2410.14143.
    """
    runs = check_runs(run, "embedding")
    labels, names = run.embedding["labels"], run.settings["data"]["classes"]
    classes = list(_evenly_spaced(np.unique(labels), 8) if classes is None else classes)
    if not 2 <= len(set(classes)) == len(classes) <= 12 or not all(0 <= c < len(names) for c in classes):
        raise ValueError(f"classes must be 2 to 12 different numbers below {len(names)}, got {[*map(plain, classes)]}")
    if not 1 <= samples <= 16:
        raise ValueError(f"samples must be a number from 1 to 16, got {samples}")
    if empty := [names[c] for c in classes if c not in labels]:
        raise ValueError(f"the embedding has no test image of class '{empty[0]}'; choose another")
    owners = np.arange(samples) * len(classes) // samples  # for each row, the index of its class in `classes`
    rows = np.concatenate(
        [_evenly_spaced(np.flatnonzero(labels == classes[k]), (owners == k).sum()) for k in np.unique(owners)]
    )
    owners = np.array([classes.index(label) for label in labels[rows]])  # again, because a class may have fewer images
    features = run.embedding["features"][rows].astype(np.float32)
    weights = run.embedding["centers"][classes].astype(np.float32).T
    logits = features @ weights

    # X is B × K, Wᵀ is K × C and Z is B × C. All are centered on the same horizontal line. In the drawing, B has the
    # length `down`, C has the length `across`, and K has the length `long`.
    (images, width), count, long = features.shape, len(classes), 24
    cell_x, cell_y = min(4, 16.8 / count), min(2.1, 20 / images)
    across, down = count * cell_x, images * cell_y
    left_w, left_z = long + 8, long + 8 + across + 6.5
    note = (
        "Each matrix has its own colour scale. The logits are Z + b, but the run's embedding does not store the bias b."
    )
    with new_figure(runs, FIGURE_WIDTH, 5.3, note) as figure:
        figure.suptitle(f"{run.title}: features × weights = logits, and each column of weights is a category center",
                        x=0.01, ha="left", fontsize=10, fontweight="bold")  # fmt: skip
        ax = _page_axes(figure, (-11, left_z + across + 2.5), (-20.5, 23.5))
        for values, left, wide, high, name in (
            (features, 0, long, down, "features X"), (weights, left_w, across, long, "weights Wᵀ"),
            (logits, left_z, across, down, "logits Z = X Wᵀ"),
        ):  # fmt: skip
            limit = float(np.abs(values).max()) or 1.0
            place = (left, left + wide, -high / 2, high / 2)
            image = ax.imshow(
                values, DIVERGING_COLORMAP, vmin=-limit, vmax=limit, extent=place, interpolation="nearest"
            )
            ax.add_patch(Rectangle((left, -high / 2), wide, high, fill=False, edgecolor=LIGHT_GRAY))
            middle, bar = left + wide / 2, min(12, max(9, wide))
            ax.text(middle, -16.6, name, ha="center", va="bottom", fontweight="bold")
            inset = ax.inset_axes((middle - bar / 2, -18.1, bar, 0.9), transform=ax.transData)
            scale = figure.colorbar(image, cax=inset, orientation="horizontal", ticks=[-limit, 0, limit])
            scale.ax.set_xticklabels([f"−{limit:.2g}", "0", f"{limit:.2g}"], fontsize=FONT_SIZE)
            scale.outline.set_edgecolor(LIGHT_GRAY)

        # The sizes B, K and C at the sides.
        middle_w, middle_z = left_w + across / 2, left_z + across / 2
        for x, y, text in ((long / 2, -down / 2, f"K = {width} features"), (middle_z, -down / 2, f"C = {count}"),
                           (middle_w, -long / 2, f"C = {count} of {len(names)} categories")):  # fmt: skip
            ax.text(x, y - 0.6, text, ha="center", va="top", fontsize=FONT_SIZE)
        for x, text in ((long + 1.3, f"B = {images}"), (left_w - 1.3, f"K = {width}"),
                        (left_z + across + 1.4, f"B = {images}")):  # fmt: skip
            ax.text(x, 0, text, ha="center", va="center", rotation=90, fontsize=FONT_SIZE)
        ax.text((long + left_w) / 2, 0, "×", ha="center", va="center", fontsize=15)
        ax.text((left_w + across + left_z) / 2, 0, "=", ha="center", va="center", fontsize=15)

        # Class names for all rows and columns. One image and one center are marked up to their logit.
        row = len(owners) // 2
        one = owners[row]
        short = [name if len(name) <= 16 else name[:15] + "…" for name in (names[c] for c in classes)]
        for k, name in enumerate(short):
            look: dict[str, Any] = dict(color=DARK_GREEN, fontweight="bold") if k == one else {}
            for left, high in ((left_w, long / 2), (left_z, down / 2)):
                ax.text(left + (k + 0.5) * cell_x, high + 0.6, name, rotation=90, ha="center", va="bottom",
                        fontsize=FONT_SIZE, **look)  # fmt: skip
        for i, k in enumerate(owners.tolist()):
            y = down / 2 - (i + 0.5) * cell_y
            look = dict(fontweight="bold") if i == row else {}
            ax.text(-0.6, y, short[k], ha="right", va="center", fontsize=FONT_SIZE, **look)
            _outline(ax, (left_z + k * cell_x, y - cell_y / 2), (cell_x, cell_y), DARK_GRAY, 0.8)
        y = down / 2 - (row + 1) * cell_y
        _outline(ax, (0, y), (long, cell_y), DARK_GRAY, 1.6)
        _outline(ax, (left_w + one * cell_x, -long / 2), (cell_x, long), DARK_GREEN, 2)
        _outline(ax, (left_z + one * cell_x, y), (cell_x, cell_y), DARK_GREEN, 2)
        explanation = (
            "Rows of X: features of test images.\nColumns of Wᵀ (rows of fc.weight): category centers.\n"
            "Cells of Z: how well an image matches a center.\nFrames in Z: each image's own class."
        )
        ax.text(-10.5, 22.5, explanation, va="top", fontsize=FONT_SIZE, linespacing=1.4)
    return figure


WEIGHT_AXIS_MAX = 1.56  # leaves space for three lines of text above v = 1


def _draw_epoch(ax: Axes, run: Run, strategy: str, epoch: int, x_max: float) -> None:
    """Draw the histogram of γ in one epoch, in percent of images, and the weight v against γ."""
    gamma, ce = (values[epoch - 1].astype(np.float32) for values in (run.difficulty, run.cross_entropy))
    threshold = float(run.history["threshold"].iloc[epoch - 1])
    parts = gamma[gamma <= threshold], gamma[gamma > threshold]
    percent = [np.full(len(part), 100 / len(gamma)) for part in parts]
    colors = [to_rgba(TRAINED_COLOR, 0.4), to_rgba(PREVIEW_COLOR, 0.5)]
    bars: dict[str, Any] = dict(bins=24, range=(0, x_max), weights=percent, color=colors)
    ax.hist([part.clip(0, x_max) for part in parts], stacked=True, **bars)
    ax.set(xlim=(0, x_max), xlabel="difficulty γ", title=f"epoch {epoch}")
    ax.tick_params(labelsize=FONT_SIZE)
    weight = ax.twinx()
    v = preview.STRATEGIES[strategy](torch.from_numpy(ce), torch.from_numpy(gamma), threshold).numpy()
    order = gamma.argsort(kind="stable")
    falls = bool((np.diff(v[order]) <= 0).all())  # not for focal, whose weights depend on the cross-entropy
    weight.plot(gamma[order].clip(0, x_max), v[order], "-" if falls else ".", color=run_color(run, [run]), markersize=2)
    weight.set(ylim=(0, WEIGHT_AXIS_MAX))
    weight.axis("off")
    weight.axvline(threshold, color=DARK_GRAY, linewidth=1, linestyle=":")
    far = threshold > 0.6 * x_max
    text_style: dict[str, Any] = dict(
        ha="right" if far else "left", va="center", fontsize=FONT_SIZE, textcoords="offset points"
    )
    easy = round(100 * len(parts[0]) / len(gamma))
    for y, text, color, font in (
        (1.46, f"εₜ = {threshold:.2f}", DARK_GRAY, "normal"),
        (1.31, f"easy {easy} %", DARK_GREEN, "bold"),
        (1.16, f"hard {100 - easy} %", DARK_ORANGE, "bold"),
    ):
        weight.annotate(text, (threshold, y), (-5 if far else 5, 0), color=color, fontweight=font, **text_style)


def _draw_distilled_parts(ax: Axes, picture: np.ndarray) -> None:
    """Draw a network from image to logits, and below it the parts that each family of methods uses."""
    _hide_axes(ax, (0, 86.4), (-7.6, 23))
    ax.text(0, 22.4, "(a)  What is distilled: PCKD also uses the category centers in the last layer", fontsize=10,
            fontweight="bold", va="center")  # fmt: skip
    y = 12.4
    _image(ax, picture, (17, y), 7.4)
    _arrow(ax, [(21, y), (23.4, y)])
    for x, size, count in ((24.2, 7.4, 3), (33.6, 5.4, 5), (42, 3.6, 7)):
        for sheet in range(count):
            corner = (x + 0.5 * sheet, y - size / 2 + 0.4 * (count / 2 - sheet))
            ax.add_patch(Rectangle(corner, size * 0.75, size, facecolor="white", edgecolor=FROZEN_COLOR, linewidth=0.8))
    _arrow(ax, [(48.4, y), (51.4, y)])
    _cells(ax, (52, y - 4.5), (1.6, 9), (9, 1))
    _arrow(ax, [(54.2, y), (57.4, y)])
    _cells(ax, (58, y - 4.2), (10.8, 8.4), (6, 9), marked=3)
    _arrow(ax, [(69.4, y), (72.6, y)])
    _cells(ax, (73.2, y - 4.2), (1.6, 8.4), (6, 1), marked=3)
    ax.text(76, y - 0.6, "one category:\nits center in W,\nits logit in z", va="center", fontsize=FONT_SIZE,
            color=DARK_GREEN, linespacing=1.15)  # fmt: skip
    for x, text in ((17, "image"), (35.2, "feature maps"), (52.8, "feature f"), (63.4, "category centers W"),
                    (74, "logits z")):  # fmt: skip
        ax.text(x, 18.6, text, ha="center", va="center", fontsize=FONT_SIZE)
    f, w, z = (49.6, 56, "f"), (57.4, 69.4, "centers W"), (70.8, 77.2, "z")
    for name, color, height, parts in (
        ("KD", COLORS["KD"], 4.6, (z,)), ("feature methods", FEATURES_COLOR, 1.2, ((23.8, 48.2, "feature maps"), f)),
        ("PCKD", TRAINED_COLOR, -2.2, (f, w, z)),
    ):  # fmt: skip
        ax.text(13.4, height, name, ha="right", va="center", fontweight="bold", color=color)
        for left, end, text in parts:
            _box(ax, ((left + end) / 2, height), (end - left, 2.7), text, color, fill=color, bold=True)


def _page_axes(figure: Figure, x: tuple[float, float], y: tuple[float, float]) -> Axes:
    ax = figure.subplots()
    _hide_axes(ax, x, y)
    return ax


def _hide_axes(ax: Axes, x: tuple[float, float], y: tuple[float, float]) -> None:
    ax.set(xlim=x, ylim=y, aspect="equal", anchor="W")
    ax.axis("off")


def _tint(color: str) -> tuple[float, float, float]:
    """Return a pale version of a colour, as RGB values from 0 to 1."""
    red, green, blue = (1 - 0.16 * (1 - part) for part in to_rgba(color)[:3])
    return red, green, blue


def _box(ax: Axes, center: tuple[float, float], size: tuple[float, float], text: str, color: str,
         *, fill: str | None = None, fontsize: float = FONT_SIZE, bold: bool = False, shift: float = 0,
         ) -> None:  # fmt: skip
    """Draw a box with text in its middle, moved to the right by `shift`. Text is white if `fill` equals `color`."""
    corner = center[0] - size[0] / 2, center[1] - size[1] / 2
    box = FancyBboxPatch(corner, *size, "round,pad=0,rounding_size=0.6", facecolor=fill or _tint(color),
                         edgecolor=color, linewidth=1.1)  # fmt: skip
    ax.add_patch(box)
    ink = "white" if fill == color else DARK_GRAY
    ax.text(center[0] + shift, center[1], text, ha="center", va="center", fontsize=fontsize, color=ink, linespacing=1.2,
            fontweight="bold" if bold else "normal")  # fmt: skip


def _outline(ax: Axes, corner: tuple[float, float], size: tuple[float, float], color: str, linewidth: float) -> None:
    ax.add_patch(Rectangle(corner, *size, fill=False, edgecolor=color, linewidth=linewidth, zorder=2))


def _arrow(ax: Axes, points: list[tuple[float, float]], gradient: bool = True, color: str = DARK_GRAY) -> None:
    """Draw an arrow along the points. It is solid if a gradient flows back, and dashed otherwise."""
    ax.plot(*np.array(points).T, color=color, linewidth=1.1, linestyle="-" if gradient else DASHED)
    ax.add_patch(FancyArrowPatch(path=Path(points[-2:]), arrowstyle="-|>", mutation_scale=9, linewidth=0, color=color))


def _cells(ax: Axes, corner: tuple[float, float], size: tuple[float, float], cells: tuple[int, int],
           marked: int | None = None) -> None:  # fmt: skip
    """Draw a matrix of rows × columns, with one row marked."""
    (left, low), (width, height), (rows, columns) = corner, size, cells
    for row in range(rows):
        face = to_rgba(TRAINED_COLOR, 0.55) if row == marked else "white"
        place = (left, low + height - (row + 1) * height / rows)
        ax.add_patch(Rectangle(place, width, height / rows, facecolor=face, edgecolor=FROZEN_COLOR, linewidth=0.8))
    for column in range(1, columns):
        x = left + column * width / columns
        ax.plot([x, x], [low, low + height], color=FROZEN_COLOR, linewidth=0.4)


def _snowflake(ax: Axes, center: tuple[float, float], size: float) -> None:
    for turn in range(6):
        out = np.array([np.sin(turn * np.pi / 3), np.cos(turn * np.pi / 3)])
        side = np.array([-out[1], out[0]])
        ends = [[0 * out, out], [0.6 * out, 0.9 * out + 0.3 * side], [0.6 * out, 0.9 * out - 0.3 * side]]
        for end in ends:
            ax.plot(*(np.array(end) * size + center).T, color=FROZEN_COLOR, linewidth=0.9)


def _example_image(run: Run | None) -> np.ndarray:
    """Choose an example image whose rotations look as different as possible.

    The image is one of the easier half of the run's gallery. Without a run or a gallery, it is like those of shapes100.
    """
    if run is None or run.gallery is None:
        images = shapes.generate(100, seed=0, difficulty=0.0)[0]
    else:
        images = run.gallery["images"][: max(1, len(run.gallery["images"]) // 2)]
    height, width = images.shape[2:]
    if height == width:
        part = max(1, height // 8)  # average over a grid of 8 × 8 cells, which keeps the shape and removes noise
        coarse = images[:, :, : height // part * part, : width // part * part].astype(np.float32).mean(1)
        coarse = coarse.reshape(len(images), height // part, part, width // part, part).mean((2, 4))
        changes = [np.abs(coarse - np.rot90(coarse, turn, (1, 2))).mean((1, 2)) for turn in (1, 2)]
        images = images[np.minimum(*changes).argmax()][None]
    return as_rgb(images[0])


def _image(ax: Axes, picture: np.ndarray, center: tuple[float, float], size: float, turn: int = 0) -> None:
    """Draw a picture in a square, rotated by quarter turns like in `views.rotate`."""
    (x, y), half = center, size / 2
    ax.imshow(
        np.rot90(picture, turn), extent=(x - half, x + half, y - half, y + half), interpolation="nearest", zorder=2
    )


def _evenly_spaced(index: np.ndarray, count: int) -> np.ndarray:
    """Return up to `count` elements that are evenly spaced."""
    return index[np.unique(np.linspace(0, len(index) - 1, count).round().astype(int))]
