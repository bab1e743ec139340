"""Geometry of class centers: how similarly two networks arrange the classes.

Class centers are the rows of the last layer's weight, one per class. The paper calls them category centers.
"""

import numpy as np

from ..validation import check_matrix
from .embedding import directions


def center_similarity(centers: np.ndarray) -> np.ndarray:
    """Return the cosine similarity of all pairs of class centers, after their mean is subtracted.

    Parameters
    ----------
    centers : array of shape (C, D)

    Returns
    -------
    float64 array of shape (C, C)
        From -1 to 1.

    Raises
    ------
    ValueError
        If `centers` is not a matrix of finite numbers.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> pckd.analysis.center_similarity([[3.0, 1.0], [1.0, 1.0]])
    array([[ 1., -1.],
           [-1.,  1.]])
    """
    check_matrix("centers", centers)
    unit = directions(centers).astype(np.float64)
    return unit @ unit.T


def center_agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Return how much two networks agree on which classes are similar.

    This is the Pearson correlation of their `center_similarity` over all pairs of different classes.

    Parameters
    ----------
    a : array of shape (C, D)
        Class centers of the first network.
    b : array of shape (C, D')
        Class centers of the second network. The widths D and D' may differ.

    Returns
    -------
    float
        From -1 to 1, or NaN if one of the networks has the same similarity for all pairs.

    Raises
    ------
    ValueError
        If the numbers of classes differ or are below 3, or if an argument is not a matrix of finite numbers.
    """
    check_matrix("a", a)
    check_matrix("b", b)
    if len(a) != len(b) or len(a) < 3:
        raise ValueError(f"a and b must have the same number of rows (classes), 3 or more, got {len(a)} and {len(b)}")
    pairs = np.triu_indices(len(a), 1)
    return float(np.corrcoef(center_similarity(a)[pairs], center_similarity(b)[pairs])[0, 1])


def center_cka(a: np.ndarray, b: np.ndarray) -> float:
    r"""Return the linear CKA (centered kernel alignment) of two networks' class centers.

    .. math:: \frac{\|A^T B\|_F^2}{\|A^T A\|_F \, \|B^T B\|_F}

    A and B are the centers minus their mean. As with `center_agreement`, rotating a feature space changes nothing, and
    the networks may have different widths D. But in CKA, centers with a large norm count more.

    Parameters
    ----------
    a : array of shape (C, D)
        Class centers of the first network.
    b : array of shape (C, D')
        Class centers of the second network. The widths D and D' may differ.

    Returns
    -------
    float
        From 0 to 1, or NaN if the denominator is 0.

    Raises
    ------
    ValueError
        If the numbers of classes differ or are below 3, or if an argument is not a matrix of finite numbers.

    References
    ----------
    Kornblith et al., Similarity of Neural Network Representations Revisited, arXiv 1905.00414.
    """
    check_matrix("a", a)
    check_matrix("b", b)
    if len(a) != len(b) or len(a) < 3:
        raise ValueError(f"a and b must have the same number of rows (classes), 3 or more, got {len(a)} and {len(b)}")
    a, b = (np.asarray(centers, np.float64) - np.asarray(centers, np.float64).mean(0) for centers in (a, b))
    numerator, denominator = np.linalg.norm(a.T @ b) ** 2, np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(numerator / denominator) if denominator else float("nan")


def logit_correlation(features: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Return the correlation of all pairs of logits over the samples.

    The logits are features · centers, without the bias. The bias shifts a logit by the same amount for every sample, so
    it does not change the correlations. A logit that does not vary has correlation 1 with itself and 0 with all others.

    Parameters
    ----------
    features : array of shape (N, D)
        N ≥ 2.
    centers : array of shape (C, D)

    Returns
    -------
    float64 array of shape (C, C)
        From -1 to 1.

    Raises
    ------
    ValueError
        If the widths differ, if there are fewer than two samples, or if an argument is not a matrix of finite numbers.
    """
    check_matrix("features", features)
    check_matrix("centers", centers)
    if features.shape[1:] != centers.shape[1:] or len(features) < 2:
        raise ValueError(
            f"features must have 2 rows or more and the centers' width {centers.shape[1]}, got shape {features.shape}"
        )
    features = np.asarray(features, np.float64)
    logits = (features - features.mean(0)) @ np.asarray(centers, np.float64).T
    norm = np.linalg.norm(logits, axis=0)
    varies = norm > 1e-9 * max(norm.max(), 1e-300)
    logits = np.where(varies, logits / np.where(varies, norm, 1), 0)
    correlation = np.clip(logits.T @ logits, -1, 1)
    np.fill_diagonal(correlation, 1)
    return correlation


def difference_of_pairs(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Compare two symmetric matrices over all pairs of different classes. The diagonal is left out.

    Parameters
    ----------
    a, b : array of shape (C, C)
        C ≥ 2.

    Returns
    -------
    difference : float
        Mean absolute difference.
    correlation : float
        Correlation of a and b. NaN if one of them has the same value for all pairs.

    Raises
    ------
    ValueError
        If the matrices are not square, if their shapes differ, if C < 2, or if a value is not a finite number.
    """
    check_matrix("a", a)
    check_matrix("b", b)
    if a.shape != b.shape or len(a) < 2 or a.shape[0] != a.shape[1]:
        raise ValueError(
            f"a and b must be square matrices of the same shape, for 2 classes or more, got {a.shape} and {b.shape}"
        )
    pairs = np.triu_indices(len(a), 1)
    a, b = a[pairs], b[pairs]
    varies = np.ptp(a) > 0 and np.ptp(b) > 0
    return float(np.abs(a - b).mean()), float(np.corrcoef(a, b)[0, 1]) if varies else float("nan")
