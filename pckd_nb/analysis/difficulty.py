"""Difficulty of training samples.

The difficulty γ of a sample is its cross-entropy divided by the mean cross-entropy of its batch. Each image of
shapes100 is generated with a difficulty from 0 (easy) to 1 (hard), which is stored with it. This is its *known
difficulty*. The *recorded samples* of a run are the cross-entropy and γ of every training sample in every epoch.
"""

import numpy as np
from scipy.stats import spearmanr

from ..html import counted
from ..runs import Run


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
