r"""Neural collapse: how tightly features gather around class means, and how regularly means and centers are arranged.

Towards the end of training, four things often happen together. They are called neural collapse:

- NC1, variability collapse: the features of a class approach their mean.
- NC2, simplex equiangular tight frame: C vectors of equal length, whose pairwise angles are all as large as possible.
  These are the class means minus their mean, and also the class centers, without subtracting a mean.
- NC3, self-duality: class means and class centers become equal, up to a common scale.
- NC4, nearest class mean: the network predicts the class whose mean is nearest.

The measures of NC1, NC2 and NC3, and `within_variance`, are 0 if the collapse is complete. Then
`nearest_mean_agreement` is 100 %. `between_variance` has no fixed value.

Class centers are the rows of the last layer's weight. The paper of PCKD calls them category centers. Notation: features
:math:`h_i` of the images i, labels :math:`y_i`, class means :math:`\mu_c`, their mean :math:`\mu_G` over the C classes,
and class centers :math:`w_c`.

References
----------
Papyan, Han and Donoho, "Prevalence of neural collapse during the terminal phase of deep learning training", PNAS 117,
2020, arXiv 2008.08186.

Examples
--------
>>> import numpy as np
>>> from pckd_nb import collapse
>>> features = np.array([[2.0, 0.0], [4.0, 0.0], [0.0, 2.0], [0.0, 4.0]])
>>> labels = np.array([0, 0, 1, 1])
>>> means = collapse.class_means(features, labels, 2)
>>> means.tolist()
[[3.0, 0.0], [0.0, 3.0]]
>>> round(collapse.variability(features, labels, means).nc1, 3)  # 1/18
0.056
"""

from typing import NamedTuple

import numpy as np

from .validation import check_matrix

__all__ = [
    "MEASURES", "Variability", "class_means", "collapse_measures", "equiangularity", "equinorm", "max_angle",
    "nearest_mean", "nearest_mean_agreement", "self_duality", "variability",
]  # fmt: skip

MEASURES = (  # the keys of `collapse_measures`
    "nc1", "within_variance", "between_variance",
    "nc2_equinorm_means", "nc2_equinorm_centers", "nc2_equiangularity_means", "nc2_equiangularity_centers",
    "nc2_max_angle_means", "nc2_max_angle_centers", "nc3", "nc4",
)  # fmt: skip


class Variability(NamedTuple):
    """Variability of features within and between classes, see `variability`.

    Parameters
    ----------
    nc1 : float
        At least 0.
    within_variance, between_variance : float
        Traces of the within-class and of the between-class covariance, in squared units of the features.
    """

    nc1: float
    within_variance: float
    between_variance: float


