"""How well it went: learning curves, accuracies, sweeps, budgets, and our numbers beside the published ones."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..paths import user_path
from ..runs import SYMBOLS, Run
from .arms import (
    FACTORS,
    Seeds,
    Sweep,
    accuracies,
    all_of,
    budgets,
    comparison_table,
    difference,
    measured_gains,
    study_of,
    swept,
    training_flops,
)
from .canvas import (
    COLORS,
    INK,
    MORE_COLORS,
    PALE,
    Drawing,
    canvas,
    checked,
    color_of,
    epoch_axis,
    label_of,
    legend,
    lines,
)

__all__ = [
    "accuracy", "budget", "comparison_table", "learning_curves", "published_and_measured", "published_gains",
    "published_table", "sweep", "sweeps",
]  # fmt: skip

# Name in the history → title of its panel, or title and label.
# Other columns are terms of a method of your own: they are drawn as well.
ACCURACIES = {"test_top1": "test images", "train_top1": "training crops"}
TERMS = {
    "total": ("objective, terms times β", "L"),
    "cross_entropy": ("cross-entropy", "L_CE (nats)"),
    "distillation_kl": ("distillation of logits", "mean v·L_KD (T² · nats)"),
    "feature_alignment": ("feature alignment", "L_FA (2 − 2·cosine)"),
    "category_center_alignment": ("center alignment", "L_CA (mean square)"),
    "category_center_contrast": ("center contrast", "mean v·L_CC (τ/τ₀ · nats)"),
}
LINES = {"KD": (5, 2), "supervised": (1.5, 1.5)}  # dashes of what a sweep is compared with
LEAST_RANGE = 12  # points of accuracy on the axis of a sweep, so that noise is not magnified
NO_TERMS = {"epoch", "lr", "threshold", "mean_weight", "full_weight_share", "train_top1"}


def learning_curves(runs: Run | Sequence[Run]) -> Drawing:
    """Accuracy and every loss term by epoch, a small panel each, one line a run. Runs that differ in the seed alone
    share one: their mean, and a band of one standard deviation to each side."""
    runs = checked(runs, whole_epoch=True)
    terms = [name for run in runs for name in run.history if name not in NO_TERMS and not name.startswith("test_")]
    if set(terms) == {"total", "cross_entropy"}:
        terms = ["cross_entropy"]  # the total is the same
    panels = [*ACCURACIES, *sorted(dict.fromkeys(terms), key=[*TERMS, *terms].index)]
    best = min(100.5, 1.05 * max(run.history[name].max() for run in runs for name in ACCURACIES) + 1)
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    groups: dict[Hashable, tuple[dict[str, Any], list[Run]]] = {}
    for line, run in zip(lines(runs), runs, strict=True):
        groups.setdefault((line["label"], len(run.history), study_of(run)), (line, []))[1].append(run)
    with canvas(runs, 2.4 * columns, 2.2 * rows + 0.7) as figure:
        figure.set_layout_engine("constrained", h_pad=0.08)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, name in zip(axes, panels, strict=False):
            for line, group in groups.values():
                values = [run.history[name] for run in group if name in run.history]
                if values:
                    epochs, mean = np.arange(1, len(values[0]) + 1), np.mean(values, 0)
                    dot = "o" if len(epochs) == 1 else None  # one epoch makes no line
                    ax.plot(epochs, mean, marker=dot, **line)
                if len(values) > 1:
                    spread = np.std(values, 0, ddof=1)
                    ax.fill_between(epochs, mean - spread, mean + spread, color=line["color"], alpha=0.2, linewidth=0)
            if name in ACCURACIES:
                ax.set(title=f"accuracy on {ACCURACIES[name]}", ylabel="top-1 accuracy (%)", ylim=(0, best))
            else:
                title, label = TERMS.get(name, (name, "loss"))
                ax.set(title=title, ylabel=label)
            epoch_axis(ax)
        for ax in axes[len(panels) :]:
            ax.remove()
        legend(figure, runs)
    return figure


def accuracy(runs: Run | Sequence[Run]) -> Drawing:
    """Final test accuracies as bars. Runs that differ in the seed alone share one: their mean ± standard deviation,
    and a point each."""
    runs = checked(runs, whole_epoch=True)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(label_of(run, runs), []).append(run)
    several = any(len(group) > 1 for group in groups.values())
    note = "± and whiskers: standard deviation over seeds, a dot each." if several else ""
    with canvas(runs, 7.5, 0.55 * len(groups) + 1.3, note) as figure:
        ax = figure.subplots()
        for row, group in enumerate(groups.values()):
            values = np.array([run.accuracy for run in group])
            text, end = f"{values.mean():.1f}", values.max()
            ax.barh(row, values.mean(), height=0.6, color=color_of(group[0], runs), alpha=0.85)
            if len(values) > 1:
                spread = values.std(ddof=1)
                text, end = f"{text} ± {spread:.1f}  ({len(values)} seeds)", max(end, values.mean() + spread)
                ax.errorbar(values.mean(), row, xerr=spread, color=INK, capsize=3, linewidth=1.2)
                ax.scatter(values, np.full(len(values), row), s=16, color="white", edgecolor=INK, zorder=3)
            ax.annotate(text, (end, row), (6, 0), textcoords="offset points", va="center", fontweight="bold")
        ax.set_yticks(range(len(groups)), groups)
        ax.set(xlim=(0, 100), ylim=(len(groups) - 0.5, -0.5), xlabel="top-1 accuracy on test images (%)")
        ax.grid(axis="y", visible=False)
        ax.spines["left"].set_visible(False)
        ax.set_title("Accuracy after training")
    return figure


def sweep(runs: Run | Sequence[Run], factor: str) -> Drawing:
    """Accuracy against one factor of `FACTORS`, a panel of `sweeps`."""
    if factor not in FACTORS:
        raise ValueError(f"unknown factor '{factor}'; known: {', '.join(FACTORS)}")
    return _draw_sweep(swept(runs, [factor]), 3.6, 3.5)


def sweeps(runs: Run | Sequence[Run]) -> Drawing:
    """Accuracy against β_cc, β_fa, β_ca and ε, as far as `runs` have them: see `swept`. Mean ± standard deviation, a
    dot a seed; lines for KD and supervised training with the same seeds; the published default is marked. Each panel
    has a scale of its own, and the lines that it reaches."""
    return _draw_sweep(swept(runs), 7.1, 5.2)


def _draw_sweep(sweep: Sweep, width: float, height: float) -> Drawing:
    points, references = sweep.points, sweep.references
    runs = all_of(*(seeds for values in points.values() for seeds in values.values()))
    recipe, columns = runs[0].settings["recipe"]["name"], min(2, len(points))
    with canvas([*runs, *all_of(*references.values())], width, height) as figure:
        entries = [
            Line2D([], [], color=COLORS["PCKD"], marker="_", markersize=9, label="PCKD, mean ± sd, seeds"),
            Patch(color=PALE, alpha=0.35, label="published default"),
        ]
        axes = figure.subplots(-(-len(points) // columns), columns, squeeze=False).ravel()
        means = {title: accuracies(seeds).mean() for title, seeds in references.items()}
        for title, mean in means.items():
            line: dict[str, Any] = dict(color=COLORS[title], dashes=LINES[title], linewidth=1.3)
            entries.append(Line2D([], [], **line, label=f"{title}: {mean:.1f}"))
            for ax in axes[: len(points)]:
                ax.axhline(mean, **line)
        for ax, (factor, of_values) in zip(axes, points.items(), strict=False):
            letter, published = FACTORS[factor]
            values = sorted({*of_values, published})
            marks = {sweep.default[factor]: f"{recipe} recipe", published: "published"}  # often the same
            ax.axvline(values.index(published), color=PALE, linewidth=9, alpha=0.35, zorder=0)
            _points(ax, {values.index(value): of_values[value] for value in sorted(of_values)}, COLORS["PCKD"])
            ax.set_xticks(range(len(values)), [f"{value:g}\n{marks.get(value, '')}".rstrip() for value in values])
            ax.tick_params(axis="x", labelsize=7.5)
            ax.set(xlim=(-0.5, len(values) - 0.5), ylim=_range(of_values, means.get("KD")))
            ax.grid(axis="x", visible=False)
            as_published = " as over 240 epochs, ε^(epochs/240)" if factor == "epsilon" else ""
            ax.set_xlabel(f"{SYMBOLS[factor]}{as_published} (not to scale)", fontsize=8)
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


def _range(points: Mapping[float, Seeds], kd: float | None) -> tuple[float, float]:
    """The accuracies that a panel shows: its points with their bars, and KD's mean; never less than LEAST_RANGE."""
    ends = [mean + end for mean, sd in map(_mean_and_sd, points.values()) for end in (-sd, sd)]
    shown = [
        *ends,
        *(run.accuracy for seeds in points.values() for run in seeds.values()),
        *([] if kd is None else [kd]),
    ]
    low, high = min(shown), max(shown)
    margin = max(0.08 * (high - low), (LEAST_RANGE - (high - low)) / 2)
    return low - margin, high + margin


