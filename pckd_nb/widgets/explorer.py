"""What all explorers share: the class `Explorer`, and helpers for its figures and controls."""

import base64
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from io import BytesIO
from typing import Any, cast

import ipywidgets
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle
from PIL import Image

from ..figures.canvas import MORE_COLORS, Drawing, as_rgb, caption, check_runs, style, use_plain_log_labels
from ..runs import Run

DPI = 100
FIGURE_WIDTH = 8.2  # inches
SMALL_FONT = 6.5  # points, for text next to small images
HARD_COLOR = MORE_COLORS[1]  # of hard samples: vermilion, which is easy to distinguish from PCKD's green
NONE_OPTION = -1  # the option of a control that means None; ipywidgets uses None itself for "nothing is chosen"


class Explorer(ipywidgets.VBox):
    """Show controls, a figure, and a sentence that says what the figure shows.

    The sentence is also the alternative text of the figure.

    Parameters
    ----------
    controls : dict of str to widget
        The controls by name.
    draw : callable
        Called with the values of the controls as keyword arguments. It returns a Figure with the attribute `alt`.
    follow : callable, optional
        Called as `follow(name, controls)` after the control `name` has changed and before the figure is drawn. It may
        change other controls.
    between : sequence of widget
        Widgets between the controls and the figure.
    static : callable, optional
        Like `draw`. Returns the figure to show where widgets cannot run. By default, that is the figure of `draw`.

    Attributes
    ----------
    png : bytes
        The figure as a PNG file.
    alt : str
        The sentence.
    """

    def __init__(
        self,
        controls: Mapping[str, Any],
        draw: Callable[..., Drawing],
        follow: Callable[[str, Mapping[str, Any]], None] | None = None,
        between: Sequence[ipywidgets.Widget] = (),
        static: Callable[..., Drawing] | None = None,
    ):
        self.controls, self._draw, self._follow, self._static = dict(controls), draw, follow, static
        self.picture, self.sentence = ipywidgets.HTML(), ipywidgets.HTML()
        self._following = False
        box = ipywidgets.Box(list(controls.values()), layout=ipywidgets.Layout(flex_flow="row wrap"))
        super().__init__([box, *between, self.picture, self.sentence])
        for name, control in self.controls.items():
            control.observe(lambda change, name=name: self._changed(name), "value")
        self.redraw()

    @property
    def values(self) -> dict[str, Any]:
        """Return the values of the controls, by name.

        Returns
        -------
        dict
        """
        return control_values(self.controls)

    def redraw(self) -> None:
        """Draw the figure and its sentence again."""
        figure = self._draw(**self.values)
        self.png, self.alt = figure_png(figure), figure.alt
        self.picture.value = image_tag(self.png, self.alt, "max-width: 100%")
        self.sentence.value = f'<p role="status" style="line-height: 1.4; max-width: 60em">{escape(self.alt)}</p>'

    def _changed(self, name: str) -> None:
        if self._following:  # `follow` has set this control; the figure is drawn once, after all are set
            return
        if self._follow:
            self._following = True
            try:
                self._follow(name, self.controls)
            finally:
                self._following = False
        self.redraw()

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the widget, and its figure and sentence for pages that cannot show widgets, such as GitHub."""
        png, alt = self.png, self.alt
        if self._static:
            figure = self._static(**self.values)
            png, alt = figure_png(figure), figure.alt
        fallback = {"text/plain": alt, "image/png": base64.b64encode(png).decode()}
        return {**super()._repr_mimebundle_(**kwargs), **fallback}, {"image/png": {"alt": alt}}


def control_values(controls: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of controls by name, with None for `NONE_OPTION`.

    Parameters
    ----------
    controls : dict of str to widget

    Returns
    -------
    dict
    """
    return {name: None if control.value == NONE_OPTION else control.value for name, control in controls.items()}


@contextmanager
def new_widget_figure(runs: list[Run], height: float, note: str = "") -> Iterator[Drawing]:
    """Open an empty figure in the style of this package, and add its caption at the end of a `with` block.

    It avoids slow parts of matplotlib: pyplot, layout engines (they draw twice) and automatic positions of titles (they
    measure every tick).

    Parameters
    ----------
    runs : list of Run
        The runs that the caption describes. May be empty.
    height : float
        In inches.
    note : str
        Text before the caption.

    Yields
    ------
    Drawing
    """
    with style(), mpl.rc_context({"axes.titley": 1.0}):
        figure = Drawing(figsize=(FIGURE_WIDTH, height), dpi=DPI)
        FigureCanvasAgg(figure)
        yield figure
        use_plain_log_labels(figure)
        figure.runs = runs
        text = textwrap.fill(f"{note} {caption(runs, 2)}".strip() if runs else note, int(FIGURE_WIDTH * 17.5))
        figure.text(0.01, 0.008, text, va="bottom", fontsize=SMALL_FONT, color="#777777")


def figure_png(figure: Drawing) -> bytes:
    """Return a figure as a PNG file.

    Parameters
    ----------
    figure : Drawing
        Made by `new_widget_figure`.

    Returns
    -------
    bytes
    """
    with style():
        figure.canvas.draw()
    return png_bytes(np.asarray(cast(FigureCanvasAgg, figure.canvas).buffer_rgba())[:, :, :3])


def png_bytes(image: np.ndarray) -> bytes:
    """Return an image as a PNG file.

    Parameters
    ----------
    image : uint8 array of shape (height, width, 3)

    Returns
    -------
    bytes
    """
    with BytesIO() as file:
        Image.fromarray(np.ascontiguousarray(image)).save(file, format="png", compress_level=3)
        return file.getvalue()


