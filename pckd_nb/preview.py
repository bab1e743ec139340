r"""The preview strategy of PCKD: the weight of every sample in every epoch.

The difficulty of a sample is its cross-entropy divided by the mean of its batch. A sample is hard if its difficulty is
above a threshold. PCKD *previews* hard samples: it gives them a small weight, but never drops them. The threshold grows
with the epochs, so more and more samples get the full weight 1.

`difficulty`, `threshold` and `weight` are the three steps. `STRATEGIES` contains the paper's strategy and six others
to compare it with. A strategy is any function (cross_entropy, difficulty, threshold) -> weight. The threshold is a
float, the others are tensors of shape (B,), with one value per sample.

No gradient flows through a weight. Every function checks types, shapes and dtypes, but not the values in the tensors.
Non-finite inputs give non-finite weights.

References
----------
Ding et al., "Preview-based Category Contrastive Learning for Knowledge Distillation", arXiv 2410.14143.

Examples
--------
>>> import torch
>>> import pckd_nb as pckd
>>> cross_entropy = torch.tensor([0.5, 1.0, 4.5])
>>> gamma = pckd.preview.difficulty(cross_entropy)
>>> gamma.tolist()
[0.25, 0.5, 2.25]
>>> v = pckd.preview.weight(gamma, pckd.preview.threshold(epoch=1))
>>> [round(value, 4) for value in v.tolist()]  # the third sample is hard
[1.0, 1.0, 0.0063]
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .tensor_checks import as_number, check_one_value_per_sample

Strategy = Callable[[Tensor, Tensor, float], Tensor]


def difficulty(cross_entropy: Tensor) -> Tensor:
    r"""Return the difficulty of every sample in a batch.

    .. math::

        \gamma_i = \frac{\mathrm{CE}_i}{\frac{1}{B} \sum_j \mathrm{CE}_j}

    CE_i is the cross-entropy of sample i, and B is the batch size. 1 is average, larger values are harder. If the mean
    is 0, the difficulty of every sample is 1.

    Parameters
    ----------
    cross_entropy : float Tensor of shape (B,)
        CE, in nats, at least 0.

    Returns
    -------
    Tensor of shape (B,)
        γ, at least 0, without gradient.

    Raises
    ------
    TypeError
        If `cross_entropy` is not a tensor.
    ValueError
        If it does not have one floating-point value per sample.

    References
    ----------
    Ding et al., arXiv 2410.14143.

    Examples
    --------
    >>> import torch
    >>> import pckd_nb as pckd
    >>> pckd.preview.difficulty(torch.tensor([1.0, 2.0, 3.0])).tolist()
    [0.5, 1.0, 1.5]
    """
    check_one_value_per_sample(cross_entropy=cross_entropy)
    cross_entropy = cross_entropy.detach()
    mean = cross_entropy.mean()
    return torch.where(mean == 0, torch.ones_like(cross_entropy), cross_entropy / mean)


def threshold(epoch: int, epsilon: float = 1.005) -> float:
    r"""Return the preview threshold of an epoch.

    .. math::

        \varepsilon_t = \varepsilon^t

    Parameters
    ----------
    epoch : int
        t, counted from 1.
    epsilon : float
        ε, positive.

    Returns
    -------
    float
        Infinity if the power is too large for a float.

    Raises
    ------
    TypeError
        If an argument is not a number.
    ValueError
        If `epoch` is not a whole number of at least 1, or if `epsilon` is not positive.

    References
    ----------
    Ding et al., arXiv 2410.14143.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> [round(pckd.preview.threshold(epoch), 2) for epoch in (1, 120, 240)]
    [1.0, 1.82, 3.31]
    """
    exponent, base = as_number("epoch", epoch), as_number("epsilon", epsilon)
    if not exponent >= 1 or epoch % 1 != 0:
        raise ValueError(f"epoch must be a whole number, counted from 1, got {exponent:g}")
    if not base > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    try:
        return base**exponent
    except OverflowError:
        return float("inf")


def weight(difficulty: Tensor, threshold: float) -> Tensor:
    r"""Return the preview weight of every sample.

    .. math::

        v_i = \begin{cases}
            1 & \text{if } \gamma_i \le \varepsilon_t \\
            \exp(-\gamma_i^2) & \text{otherwise}
        \end{cases}

    Parameters
    ----------
    difficulty : float Tensor of shape (B,)
        γ, see `difficulty`.
    threshold : float
        ε_t, at least 0, see `threshold`.

    Returns
    -------
    Tensor of shape (B,)
        v, in [0, 1].

    Raises
    ------
    TypeError
        If `difficulty` is not a tensor, or if `threshold` is not a number.
    ValueError
        If `difficulty` does not have one floating-point value per sample, or if `threshold` is negative.

    References
    ----------
    Ding et al., arXiv 2410.14143.

    Examples
    --------
    >>> import torch
    >>> import pckd_nb as pckd
    >>> v = pckd.preview.weight(torch.tensor([0.5, 1.0, 1.5]), threshold=1.0)
    >>> [round(value, 3) for value in v.tolist()]
    [1.0, 1.0, 0.105]
    """
    check_one_value_per_sample(difficulty=difficulty)
    _check_threshold(threshold)
    return torch.where(difficulty <= threshold, torch.ones_like(difficulty), torch.exp(-(difficulty**2)))


def preview(cross_entropy: Tensor, difficulty: Tensor, threshold: float) -> Tensor:
    """Return the weights of the paper's strategy: hard samples get a small weight.

    This is `weight` with the three arguments that every strategy has.

    Parameters
    ----------
    cross_entropy : float Tensor of shape (B,)
        In nats. This strategy does not use it.
    difficulty : float Tensor of shape (B,)
        γ, at least 0.
    threshold : float
        ε_t, at least 0.

    Returns
    -------
    Tensor of shape (B,)
        In [0, 1].

    Raises
    ------
    TypeError
        If `cross_entropy` or `difficulty` is not a tensor, or if `threshold` is not a number.
    ValueError
        If a tensor does not have one floating-point value per sample, if the lengths differ, or if `threshold` is
        negative.
    """
    _check_strategy_arguments(cross_entropy, difficulty, threshold)
    return weight(difficulty, threshold)


def uniform(cross_entropy: Tensor, difficulty: Tensor, threshold: float) -> Tensor:
    """Return the weight 1 for every sample.

    Parameters
    ----------
    cross_entropy, difficulty : float Tensor of shape (B,)
        This strategy uses their shape only.
    threshold : float
        Not used.

    Returns
    -------
    Tensor of shape (B,)

    Raises
    ------
    TypeError
        As in `preview`.
    ValueError
        As in `preview`.
    """
    _check_strategy_arguments(cross_entropy, difficulty, threshold)
    return torch.ones_like(difficulty)


def constant(cross_entropy: Tensor, difficulty: Tensor, threshold: float) -> Tensor:
    r"""Return the same weight for every sample: the mean preview weight of the batch.

    .. math::

        v_i = \frac{1}{B} \sum_j v_j^{\mathrm{preview}}

    The weights in the sum are those of `preview`. This is the control in a fair comparison. The weighted losses are
    averaged over samples and not divided by the sum of the weights. So `preview` has two effects: it chooses samples,
    and it makes L_KD and L_CC smaller. This strategy has only the second effect. It uses the mean of the batch, because
    the mean of the epoch is not known until the epoch ends.

    Parameters
    ----------
    cross_entropy : float Tensor of shape (B,)
        In nats. This strategy does not use it.
    difficulty : float Tensor of shape (B,)
        γ, at least 0.
    threshold : float
        ε_t, at least 0.

    Returns
    -------
    Tensor of shape (B,)
        In [0, 1].

    Raises
    ------
    TypeError
        As in `preview`.
    ValueError
        As in `preview`.
    """
    _check_strategy_arguments(cross_entropy, difficulty, threshold)
    return weight(difficulty, threshold).mean().expand_as(difficulty)


def curriculum(cross_entropy: Tensor, difficulty: Tensor, threshold: float) -> Tensor:
    r"""Return the weights of classic curriculum learning: hard samples are dropped.

    .. math::

        v_i = \begin{cases}
            1 & \text{if } \gamma_i \le \varepsilon_t \\
            0 & \text{otherwise}
        \end{cases}

    Parameters
    ----------
    cross_entropy : float Tensor of shape (B,)
        In nats. This strategy does not use it.
    difficulty : float Tensor of shape (B,)
        γ, at least 0.
    threshold : float
        ε_t, at least 0.

    Returns
    -------
    Tensor of shape (B,)
        0 or 1.

    Raises
    ------
    TypeError
        As in `preview`.
    ValueError
        As in `preview`.
    """
    _check_strategy_arguments(cross_entropy, difficulty, threshold)
    return (difficulty <= threshold).to(difficulty.dtype)


def focal(cross_entropy: Tensor, difficulty: Tensor, threshold: float) -> Tensor:
    r"""Return the factor of the focal loss: hard samples get a *large* weight.

    .. math::

        v_i = \left( 1 - e^{-\mathrm{CE}_i} \right)^2

    e^(−CE_i) is the probability that the network gives to the label.

    Parameters
    ----------
    cross_entropy : float Tensor of shape (B,)
        In nats. Its gradient does not flow through the weight.
    difficulty : float Tensor of shape (B,)
        This strategy does not use it.
    threshold : float
        Not used.

    Returns
    -------
    Tensor of shape (B,)
        In [0, 1].

    Raises
    ------
    TypeError
        As in `preview`.
    ValueError
        As in `preview`.

    References
    ----------
    Lin et al., "Focal Loss for Dense Object Detection", arXiv 1708.02002, with the exponent 2.
    """
    _check_strategy_arguments(cross_entropy, difficulty, threshold)
    return (1 - torch.exp(-cross_entropy.detach())) ** 2


def constant_curriculum(cross_entropy: Tensor, difficulty: Tensor, threshold: float) -> Tensor:
    """Return the same weight for every sample: the mean weight of `curriculum` in the batch.

    This is the control for `curriculum`, as `constant` is the control for `preview`.

    Parameters
    ----------
    cross_entropy, difficulty : float Tensor of shape (B,)
        As in `curriculum`.
    threshold : float
        ε_t, at least 0.

    Returns
    -------
    Tensor of shape (B,)
        In [0, 1].

    Raises
    ------
    TypeError
        As in `preview`.
    ValueError
        As in `preview`.
    """
    return curriculum(cross_entropy, difficulty, threshold).mean().expand_as(difficulty)


def constant_focal(cross_entropy: Tensor, difficulty: Tensor, threshold: float) -> Tensor:
    """Return the same weight for every sample: the mean weight of `focal` in the batch.

    This is the control for `focal`, as `constant` is the control for `preview`. It matters, because the mean weights of
    both strategies are very different. So a difference between `focal` and `preview` may come from the size of the
    weights, and not from the choice of the samples.

    Parameters
    ----------
    cross_entropy, difficulty : float Tensor of shape (B,)
        As in `focal`.
    threshold : float
        Not used.

    Returns
    -------
    Tensor of shape (B,)
        In [0, 1].

    Raises
    ------
    TypeError
        As in `preview`.
    ValueError
        As in `preview`.
    """
    return focal(cross_entropy, difficulty, threshold).mean().expand_as(difficulty)


STRATEGIES: dict[str, Strategy] = {
    f.__name__: f for f in (preview, uniform, constant, curriculum, constant_curriculum, focal, constant_focal)
}


def _check_strategy_arguments(cross_entropy: Tensor, difficulty: Tensor, threshold: float) -> None:
    check_one_value_per_sample(cross_entropy=cross_entropy, difficulty=difficulty)
    _check_threshold(threshold)


def _check_threshold(threshold: float) -> None:
    if not as_number("threshold", threshold) >= 0:
        raise ValueError(f"threshold must be at least 0, got {threshold}")
