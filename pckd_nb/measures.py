r"""Measures of how hard every training sample was: equations over what a run records in every epoch.

A training records a few numbers for every sample, each time the student sees it, which is once per epoch. They are
computed before the weights are updated, from the logits of the image that is not rotated. It may be cropped and
flipped. `margin` and `error_norm` are two of these numbers. The others are the cross-entropy and the difficulty γ, see
`preview`. The other functions turn the recorded arrays into one value per sample. `sample_measures` returns all of them
as a table, and `Run.samples` adds names, labels and predictions.

- **Label smoothing** changes the loss, but not what is recorded: the cross-entropy of the label. So all measures keep
  their meaning.
- **MixUp and CutMix** mix every image with another one. All numbers are then those of the mixed image, for the label of
  its first part. A sample counts as wrong if the other part wins. Do not compare such measures with those of a training
  without mixing.
- **Your own methods** may record something else as cross-entropy in `Terms`. Then `confidence` has no meaning. The
  margin is always computed from the logits.

Values are recorded as float16, with a relative error of at most 0.05 %. A confidence is then wrong by less than 0.0002.
The cross-entropy of samples that are easy for a network can be exactly 0, because it is computed in float32. So ranks
by cross-entropy have ties among the easiest samples. Margins have far fewer ties.

Examples
--------
>>> import numpy as np
>>> import pckd_nb as pckd
>>> margin = np.array([[-1.0, 2.0], [0.5, 3.0], [-0.5, 4.0]])  # three epochs, two samples
>>> pckd.measures.forgetting_events(margin).tolist()
[1.0, 0.0]
>>> pckd.measures.area_under_margin(margin).round(2).tolist()
[-0.33, 3.0]
"""

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .tensor_checks import FLOAT_DTYPES, check_labels, check_whole_number

EL2N_EPOCHS = 20  # `error_norm` is recorded in the first epochs only, because EL2N is a score of early training
REGIONS = ("easy to learn", "ambiguous", "hard to learn")

# Measure → whether hard samples have large values (1) or small ones (-1). `sample_measures` has these columns.
HARD_IS = {
    "gamma": 1,
    "gamma_mean": 1,
    "cross_entropy": 1,
    "cross_entropy_mean": 1,
    "confidence": -1,
    "variability": 1,
    "correctness": -1,
    "forgetting_events": 1,
    "first_learned": 1,
    "area_under_margin": -1,
    "el2n": 1,
}
TEACHER_HARD_IS = {"teacher_cross_entropy": 1, "teacher_margin": -1}  # the same for the teacher's view in `Run.samples`
DIRECTIONS = {**HARD_IS, **TEACHER_HARD_IS}


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Return the margin of every sample: the logit of its label minus the largest other logit.

    .. math::

        m_i = z_{i, y_i} - \max_{j \ne y_i} z_{i, j}

    The sign says whether the prediction is correct, also where two logits are equal: then the margin is 0 or -0.
    Rounding to float16 keeps the sign. So whether a sample was classified correctly need not be stored, see `correct`.

    Parameters
    ----------
    logits : float Tensor of shape (B, C)
        z.
    labels : int64 Tensor of shape (B,)
        y, from 0 to C - 1.

    Returns
    -------
    Tensor of shape (B,)
        m. Its sign bit is not set if the label is the prediction, which is ``logits.argmax(1)``.

    Raises
    ------
    TypeError
        If logits or labels are not tensors.
    ValueError
        If a shape, dtype or device is wrong, if there is only one class, or if a label is outside the range of classes.

    References
    ----------
    Pleiss et al., "Identifying Mislabeled Data using the Area Under the Margin Ranking", arXiv 2001.10528.

    Examples
    --------
    >>> import torch
    >>> import pckd_nb as pckd
    >>> logits = torch.tensor([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0], [2.0, 2.0, 0.0]])
    >>> pckd.measures.margin(logits, torch.tensor([0, 1, 1])).tolist()  # the third prediction is 0, not 1
    [2.0, -2.0, -0.0]
    """
    column = _column_of_labels(logits, labels)
    difference = logits.gather(1, column)[:, 0] - logits.scatter(1, column, -torch.inf).amax(1)
    sign = (logits.argmax(1) == labels).to(logits.dtype) - 0.5
    return torch.copysign(difference, sign)


def error_norm(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Return the L2 norm of the error of every sample. Its mean over early epochs is the EL2N score, see `el2n`.

    .. math::

        e_i = \lVert \mathrm{softmax}(z_i) - \mathrm{onehot}(y_i) \rVert_2

    Parameters
    ----------
    logits : float Tensor of shape (B, C)
        z.
    labels : int64 Tensor of shape (B,)
        y, from 0 to C - 1.

    Returns
    -------
    Tensor of shape (B,)
        e, from 0 to √2.

    Raises
    ------
    TypeError
        As in `margin`.
    ValueError
        As in `margin`.

    References
    ----------
    Paul et al., "Deep Learning on a Data Diet", arXiv 2107.07075.

    Examples
    --------
    >>> import torch
    >>> import pckd_nb as pckd
    >>> round(pckd.measures.error_norm(torch.zeros(1, 2), torch.tensor([0])).item(), 4)  # both errors are 1/2
    0.7071
    """
    column = _column_of_labels(logits, labels)
    errors = logits.softmax(1)
    return errors.scatter_add(1, column, -torch.ones_like(errors[:, :1])).norm(dim=1)


