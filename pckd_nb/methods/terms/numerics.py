"""Small helpers that the loss terms of the other distillation methods share.

The functions here keep loss terms and their gradients finite at 0, and keep them in full precision inside autocast.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

SMALLEST_NORM = 1e-12  # a vector with a smaller L2 norm counts as 0


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function of tensors compute in float32 or float64, also inside `torch.autocast`.

    Arguments in float16 or bfloat16 are converted to float32, also those in lists and tuples. Without this, autocast
    computes matrix products in half precision.

    Parameters
    ----------
    function : callable
        The first argument is a tensor or a list of tensors.

    Returns
    -------
    callable
        With the same arguments.
    """

    @functools.wraps(function)
    def in_full_precision(*args: P.args, **kwargs: P.kwargs) -> R:
        found = next((tensor for arg in (*args, *kwargs.values()) if (tensor := _first_tensor(arg)) is not None), None)
        if found is None:  # the function reports the wrong type
            return function(*args, **kwargs)
        kind = found.device.type
        has_autocast = torch.amp.is_autocast_available(kind)
        with torch.autocast(kind, enabled=False) if has_autocast else contextlib.nullcontext():
            return function(*map(_at_least_float32, args), **{k: _at_least_float32(v) for k, v in kwargs.items()})

    return in_full_precision


def unit_vectors(x: Tensor, dim: int = 1) -> Tensor:
    """Divide vectors by their L2 norm.

    Parameters
    ----------
    x : Tensor of any shape
    dim : int
        The dimension along which the vectors lie.

    Returns
    -------
    Tensor of the same shape
        A vector of zeros stays zero and gets the gradient 0.
    """
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    scale = torch.where(norm > SMALLEST_NORM, 1 / norm.clamp_min(SMALLEST_NORM), torch.zeros_like(norm))
    return x * scale


def safe_sqrt(x: Tensor) -> Tensor:
    """Return the square root, with the gradient 0 instead of infinity at 0.

    Parameters
    ----------
    x : Tensor of any shape
        Negative values, which rounding causes, count as 0.

    Returns
    -------
    Tensor of the same shape
    """
    not_positive = x <= 0
    return x.masked_fill(not_positive, 1).sqrt().masked_fill(not_positive, 0)


def _first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, list | tuple):
        return next((item for item in value if isinstance(item, Tensor)), None)
    return None


def _at_least_float32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if type(value) in (list, tuple):
        return type(value)(map(_at_least_float32, value))
    return value
