"""Statistics over seeds and over test images.

Over seeds: mean, standard deviation, confidence interval, and differences paired by seed. Over test images: the exact
test of McNemar. `holm` corrects the p-values of several tests.
"""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
from pydantic import BeforeValidator, Field
from scipy.stats import binomtest, t

from ..validation import PositiveFraction, check, plain

ImageCount = Annotated[int, BeforeValidator(plain), Field(ge=0)]
NO_SPREAD = 1e-9  # a standard deviation below this share of the mean is a rounding error


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

    @property
    def p_value(self) -> float:
        r"""Two-sided p-value of Student's t-test that the true mean is 0. For differences, it is the paired t-test.

        .. math:: p = 2 \, P\left(T_{n-1} \ge \frac{|\text{mean}|}{\text{sd} / \sqrt{n}}\right)

        It is below 0.05 exactly if the 95 % interval does not contain 0. It is NaN for a single measurement, and if all
        measurements are equal, because then nothing says how much they vary.
        """
        if self.count == 1 or self.sd <= NO_SPREAD * abs(self.mean):
            return float("nan")
        return float(2 * t.sf(abs(self.mean) * self.count**0.5 / self.sd, self.count - 1))


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


def holm(p_values: Sequence[float] | np.ndarray | pd.Series) -> np.ndarray:
    r"""Return p-values corrected for several comparisons, with the method of Holm.

    With m p-values in ascending order, the corrected p-value number k is

    .. math:: \tilde p_{(k)} = \max_{j \le k} \, \min\left(1, (m - j + 1) \, p_{(j)}\right)

    If all comparisons with a corrected p-value below 0.05 are called significant, the probability of at least one
    false alarm is at most 5 %. The comparisons may depend on each other, for example because all have the same
    reference.

    Parameters
    ----------
    p_values : sequence of float
        One p-value per comparison. NaN stands for a comparison that was not tested. It stays NaN and does not count.

    Returns
    -------
    float array of shape (comparisons,)
        In the order of `p_values`.

    Raises
    ------
    ValueError
        If the p-values are not a list of numbers from 0 to 1.

    References
    ----------
    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> print(pckd.analysis.holm([0.01, 0.04, 0.03]))
    [0.03 0.06 0.06]
    """
    try:
        found = np.array(p_values, float)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("p_values must be a list of numbers from 0 to 1, one per comparison") from None
    if found.ndim != 1 or (found < 0).any() or (found > 1).any():
        raise ValueError(f"p_values must be a list of numbers from 0 to 1, got {str(found.tolist())[:60]}")
    order = np.argsort(found)[: np.isfinite(found).sum()]  # NaN comes last
    found[order] = np.maximum.accumulate(found[order] * np.arange(len(order), 0, -1)).clip(max=1)
    return found


def mcnemar(only_a: int, only_b: int) -> float:
    r"""Return the p-value of McNemar's exact test that two networks are equally often right on the same images.

    Images on which both are right, or both are wrong, say nothing about the difference. If the networks are equally
    good, each other image is a fair coin toss. With :math:`n = \text{only\_a} + \text{only\_b}` tosses,

    .. math:: p = \min\left(1, \; 2 \sum_{k=0}^{\min(\text{only\_a}, \text{only\_b})} \binom{n}{k} 2^{-n}\right)

    Parameters
    ----------
    only_a, only_b : int
        Number of images on which only the first network is right, and on which only the second one is right.

    Returns
    -------
    float
        Two-sided p-value. 1 if there is no such image.

    Raises
    ------
    ValueError, TypeError
        If a number is not a whole number of 0 or more.

    References
    ----------
    McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12, 1947.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> pckd.analysis.mcnemar(only_a=1, only_b=5)
    0.21875
    """
    check(ImageCount, only_a=only_a, only_b=only_b)
    return 1.0 if only_a + only_b == 0 else float(binomtest(int(only_a), int(only_a + only_b)).pvalue)
