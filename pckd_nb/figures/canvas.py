"""What all figures share: one style, a colour for every method, captions."""

import logging
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import LogFormatterMathtext, LogFormatterSciNotation, MaxNLocator
from matplotlib.transforms import Bbox

from ..html import counted
from ..runs import Run, require_parts

# Okabe and Ito's colours, which the colour-blind can tell apart; methods of your own get the rest, in order.
COLORS = {"teacher": "#4D4D4D", "supervised": "#E69F00", "KD": "#0072B2", "PCKD": "#009E73"}
MORE_COLORS = ("#CC79A7", "#D55E00", "#56B4E9", "#882255")
INK, PALE = "#333333", "#B8B8B8"

# Okabe and Ito's again, then three of Paul Tol's: up to ten classes on one map.
CLASS_COLORS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#882255", "#999933", "#666666",
)  # fmt: skip


# Fonts with Chinese, Japanese or Korean characters, by their family names: free ones, Windows', macOS'.
CJK_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK TC", "Noto Sans CJK KR", "Noto Sans JP", "Noto Sans SC",
    "Noto Sans TC", "Noto Sans KR", "Source Han Sans", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "IPAexGothic",
    "IPAGothic", "TakaoGothic", "VL Gothic", "NanumGothic", "UnDotum", "Droid Sans Fallback", "Microsoft YaHei",
    "SimHei", "Yu Gothic", "Meiryo", "MS Gothic", "Malgun Gothic", "PingFang SC", "Hiragino Sans", "Heiti TC",
    "Apple SD Gothic Neo", "AppleGothic", "Arial Unicode MS",
)  # fmt: skip


def fonts() -> list[str]:
    """The font of all figures, then those that draw what it lacks: the user's in rcParams, and installed CJK fonts."""
    settings, installed = cast("dict[str, Any]", mpl.rcParams), set(font_manager.get_font_names())
    kinds = {kind: settings[f"font.{kind}"] for kind in ("serif", "sans-serif", "cursive", "fantasy", "monospace")}
    users = [name for family in settings["font.family"] for name in kinds.get(family, [family])]
    return [name for name in dict.fromkeys(["DejaVu Sans", *users, *CJK_FONTS]) if name in installed]


