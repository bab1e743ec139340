"""One function a figure: each takes runs, draws what their folders hold, and returns a matplotlib Figure.

No data set and no network is needed. All share one style, a colour for every method, and a caption that says what
was trained on what. A run without what a figure shows, or no run at all, is a ValueError.
"""

from .canvas import CLASS_COLORS, COLORS, MORE_COLORS, Drawing, caption, style
from .diagrams import feature_weight_matrix, framework, motivation
from .results import accuracy, budget, comparison_table, learning_curves, published_and_measured, sweep, sweeps
from .samples import (
    difficulty_against_truth,
    difficulty_galleries,
    difficulty_gallery,
    preview_weights,
    trajectories,
    weights_over_epochs,
)  # fmt: skip
from .space import center_geometry, center_map, feature_map, logit_correlation

__all__ = [
    "CLASS_COLORS", "COLORS", "Drawing", "MORE_COLORS",
    "accuracy", "caption", "difficulty_against_truth", "difficulty_gallery", "feature_map", "learning_curves",
    "preview_weights", "style",
    "center_geometry", "center_map", "difficulty_galleries", "logit_correlation", "trajectories", "weights_over_epochs",
    "feature_weight_matrix", "framework", "motivation",
    "budget", "comparison_table", "published_and_measured", "sweep", "sweeps",
]  # fmt: skip
