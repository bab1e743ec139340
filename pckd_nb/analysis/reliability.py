"""Calibration: whether a network with a confidence of 80 % is right in 80 % of the cases."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from ..evaluation import Predictions
from ..validation import Count, check


class Calibration(NamedTuple):
    """Calibration of a network on the images of a split.

    Parameters
    ----------
    ece : float
        Expected calibration error in percentage points, from 0 to 100.
    confidence : float
        Mean confidence in percent.
    accuracy : float
        Top-1 accuracy in percent.
    bins : DataFrame
        One row per bin of confidence. The columns are:

        - low and high: limits of the bin in percent, low < confidence ≤ high,
        - images: number of images,
        - confidence and accuracy: mean of these images in percent. NaN in an empty bin.
    """

    ece: float
    confidence: float
    accuracy: float
    bins: pd.DataFrame


def calibration(predictions: Predictions, bins: int = 15) -> Calibration:
    r"""Return how well a network's confidence matches its accuracy: the expected calibration error (ECE).

    The confidence of a prediction is the probability of the predicted class. The images are sorted into M bins of equal
    width by their confidence. With :math:`n_b` of N images in bin b,

    .. math:: \text{ECE} = \sum_{b=1}^{M} \frac{n_b}{N} \, |\text{accuracy}_b - \text{confidence}_b|

    It is 0 if, in every bin, the share of correct predictions equals the mean confidence. A network whose mean
    confidence is larger than its accuracy is overconfident.

    Parameters
    ----------
    predictions : Predictions
        As `predict` returns them.
    bins : int
        Number of bins, M.

    Returns
    -------
    Calibration

    Raises
    ------
    ValueError
        If `bins` is less than 1.
    TypeError
        If an argument has the wrong type.

    References
    ----------
    Guo et al., On Calibration of Modern Neural Networks, ICML 2017.

    Examples
    --------
    >>> import torch
    >>> import pckd_nb as pckd
    >>> probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7]])
    >>> predictions = pckd.evaluation.Predictions(torch.zeros(3, 1), probabilities.log(), torch.tensor([0, 1, 1]))
    >>> found = pckd.analysis.calibration(predictions, bins=10)
    >>> round(found.ece, 1)  # 2/3 · |50 − 90| + 1/3 · |100 − 70|
    36.7
    """
    if not isinstance(predictions, Predictions):
        raise TypeError(f"predictions must be Predictions, got {type(predictions).__name__}: predict(...) returns them")
    check(Count, bins=bins)
    highest, predicted = predictions.logits.double().softmax(1).max(1)
    confidence, right = 100 * highest.numpy(), 100.0 * (predicted == predictions.labels).numpy()
    edges = np.linspace(0, 100, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):  # empty bins
        means = [np.bincount(place, values, minlength=bins) / count for values in (confidence, right)]
    table = pd.DataFrame({"low": edges[:-1], "high": edges[1:], "images": count})
    table["confidence"], table["accuracy"] = means
    gap = (table["accuracy"] - table["confidence"]).abs()
    ece = float((gap * table["images"]).sum() / len(confidence))
    return Calibration(ece, float(confidence.mean()), float(right.mean()), table)
