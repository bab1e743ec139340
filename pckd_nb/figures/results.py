"""Figures of accuracy: learning curves, final accuracy, sweeps, budgets, and a comparison with published results."""

import itertools
import textwrap
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..analysis import training_flops
from ..catalogue import PAIRS
from ..leaderboard import compare, find_numbers, load_published
from ..paths import paper_folder, user_path
from ..runs import SYMBOLS, Run
from .arms import (
    FACTORS,
    METHODS,
    RunsBySeed,
    Sweep,
    accuracies,
    accuracy_difference,
    best_by_compute,
    comparison_table,
    find_budgets,
    find_compute,
    find_sweep,
    measured_gains,
    study_key,
    unique_runs,
)
from .canvas import (
    COLORS,
    DARK_GRAY,
    LIGHT_GRAY,
    MORE_COLORS,
    Drawing,
    add_legend,
    check_runs,
    label_epoch_axis,
    line_styles,
    new_figure,
    run_color,
    run_label,
)

__all__ = [
    "accuracy", "accuracy_against_compute", "budget", "comparison_table", "leaderboard", "learning_curves",
    "published_and_measured",
    "published_gains", "published_table", "sweep", "sweeps",
]  # fmt: skip

# Column of the history → title of its panel, or title and axis label. Other columns are loss terms of other methods.
# They are drawn as well.
ACCURACY_PANELS = {"test_top1": "test images", "val_top1": "validation images", "train_top1": "training crops"}
LOSS_TERMS = {
    "total": ("objective (sum of β · term)", "L"),
    "cross_entropy": ("cross-entropy", "L_CE (nats)"),
    "distillation_kl": ("distillation of logits", "mean v·L_KD (T² · nats)"),
    "feature_alignment": ("feature alignment", "L_FA (2 − 2·cosine)"),
    "category_center_alignment": ("center alignment", "L_CA (mean square)"),
    "category_center_contrast": ("center contrast", "mean v·L_CC (τ/τ₀ · nats)"),
}
REFERENCE_DASHES = {"KD": (5, 2), "supervised": (1.5, 1.5)}  # dashes of the lines for KD and supervised training
MARKERS = "os^Dv<>Ph*"  # one per method, so that they differ without colours, too
MIN_AXIS_RANGE = 12  # percentage points on the axis of a sweep, so that noise does not look large
NOT_LOSS_TERMS = {"epoch", "lr", "threshold", "mean_weight", "full_weight_share", "train_top1"}


