"""Statistics over seeds: mean, standard deviation, confidence interval, and differences paired by seed."""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t

from ..validation import PositiveFraction, check


class Summary(NamedTuple):
    """Summary of repeated measurements.

    For a single measurement, `sd`, `low` and `high` are NaN.

    Parameters
    ----------
    mean : float
    sd : float
        Standard deviation, with n − 1 in the denominator.
    low, high : float
        Bounds of the confidence interval (Student's t). At the default level, the interval contains the true mean in
        95 % of such experiments.
    count : int
        Number of measurements.
    """

    mean: float
    sd: float
    low: float
    high: float
    count: int  # type: ignore[assignment]  # replaces tuple.count, which counts values

    def __str__(self) -> str:
        if self.count == 1:
            return f"{self.mean:.1f} (one seed)"
        return f"{self.mean:.1f} ± {self.sd:.1f} [{self.low:.1f}, {self.high:.1f}]"


def summarise(values: Sequence[float] | np.ndarray, level: float = 0.95) -> Summary:
    """Return mean, standard deviation and confidence interval of measurements.

    Parameters
    ----------
    values : sequence of float
        One measurement per seed.
    level : float
        Confidence level, between 0 and 1.

    Returns
    -------
    Summary

    Raises
    ------
    ValueError
        If there are no measurements, if one of them is not a finite number, or if `level` is outside its range.
    TypeError
        If `level` is not a number.
    """
    try:
        found = np.asarray(values, float)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("values must be a list of numbers, one per measurement") from None
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all():
        raise ValueError(f"values must be a non-empty list of finite numbers, got {str(found.tolist())[:60]}")
    check(PositiveFraction, level=level)
    mean, count = float(found.mean()), len(found)
    if count == 1:
        return Summary(mean, float("nan"), float("nan"), float("nan"), 1)
    sd = float(found.std(ddof=1))
    half_width = float(t.ppf((1 + level) / 2, count - 1)) * sd / count**0.5
    return Summary(mean, sd, mean - half_width, mean + half_width, count)


def paired_difference(
    a: Mapping[int, float] | pd.Series, b: Mapping[int, float] | pd.Series, level: float = 0.95
) -> Summary:
    """Return `summarise` of the differences a − b, computed seed by seed.

    A seed affects both measurements in the same way, for example by the order of the images, their crops and the
    initial weights. The difference removes this common effect. Only seeds that both have are used.

    Parameters
    ----------
    a, b : mapping of int to float, or Series
        Measurements by seed.
    level : float
        Confidence level, between 0 and 1.

    Returns
    -------
    Summary

    Raises
    ------
    ValueError
        If `a` and `b` have no seed in common, if a measurement is not finite, or if `level` is outside its range.
    TypeError
        If `a` or `b` is not a mapping or a Series, or if a measurement or `level` is not a number.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> print(pckd.analysis.paired_difference({0: 70.0, 1: 72.0}, {0: 69.0, 1: 70.8}))
    1.1 ± 0.1 [-0.2, 2.4]
    """
    if not all(isinstance(measured, Mapping | pd.Series) for measured in (a, b)):
        raise TypeError(f"a and b must map seeds to measurements, got {type(a).__name__} and {type(b).__name__}")
    shared = sorted(set(a.keys()) & set(b.keys()))
    if not shared:
        raise ValueError(f"a and b have no seed in common, got seeds {sorted(a)} and {sorted(b)}")
    pairs = [(a[seed], b[seed]) for seed in shared]
    if not all(isinstance(value, Real) for pair in pairs for value in pair):
        raise TypeError("every measurement in a and b must be a number")
    return summarise([first - second for first, second in pairs], level)
