"""What all figures share: one style, a colour for every method, captions."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterMathtext, LogFormatterSciNotation, MaxNLocator

from ..runs import Run, having

# Okabe and Ito's colours, which the colour-blind can tell apart; methods of your own get the rest, in order.
COLORS = {"teacher": "#4D4D4D", "supervised": "#E69F00", "KD": "#0072B2", "PCKD": "#009E73"}
MORE_COLORS = ("#CC79A7", "#D55E00", "#56B4E9", "#882255")
INK, PALE = "#333333", "#B8B8B8"

# Okabe and Ito's again, then three of Paul Tol's: up to ten classes on one map.
CLASS_COLORS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#882255", "#999933", "#666666",
)  # fmt: skip


@contextmanager
def style() -> Iterator[None]:
    """matplotlib settings of every figure here, for the length of a `with` block. Names are written as they are, never
    read as formulas; so log axes of the pyplot figures made in it get labels that are no formulas."""
    plt.draw_if_interactive()  # loads the backend: loaded inside, a notebook's would stop to draw at the end
    before = plt.get_fignums()
    with mpl.rc_context(
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
    ):
        yield
        if made := [number for number in plt.get_fignums() if number not in before]:
            current = plt.gcf().number
            for number in made:
                plain_log_labels(plt.figure(number))
            plt.figure(current)


class PlainLog(LogFormatterSciNotation):
    """Labels a log axis where matplotlib would, without formulas: "0.1", "1,000", "2·10⁶"."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        if not super().__call__(x, pos):
            return ""
        number, _, power = f"{x:,g}".partition("e")
        if power:
            number = f"{number}·10".removeprefix("1·") + str(int(power)).translate(str.maketrans(*POWERS))
        return number.replace("-", "−")


POWERS = "-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"


class Drawing(Figure):
    """A matplotlib Figure that knows what it shows: `runs`, and a widget's in words, `alt`."""

    runs: list[Run]
    alt: str


def plain_log_labels(figure: Figure) -> None:
    """Gives its log axes, where they have matplotlib's own labels, those of `PlainLog`."""
    for ax in [inner for outer in figure.axes for inner in (outer, *outer.child_axes)]:
        for axis in (ax.xaxis, ax.yaxis):
            for kind in ("major", "minor"):
                usual = getattr(axis, f"get_{kind}_formatter")()
                if isinstance(usual, LogFormatterMathtext) and not isinstance(usual, PlainLog):
                    base = getattr(axis.get_transform(), "base", 10)
                    plain = PlainLog(base, usual.labelOnlyBase, usual.minor_thresholds)
                    getattr(axis, f"set_{kind}_formatter")(plain)


def caption(runs: Run | Sequence[Run], networks: int | None = None) -> str:
    """What was trained on what: data, sizes, epochs, seeds, hardware, and fingerprints of the trained networks.

    networks: how many fingerprints to name at most, where there is little room.
    """
    runs = checked(runs)

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
    prints = list(dict.fromkeys(run.fingerprint[:8] for run in runs))
    more = f" and {len(prints) - networks} more" if networks and len(prints) > networks else ""
    return (
        f"{data}; {of_all(epochs, ' or ')} epoch{'s' * (epochs != [1])}; seed{'s' * (len(seeds) > 1)} {of_all(seeds)}; "
        f"{of_all(about['hardware'] for about in abouts)}. "
        f"Networks {', '.join(prints[:networks])}{more}."
    )


@contextmanager
def canvas(runs: list[Run], width: float, height: float, note: str = "") -> Iterator[Drawing]:
    """An empty figure of width × height inches in our style; the caption comes under it at the end, after `note`.
    Only a figure with a note may be of no run."""
    with style():
        figure = cast(Drawing, plt.figure(figsize=(width, height), layout="constrained", FigureClass=Drawing))
        try:
            yield figure
            plain_log_labels(figure)
            text = textwrap.fill(f"{note} {caption(runs, 8)}".strip() if runs or not note else note, int(width * 17))
            figure.runs = runs  # what `collection` names in the file
            figure.supxlabel(text, x=0.01, ha="left", fontsize=6.5, color="#777777")
        finally:
            plt.close(figure)  # pyplot forgets it, so that a notebook shows it once: as the value of its cell