def correct(margin: np.ndarray) -> np.ndarray:
    """Return whether every sample was classified correctly, see the sign in `margin`.

    Parameters
    ----------
    margin : float array of shape (epochs, samples)

    Returns
    -------
    bool array of shape (epochs, samples)
        False where the margin is NaN, because the epoch was not reached.

    Raises
    ------
    ValueError
        If `margin` is not a matrix of numbers with at least one epoch and one sample.
    """
    margin = _by_epoch("margin", margin)
    return ~(np.signbit(margin) | np.isnan(margin))


def confidence(cross_entropy: np.ndarray) -> np.ndarray:
    r"""Return the probability that the network gave to the label of every sample.

    .. math::

        p = e^{-\mathrm{CE}}

    Parameters
    ----------
    cross_entropy : float array of shape (epochs, samples), in nats
        Cross-entropy with the label, not with soft targets, and without a weight.

    Returns
    -------
    float32 array of shape (epochs, samples)
        p, in [0, 1].

    Raises
    ------
    ValueError
        If `cross_entropy` is not a matrix of numbers with at least one epoch and one sample.
    """
    return np.exp(-_by_epoch("cross_entropy", cross_entropy).astype(np.float32))


def data_map(cross_entropy: np.ndarray) -> pd.DataFrame:
    r"""Return the place of every sample on a data map (dataset cartography).

    .. math::

        \mu_i = \frac{1}{E} \sum_t p_{t, i}, \qquad \sigma_i = \sqrt{\frac{1}{E} \sum_t (p_{t, i} - \mu_i)^2}

    p is the `confidence` of an epoch, and E is the number of epochs. Here p is recorded in the step that trains on the
    augmented sample. In the paper, it is computed at the end of an epoch, with fixed weights. The paper names three
    regions, which overlap, and leaves their borders open. Here every sample is in one region:

    - "ambiguous": σ is in the highest third of all samples.
    - "easy to learn": of the others, those with μ of at least 1/2.
    - "hard to learn": the rest. The paper finds many mislabelled samples here.

    Parameters
    ----------
    cross_entropy : float array of shape (epochs, samples), in nats

    Returns
    -------
    DataFrame
        One row per sample: "confidence" is μ, in [0, 1]. "variability" is σ, in [0, 1/2]. "region" is one of `REGIONS`.

    Raises
    ------
    ValueError
        If `cross_entropy` is not a matrix of numbers with at least one epoch and one sample.

    References
    ----------
    Swayamdipta et al., "Dataset Cartography: Mapping and Diagnosing Datasets with Training Dynamics", arXiv 2009.10795.
    The third is the share that the paper selects from a region.

    Examples
    --------
    >>> import numpy as np
    >>> import pckd_nb as pckd
    >>> p = np.array([[0.9, 0.1, 0.2], [0.9, 0.9, 0.2]])  # two epochs, three samples
    >>> pckd.measures.data_map(-np.log(p)).round(2)
       confidence  variability         region
    0         0.9          0.0  easy to learn
    1         0.5          0.4      ambiguous
    2         0.2          0.0  hard to learn
    """
    p = confidence(cross_entropy)
    mean, deviation = p.mean(0, dtype=np.float64), p.std(0, dtype=np.float64)
    ambiguous = deviation > np.quantile(deviation, 2 / 3)
    easy, unclear, hard = REGIONS
    region = np.where(ambiguous, unclear, np.where(mean >= 0.5, easy, hard))
    return pd.DataFrame(
        {"confidence": mean, "variability": deviation, "region": pd.Categorical(region, REGIONS, ordered=True)}
    )


