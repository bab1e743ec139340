"""One function a figure: each takes runs, draws what their folders hold, and returns a matplotlib Figure.

No data set and no network is needed. All share one style, a colour for every method, and a caption that says what
was trained on what. A run without what a figure shows, or no run at all, is a ValueError.
"""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from . import analysis, preview
from .runs import Run

# Okabe and Ito's colours, which the colour-blind can tell apart; methods of your own get the rest, in order.
COLORS = {"teacher": "#4D4D4D", "supervised": "#E69F00", "KD": "#0072B2", "PCKD": "#009E73"}
MORE_COLORS = ("#CC79A7", "#D55E00", "#56B4E9", "#882255")
INK, PALE = "#333333", "#B8B8B8"

# Okabe and Ito's again, then three of Paul Tol's: up to ten classes on one map.
CLASS_COLORS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#882255", "#999933", "#666666",
)  # fmt: skip

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


def style() -> AbstractContextManager[None]:
    """matplotlib settings of every figure here, for the length of a `with` block."""
    return mpl.rc_context(
        {
            "figure.dpi": 90,  # 864 pixels at most: what a notebook shows without scaling
            "savefig.dpi": 160,
            "figure.facecolor": "white",
            "axes.facecolor": "white",
            "font.family": "DejaVu Sans",
            "font.size": 9,
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.titlepad": 8,
            "axes.edgecolor": PALE,
            "axes.labelcolor": INK,
            "axes.titlecolor": INK,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#E8E8E8",
            "grid.linewidth": 0.8,
            "xtick.major.size": 0,
            "ytick.major.size": 0,
            "lines.linewidth": 1.8,
            "legend.frameon": False,
            "text.parse_math": False,  # a class may be called "$1"
        }
    )


def caption(runs: Run | Sequence[Run]) -> str:
    """What was trained on what: data, sizes, epochs, seeds, hardware, and fingerprints of the trained networks."""
    runs = _checked(runs)

    def of_all(values: Iterable[object], joint: str = ", ") -> str:
        return joint.join(dict.fromkeys(map(str, values)))

    abouts = [run.settings for run in runs]
    data = of_all(
        f"{about['data']['name']}, {about['data']['train_images']:,} training and "
        f"{about['data']['test_images']:,} test images of {'×'.join(map(str, about['data']['image_size']))} pixels"
        for about in abouts
    )
    seeds = sorted({about["seed"] for about in abouts})
    epochs = sorted({len(run.history) for run in runs})
    return (
        f"{data}; {of_all(epochs, ' or ')} epoch{'s' * (epochs != [1])}; seed{'s' * (len(seeds) > 1)} {of_all(seeds)}; "
        f"{of_all(about['hardware'] for about in abouts)}. "
        f"Networks {of_all(run.fingerprint[:8] for run in runs)}."
    )


def learning_curves(runs: Run | Sequence[Run]) -> Figure:
    """Accuracy and every loss term by epoch, a small panel each, one line a run."""
    runs = _checked(runs, whole_epoch=True)
    terms = [name for run in runs for name in run.history if name not in NO_TERMS and not name.startswith("test_")]
    if set(terms) == {"total", "cross_entropy"}:
        terms = ["cross_entropy"]  # the total is the same
    panels = [*ACCURACIES, *sorted(dict.fromkeys(terms), key=[*TERMS, *terms].index)]
    best = min(100.5, 1.05 * max(run.history[name].max() for run in runs for name in ACCURACIES) + 1)
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    with _canvas(runs, 2.4 * columns, 2.2 * rows + 0.7) as figure:
        figure.get_layout_engine().set(h_pad=0.08)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, name in zip(axes, panels, strict=False):
            for line, run in zip(_lines(runs), runs, strict=True):
                if name in run.history:
                    dot = "o" if len(run.history) == 1 else None  # one epoch makes no line
                    ax.plot(run.history["epoch"], run.history[name], marker=dot, **line)
            if name in ACCURACIES:
                ax.set(title=f"accuracy on {ACCURACIES[name]}", ylabel="top-1 accuracy (%)", ylim=(0, best))
            else:
                title, label = TERMS.get(name, (name, "loss"))
                ax.set(title=title, ylabel=label)
            _epochs(ax)
        for ax in axes[len(panels) :]:
            ax.remove()
        _legend(figure, runs)
    return figure


def accuracy(runs: Run | Sequence[Run]) -> Figure:
    """Final test accuracies as bars. Runs that differ in the seed alone share one: their mean ± standard deviation,
    and a point each."""
    runs = _checked(runs, whole_epoch=True)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_label(run, runs), []).append(run)
    with _canvas(runs, 7.5, 0.55 * len(groups) + 1.3) as figure:
        ax = figure.subplots()
        for row, group in enumerate(groups.values()):
            values = np.array([run.accuracy for run in group])
            text, end = f"{values.mean():.1f}", values.max()
            ax.barh(row, values.mean(), height=0.6, color=_color(group[0], runs), alpha=0.85)
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


