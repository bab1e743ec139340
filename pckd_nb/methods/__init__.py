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

from ..catalogue import REGISTERED, find_method
from ..plugs import is_plugin, load_plugin
from .base import (
    KD,
    Batch,
    Method,
    Supervised,
    Terms,
    classification_loss,
    remember_arguments,
    resolve,
    upright_cross_entropy,
)
from .baselines import BASELINES, BUILT, NOT_BUILT, baseline
from .pckd import PCKD

__all__ = [
    "BASELINES", "KD", "METHODS", "Method", "NOT_BUILT", "PCKD", "Batch", "Supervised", "Terms", "baseline",
    "classification_loss", "default_settings", "make", "register_method", "remember_arguments", "resolve",
    "setting_names", "upright_cross_entropy",
]  # fmt: skip

METHODS: dict[str, Callable[..., Method]] = {"supervised": Supervised, "kd": KD, "pckd": PCKD}


def register_method(name: str, build: Callable[..., Method]) -> None:
    """Let a method of your own be called by a name: in `make`, in arms, and on the command line of this process.

    Parameters
    ----------
    name : str
        Letters, digits and underscores.
    build : callable
        Makes the method: its class, or a function of its settings.

    Raises
    ------
    ValueError
        If the name is taken, or could not be written in an arm.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"a method's name must be letters, digits and underscores, got {name!r}")
    if name.lower() in {known.lower() for known in (*METHODS, *BASELINES, *NOT_BUILT)}:
        raise ValueError(f"there is a method {name!r} already")
    METHODS[name.lower()] = build
    REGISTERED.add(name)


def default_settings(name: str) -> dict[str, Any]:
    """The settings of a method of this package and their defaults, by the name of its class; {} for any other name."""
    built = {cls.__name__: cls for cls in (*METHODS.values(), *BUILT.values()) if isinstance(cls, type)}
    if name not in built:
        return {}
    parameters = inspect.signature(built[name]).parameters.values()
    return {about.name: about.default for about in parameters if about.default is not about.empty}


def setting_names(name: str) -> set[str]:
    """The names of the settings of a method, by its name as in `make`; none where there is no such method."""
    built = {known.lower(): build for known, build in {**METHODS, **BUILT}.items()}
    try:
        build: Any = load_plugin(name) if is_plugin(name) else built[name.lower()]
    except (ValueError, KeyError):
        return set()
    inits = (
        [vars(base)["__init__"] for base in build.__mro__ if "__init__" in vars(base)]
        if isinstance(build, type)
        else [build]
    )
    found: set[str] = set()
    for init in inits:
        parameters = inspect.signature(init).parameters.values()
        found |= {about.name for about in parameters if about.kind not in (about.VAR_POSITIONAL, about.VAR_KEYWORD)}
    return found - {"self"}


def make(name: str, **settings: Any) -> Method:
    """A method or baseline by its name, which may be "module:Name" or "file.py:Name" of your own. Raises ValueError for
    an unknown name, or a setting that it does not have or can't take, TypeError for one that is no number."""
    if not isinstance(name, str):
        raise TypeError(f"a method is chosen by its name, got {type(name).__name__}")
    if is_plugin(name) or name.lower() in METHODS:
        build = load_plugin(name) if is_plugin(name) else METHODS[name.lower()]
        parameters = inspect.signature(build).parameters.values()
        if any(about.kind is about.VAR_KEYWORD for about in parameters):
            return build(**settings)
        known = [about.name for about in parameters if about.kind is about.POSITIONAL_OR_KEYWORD]
        for setting in settings:
            if setting not in known:
                has = ", ".join(known) or "none"
                shown = name if is_plugin(name) else name.lower()
                raise ValueError(f"method {shown} has no setting {setting!r}; its settings: {has}")
        return build(**settings)
    return baseline(find_method(name), **settings)