def correctness(margin: np.ndarray) -> np.ndarray:
    """Return the share of epochs in which every sample was classified correctly.

    Parameters
    ----------
    margin : float array of shape (epochs, samples)

    Returns
    -------
    float array of shape (samples,), in [0, 1]

    Raises
    ------
    ValueError
        If `margin` is not a matrix of numbers with at least one epoch and one sample.

    References
    ----------
    Swayamdipta et al., arXiv 2009.10795.
    """
    return correct(margin).mean(0)


def forgetting_events(margin: np.ndarray) -> np.ndarray:
    r"""Return how often every sample was forgotten: classified correctly in an epoch, and wrongly in the next one.

    .. math::

        f_i = \sum_t \mathbb{1}[\mathrm{acc}_{t, i} > \mathrm{acc}_{t + 1, i}]

    acc is 1 if the sample is classified correctly in the step that trains on it. As in the paper, a sample that is
    never classified correctly counts as forgotten infinitely often.

    Parameters
    ----------
    margin : float array of shape (epochs, samples)

    Returns
    -------
    float array of shape (samples,)
        Whole numbers, or infinity.

    Raises
    ------
    ValueError
        If `margin` is not a matrix of numbers with at least one epoch and one sample.

    References
    ----------
    Toneva et al., "An Empirical Study of Example Forgetting during Deep Neural Network Learning", arXiv 1812.05159.
    """
    right = correct(margin)
    return np.where(right.any(0), (right[:-1] & ~right[1:]).sum(0), np.inf)


def first_learned(margin: np.ndarray) -> np.ndarray:
    """Return the first epoch in which every sample was classified correctly: its first learning event.

    Parameters
    ----------
    margin : float array of shape (epochs, samples)

    Returns
    -------
    float array of shape (samples,)
        Counted from 1. NaN for a sample that is never learned.

    Raises
    ------
    ValueError
        If `margin` is not a matrix of numbers with at least one epoch and one sample.

    References
    ----------
    Toneva et al., arXiv 1812.05159.
    """
    right = correct(margin)
    return np.where(right.any(0), right.argmax(0) + 1.0, np.nan)


def area_under_margin(margin: np.ndarray) -> np.ndarray:
    r"""Return the area under the margin (AUM) of every sample: its mean `margin` over the epochs.

    .. math::

        \mathrm{AUM}_i = \frac{1}{E} \sum_t m_{t, i}

    A wrong label has a low AUM: similar samples of its true class raise another logit.

    Parameters
    ----------
    margin : float array of shape (epochs, samples)

    Returns
    -------
    float array of shape (samples,)

    Raises
    ------
    ValueError
        If `margin` is not a matrix of numbers with at least one epoch and one sample.

    References
    ----------
    Pleiss et al., arXiv 2001.10528.
    """
    return _by_epoch("margin", margin).mean(0, dtype=np.float64)


def el2n(error_norms: np.ndarray, first_epoch: int = 1, last_epoch: int | None = None) -> np.ndarray:
    r"""Return the EL2N score of every sample: the mean of its `error_norm` over early epochs.

    .. math::

        \mathrm{EL2N}_i = \frac{1}{T} \sum_{t} e_{t, i}

    The paper averages over ten networks in one epoch, such as epoch 20 of 200. Average the scores of several runs to do
    the same.

    Parameters
    ----------
    error_norms : float array of shape (epochs, samples)
        e, such as `Run.error_norms`.
    first_epoch, last_epoch : int
        The T epochs of the mean, counted from 1. Both are included. None means all epochs from `first_epoch`.

    Returns
    -------
    float array of shape (samples,), from 0 to √2

    Raises
    ------
    TypeError
        If an epoch is not a whole number.
    ValueError
        If an epoch is not in the array, or if `error_norms` is not a matrix of numbers with at least one sample.

    References
    ----------
    Paul et al., arXiv 2107.07075.
    """
    error_norms = _by_epoch("error_norms", error_norms)
    check_whole_number("first_epoch", first_epoch, 1, len(error_norms))
    last_epoch = len(error_norms) if last_epoch is None else last_epoch
    check_whole_number("last_epoch", last_epoch, first_epoch, len(error_norms))
    return error_norms[first_epoch - 1 : last_epoch].mean(0, dtype=np.float64)


