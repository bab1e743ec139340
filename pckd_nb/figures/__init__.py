"""One function a figure: each takes runs, draws what their folders hold, and returns a matplotlib Figure.

No data set and no network is needed. All share one style, a colour for every method, and a caption that says what
was trained on what. A run without what a figure shows, or no run at all, is a ValueError.
"""

from .canvas import CLASS_COLORS, COLORS, MORE_COLORS, caption, style
from .results import accuracy, learning_curves
from .samples import difficulty_against_truth, difficulty_gallery, preview_weights
from .space import feature_map

__all__ = [
    "CLASS_COLORS", "COLORS", "MORE_COLORS", "accuracy", "caption", "difficulty_against_truth", "difficulty_gallery",
    "feature_map", "learning_curves", "preview_weights", "style",
]  # fmt: skip
