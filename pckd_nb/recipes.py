"""Recipes: the optimiser's settings, and what a short training must change in a method."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from numbers import Real
from typing import Any

from .plugs import is_plug, load_plug

OPTIMIZERS, SCHEDULES = ("sgd", "adamw"), ("step", "cosine", "constant")  # `training.optimization` builds them
MIXES = ("mixup", "cutmix")  # `views.find_mix` does
PUBLISHED_FINAL_THRESHOLD = 1.005**240  # 3.31: where the paper's threshold ends
MOST = 10**9  # epochs, or images a step: whoever asks for more has slipped


def _number(name: str, value: float) -> float:
    """As a float, infinite where that overflows. Raises TypeError for text, truth values and what else is no number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        return inf if value > 0 else -inf


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: optimizer, learning-rate schedule, batches and augmentation.

    epochs · batch_size: images a step, whatever the number of views · lr: learning rate, times lr_decay after every
    milestone, a fraction of `epochs` · flip: mirror images at random · method: settings a method takes from this
    recipe unless its caller gave them · final_threshold: chooses ε so that the preview threshold ends there, however
    short the training (ε = final_threshold^(1/epochs)); None leaves ε alone · network_lr: the learning rate of
    networks, by name, that need another one.
    optimizer: "sgd" or "adamw", which take lr, momentum and weight_decay from here; or a callable that makes a
    torch.optim.Optimizer of a list of parameters · schedule: "step" (lr_decay and milestones), "cosine" or "constant";
    or a callable (optimizer, number of steps) that makes a torch.optim.lr_scheduler, stepped after every step ·
    warmup_epochs: how long the learning rate of a schedule by name rises linearly · clip_norm: largest norm of all
    gradients together · ema: decay per step of an exponential moving average of the weights, which is then what is
    tested and kept · label_smoothing: share of a target that is spread over all classes · crop: zero padding and random
    crop · augment: after crop and flip, see `views.transform`; or the name of a transform of torchvision.transforms.v2,
    such as "RandAugment" · mix: "mixup" or "cutmix", or see `views.soften`. Every name may also be "module:Name" or
    "file.py:Name" of your own.
    Raises ValueError for numbers that can't train, TypeError for what is no number.
    """

    name: str
    epochs: int
    batch_size: int = 64
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    milestones: tuple[float, ...] = (150 / 240, 180 / 240, 210 / 240)
    lr_decay: float = 0.1
    flip: bool = False
    method: Mapping[str, Any] = field(default_factory=dict)
    final_threshold: float | None = None
    network_lr: Mapping[str, float] = field(default_factory=dict)
    optimizer: str | Callable[..., Any] = "sgd"
    schedule: str | Callable[..., Any] = "step"
    warmup_epochs: float = 0
    clip_norm: float | None = None
    ema: float | None = None
    label_smoothing: float = 0
    crop: bool = True
    augment: str | Callable[..., Any] | None = None
    mix: str | Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        for about in dataclasses.fields(self):
            value = getattr(self, about.name)
            if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () and hasattr(value, "item"):
                object.__setattr__(self, about.name, value.item())  # checkpoints and run.json keep plain numbers
        for name, kind in (("name", str), ("flip", bool), ("crop", bool), ("method", Mapping), ("network_lr", Mapping)):
            if not isinstance(value := getattr(self, name), kind):
                raise TypeError(f"{name} of a recipe must be a {kind.__name__}, got {type(value).__name__}")
        for name in ("epochs", "batch_size"):
            number = _number(name, getattr(self, name))
            if not (isinstance(getattr(self, name), int) and 1 <= number <= MOST):
                raise ValueError(f"{name} must be a whole number, at least 1 and at most {MOST:,}, got {number:.10g}")
        rates = {f"network_lr of {network!r}": rate for network, rate in self.network_lr.items()}
        end = {} if self.final_threshold is None else {"final_threshold": self.final_threshold}
        for name, value in {"lr": self.lr, "lr_decay": self.lr_decay, **end, **rates}.items():
            if not 0 < (number := _number(name, value)) < inf:
                raise ValueError(f"{name} must be positive and finite, got {number:.10g}")
        if not 0 <= (number := _number("momentum", self.momentum)) < 1:
            raise ValueError(f"momentum must be in [0, 1), got {number:.10g}")
        if not 0 <= (number := _number("weight_decay", self.weight_decay)) < inf:
            raise ValueError(f"weight_decay must be 0 or more, and finite, got {number:.10g}")
        self._check_plugs()
        if not isinstance(self.milestones, tuple | list):
            raise TypeError(f"milestones must be a tuple of numbers, got {type(self.milestones).__name__}")
        for milestone in self.milestones:
            if not 0 <= (number := _number("each of milestones", milestone)) < inf:
                raise ValueError(f"milestones are fractions of the epochs, 0 or more, got {number:.10g}")

    def _check_plugs(self) -> None:
        names = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "augment": (), "mix": MIXES}
        for name, known in names.items():
            plug = getattr(self, name)
            if plug is None and name in ("augment", "mix"):
                continue
            if isinstance(plug, type) and name in ("augment", "mix"):
                raise TypeError(f"{name} must be an object: write {plug.__name__}(), not {plug.__name__}")
            if not callable(plug) and not isinstance(plug, str):
                raise TypeError(f"{name} must be a name or a callable, got {type(plug).__name__}")
            if isinstance(plug, str) and not plug.strip():
                raise ValueError(f"{name} must be a name or a callable, got an empty text")
            if isinstance(plug, str) and known and plug not in known and not is_plug(plug):
                raise ValueError(f"unknown {name} {plug!r}; known: {', '.join(known)}, file.py:NAME, or a callable")
        if not 0 <= (number := _number("warmup_epochs", self.warmup_epochs)) < inf:
            raise ValueError(f"warmup_epochs must be 0 or more, and finite, got {number:.10g}")
        if self.warmup_epochs and self.schedule not in SCHEDULES:
            raise ValueError("warmup_epochs goes with a schedule by name: let your own schedule warm up")
        if self.clip_norm is not None and not 0 < (number := _number("clip_norm", self.clip_norm)) < inf:
            raise ValueError(f"clip_norm must be positive and finite, got {number:.10g}")
        if self.ema is not None and not 0 <= (number := _number("ema", self.ema)) < 1:
            raise ValueError(f"ema must be in [0, 1), got {number:.10g}")
        if not 0 <= (number := _number("label_smoothing", self.label_smoothing)) < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {number:.10g}")

    def settings(self) -> dict[str, Any]:
        """What run.json says of this recipe. Plugs are described, see `provenance.describe`."""
        from .provenance import describe  # loads torch, which the command line's help can do without

        values = {about.name: describe(getattr(self, about.name)) for about in dataclasses.fields(self)}
        for name in ("optimizer", "schedule", "augment", "mix"):
            if is_plug(values[name]):  # the name alone would not tell a file from what it is after a change
                values[name] += f" = {describe(load_plug(values[name]))}"
        if self.optimizer not in OPTIMIZERS:  # which does not get them
            values |= dict.fromkeys(("lr", "momentum", "weight_decay"))
        return values

    def for_network(self, name: str | None) -> "Recipe":
        """This recipe with the learning rate it has for the network called `name`."""
        return dataclasses.replace(self, lr=self.network_lr.get(name or "", self.lr), network_lr={})

    def decays_before(self, epoch: int) -> int:
        """How many milestones lie before an epoch, counted from 1."""
        return sum(epoch > milestone * self.epochs for milestone in self.milestones)

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 1, by the schedule "step" without warm-up."""
        return self.lr * self.lr_decay ** self.decays_before(epoch)

    def method_settings(self) -> dict[str, Any]:
        """What this recipe has to say about a method's settings."""
        settings = dict(self.method)
        if self.final_threshold is not None:
            settings["epsilon"] = self.final_threshold ** (1 / self.epochs)
        return settings


