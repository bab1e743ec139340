"""The preview strategy of PCKD: which samples count how much, and when.

A sample is hard when its cross-entropy is large beside the batch's mean. Hard samples are *previewed* with a
small weight, never dropped, and a threshold that grows with the epochs lets more of them in at full weight.
Nothing here carries a gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Strategy = Callable[[Tensor, Tensor, float], Tensor]


def difficulty(cross_entropy: Tensor) -> Tensor:
    """γ_i = CE_i / mean_j CE_j over the batch: 1 is average, larger is harder.

    cross_entropy: (B,), ≥ 0. Returns (B,), ≥ 0, without gradient; 1 for every sample where the mean is 0.
    """
    cross_entropy = cross_entropy.detach()
    mean = cross_entropy.mean()
    return torch.where(mean > 0, cross_entropy / mean, torch.ones_like(cross_entropy))


def threshold(epoch: int, epsilon: float = 1.005) -> float:
    """ε_t = ε^epoch, epochs counted from 1; infinite where that overflows.

    Raises ValueError for an epoch below 1 or an epsilon that is not positive.
    """
    if epoch < 1:
        raise ValueError(f"epochs count from 1, got {epoch}")
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    try:
        return float(epsilon) ** epoch
    except OverflowError:
        return float("inf")


def weight(difficulty: Tensor, threshold: float) -> Tensor:
    """v_i = 1 where γ_i ≤ ε_t, else exp(−γ_i²). difficulty: (B,). Returns (B,) in [0, 1]."""
    return torch.where(difficulty <= threshold, torch.ones_like(difficulty), torch.exp(-(difficulty**2)))


# What preview is compared with. A strategy is any function (cross_entropy, difficulty, threshold) -> weight,
# all (B,) but the threshold.


def preview(cross_entropy: Tensor, difficulty: Tensor, threshold: float) -> Tensor:
    """PCKD's own: `weight`."""
    return weight(difficulty, threshold)


def uniform(cross_entropy: Tensor, difficulty: Tensor, threshold: float) -> Tensor:
    """v = 1: no strategy."""
    return torch.ones_like(difficulty)


def constant(cross_entropy: Tensor, difficulty: Tensor, threshold: float) -> Tensor:
    """The mean preview weight of the batch for every sample: preview's strength without its choice of samples.

    v·L is averaged over samples, not divided by Σv, so preview also weakens L_KD and L_CC as a whole. This is
    the control that separates the two.
    """
    return weight(difficulty, threshold).mean().expand_as(difficulty)


def curriculum(cross_entropy: Tensor, difficulty: Tensor, threshold: float) -> Tensor:
    """Classic curriculum learning: v = 1 for easy samples, 0 for hard ones."""
    return (difficulty <= threshold).to(difficulty.dtype)


def focal(cross_entropy: Tensor, difficulty: Tensor, threshold: float) -> Tensor:
    """v = (1 − e^(−CE))², detached: focal loss's factor (arXiv 1708.02002, γ = 2), which favours *hard* samples."""
    return (1 - torch.exp(-cross_entropy.detach())) ** 2


STRATEGIES: dict[str, Strategy] = {f.__name__: f for f in (preview, uniform, constant, curriculum, focal)}