def learning_curves(runs: Run | Sequence[Run]) -> Drawing:
    """Draw accuracy and every loss term by epoch, in one panel each.

    Runs that differ only in the seed share a line. It shows their mean, and a band shows one standard deviation to each
    side. Students of different teachers have lines of their own, also if the teachers differ only in their weights.

    The loss terms have the units that are written at their axes. A nat is the unit of a cross-entropy with the natural
    logarithm. T is the temperature of KD. τ and τ₀ are the temperature and the base temperature of
    `losses.category_center_contrast`.

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
    terms = [
        name
        for run in runs
        for name in run.history
        if name not in NOT_LOSS_TERMS and not name.startswith(("test_", "val_"))
    ]
    if set(terms) == {"total", "cross_entropy"}:
        terms = ["cross_entropy"]  # the total has the same values
    accuracies = [name for name in ACCURACY_PANELS if any(name in run.history for run in runs)]
    panels = [*accuracies, *sorted(dict.fromkeys(terms), key=[*LOSS_TERMS, *terms].index)]
    highest = max(run.history[name].max() for run in runs for name in accuracies if name in run.history)
    top = min(100.5, 1.05 * highest + 1)
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    groups: dict[Hashable, tuple[dict[str, Any], list[Run]]] = {}
    for line, run in zip(line_styles(runs), runs, strict=True):
        teacher = (run.settings["teacher"] or {}).get("fingerprint")
        groups.setdefault((line["label"], len(run.history), study_key(run), teacher), (line, []))[1].append(run)
    with new_figure(runs, 2.4 * columns, 2.2 * rows + 0.7) as figure:
        figure.set_layout_engine("constrained", h_pad=0.08)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, name in zip(axes, panels, strict=False):
            for line, group in groups.values():
                values = [run.history[name] for run in group if name in run.history]
                if values:
                    epochs, mean = np.arange(1, len(values[0]) + 1), np.mean(values, 0)
                    dot = "o" if len(epochs) == 1 else None  # a line needs two epochs
                    ax.plot(epochs, mean, marker=dot, **line)
                if len(values) > 1:
                    spread = np.std(values, 0, ddof=1)
                    ax.fill_between(epochs, mean - spread, mean + spread, color=line["color"], alpha=0.2, linewidth=0)
            if name in ACCURACY_PANELS:
                ax.set(title=f"accuracy on {ACCURACY_PANELS[name]}", ylabel="top-1 accuracy (%)", ylim=(0, top))
            else:
                title, label = LOSS_TERMS.get(name, (name, "loss"))
                ax.set(title=title, ylabel=label)
            label_epoch_axis(ax)
        for ax in axes[len(panels) :]:
            ax.remove()
        add_legend(figure, runs)
    return figure


def accuracy(runs: Run | Sequence[Run]) -> Drawing:
    """Draw the final test accuracies as bars.

    Runs that differ only in the seed share a bar. It shows their mean ± standard deviation, and one dot per run.

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
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run_label(run, runs), []).append(run)
    several = any(len(group) > 1 for group in groups.values())
    note = "± and whiskers: standard deviation over seeds. One dot per seed." if several else ""
    with new_figure(runs, 7.5, 0.55 * len(groups) + 1.3, note) as figure:
        ax = figure.subplots()
        for row, group in enumerate(groups.values()):
            values = np.array([run.accuracy for run in group])
            text, end = f"{values.mean():.1f}", values.max()
            ax.barh(row, values.mean(), height=0.6, color=run_color(group[0], runs), alpha=0.85)
            if len(values) > 1:
                spread = values.std(ddof=1)
                text, end = f"{text} ± {spread:.1f}  ({len(values)} seeds)", max(end, values.mean() + spread)
                ax.errorbar(values.mean(), row, xerr=spread, color=DARK_GRAY, capsize=3, linewidth=1.2)
                ax.scatter(values, np.full(len(values), row), s=16, color="white", edgecolor=DARK_GRAY, zorder=3)
            ax.annotate(text, (end, row), (6, 0), textcoords="offset points", va="center", fontweight="bold")
        ax.set_yticks(range(len(groups)), groups)
        ax.set(xlim=(0, 100), ylim=(len(groups) - 0.5, -0.5), xlabel="top-1 accuracy on test images (%)")
        ax.grid(axis="y", visible=False)
        ax.spines["left"].set_visible(False)
        ax.set_title("Accuracy after training")
    return figure


def sweep(runs: Run | Sequence[Run], factor: str) -> Drawing:
    """Draw accuracy against one setting of PCKD, as one panel of `sweeps`.

    Parameters
    ----------
    runs : Run or sequence of Run
    factor : {"beta_cc", "beta_fa", "beta_ca", "epsilon"}
        The setting that differs between the runs.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If `factor` is another name, or if the runs contain no sweep of it.
    """
    if factor not in FACTORS:
        raise ValueError(f"unknown factor '{factor}'; known: {', '.join(FACTORS)}")
    return _draw_sweep(find_sweep(runs, [factor]), 3.6, 3.5)


def sweeps(runs: Run | Sequence[Run]) -> Drawing:
    """Draw accuracy against β_cc, β_fa, β_ca and ε, one panel per setting that was varied.

    A panel shows mean ± standard deviation, and one dot per seed. Lines show KD and supervised training with the same
    seeds. The published default is marked. The panels have different scales.

    Parameters
    ----------
    runs : Run or sequence of Run
        `figures.arms.find_sweep` selects those that belong to a sweep.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If the runs contain no sweep.
    """
    return _draw_sweep(find_sweep(runs), 7.1, 5.2)


