"""What all explorers share: controls beside a picture that says in words what it shows, and its parts."""

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

from ..figures.canvas import MORE_COLORS, Drawing, as_rgb, caption, checked, plain_log_labels, style
from ..runs import Run

DPI = 100
WIDTH = 8.2  # inches of every picture
SMALL = 6.5  # points, of what stands beside small pictures
HARD = MORE_COLORS[1]  # vermilion, which no one takes for PCKD's green
NONE = -1  # what stands for None among a list's options: for ipywidgets None means that nothing is chosen


class Explorer(ipywidgets.VBox):
    """Controls, a picture, and the sentence that says what it shows, which is the picture's alternative text too.

    controls: name → widget; their values, with None for NONE, are the arguments of `draw`, which returns a Figure with
    `alt`.
    follow(name, controls): called after a control has changed and before anything is drawn, to set others. between:
    widgets above the picture. static(**values): the Figure where no widgets run, if another than `draw`'s.
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
        return values_of(self.controls)

    def redraw(self) -> None:
        figure = self._draw(**self.values)
        self.png, self.alt = png_of(figure), figure.alt
        self.picture.value = picture_tag(self.png, self.alt, "max-width: 100%")
        self.sentence.value = f'<p role="status" style="line-height: 1.4; max-width: 60em">{escape(self.alt)}</p>'

    def _changed(self, name: str) -> None:
        if self._following:  # it was set by `follow`, which draws once when all is set
            return
        if self._follow:
            self._following = True
            try:
                self._follow(name, self.controls)
            finally:
                self._following = False
        self.redraw()

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The widget, and for whoever can't show it (GitHub, nbconvert, the site) its picture and its sentence."""
        png, alt = self.png, self.alt
        if self._static:
            figure = self._static(**self.values)
            png, alt = png_of(figure), figure.alt
        still = {"text/plain": alt, "image/png": base64.b64encode(png).decode()}
        return {**super()._repr_mimebundle_(**kwargs), **still}, {"image/png": {"alt": alt}}


def values_of(controls: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if control.value == NONE else control.value for name, control in controls.items()}


@contextmanager
def drawing(runs: list[Run], height: float, note: str = "") -> Iterator[Drawing]:
    """An empty figure in our style, its caption under it. No pyplot, and nothing that takes long: a layout engine
    draws twice, titles that look for room measure every tick."""
    with style(), mpl.rc_context({"axes.titley": 1.0}):
        figure = Drawing(figsize=(WIDTH, height), dpi=DPI)
        FigureCanvasAgg(figure)
        yield figure
        plain_log_labels(figure)
        figure.runs = runs
        text = textwrap.fill(f"{note} {caption(runs, 2)}".strip() if runs else note, int(WIDTH * 17.5))
        figure.text(0.01, 0.008, text, va="bottom", fontsize=SMALL, color="#777777")


def png_of(figure: Drawing) -> bytes:
    with style():
        figure.canvas.draw()
    return encoded(np.asarray(cast(FigureCanvasAgg, figure.canvas).buffer_rgba())[:, :, :3])


def encoded(picture: np.ndarray) -> bytes:
    """A PNG of (height, width, 3), uint8."""
    with BytesIO() as file:
        Image.fromarray(np.ascontiguousarray(picture)).save(file, format="png", compress_level=3)
        return file.getvalue()


def picture_tag(png: bytes, alt: str, css: str) -> str:
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}" style="{css}">'


def labelled(description: str, tooltip: str, width: int = 280) -> dict[str, Any]:
    """What every control has: a label in full, and a tooltip."""
    layout = {"width": f"{width}px", "margin": "2px 16px 2px 2px"}
    return {"description": description, "tooltip": tooltip, "style": {"description_width": "initial"}, "layout": layout}


def epoch_control(epochs: int) -> ipywidgets.Widget:
    about = labelled("epoch", f"1 to {epochs}")
    if epochs == 1:  # a slider needs two places
        return ipywidgets.Dropdown(options=[1], **about)
    return ipywidgets.IntSlider(value=epochs, min=1, max=epochs, continuous_update=False, **about)


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
    """Images in rows, read like text, each with its text below; a row is about `height` widths of an image high."""
    rows = rows or -(-len(images) // columns)
    high, wide = images[0].shape[1:]
    step, drop = round(1.15 * wide), round(height * high)  # in pixels of the images
    sheet = np.full((rows * drop, columns * step, 3), 255, np.uint8)  # one picture is drawn sooner than twenty
    spots = []
    for place, (image, text) in enumerate(zip(images, texts, strict=True)):
        row, column = divmod(place, columns)
        top, left = row * drop, column * step
        sheet[top : top + high, left : left + wide] = as_rgb(image)
        spots.append((left / wide, top / high))
        ax.text(left / wide + 0.5, top / high + 1.06, text, ha="center", va="top", fontsize=7, linespacing=1.2)
    ax.imshow(sheet, extent=(0, columns * step / wide, rows * drop / high, 0), interpolation="nearest")
    if frames is not None:
        squares = [Rectangle(spot, 1, 1) for spot in spots]
        ax.add_collection(
            PatchCollection(squares, facecolor="none", edgecolor=frames, linestyle=dashes, linewidth=2, zorder=3)
        )
    ax.set(xlim=(-0.05, columns * step / wide - 0.1), ylim=(rows * height, -0.05), aspect="equal", anchor="NW")
    ax.axis("off")


def cut(name: str, width: int) -> str:
    return name if len(name) <= width else f"{name[: width - 1].rstrip()}…"


def one_run(run: Run, *parts: str) -> Run:
    """The run, if it is one and has a whole epoch and these parts (`runs.require_parts`). Raises ValueError if not."""
    if not isinstance(run, Run):
        raise ValueError(f"this widget shows one run, got {type(run).__name__}; load_run(folder) reads one")
    return checked(run, *parts, whole_epoch=True)[0]


def check_epoch(run: Run, epoch: int) -> None:
    if epoch not in range(1, len(run.history) + 1):
        raise ValueError(f"epoch must be 1 to {len(run.history)}, got {epoch}")


def check_category(run: Run, category: int) -> None:
    count = len(run.settings["data"]["classes"])
    if category not in range(count):
        raise ValueError(f"category must be a number from 0 to {count - 1}, got {category}")