def _mean_and_sd(seeds: Seeds) -> tuple[float, float]:
    """Of one seed, (its accuracy, 0)."""
    values = accuracies(seeds)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _points(ax: Axes, points: Mapping[int, Seeds] | Mapping[float, Seeds], color: str) -> None:
    """Mean ± standard deviation at every x, joined by a line, and a dot a seed."""
    means, spread = zip(*map(_mean_and_sd, points.values()), strict=True)
    ax.errorbar(list(points), means, yerr=spread, color=color, marker="_", markersize=9, elinewidth=1.2, linewidth=1.5)
    for x, seeds in points.items():
        ax.scatter([x] * len(seeds), accuracies(seeds), s=12, color=color, alpha=0.5, linewidth=0, zorder=3)


def budget(runs: Run | Sequence[Run]) -> Drawing:
    """Accuracy against training budget, left by epochs, right by compute (see `training_flops`), for supervised, KD and
    PCKD without options, and for arms with options that were trained for several budgets: mean ± standard deviation of
    all seeds there are, a dot a seed. Raises ValueError where no method was trained for two budgets on the same data.
    """
    points = budgets(runs)
    note = "Mean ± standard deviation, a dot a seed" + _numbers_of_seeds(points) + "."
    shown = all_of(*(seeds for of_epochs in points.values() for seeds in of_epochs.values()))
    with canvas(shown, 7.1, 3.9, note) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        others = [name for name in points if name not in COLORS]
        colors = {name: COLORS.get(name) or MORE_COLORS[others.index(name) % len(MORE_COLORS)] for name in points}
        costs: list[float] = []
        for name, of_epochs in points.items():
            of_cost = {training_flops(next(iter(seeds.values()))) / 1e12: seeds for seeds in of_epochs.values()}
            _points(left, of_epochs, colors[name])
            _points(right, of_cost, colors[name])
            costs += of_cost
        epochs = sorted({epochs for of_epochs in points.values() for epochs in of_epochs})
        left.set(title="by epochs", xlabel="epochs", ylabel="top-1 accuracy (%)", xscale="log")
        left.set_xticks(epochs, epochs)
        right.set(title="by compute, the teacher's included", xscale="log")
        right.set_xlabel("10¹² operations of student and teacher")
        rounds = [step * 10.0**power for power in range(-6, 13) for step in (1, 2, 5)]
        ticks = [tick for tick in rounds if 0.9 * min(costs) <= tick <= 1.1 * max(costs)]
        right.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
        for ax in (left, right):
            ax.minorticks_off()
        entries = [Line2D([], [], color=color, marker="_", markersize=9, label=name) for name, color in colors.items()]
        figure.legend(handles=entries, loc="outside upper left", ncols=3)
    return figure


