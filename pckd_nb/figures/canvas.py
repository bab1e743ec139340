"""What all figures share: the style, one colour per method, labels and captions."""

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
from ..runs import Run, describe_noise, require_parts

# Colours of Okabe and Ito, which colour-blind readers can distinguish. Other methods get MORE_COLORS, in order.
COLORS = {"teacher": "#4D4D4D", "supervised": "#E69F00", "KD": "#0072B2", "PCKD": "#009E73"}
MORE_COLORS = ("#CC79A7", "#D55E00", "#56B4E9", "#882255")
DARK_GRAY, LIGHT_GRAY = "#333333", "#B8B8B8"

# Up to ten classes on one map: seven colours of Okabe and Ito, then three of Paul Tol.
CLASS_COLORS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#882255", "#999933", "#666666",
)  # fmt: skip


# Families of fonts with Chinese, Japanese and Korean characters: free fonts, then those of Windows and macOS.
CJK_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK TC", "Noto Sans CJK KR", "Noto Sans JP", "Noto Sans SC",
    "Noto Sans TC", "Noto Sans KR", "Source Han Sans", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "IPAexGothic",
    "IPAGothic", "TakaoGothic", "VL Gothic", "NanumGothic", "UnDotum", "Droid Sans Fallback", "Microsoft YaHei",
    "SimHei", "Yu Gothic", "Meiryo", "MS Gothic", "Malgun Gothic", "PingFang SC", "Hiragino Sans", "Heiti TC",
    "Apple SD Gothic Neo", "AppleGothic", "Arial Unicode MS",
)  # fmt: skip


def font_families() -> list[str]:
    """Return the installed fonts for figures, in order of preference.

    The first one is DejaVu Sans. The others draw the characters that it does not have: the fonts of the user's
    `rcParams`, then `CJK_FONTS`.

    Returns
    -------
    list of str
    """
    settings, installed = cast("dict[str, Any]", mpl.rcParams), set(font_manager.get_font_names())
    kinds = {kind: settings[f"font.{kind}"] for kind in ("serif", "sans-serif", "cursive", "fantasy", "monospace")}
    users = [name for family in settings["font.family"] for name in kinds.get(family, [family])]
    return [name for name in dict.fromkeys(["DejaVu Sans", *users, *CJK_FONTS]) if name in installed]


