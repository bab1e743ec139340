"""Figures of runs: each function takes runs and returns a matplotlib Figure.

A function reads only what its runs have recorded. It needs no data set and no network. All figures have the same style,
one colour per method, and a caption that says how the networks were trained. A function raises ValueError if there is
no run, or if a run has not recorded what the figure shows.

Examples
--------
>>> import pckd_nb as pckd
>>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
>>> run = pckd.fit(pckd.create_model("resnet8", data, seed=0), data, epochs=1, progress=False)
>>> figure = pckd.figures.learning_curves(run)
>>> figure.savefig("learning_curves.png")
"""

from .attribution import grad_cam
from .canvas import CLASS_COLORS, COLORS, MORE_COLORS, Drawing, caption, style
from .diagrams import feature_weight_matrix, framework, motivation
from .geometry import center_trajectories, collapse_over_epochs
from .noise import noise_curves, precision_at_k
from .predictions import confusion, reliability
from .results import (
    accuracy,
    accuracy_against_compute,
    budget,
    comparison_table,
    leaderboard,
    learning_curves,
    published_and_measured,
    sweep,
    sweeps,
)  # fmt: skip
from .samples import (
    data_map,
    difficulty_against_truth,
    difficulty_galleries,
    difficulty_gallery,
    preview_weights,
    trajectories,
    weights_over_epochs,
)  # fmt: skip
from .space import aligned_feature_maps, center_geometry, center_map, feature_map, logit_correlation
from .trials import chosen_settings, search

__all__ = [
    "CLASS_COLORS", "COLORS", "Drawing", "MORE_COLORS",
    "accuracy", "caption", "difficulty_against_truth", "difficulty_gallery", "feature_map", "learning_curves",
    "preview_weights", "style",
    "aligned_feature_maps", "center_geometry", "center_map", "center_trajectories", "collapse_over_epochs", "data_map",
    "difficulty_galleries", "logit_correlation", "trajectories", "weights_over_epochs",
    "feature_weight_matrix", "framework", "motivation",
    "accuracy_against_compute", "budget", "comparison_table", "leaderboard", "published_and_measured",
    "chosen_settings", "confusion", "grad_cam", "noise_curves", "precision_at_k", "reliability", "search",
    "sweep", "sweeps",
]  # fmt: skip
