"""Widgets of the course: explorers with controls, and plain functions that draw the same figures.

An explorer shows a figure next to its controls, and draws it again when a control changes. All controls are plain
ipywidgets, so they can be used with the keyboard. Where widgets cannot run, the first figure is shown.

- `preview_explorer` shows `preview_state`.
- `contrast_explorer` shows `contrast_state`.
- `center_explorer` shows `center_state`.
- `difficulty_browser` shows `difficulty_page` and `sample_trajectory`.
- `sweep_explorer` shows `sweep_state`.

The plain functions return a Figure. Its attribute `alt` says in words what it shows. Categories are numbers, as in
`run.labels`. A function raises ValueError if a run has not recorded what the widget shows. A run *with recorded
samples* has the cross-entropy and γ of every training sample in every epoch. Its gallery has at most 100 training
images. Its embedding has the features of test images and the category centers.

Examples
--------
>>> import pckd_nb as pckd
>>> figure = pckd.widgets.contrast_state(temperature=4.0, beta=0.05, batch=1)
>>> figure.alt
'Toy batch 1, τ = 4, β = 0.05: L_CC is ...'
"""

from .centers import DATA_WITHOUT_DOWNLOAD, MAX_MAP_POINTS, NEAREST_CENTERS, PERPLEXITIES, center_explorer, center_state
from .contrast import ARROW_SCALE, BATCH_COUNT, TEMPERATURES, contrast_batch, contrast_explorer, contrast_state
from .difficulty import (
    IMAGES_PER_PAGE,
    PIXELATED_CSS,
    SORT_ORDERS,
    difficulty_browser,
    difficulty_page,
    sample_trajectory,
)
from .explorer import DPI, FIGURE_WIDTH, HARD_COLOR, SMALL_FONT, Explorer
from .preview import preview_explorer, preview_state
from .sweep import REFERENCE_DASHES, sweep_explorer, sweep_state

__all__ = [
    "Explorer", "center_explorer", "center_state", "contrast_batch", "contrast_explorer", "contrast_state",
    "difficulty_browser", "difficulty_page", "preview_explorer", "preview_state", "sample_trajectory",
    "sweep_explorer", "sweep_state",
    "ARROW_SCALE", "BATCH_COUNT", "DATA_WITHOUT_DOWNLOAD", "DPI", "FIGURE_WIDTH", "HARD_COLOR", "IMAGES_PER_PAGE",
    "MAX_MAP_POINTS", "NEAREST_CENTERS", "PERPLEXITIES", "PIXELATED_CSS", "REFERENCE_DASHES", "SMALL_FONT",
    "SORT_ORDERS", "TEMPERATURES",
]  # fmt: skip