@contextmanager
def style() -> Iterator[None]:
    """Use the matplotlib settings of this package inside a `with` block.

    Text is never read as a formula, because the name of a class may contain "$". Matplotlib labels log axes with
    formulas. At the end of the block, these labels are replaced in all pyplot figures that were made in it. The font is
    DejaVu Sans. Other installed fonts draw the characters that it does not have.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import pckd_nb as pckd
    >>> with pckd.figures.style():
    ...     figure, ax = plt.subplots()
    ...     lines = ax.plot([1, 2, 3], color=pckd.figures.COLORS["PCKD"])
    >>> plt.close(figure)
    """
    # Load the backend now. If a notebook's backend is loaded inside the block, the cell does not show its figures.
    plt.draw_if_interactive()
    before = plt.get_fignums()
    with mpl.rc_context(
        {
            "figure.dpi": 90,  # at most 864 pixels wide, which a notebook shows without scaling
            "savefig.dpi": 160,
            "figure.facecolor": "white",
            "axes.facecolor": "white",
            "font.family": font_families(),
            "font.size": 9,
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.titlepad": 8,
            "axes.edgecolor": LIGHT_GRAY,
            "axes.labelcolor": DARK_GRAY,
            "axes.titlecolor": DARK_GRAY,
            "text.color": DARK_GRAY,
            "xtick.color": DARK_GRAY,
            "ytick.color": DARK_GRAY,
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
                use_plain_log_labels(plt.figure(number))
            plt.figure(current)


class PlainLogFormatter(LogFormatterSciNotation):
    """Label a log axis at the same places as matplotlib, but without formulas: "0.1", "1,000", "2·10⁶"."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the label at `x`, or an empty text."""
        if not super().__call__(x, pos):
            return ""
        number, _, power = f"{x:,g}".partition("e")
        if power:
            number = f"{number}·10".removeprefix("1·") + str(int(power)).translate(str.maketrans(*SUPERSCRIPTS))
        return number.replace("-", "−")


SUPERSCRIPTS = "-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"


class Drawing(Figure):
    """A matplotlib Figure that remembers which runs it shows.

    It does not pass on matplotlib's warnings about missing glyphs and bold fonts. Instead, the package warns once which
    words cannot be drawn, and says which fonts to install.

    Attributes
    ----------
    runs : list of Run
        The runs that the figure shows.
    alt : str
        Alternative text: what the figure shows, in words. Only figures of `widgets` have it.
    """

    runs: list[Run]
    alt: str

    def draw(self, renderer: RendererBase) -> None:
        """Draw the figure, see `matplotlib.figure.Figure.draw`."""
        with _no_font_warnings():
            super().draw(renderer)

    def get_tightbbox(self, *args: Any, **kwargs: Any) -> Bbox:
        """Return the bounding box of the contents, see `matplotlib.figure.Figure.get_tightbbox`."""
        with _no_font_warnings():
            return super().get_tightbbox(*args, **kwargs)


@contextmanager
def _no_font_warnings() -> Iterator[None]:
    logger = logging.getLogger(
        "matplotlib.font_manager"
    )  # it says "Failed to find font weight bold" for every font size
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
            yield
    finally:
        logger.setLevel(before)


_words_without_glyphs: list[str] = []  # words that this process has warned about


def _warn_of_missing_glyphs(figure: Figure, runs: list[Run]) -> None:
    """Warn once per process about words that no installed font can draw, and say which fonts to install."""
    installed = [font_manager.get_font(font_manager.findfont(name)) for name in font_families()]

    def lacks(text: str) -> bool:
        return any(
            not any(font.get_char_index(ord(character)) for font in installed)
            for character in set("".join(text.split()))
        )

    written = " ".join(text.get_text() for text in figure.findobj(Text))
    if _words_without_glyphs or not lacks(written):
        return
    names = [name for run in runs for name in run.settings["data"]["classes"]]
    others = [word for word in written.split() if not any(word in name for name in names)]
    _words_without_glyphs.extend(filter(lacks, dict.fromkeys([*names, *others])))
    first = ", ".join(f"'{word}'" for word in _words_without_glyphs[:5])
    more = f" and {len(_words_without_glyphs) - 5} more" if len(_words_without_glyphs) > 5 else ""
    warnings.warn(
        f"no installed font can draw {first}{more}: install one that can (on Debian and Ubuntu: apt-get install "
        f"fonts-noto-cjk), and delete matplotlib's list of fonts in '{mpl.get_cachedir()}'",
        stacklevel=2,
    )


def use_plain_log_labels(figure: Figure) -> None:
    """Replace matplotlib's default labels of log axes by those of `PlainLogFormatter`.

    Parameters
    ----------
    figure : Figure
    """
    for ax in [inner for outer in figure.axes for inner in (outer, *outer.child_axes)]:
        for axis in (ax.xaxis, ax.yaxis):
            for kind in ("major", "minor"):
                current = getattr(axis, f"get_{kind}_formatter")()
                if isinstance(current, LogFormatterMathtext) and not isinstance(current, PlainLogFormatter):
                    base = getattr(axis.get_transform(), "base", 10)
                    plain = PlainLogFormatter(base, current.labelOnlyBase, current.minor_thresholds)
                    getattr(axis, f"set_{kind}_formatter")(plain)


def caption(runs: Run | Sequence[Run], networks: int | None = None) -> str:
    """Return a text that says how the networks of a figure were trained.

    It names the data sets and their sizes, epochs, seeds, hardware, and the fingerprints (checksums) of the networks.

    Parameters
    ----------
    runs : Run or sequence of Run
    networks : int, optional
        Largest number of fingerprints to list. By default, all are listed.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If there is no run.
    """
    runs = check_runs(runs)

    def distinct(values: Iterable[object], separator: str = ", ") -> str:
        return separator.join(dict.fromkeys(map(str, values)))

    settings = [run.settings for run in runs]
    sizes = ((info, "×".join(map(str, info["data"]["image_size"]))) for info in settings)
    data = distinct(
        f"{info['data']['name']}, {info['data']['train_images']:,} training and {info['data']['test_images']:,} test "
        f"images of {size} pixels{describe_noise(info)}"
        for info, size in sizes
    )
    seeds = sorted({info["seed"] for info in settings})
    epochs = sorted({len(run.history) for run in runs})
    fingerprints = list(dict.fromkeys(run.fingerprint[:8] for run in runs))
    more = f" and {len(fingerprints) - networks} more" if networks and len(fingerprints) > networks else ""
    return (
        f"{data}; {distinct(epochs, ' or ')} epoch{'s' * (epochs != [1])}; "
        f"seed{'s' * (len(seeds) > 1)} {distinct(seeds)}; {distinct(info['hardware'] for info in settings)}. "
        f"Networks {', '.join(fingerprints[:networks])}{more}."
    )


@contextmanager
def new_figure(runs: list[Run], width: float, height: float, note: str = "") -> Iterator[Drawing]:
    """Open an empty figure in the style of this package, and add its caption at the end of a `with` block.

    Parameters
    ----------
    runs : list of Run
        The runs that the caption describes. May be empty if there is a `note`.
    width, height : float
        Size in inches.
    note : str
        Text before the caption.

    Yields
    ------
    Drawing
    """
    with style():
        figure = cast(Drawing, plt.figure(figsize=(width, height), layout="constrained", FigureClass=Drawing))
        try:
            yield figure
            use_plain_log_labels(figure)
            _warn_of_missing_glyphs(figure, runs)
            text = textwrap.fill(f"{note} {caption(runs, 8)}".strip() if runs or not note else note, int(width * 17))
            figure.runs = runs  # `collection` stores their fingerprints in the file
            figure.supxlabel(text, x=0.01, ha="left", fontsize=6.5, color="#777777")
        finally:
            plt.close(figure)  # otherwise a notebook shows it twice: it is also the value of the cell


def check_runs(runs: Run | Sequence[Run], *parts: str, whole_epoch: bool = False) -> list[Run]:
    """Return one run or several runs as a list, after checking them.

    Parameters
    ----------
    runs : Run or sequence of Run
    *parts : {"samples", "gallery", "embedding", "geometry"}
        Recorded arrays that every run must have. "samples" means cross-entropy and γ of every training sample.
    whole_epoch : bool
        Whether every run must have a complete epoch.

    Returns
    -------
    list of Run

    Raises
    ------
    ValueError
        If there is no run, if an element is not a `Run`, if a run was trained without test images, or if a run does not
        have the required parts or a complete epoch.
    """
    runs = list(runs) if isinstance(runs, Iterable) else [runs]  # what is not a run is refused below
    if not runs:
        raise ValueError("there is no run to draw; pass one run or more")
    for run in runs:
        if not isinstance(run, Run):
            raise ValueError(f"figures are drawn from runs, got {type(run).__name__}; load_run(folder) reads one")
        if run.scored_split != "test":
            raise ValueError(f"the run {run.title} was trained without test images, for a search: draw other runs")
        if whole_epoch and run.history.empty:
            raise ValueError(f"the run {run.title} has no complete epoch yet; train it for one epoch or more")
        require_parts(run, *parts)
    return runs


def choose_classes(classes: Sequence[int] | None, count: int) -> list[int]:
    """Return the classes that a figure shows, one colour each.

    Parameters
    ----------
    classes : sequence of int, optional
        1 to 10 classes. None means 10 classes that are evenly spaced.
    count : int
        Number of classes of the data.

    Returns
    -------
    list of int

    Raises
    ------
    ValueError
        If there is no class, if there are more than 10, or if the data does not have one of them.
    """
    if classes is None:
        return np.unique(np.linspace(0, count - 1, min(count, len(CLASS_COLORS))).round().astype(int)).tolist()
    if not 1 <= len(classes) <= len(CLASS_COLORS) or not all(0 <= c < count for c in classes):
        raise ValueError(f"classes must be 1 to {len(CLASS_COLORS)} numbers below {count}, got {list(classes)!r:.60}")
    return list(classes)


def is_teacher(run: Run, runs: Sequence[Run]) -> bool:
    """Return whether `run` is the teacher of one of `runs`.

    A student that was trained without a teacher may have the same weights as the teacher, if it has the same network,
    seed and recipe. Then the folder decides: a distilled student records the folder of its teacher. Without folders,
    the first run with these weights is the teacher.

    Parameters
    ----------
    run : Run
    runs : sequence of Run

    Returns
    -------
    bool
    """
    students = [other for other in runs if (other.settings["teacher"] or {}).get("fingerprint") == run.fingerprint]
    same_network = [other for other in students if other.settings["model"]["name"] == run.settings["model"]["name"]]
    if not same_network:
        return bool(students)
    same_weights = [other for other in runs if other.fingerprint == run.fingerprint]
    if folder := teacher_folder(same_network[0]):
        in_folder = [other for other in same_weights if other.path and other.path.resolve() == folder.resolve()]
        if in_folder:
            return run is in_folder[0]
        if (folder / "run.json").is_file():
            return False  # the teacher is not among `runs`
    return len(same_weights) < 2 or run is same_weights[0]


def teacher_folder(student: Run) -> Path | None:
    """Return the folder of the teacher's run, as the student recorded it.

    Parameters
    ----------
    student : Run

    Returns
    -------
    Path or None
        None if the student was not loaded from a folder, or did not record one.
    """
    folder = student.settings["teacher"].get("run")
    return student.path / folder if student.path and folder else None


def run_label(run: Run, runs: Sequence[Run]) -> str:
    """Return the label of a run in legends, such as "PCKD resnet8, β_cc = 0".

    Parameters
    ----------
    run : Run
    runs : sequence of Run
        All runs of the figure. If runs differ only in their number of epochs, the label includes this number.

    Returns
    -------
    str
    """
    if is_teacher(run, runs):
        return f"teacher {run.settings['model']['name'] or 'network'}"

    def name(run: Run) -> str:
        return ", ".join(filter(None, (run.title, run.variant)))

    same = [other for other in runs if name(other) == name(run) and not is_teacher(other, runs)]
    epochs = {len(other.history) for other in same if other.data_fingerprint == run.data_fingerprint}
    return name(run) + (f", {counted(len(run.history), 'epoch')}" if len(epochs) > 1 else "")


def run_color(run: Run, runs: Sequence[Run]) -> str:
    """Return the colour of a run's method.

    Parameters
    ----------
    run : Run
    runs : sequence of Run
        All runs of the figure.

    Returns
    -------
    str
        Such as "#009E73".
    """
    if is_teacher(run, runs):
        return COLORS["teacher"]
    titles = dict.fromkeys(other.settings["method"]["title"] for other in runs)
    others = [title for title in titles if title not in COLORS]
    title = run.settings["method"]["title"]
    return COLORS.get(title) or MORE_COLORS[others.index(title) % len(MORE_COLORS)]


def line_styles(runs: list[Run]) -> list[dict[str, Any]]:
    """Return the line style of each run: one colour per method, and different dashes for its different labels.

    Parameters
    ----------
    runs : list of Run

    Returns
    -------
    list of dict
        Keyword arguments of `Axes.plot`: color, label and dashes.
    """
    dashes = ((), (4, 1.5), (1.5, 1.5), (6, 1.5, 1.5, 1.5))
    labels_by_color: dict[str, list[str]] = {}
    for run in runs:
        labels = labels_by_color.setdefault(run_color(run, runs), [])
        if run_label(run, runs) not in labels:
            labels.append(run_label(run, runs))
    return [
        {"color": color, "label": label, "dashes": dashes[labels_by_color[color].index(label) % len(dashes)]}
        for color, label in ((run_color(run, runs), run_label(run, runs)) for run in runs)
    ]


def add_legend(figure: Figure, runs: list[Run]) -> None:
    """Add a legend above the panels, with one entry per label.

    Parameters
    ----------
    figure : Figure
    runs : list of Run
        Seeds of the same method share an entry.
    """
    entries = {line["label"]: Line2D([], [], **line) for line in line_styles(runs)}
    entry_width = 5 * max(map(len, entries)) + 45  # in points, estimated
    columns = int(72 * figure.get_figwidth() / entry_width)
    figure.legend(handles=entries.values(), loc="outside upper left", ncols=max(1, min(len(entries), columns, 5)))


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Return an image with the channels last. A grey image gets three equal channels.

    Of an image that has neither one nor three channels, the first channel is shown.

    Parameters
    ----------
    image : array of shape (channels, height, width)

    Returns
    -------
    array of shape (height, width, 3)
    """
    image = image if len(image) == 3 else image[:1]
    return np.broadcast_to(image.transpose(1, 2, 0), (*image.shape[1:], 3))


def draw_thumbnail(ax: Axes, image: np.ndarray, x: float, y: float) -> None:
    """Draw an image as a square of size 1.

    Parameters
    ----------
    ax : Axes
    image : uint8 array of shape (channels, height, width)
    x, y : float
        The upper left corner.
    """
    ax.imshow(as_rgb(image), extent=(x, x + 1, y + 1, y), interpolation="nearest")


def class_lines(run: Run, sample: int, label: int, width: int, count: int = 2) -> list[str]:
    """Return the class of a training image in lines of text. If its label is known to be wrong, add the true class.

    Parameters
    ----------
    run : Run
    sample : int
        Position in the training set.
    label : int
        The label of the image.
    width : int
        Maximum number of characters in a line, unless a word is longer. Two more for the true class.
    count : int
        Maximum number of lines of each class.

    Returns
    -------
    list of str
    """
    lines = textwrap.wrap(run.settings["data"]["classes"][label], width)[:count]
    true_class = run.true_class(sample)
    return lines if true_class is None else [*lines, *textwrap.wrap(f"true: {true_class}", width + 2)[:count]]


def label_epoch_axis(ax: Axes) -> None:
    """Label the x axis "epoch", with ticks at whole numbers.

    Parameters
    ----------
    ax : Axes
    """
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
