"""Compute what figures and tables show.

These are t-SNE maps, geometry of class centers, difficulty of samples, statistics over seeds, predictions of networks
and their agreement, and the compute of a training.

Examples
--------
>>> import pckd_nb as pckd
>>> print(pckd.analysis.summarise([70.1, 72.4, 69.0]))  # one accuracy per seed
70.5 ± 1.7 [66.2, 74.8]
"""

from ..deprecation import renamed
from .attribution import grad_cam
from .compute import teraflops, training_flops
from .difficulty import SAMPLE_KINDS, difficulty_vs_truth, kinds_of_samples, last_difficulty
from .embedding import (
    aligned_maps,
    chance_purity,
    check_matrix,
    directions,
    embed,
    embed_centers,
    neighbourhood_purity,
    tsne_map,
)
from .geometry import center_agreement, center_cka, center_similarity, difference_of_pairs, logit_correlation
from .predictions import OUTCOMES, Agreement, agreement, predict_folder
from .reliability import Calibration, calibration
from .statistics import Summary, holm, mcnemar, paired_difference, summarise

__all__ = [
    "OUTCOMES", "SAMPLE_KINDS", "Agreement", "Calibration", "Summary", "agreement", "aligned_maps", "calibration",
    "center_agreement", "center_cka", "center_similarity", "chance_purity", "check_matrix", "difference_of_pairs",
    "difficulty_vs_truth", "directions", "embed", "embed_centers", "grad_cam", "holm", "kinds_of_samples",
    "last_difficulty", "logit_correlation", "mcnemar", "neighbourhood_purity", "paired_difference", "predict_folder",
    "summarise", "teraflops", "training_flops", "tsne_map",
]  # fmt: skip

__getattr__ = renamed(__name__)
