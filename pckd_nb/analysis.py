"""Numbers behind the figures: embeddings, neighbourhoods, the geometry of category centers, difficulty rankings."""

import hashlib
from collections.abc import Mapping, MutableMapping, Sequence
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
import pandas as pd
from openTSNE import TSNE
from scipy.stats import spearmanr, t
from sklearn.neighbors import NearestNeighbors

from .runs import Run


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


def difficulty_vs_truth(run: Run) -> float:
    """Spearman's ρ between γ in the last whole epoch and the known difficulty of the training images.

    Raises ValueError where the run has no known difficulty or no whole epoch.
    """
    if run.ground_truth is None:
        raise ValueError(f"the difficulty of {run.settings['data']['name']} images is not known, only shapes100 has it")
    return float(spearmanr(last_difficulty(run), run.ground_truth.astype(np.float32)).statistic)


def last_difficulty(run: Run) -> np.ndarray:
    """γ of every training sample in the last whole epoch, float32 (samples,). Raises ValueError where there is none."""
    if run.difficulty is None or run.history.empty:
        raise ValueError(f"the run {run.title} has no difficulties: it has no whole epoch yet")
    return run.difficulty[len(run.history) - 1].astype(np.float32)


KINDS = ("always easy", "learned late", "never learned")


def kinds_of_samples(run: Run) -> dict[str, np.ndarray]:
    """Positions in the training set of three kinds of samples, by their recorded cross-entropy; others are of none.

    A sample is *got* in an epoch when its class has more than half of the probability, CE < ln 2.
    "always easy": got in every epoch after the first third · "learned late": in no epoch of the first half (the
    middle one included), but in every one of the last quarter · "never learned": in no epoch at all.
    Raises ValueError where there are no samples, or fewer than two whole epochs.
    """
    epochs = len(run.history)
    if run.cross_entropy is None or epochs < 2:
        kept = "kept no samples" if run.cross_entropy is None else f"has {epochs} whole epochs"
        raise ValueError(f"kinds of samples need what two epochs or more recorded: the run {run.title} {kept}")
    got = run.cross_entropy[:epochs].astype(np.float32) < np.log(2)
    epoch = np.arange(1, epochs + 1)
    late = ~got[epoch <= -(-epochs // 2)].any(0) & got[epoch > 0.75 * epochs].all(0)
    found = got[epoch > epochs / 3].all(0), late, ~got.any(0)
    return {kind: np.flatnonzero(chosen) for kind, chosen in zip(KINDS, found, strict=True)}


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


class Summary(NamedTuple):
    """Of repeated measurements: mean, standard deviation (n − 1), and the interval that holds the true mean in 95 % of
    such experiments (Student's t), from `low` to `high`. Of a single one: the value, and NaN for the rest."""

    mean: float
    sd: float
    low: float
    high: float
    count: int  # type: ignore[assignment]  # hides tuple.count, which counts values

    def __str__(self) -> str:
        if self.count == 1:
            return f"{self.mean:.1f} (one seed)"
        return f"{self.mean:.1f} ± {self.sd:.1f} [{self.low:.1f}, {self.high:.1f}]"


def summarise(values: Sequence[float] | np.ndarray, level: float = 0.95) -> Summary:
    """Mean, spread and interval of measurements, one a seed. Raises ValueError for none, or one that is not finite."""
    try:
        found = np.asarray(values, float)
    except (TypeError, ValueError):
        raise ValueError("measurements must be numbers, in one list") from None
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all():
        raise ValueError(f"need a list of one finite measurement or more, got {str(found.tolist())[:60]}")
    if not isinstance(level, Real) or isinstance(level, bool) or not 0 < level < 1:
        raise ValueError(f"level must be a number between 0 and 1, got {level!r:.40}")
    mean, count = float(found.mean()), len(found)
    if count == 1:
        return Summary(mean, float("nan"), float("nan"), float("nan"), 1)
    sd = float(found.std(ddof=1))
    half = float(t.ppf((1 + level) / 2, count - 1)) * sd / count**0.5
    return Summary(mean, sd, mean - half, mean + half, count)


def paired_difference(
    a: Mapping[int, float] | pd.Series, b: Mapping[int, float] | pd.Series, level: float = 0.95
) -> Summary:
    """`summarise` of a − b seed by seed: what a seed does to both alike (order and crops of the images, first weights)
    falls out of it. a, b: seed → measurement. Raises ValueError where they share no seed, TypeError for what is no
    mapping."""
    if not all(isinstance(measured, Mapping | pd.Series) for measured in (a, b)):
        raise TypeError(f"measurements must be given by seed, got {type(a).__name__} and {type(b).__name__}")
    shared = sorted(set(a.keys()) & set(b.keys()))
    if not shared:
        raise ValueError(f"no seed in common: {sorted(a)} and {sorted(b)}")
    pairs = [(a[seed], b[seed]) for seed in shared]
    if not all(isinstance(value, Real) for pair in pairs for value in pair):
        raise TypeError("measurements of every seed must be numbers")
    return summarise([first - second for first, second in pairs], level)
