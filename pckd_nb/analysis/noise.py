"""How well a measure of the training images finds wrong labels.

With label noise (see `Dataset.with_label_noise`), it is known which labels are wrong. A *score* of an image says how
suspicious its label is: a measure of its difficulty, for example. The images with the highest scores are checked first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from ..measures import DIRECTIONS, hardness
from ..messages import one_line
from ..validation import Count, checked

DEFAULT_K = (50, 100, 200)


def precision_at_k(
    scores: Sequence[float] | np.ndarray | pd.Series, flipped: Sequence[bool] | np.ndarray | pd.Series, k: int
) -> float:
    """Return the share of wrong labels among the k images with the highest scores.

    If scores are tied at place k, the result is the average over all ways to break the tie.

    Parameters
    ----------
    scores : float array of shape (samples,)
        NaN is not allowed, infinity is.
    flipped : bool array of shape (samples,)
        Whether the label of each image is wrong.
    k : int
        From 1 to the number of images.

    Returns
    -------
    float
        From 0 to 1. For scores at random, it is on average the share of wrong labels among all images.

    Raises
    ------
    ValueError
        If shapes do not match, a score is NaN, or `k` is outside its range.
    TypeError
        If `scores` are not numbers, `flipped` is not boolean, or `k` is not a whole number.

    Examples
    --------
    >>> from pckd_nb.analysis import precision_at_k
    >>> precision_at_k([0.9, 0.8, 0.3, 0.1], [True, False, True, False], k=2)
    0.5
    """
    values, wrong = _checked_scores("scores", scores), _checked_flipped(flipped)
    if len(values) != len(wrong):
        raise ValueError(f"there must be one score per image, got {len(values)} scores for {len(wrong)} images")
    k = _checked_k(k, len(values))
    last = np.partition(values, -k)[-k]  # the lowest score that still has a place
    above, tied = values > last, values == last
    found = wrong[above].sum() + (k - above.sum()) * wrong[tied].mean()
    return float(found / k)


def noise_detection(
    table: pd.DataFrame,
    flipped: Sequence[bool] | np.ndarray | pd.Series,
    measures: Mapping[str, int] | Sequence[str] | None = None,
    k: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Compare how well several measures find wrong labels.

    Parameters
    ----------
    table : DataFrame
        One row per training image, and a column for each measure.
    flipped : bool array of shape (samples,)
        Whether the label of each image is wrong: ``run.labels != run.true_labels``.
    measures : dict of str to {1, -1}, or sequence of str, optional
        Names of columns. 1 means that high values are suspicious, such as a high cross-entropy. -1 means that low
        values are suspicious, such as a low confidence. In a sequence, all are 1. By default, all
        measures of `Run.samples` that the table has. Images that were never learned then count as learned last.
    k : sequence of int, optional
        For each number k, the precision at k is computed, see `precision_at_k`. Default: those of 50, 100 and 200 that
        are not larger than the number of images.

    Returns
    -------
    DataFrame
        One row per measure, in the order of `measures`. The columns are:

        - measure,
        - precision_at_K for each number in `k`,
        - average_precision: the precision at the rank of each wrong label, averaged over all wrong labels, see
          `sklearn.metrics.average_precision_score`,
        - auc: the probability that a wrong label has a higher score than a right one, the area under the ROC curve.

        For random scores, precision and average precision are near the share of wrong labels, and auc is near 0.5.

    Raises
    ------
    ValueError
        If a column is missing or has NaN, all labels are right or all are wrong, or an argument is not valid.
    TypeError
        If an argument has another type.

    Examples
    --------
    >>> import pandas as pd
    >>> from pckd_nb.analysis import noise_detection
    >>> table = pd.DataFrame({"cross_entropy": [2.0, 0.1, 0.7, 0.2], "confidence": [0.1, 0.9, 0.5, 0.8]})
    >>> flipped = [True, False, False, True]
    >>> noise_detection(table, flipped, {"cross_entropy": 1, "confidence": -1}, k=[1])
             measure  precision_at_1  average_precision   auc
    0  cross_entropy             1.0           0.833333  0.75
    1     confidence             1.0           0.833333  0.75
    """
    from sklearn.metrics import average_precision_score, roc_auc_score  # slow to import, so only when needed

    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"table must be a DataFrame, got {type(table).__name__}")
    if isinstance(flipped, pd.Series) and not flipped.index.equals(table.index):
        raise ValueError("flipped has another index than the table: pass flipped[table.index], or an array")
    wrong = _checked_flipped(flipped)
    k = [number for number in DEFAULT_K if number <= len(table)] if k is None else k
    if len(wrong) != len(table):
        raise ValueError(f"flipped must have one value per row of the table, {len(table)}, got {len(wrong)}")
    if wrong.all() or not wrong.any():
        raise ValueError(f"flipped must have right and wrong labels, got {wrong.sum()} wrong ones of {len(wrong)}")
    if isinstance(k, str) or not isinstance(k, Sequence | np.ndarray):
        raise TypeError(f"k must be a list of whole numbers, got {type(k).__name__}")
    sizes = [_checked_k(number, len(wrong)) for number in k]
    if measures is None:
        known = [name for name in DIRECTIONS if name in table]
        table, directions = pd.DataFrame({name: hardness(table, name) for name in known}), dict.fromkeys(known, 1)
    else:
        directions = _directions(measures)
    rows = []
    for name, sign in directions.items():
        if name not in table:
            columns = one_line(", ".join(map(str, table.columns)))
            raise ValueError(f"measures must be columns of the table, got {name!r}, its columns are {columns}")
        # Only the order of the scores counts. Ranks have it, too, and scikit-learn does not accept infinity.
        scores = rankdata(sign * _checked_scores(name, table[name]))
        rows.append(
            {
                "measure": name,
                **{f"precision_at_{size}": precision_at_k(scores, wrong, size) for size in sizes},
                "average_precision": float(average_precision_score(wrong, scores)),
                "auc": float(roc_auc_score(wrong, scores)),
            }
        )
    return pd.DataFrame(rows)


