"""Difficulty of training samples.

The difficulty γ of a sample is its cross-entropy divided by the mean cross-entropy of its batch. Each image of
shapes100 is generated with a difficulty from 0 (easy) to 1 (hard), which is stored with it. This is its *known
difficulty*. The *recorded samples* of a run are the cross-entropy and γ of every training sample in every epoch.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from ..arguments import as_run
from ..html import counted
from ..measures import DIRECTIONS, hardness
from ..runs import Run
from ..validation import Count, check, checked


def difficulty_vs_truth(run: Run) -> float:
    """Return the rank correlation between γ in the last complete epoch and the known difficulty of the training images.

    Parameters
    ----------
    run : Run
        Trained on images whose difficulty is known.

    Returns
    -------
    float
        Spearman's ρ, from -1 to 1.

    Raises
    ------
    ValueError
        If the difficulty of the images is not known, or if the run has no complete epoch.
    """
    if run.ground_truth is None:
        raise ValueError(
            f"the difficulty of {run.settings['data']['name']} images is not known; use a run on shapes100"
        )
    return float(spearmanr(last_difficulty(run), run.ground_truth.astype(np.float32)).statistic)


def last_difficulty(run: Run) -> np.ndarray:
    """Return γ of every training sample in the last complete epoch.

    Parameters
    ----------
    run : Run

    Returns
    -------
    float32 array of shape (samples,)

    Raises
    ------
    ValueError
        If the run has no recorded samples or no complete epoch.
    """
    if run.difficulty is None or run.history.empty:
        raise ValueError(
            f"the run {run.title} has no recorded γ, because it has no complete epoch or no recorded samples; train it "
            "again for one epoch or more"
        )
    return run.difficulty[len(run.history) - 1].astype(np.float32)


SAMPLE_KINDS = ("learned early", "learned late", "never learned")


def kinds_of_samples(run: Run) -> dict[str, np.ndarray]:
    """Find three kinds of training samples by their recorded cross-entropy.

    A sample counts as *learned* in an epoch if the network gives its class a probability p above 1/2. This is the case
    if its cross-entropy, −ln p, is below ln 2. The kinds are:

    - "learned early": learned in every epoch after the first third.
    - "learned late": learned in every epoch of the last quarter, but in no epoch of the first half. If the number of
      epochs is odd, the middle epoch belongs to the first half.
    - "never learned": learned in no epoch.

    Samples of no kind are left out.

    Parameters
    ----------
    run : Run

    Returns
    -------
    dict of str to int array
        Positions in the training set, by kind.

    Raises
    ------
    ValueError
        If the run has recorded no samples or has fewer than two complete epochs.
    """
    epochs = len(run.history)
    if run.cross_entropy is None or epochs < 2:
        found = "no recorded samples" if run.cross_entropy is None else counted(epochs, "complete epoch")
        raise ValueError(
            f"kinds of samples need recorded samples of two complete epochs or more, but the run {run.title} has "
            f"{found}; train it longer or choose another run"
        )
    learned = run.cross_entropy[:epochs].astype(np.float32) < np.log(2)
    epoch = np.arange(1, epochs + 1)
    late = ~learned[epoch <= -(-epochs // 2)].any(0) & learned[epoch > 0.75 * epochs].all(0)
    chosen_by_kind = learned[epoch > epochs / 3].all(0), late, ~learned.any(0)
    return {kind: np.flatnonzero(chosen) for kind, chosen in zip(SAMPLE_KINDS, chosen_by_kind, strict=True)}


def rank_samples(
    run: Run | str | Path,
    by: str = "cross_entropy_mean",
    top: int | None = None,
    *,
    classes: Sequence[str] = (),
    per_class: bool = False,
    suspects: bool = False,
) -> pd.DataFrame:
    """Return the training images of a run, the hardest first.

    Parameters
    ----------
    run : Run, str or Path
        A run with recorded samples, or its folder.
    by : str
        A measure of `measures.DIRECTIONS`. Images that were never learned
        come first in the order of "first_learned".
    top : int, optional
        Number of images to return. With `per_class`, the number for every class. Default: all.
    classes : sequence of str
        Only images with these labels. Default: all classes.
    per_class : bool
        Whether to sort by class first. The classes are in the order of the data set.
    suspects : bool
        Only images with a negative area under the margin: averaged over the epochs, the largest other logit was above
        the logit of the label. The label may be wrong, or the image may be hard. After a short training, most images
        can be suspects.

    Returns
    -------
    DataFrame
        Rows of `Run.samples`.

    Raises
    ------
    ValueError
        If the run has not recorded the measure, or if a class is unknown.
    TypeError
        If an argument has the wrong type.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> run = pckd.fit("resnet8", data, epochs=2, progress=False)
    >>> hardest = pckd.analysis.rank_samples(run, "area_under_margin", top=3)
    >>> len(hardest), hardest["area_under_margin"].is_monotonic_increasing
    (3, True)
    """
    run = as_run(run)
    check(bool, per_class=per_class, suspects=suspects)
    check(str, by=by)
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise TypeError(f"classes must be a list of names, got {type(classes).__name__}")
    for name in classes:
        check(str, classes=name)
    top = checked(Count | None, "top", top)
    table, names = run.samples(), run.settings["data"]["classes"]
    known = [name for name in DIRECTIONS if name in table]
    if by not in known:
        reason = f"this run has not recorded {by}" if by in DIRECTIONS else f"unknown measure {by!r}"
        raise ValueError(f"{reason}: choose from {', '.join(known)}")
    if unknown := [name for name in classes if name not in names]:
        raise ValueError(f"unknown class {unknown[0]!r}: choose from {', '.join(names):.200}")
    if classes:
        table = table[table["class"].isin(classes)]
    if suspects:
        if "area_under_margin" not in table:
            raise ValueError("suspects need recorded margins, which runs of earlier versions lack: train the run again")
        table = table[table["area_under_margin"] < 0]
    table = table.iloc[np.argsort(-hardness(table, by), kind="stable")]
    if per_class:
        return table.sort_values("label", kind="stable").groupby("label").head(top or len(table))
    return table if top is None else table.head(top)