def image_tag(png: bytes, alt: str, css: str) -> str:
    """Return an HTML `img` element that contains the image itself.

    Parameters
    ----------
    png : bytes
        A PNG file.
    alt : str
        Alternative text. It is escaped.
    css : str
        Value of the attribute `style`.

    Returns
    -------
    str
    """
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}" style="{css}">'


def control_options(description: str, tooltip: str, width: int = 280) -> dict[str, Any]:
    """Return the keyword arguments that every control gets: a label that is not cut, and a tooltip.

    Parameters
    ----------
    description : str
        The label.
    tooltip : str
    width : int
        In pixels.

    Returns
    -------
    dict
    """
    layout = {"width": f"{width}px", "margin": "2px 16px 2px 2px"}
    return {"description": description, "tooltip": tooltip, "style": {"description_width": "initial"}, "layout": layout}


def epoch_control(epochs: int) -> ipywidgets.Widget:
    """Return a control to choose an epoch. It starts at the last one.

    Parameters
    ----------
    epochs : int
        Number of epochs.

    Returns
    -------
    IntSlider, or Dropdown if there is only one epoch
    """
    options = control_options("epoch", f"1 to {epochs}")
    if epochs == 1:  # a slider needs at least two values
        return ipywidgets.Dropdown(options=[1], **options)
    return ipywidgets.IntSlider(value=epochs, min=1, max=epochs, continuous_update=False, **options)


def thumbnails(
    ax: Axes,
    images: Sequence[np.ndarray],
    columns: int,
    texts: Sequence[str],
    height: float,
    frames: Sequence[str] | None = None,
    dashes: Sequence[str] | None = None,
    rows: int | None = None,
) -> None:
    """Draw images in a grid, from left to right and from top to bottom, each with a text below.

    Parameters
    ----------
    ax : Axes
    images : sequence of uint8 array of shape (channels, height, width)
    columns : int
    texts : sequence of str
        One text per image.
    height : float
        Height of a row with its text, relative to the height of an image.
    frames : sequence of str, optional
        Colour of the frame of each image. By default, there are no frames.
    dashes : sequence of str, optional
        Line style of each frame.
    rows : int, optional
        By default, as many as the images need.
    """
    rows = rows or -(-len(images) // columns)
    high, wide = images[0].shape[1:]
    cell_width, cell_height = round(1.15 * wide), round(height * high)  # in pixels
    sheet = np.full(
        (rows * cell_height, columns * cell_width, 3), 255, np.uint8
    )  # drawing one large image is faster than drawing twenty
    spots = []
    for place, (image, text) in enumerate(zip(images, texts, strict=True)):
        row, column = divmod(place, columns)
        top, left = row * cell_height, column * cell_width
        sheet[top : top + high, left : left + wide] = as_rgb(image)
        spots.append((left / wide, top / high))
        ax.text(left / wide + 0.5, top / high + 1.06, text, ha="center", va="top", fontsize=7, linespacing=1.2)
    ax.imshow(sheet, extent=(0, columns * cell_width / wide, rows * cell_height / high, 0), interpolation="nearest")
    if frames is not None:
        squares = [Rectangle(spot, 1, 1) for spot in spots]
        ax.add_collection(
            PatchCollection(squares, facecolor="none", edgecolor=frames, linestyle=dashes, linewidth=2, zorder=3)
        )
    ax.set(xlim=(-0.05, columns * cell_width / wide - 0.1), ylim=(rows * height, -0.05), aspect="equal", anchor="NW")
    ax.axis("off")


def shorten(name: str, width: int) -> str:
    """Shorten a name to a number of characters.

    Parameters
    ----------
    name : str
    width : int

    Returns
    -------
    str
        The name, or its beginning and "…" if it is longer than `width`.
    """
    return name if len(name) <= width else f"{name[: width - 1].rstrip()}…"


def check_run(run: Run, *parts: str) -> Run:
    """Return the run, after checking that it has a complete epoch and the required parts.

    Parameters
    ----------
    run : Run
    *parts : {"samples", "gallery", "embedding", "geometry"}
        Recorded arrays that the run must have.

    Returns
    -------
    Run

    Raises
    ------
    ValueError
        If `run` is not a single `Run`, or if it has no complete epoch or not all of the parts.
    """
    if not isinstance(run, Run):
        raise ValueError(f"this widget shows one run, got {type(run).__name__}; load_run(folder) reads one")
    return check_runs(run, *parts, whole_epoch=True)[0]


def check_epoch(run: Run, epoch: int) -> None:
    """Raise ValueError unless `epoch` is an epoch of the run.

    Parameters
    ----------
    run : Run
    epoch : int
        Counted from 1.

    Raises
    ------
    ValueError
        If `epoch` is less than 1 or greater than the number of complete epochs.
    """
    if epoch not in range(1, len(run.history) + 1):
        raise ValueError(f"epoch must be 1 to {len(run.history)}, got {epoch!r:.60}")


def check_category(run: Run, category: int) -> None:
    """Raise ValueError unless `category` is the number of a category of the run.

    Parameters
    ----------
    run : Run
    category : int

    Raises
    ------
    ValueError
        If `category` is less than 0, or not less than the number of categories.
    """
    count = len(run.settings["data"]["classes"])
    if category not in range(count):
        raise ValueError(f"category must be a number from 0 to {count - 1}, got {category!r:.60}")
