"""Geometry of class centers and class means: how two networks arrange the classes, and how this changes in training.

Class centers are the rows of the last layer's weight, one per class. The paper calls them category centers. Class means
are the mean penultimate features of every class. `collapse` has the measures of neural collapse.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from .. import collapse, recording
from ..arguments import Network, as_dataset, as_network, as_network_or_run, as_run
from ..data import Dataset
from ..evaluation import predict
from ..runs import Run, geometry_of, require_parts
from ..validation import check, check_matrix
from .embedding import directions
from .predictions import agreement

COLUMNS_WITH_TEACHER = "cka_means", "cka_centers", "rsa_means", "rsa_centers", "center_angle_to_teacher"


def center_similarity(centers: np.ndarray) -> np.ndarray:
    """Return the cosine similarity of all pairs of class centers, after their mean is subtracted.

    Parameters
    ----------
    centers : array of shape (C, D)

    Returns
    -------
    float64 array of shape (C, C)
        From -1 to 1.

    Raises
    ------
    ValueError
        If `centers` is not a matrix of finite numbers.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> pckd.analysis.center_similarity([[3.0, 1.0], [1.0, 1.0]])
    array([[ 1., -1.],
           [-1.,  1.]])
    """
    check_matrix("centers", centers)
    unit = directions(centers).astype(np.float64)
    return unit @ unit.T


def center_agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Return how much two networks agree on which classes are similar.

    This is the Pearson correlation of their `center_similarity` over all pairs of different classes.

    Parameters
    ----------
    a : array of shape (C, D)
        Class centers of the first network.
    b : array of shape (C, D')
        Class centers of the second network. The widths D and D' may differ.

    Returns
    -------
    float
        From -1 to 1, or NaN if one of the networks has the same similarity for all pairs.

    Raises
    ------
    ValueError
        If the numbers of classes differ or are below 3, or if an argument is not a matrix of finite numbers.
    """
    a, b = _similarities_of_pairs(a, b)
    return float(np.corrcoef(a, b)[0, 1])


def center_rsa(a: np.ndarray, b: np.ndarray) -> float:
    """Return how much two networks agree on the order of similarities (representational similarity analysis).

    This is the Spearman correlation of their `center_similarity` over all pairs of different classes. It is like
    `center_agreement`, but only the order of the similarities counts. So a few pairs with extreme similarities have
    less influence.

    Parameters
    ----------
    a : array of shape (C, D)
        Class centers or class means of the first network.
    b : array of shape (C, D')
        Those of the second network. The widths D and D' may differ.

    Returns
    -------
    float
        From -1 to 1, or NaN if one of the networks has the same similarity for all pairs.

    Raises
    ------
    ValueError
        If the numbers of classes differ or are below 3, or if an argument is not a matrix of finite numbers.

    References
    ----------
    Kriegeskorte, Mur and Bandettini, "Representational similarity analysis", Frontiers in Systems Neuroscience 2, 2008.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> centers = [[0.0, 0.0], [1.0, 0.0], [5.0, 1.0]]
    >>> stretched = [[0.0, 0.0], [1.2, 0.0], [6.0, 1.0]]  # the same order of similarities
    >>> round(pckd.analysis.center_rsa(centers, stretched), 3)
    1.0
    """
    a, b = _similarities_of_pairs(a, b)
    return float(spearmanr(a, b).statistic) if np.ptp(a) > 0 and np.ptp(b) > 0 else float("nan")


