"""Figures of how the geometry of the classes changes during training, from what runs record in every epoch.

The *geometry* of a run has the class means of its test images and its category centers in every epoch, and measures of
neural collapse, see `collapse`. Category centers are the rows of the last layer's weight.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from scipy.linalg import orthogonal_procrustes
from scipy.stats import t

from .. import analysis
from ..runs import Run
from .arms import study_key
from .canvas import (
    CLASS_COLORS,
    Drawing,
    add_legend,
    check_runs,
    choose_classes,
    is_teacher,
    label_epoch_axis,
    line_styles,
    new_figure,
)
from .space import panel_title

MAX_WIDTH = 8.5  # inches, of all panels: a notebook shows the figure without scaling
# Column of `analysis.geometry_table` → title of its panel, and label of its axis.
COLLAPSE_PANELS = {
    "nc1": ("NC1: variability", "tr(Σ_W Σ_B⁺) / C"),
    "nc2_equinorm_means": ("NC2: lengths of means", "sd / mean"),
    "nc2_max_angle_means": ("NC2: angles of means", "mean |cos + 1/(C−1)|"),
    "nc3": ("NC3: self-duality", "‖W/‖W‖ − M/‖M‖‖"),
}
TEACHER_PANELS = {
    "cka_means": ("CKA of class means", "similarity to teacher"),
    "rsa_means": ("RSA of class means", "similarity to teacher"),
    "cka_centers": ("CKA of centers", "similarity to teacher"),
    "rsa_centers": ("RSA of centers", "similarity to teacher"),
}
MIN_SEEDS = 3  # for an interval


def collapse_over_epochs(
    runs: Run | Sequence[Run],
    teacher_geometry: Run | Mapping[str, np.ndarray] | None = None,
    train: bool = False,
) -> Drawing:
    """Draw measures of neural collapse by epoch, and the similarity of the classes' geometry to the teacher's.

    The upper row shows NC1, NC2 of the class means, and NC3. All of them are 0 if the collapse is complete. The lower
    row compares class means and category centers with those of the teacher after its last epoch, see
    `analysis.geometry_table`. It is drawn if the teacher's geometry is known.

    Runs that differ only in the seed share a line, which shows their mean. For three seeds or more, a band shows the
    95 % confidence interval of the mean.

    Parameters
    ----------
    runs : Run or sequence of Run
        With recorded geometry of the same data. The teacher may be one of them.
    teacher_geometry : Run or dict of str to array, optional
        As in `analysis.geometry_table`. By default, the teacher among `runs` is used, if there is one.
    train : bool
        Whether to show the training images instead of the test images, as in `analysis.geometry_table`.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If there is no run, if a run has no recorded geometry or no complete epoch, if the runs are of different data,
        or if a run has not recorded the vectors that a comparison with the teacher needs.
    """
    runs = _check_geometry(runs)
    teachers = [run for run in runs if is_teacher(run, runs)]
    if teacher_geometry is None and len({run.fingerprint for run in teachers}) > 1:
        raise ValueError("the runs have several teachers: draw the students of one teacher at a time")
    teacher = teacher_geometry if teacher_geometry is not None else next(iter(teachers), None)
    students = [run for run in runs if not any(run is other for other in teachers)] if teacher is not None else []
    rows = [(COLLAPSE_PANELS, runs), *([(TEACHER_PANELS, students)] if students else [])]
    compared = {id(run) for run in students}
    tables = {id(run): analysis.geometry_table(run, teacher if id(run) in compared else None, train) for run in runs}
    note = f"Measured on the {'training' if train else 'test'} images."
    if len(rows) > 1:
        note += " Similarity to the teacher after its last epoch. CKA = 1: the same up to rotation and scale. "
        note += "RSA = 1: the same order of similarities."
    with new_figure(runs, 2.4 * 4, 2.2 * len(rows) + 0.9, note) as figure:
        figure.set_layout_engine("constrained", h_pad=0.08)
        grid = figure.subplots(len(rows), 4, squeeze=False)
        for axes, (panels, shown) in zip(grid, rows, strict=True):
            for ax, (column, (title, label)) in zip(axes, panels.items(), strict=True):
                _draw_lines(ax, shown, runs, [tables[id(run)].set_index("epoch")[column] for run in shown])
                ax.set(title=title, ylabel=label)
                label_epoch_axis(ax)
                if column == "nc1":
                    ax.set_yscale("log")
                elif panels is COLLAPSE_PANELS:
                    ax.set_ylim(bottom=0)
        add_legend(figure, runs)
    return figure


def center_trajectories(runs: Run | Sequence[Run], classes: Sequence[int] | None = None) -> Drawing:
    """Draw the paths of category centers from the first epoch (ring) to the last one (star), in one panel per run.

    A panel shows the plane of the two largest principal components of the last centers, after the mean of the centers
    is subtracted in every epoch. The text under it says which share of their variance lies in this plane. Panels after
    the first one are rotated or mirrored, such that the last centers agree best with those of the first panel.

    The lower panels show the mean angle between all centers and those of the last epoch. If the teacher is one
    of the runs, and has the width of a student, they also show the mean angle to the teacher's last centers. Centers of
    two networks that were trained without a common loss are nearly orthogonal.

    Parameters
    ----------
    runs : Run or sequence of Run
        With recorded category centers of the same data.
    classes : sequence of int, optional
        1 to 10 classes. By default, 10 classes that are evenly spaced.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If there is no run, if a run has no recorded centers or no complete epoch, if the runs are of different data, or
        if `classes` is outside its range.
    """
    runs = _check_geometry(runs)
    for run in runs:
        if "centers" not in run.geometry:
            raise ValueError(
                f"the run {run.title} has recorded no centers, because they are too large; draw other runs"
            )
    names = runs[0].settings["data"]["classes"]
    classes = choose_classes(classes, len(names))
    teacher = next((run for run in runs if is_teacher(run, runs)), None)
    tables = [analysis.geometry_table(run, teacher).set_index("epoch") for run in runs]
    angles = {"center_angle_to_end": "angle to the end"}
    students = [i for i, run in enumerate(runs) if run is not teacher]
    if teacher and any(tables[i]["center_angle_to_teacher"].notna().any() for i in students):
        angles["center_angle_to_teacher"] = "angle to the teacher"
    side = min(2.2, MAX_WIDTH / len(runs))
    reference: np.ndarray | None = None
    with new_figure(runs, max(side * len(runs), 5) + 1.1, side + 3.4) as figure:
        grid = figure.add_gridspec(2, 2 * len(runs), height_ratios=[side + 0.2, 1.7])
        for place, run in enumerate(runs):
            ax = figure.add_subplot(grid[0, 2 * place : 2 * place + 2])
            paths, share = _paths_in_plane(run.geometry["centers"].astype(np.float64))
            if reference is None:
                reference = paths[-1]
            else:
                paths = paths @ orthogonal_procrustes(paths[-1], reference)[0]
            for color, c in zip(CLASS_COLORS, classes, strict=False):
                x, y = paths[:, c].T
                ax.plot(x, y, color=color, linewidth=1.1, alpha=0.8)
                ax.scatter(x[0], y[0], s=14, facecolor="white", edgecolor=color, linewidth=1, zorder=3)
                ax.scatter(x[-1], y[-1], s=70, marker="*", color=color, edgecolor="black", linewidth=0.6, zorder=4)
            ax.set(
                xticks=[], yticks=[], aspect="equal", adjustable="datalim", xlabel=f"{100 * share:.0f} % of variance"
            )
            ax.set_title(panel_title(run, runs), fontsize=8)
        for place, (column, title) in enumerate(angles.items()):
            ax = figure.add_subplot(grid[1, place * len(runs) : (place + 1) * len(runs)])
            shown = students if column == "center_angle_to_teacher" else range(len(runs))
            _draw_lines(ax, [runs[i] for i in shown], runs, [tables[i][column] for i in shown])
            ax.set_title(title, fontsize=8)
            ax.set_ylabel("degrees")
            label_epoch_axis(ax)
        marks = [
            Line2D([], [], color=color, marker="*", label=f"{names[c]:.24}")
            for color, c in zip(CLASS_COLORS, classes, strict=False)
        ]
        figure.legend(handles=marks, loc="outside right upper", fontsize=7)
        add_legend(figure, runs)
    return figure


def _check_geometry(runs: Run | Sequence[Run]) -> list[Run]:
    runs = check_runs(runs, "geometry", whole_epoch=True)
    if len({run.data_fingerprint for run in runs}) > 1:
        raise ValueError("class means can be compared only if all runs use the same data; leave the others out")
    return runs


def _draw_lines(ax: Axes, shown: Sequence[Run], runs: list[Run], columns: Sequence[pd.Series]) -> None:
    """Draw one column by epoch: the mean over seeds, and its 95 % confidence interval.

    shown: the runs of the columns. runs: all runs of the figure, which decide on colours and labels.
    """
    styles = {id(run): line for run, line in zip(runs, line_styles(runs), strict=True)}
    groups: dict[Hashable, tuple[dict[str, Any], list[pd.Series]]] = {}
    for run, column in zip(shown, columns, strict=True):
        line = styles[id(run)]
        groups.setdefault((line["label"], tuple(column.index), study_key(run)), (line, []))[1].append(column)
    for line, group in groups.values():
        values, epochs = np.array(group, float), group[0].index
        mean, seeds = values.mean(0), len(values)
        ax.plot(epochs, mean, marker="o" if len(epochs) == 1 else None, **line)  # a line needs two epochs
        if seeds >= MIN_SEEDS:
            half_width = t.ppf(0.975, seeds - 1) * values.std(0, ddof=1) / seeds**0.5
            ax.fill_between(epochs, mean - half_width, mean + half_width, color=line["color"], alpha=0.2, linewidth=0)


def _paths_in_plane(centers: np.ndarray) -> tuple[np.ndarray, float]:
    """Return paths of centers of shape (E, C, 2), and the share of the last centers' variance in their plane."""
    centers = centers - centers.mean(1, keepdims=True)
    _, singular, components = np.linalg.svd(centers[-1], full_matrices=False)
    plane = np.zeros((2, centers.shape[2]))
    plane[: len(components)] = components[:2]
    return centers @ plane.T, float((singular[:2] ** 2).sum() / max((singular**2).sum(), 1e-300))