def _draw_sweep(sweep: Sweep, width: float, height: float) -> Drawing:
    points, references = sweep.points, sweep.references
    runs = unique_runs(*(seeds for values in points.values() for seeds in values.values()))
    recipe, columns = runs[0].settings["recipe"]["name"], min(2, len(points))
    with new_figure([*runs, *unique_runs(*references.values())], width, height) as figure:
        entries = [
            Line2D([], [], color=COLORS["PCKD"], marker="_", markersize=9, label="PCKD: mean ± sd, dots: seeds"),
            Patch(color=LIGHT_GRAY, alpha=0.35, label="published default"),
        ]
        axes = figure.subplots(-(-len(points) // columns), columns, squeeze=False).ravel()
        means = {title: accuracies(seeds).mean() for title, seeds in references.items()}
        for title, mean in means.items():
            line: dict[str, Any] = dict(color=COLORS[title], dashes=REFERENCE_DASHES[title], linewidth=1.3)
            entries.append(Line2D([], [], **line, label=f"{title}: {mean:.1f}"))
            for ax in axes[: len(points)]:
                ax.axhline(mean, **line)
        for ax, (factor, by_value) in zip(axes, points.items(), strict=False):
            letter, published = FACTORS[factor]
            values = sorted({*by_value, published})
            marks = {sweep.default[factor]: f"{recipe} recipe", published: "published"}  # often the same value
            ax.axvline(values.index(published), color=LIGHT_GRAY, linewidth=9, alpha=0.35, zorder=0)
            _draw_points(ax, {values.index(value): by_value[value] for value in sorted(by_value)}, COLORS["PCKD"])
            ax.set_xticks(range(len(values)), [f"{value:g}\n{marks.get(value, '')}".rstrip() for value in values])
            ax.tick_params(axis="x", labelsize=7.5)
            ax.set(xlim=(-0.5, len(values) - 0.5), ylim=_axis_range(by_value, means.get("KD")))
            ax.grid(axis="x", visible=False)
            converted = " for 240 epochs: ε^(epochs/240)" if factor == "epsilon" else ""
            ax.set_xlabel(f"{SYMBOLS[factor]}{converted} (not to scale)", fontsize=8)
            ax.set_title(f"({letter}) {SYMBOLS[factor]}")
            if ax.get_subplotspec().is_first_col():
                ax.set_ylabel("top-1 accuracy (%)")
        for ax in axes[len(points) :]:
            ax.remove()
        if width < 5:
            figure.legend(handles=entries, loc="outside upper left", ncols=2, columnspacing=1, fontsize=7.5)
        else:
            figure.legend(handles=entries, loc="outside upper left", ncols=4, columnspacing=1.2, fontsize=8.5)
    return figure


def _axis_range(points: Mapping[float, RunsBySeed], kd: float | None) -> tuple[float, float]:
    """Return the limits of the accuracy axis. They include all points with their bars, and the mean of KD."""
    ends = [mean + end for mean, sd in map(_mean_and_sd, points.values()) for end in (-sd, sd)]
    shown = [
        *ends,
        *(run.accuracy for seeds in points.values() for run in seeds.values()),
        *([] if kd is None else [kd]),
    ]
    low, high = min(shown), max(shown)
    margin = max(0.08 * (high - low), (MIN_AXIS_RANGE - (high - low)) / 2)
    return low - margin, high + margin


def _mean_and_sd(seeds: RunsBySeed) -> tuple[float, float]:
    """Return mean and standard deviation. The latter is 0 for a single seed."""
    values = accuracies(seeds)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _draw_points(ax: Axes, points: Mapping[int, RunsBySeed] | Mapping[float, RunsBySeed], color: str) -> None:
    """Draw mean ± standard deviation at every x, joined by a line, and one dot per seed."""
    means, spread = zip(*map(_mean_and_sd, points.values()), strict=True)
    ax.errorbar(list(points), means, yerr=spread, color=color, marker="_", markersize=9, elinewidth=1.2, linewidth=1.5)
    for x, seeds in points.items():
        ax.scatter([x] * len(seeds), accuracies(seeds), s=12, color=color, alpha=0.5, linewidth=0, zorder=3)


def budget(runs: Run | Sequence[Run]) -> Drawing:
    """Draw accuracy against the training budget: by epochs (left) and by compute (right).

    The figure shows supervised training, KD and PCKD with default settings. With other settings, it shows them only if
    they were trained for several numbers of epochs. Each point shows the mean ± standard deviation over all its seeds,
    and one dot per seed. Compute is measured by `analysis.training_flops`.

    Parameters
    ----------
    runs : Run or sequence of Run

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If none of these methods was trained for several numbers of epochs on the same data, or if a network was not
        made by `create_model`.
    """
    points = find_budgets(runs)
    note = f"Mean ± standard deviation, one dot per seed. {_numbers_of_seeds(points)}".strip()
    shown = unique_runs(*(seeds for by_epochs in points.values() for seeds in by_epochs.values()))
    with new_figure(shown, 7.1, 3.9, note) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        others = [name for name in points if name not in COLORS]
        colors = {name: COLORS.get(name) or MORE_COLORS[others.index(name) % len(MORE_COLORS)] for name in points}
        costs: list[float] = []
        for name, by_epochs in points.items():
            by_cost = {training_flops(next(iter(seeds.values()))) / 1e12: seeds for seeds in by_epochs.values()}
            _draw_points(left, by_epochs, colors[name])
            _draw_points(right, by_cost, colors[name])
            costs += by_cost
        epochs = sorted({epochs for by_epochs in points.values() for epochs in by_epochs})
        left.set(title="by epochs", xlabel="epochs", ylabel="top-1 accuracy (%)", xscale="log")
        left.set_xticks(epochs, epochs)
        left.minorticks_off()
        right.set_title("by compute of student and teacher")
        _label_compute_axis(right, costs)
        entries = [Line2D([], [], color=color, marker="_", markersize=9, label=name) for name, color in colors.items()]
        figure.legend(handles=entries, loc="outside upper left", ncols=3)
    return figure


def _label_compute_axis(ax: Axes, teraflops: Sequence[float]) -> None:
    ax.set(xscale="log", xlabel="10¹² floating-point operations")
    rounds = [step * 10.0**power for power in range(-6, 13) for step in (1, 2, 5)]
    ticks = [tick for tick in rounds if 0.9 * min(teraflops) <= tick <= 1.1 * max(teraflops)]
    if len(ticks) > 1:
        ax.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
        ax.minorticks_off()


def _numbers_of_seeds(points: Mapping[str, Mapping[int, RunsBySeed]]) -> str:
    """Return a sentence with the numbers of seeds, or an empty text if all points have equally many."""
    numbers: dict[int, set[int]] = {}
    for by_epochs in points.values():
        for epochs, seeds in by_epochs.items():
            numbers.setdefault(epochs, set()).add(len(seeds))
    if len(set.union(*numbers.values())) == 1:
        return ""
    parts = (f"{' or '.join(map(str, sorted(counts)))} at {epochs}" for epochs, counts in sorted(numbers.items()))
    return f"Number of seeds: {', '.join(parts)} epochs."


def accuracy_against_compute(runs: Run | Sequence[Run]) -> Drawing:
    """Draw accuracy against the compute of a training, with one marker per arm.

    An arm is a method with its options and its number of epochs. A marker shows the mean over seeds, and a vertical
    line shows its 95 % confidence interval, for three seeds or more. Filled markers are methods without options, open
    markers are methods with options. A dashed line joins the *best arms*: no other arm reaches the same mean with the
    same compute or less. They are numbered, and listed below the axes.

    Compute is measured by `analysis.training_flops`. Arms with the same compute are moved apart by at most 10 %. If the
    runs belong to several studies (see `figures.arms`), the one with the most arms is drawn.

    Parameters
    ----------
    runs : Run or sequence of Run

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If there is no run of a student, if a run has no complete epoch, or if a network was not made by
        `create_model`.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> run = pckd.fit("resnet8", data, epochs=1, progress=False)
    >>> pckd.figures.accuracy_against_compute(run).savefig("compute.png")
    """
    points = find_compute(runs)
    titles = sorted({point.arm.title for point in points}, key=lambda title: ([*METHODS, title].index(title), title))
    others = [title for title in titles if title not in COLORS]
    colors = {title: COLORS.get(title) or MORE_COLORS[others.index(title) % len(MORE_COLORS)] for title in titles}
    markers = dict(zip(titles, itertools.cycle(MARKERS), strict=False))
    costs = [point.teraflops for point in points]
    places = dict(zip((point.arm for point in points), _moved_apart(costs), strict=True))
    best = best_by_compute(points)
    several = any(point.top1.count > 2 for point in points)
    note = "Mean over seeds, and its 95 % confidence interval for three seeds or more." if several else ""
    names = [textwrap.fill(f"{number}  {point.name}", 62) for number, point in enumerate(best, 1)]
    names_height = 0.3 + 0.2 * sum(1 + name.count("\n") for name in names)
    with new_figure(unique_runs(*(point.seeds for point in points)), 5.2, 4.3 + names_height, note) as figure:
        ax, below = figure.subplots(2, 1, height_ratios=(3.4, names_height))
        for point in points:
            title, x, mean = point.arm.title, places[point.arm], point.top1.mean
            if point.top1.count > 2:
                ax.plot([x, x], [point.top1.low, point.top1.high], color=colors[title], linewidth=1.2, alpha=0.35)
            face = "white" if point.arm.variant else colors[title]
            ax.plot(x, mean, markers[title], color=colors[title], markerfacecolor=face, label=point.name)
        for number, point in enumerate(best, 1):
            look: dict[str, Any] = dict(xytext=(0, 6), textcoords="offset points", ha="center", fontweight="bold")
            ax.annotate(str(number), (places[point.arm], point.top1.mean), **look)
        line: dict[str, Any] = dict(color=DARK_GRAY, linewidth=1, dashes=(4, 2), zorder=1)
        ax.plot([places[point.arm] for point in best], [point.top1.mean for point in best], **line)
        low, high = ax.get_ylim()
        ax.set(title="Accuracy against compute", ylabel="top-1 accuracy (%)", ylim=(max(low, 0), min(high, 101)))
        _label_compute_axis(ax, costs)
        ax.set_xlim(costs[0] / 1.4, costs[-1] * 1.4)
        entries = [
            Line2D([], [], color=colors[title], marker=markers[title], linewidth=0, label=title) for title in titles
        ]
        if any(point.arm.variant for point in points):
            open_marker: dict[str, Any] = dict(marker="o", color=DARK_GRAY, markerfacecolor="white", linewidth=0)
            entries.append(Line2D([], [], **open_marker, label="with options"))
        figure.legend(handles=entries, loc="outside upper left", ncols=4, columnspacing=1.2)
        below.set_axis_off()
        below.legend(
            handles=[Line2D([], [], linewidth=0, label=name) for name in names],
            title="Best arms, with the least compute for their accuracy",
            loc="upper left", alignment="left", borderpad=0, borderaxespad=0, handlelength=0, handletextpad=0,
        )  # fmt: skip
    return figure


def _moved_apart(values: Sequence[float]) -> list[float]:
    """Return positions on a log axis where equal values are moved apart, by at most 10 % in each direction."""
    moved = []
    for place, value in enumerate(values):
        same = [other for other, each in enumerate(values) if each == value]
        step = min(0.03, 0.2 / len(same))
        moved.append(value * (1 + step * (same.index(place) - (len(same) - 1) / 2)))
    return moved


def published_table(folder: str | Path | None = None) -> pd.DataFrame:
    """Return the published results that notebooks and figures compare with.

    These are the table of PCKD's authors, and the results of KD and DKD in the README of mdistiller for the other pairs
    of `models.PAIRS`. `load_published` returns many more.

    Parameters
    ----------
    folder : str or Path, optional
        Folder with cifar100_same_family.csv and published_results.csv. By default, the tables that come with this
        package.

    Returns
    -------
    DataFrame
        Columns: dataset, teacher, student, method, metric, value (in percent, NaN if it was not published) and source.

    Raises
    ------
    ValueError
        If a file is missing.

    References
    ----------
    Ding et al., Preview-based Category Contrastive Learning for Knowledge Distillation, arXiv 2410.14143.
    """
    folder = paper_folder() if folder is None else user_path(folder, "folder")
    file = folder / "cifar100_same_family.csv"
    if not file.is_file():
        raise ValueError(f"no {file.name} in '{folder}': it is in data/paper of the repository; pass that folder")
    one_family = pd.read_csv(file).rename(columns={"top1_percent": "value"})
    one_family = one_family.assign(dataset="cifar100", source="the paper, one family")
    published = load_published(folder).rename(columns={"top1": "value"})
    pairs = pd.MultiIndex.from_frame(published[["teacher", "student"]])
    others = {tuple(name.removeprefix("torchvision:") for name in pair) for pair in PAIRS}
    others -= set(zip(one_family["teacher"], one_family["student"], strict=True))
    mdistiller = published["source"].str.startswith("mdistiller README") & published["method"].isin(["KD", "DKD"])
    table = pd.concat([one_family, published[mdistiller & pairs.isin(others)]], ignore_index=True)
    return table.assign(metric="top1_percent")[["dataset", "teacher", "student", "method", "metric", "value", "source"]]


def published_gains(published: pd.DataFrame) -> pd.DataFrame:
    """Return the published top-1 accuracies minus that of the student trained without a teacher.

    Parameters
    ----------
    published : DataFrame
        As returned by `published_table`.

    Returns
    -------
    DataFrame
        In percentage points. One row per method and one column per pair of networks for which the student's accuracy
        was published. NaN means not published.
    """
    top1 = published[published["metric"] == "top1_percent"]
    wide = top1.pivot_table("value", "method", ["dataset", "teacher", "student"], sort=False)
    return wide.sub(wide.loc["Student"]).drop(index=["Student", "Teacher"]).dropna(axis=1, how="all")


def published_and_measured(runs: Run | Sequence[Run], published: str | Path | None = None) -> Drawing:
    """Draw the gain over a student trained without a teacher: as published (left) and as measured here (right).

    A dot on the left is a pair of networks. A dot on the right is a seed: the accuracy with a teacher minus that
    without one. For three seeds or more, a band shows the 95 % confidence interval of the mean. Points of a sweep are
    left out, see `sweeps`.

    Data, networks and numbers of epochs differ between left and right. So compare only the order and the sign of the
    gains, not their size.

    Parameters
    ----------
    runs : Run or sequence of Run
    published : str or Path, optional
        As `folder` in `published_table`.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If no run with a teacher has a supervised run with the same student and seed, if a run has no complete epoch, or
        if a file with published results is missing.
    """
    gains = published_gains(published_table(published))
    groups = measured_gains(check_runs(runs, whole_epoch=True))
    if not groups:
        raise ValueError(
            "nothing to compare: pass runs that were trained with a teacher, and supervised runs of the same student "
            "and seed"
        )
    drawn = unique_runs(*(group for arms in groups for _, seeds, supervised in arms for group in (seeds, supervised)))
    rows = sum(len(arms) + 4 for arms in groups)  # 4 more for titles and ticks
    height = max(len(gains) + 4, rows) * 0.17 + 1
    with new_figure(drawn, 7.1, height) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(1, 1.05), squeeze=False)[0]
        ax = left.add_subplot(facecolor="#F6F6F6")
        for row, (method, values) in enumerate(gains.iterrows()):
            color = COLORS.get(method.split("_")[0], "#777777")
            ax.scatter(values, np.full(len(values), row), s=13, color="none", edgecolor=color, linewidth=0.9, zorder=3)
            ax.plot([values.mean()] * 2, [row - 0.36, row + 0.36], color=color, linewidth=2)
        ax.axvline(0, color=DARK_GRAY, linewidth=0.8)
        _style_rows(ax, [method.replace("_without_KD", " without L_KD") for method in gains.index])
        ax.set_title(f"CIFAR-100, 240 epochs,\n{gains.shape[1]} pairs of the same family", fontsize=8.5)
        explanations = {left: ("Published", "○ one pair of networks, | mean of the pairs")}
        explanations[right] = "Measured here", "● one seed, | mean, band: 95 % interval (3 seeds or more)"
        for half, (title, text) in explanations.items():
            half.suptitle(title, fontweight="bold", fontsize=11)
            half.supxlabel(f"gain over the student without a teacher (percentage points)\n{text}", fontsize=7.5)
        heights = [len(arms) + 1 for arms in groups]
        for ax, arms in zip(
            right.subplots(len(groups), 1, height_ratios=heights, squeeze=False)[:, 0], groups, strict=True
        ):
            for row, (label, seeds, supervised) in enumerate(arms):
                color, found = COLORS.get(label.split(",")[0], "#777777"), accuracy_difference(seeds, supervised)
                ax.plot([found.mean] * 2, [row - 0.36, row + 0.36], color=color, linewidth=2)
                if found.count > 2:  # the interval of two seeds is so wide that it would hide everything else
                    ax.plot([found.low, found.high], [row, row], color=color, linewidth=4, alpha=0.3)
                common = sorted(seeds.keys() & supervised.keys())
                values = [seeds[seed].accuracy - supervised[seed].accuracy for seed in common]
                ax.scatter(values, [row] * len(values), s=13, color=color, linewidth=0, zorder=3)
            ax.axvline(0, color=DARK_GRAY, linewidth=0.8)
            _style_rows(ax, [label.replace("strategy = ", "") for label, _, _ in arms])
            settings = next(iter(arms[0][1].values())).settings
            pair = f"{settings['teacher']['name'] or 'network'} → {settings['model']['name'] or 'network'}"
            data = settings["data"]["name"].rpartition(":")[2].rpartition("/")[2]  # the last part of a folder's path
            ax.set_title(f"{data},\n{settings['recipe']['epochs']} epochs, {pair}", fontsize=8.5)
    return figure


# kind of a published number → how a leaderboard draws it. Colours and shapes both tell them apart.
KIND_MARKERS: dict[str, dict[str, Any]] = {
    "copied": {"marker": "o", "s": 30, "facecolors": "none", "edgecolors": "#777777", "linewidths": 0.9},
    "reproduced": {"marker": "s", "s": 15, "color": MORE_COLORS[1], "linewidths": 0},
    "own": {"marker": "D", "s": 17, "color": COLORS["KD"], "linewidths": 0},
    "ours": {"marker": "*", "s": 60, "color": COLORS["PCKD"], "linewidths": 0},
}
NOT_COMPARABLE = ("views", "longer", "teacher", "network")  # marks of a method that get a †


def leaderboard(
    pair: Sequence[str], dataset: str = "cifar100", runs: str | Path | None = None, sort: str = "own"
) -> Drawing:
    """Draw all published accuracies for a pair of networks, one row per method.

    A line connects the lowest and the highest number of a method. The band shows the accuracies of the student trained
    alone, which differ from source to source. A † after a name means that numbers of this method are not comparable
    with the others: see `NOT_COMPARABLE` and the marks of `compare`.

    Parameters
    ----------
    pair : sequence of two str
        Names of teacher and student.
    dataset : str
    runs : path, optional
        Folder of runs. Those with the same data set, teacher and student are drawn, too.
    sort : str
        As in `compare`. The first row is the best one.

    Returns
    -------
    Drawing

    Raises
    ------
    TypeError
        If `pair` is not a pair of texts.
    ValueError
        If there is no published number for this pair and data set, or if `sort` is unknown.
    FileNotFoundError
        If there is no finished run in `runs`.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> figure = pckd.figures.leaderboard(("wrn_40_2", "ShuffleV1"))
    >>> figure.axes[0].get_title(loc="left")
    'wrn_40_2 → ShuffleV1 on cifar100'
    """
    numbers = find_numbers(pair, dataset, runs=runs)
    table = compare(numbers, sort)
    rows = {method: row for row, method in enumerate(table["method"])}
    note = (
        f"{len(rows)} methods, {len(numbers)} numbers. Own: published by the method's authors. Reproduced: measured by "
        "others. Copied: repeated in a later table. Numbers of different sources often have different teachers and "
        "students. †: more views, longer training, or another teacher or network."
    )
    with new_figure([], 4.4, 0.185 * len(rows) + 1.6, note) as figure:
        ax = figure.add_subplot()
        alone = numbers["student_alone_top1"].dropna()
        if len(alone):
            low, high = alone.min() - 0.02, alone.max() + 0.02  # so that a band of one number is visible
            ax.axvspan(low, high, color=LIGHT_GRAY, alpha=0.3, linewidth=0, label="student alone")
        for method, values in numbers.groupby("method")["top1"]:
            ax.plot([values.min(), values.max()], [rows[method]] * 2, color=LIGHT_GRAY, linewidth=2, zorder=2)
        for kind, marker in KIND_MARKERS.items():
            shown = numbers[numbers["source_kind"] == kind]
            if len(shown):
                ax.scatter(shown["top1"], shown["method"].map(rows), label=kind, zorder=3, **marker)
        marked = table["marks"].str.contains("|".join(NOT_COMPARABLE))
        _style_rows(ax, [f"{method} †" if dagger else method for method, dagger in zip(rows, marked, strict=True)])
        ax.tick_params(labelsize=7.5)
        ax.set_xlabel("top-1 accuracy (percent)")
        ax.set_title(f"{pair[0]} → {pair[1]} on {dataset}")
        handles, labels = ax.get_legend_handles_labels()
        figure.legend(
            handles[::-1],
            labels[::-1],
            loc="outside upper left",
            ncols=5,
            fontsize=7.5,
            handletextpad=0.2,
            columnspacing=1,
        )
    return figure


def _style_rows(ax: Axes, labels: list[str]) -> None:
    ax.margins(x=0.08)
    ax.set_yticks(range(len(labels)), labels, fontsize=7)
    ax.set(ylim=(len(labels) - 0.4, -0.6))
    ax.tick_params(axis="x", labelsize=7.5)
    ax.grid(axis="y", visible=False)
