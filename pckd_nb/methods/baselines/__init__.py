r"""Other distillation methods, to compare PCKD with: `baseline("AT")` and others.

Every baseline has the objective

.. math::

    L = w_{\mathrm{CE}} \cdot \overline{\mathrm{CE}} + w \cdot \mathrm{term}

CE with a bar is the mean cross-entropy of the images that are not rotated. The class of the baseline defines the term.
w is the weight that was published for CIFAR-100, and w_CE is 1 unless the class says otherwise. Most methods were
published with one view of every image, V = 1. With more views, the term compares all of them.

`FSP`, `AB`, `FT`, `SSKD` and `HSAKD` train something before the first epoch, see `methods.Stage`. `FSP` and `AB` use
their term only there. After that, their objective is the cross-entropy alone. `WKDL` computes the similarities of
classes before the first epoch. `SimKD` trains a network that has the last layer of the teacher.

In the equations, the index s means student and t means teacher. f are penultimate features, F feature maps, and z
logits. B is the batch size, and C the number of classes.

The terms are in `methods.terms`, or they are losses of the package torchdistill, which the extra "baselines" installs.
The docstring of a class says how its term differs from the paper, if it does. "The comparison in the CRD paper" is
Tian et al., arXiv 1910.10699, with the code in RepDistiller. It published weights for many methods.

A baseline that compares feature maps uses the same maps as the published comparisons: the outputs of the stages, or
these maps before the last ReLU. See `models.FeatureMaps`, also for networks of other libraries.
"""

import inspect
from typing import Any

from .base import Baseline
from .features import CC, CRD, PKT, RKD, SRRL
from .logits import DIST, DKD, LSKD, MLKD, SKD, WKDL, WTTM, decoupled_kl
from .maps import AB, AT, CATKD, FSP, FT, KDSVD, NST, OFD, SP, VID, WKDF, FitNet, ReviewKD, SimKD
from .rotations import HSAKD, SSKD

__all__ = ["BASELINES", "BASELINE_CLASSES", "Baseline", "baseline", "decoupled_kl"]

BASELINE_CLASSES: dict[str, type[Baseline]] = {
    cls.__name__: cls
    for cls in (
        *(FitNet, AT, NST, SP, CC, VID, RKD, PKT, FSP, AB, FT, KDSVD, CRD, SRRL, OFD, ReviewKD, WKDF, CATKD, SimKD),
        *(DKD, DIST, MLKD, LSKD, WTTM, WKDL, SKD, SSKD, HSAKD),
    )
}

# Name → paper and published weight. `catalogue` has only the names.
BASELINES: dict[str, str] = {name: cls.description for name, cls in BASELINE_CLASSES.items()}


def baseline(name: str, **settings: Any) -> Baseline:
    """Return a baseline by its name.

    Parameters
    ----------
    name : str
        A key of `BASELINES`, in upper or lower case.
    **settings
        Settings that replace the published ones, such as weight=10.

    Returns
    -------
    Baseline

    Raises
    ------
    TypeError
        If `name` is not a string, or if a setting has the wrong type.
    ValueError
        If the name or a setting is unknown, if a setting is outside its range, or if
        torchdistill is needed and not installed.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> pckd.methods.baseline("DKD", beta=8).beta
    8
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a baseline must be a string, got {type(name).__name__}")
    names = {key.lower(): key for key in BASELINE_CLASSES}
    found = names.get(name.lower())
    if found is None:
        raise ValueError(f"unknown baseline {name!r}; known: {', '.join(BASELINES)}")
    accepted = inspect.signature(BASELINE_CLASSES[found]).parameters
    if unknown := settings.keys() - accepted.keys():
        raise ValueError(f"{found} has no setting {min(unknown)!r}; its settings: {', '.join(accepted)}")
    return BASELINE_CLASSES[found](**settings)
