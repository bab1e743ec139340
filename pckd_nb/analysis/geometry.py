"""The geometry of category centers: how alike two networks see the categories."""

import numpy as np

from .embedding import check_matrix, directions


def center_similarity(centers: np.ndarray) -> np.ndarray:
    """Cosine similarity of all pairs of category centers, as seen from their mean. centers: (C, D). Returns (C, C)."""
    check_matrix("centers", centers)
    unit = directions(centers).astype(np.float64)
    return unit @ unit.T


def center_agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Do two networks find the same categories alike? Correlation, -1 to 1, of their `center_similarity` over pairs.

    a: (C, D), b: (C, D'), the widths may differ. Raises ValueError unless both have the same C ≥ 3.
    """
    check_matrix("centers", a)
    check_matrix("centers", b)
    if len(a) != len(b) or len(a) < 3:
        raise ValueError(f"need centers of the same 3 categories or more, got {len(a)} and {len(b)}")
    pairs = np.triu_indices(len(a), 1)
    return float(np.corrcoef(center_similarity(a)[pairs], center_similarity(b)[pairs])[0, 1])


def center_cka(a: np.ndarray, b: np.ndarray) -> float:
    """Linear CKA, 0 to 1, of two networks' category centers: another agreement that ignores rotation and width.

    |AᵀB|² / (|AᵀA| · |BᵀB|) in Frobenius norms, of centers less their mean; unlike `center_agreement` it gives long
    centers more say. a: (C, D), b: (C, D'). Raises ValueError unless both have the same C ≥ 3.
    """
    check_matrix("centers", a)
    check_matrix("centers", b)
    if len(a) != len(b) or len(a) < 3:
        raise ValueError(f"need centers of the same 3 categories or more, got {len(a)} and {len(b)}")
    a, b = (np.asarray(centers, np.float64) - np.asarray(centers, np.float64).mean(0) for centers in (a, b))
    joint, own = np.linalg.norm(a.T @ b) ** 2, np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(joint / own) if own else float("nan")


def logit_correlation(features: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Correlation of every two logits over samples. features: (N, D), centers: (C, D), N ≥ 2. Returns (C, C).

    The logits are features · centers less the bias, which shifts a logit by the same for every sample and so changes
    no correlation. A logit that does not vary is correlated with itself alone.
    Raises ValueError for other widths or fewer than two samples.
    """
    check_matrix("features", features)
    check_matrix("centers", centers)
    if features.shape[1:] != centers.shape[1:] or len(features) < 2:
        raise ValueError(f"need two samples or more of the centers' width {centers.shape[1]}, got {features.shape}")
    features = np.asarray(features, np.float64)
    logits = (features - features.mean(0)) @ np.asarray(centers, np.float64).T
    norm = np.linalg.norm(logits, axis=0)
    varies = norm > 1e-9 * max(norm.max(), 1e-300)
    logits = np.where(varies, logits / np.where(varies, norm, 1), 0)
    correlation = np.clip(logits.T @ logits, -1, 1)
    np.fill_diagonal(correlation, 1)
    return correlation


def difference_of_pairs(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """How two symmetric (C, C) matrices differ over pairs of categories: mean |a − b|, and their correlation.

    The correlation is NaN where one of them is the same for all pairs. Raises ValueError unless C ≥ 2 is shared.
    """
    check_matrix("matrices", a)
    check_matrix("matrices", b)
    if a.shape != b.shape or len(a) < 2 or a.shape[0] != a.shape[1]:
        raise ValueError(f"need two matrices of the same 2 categories or more, got {a.shape} and {b.shape}")
    pairs = np.triu_indices(len(a), 1)
    a, b = a[pairs], b[pairs]
    varies = np.ptp(a) > 0 and np.ptp(b) > 0
    return float(np.abs(a - b).mean()), float(np.corrcoef(a, b)[0, 1]) if varies else float("nan")