def confident_learning(labels: Sequence[int] | np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return scores of the confident learning of the library cleanlab: how suspicious each label is.

    Confident learning estimates, for each pair of classes, how many images have label i but belong to class j. An image
    counts for class j if its probability of j is above the mean probability of j among the images with label j. The
    labels that cleanlab calls wrong by this estimate come first. Within both groups, labels are ordered by the
    difference between the probability of the label and the largest other probability. So the scores can be compared
    with other measures in `noise_detection`.

    cleanlab expects probabilities of networks that were not trained on the images themselves, as in cross-validation.
    A network that was trained on an image with a wrong label may have learned that label. So with the probabilities of
    a run for its own training images, the result is usually worse than cleanlab can do. Say which ones you used.

    Parameters
    ----------
    labels : int array of shape (samples,)
        The given labels, some of which may be wrong. Each class must occur.
    probabilities : float array of shape (samples, classes)
        Predicted probabilities of each image. Each row adds up to 1.

    Returns
    -------
    float array of shape (samples,)
        From 0 to 2. Higher scores are more suspicious. Those of labels that cleanlab calls wrong are 1 or more.

    Raises
    ------
    ValueError
        If the package cleanlab is not installed, shapes do not match, or a value is outside its range.

    References
    ----------
    Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", Journal of Artificial
    Intelligence Research 70, 2021.

    Examples
    --------
    The probabilities of a run for its own training images. They are not what cleanlab expects, see above:

    >>> import pckd_nb as pckd
    >>> from pckd_nb.analysis import confident_learning
    >>> from pckd_nb.evaluation import compute_outputs
    >>> data = pckd.load_dataset("digits", train_size=100, label_noise=0.2)
    >>> run = pckd.fit("resnet8", data, epochs=1, progress=False)
    >>> outputs = compute_outputs(run.model(), data, "train")
    >>> scores = confident_learning(run.labels, outputs.logits.softmax(1).numpy())  # doctest: +SKIP
    """
    given, predicted = np.asarray(labels), np.asarray(probabilities, float)
    if predicted.ndim != 2 or given.shape != predicted.shape[:1] or given.dtype.kind not in "iu":
        raise ValueError(
            "labels must be whole numbers of shape (samples,) and probabilities of shape (samples, classes), got "
            f"{given.dtype} of shape {given.shape} and shape {predicted.shape}"
        )
    classes = predicted.shape[1]
    if not len(given) or not 0 <= given.min() <= given.max() < classes:
        raise ValueError(f"labels must be from 0 to {classes - 1}, one per column of probabilities")
    if missing := sorted(set(range(classes)) - set(given.tolist())):
        raise ValueError(f"each class must occur in labels, but class {missing[0]} does not: leave out its column")
    if not ((predicted >= 0) & (predicted <= 1)).all() or not np.allclose(predicted.sum(1), 1, atol=1e-3):
        raise ValueError("probabilities must be from 0 to 1, and each row must add up to 1: use logits.softmax(1)")
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        raise ValueError("confident_learning needs the package cleanlab: pip install 'pckd_nb[analysis]'") from None
    is_issue = find_label_issues(given, predicted, n_jobs=1)
    quality = get_label_quality_scores(given, predicted, method="normalized_margin")
    scores: np.ndarray = is_issue + (1 - quality)
    return scores


def _checked_scores(name: str, scores: Any) -> np.ndarray:
    """Return scores as floats. Raise TypeError or ValueError unless there is one number per image."""
    try:
        values = np.asarray(scores, float)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be numbers, one per image") from None
    if values.ndim != 1 or not len(values) or np.isnan(values).any():
        found = f"shape {values.shape}" if values.ndim != 1 or not len(values) else f"{np.isnan(values).sum()} NaN"
        raise ValueError(f"{name} must have one number per image, got {found}")
    return values


def _checked_flipped(flipped: Any) -> np.ndarray:
    """Return `flipped` as a bool array. Raise TypeError or ValueError unless there is one truth value per image."""
    values = np.asarray(flipped)
    if values.dtype != bool:
        raise TypeError(f"flipped must be True or False for each image, got {values.dtype}: pass labels != true_labels")
    if values.ndim != 1:
        raise ValueError(f"flipped must have shape (samples,), got {values.shape}")
    return values


def _checked_k(k: Any, samples: int) -> int:
    """Return k. Raise TypeError or ValueError unless it is a whole number from 1 to the number of images."""
    number: int = checked(Count, "k", k)
    if number > samples:
        raise ValueError(f"k must be at most {samples}, the number of images, got {number}")
    return number


def _directions(measures: Any) -> dict[str, int]:
    """Return the direction of each measure, 1 or -1, by its name."""
    if isinstance(measures, str) or not isinstance(measures, Mapping | Sequence):
        raise TypeError(f"measures must be a list of columns, or a dict of 1 and -1, got {type(measures).__name__}")
    directions = dict(measures) if isinstance(measures, Mapping) else dict.fromkeys(measures, 1)
    if not directions:
        raise ValueError("measures must have at least one name of a column, got none")
    if wrong := [name for name, sign in directions.items() if sign not in (1, -1)]:
        raise ValueError(f"measures must be 1 or -1, got {directions[wrong[0]]!r} for {wrong[0]!r}")
    return directions