def _numbers_of_seeds(points: Mapping[str, Mapping[int, Seeds]]) -> str:
    """Where they are not the same everywhere: "; 5 seeds at 10 epochs, 3 at 20"."""
    numbers: dict[int, set[int]] = {}
    for of_epochs in points.values():
        for epochs, seeds in of_epochs.items():
            numbers.setdefault(epochs, set()).add(len(seeds))
    if len(set.union(*numbers.values())) == 1:
        return ""
    said = (f"{' or '.join(map(str, sorted(counts)))} at {epochs}" for epochs, counts in sorted(numbers.items()))
    return f"; seeds: {', '.join(said)} epochs"


PAPER = Path(__file__).parents[2] / "data" / "paper"


def published_table(folder: str | Path | None = None) -> pd.DataFrame:
    """Published results: dataset, teacher, student, method, metric, value (percent; NaN: not published), source.

    folder: with the files of the repository's data/paper, where it is looked for if left out; an installed package
    has none. Raises ValueError where a file is missing.
    """
    folder = PAPER if folder is None else user_path(folder, "folder")
    for name in ("cifar100_same_family.csv", "other_published.csv"):
        if not (folder / name).is_file():
            raise ValueError(f"no {name} in '{folder}': published numbers lie in data/paper of the repository")
    one_family = pd.read_csv(folder / "cifar100_same_family.csv").rename(columns={"top1_percent": "value"})
    one_family = one_family.assign(dataset="cifar100", metric="top1_percent", source="the paper, one family")
    others = pd.read_csv(folder / "other_published.csv")
    return pd.concat([one_family[list(others)], others], ignore_index=True)


