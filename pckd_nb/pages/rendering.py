"""Fill the templates of pages with values, figures and thumbnails."""

import base64
import math
from importlib.metadata import version
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from pandas.api.types import is_numeric_dtype
from PIL import Image

from ..data import Split, Streamed
from ..runs import readable_name

DPI = 150  # of figures
MAX_SIDE = 160  # pixels; larger thumbnails are resized


class Sample(NamedTuple):
    """An image on a page, and the lines of text below it.

    Parameters
    ----------
    image : uint8 array of shape (C, H, W)
        Grey (C = 1) or RGB (C = 3).
    lines : tuple of str
        The first line is bold.
    """

    image: np.ndarray
    lines: tuple[str, ...]


def render(template: str, **values: Any) -> str:
    """Return a page.

    Parameters
    ----------
    template : str
        Name of a file in the folder templates.
    **values
        What the template shows. Text is escaped.

    Returns
    -------
    str
        HTML.
    """
    environment = Environment(
        loader=PackageLoader("pckd_nb.pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(png=png, thumbnail=thumbnail, cell=cell_text, is_number=is_numeric_dtype)
    return environment.get_template(template).render(version=version("pckd_nb"), **values)


def png(figure: Figure) -> str:
    """Return a figure as the address of an image that is part of the page."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return _data_address(file)


def thumbnail(image: np.ndarray) -> str:
    """Return an image as the address of an image that is part of the page.

    Parameters
    ----------
    image : uint8 array of shape (C, H, W)
        It is resized if a side has more than `MAX_SIDE` pixels. Of more than three channels, the first is shown.

    Returns
    -------
    str
    """
    pixels = image if len(image) == 3 else image[:1]
    picture = Image.fromarray(pixels.transpose(1, 2, 0).squeeze(2) if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    file = BytesIO()
    picture.save(file, "PNG")
    return _data_address(file)


def _data_address(file: BytesIO) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def cell_text(value: Any) -> str:
    """Return the text of a table cell: a float with one decimal, or three digits below 1. A dash for None and NaN."""
    if value is None:
        return "–"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return "–" if math.isnan(value) else f"{value:.3g}" if abs(value) < 1 else f"{value:.1f}"


def percent(share: float) -> str:
    """Return a share from 0 to 1 in percent. There is no line break before the sign."""
    return f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def read_images(split: Split | Streamed, rows: np.ndarray) -> list[np.ndarray]:
    """Return some images of a split.

    Parameters
    ----------
    split : Split or Streamed
    rows : int array of shape (n,)
        Positions of the images.

    Returns
    -------
    list of uint8 array of shape (C, H, W)
    """
    if not len(rows):
        return []
    batches = split.read(torch.tensor(rows, dtype=torch.int64).split(50))
    return [image for images in batches for image in images.cpu().numpy()]


def image_names(split: Split | Streamed, rows: np.ndarray) -> list[str]:
    """Return the names of some images of a split: file names, or positions if they have no names.

    Parameters
    ----------
    split : Split or Streamed
    rows : int array of shape (n,)

    Returns
    -------
    list of str
    """
    if split.ids is None:
        return [f"image {row}" for row in rows]
    return [str(readable_name(name)) for name in split.ids[rows].tolist()]