def _similarities_of_pairs(a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    """Return the `center_similarity` of two networks for all pairs of different classes."""
    _check_same_classes(a, b)
    pairs = np.triu_indices(len(a), 1)
    return [center_similarity(centers)[pairs] for centers in (a, b)]


def _check_same_classes(a: np.ndarray, b: np.ndarray) -> None:
    """Raise ValueError unless both are matrices with the same number of rows, 3 or more."""
    check_matrix("a", a)
    check_matrix("b", b)
    if len(a) != len(b) or len(a) < 3:
        raise ValueError(f"a and b must have the same number of rows (classes), 3 or more, got {len(a)} and {len(b)}")


def center_cka(a: np.ndarray, b: np.ndarray) -> float:
    r"""Return the linear CKA (centered kernel alignment) of two networks' class centers.

    .. math:: \frac{\|A^T B\|_F^2}{\|A^T A\|_F \, \|B^T B\|_F}

    A and B are the centers minus their mean. As with `center_agreement`, rotating a feature space changes nothing, and
    the networks may have different widths D. But in CKA, centers with a large norm count more.

    Parameters
    ----------
    a : array of shape (C, D)
        Class centers of the first network.
    b : array of shape (C, D')
        Class centers of the second network. The widths D and D' may differ.

    Returns
    -------
    float
        From 0 to 1, or NaN if the denominator is 0.

    Raises
    ------
    ValueError
        If the numbers of classes differ or are below 3, or if an argument is not a matrix of finite numbers.

    References
    ----------
    Kornblith et al., Similarity of Neural Network Representations Revisited, arXiv 1905.00414.
    """
    _check_same_classes(a, b)
    a, b = (np.asarray(centers, np.float64) - np.asarray(centers, np.float64).mean(0) for centers in (a, b))
    numerator, denominator = np.linalg.norm(a.T @ b) ** 2, np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(numerator / denominator) if denominator else float("nan")


def logit_correlation(features: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Return the correlation of all pairs of logits over the samples.

    The logits are features · centers, without the bias. The bias shifts a logit by the same amount for every sample, so
    it does not change the correlations. A logit that does not vary has correlation 1 with itself and 0 with all others.

    Parameters
    ----------
    features : array of shape (N, D)
        N ≥ 2.
    centers : array of shape (C, D)

    Returns
    -------
    float64 array of shape (C, C)
        From -1 to 1.

    Raises
    ------
    ValueError
        If the widths differ, if there are fewer than two samples, or if an argument is not a matrix of finite numbers.
    """
    check_matrix("features", features)
    check_matrix("centers", centers)
    if features.shape[1:] != centers.shape[1:] or len(features) < 2:
        raise ValueError(
            f"features must have 2 rows or more and the centers' width {centers.shape[1]}, got shape {features.shape}"
        )
    features = np.asarray(features, np.float64)
    logits = (features - features.mean(0)) @ np.asarray(centers, np.float64).T
    norm = np.linalg.norm(logits, axis=0)
    varies = norm > 1e-9 * max(norm.max(), 1e-300)
    logits = np.where(varies, logits / np.where(varies, norm, 1), 0)
    correlation = np.clip(logits.T @ logits, -1, 1)
    np.fill_diagonal(correlation, 1)
    return correlation


def difference_of_pairs(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Compare two symmetric matrices over all pairs of different classes. The diagonal is left out.

    Parameters
    ----------
    a, b : array of shape (C, C)
        C ≥ 2.

    Returns
    -------
    difference : float
        Mean absolute difference.
    correlation : float
        Correlation of a and b. NaN if one of them has the same value for all pairs.

    Raises
    ------
    ValueError
        If the matrices are not square, if their shapes differ, if C < 2, or if a value is not a finite number.
    """
    check_matrix("a", a)
    check_matrix("b", b)
    if a.shape != b.shape or len(a) < 2 or a.shape[0] != a.shape[1]:
        raise ValueError(
            f"a and b must be square matrices of the same shape, for 2 classes or more, got {a.shape} and {b.shape}"
        )
    pairs = np.triu_indices(len(a), 1)
    a, b = a[pairs], b[pairs]
    varies = np.ptp(a) > 0 and np.ptp(b) > 0
    return float(np.abs(a - b).mean()), float(np.corrcoef(a, b)[0, 1]) if varies else float("nan")


def center_angles(centers: np.ndarray, target: np.ndarray) -> np.ndarray:
    r"""Return the angle between every class center and its target, after the mean of the centers is subtracted.

    .. math:: \arccos \frac{(w_c - \bar w)^T (t_c - \bar t)}{\|w_c - \bar w\| \, \|t_c - \bar t\|}

    Parameters
    ----------
    centers : array of shape (C, D)
    target : array of shape (C, D)
        For example the centers after the last epoch, or those of a teacher of the same width.

    Returns
    -------
    float64 array of shape (C,)
        In degrees, from 0 (same direction) over 90 (orthogonal) to 180. A center that equals the mean has 90 degrees.

    Raises
    ------
    ValueError
        If an argument is not a matrix of finite numbers, or if the shapes differ.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> pckd.analysis.center_angles([[1.0, 0.0], [-1.0, 0.0]], [[0.0, 2.0], [0.0, 0.0]])
    array([90., 90.])
    """
    check_matrix("centers", centers)
    check_matrix("target", target)
    if np.shape(centers) != np.shape(target):
        raise ValueError(f"centers and target must have the same shape, got {np.shape(centers)} and {np.shape(target)}")
    centers, target = (directions(vectors).astype(np.float64) for vectors in (centers, target))
    # the arc cosine of a rounded cosine would be wrong for small angles
    half: np.ndarray = np.arctan2(*(np.linalg.norm(x, axis=1) for x in (centers - target, centers + target)))
    return np.degrees(2 * half)


def class_geometry(model: Network, data: Dataset | str, split: str = "test", **options: Any) -> dict[str, np.ndarray]:
    """Return class means, class centers and measures of neural collapse of a trained network.

    A training records the same for the test images in every epoch, see `Run.geometry`. Use this function for a run of
    an older version, for a teacher without a run, or for the training images. Neural collapse is defined on the
    training images: compute it with split="train". The measures on test images say how far it extends to new images.

    Parameters
    ----------
    model : Classifier, Run, nn.Module, str or Path
        A string or Path is the folder of a run.
    data : Dataset or str
        A data set, or its name.
    split : {"test", "train", "val"}
    **options
        `accelerator`, `precision` and `fabric`, as in `predict`.

    Returns
    -------
    dict of str to array
        As `Run.geometry`, with one row per array: "epoch" (the number of epochs of a run, otherwise 0), "means" and
        "centers" (float16, 1 × C × D), and the measures `collapse.MEASURES` (float32).

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        As in `predict`. Also if a run was saved without weights.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> geometry = pckd.analysis.class_geometry(pckd.create_model("resnet8", data, seed=0), data, "train")
    >>> geometry["means"].shape, geometry["nc1"].shape
    ((1, 10, 64), (1,))
    """
    found = as_network_or_run("model", model)
    network = found.model() if isinstance(found, Run) else found
    measured = recording.measure_geometry(network, predict(network, as_dataset(data), split, **options))
    epoch = len(found.history) if isinstance(found, Run) else 0
    rows: list[dict[str, Any]] = []
    recording.add_geometry(rows, {"epoch": epoch, **measured})
    return recording.stack_geometry(rows)


def geometry_table(
    run: Run | str | Path,
    teacher_geometry: Run | str | Path | Mapping[str, np.ndarray] | None = None,
    train: bool = False,
) -> pd.DataFrame:
    """Return the geometry of the classes by epoch: neural collapse, and the similarity to the teacher.

    By default, everything is measured on the test images, or on the validation images of a run without test images. The
    mean of a class depends on the images, so compare only runs on the same data.

    Parameters
    ----------
    run : Run, str or Path
        With recorded geometry. Runs of older versions have none, see `class_geometry`. A string or Path is the folder
        of a run.
    teacher_geometry : Run, str, Path or dict of str to array, optional
        The teacher's run with recorded geometry, or the result of `class_geometry` for the teacher. Its last row is
        used.
    train : bool
        Use the geometry of the training images. It is recorded only with `training.RecordTrainGeometry`. A dict for
        `teacher_geometry` must then be `class_geometry` with split="train".

    Returns
    -------
    DataFrame
        One row per epoch. The columns are:

        - epoch,
        - the measures of neural collapse, see `collapse.collapse_measures`,
        - center_angle_to_end: mean angle between the class centers and those after the last recorded epoch, in degrees,
          see `center_angles`. NaN if the run has not recorded the centers, because they are too large.

        With a teacher also:

        - cka_means and cka_centers: `center_cka` of the class means and of the class centers with the teacher's,
        - rsa_means and rsa_centers: `center_rsa` of them,
        - center_angle_to_teacher: mean angle to the teacher's centers in degrees. NaN if the widths differ.

        CKA and RSA are NaN for fewer than 3 classes.

    Raises
    ------
    ValueError
        If the run or the teacher has no recorded geometry, if it has not recorded the vectors that a comparison needs,
        or if the numbers of classes differ.
    TypeError
        If an argument has the wrong type.
    FileNotFoundError
        If a folder is not a run.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> run = pckd.fit("resnet8", data, epochs=2, progress=False)
    >>> table = pckd.analysis.geometry_table(run)
    >>> table["epoch"].tolist(), float(table["center_angle_to_end"].iloc[-1])
    ([1, 2], 0.0)
    """
    check(bool, train=train)
    geometry, teacher = _recorded(run, train), None
    if teacher_geometry is not None:
        teacher = _geometry_of_teacher(teacher_geometry, train)
        for name, arrays in (("run", geometry), ("teacher", teacher)):
            if "centers" not in arrays:
                raise ValueError(
                    f"the {name} has recorded no class centers, because those of all epochs would be too large: "
                    "compare its last epoch with class_geometry instead"
                )
        classes, wanted = geometry["centers"].shape[1], teacher["centers"].shape[1]
        if classes != wanted:
            raise ValueError(f"the run has {classes} classes, but the teacher has {wanted}: both need the same data")
    table = pd.DataFrame({name: geometry[name] for name in ("epoch", *collapse.MEASURES)})
    table["center_angle_to_end"] = np.nan
    if "centers" in geometry:
        centers = geometry["centers"].astype(np.float64)
        table["center_angle_to_end"] = [center_angles(x, centers[-1]).mean() for x in centers]
        if teacher is not None:
            rows = [_similarity_to(teacher, *vectors) for vectors in zip(geometry["means"], centers, strict=True)]
            table[list(COLUMNS_WITH_TEACHER)] = np.array(rows)
    return table


def _recorded(given: object, train: bool) -> dict[str, np.ndarray]:
    run = require_parts(as_run(given), "geometry")
    geometry = geometry_of(run.geometry, train)
    if not geometry:
        raise ValueError(
            f"the run {run.title} has no geometry of training images: train it with callbacks=[RecordTrainGeometry()]"
        )
    return geometry


def _geometry_of_teacher(given: object, train: bool) -> Mapping[str, np.ndarray]:
    if isinstance(given, Run | str | Path):
        return _recorded(given, train)
    if not isinstance(given, Mapping) or not {"epoch", *collapse.MEASURES} <= given.keys():
        wanted = "a Run, the folder of one, or the result of class_geometry"
        raise TypeError(f"teacher_geometry must be {wanted}, got {type(given).__name__}")
    return given


def _similarity_to(teacher: Mapping[str, np.ndarray], means: np.ndarray, centers: np.ndarray) -> list[float]:
    """Return the values of `COLUMNS_WITH_TEACHER` for the vectors of one epoch."""
    teacher_means, teacher_centers = (teacher[name][-1].astype(np.float64) for name in ("means", "centers"))
    present = np.isfinite(means).all(1) & np.isfinite(teacher_means).all(1)  # classes with images
    pairs = (means[present], teacher_means[present]), (centers, teacher_centers)
    similarity = [
        measure(*pair) if len(pair[0]) > 2 else float("nan") for measure in (center_cka, center_rsa) for pair in pairs
    ]
    same_width = centers.shape == teacher_centers.shape
    return [*similarity, float(center_angles(centers, teacher_centers).mean()) if same_width else float("nan")]


def class_gains(run: Network, reference: Network, data: Dataset | str, **options: Any) -> pd.DataFrame:
    """Return the gain in accuracy of every class, and the angle between its center and the nearest other center.

    The table shows whether a method helps the classes that the reference network hardly separates: does the gain grow
    when the angle is small? And does the method move these centers apart?

    Parameters
    ----------
    run, reference : Classifier, Run, nn.Module, str or Path
        Two networks, for example students that were trained with and without a loss term. A string or Path is the
        folder of a run.
    data : Dataset or str
        A data set, or its name. The test images are used.
    **options
        `accelerator`, `precision` and `fabric`, as in `predict`.

    Returns
    -------
    DataFrame
        One row per class. The columns are:

        - class and images: its name, and its number of test images,
        - accuracy and reference_accuracy: percentage of these images on which each network is right,
        - gain: accuracy minus reference_accuracy, in percentage points. NaN without images,
        - nearest: name of the class whose center has the smallest angle in the reference network,
        - reference_angle: this angle in degrees, after the mean of all centers is subtracted,
        - angle: the angle between the same two centers in the other network.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        As in `agreement`. Also if there are fewer than 2 classes.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> networks = [pckd.create_model("resnet8", data, seed=seed) for seed in (0, 1)]
    >>> pckd.analysis.class_gains(*networks, data).columns.tolist()[-3:]
    ['nearest', 'reference_angle', 'angle']
    """
    networks = as_network("run", run), as_network("reference", reference)
    classes = agreement(*networks, data, **options).classes
    if len(classes) < 2:
        raise ValueError(f"class_gains needs 2 classes or more, got {len(classes)}")
    similarity, of_reference = (
        center_similarity(network.head.weight.detach().float().cpu().numpy()) for network in networks
    )
    np.fill_diagonal(of_reference, -np.inf)
    nearest = of_reference.argmax(1)
    rows = np.arange(len(nearest))
    table = classes[["class", "images", "a", "b", "difference"]]
    table = table.rename(columns={"a": "accuracy", "b": "reference_accuracy", "difference": "gain"})
    table["nearest"] = classes["class"].to_numpy()[nearest]
    for name, cosines in (("reference_angle", of_reference), ("angle", similarity)):
        table[name] = np.degrees(np.arccos(cosines[rows, nearest].clip(-1, 1)))
    return table