def published_gains(published: pd.DataFrame) -> pd.DataFrame:
    """Top-1 minus that of the student trained alone: a row a method, in the order of the table, a column a pair that
    has such a student. NaN: not published."""
    top1 = published[published["metric"] == "top1_percent"]
    wide = top1.pivot_table("value", "method", ["dataset", "teacher", "student"], sort=False)
    return wide.sub(wide.loc["Student"]).drop(index=["Student", "Teacher"]).dropna(axis=1, how="all")


def published_and_measured(runs: Run | Sequence[Run], published: str | Path | None = None) -> Drawing:
    """What methods add to the student trained alone, in points of top-1: left as published, right as measured here.

    Data, networks and lengths of training differ, so neither accuracies nor the size of the gains compare; their
    order and sign may. Left a dot is a pair of networks, right a seed, paired with the lone student of that seed, with
    the 95 % interval of the mean from three seeds on. Sweeps are left out: see `sweeps`.
    """
    gains = published_gains(published_table(published))
    groups = measured_gains(checked(runs, whole_epoch=True))
    if not groups:
        raise ValueError("nothing to compare: that takes distilled runs, and supervised ones of the same student")
    drawn = all_of(*(seeds for arms in groups for _, seeds, alone in arms for seeds in (seeds, alone)))
    rows = sum(len(arms) + 4 for arms in groups)  # with what titles and ticks take
    height = max(len(gains) + 4, rows) * 0.17 + 1
    with canvas(drawn, 7.1, height) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(1, 1.05), squeeze=False)[0]
        ax = left.add_subplot(facecolor="#F6F6F6")
        for row, (method, values) in enumerate(gains.iterrows()):
            color = COLORS.get(method.split("_")[0], "#777777")
            ax.scatter(values, np.full(len(values), row), s=13, color="none", edgecolor=color, linewidth=0.9, zorder=3)
            ax.plot([values.mean()] * 2, [row - 0.36, row + 0.36], color=color, linewidth=2)
        _rows(ax, [method.replace("_without_KD", " without L_KD") for method in gains.index])
        ax.set_title(f"CIFAR-100, 240 epochs,\n{gains.shape[1]} pairs of one family", fontsize=8.5)
        signs = {left: ("Published", "○ a pair, | mean of the published pairs")}
        signs[right] = "Measured here", "● a seed, | mean, band: its 95 % interval (3 seeds or more)"
        for half, (title, text) in signs.items():
            half.suptitle(title, fontweight="bold", fontsize=11)
            half.supxlabel(f"top-1 minus that of the student alone (points)\n{text}", fontsize=7.5)
        heights = [len(arms) + 1 for arms in groups]
        for ax, arms in zip(
            right.subplots(len(groups), 1, height_ratios=heights, squeeze=False)[:, 0], groups, strict=True
        ):
            for row, (label, seeds, alone) in enumerate(arms):
                color, found = COLORS.get(label.split(",")[0], "#777777"), difference(seeds, alone)
                ax.plot([found.mean] * 2, [row - 0.36, row + 0.36], color=color, linewidth=2)
                if found.count > 2:  # of two seeds it would hide all else
                    ax.plot([found.low, found.high], [row, row], color=color, linewidth=4, alpha=0.3)
                values = [seeds[seed].accuracy - alone[seed].accuracy for seed in sorted(seeds.keys() & alone.keys())]
                ax.scatter(values, [row] * len(values), s=13, color=color, linewidth=0, zorder=3)
            _rows(ax, [label.replace("strategy = ", "") for label, _, _ in arms])
            about = next(iter(arms[0][1].values())).settings
            pair = f"{about['teacher']['name'] or 'network'} → {about['model']['name'] or 'network'}"
            data = about["data"]["name"].rpartition(":")[2].rpartition("/")[2]  # of a folder, its name
            ax.set_title(f"{data},\n{about['recipe']['epochs']} epochs, {pair}", fontsize=8.5)
    return figure


def _rows(ax: Axes, labels: list[str]) -> None:
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.margins(x=0.08)
    ax.set_yticks(range(len(labels)), labels, fontsize=7)
    ax.set(ylim=(len(labels) - 0.4, -0.6))
    ax.tick_params(axis="x", labelsize=7.5)
    ax.grid(axis="y", visible=False)
