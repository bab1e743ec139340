"""Compute what figures and tables show.

These are t-SNE maps, geometry of class centers, difficulty of samples, how well measures find wrong labels, statistics
over seeds, the agreement of two networks, and the compute of a training.

Examples
--------
>>> import pckd_nb as pckd
>>> print(pckd.analysis.summarise([70.1, 72.4, 69.0]))  # one accuracy per seed
70.5 ± 1.7 [66.2, 74.8]
"""

from ..deprecation import renamed
from .compute import teraflops, training_flops
from .difficulty import SAMPLE_KINDS, difficulty_vs_truth, kinds_of_samples, last_difficulty
from .embedding import chance_purity, check_matrix, directions, embed, embed_centers, neighbourhood_purity, tsne_map
from .geometry import center_agreement, center_cka, center_similarity, difference_of_pairs, logit_correlation
from .noise import confident_learning, noise_detection, precision_at_k
from .predictions import OUTCOMES, Agreement, agreement
from .statistics import Summary, holm, mcnemar, paired_difference, summarise

__all__ = [
    "OUTCOMES", "SAMPLE_KINDS", "Agreement", "Summary", "agreement", "center_agreement", "center_cka",
    "center_similarity", "chance_purity", "check_matrix", "confident_learning", "difference_of_pairs",
    "difficulty_vs_truth", "directions", "embed", "embed_centers", "holm", "kinds_of_samples", "last_difficulty",
    "logit_correlation", "mcnemar", "neighbourhood_purity", "noise_detection", "paired_difference", "precision_at_k",
    "summarise", "teraflops", "training_flops", "tsne_map",
]  # fmt: skip

__getattr__ = renamed(__name__)
