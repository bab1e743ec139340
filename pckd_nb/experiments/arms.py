"""Arms: a method with the settings that differ from its defaults. The text of an arm is also its folder name."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from .. import methods, runs
from ..catalogue import read_arm
from ..data import Dataset
from ..paths import user_path
from ..plugs import is_plugin
from ..recipes import Recipe, get_recipe

PUBLISHED_EPOCHS = 240
TERMS = ("kd", "fa", "ca", "cc")
STRATEGIES = ("uniform", "constant", "curriculum", "focal")  # strategies that preview is compared with
SWEEPS: dict[str, tuple[float, ...]] = {
    "beta_cc": (0, 0.002, 0.005, 0.02, 0.05),
    "beta_fa": (0, 2, 5, 20, 50),
    "beta_ca": (0, 1, 10, 100, 1000),  # the published value 1 has little effect in a short training
    "epsilon_240": (1, 1.0025, 1.005, 1.01, 1.015),
}
MAX_EPSILON = 10  # over 240 epochs; its 240th power does not overflow


@dataclass(frozen=True)
class Arm:
    """A method and the settings that differ from its defaults.

    str(arm) is the name of its folder. `parse_arm` turns such a name into an arm again.

    Parameters
    ----------
    method : str
        Name of the method.
    settings : tuple of (str, value)
        Names and values of the settings that differ from the defaults.
    source : str
        Where a method of your own comes from: "module:Name" or "file.py:Name". Empty for methods of this package.
    """

    method: str
    settings: tuple[tuple[str, Any], ...] = ()
    source: str = ""

    def __str__(self) -> str:
        return "-".join([self.method, *(f"{name}={_text(value)}" for name, value in self.settings)])

    def build(self, recipe: Recipe) -> tuple[methods.Method, Recipe]:
        """Return the method of this arm, and the recipe with the changes that this arm makes.

        Parameters
        ----------
        recipe : Recipe
            The recipe before the changes.

        Returns
        -------
        method : Method
        recipe : Recipe

        Raises
        ------
        ValueError
            If neither the method nor the recipe has a setting of this name, or if a value is not valid.
        """
        fields = {field.name for field in dataclasses.fields(Recipe)} - {"name", "method", "network_lr", "milestones"}
        settings = dict(self.settings)
        fields -= methods.setting_names(self.source or self.method)  # if both have the name, it is the method's setting
        if settings.get("flip") in (0, 1):
            settings["flip"] = bool(settings["flip"])
        try:
            recipe = get_recipe(recipe, **{name: settings.pop(name) for name in fields & settings.keys()})
            if "epsilon_240" in settings:
                published = settings.pop("epsilon_240")
                if not isinstance(published, Real) or not 0 < float(published) <= MAX_EPSILON:
                    raise ValueError(f"epsilon_240 must be a positive number, {MAX_EPSILON} at most, got {published!r}")
                settings["epsilon"] = published ** (PUBLISHED_EPOCHS / recipe.epochs)
            if "name" in settings:
                raise ValueError(f"'{self}': {self.method} has no setting 'name'")
            return methods.make(self.source or self.method, **settings), recipe
        except (TypeError, OverflowError) as error:  # text instead of a number, or a number that is too large
            raise ValueError(f"{str(self)!r}: {error}") from error

    def plus(self, name: str, value: Any) -> "Arm":
        """Return this arm with one more setting, or with another value of a setting it has.

        Parameters
        ----------
        name : str
            Name of the setting.
        value : object
            Its value.

        Returns
        -------
        Arm
        """
        others = tuple(item for item in self.settings if item[0] != name)
        return dataclasses.replace(self, settings=(*others, (name, value)))

    def without_defaults(self, recipe: Recipe, data: Dataset) -> "Arm":
        """Return the same arm without the settings that change nothing.

        This is the arm with the shortest name. The point that several sweeps share is then trained only once. An arm
        that cannot be built without its settings is returned as it is.

        Parameters
        ----------
        recipe : Recipe
        data : Dataset
            Recipe and data set that give the default values.

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
            candidate = arm.plus(name, value)
            if resolved(candidate, recipe, data) != resolved(arm, recipe, data):
                arm = candidate
        return arm


