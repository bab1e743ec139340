"""The space of a search: which values each setting of a method may have.

A line of text describes the values of one setting:

    METHOD:SETTING=LOW..HIGH        a number in this range
    METHOD:SETTING=LOW..HIGH:log    the same, with equal chances for equal ratios: for weights
    METHOD:SETTING=A,B,C            one of these values

The classes of optuna hold these values: `FloatDistribution`, `IntDistribution` and `CategoricalDistribution`.
"""

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import methods
from ..catalogue import parse_value
from ..recipes import Recipe
from .arms import Arm, effective_settings
from .grid import Grid

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution  # optuna is slow to import

WEIGHT = re.compile(r"weight|\w+_weight|beta\w*")  # names of settings that weight a loss term
NOT_SEARCHED = {"ce_weight", "cross_entropy_weight"}  # only the ratio of the other weights to these matters
WEIGHT_FACTOR, TEMPERATURE_FACTOR = 10, 4  # largest ratio between a value and the default
SPACE_FORM = "METHOD:SETTING=LOW..HIGH, METHOD:SETTING=LOW..HIGH:log or METHOD:SETTING=A,B,C"


def split_space(text: str) -> tuple[str, str, str]:
    """Split the text of one searched setting.

    Parameters
    ----------
    text : str
        As in the description of this module.

    Returns
    -------
    method, setting, values : str

    Raises
    ------
    ValueError
        If the text does not have this form.
    TypeError
        If `text` is not a string.

    Examples
    --------
    >>> from pckd_nb.experiments.space import split_space
    >>> split_space("pckd:beta_cc=0.002..0.05:log")
    ('pckd', 'beta_cc', '0.002..0.05:log')
    """
    if not isinstance(text, str):
        raise TypeError(f"space must be a list of texts, got a list with {type(text).__name__}")
    if not (match := re.fullmatch(r"(\S+):(\w+)=([^=:\s]+(?::log)?)", text.strip())):
        raise ValueError(f"space must be {SPACE_FORM}, got {text!r}")
    return match[1], match[2], match[3]


