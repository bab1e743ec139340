"""How well it went: learning curves, accuracies."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ..runs import Run
from .canvas import INK, canvas, checked, color_of, epoch_axis, label_of, legend, lines

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
NO_TERMS = {"epoch", "lr", "threshold", "mean_weight", "full_weight_share", "train_top1"}


def learning_curves(runs: Run | Sequence[Run]) -> Figure:
    """Accuracy and every loss term by epoch, a small panel each, one line a run."""
    runs = checked(runs, whole_epoch=True)
    terms = [name for run in runs for name in run.history if name not in NO_TERMS and not name.startswith("test_")]
    if set(terms) == {"total", "cross_entropy"}:
        terms = ["cross_entropy"]  # the total is the same
    panels = [*ACCURACIES, *sorted(dict.fromkeys(terms), key=[*TERMS, *terms].index)]
    best = min(100.5, 1.05 * max(run.history[name].max() for run in runs for name in ACCURACIES) + 1)
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    with canvas(runs, 2.4 * columns, 2.2 * rows + 0.7) as figure:
        figure.get_layout_engine().set(h_pad=0.08)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, name in zip(axes, panels, strict=False):
            for line, run in zip(lines(runs), runs, strict=True):
                if name in run.history:
                    dot = "o" if len(run.history) == 1 else None  # one epoch makes no line
                    ax.plot(run.history["epoch"], run.history[name], marker=dot, **line)
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


def accuracy(runs: Run | Sequence[Run]) -> Figure:
    """Final test accuracies as bars. Runs that differ in the seed alone share one: their mean ± standard deviation,
    and a point each."""
    runs = checked(runs, whole_epoch=True)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(label_of(run, runs), []).append(run)
    with canvas(runs, 7.5, 0.55 * len(groups) + 1.3) as figure:
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
