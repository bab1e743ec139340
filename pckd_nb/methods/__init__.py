"""Training methods: how the terms of `losses.py` and the weights of `preview.py` make one objective.

A method is an nn.Module with

    views          how many rotations of every image the networks see (1 to 4)
    uses_teacher   whether the loop must run the teacher
    title          its name in tables and legends
    bind(student, teacher)      sizes the parts that train with the student; keeps no reference to the networks
    forward(student_output, teacher_output, batch, epoch) -> Terms

One that sets `needs_maps` is bound with an example image as the third argument, and is given outputs with `maps`.
Rows are view-major: the upright view is rows [:B], and labels of all rows are labels.repeat(V).
"""

import inspect
from collections.abc import Callable
from typing import Any

from ..catalogue import find_method
from .base import KD, Batch, Method, Supervised, Terms, remember_arguments, resolve, upright_cross_entropy
from .baselines import BASELINES, NOT_BUILT, baseline
from .pckd import PCKD

__all__ = [
    "BASELINES", "KD", "METHODS", "Method", "NOT_BUILT", "PCKD", "Batch", "Supervised", "Terms", "baseline",
    "make", "remember_arguments", "resolve", "upright_cross_entropy",
]  # fmt: skip

METHODS: dict[str, Callable[..., Method]] = {"supervised": Supervised, "kd": KD, "pckd": PCKD}


def make(name: str, **settings: Any) -> Method:
    """A method or baseline by its name. Raises ValueError for an unknown name, or a setting that it does not have or
    can't take, TypeError for one that is no number."""
    if not isinstance(name, str):
        raise TypeError(f"a method is chosen by its name, got {type(name).__name__}")
    if name.lower() in METHODS:
        build = METHODS[name.lower()]
        parameters = inspect.signature(build).parameters.values()
        known = [about.name for about in parameters if about.kind is about.POSITIONAL_OR_KEYWORD]
        for setting in settings:
            if setting not in known:
                has = ", ".join(known) or "none"
                raise ValueError(f"method {name.lower()} has no setting {setting!r}; its settings: {has}")
        return build(**settings)
    return baseline(find_method(name), **settings)
