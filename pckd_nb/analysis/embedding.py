"""Features and class centers in a common space: directions from the mean, t-SNE maps and neighbourhood purity.

Class centers are the rows of the last layer's weight, one per class. The paper calls them category centers.
"""

import hashlib
from collections.abc import MutableMapping, Sequence
from numbers import Integral, Real

import numpy as np
from openTSNE import TSNE
from openTSNE.initialization import rescale
from scipy.linalg import orthogonal_procrustes
from sklearn.neighbors import NearestNeighbors

from ..validation import check, check_matrix


def directions(vectors: np.ndarray) -> np.ndarray:
    r"""Return unit vectors that point from the mean of all rows to each row.

    .. math:: \frac{x_i - \bar{x}}{\|x_i - \bar{x}\|}

    Features after a ReLU are never negative, so their mean lies far from the origin. The mean of class centers lies
    close to it. Features and centers can be compared only after the mean of each is subtracted.

    Parameters
    ----------
    vectors : array of shape (N, D)
        One vector x_i per row.

    Returns
    -------
    float32 array of shape (N, D)
        A row that equals the mean gives zeros.

    Raises
    ------
    ValueError
        If `vectors` is not a non-empty matrix of finite numbers.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> pckd.analysis.directions([[3.0, 1.0], [1.0, 1.0]])
    array([[ 1.,  0.],
           [-1.,  0.]], dtype=float32)
    """
    check_matrix("vectors", vectors)
    vectors = np.asarray(vectors, np.float64)  # the last bits differ between processors; float32 rounds them away
    vectors = vectors - vectors.mean(0)
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def embed(
    features: np.ndarray,
    centers: np.ndarray,
    seed: int = 0,
    perplexity: float = 30,
    memo: MutableMapping[str, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute one t-SNE map of features and class centers.

    Both are converted with `directions`, each with its own mean, and then embedded together. So a center usually lies
    among the samples of its class.

    t-SNE amplifies rounding errors, so two types of processors give two different maps of the same points. To get the
    same map on every machine, pass `run.embedding` as `memo`. Then a map that is stored with the run is used.

    Parameters
    ----------
    features : array of shape (N, D)
    centers : array of shape (C, D)
    seed : int
        Seed of t-SNE.
    perplexity : float
        Roughly the number of neighbours whose distances t-SNE tries to preserve. Greater than 0 and less than
        (N + C) / 3.
    memo : dict of str to array, optional
        Maps that were computed before. If it contains the map of these inputs, the map is not computed again.
        Otherwise, the new map is added to it.

    Returns
    -------
    features_xy : float32 array of shape (N, 2)
        Positions of the features.
    centers_xy : float32 array of shape (C, 2)
        Positions of the class centers.

    Raises
    ------
    ValueError
        If an array is not a matrix of finite numbers, if features and centers have a different D, or if `perplexity`
        is outside its range.

    References
    ----------
    van der Maaten and Hinton, Visualizing Data using t-SNE, JMLR 2008.
    """
    check_matrix("features", features)
    check_matrix("centers", centers)
    if features.shape[1:] != centers.shape[1:]:
        raise ValueError(
            f"features have width {features.shape[1]}, but centers have width {centers.shape[1]}; take both from the "
            "same network"
        )
    check_perplexity(perplexity, len(features) + len(centers))
    xy = _cached_map(memo, (features, centers), seed, perplexity)
    return xy[: len(features)], xy[len(features) :]


def embed_centers(
    centers: np.ndarray, seed: int = 0, memo: MutableMapping[str, np.ndarray] | None = None
) -> np.ndarray:
    """Compute a t-SNE map of class centers only.

    The centers are converted with `directions` first. t-SNE preserves which points are neighbours. This says little if
    there are fewer than 30 centers. In this case, show their `center_similarity` instead.

    Parameters
    ----------
    centers : array of shape (C, D)
        C ≥ 30.
    seed : int
        Seed of t-SNE.
    memo : dict of str to array, optional
        As in `embed`.

    Returns
    -------
    float32 array of shape (C, 2)

    Raises
    ------
    ValueError
        If there are fewer than 30 centers, or if `centers` is not a matrix of finite numbers.
    """
    check_matrix("centers", centers)
    if len(centers) < 30:
        raise ValueError(f"a map of centers alone needs 30 or more, got {len(centers)}; use center_similarity instead")
    return _cached_map(memo, (centers,), seed, perplexity=min(15, len(centers) / 4))


def _cached_map(
    memo: MutableMapping[str, np.ndarray] | None, parts: Sequence[np.ndarray], seed: int, perplexity: float
) -> np.ndarray:
    """Return the float32 map of all parts. Read it from `memo` if it was computed before."""
    arrays = [np.asarray(part) for part in parts]
    digest = hashlib.sha256(repr((seed, float(perplexity), [(x.shape, x.dtype.str) for x in arrays])).encode())
    for array in arrays:
        digest.update(array.tobytes())
    memo = {} if memo is None else memo
    name = f"map_{digest.hexdigest()[:16]}"
    if name not in memo:
        points = np.concatenate([directions(array) for array in arrays])
        memo[name] = tsne_map(points, seed, perplexity).astype(np.float32)
    return memo[name]


def aligned_maps(
    snapshots: Sequence[np.ndarray], seed: int = 0, perplexity: float = 30, to_first: bool = False
) -> np.ndarray:
    """Compute t-SNE maps of the same samples in several feature spaces, so that the maps can be compared.

    t-SNE may rotate a map, mirror it, and place its clusters anywhere. So two maps that are computed alone look
    different even if the features are almost the same. Here, t-SNE starts each map from another one, and the new map is
    then rotated or mirrored to fit that one (orthogonal Procrustes analysis). Small movements mean nothing. Points that
    move far have other neighbours.

    Parameters
    ----------
    snapshots : sequence of array of shape (N, D_t)
        Row i is the same sample in every snapshot, for example in several epochs, or of teacher and student. The widths
        D_t may differ. Features are converted with `directions`.
    seed : int
        Seed of t-SNE.
    perplexity : float
        As in `embed`. Less than N / 3.
    to_first : bool
        Whether all maps are aligned to the first one, as to compare several students with their teacher. By default,
        each map is aligned to the one before it, as for several epochs.

    Returns
    -------
    float32 array of shape (snapshots, N, 2)

    Raises
    ------
    ValueError
        If there is no snapshot, if one of them is not a matrix of finite numbers, if their numbers of rows differ, or
        if `perplexity` is outside its range.
    TypeError
        If `to_first` is not a bool.
    """
    check(bool, to_first=to_first)
    if not len(snapshots):
        raise ValueError("snapshots must contain one matrix of features or more")
    for snapshot in snapshots:
        check_matrix("snapshots", snapshot)
        if len(snapshot) != len(snapshots[0]):
            raise ValueError(
                f"all snapshots must have the same samples, got {len(snapshots[0])} and {len(snapshot)} rows"
            )
    check_perplexity(perplexity, len(snapshots[0]))
    maps: list[np.ndarray] = []
    for snapshot in snapshots:
        other = maps[0 if to_first else -1] if maps else None
        xy = tsne_map(directions(snapshot), seed, perplexity, "pca" if other is None else rescale(other))
        xy = xy - xy.mean(0)
        if other is not None:
            rotation, _ = orthogonal_procrustes(xy, other)
            xy = xy @ rotation
        maps.append(xy)
    return np.stack(maps).astype(np.float32)


def check_perplexity(perplexity: float, points: int) -> None:
    """Raise ValueError unless t-SNE can map this number of points with this perplexity.

    Parameters
    ----------
    perplexity : float
    points : int

    Raises
    ------
    ValueError
    """
    if not isinstance(perplexity, Real) or isinstance(perplexity, bool) or not 0 < perplexity < points / 3:
        raise ValueError(f"perplexity must be below a third of the {points} points and above 0, got {perplexity!r:.40}")


def tsne_map(
    points: np.ndarray, seed: int = 0, perplexity: float = 30, initialization: str | np.ndarray = "pca"
) -> np.ndarray:
    """Compute a t-SNE map of points as they are. The result does not depend on the number of cores.

    Parameters
    ----------
    points : array of shape (N, D)
    seed : int
        Seed of t-SNE.
    perplexity : float
        Roughly the number of neighbours whose distances t-SNE tries to preserve.

    initialization : "pca" or array of shape (N, 2)
        Where the points start.

    Returns
    -------
    array of shape (N, 2)
        Positions on the map.
    """
    # openTSNE's maps are as good as scikit-learn's and take less time, see benchmarks/report.md. Approximate
    # neighbours, and therefore the map, would depend on the number of cores. So use exact neighbours and one thread.
    tsne = TSNE(perplexity=perplexity, initialization=initialization, neighbors="exact", random_state=seed, n_jobs=1)
    return np.asarray(tsne.fit(points))


def neighbourhood_purity(features: np.ndarray, labels: np.ndarray, k: int = 5) -> float:
    """Return the share of a sample's k nearest neighbours that belong to its class, averaged over the samples.

    Neighbours are found by cosine similarity among the `directions` of the features, not on a map of them.

    Parameters
    ----------
    features : array of shape (N, D)
    labels : array of shape (N,)
    k : int
        Number of neighbours, 1 ≤ k < N.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    ValueError
        If `k` is outside its range, if the number of labels is not N, if N < 2, or if `features` is not a matrix of
        finite numbers.
    """
    check_matrix("features", features)
    if np.shape(labels) != (len(features),):
        raise ValueError(f"labels must have shape ({len(features)},), one per row of features, got {np.shape(labels)}")
    if len(features) < 2:
        raise ValueError(f"features must have 2 rows or more, one per sample, got {len(features)}")
    if not isinstance(k, Integral) or isinstance(k, bool) or not 1 <= k < len(features):
        raise ValueError(f"k must be a whole number from 1 to {len(features) - 1}, got {k!r:.40}")
    nearest = NearestNeighbors(n_neighbors=k).fit(directions(features)).kneighbors(return_distance=False)
    return float((labels[nearest] == labels[:, None]).mean())


def chance_purity(labels: Sequence[int] | Sequence[str] | np.ndarray) -> float:
    r"""Return the average `neighbourhood_purity` if the same labels were given to the samples at random.

    .. math:: \sum_c \frac{n_c}{N} \cdot \frac{n_c - 1}{N - 1}

    n_c is the number of samples with label c.

    Parameters
    ----------
    labels : sequence of int or str, of shape (N,)
        N ≥ 2.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    ValueError
        If there are fewer than two labels, or if `labels` is not one-dimensional.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> pckd.analysis.chance_purity(["cat", "cat", "dog"])
    0.333...
    """
    if np.ndim(labels) != 1:
        raise ValueError(f"labels must be a list with one label per sample, got shape {np.shape(labels)}")
    _, counts = np.unique(np.asarray(labels), return_counts=True)
    if counts.sum() < 2:
        raise ValueError(f"labels must contain two labels or more, got {counts.sum()}")
    return float((counts * (counts - 1)).sum() / (counts.sum() * (counts.sum() - 1)))
