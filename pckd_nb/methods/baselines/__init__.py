r"""Other distillation methods, to compare PCKD with: `baseline("AT")` and others.

Every baseline has the objective

.. math::

    L = w_{\mathrm{CE}} \cdot \overline{\mathrm{CE}} + w \cdot \mathrm{term}

CE with a bar is the mean cross-entropy of the batch. The class of the baseline defines the term. w is the weight that
was published for CIFAR-100, and w_CE is 1 except in `LSKD`, `SKD` and `SSKD`. Every image has one view, V = 1, and in
`SSKD` four. `FSP`, `AB`, `FT` and `SSKD` train something before the first epoch, see `methods.Stage`.

In the equations, the index s means student and t means teacher. f are penultimate features, F feature maps, and z
logits. B is the batch size, and C the number of classes.

Most terms are losses of the package torchdistill, which the extra "baselines" installs. FitNet and DKD are implemented
here. If a loss of torchdistill differs from its paper, the docstring of the class says how. "The comparison in the CRD
paper" is Tian et al., arXiv 1910.10699, which published weights for many methods.

A baseline that compares feature maps uses the last map of every resolution, see `models.FeatureMaps`. The published
comparisons used the maps at the ends of stages instead. For ResNets and VGG these are the same maps, with two
exceptions. The last map of a wide ResNet is taken after its BatchNorm here. At 32×32 pixels, VGG and the ShuffleNets
have one more map, at full resolution.
"""

import inspect
from typing import Any

from ...catalogue import NOT_IMPLEMENTED
from .base import Baseline
from .features import CC, CRD, PKT, RKD, SRRL
from .logits import DIST, DKD, LSKD, SKD, WTTM, decoupled_kl
from .maps import AB, AT, CATKD, FSP, FT, KDSVD, NST, SP, VID, WKDF, FitNet, ReviewKD
from .rotations import SSKD

__all__ = ["BASELINES", "BASELINE_CLASSES", "Baseline", "baseline", "decoupled_kl"]

BASELINE_CLASSES: dict[str, type[Baseline]] = {
    cls.__name__: cls
    for cls in (
        *(FitNet, AT, NST, SP, CC, VID, RKD, PKT, FSP, AB, FT, KDSVD, CRD, SRRL, ReviewKD, WKDF, CATKD),
        *(DKD, DIST, LSKD, WTTM, SKD, SSKD),
    )
}

# Name → paper and published weight. `catalogue` has only the names, and NOT_IMPLEMENTED.
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
        If the name or a setting is unknown, if the baseline is one of `NOT_IMPLEMENTED`, if a setting is outside its
        range, or if torchdistill is needed and not installed.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> pckd.methods.baseline("DKD", beta=8).beta
    8
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a baseline must be a string, got {type(name).__name__}")
    names = {key.lower(): key for key in (*BASELINE_CLASSES, *NOT_IMPLEMENTED)}
    found = names.get(name.lower())
    if found is None:
        raise ValueError(f"unknown baseline {name!r}; known: {', '.join(BASELINES)}")
    if found in NOT_IMPLEMENTED:
        raise ValueError(f"{found} is not implemented: {NOT_IMPLEMENTED[found]}; known: {', '.join(BASELINES)}")
    accepted = inspect.signature(BASELINE_CLASSES[found]).parameters
    if unknown := settings.keys() - accepted.keys():
        raise ValueError(f"{found} has no setting {min(unknown)!r}; its settings: {', '.join(accepted)}")
    return BASELINE_CLASSES[found](**settings)