def difficulty_gallery(run: Run, rows: int = 4, columns: int = 10) -> Figure:
    """Training images from easy to hard, read like text, with their class and γ after the last epoch."""
    runs = _checked(run)
    if run.gallery is None:
        raise ValueError(f"the run {run.title} has no gallery: it has no whole epoch yet")
    gallery, classes = run.gallery, run.settings["data"]["classes"]
    shown = np.unique(np.linspace(0, len(gallery["images"]) - 1, rows * columns).round().astype(int))
    names = ["\n".join(textwrap.wrap(classes[c], 14)[:2]) for c in gallery["labels"]]
    height = 1.52 if any("\n" in names[i] for i in shown) else 1.4  # of a row, its text included; an image is 1
    lines = -(-len(shown) // columns)
    with _canvas(runs, columns * 0.96, lines * height * 0.89 + 0.6) as figure:
        ax = figure.subplots()
        for place, i in enumerate(shown):
            x, y = place % columns * 1.08, place // columns * height
            picture = gallery["images"][i].transpose(1, 2, 0)
            picture = picture.repeat(3, 2) if picture.shape[2] == 1 else picture
            ax.imshow(picture, extent=(x, x + 1, y + 1, y), interpolation="nearest")
            ax.text(x + 0.5, y + 1.05, f"γ = {gallery['difficulty'][i]:.2f}", ha="center", va="top", fontweight="bold",
                    fontsize=8)  # fmt: skip
            ax.text(x + 0.5, y + 1.2, names[i], ha="center", va="top", fontsize=6.8, linespacing=1.15)
        ax.set(xlim=(-0.02, columns * 1.08 - 0.06), ylim=(lines * height, -0.02), aspect="equal")
        ax.axis("off")
        epoch = len(run.history)
        ax.set_title(f"Training images from easy to hard, as {run.title} finds them in epoch {epoch} (γ = 1: average)")
    return figure


def preview_weights(run: Run) -> Figure:
    """The preview strategy at work: threshold and weights by epoch; γ and its weights in the first and last epoch."""
    runs = _checked(run, whole_epoch=True)
    name = run.settings["method"]["settings"].get("strategy", {}).get("value")
    if "threshold" not in run.history or name not in preview.STRATEGIES:
        raise ValueError(f"the run {run.title} weights no sample by a strategy of preview.py")
    color, history = _color(run, runs), run.history
    with _canvas(runs, 9.6, 4.4) as figure:
        grid = figure.add_gridspec(2, 3, width_ratios=(1.1, 1, 1))
        ax = figure.add_subplot(grid[0, 0])
        ax.plot(history["epoch"], history["threshold"], color=INK)
        ax.set(title="threshold ε_t", ylabel="γ")
        _epochs(ax)
        ax = figure.add_subplot(grid[1, 0])
        ax.plot(history["epoch"], history["mean_weight"], color=color, label="mean weight")
        ax.plot(history["epoch"], history["full_weight_share"], color=INK, dashes=(2, 2), label="share with v = 1")
        ax.set(title="preview weights v", ylabel="mean, share", ylim=(0, 1.03))
        ax.legend(loc="lower right", bbox_to_anchor=(1.02, 0))
        _epochs(ax)

        last = len(history)
        gammas = run.difficulty[[0, last - 1]].astype(np.float32)
        right = max(4, float(np.quantile(gammas, 0.995)), 1.2 * float(history["threshold"].max()))
        for column, epoch, gamma in zip((1, 2), (1, last), gammas, strict=True):
            row = epoch - 1
            limit = float(history["threshold"][row])
            above, below = (figure.add_subplot(grid[line, column]) for line in (0, 1))
            above.hist(gamma.clip(0, right), bins=40, range=(0, right), color=PALE)
            above.set(title=f"epoch {epoch}: difficulty γ", ylabel="training images")
            ce = run.cross_entropy[row].astype(np.float32)
            weights = preview.STRATEGIES[name](torch.from_numpy(ce), torch.from_numpy(gamma), limit).numpy()
            below.plot(gamma.clip(0, right), weights, ".", color=color, markersize=3, alpha=0.5, rasterized=True)
            below.set(title=f"epoch {epoch}: weights v", ylabel="v", ylim=(-0.03, 1.06))
            for ax in (above, below):
                ax.axvline(limit, color=INK, linewidth=1, linestyle=":")
                ax.set(xlim=(0, right), xlabel="γ")
            side, shift = ("right", -4) if limit > 0.6 * right else ("left", 4)
            place = dict(xycoords=("data", "axes fraction"), textcoords="offset points")
            above.annotate(f"ε_t = {limit:.2f}", (limit, 0.9), (shift, 0), ha=side, **place)
        figure.suptitle(
            f"{run.title}: hard samples are previewed with small weights", x=0.01, ha="left", fontweight="bold"
        )
    return figure


def feature_map(runs: Run | Sequence[Run], classes: Sequence[int] | None = None, seed: int = 0) -> Figure:
    """t-SNE of test features with the category centers (stars), a panel a run, and how pure neighbourhoods are.

    classes: at most ten numbers; left out, ten spread evenly over all. seed: of the maps.
    """
    runs = _checked(runs)
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
    with _canvas(runs, max(2.05 * len(runs) + 1.4, 5), 3.4) as figure:
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
            ax.set(title=_label(run, runs), xticks=[], yticks=[], box_aspect=1)
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


def difficulty_against_truth(run: Run, bins: int = 8) -> Figure:
    """γ after the last epoch against the known difficulty: median, middle half and middle nine tenths a bin."""
    runs = _checked(run)
    correlation = analysis.difficulty_vs_truth(run)
    frame = pd.DataFrame({"truth": run.ground_truth.astype(np.float32), "gamma": analysis.last_difficulty(run)})
    frame["bin"] = (frame["truth"] * bins).astype(int).clip(0, bins - 1)
    spread = frame.groupby("bin")["gamma"].quantile([0.05, 0.25, 0.5, 0.75, 0.95]).unstack()
    x = (spread.index + 0.5) / bins
    with _canvas(runs, 6.5, 4) as figure:
        ax = figure.subplots()
        color = _color(run, runs)
        ax.fill_between(x, spread[0.05], spread[0.95], color=color, alpha=0.15, linewidth=0, label="5 – 95 %")
        ax.fill_between(x, spread[0.25], spread[0.75], color=color, alpha=0.35, linewidth=0, label="25 – 75 %")
        ax.plot(x, spread[0.5], "o-", color=color, label="median")
        ax.axhline(1, color=INK, linewidth=1, linestyle=":")
        ax.set(xlim=(0, 1), xlabel="known difficulty of the image (0 … 1)", ylabel="γ (1 = average of the batch)")
        ax.set_ylim(bottom=0)
        ax.set_title(f"{run.title}: γ against the truth, Spearman ρ = {correlation:.2f}")
        figure.legend(loc="outside right upper")
    return figure


# ------------------------------------------------------------------------------------------ what figures share


@contextmanager
def _canvas(runs: list[Run], width: float, height: float) -> Iterator[Figure]:
    """An empty figure of width × height inches in our style; the caption comes under it at the end."""
    with style():
        figure = plt.figure(figsize=(width, height), layout="constrained")
        try:
            yield figure
            text = textwrap.fill(caption(runs), int(width * 17))
            figure.supxlabel(text, x=0.01, ha="left", fontsize=6.5, color="#777777")
        finally:
            plt.close(figure)  # pyplot forgets it, so that a notebook shows it once: as the value of its cell


def _checked(runs: Run | Sequence[Run], whole_epoch: bool = False) -> list[Run]:
    runs = [runs] if isinstance(runs, Run) else list(runs)
    if not runs:
        raise ValueError("there is no run to draw")
    for run in runs:
        if not isinstance(run, Run):
            raise ValueError(f"figures are drawn from runs, got {type(run).__name__}; load_run(folder) reads one")
        if whole_epoch and run.history.empty:
            raise ValueError(f"the run {run.title} has no whole epoch yet")
    return runs


def _is_teacher(run: Run, runs: Sequence[Run]) -> bool:
    """Whether one of `runs` was taught by `run`."""
    taught_by = {other.settings["teacher"]["fingerprint"] for other in runs if other.settings["teacher"]}
    return bool(taught_by) and run.fingerprint in taught_by


def _label(run: Run, runs: Sequence[Run]) -> str:
    return f"teacher {run.settings['model']['name'] or 'network'}" if _is_teacher(run, runs) else run.title


def _color(run: Run, runs: Sequence[Run]) -> str:
    if _is_teacher(run, runs):
        return COLORS["teacher"]
    titles = dict.fromkeys(other.settings["method"]["title"] for other in runs)
    others = [title for title in titles if title not in COLORS]
    title = run.settings["method"]["title"]
    return COLORS.get(title) or MORE_COLORS[others.index(title) % len(MORE_COLORS)]


def _lines(runs: list[Run]) -> list[dict[str, object]]:
    """How to draw every run: colour by method, dashes by network where a method trained several."""
    dashes = ((), (4, 1.5), (1.5, 1.5), (6, 1.5, 1.5, 1.5))
    networks: dict[str, list[str]] = {}
    for run in runs:
        known = networks.setdefault(_color(run, runs), [])
        if _label(run, runs) not in known:
            known.append(_label(run, runs))
    return [
        {"color": color, "label": label, "dashes": dashes[networks[color].index(label) % len(dashes)]}
        for color, label in ((_color(run, runs), _label(run, runs)) for run in runs)
    ]


def _legend(figure: Figure, runs: list[Run]) -> None:
    """One entry a label above the panels; seeds of the same method share it."""
    entries = {line["label"]: Line2D([], [], **line) for line in _lines(runs)}
    figure.legend(handles=entries.values(), loc="outside upper left", ncols=min(len(entries), 5))


def _epochs(ax: Axes) -> None:
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