@contextmanager
def style() -> Iterator[None]:
    """matplotlib settings of every figure here, for the length of a `with` block. Names are written as they are, never
    read as formulas; so log axes of the pyplot figures made in it get labels that are no formulas. The font is DejaVu
    Sans; `fonts` says which others draw the characters that it lacks."""
    plt.draw_if_interactive()  # loads the backend: loaded inside, a notebook's would stop to draw at the end
    before = plt.get_fignums()
    with mpl.rc_context(
        {
            "figure.dpi": 90,  # 864 pixels at most: what a notebook shows without scaling
            "savefig.dpi": 160,
            "figure.facecolor": "white",
            "axes.facecolor": "white",
            "font.family": fonts(),
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
    """A matplotlib Figure that knows what it shows: `runs`, and a widget's in words, `alt`.

    matplotlib's warnings about glyphs and bold fonts are left out: `canvas` gives one that says what to do.
    """

    runs: list[Run]
    alt: str

    def draw(self, renderer: RendererBase) -> None:
        with _no_font_warnings():
            super().draw(renderer)

    def get_tightbbox(self, *args: Any, **kwargs: Any) -> Bbox:
        with _no_font_warnings():
            return super().get_tightbbox(*args, **kwargs)


@contextmanager
def _no_font_warnings() -> Iterator[None]:
    logger = logging.getLogger("matplotlib.font_manager")  # "Failed to find font weight bold", for every size
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
            yield
    finally:
        logger.setLevel(before)


_without_glyphs: list[str] = []  # the words that this process has warned of


def _warn_of_missing_glyphs(figure: Figure, runs: list[Run]) -> None:
    """Say once per process which words no font of `fonts` can draw, and how to get one that can."""
    known = [font_manager.get_font(font_manager.findfont(name)) for name in fonts()]

    def lacks(text: str) -> bool:
        return any(
            not any(font.get_char_index(ord(character)) for font in known) for character in set("".join(text.split()))
        )

    written = " ".join(text.get_text() for text in figure.findobj(Text))
    if _without_glyphs or not lacks(written):
        return
    names = [name for run in runs for name in run.settings["data"]["classes"]]
    others = [word for word in written.split() if not any(word in name for name in names)]
    _without_glyphs.extend(filter(lacks, dict.fromkeys([*names, *others])))
    first = ", ".join(f"'{word}'" for word in _without_glyphs[:5])
    more = f" and {len(_without_glyphs) - 5} more" if len(_without_glyphs) > 5 else ""
    warnings.warn(
        f"no installed font can draw {first}{more}: install one that can (on Debian and Ubuntu: apt-get install "
        f"fonts-noto-cjk), and delete matplotlib's list of fonts in '{mpl.get_cachedir()}'",
        stacklevel=2,
    )


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
            _warn_of_missing_glyphs(figure, runs)
            text = textwrap.fill(f"{note} {caption(runs, 8)}".strip() if runs or not note else note, int(width * 17))
            figure.runs = runs  # what `collection` names in the file
            figure.supxlabel(text, x=0.01, ha="left", fontsize=6.5, color="#777777")
        finally:
            plt.close(figure)  # pyplot forgets it, so that a notebook shows it once: as the value of its cell


def checked(runs: Run | Sequence[Run], *parts: str, whole_epoch: bool = False) -> list[Run]:
    """One run or several, as a list. Raises ValueError where there is none, or one is no run, has no whole epoch where
    that is asked for, or lacks one of `parts`: see `runs.require_parts`."""
    runs = [runs] if isinstance(runs, Run) else list(runs)
    if not runs:
        raise ValueError("there is no run to draw")
    for run in runs:
        if not isinstance(run, Run):
            raise ValueError(f"figures are drawn from runs, got {type(run).__name__}; load_run(folder) reads one")
        if whole_epoch and run.history.empty:
            raise ValueError(f"the run {run.title} has no whole epoch yet")
        require_parts(run, *parts)
    return runs


def is_teacher(run: Run, runs: Sequence[Run]) -> bool:
    """Whether one of `runs` was taught by `run`.

    A lone student with the teacher's network, seed and recipe has the teacher's weights too. It is told from the
    teacher by the folder that a taught student names; without folders the first run with these weights is the teacher.
    """
    taught = [other for other in runs if (other.settings["teacher"] or {}).get("fingerprint") == run.fingerprint]
    students = [other for other in taught if other.settings["model"]["name"] == run.settings["model"]["name"]]
    if not students:
        return bool(taught)
    same = [other for other in runs if other.fingerprint == run.fingerprint]
    if folder := teacher_folder(students[0]):
        named = [other for other in same if other.path and other.path.resolve() == folder.resolve()]
        if named:
            return run is named[0]
        if (folder / "run.json").is_file():
            return False  # the teacher is not among `runs`
    return len(same) < 2 or run is same[0]


def teacher_folder(student: Run) -> Path | None:
    """Where a student says that its teacher's run is."""
    folder = student.settings["teacher"].get("run")
    return student.path / folder if student.path and folder else None


def label_of(run: Run, runs: Sequence[Run]) -> str:
    """As in "PCKD resnet8, β_cc = 0": the variant, and the epochs where `runs` has the same of another length."""
    if is_teacher(run, runs):
        return f"teacher {run.settings['model']['name'] or 'network'}"

    def name(run: Run) -> str:
        return ", ".join(filter(None, (run.title, run.variant)))

    same = [other for other in runs if name(other) == name(run) and not is_teacher(other, runs)]
    epochs = {len(other.history) for other in same if other.data_fingerprint == run.data_fingerprint}
    return name(run) + (f", {counted(len(run.history), 'epoch')}" if len(epochs) > 1 else "")


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
