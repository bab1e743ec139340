"""Statistics over seeds: mean, spread, interval, and differences paired by seed."""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t

from ..validation import Share, check


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
    check(Share, level=level)
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