def read_values(text: str, arm: Arm, setting: str, recipe: Recipe) -> "BaseDistribution":
    """Return the values that a search may choose for one setting.

    A range has whole numbers only if both ends are whole numbers, and the method or the recipe accepts no others.

    Parameters
    ----------
    text : str
        LOW..HIGH, LOW..HIGH:log, or values separated by commas.
    arm : Arm
        The method.
    setting : str
        Name of a setting of the method, or of a field of the recipe.
    recipe : Recipe

    Returns
    -------
    BaseDistribution

    Raises
    ------
    ValueError
        If the text cannot be read, if a value is not valid for this setting, or if the setting must not be searched.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> from pckd_nb.experiments.space import read_values
    >>> read_values("1..4", pckd.experiments.parse_arm("pckd"), "views", pckd.get_recipe("classroom"))
    IntDistribution(high=4, log=False, low=1, step=1)
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    where = f"{arm}:{setting}={text}"
    if setting == "epochs":
        raise ValueError(f"{where}: epochs cannot be searched, because all trials must have the same number of epochs")
    ends, _, log = text.partition(":")
    if ".." not in ends:
        values = [parse_value(value) for value in ends.split(",")]
        if log or len(set(values)) < 2 or len(set(values)) < len(values) or "" in values:
            raise ValueError(f"{where}: give a range LOW..HIGH, or at least two different values A,B")
        for value in values:
            arm.with_setting(setting, value).build(recipe)
        return CategoricalDistribution(values)
    low, high = (parse_value(end) for end in ends.split("..", 1))
    if isinstance(low, str) or isinstance(high, str) or not -math.inf < low < high < math.inf:
        raise ValueError(f"{where}: LOW and HIGH of a range must be numbers, and LOW less than HIGH")
    if log and low <= 0:
        raise ValueError(f"{where}: LOW of a range with :log must be more than 0")
    for value in (low, high):
        arm.with_setting(setting, value).build(recipe)
    if isinstance(low, int) and isinstance(high, int):
        try:
            arm.with_setting(setting, low + 0.5).build(recipe)
        except ValueError:
            return IntDistribution(low, high, log=bool(log))
    return FloatDistribution(low, high, log=bool(log))


def values_text(values: "BaseDistribution") -> str:
    """Return the values of a searched setting as text, as `read_values` reads it.

    Parameters
    ----------
    values : BaseDistribution

    Returns
    -------
    str

    Examples
    --------
    >>> from optuna.distributions import FloatDistribution
    >>> values_text(FloatDistribution(0.002, 0.05, log=True))
    '0.002..0.05:log'
    """
    known: Any = values  # the base class has neither choices nor ends
    if hasattr(values, "choices"):
        return ",".join(map(number_text, known.choices))
    return f"{number_text(known.low)}..{number_text(known.high)}{':log' if known.log else ''}"


def number_text(value: Any) -> str:
    """Return a number with at most 10 significant digits, and anything else as text."""
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def default_settings(grid: Grid, arm: Arm) -> dict[str, Any]:
    """Return what an arm trains with: the settings of its method, and the fields of the recipe.

    Parameters
    ----------
    grid : Grid
        Its data set, recipe and networks can change the defaults.
    arm : Arm

    Returns
    -------
    dict
        Name → value. A setting of the method hides a field of the recipe that has the same name.
    """
    settings, recipe = effective_settings(arm, grid.recipe, grid.loaded, grid.network_names[0])
    names = methods.setting_names(arm.source or arm.method)
    return {**vars(recipe), **{name: value for name, value in settings.items() if name in names}}


def default_space(grid: Grid, arm: Arm) -> "dict[str, BaseDistribution]":
    """Return which settings of a method are searched if the user gives no space, and their values.

    - Every weight of a loss term, except the weight of the cross-entropy: from 1/10 to 10 times its default.
    - The temperature: from 1/4 to 4 times its default.

    Settings that are 0 by default, that the arm fixes, or that have no effect for these networks are left out. The
    default is the value of the arm without a search: that of the recipe, the published one for this pair of networks,
    or that of the method.

    Parameters
    ----------
    grid : Grid
    arm : Arm

    Returns
    -------
    dict
        Name of the setting → its values, on a logarithmic scale.
    """
    from optuna.distributions import FloatDistribution

    names = methods.setting_names(arm.source or arm.method) - {name for name, _ in arm.settings} - NOT_SEARCHED
    space: dict[str, BaseDistribution] = {}
    for name, value in default_settings(grid, arm).items():
        factor = WEIGHT_FACTOR if WEIGHT.fullmatch(name) else TEMPERATURE_FACTOR if name == "temperature" else 0
        if name not in names or not factor or not isinstance(value, int | float) or value <= 0:
            continue
        if name == "beta_ca" and grid.why_center_alignment_is_left_out(*grid.pairs[0]):
            continue
        low, high = (float(f"{end:.3g}") for end in (value / factor, value * factor))
        space[name] = FloatDistribution(low, high, log=True)
    return space


def round_values(params: Mapping[str, Any], space: "Mapping[str, BaseDistribution]") -> dict[str, Any]:
    """Round the values that a sampler chose to three significant digits.

    They are rounded before training, so that the name of an arm is short and says exactly what was trained.

    Parameters
    ----------
    params : dict
        Setting → value.
    space : dict
        Setting → its values. A rounded number stays in its range.

    Returns
    -------
    dict

    Examples
    --------
    >>> from optuna.distributions import FloatDistribution
    >>> round_values({"beta_cc": 0.0123456}, {"beta_cc": FloatDistribution(0.002, 0.05)})
    {'beta_cc': 0.0123}
    """
    rounded = {}
    for name, value in params.items():
        if isinstance(value, float) and not hasattr(values := space[name], "choices"):
            ends: Any = values
            value = min(max(parse_value(f"{value:.3g}"), ends.low), ends.high)
        rounded[name] = value
    return rounded


def contains(values: "BaseDistribution", value: Any) -> bool:
    """Return whether a search may choose this value.

    Parameters
    ----------
    values : BaseDistribution
    value : object

    Returns
    -------
    bool
    """
    known: Any = values
    if hasattr(values, "choices"):
        return value in known.choices
    return isinstance(value, int | float) and known.low <= value <= known.high
