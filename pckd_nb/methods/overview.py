"""What every method compares, where it was published, and its published weight, as text for lists and pages."""

import inspect
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..catalogue import METHODS, find_method
from .base import KD, Method, Supervised
from .baselines import BASELINE_CLASSES
from .pckd import PCKD
from .published import PUBLISHED_SETTINGS, Pair

FAMILIES = ("Logits", "Features and relations", "Feature maps", "PCKD")
_CLASSES: dict[str, type[Method]] = {"supervised": Supervised, "kd": KD, "pckd": PCKD}
_TEXTS = {  # what they compare, source and weight; the class of a baseline has these in docstring and description
    "supervised": ("labels only, no teacher", "", "cross-entropy 1"),
    "kd": (
        "probabilities of the classes, softened by a temperature",
        "arXiv 1503.02531",
        "β_kd = 1, cross-entropy 1, T = 4 (SimKD, arXiv 2203.14001); RepDistiller, mdistiller and SSKD have β_kd = 0.9 "
        "and cross-entropy 0.1",
    ),
    "pckd": (
        "logits, features and category centers, with preview weights for hard samples",
        "arXiv 2410.14143",
        "β_fa = 20, β_ca = 1, β_cc = 0.05 (the authors' command); β_kd = 1 is the choice of this package",
    ),
}


class MethodInfo(NamedTuple):
    """A method in words.

    Parameters
    ----------
    name : str
        As in `methods.make`.
    title : str
        Name in tables and legends.
    family : str
        One of `FAMILIES`.
    compares : str
        What the method compares.
    source : str
        The paper, such as "arXiv 1503.02531". Empty for supervised training.
    weight : str
        The published weight and other published settings.
    summary : str
        The first line of the docstring of the class.
    explanation : str
        The first paragraph of the docstring that stands before the equation. Empty if there is none.
    equation : str
        The first equation of the docstring, in LaTeX. Empty if it has none.
    settings : dict of str to object
        Name → default value.
    published : dict of (str, str) to dict
        (teacher, student) → published settings, which replace the defaults.
    """

    name: str
    title: str
    family: str
    compares: str
    source: str
    weight: str
    summary: str
    explanation: str
    equation: str
    settings: Mapping[str, Any]
    published: Mapping[Pair, Mapping[str, Any]]


def method_names() -> list[str]:
    """Return the names of all methods of this package: first `catalogue.METHODS`, then the baselines.

    Examples
    --------
    >>> from pckd_nb.methods.overview import method_names
    >>> method_names()[:4]
    ['supervised', 'kd', 'pckd', 'FitNet']
    """
    return [*METHODS, *BASELINE_CLASSES]


def method_info(name: str) -> MethodInfo:
    """Return a method in words.

    Parameters
    ----------
    name : str
        A name of `method_names`, in upper or lower case.

    Returns
    -------
    MethodInfo

    Raises
    ------
    ValueError
        If this package has no method of this name.

    Examples
    --------
    >>> from pckd_nb.methods.overview import method_info
    >>> method_info("at").source
    'arXiv 1612.03928'
    >>> method_info("dkd").published["resnet56", "resnet20"]
    {'beta': 2}
    """
    name = find_method(name)
    classes: dict[str, type[Method]] = {**_CLASSES, **BASELINE_CLASSES}
    if name not in classes:  # "file.py:NAME", or a method that the user has registered
        raise ValueError(f"{name!r} is a method of your own: choose one of {', '.join(method_names())}")
    cls = classes[name]
    paragraphs = (inspect.getdoc(cls) or "").partition("\nParameters\n")[0].split("\n\n") + [""]
    summary = " ".join(paragraphs[0].split())
    explanation = "" if paragraphs[1].startswith(".. math::") else " ".join(paragraphs[1].split())
    equations = [inspect.cleandoc(text) for text in paragraphs if text.startswith("    ")]
    if name in _TEXTS:
        compares, source, weight = _TEXTS[name]
    else:
        compares = summary.partition(": ")[2] or summary
        head, _, weight = BASELINE_CLASSES[name].description.partition("; ")
        source = head.rpartition(", ")[2]
    parameters = inspect.signature(cls).parameters.values()
    return MethodInfo(
        name=name,
        title=cls.title,
        family=_family(name, cls),
        compares=compares.removesuffix("."),
        source=source,
        weight=weight,
        summary=summary,
        explanation=explanation,
        equation=" ".join(equations[0].split()) if equations else "",
        settings={parameter.name: parameter.default for parameter in parameters},
        published=PUBLISHED_SETTINGS.get(cls.__name__, {}),
    )


def settings_text(settings: Mapping[str, Any]) -> str:
    """Return settings as text, separated by commas.

    Parameters
    ----------
    settings : dict of str to object

    Returns
    -------
    str
        Such as "temperature=4, beta_kd=1".
    """
    texts = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in settings.items()}
    return ", ".join(f"{name}={value}" for name, value in texts.items())


def _family(name: str, cls: type[Method]) -> str:
    """Return one of `FAMILIES`."""
    logits, features, maps, paper = FAMILIES
    if name == "pckd":
        return paper
    if cls.needs_maps:
        return maps
    return logits if name in METHODS or re.search(r"\blogits$", cls.__module__) else features
