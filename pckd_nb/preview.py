"""The preview strategy of PCKD: which samples count how much, and when.

A sample is hard when its cross-entropy is large beside the batch's mean. Hard samples are *previewed* with a
small weight, never dropped, and a threshold that grows with the epochs lets more of them in at full weight.
Nothing here carries a gradient. What doesn't fit raises ValueError, what is no tensor or no number TypeError, in one
line; what a tensor holds is not looked at: of numbers that are not finite a weight is not finite either.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Strategy = Callable[[Tensor, Tensor, float], Tensor]


def difficulty(cross_entropy: Tensor) -> Tensor:
    """γ_i = CE_i / mean_j CE_j over the batch: 1 is average, larger is harder.

    cross_entropy: (B,), ≥ 0. Returns (B,), ≥ 0, without gradient; 1 for every sample where the mean is 0.
    Raises ValueError unless there is one floating-point number a sample, TypeError for what is no tensor.
    """
    _one_number_a_sample(cross_entropy=cross_entropy)
    cross_entropy = cross_entropy.detach()
    mean = cross_entropy.mean()
    return torch.where(mean == 0, torch.ones_like(cross_entropy), cross_entropy / mean)


def threshold(epoch: int, epsilon: float = 1.005) -> float:
    """ε_t = ε^epoch, epochs counted from 1; infinite where that overflows.

    Raises ValueError for an epoch below 1 or an epsilon that is not positive; TypeError for what is no number.
    """
    exponent, base = _number("epoch", epoch), _number("epsilon", epsilon)
    if not exponent >= 1 or epoch % 1 != 0:
        raise ValueError(f"epochs count from 1, in whole numbers, got {exponent:g}")
    if not base > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    try:
        return base**exponent
    except OverflowError:
        return float("inf")


def weight(difficulty: Tensor, threshold: float) -> Tensor:
    """v_i = 1 where γ_i ≤ ε_t, else exp(−γ_i²). difficulty: (B,); threshold ≥ 0. Returns (B,) in [0, 1].

    Raises ValueError for a shape or threshold that does not fit, TypeError for what is no tensor or no number.
    """
    _one_number_a_sample(threshold, difficulty=difficulty)
    return torch.where(difficulty <= threshold, torch.ones_like(difficulty), torch.exp(-(difficulty**2)))


# What preview is compared with. A strategy is any function (cross_entropy, difficulty, threshold) -> weight: (B,) in
# nats, (B,) and a number ≥ 0 -> (B,) in [0, 1]. Those here raise as `weight`.


def preview(cross_entropy: Tensor, difficulty: Tensor, threshold: float) -> Tensor:
    """PCKD's own: `weight`, v = 1 where γ ≤ ε_t, else exp(−γ²). (B,), (B,), number -> (B,) in [0, 1]."""
    _one_number_a_sample(threshold, cross_entropy=cross_entropy, difficulty=difficulty)
    return weight(difficulty, threshold)


def uniform(cross_entropy: Tensor, difficulty: Tensor, threshold: float) -> Tensor:
    """v = 1: no strategy. (B,), (B,), number -> (B,)."""
    _one_number_a_sample(threshold, cross_entropy=cross_entropy, difficulty=difficulty)
    return torch.ones_like(difficulty)


def constant(cross_entropy: Tensor, difficulty: Tensor, threshold: float) -> Tensor:
    """The mean preview weight of the batch for every sample, (B,) in [0, 1]: preview's strength without its choice of
    samples. The batch's mean, not the epoch's: of that one knows only when it is over.

    v·L is averaged over samples, not divided by Σv, so preview also weakens L_KD and L_CC as a whole. This is
    the control that separates the two.
    """
    _one_number_a_sample(threshold, cross_entropy=cross_entropy, difficulty=difficulty)
    return weight(difficulty, threshold).mean().expand_as(difficulty)


def curriculum(cross_entropy: Tensor, difficulty: Tensor, threshold: float) -> Tensor:
    """Classic curriculum learning: v = 1 for easy samples, γ ≤ ε_t, 0 for hard ones. (B,), (B,), number -> (B,)."""
    _one_number_a_sample(threshold, cross_entropy=cross_entropy, difficulty=difficulty)
    return (difficulty <= threshold).to(difficulty.dtype)


def focal(cross_entropy: Tensor, difficulty: Tensor, threshold: float) -> Tensor:
    """v = (1 − e^(−CE))², (B,) in [0, 1], detached: focal loss's factor (arXiv 1708.02002, exponent 2), which favours
    *hard* samples."""
    _one_number_a_sample(threshold, cross_entropy=cross_entropy, difficulty=difficulty)
    return (1 - torch.exp(-cross_entropy.detach())) ** 2


STRATEGIES: dict[str, Strategy] = {f.__name__: f for f in (preview, uniform, constant, curriculum, focal)}


def _one_number_a_sample(threshold: float = 1.0, **tensors: Tensor) -> None:
    for name, values in tensors.items():
        if not isinstance(values, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(values).__name__}")
        if not values.is_floating_point() or values.ndim != 1 or not len(values):
            got = f"{values.dtype} of shape {tuple(values.shape)}"
            raise ValueError(f"{name} must be floating-point numbers, one a sample, got {got}")
    if len({len(values) for values in tensors.values()}) > 1:
        counts = ", ".join(f"{name} {len(values)}" for name, values in tensors.items())
        raise ValueError(f"unequal numbers of samples: {counts}")
    if not _number("threshold", threshold) >= 0:
        raise ValueError(f"threshold must be 0 or more, got {threshold}")


def _number(name: str, value: float) -> float:
    """As a float, infinite where that overflows. Raises TypeError for text, truth values and what else is no number."""
    try:
        if not isinstance(value, bool | str | bytes):
            return float(value)
    except OverflowError:
        return float("inf") if value > 0 else -float("inf")
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several numbers
        pass
    raise TypeError(f"{name} must be a number, got {type(value).__name__}")
