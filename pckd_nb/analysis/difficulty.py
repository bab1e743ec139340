"""Difficulty of training samples: against the known truth, and three kinds of samples."""

import numpy as np
from scipy.stats import spearmanr

from ..runs import Run


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
