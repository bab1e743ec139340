"""Maps of features and category centers: directions from the mean, t-SNE, and how pure neighbourhoods are."""

import hashlib
from collections.abc import MutableMapping, Sequence
from numbers import Integral, Real

import numpy as np
from openTSNE import TSNE
from sklearn.neighbors import NearestNeighbors


def check_matrix(name: str, values: np.ndarray) -> None:
    """Raises ValueError unless values are finite numbers, (rows, columns), and there are some."""
    try:
        found = np.asarray(values)
    except ValueError:  # rows of unequal length
        raise ValueError(f"{name} must be numbers in rows of one length") from None
    if found.dtype.kind not in "fiu" or found.ndim != 2 or not found.size:
        raise ValueError(f"{name} must be numbers, in rows and columns, got {found.dtype} of shape {found.shape}")
    if not np.isfinite(found).all():
        raise ValueError(f"{name} must be finite numbers, some are not")


def directions(vectors: np.ndarray) -> np.ndarray:
    """Rows as unit vectors from their common mean, float32. vectors: (N, D).

    Features are not negative and lie far from the origin, centers do not: only after this can the two be compared.
    Raises ValueError for anything but finite numbers.
    """
    check_matrix("vectors", vectors)
    vectors = np.asarray(vectors, np.float64)  # the last bits differ between processors, and are rounded away
    vectors = vectors - vectors.mean(0)
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def embed(
    features: np.ndarray,
    centers: np.ndarray,
    seed: int = 0,
    perplexity: float = 30,
    memo: MutableMapping[str, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """One t-SNE map of features (N, D) and category centers (C, D): their positions, (N, 2) and (C, 2).

    Both are taken as `directions`, then embedded together, so that a center lands among the samples of its class.
    t-SNE amplifies rounding errors, so two kinds of processors give two different maps of the same points. `memo` keeps
    maps by their input, and is asked first: with the arrays of a run's embedding a figure looks the same everywhere.
    Raises ValueError for centers of another width, or a perplexity that is not below a third of the points.
    """
    check_matrix("features", features)
    check_matrix("centers", centers)
    if features.shape[1:] != centers.shape[1:]:
        raise ValueError(f"features have width {features.shape[1]}, centers {centers.shape[1]}")
    points = len(features) + len(centers)
    if not isinstance(perplexity, Real) or isinstance(perplexity, bool) or not 0 < perplexity < points / 3:
        raise ValueError(f"perplexity must be below a third of the {points} points, got {perplexity!r:.40}")
    xy = _remembered(memo, (features, centers), seed, perplexity)
    return xy[: len(features)], xy[len(features) :]


def embed_centers(
    centers: np.ndarray, seed: int = 0, memo: MutableMapping[str, np.ndarray] | None = None
) -> np.ndarray:
    """A t-SNE map (C, 2) of category centers alone, taken as `directions`. centers: (C, D). memo: as in `embed`.

    Raises ValueError below 30 centers: so few have no neighbourhoods to keep, their `center_similarity` says more.
    """
    check_matrix("centers", centers)
    if len(centers) < 30:
        raise ValueError(f"a map of centers alone needs 30 or more, got {len(centers)}; show their similarity instead")
    return _remembered(memo, (centers,), seed, perplexity=min(15, len(centers) / 4))


def _remembered(
    memo: MutableMapping[str, np.ndarray] | None, parts: Sequence[np.ndarray], seed: int, perplexity: float
) -> np.ndarray:
    """The map of all parts, float32, from `memo` where it was drawn before."""
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


def tsne_map(points: np.ndarray, seed: int = 0, perplexity: float = 30) -> np.ndarray:
    """t-SNE of points (N, D) as they are: (N, 2). The same on every number of cores."""
    # openTSNE's maps are as good as scikit-learn's, sooner: benchmarks/report.md. Exact neighbours and one thread: the
    # approximate ones, and so the map, depend on how many cores there are.
    tsne = TSNE(perplexity=perplexity, initialization="pca", neighbors="exact", random_state=seed, n_jobs=1)
    return np.asarray(tsne.fit(points))


def neighbourhood_purity(features: np.ndarray, labels: np.ndarray, k: int = 5) -> float:
    """How often the k nearest neighbours of a sample (by cosine) are of its class, from 0 to 1. features: (N, D).

    It is measured among the features themselves, not on a map of them. Raises ValueError unless 1 ≤ k < N.
    """
    check_matrix("features", features)
    if np.shape(labels) != (len(features),):
        raise ValueError(f"labels must be one a sample, {len(features)}, got shape {np.shape(labels)}")
    if not isinstance(k, Integral) or isinstance(k, bool) or not 1 <= k < len(features):
        raise ValueError(f"k must be a whole number from 1 to {len(features) - 1}, got {k!r:.40}")
    nearest = NearestNeighbors(n_neighbors=k).fit(directions(features)).kneighbors(return_distance=False)
    return float((labels[nearest] == labels[:, None]).mean())


def chance_purity(labels: Sequence[int] | Sequence[str] | np.ndarray) -> float:
    """What `neighbourhood_purity` would be on average if labels were dealt out at random, from 0 to 1. labels: (N,),
    N ≥ 2. Raises ValueError for fewer, or another shape."""
    if np.ndim(labels) != 1:
        raise ValueError(f"labels must be a list, one a sample, got shape {np.shape(labels)}")
    _, counts = np.unique(np.asarray(labels), return_counts=True)
    if counts.sum() < 2:
        raise ValueError("need labels of two samples or more: one has no neighbour")
    return float((counts * (counts - 1)).sum() / (counts.sum() * (counts.sum() - 1)))
