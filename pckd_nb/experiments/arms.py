"""Arms: methods with settings. The text of an arm is also the name of its folder."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from .. import methods, runs
from ..catalogue import read_arm
from ..data import Dataset
from ..deprecation import renamed_attribute
from ..paths import user_path
from ..plugins import is_plugin
from ..recipes import Recipe, get_recipe

PUBLISHED_EPOCHS = 240
TERMS = ("kd", "fa", "ca", "cc")
Pair = tuple[str | None, str | None]  # names of teacher and student
NO_PAIR: Pair = (None, None)
ABLATION_STRATEGIES = (  # compared with preview
    "uniform", "constant", "curriculum", "constant_curriculum", "focal", "constant_focal",
)  # fmt: skip
SWEEPS: dict[str, tuple[float, ...]] = {
    "beta_cc": (0, 0.002, 0.005, 0.02, 0.05),
    "beta_fa": (0, 2, 5, 20, 50),
    "beta_ca": (0, 1, 10, 100, 1000),  # the published value 1 has little effect in a short training
    "epsilon_240": (1, 1.0025, 1.005, 1.01, 1.015),
}
MAX_EPSILON = 10  # of epsilon_240; its 240th power does not overflow


@dataclass(frozen=True)
class Arm:
    """A method together with the settings that differ from its defaults.

    `str(arm)` is the name of its folder. `parse_arm` turns such a name into an arm again.

    Parameters
    ----------
    method : str
        Name of the method.
    settings : tuple of (str, value)
        Names and values of the settings that differ from the defaults.
    source : str
        Where a method of your own comes from: "module:Name" or "file.py:Name". Empty for methods of this package.

    Examples
    --------
    >>> from pckd_nb.experiments import Arm
    >>> arm = Arm("pckd").with_setting("beta_cc", 0.02)
    >>> str(arm)
    'pckd-beta_cc=0.02'
    """

    method: str
    settings: tuple[tuple[str, Any], ...] = ()
    source: str = ""

    def __str__(self) -> str:
        return "-".join([self.method, *(f"{name}={_text(value)}" for name, value in self.settings)])

    def build(self, recipe: Recipe) -> tuple[methods.Method, Recipe]:
        """Return the method of this arm, and the recipe with the settings of this arm.

        Parameters
        ----------
        recipe : Recipe
            The recipe of the grid.

        Returns
        -------
        method : Method
        recipe : Recipe
            A copy, in which the arm's settings replace those of the grid.

        Raises
        ------
        ValueError
            If a setting belongs neither to the method nor to the recipe, or if its value is not valid.
        """
        fields = {field.name for field in dataclasses.fields(Recipe)} - {"name", "method", "network_lr", "milestones"}
        settings = dict(self.settings)
        fields -= methods.setting_names(
            self.source or self.method
        )  # a setting of the method hides a recipe field of the same name
        for name in ("flip", "crop_per_view"):
            if settings.get(name) in (0, 1):
                settings[name] = bool(settings[name])
        try:
            recipe = get_recipe(recipe, **{name: settings.pop(name) for name in fields & settings.keys()})
            if "epsilon_240" in settings:
                published = settings.pop("epsilon_240")
                if not isinstance(published, Real) or not 0 < float(published) <= MAX_EPSILON:
                    raise ValueError(f"epsilon_240 must be a positive number up to {MAX_EPSILON}, got {published!r}")
                settings["epsilon"] = published ** (PUBLISHED_EPOCHS / recipe.epochs)
            if "name" in settings:
                raise ValueError(f"'{self}': {self.method} has no setting 'name'")
            return methods.make(self.source or self.method, **settings), recipe
        except (TypeError, OverflowError) as error:  # text instead of a number, or a number that is too large
            raise ValueError(f"{str(self)!r}: {error}") from error

    def with_setting(self, name: str, value: Any) -> "Arm":
        """Return a copy of this arm in which one setting has this value.

        Parameters
        ----------
        name : str
            Name of the setting.
        value : object
            Its value. It replaces an earlier value of the same setting.

        Returns
        -------
        Arm
        """
        others = tuple(item for item in self.settings if item[0] != name)
        return dataclasses.replace(self, settings=(*others, (name, value)))

    def drop_defaults(self, recipe: Recipe, data: Dataset, pairs: Sequence[Pair] = (NO_PAIR,)) -> "Arm":
        """Return a copy of this arm without the settings that equal the defaults.

        Arms with the same training then have the same name, so a point that several sweeps share is trained only once.
        An arm that cannot be built without its settings is returned unchanged.

        Parameters
        ----------
        recipe : Recipe
        data : Dataset
            Recipe and data set that give the default values.
        pairs : sequence of (str or None, str or None)
            Names of teacher and student. A setting is dropped if it equals the default for each of these pairs.

        Returns
        -------
        Arm

        Raises
        ------
        ValueError
            If this arm cannot be built.
        """
        arm = dataclasses.replace(self, settings=())
        try:
            arm.build(recipe)
        except ValueError:  # a user-defined method may have required settings
            return self
        for name, value in self.settings:
            candidate = arm.with_setting(name, value)  # keep the setting only if it changes the training
            effects = [effective_settings(x, recipe, data, pair) for x in (candidate, arm) for pair in pairs]
            if effects[: len(pairs)] != effects[len(pairs) :]:
                arm = candidate
        return arm

    plus = renamed_attribute("plus", "with_setting")
    without_defaults = renamed_attribute("without_defaults", "drop_defaults")


def parse_arm(text: str) -> Arm:
    """Return the arm that a text describes.

    Names of methods and settings are not checked here. `Arm.build` checks them.

    Parameters
    ----------
    text : str
        `METHOD` or `METHOD-SETTING=VALUE`, with any number of settings.

    Returns
    -------
    Arm

    Raises
    ------
    ValueError
        If the text does not have this form, or gives a setting twice.
    TypeError
        If `text` is not a string.

    Examples
    --------
    >>> from pckd_nb.experiments import parse_arm
    >>> parse_arm("pckd-beta_cc=0.02-views=1").settings
    (('beta_cc', 0.02), ('views', 1))
    """
    method, settings = read_arm(text)
    if not is_plugin(method):
        return Arm(method, tuple(settings.items()))
    module, _, name = method.rpartition(":")
    path_or_module = str(user_path(module, "file").resolve()) if module.endswith(".py") else module
    return Arm(name, tuple(settings.items()), f"{path_or_module}:{name}")


def ablation_arms() -> list[Arm]:
    """Return the arms of the ablation study.

    Returns
    -------
    list of Arm
        Supervised training without a teacher, KD, PCKD, PCKD without each of its loss terms, PCKD with each other
        weighting strategy in place of preview, and PCKD with one view.
    """
    pckd = Arm("pckd")
    without_one_term = [pckd.with_setting(f"beta_{term}", 0) for term in TERMS]
    strategies = [pckd.with_setting("strategy", name) for name in ABLATION_STRATEGIES]
    return [Arm("supervised"), Arm("kd"), pckd, *without_one_term, *strategies, pckd.with_setting("views", 1)]


def sweep_arms(factor: str, values: Sequence[Any] = (), base: Arm | None = None) -> list[Arm]:
    """Return one arm per value of a setting.

    Parameters
    ----------
    factor : str
        Name of the setting.
    values : sequence
        Its values. If it is empty, the values in `SWEEPS` are used.
    base : Arm, optional
        The arm whose setting is varied. The default is PCKD.

    Returns
    -------
    list of Arm
        `base` with each of the values.

    Raises
    ------
    ValueError
        If no values are given and `SWEEPS` has none for this setting.
    TypeError
        If `factor` is not a string, `values` not a list, or `base` not an arm.

    Examples
    --------
    >>> from pckd_nb.experiments import parse_arm, sweep_arms
    >>> [str(arm) for arm in sweep_arms("temperature", [2, 4], parse_arm("kd"))]
    ['kd-temperature=2', 'kd-temperature=4']
    """
    if not isinstance(factor, str):
        raise TypeError(f"factor must be the name of a setting, got {type(factor).__name__}")
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(f"the values of {factor!r} must be a list, got {type(values).__name__}")
    if not isinstance(base, Arm | None):
        raise TypeError(f"base must be an arm, got {type(base).__name__}: parse_arm(TEXT) returns one")
    if not values and factor not in SWEEPS:
        name, defaults = " ".join(factor.split()), ", ".join(SWEEPS)
        raise ValueError(f"factor {name} needs values, as in {name}=VALUE,VALUE; only {defaults} have defaults")
    return [(base or Arm("pckd")).with_setting(factor, value) for value in values or SWEEPS[factor]]


def resolve_settings(
    method: methods.Method, recipe: Recipe, data: Dataset, pair: Pair = NO_PAIR
) -> dict[str, dict[str, Any]]:
    """Return the value of every setting of a method, for this recipe, data set and pair of networks.

    See `methods.resolve_settings`.

    Parameters
    ----------
    method : Method
    recipe : Recipe
    data : Dataset
    pair : (str or None, str or None)
        Names of teacher and student.

    Returns
    -------
    dict
        Name of each setting → its value, and where the value comes from.
    """
    return methods.resolve_settings(method, recipe.method_settings(), {"views": data.default_views}, pair)[1]


def effective_settings(arm: Arm, recipe: Recipe, data: Dataset, pair: Pair = NO_PAIR) -> tuple[dict[str, Any], Recipe]:
    """Return all settings that an arm trains with. Equal settings mean the same training.

    Parameters
    ----------
    arm : Arm
    recipe : Recipe
    data : Dataset
    pair : (str or None, str or None)
        Names of teacher and student.

    Returns
    -------
    values : dict
        The method's settings by name. Epsilon is rounded to 9 decimals.
    recipe : Recipe
        The recipe with the settings of the arm.

    Raises
    ------
    ValueError
        If the arm cannot be built.
    """
    method, recipe = arm.build(recipe)
    values = runs.setting_values(resolve_settings(method, recipe, data, pair))
    if "epsilon" in values:
        values["epsilon"] = round(values["epsilon"], 9)  # 1.005^(240/10) and (1.005^240)^(1/10) differ in the last bits
    return values, recipe


def _text(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)