def checked(runs: Run | Sequence[Run], *parts: str, whole_epoch: bool = False) -> list[Run]:
    """One run or several, as a list. Raises ValueError where there is none, or one is no run, has no whole epoch where
    that is asked for, or lacks one of `parts`: see `runs.having`."""
    runs = [runs] if isinstance(runs, Run) else list(runs)
    if not runs:
        raise ValueError("there is no run to draw")
    for run in runs:
        if not isinstance(run, Run):
            raise ValueError(f"figures are drawn from runs, got {type(run).__name__}; load_run(folder) reads one")
        if whole_epoch and run.history.empty:
            raise ValueError(f"the run {run.title} has no whole epoch yet")
        having(run, *parts)
    return runs


def is_teacher(run: Run, runs: Sequence[Run]) -> bool:
    """Whether one of `runs` was taught by `run`."""
    taught_by = {other.settings["teacher"]["fingerprint"] for other in runs if other.settings["teacher"]}
    return bool(taught_by) and run.fingerprint in taught_by


def label_of(run: Run, runs: Sequence[Run]) -> str:
    """As in "PCKD resnet8, β_cc = 0": the variant, and the epochs where `runs` has the same of another length."""
    if is_teacher(run, runs):
        return f"teacher {run.settings['model']['name'] or 'network'}"

    def name(run: Run) -> str:
        return ", ".join(filter(None, (run.title, run.variant)))

    same = [other for other in runs if name(other) == name(run) and not is_teacher(other, runs)]
    epochs = {len(other.history) for other in same if other.data_fingerprint == run.data_fingerprint}
    return name(run) + (f", {len(run.history)} epochs" if len(epochs) > 1 else "")


def color_of(run: Run, runs: Sequence[Run]) -> str:
    if is_teacher(run, runs):
        return COLORS["teacher"]
    titles = dict.fromkeys(other.settings["method"]["title"] for other in runs)
    others = [title for title in titles if title not in COLORS]
    title = run.settings["method"]["title"]
    return COLORS.get(title) or MORE_COLORS[others.index(title) % len(MORE_COLORS)]


def lines(runs: list[Run]) -> list[dict[str, Any]]:
    """How to draw every run: colour by method, dashes by network where a method trained several."""
    dashes = ((), (4, 1.5), (1.5, 1.5), (6, 1.5, 1.5, 1.5))
    networks: dict[str, list[str]] = {}
    for run in runs:
        known = networks.setdefault(color_of(run, runs), [])
        if label_of(run, runs) not in known:
            known.append(label_of(run, runs))
    return [
        {"color": color, "label": label, "dashes": dashes[networks[color].index(label) % len(dashes)]}
        for color, label in ((color_of(run, runs), label_of(run, runs)) for run in runs)
    ]


def legend(figure: Figure, runs: list[Run]) -> None:
    """One entry a label above the panels; seeds of the same method share it."""
    entries = {line["label"]: Line2D([], [], **line) for line in lines(runs)}
    columns = int(72 * figure.get_figwidth() / (5 * max(map(len, entries)) + 45))  # points: a letter, a sample of line
    figure.legend(handles=entries.values(), loc="outside upper left", ncols=max(1, min(len(entries), columns, 5)))


def as_rgb(image: np.ndarray) -> np.ndarray:
    """(channels, height, width) as (height, width, 3); grey gets three equal channels."""
    return np.broadcast_to(image.transpose(1, 2, 0), (*image.shape[1:], 3))


def thumbnail(ax: Axes, image: np.ndarray, x: float, y: float) -> None:
    """An image (channels, height, width), uint8, as a square of 1 × 1 whose upper left corner is x, y."""
    ax.imshow(as_rgb(image), extent=(x, x + 1, y + 1, y), interpolation="nearest")


def epoch_axis(ax: Axes) -> None:
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