RECIPES = {
    recipe.name: recipe
    for recipe in (
        # A short training needs many steps, and gains more from several small cuts of its rate than from deep ones.
        Recipe(
            "classroom",
            epochs=10,
            batch_size=32,
            milestones=(0.5, 0.65, 0.8, 0.9),
            lr_decay=0.3,
            method={"beta_cc": 0.005, "warmup_epochs": 1},  # of baselines that have one: 20 of 240 epochs, as published
            final_threshold=PUBLISHED_FINAL_THRESHOLD,
        ),
        Recipe("cifar100_paper", epochs=240, network_lr=dict.fromkeys(("MobileNetV2", "ShuffleV1", "ShuffleV2"), 0.01)),
        # The authors' settings for ImageNet are not published. These are the field's since CRD (arXiv 1910.10699);
        # the threshold ends where the 240 epochs of CIFAR-100 take it.
        Recipe(
            "imagenet_paper",
            epochs=100,
            batch_size=256,
            lr=0.1,
            weight_decay=1e-4,
            milestones=(0.3, 0.6, 0.9),
            flip=True,
            final_threshold=PUBLISHED_FINAL_THRESHOLD,
        ),
    )
}


def get_recipe(recipe: str | Recipe, **changes: Any) -> Recipe:
    """A recipe by name, with some fields changed: get_recipe("classroom", epochs=5). A new lr holds for every network.

    Raises ValueError for an unknown name or field, and what `Recipe` raises.
    """
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise ValueError(f"unknown recipe {recipe!r}; known: {', '.join(RECIPES)}")
        recipe = RECIPES[recipe]
    if not isinstance(recipe, Recipe):
        raise TypeError(f"a recipe is a Recipe or the name of one, got {type(recipe).__name__}")
    unknown = changes.keys() - {field.name for field in dataclasses.fields(Recipe)}
    if unknown:
        raise ValueError(f"a recipe has no field {min(unknown)!r}")
    if "lr" in changes:
        changes = {"network_lr": {}, **changes}
    changed = dataclasses.replace(recipe, **changes)
    if changed.optimizer not in OPTIMIZERS and (ignored := sorted({"lr", "momentum", "weight_decay"} & changes.keys())):
        raise ValueError(
            f"{ignored[0]} is for optimizers by name: set it in your own, partial(AdamW, {ignored[0]}=...)"
        )
    return changed
