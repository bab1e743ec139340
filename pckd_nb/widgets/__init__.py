"""Widgets of the course: plain ipywidgets, so that they work by keyboard, and one function a picture.

    explorer                         its pictures as plain functions
    preview_explorer(run)            preview_state(run, epsilon, epoch, strategy)
    contrast_explorer()              contrast_state(temperature, beta, batch)
    center_explorer(runs)            center_state(runs, network, perplexity, category, sample)
    difficulty_browser(run)          difficulty_page(run, category, epoch, sort, page), sample_trajectory(run, sample)
    sweep_explorer(runs)             sweep_state(runs, factor, value)

A picture is a Figure that says in words what it shows in its attribute `alt`. An explorer shows one beside its controls
and draws it anew when one of them changes. Where no widgets run, the picture it began with stands in its place.
Categories are numbers, as in `run.labels`. A run without what a widget shows is a ValueError.
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
    "BATCH_COUNT", "DPI", "HARD_COLOR", "REFERENCE_DASHES", "MAX_MAP_POINTS", "NEAREST_CENTERS", "DATA_WITHOUT_DOWNLOAD", "IMAGES_PER_PAGE", "PERPLEXITIES",
    "PIXELATED_CSS", "ARROW_SCALE", "SMALL_FONT", "SORT_ORDERS", "TEMPERATURES", "FIGURE_WIDTH",
]  # fmt: skip
