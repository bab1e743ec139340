"""Training methods: they combine the terms of `losses` and the weights of `preview` into one objective.

A method is a torch.nn.Module with these members:

- `views`: the number of views of every image, from 1 to 4. The first view is the image itself, the others are rotated
  by 90°, 180° and 270°
- `uses_teacher`: whether the training loop must run the teacher
- `title`: the name in tables and legends
- `bind(student, teacher)`: creates the modules that are trained with the student
- `forward(student_output, teacher_output, batch, epoch)`: computes the objective and returns `Terms`

A method may have `prepare_training(info)`, which is called before `bind` and gets the labels of all training images.
A `Method` may also have `stages(student, teacher)`: what is trained before the first epoch, see `Stage`.
A `Method` with `wrap_student(student, teacher, example)` trains another network than the student, see `SimKD`.
A method with `needs_maps = True` also gets an example image in `bind`, and outputs with feature maps in `forward`.

An output has V·B rows: B images and V views of each image. Rows [:B] are the images that are not rotated, the next B
rows are the images rotated by 90°, and so on. The labels of all rows are `labels.repeat(V)`.

Examples
--------
>>> import pckd_nb as pckd
>>> pckd.methods.make("kd", temperature=2).temperature
2
>>> list(pckd.methods.METHODS)
['supervised', 'kd', 'pckd']
"""

import inspect
from collections.abc import Callable
from typing import Any

from ..catalogue import REGISTERED, find_method
from ..deprecation import renamed
from ..plugins import is_plugin, load_plugin
from .base import (
    KD,
    Batch,
    Method,
    Stage,
    Supervised,
    Terms,
    TrainingInfo,
    classification_loss,
    remember_arguments,
    resolve_settings,
    upright_cross_entropy,
)
from .baselines import BASELINE_CLASSES, BASELINES, baseline
from .pckd import PCKD

__all__ = [
    "BASELINES", "KD", "METHODS", "Method", "PCKD", "Batch", "Stage", "Supervised", "Terms",
    "TrainingInfo", "baseline", "classification_loss", "default_settings", "make", "register_method",
    "remember_arguments", "resolve_settings", "setting_names", "upright_cross_entropy",
]  # fmt: skip

METHODS: dict[str, Callable[..., Method]] = {"supervised": Supervised, "kd": KD, "pckd": PCKD}


def register_method(name: str, build: Callable[..., Method]) -> None:
    """Give your own method a name.

    The name can then be used in `make` and in experiments, but only in this Python process. On the command line, write
    "file.py:NAME" instead.

    Parameters
    ----------
    name : str
        Letters, digits and underscores. It must not begin with a digit.
    build : callable
        The class of the method, or a function that takes its settings and returns it.

    Raises
    ------
    ValueError
        If `name` is not such a string, or if a method has this name already.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> class Sharp(pckd.KD):
    ...     def __init__(self, temperature=1.0):
    ...         super().__init__(temperature)
    >>> pckd.methods.register_method("sharp_kd", Sharp)
    >>> pckd.methods.make("sharp_kd").title
    'Sharp'
    >>> del pckd.methods.METHODS["sharp_kd"]  # remove it again
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"the name of a method must be letters, digits and underscores, no digit first, got {name!r}")
    if name.lower() in {existing.lower() for existing in (*METHODS, *BASELINES)}:
        raise ValueError(f"there is a method {name!r} already: choose another name")
    METHODS[name.lower()] = build
    REGISTERED.add(name)


def default_settings(name: str) -> dict[str, Any]:
    """Return the settings of a method and their default values.

    Parameters
    ----------
    name : str
        Name of the class, as in run.json.

    Returns
    -------
    dict
        Name → default value. Empty if no entry of `METHODS` or `BASELINES` is this class.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> pckd.methods.default_settings("KD")
    {'temperature': 4.0, 'beta_kd': 1.0, 'ce_weight': 1.0, 'views': 1}
    """
    classes = {cls.__name__: cls for cls in (*METHODS.values(), *BASELINE_CLASSES.values()) if isinstance(cls, type)}
    if name not in classes:
        return {}
    parameters = inspect.signature(classes[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def setting_names(name: str) -> set[str]:
    """Return the names of the settings of a method, including those of its base classes.

    Parameters
    ----------
    name : str
        Name of the method, as in `make`.

    Returns
    -------
    set of str
        Empty if there is no such method.
    """
    builders = {key.lower(): build for key, build in {**METHODS, **BASELINE_CLASSES}.items()}
    try:
        build: Any = load_plugin(name) if is_plugin(name) else builders[name.lower()]
    except (ValueError, KeyError):
        return set()
    inits = (
        [vars(base)["__init__"] for base in build.__mro__ if "__init__" in vars(base)]
        if isinstance(build, type)
        else [build]
    )
    names: set[str] = set()
    for init in inits:
        parameters = inspect.signature(init).parameters.values()
        names |= {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    return names - {"self"}


def make(name: str, **settings: Any) -> Method:
    """Return a method or baseline by its name.

    Parameters
    ----------
    name : str
        A name in `METHODS` or `BASELINES`, in upper or lower case. Your own method: "module:Name" or "file.py:Name".
    **settings
        Settings of the method, by name.

    Returns
    -------
    Method

    Raises
    ------
    TypeError
        If `name` is not a string, or if a setting has the wrong type.
    ValueError
        If there is no such method, if it does not have one of the settings, or if a setting is outside its range.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> pckd.methods.make("pckd", views=1).views
    1
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a method must be a string, got {type(name).__name__}")
    if is_plugin(name) or name.lower() in METHODS:
        build = load_plugin(name) if is_plugin(name) else METHODS[name.lower()]
        parameters = inspect.signature(build).parameters.values()
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return build(**settings)
        accepted = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        for setting in settings:
            if setting not in accepted:
                shown_name = name if is_plugin(name) else name.lower()
                shown_settings = ", ".join(accepted) or "none"
                raise ValueError(f"method {shown_name} has no setting {setting!r}; its settings: {shown_settings}")
        return build(**settings)
    return baseline(find_method(name), **settings)


__getattr__ = renamed(__name__)
