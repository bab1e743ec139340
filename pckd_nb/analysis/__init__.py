"""Compute what figures and tables show.

These are t-SNE maps, geometry of class centers and class means, difficulty of samples, how well measures
find wrong labels, statistics over seeds, predictions of networks and their agreement, and the compute of a training.

Examples
--------
>>> import pckd_nb as pckd
>>> print(pckd.analysis.summarise([70.1, 72.4, 69.0]))  # one accuracy per seed
70.5 ± 1.7 [66.2, 74.8]
"""

from ..deprecation import renamed
from ..validation import check_matrix
from .attribution import grad_cam
from .compute import teraflops, training_flops
from .difficulty import SAMPLE_KINDS, difficulty_vs_truth, kinds_of_samples, last_difficulty, rank_samples
from .embedding import aligned_maps, chance_purity, directions, embed, embed_centers, neighbourhood_purity, tsne_map
from .geometry import (
    center_agreement,
    center_angles,
    center_cka,
    center_rsa,
    center_similarity,
    class_gains,
    class_geometry,
    difference_of_pairs,
    geometry_table,
    logit_correlation,
)
from .noise import confident_learning, noise_detection, precision_at_k
from .predictions import OUTCOMES, Agreement, Fidelity, agreement, fidelity, predict_folder
from .reliability import Calibration, calibration
from .statistics import Summary, holm, mcnemar, paired_difference, summarise

__all__ = [
    "OUTCOMES", "SAMPLE_KINDS", "Agreement", "Calibration", "Fidelity", "Summary", "agreement", "aligned_maps",
    "calibration", "center_agreement", "center_angles", "center_cka", "center_rsa", "center_similarity",
    "chance_purity", "check_matrix", "class_gains", "class_geometry", "confident_learning", "difference_of_pairs",
    "difficulty_vs_truth", "directions", "embed", "embed_centers", "fidelity", "geometry_table", "grad_cam", "holm",
    "kinds_of_samples", "last_difficulty", "logit_correlation", "mcnemar", "neighbourhood_purity", "noise_detection",
    "paired_difference", "precision_at_k", "predict_folder", "rank_samples", "summarise", "teraflops",
    "training_flops", "tsne_map",
]  # fmt: skip

__getattr__ = renamed(__name__)
