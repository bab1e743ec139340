"""Arms: a method with the settings that differ from its defaults, written as its folder is called."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from .. import methods, runs
from ..catalogue import read_arm
from ..data import Dataset
from ..plugs import is_plug
from ..recipes import Recipe, get_recipe

PUBLISHED_EPOCHS = 240
TERMS = ("kd", "fa", "ca", "cc")
STRATEGIES = ("uniform", "constant", "curriculum", "focal")  # what preview is compared with
SWEEPS: dict[str, tuple[float, ...]] = {
    "beta_cc": (0, 0.002, 0.005, 0.02, 0.05),
    "beta_fa": (0, 2, 5, 20, 50),
    "beta_ca": (0, 1, 10, 100, 1000),  # at the published 1 it hardly acts in a short training
    "epsilon_240": (1, 1.0025, 1.005, 1.01, 1.015),
}
MAX_EPSILON = 10  # over 240 epochs; its 240th power is a number still


@dataclass(frozen=True)
class Arm:
    """A method and what differs from its defaults. str(arm) is its folder, `parse_arm` the way back."""

    method: str
    settings: tuple[tuple[str, Any], ...] = ()
    source: str = ""  # of a method of your own: "module:Name" or "file.py:Name"

    def __str__(self) -> str:
        return "-".join([self.method, *(f"{name}={_text(value)}" for name, value in self.settings)])

    def build(self, recipe: Recipe) -> tuple[methods.Method, Recipe]:
        """The method, and the recipe as this arm changes it. Raises ValueError for what either does not have."""
        fields = {field.name for field in dataclasses.fields(Recipe)} - {"name", "method", "network_lr", "milestones"}
        settings = dict(self.settings)
        fields -= methods.setting_names(self.source or self.method)  # a name that both have is the method's
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
        except (TypeError, OverflowError) as error:  # text where a number should be, or one too large
            raise ValueError(f"{str(self)!r}: {error}") from error

    def plus(self, name: str, value: Any) -> "Arm":
        """This arm with one setting more, or another value of it."""
        others = tuple(item for item in self.settings if item[0] != name)
        return dataclasses.replace(self, settings=(*others, (name, value)))

    def without_defaults(self, recipe: Recipe, data: Dataset) -> "Arm":
        """The same arm under its shortest name: settings that say what holds anyway are left out, so that the point
        all factors share is trained once."""
        arm = dataclasses.replace(self, settings=())
        try:
            arm.build(recipe)
        except ValueError:  # a method of one's own may need its settings
            return self
        for name, value in self.settings:
            longer = arm.plus(name, value)
            if resolved(longer, recipe, data) != resolved(arm, recipe, data):
                arm = longer
        return arm


def parse_arm(text: str) -> Arm:
    """ "pckd-beta_cc=0.02-views=1" → Arm. Raises ValueError for what can't be read; `Arm.build` checks the names."""
    method, settings = read_arm(text)
    if not is_plug(method):
        return Arm(method, tuple(settings.items()))
    module, _, name = method.rpartition(":")
    place = str(Path(module).expanduser().resolve()) if module.endswith(".py") else module
    return Arm(name, tuple(settings.items()), f"{place}:{name}")


def ablation_arms() -> list[Arm]:
    """PCKD, PCKD without each of its terms, with each strategy that preview is compared with, and with one view; KD and
    a student without teacher beside them."""
    pckd = Arm("pckd")
    without = [pckd.plus(f"beta_{term}", 0) for term in TERMS]
    strategies = [pckd.plus("strategy", name) for name in STRATEGIES]
    return [Arm("supervised"), Arm("kd"), pckd, *without, *strategies, pckd.plus("views", 1)]


def sweep_arms(factor: str, values: Sequence[Any] = (), base: Arm | None = None) -> list[Arm]:
    """One factor at a time: `base` (PCKD) with each value; without values, those of SWEEPS.

    Raises ValueError where there are no values, TypeError for what is no name or no list of them."""
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
    return methods.resolve(method, recipe.method_settings(), {"views": data.default_views})[1]


def resolved(arm: Arm, recipe: Recipe, data: Dataset) -> tuple[dict[str, Any], Recipe]:
    """All that decides what this arm trains: two arms with the same are one."""
    method, recipe = arm.build(recipe)
    values = runs.values_of(settings_of(method, recipe, data))
    if "epsilon" in values:
        values["epsilon"] = round(values["epsilon"], 9)  # 1.005^(240/10) and (1.005^240)^(1/10) are the same ε
    return values, recipe


def _text(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)