def sample_measures(
    cross_entropy: np.ndarray,
    difficulty: np.ndarray,
    margin: np.ndarray | None = None,
    error_norms: np.ndarray | None = None,
) -> pd.DataFrame:
    """Return all measures of every sample.

    `HARD_IS` says for every column of numbers whether large or small values mean a hard sample.

    Parameters
    ----------
    cross_entropy, difficulty : float array of shape (epochs, samples)
        At least one epoch, and complete epochs only.
    margin : float array of shape (epochs, samples), optional
    error_norms : float array of shape (early epochs, samples), optional

    Returns
    -------
    DataFrame
        One row per sample. "gamma" and "cross_entropy" are the values of the last epoch, and "gamma_mean" and
        "cross_entropy_mean" are means over the epochs. "confidence", "variability" and "region" are those of
        `data_map`. "correctness", "forgetting_events", "first_learned" and "area_under_margin" need `margin`, and
        "el2n" needs `error_norms`: without them, these columns are left out.

    Raises
    ------
    ValueError
        If an array is not a matrix of numbers with at least one epoch and one sample, or if shapes do not match.
    """
    optional = {"margin": margin, "error_norms": error_norms}
    given = {"cross_entropy": cross_entropy, "difficulty": difficulty}
    given |= {name: values for name, values in optional.items() if values is not None}
    arrays = {name: _by_epoch(name, values) for name, values in given.items()}
    if len({values.shape[1] for values in arrays.values()}) > 1:
        raise ValueError(
            "the arrays must have the same number of samples, got "
            + ", ".join(f"{name} of shape {values.shape}" for name, values in arrays.items())
        )
    columns: dict[str, Any] = {}
    for name, values in (("gamma", arrays["difficulty"]), ("cross_entropy", arrays["cross_entropy"])):
        columns[name] = values[-1].astype(np.float32)
        columns[f"{name}_mean"] = values.mean(0, dtype=np.float64)
    table = pd.concat([pd.DataFrame(columns), data_map(cross_entropy)], axis=1)
    if margin is not None:
        for measure in (correctness, forgetting_events, first_learned, area_under_margin):
            table[measure.__name__] = measure(margin)
        table["first_learned"] = table["first_learned"].astype("Int64")  # whole numbers, <NA> if never learned
    if error_norms is not None:
        table["el2n"] = el2n(error_norms)
    return table


def _column_of_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the labels as a column, after checking them and the logits."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits must be a tensor, got {type(logits).__name__}")
    if logits.dtype not in FLOAT_DTYPES or logits.ndim != 2 or not len(logits) or logits.shape[1] < 2:
        got = f"{logits.dtype} of shape {tuple(logits.shape)}"
        raise ValueError(f"logits must be floats of shape (B, C) with at least two classes, got {got}")
    check_labels(labels, logits, num_classes=logits.shape[1])
    return labels.long()[:, None]


def _by_epoch(name: str, values: np.ndarray) -> np.ndarray:
    """Return values as an array of shape (epochs, samples). Raise ValueError if they are something else."""
    try:
        found = np.asarray(values)
    except ValueError:  # rows of unequal length
        raise ValueError(f"{name} must have one row per epoch: all rows must have the same length") from None
    if found.dtype.kind not in "fiu" or found.ndim != 2 or not found.size:
        raise ValueError(
            f"{name} must be numbers with one row per epoch and one column per sample, got {found.dtype} of shape "
            f"{found.shape}"
        )
    return found


def hardness(table: pd.DataFrame, name: str) -> np.ndarray:
    """Return a measure of a table of samples such that harder samples always have larger values.

    Parameters
    ----------
    table : DataFrame
        The table of `Run.samples`.
    name : str
        A column, one of `DIRECTIONS`.

    Returns
    -------
    float64 array of shape (samples,)
        The measure, times -1 if hard samples have small values. Infinity for samples that were never learned.

    Examples
    --------
    >>> import pandas as pd
    >>> import pckd_nb as pckd
    >>> pckd.measures.hardness(pd.DataFrame({"confidence": [0.9, 0.2]}), "confidence").tolist()
    [-0.9, -0.2]
    """
    return (DIRECTIONS[name] * table[name].astype("Float64")).to_numpy(float, na_value=np.inf)