def parse_arm(text: str) -> Arm:
    """Return the arm of a text such as "pckd-beta_cc=0.02-views=1".

    The names are not checked here. `Arm.build` does that.

    Parameters
    ----------
    text : str
        ``METHOD`` or ``METHOD-SETTING=VALUE``, with any number of settings.

    Returns
    -------
    Arm

    Raises
    ------
    ValueError
        If the text cannot be read, or gives a setting twice.
    TypeError
        If `text` is not a string.
    """
    method, settings = read_arm(text)
    if not is_plugin(method):
        return Arm(method, tuple(settings.items()))
    module, _, name = method.rpartition(":")
    place = str(user_path(module, "file").resolve()) if module.endswith(".py") else module
    return Arm(name, tuple(settings.items()), f"{place}:{name}")


def ablation_arms() -> list[Arm]:
    """Return the arms of the ablation study.

    Returns
    -------
    list of Arm
        A student without a teacher, KD, PCKD, PCKD without each of its terms, PCKD with each strategy that preview is
        compared with, and PCKD with one view.
    """
    pckd = Arm("pckd")
    without = [pckd.plus(f"beta_{term}", 0) for term in TERMS]
    strategies = [pckd.plus("strategy", name) for name in STRATEGIES]
    return [Arm("supervised"), Arm("kd"), pckd, *without, *strategies, pckd.plus("views", 1)]


def sweep_arms(factor: str, values: Sequence[Any] = (), base: Arm | None = None) -> list[Arm]:
    """Return `base` with each value of one setting.

    Parameters
    ----------
    factor : str
        Name of the setting.
    values : sequence
        Its values. If it is empty, the values in SWEEPS are used.
    base : Arm, optional
        The arm whose setting is varied. The default is PCKD.

    Returns
    -------
    list of Arm
        One arm per value.

    Raises
    ------
    ValueError
        If no values are given and SWEEPS has none for this factor.
    TypeError
        If `factor` is not a string, `values` not a list, or `base` not an arm.
    """
    if not isinstance(factor, str):
        raise TypeError(f"a factor is the name of a setting, got {type(factor).__name__}")
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(f"the values of {factor!r} must be a list, got {type(values).__name__}")
    if not isinstance(base, Arm | None):
        raise TypeError(f"base must be an arm, as `parse_arm` gives one, got {type(base).__name__}")
    if not values and factor not in SWEEPS:
        raise ValueError(f"say which values {' '.join(factor.split())} shall take; known without: {', '.join(SWEEPS)}")
    return [(base or Arm("pckd")).plus(factor, value) for value in values or SWEEPS[factor]]


def settings_of(method: methods.Method, recipe: Recipe, data: Dataset) -> dict[str, dict[str, Any]]:
    """Return every setting of a method for this recipe and data set, as `methods.resolve_settings` does.

    Parameters
    ----------
    method : Method
    recipe : Recipe
    data : Dataset

    Returns
    -------
    dict
        Name of each setting → its value and where the value comes from.
    """
    return methods.resolve_settings(method, recipe.method_settings(), {"views": data.default_views})[1]


def resolved(arm: Arm, recipe: Recipe, data: Dataset) -> tuple[dict[str, Any], Recipe]:
    """Return everything that decides what this arm trains. Two arms with equal results are the same arm.

    Parameters
    ----------
    arm : Arm
    recipe : Recipe
    data : Dataset

    Returns
    -------
    values : dict
        The method's settings by name. Epsilon is rounded to 9 decimals.
    recipe : Recipe
        The recipe with the changes that the arm makes.

    Raises
    ------
    ValueError
        If the arm cannot be built.
    """
    method, recipe = arm.build(recipe)
    values = runs.setting_values(settings_of(method, recipe, data))
    if "epsilon" in values:
        values["epsilon"] = round(values["epsilon"], 9)  # 1.005^(240/10) and (1.005^240)^(1/10) are the same ε
    return values, recipe


def _text(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)