def class_means(features: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    r"""Return the mean feature of every class.

    .. math:: \mu_c = \frac{1}{n_c} \sum_{i: y_i = c} h_i

    Parameters
    ----------
    features : array of shape (N, D)
    labels : int array of shape (N,)
        From 0 to `num_classes` − 1.
    num_classes : int

    Returns
    -------
    float64 array of shape (C, D)
        NaN in the row of a class without features.

    Raises
    ------
    ValueError
        If `features` is not a matrix of finite numbers, or if `labels` are not N classes.
    """
    check_matrix("features", features)
    features, labels = np.asarray(features), np.asarray(labels)
    if labels.shape != features.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be {len(features)} whole numbers, got {labels.dtype} of shape {labels.shape}")
    if not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(f"labels must be from 0 to {num_classes - 1}, got {labels.min()} to {labels.max()}")
    means = np.full((num_classes, features.shape[1]), np.nan)
    for c in np.unique(labels):  # needs less memory than a float64 copy of all features
        means[c] = features[labels == c].mean(0, dtype=np.float64)
    return means


def variability(features: np.ndarray, labels: np.ndarray, means: np.ndarray) -> Variability:
    r"""Return how much the features vary within the classes, compared with the distances between the classes (NC1).

    .. math::
        \text{NC1} = \frac{1}{C} \operatorname{tr}\left(\Sigma_W \Sigma_B^+\right), \qquad
        \Sigma_W = \frac{1}{N} \sum_i (h_i - \mu_{y_i})(h_i - \mu_{y_i})^T, \qquad
        \Sigma_B = \frac{1}{C} \sum_c (\mu_c - \mu_G)(\mu_c - \mu_G)^T

    :math:`\Sigma_B^+` is the pseudo-inverse. Directions in which the class means do not differ do not count. Classes
    without features are left out.

    Few images per class make NC1 too small: with n images of each class, :math:`\Sigma_W` is too small by the factor
    1 − 1/n on average. So compare networks on the same images.

    Parameters
    ----------
    features : array of shape (N, D)
    labels : int array of shape (N,)
    means : array of shape (C, D)
        The result of `class_means`.

    Returns
    -------
    Variability
        nc1, and the traces of both covariances. NC1 is NaN if all class means are equal, or if no class has two images.

    References
    ----------
    Papyan, Han and Donoho 2020, figure 6.
    """
    means = np.asarray(means, np.float64)
    residuals = means.astype(np.float32)[labels]
    np.subtract(np.asarray(features, np.float32), residuals, out=residuals)  # saves the memory of a second copy
    within = (residuals.T @ residuals).astype(np.float64) / len(residuals)
    centred = _centred(means)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    between = float((singular**2).sum() / len(centred))
    kept = singular > max(centred.shape) * np.finfo(np.float64).eps * np.abs(means[np.isfinite(means)]).max(initial=0)
    spread = np.einsum("kd,de,ke->k", directions[kept], within, directions[kept], optimize=True)
    known = kept.any() and len(residuals) > len(centred)  # a class with two images or more
    nc1 = float((spread / singular[kept] ** 2).sum()) if known else float("nan")
    return Variability(nc1, float(np.trace(within)), between)


def equinorm(vectors: np.ndarray) -> float:
    r"""Return how much the lengths of vectors differ (NC2): their coefficient of variation.

    .. math:: \frac{\operatorname{sd}_c \|v_c\|}{\operatorname{mean}_c \|v_c\|}

    For class means, subtract their mean first: :math:`v_c = \mu_c - \mu_G`. Class centers are used as they are:
    :math:`v_c = w_c`.

    Parameters
    ----------
    vectors : array of shape (C, D)

    Returns
    -------
    float
        At least 0. The standard deviation has C in the denominator. NaN if all vectors are 0.

    Raises
    ------
    ValueError
        If `vectors` is not a matrix of finite numbers.

    References
    ----------
    Papyan, Han and Donoho 2020, figure 2.

    Examples
    --------
    >>> from pckd_nb import collapse
    >>> collapse.equinorm([[1.0, 0.0], [0.0, 3.0]])  # lengths 1 and 3: sd 1, mean 2
    0.5
    """
    check_matrix("vectors", vectors)
    norms = np.linalg.norm(np.asarray(vectors, np.float64), axis=1)
    return float(norms.std() / norms.mean()) if norms.any() else float("nan")


def equiangularity(vectors: np.ndarray) -> float:
    r"""Return how much the angles between vectors differ (NC2): the standard deviation of their cosines.

    .. math:: \operatorname{sd}_{c \ne c'} \cos(v_c, v_{c'})

    Parameters
    ----------
    vectors : array of shape (C, D)
        As in `equinorm`. A vector of length 0 has the cosine 0 with all others.

    Returns
    -------
    float
        From 0 to 1. NaN if there is only one vector.

    Raises
    ------
    ValueError
        If `vectors` is not a matrix of finite numbers.

    References
    ----------
    Papyan, Han and Donoho 2020, figure 3.
    """
    cosines = _cosines_of_pairs(vectors)
    return float(cosines.std()) if len(cosines) else float("nan")


def max_angle(vectors: np.ndarray) -> float:
    r"""Return how far the angles between vectors are from the largest angle that all pairs can have (NC2).

    .. math:: \operatorname{mean}_{c \ne c'} \left|\cos(v_c, v_{c'}) + \frac{1}{C - 1}\right|

    Parameters
    ----------
    vectors : array of shape (C, D)
        As in `equinorm`. A vector of length 0 has the cosine 0 with all others.

    Returns
    -------
    float
        At least 0. It can be 0 only if D is at least C − 1. NaN if there is only one vector.

    Raises
    ------
    ValueError
        If `vectors` is not a matrix of finite numbers.

    References
    ----------
    Papyan, Han and Donoho 2020, figure 4.
    """
    cosines = _cosines_of_pairs(vectors)
    return float(np.abs(cosines + 1 / (len(vectors) - 1)).mean()) if len(cosines) else float("nan")


def self_duality(centers: np.ndarray, means: np.ndarray) -> float:
    r"""Return how much class centers differ from class means (NC3).

    .. math:: \left\| \frac{W}{\|W\|_F} - \frac{\dot M}{\|\dot M\|_F} \right\|_F

    The rows of W are the class centers. The rows of :math:`\dot M` are the class means minus :math:`\mu_G`.

    Parameters
    ----------
    centers : array of shape (C, D)
    means : array of shape (C, D)
        Class means. Their mean is subtracted here.

    Returns
    -------
    float
        From 0 (equal up to a scale) over √2 (orthogonal) to 2 (opposite). NaN if all centers are 0, or all means equal.

    Raises
    ------
    ValueError
        If an argument is not a matrix of finite numbers, or if their shapes differ.

    References
    ----------
    Papyan, Han and Donoho 2020. Figure 5 shows the square of this number.

    Examples
    --------
    >>> from pckd_nb import collapse
    >>> collapse.self_duality([[1.0, -1.0], [-1.0, 1.0]], [[5.0, 1.0], [1.0, 5.0]])
    0.0
    """
    check_matrix("centers", centers)
    check_matrix("means", means)
    centers, centred = np.asarray(centers, np.float64), _centred(np.asarray(means, np.float64))
    if centers.shape != centred.shape:
        raise ValueError(f"centers and means must have the same shape, got {centers.shape} and {centred.shape}")
    if not centers.any() or not centred.any():
        return float("nan")
    return float(np.linalg.norm(centers / np.linalg.norm(centers) - centred / np.linalg.norm(centred)))


def nearest_mean(features: np.ndarray, means: np.ndarray) -> np.ndarray:
    r"""Return the class whose mean is nearest to each feature.

    .. math:: \operatorname{argmin}_c \|h_i - \mu_c\|

    Parameters
    ----------
    features : array of shape (N, D)
    means : array of shape (C, D)
        A row with NaN, of a class without features, is never the nearest one.

    Returns
    -------
    int array of shape (N,)
        If two means are equally near, the class with the lower number.
    """
    features, means = np.asarray(features, np.float32), np.asarray(means, np.float32)
    scores = features @ np.nan_to_num(means).T - (means**2).sum(1) / 2  # the largest one belongs to the nearest mean
    nearest: np.ndarray = np.where(np.isnan(scores), -np.inf, scores).argmax(1)
    return nearest


def nearest_mean_agreement(features: np.ndarray, means: np.ndarray, predictions: np.ndarray) -> float:
    """Return how often the network predicts the class with the nearest mean (NC4).

    Parameters
    ----------
    features : array of shape (N, D)
    means : array of shape (C, D)
    predictions : int array of shape (N,)
        The classes that the network predicts.

    Returns
    -------
    float
        In percent of the features.

    References
    ----------
    Papyan, Han and Donoho 2020, figure 7. It shows the share of disagreement on test images, with the class means of
    the training images. Here, the means are those that you pass.
    """
    return 100 * float((nearest_mean(features, means) == np.asarray(predictions)).mean())


def collapse_measures(
    features: np.ndarray, labels: np.ndarray, predictions: np.ndarray, centers: np.ndarray, means: np.ndarray
) -> dict[str, float]:
    """Return all measures of neural collapse of a network on one set of images.

    Classes without images are left out.

    Parameters
    ----------
    features : array of shape (N, D)
    labels, predictions : int array of shape (N,)
        The correct classes, and those that the network predicts.
    centers : array of shape (C, D)
    means : array of shape (C, D)
        The result of `class_means`.

    Returns
    -------
    dict of str to float
        The keys are `MEASURES`:

        - "nc1", "within_variance" and "between_variance", see `variability`,
        - "nc2_equinorm_means" and "nc2_equinorm_centers", see `equinorm`,
        - "nc2_equiangularity_means" and "nc2_equiangularity_centers", see `equiangularity`,
        - "nc2_max_angle_means" and "nc2_max_angle_centers", see `max_angle`,
        - "nc3", see `self_duality`,
        - "nc4", in percent, see `nearest_mean_agreement`.
    """
    present = np.isfinite(means).all(1)
    found, centred = variability(features, labels, means), _centred(means)
    measures = dict(found._asdict())
    for name, measure in (("equinorm", equinorm), ("equiangularity", equiangularity), ("max_angle", max_angle)):
        measures[f"nc2_{name}_means"] = measure(centred)
        measures[f"nc2_{name}_centers"] = measure(centers[present])
    measures["nc3"] = self_duality(centers[present], means[present])
    measures["nc4"] = nearest_mean_agreement(features, means, predictions)
    return {name: measures[name] for name in MEASURES}


def _centred(means: np.ndarray) -> np.ndarray:
    """Return the class means minus their mean, without the classes that have no mean."""
    present: np.ndarray = means[np.isfinite(means).all(1)]
    present = present - present.mean(0)
    return present


def _cosines_of_pairs(vectors: np.ndarray) -> np.ndarray:
    check_matrix("vectors", vectors)
    vectors = np.asarray(vectors, np.float64)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)
    cosines: np.ndarray = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    return cosines
