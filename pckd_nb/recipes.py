"""Recipes: how a network is trained, and how a short training changes the settings of a method."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import SkipValidation

from .plugs import is_plugin, load_plugin
from .validation import Count, Fraction, NotNegative, Positive, check_fields

OPTIMIZERS, SCHEDULES = ("sgd", "adamw"), ("step", "cosine", "constant")  # built by `training.optimization`
MIXES = ("mixup", "cutmix")  # built by `views.find_mix`
PUBLISHED_FINAL_THRESHOLD = 1.005**240  # 3.31: the final threshold in the paper
Plug = Annotated[str | Callable[..., Any], SkipValidation]  # a name, or the object of this name


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: optimizer, learning-rate schedule, batches and augmentation.

    Every name of an optimizer, schedule, augmentation or mix may also be "module:Name" or "file.py:Name" of your own.

    Parameters
    ----------
    name : str
    epochs : int
    batch_size : int
        Images per step, whatever the number of views.
    lr : float
        Learning rate. The schedule "step" multiplies it by lr_decay after every milestone.
    momentum, weight_decay : float
        Of the optimizer.
    milestones : sequence of float
        Fractions of `epochs`.
    lr_decay : float
    flip : bool
        Mirror images at random.
    method : dict
        Settings that a method takes from this recipe unless its caller gave them.
    final_threshold : float, optional
        Where the preview threshold ends, however short the training: ε = final_threshold^(1/epochs). None leaves ε
        alone.
    network_lr : dict
        Learning rates of networks that need another one, by the name of the network.
    optimizer : "sgd", "adamw" or callable
        By name they take lr, momentum and weight_decay from here. A callable makes a torch.optim.Optimizer of a list of
        parameters.
    schedule : "step", "cosine", "constant" or callable
        A callable makes a torch.optim.lr_scheduler of the optimizer and the number of steps. It is stepped after every
        step.
    warmup_epochs : float
        How long the learning rate of a schedule by name rises linearly.
    clip_norm : float, optional
        Largest norm of all gradients together.
    ema : float, optional
        Decay per step of an exponential moving average of the weights. The average is then what is tested and kept.
    label_smoothing : float
        Share of a target that is spread over all classes.
    crop : bool
        Zero padding and random crop.
    augment : name of a transform of torchvision.transforms.v2, or callable, optional
        Applied after crop and flip, see `views.transform`.
    mix : "mixup", "cutmix" or callable, optional
        See `views.soften`.

    Raises
    ------
    TypeError
        If a field has another type.
    ValueError
        If a value cannot train.
    """

    name: str
    epochs: Count
    batch_size: Count = 64
    lr: Positive = 0.05
    momentum: Fraction = 0.9
    weight_decay: NotNegative = 5e-4
    milestones: Sequence[NotNegative] = (150 / 240, 180 / 240, 210 / 240)
    lr_decay: Positive = 0.1
    flip: bool = False
    method: Mapping[str, Any] = field(default_factory=dict)
    final_threshold: Positive | None = None
    network_lr: Mapping[str, Positive] = field(default_factory=dict)
    optimizer: Plug = "sgd"
    schedule: Plug = "step"
    warmup_epochs: NotNegative = 0
    clip_norm: Positive | None = None
    ema: Fraction | None = None
    label_smoothing: Fraction = 0
    crop: bool = True
    augment: Plug | None = None
    mix: Plug | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        known = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "augment": (), "mix": MIXES}
        for name, names in known.items():
            _check_plug(name, getattr(self, name), names)
        if self.warmup_epochs and self.schedule not in SCHEDULES:
            raise ValueError("warmup_epochs goes with a schedule by name: let your own schedule warm up")

    def settings(self) -> dict[str, Any]:
        """Return this recipe as it is written to run.json.

        Returns
        -------
        dict
            Field → value. Callables and names of your own are described, see `provenance.describe`. The fields lr,
            momentum and weight_decay are None for an optimizer of your own, which does not receive them.
        """
        from .provenance import describe  # imports torch, which the help of the command line does not need

        values = {name: describe(value) for name, value in vars(self).items()}
        for name in ("optimizer", "schedule", "augment", "mix"):
            if is_plugin(values[name]):  # the name stays the same when the file changes
                values[name] += f" = {describe(load_plugin(values[name]))}"
        if self.optimizer not in OPTIMIZERS:  # a user-defined optimizer does not receive them
            values |= dict.fromkeys(("lr", "momentum", "weight_decay"))
        return values

    def for_network(self, name: str | None) -> Recipe:
        """Return this recipe with the learning rate for a network.

        Parameters
        ----------
        name : str or None
            Name of the network. A name that `network_lr` does not have, or None, keeps `lr`.

        Returns
        -------
        Recipe
        """
        return dataclasses.replace(self, lr=self.network_lr.get(name or "", self.lr), network_lr={})

    def decays_before(self, epoch: int) -> int:
        """Return the number of milestones before an epoch.

        Parameters
        ----------
        epoch : int
            Counted from 1.

        Returns
        -------
        int
        """
        return sum(epoch > milestone * self.epochs for milestone in self.milestones)

    def lr_at(self, epoch: int) -> float:
        """Return the learning rate of an epoch in the schedule "step", without warm-up.

        Parameters
        ----------
        epoch : int
            Counted from 1.

        Returns
        -------
        float
        """
        return self.lr * self.lr_decay ** self.decays_before(epoch)

    def method_settings(self) -> dict[str, Any]:
        """Return the settings that a method takes from this recipe.

        Returns
        -------
        dict
            Name → value. With a `final_threshold`, it has epsilon = final_threshold^(1/epochs).
        """
        settings = dict(self.method)
        if self.final_threshold is not None:
            settings["epsilon"] = self.final_threshold ** (1 / self.epochs)
        return settings


def _check_plug(name: str, plug: Any, known: Sequence[str]) -> None:
    """Raise TypeError or ValueError unless a field is a name, a callable, or None if that is allowed."""
    optional = name in ("augment", "mix")
    if plug is None and optional:
        return
    if isinstance(plug, type) and optional:
        raise TypeError(f"{name} must be an object: write {plug.__name__}(), not {plug.__name__}")
    if not callable(plug) and not isinstance(plug, str):
        raise TypeError(f"{name} must be a name or a callable, got {type(plug).__name__}")
    if isinstance(plug, str) and not plug.strip():
        raise ValueError(f"{name} must be a name or a callable, got an empty text")
    if isinstance(plug, str) and known and plug not in known and not is_plugin(plug):
        raise ValueError(f"unknown {name} {plug!r}; known: {', '.join(known)}, file.py:NAME, or a callable")


RECIPES = {
    recipe.name: recipe
    for recipe in (
        # A short training needs many steps. Several small learning-rate decays help it more than a few large ones.
        Recipe(
            "classroom",
            epochs=10,
            batch_size=32,
            milestones=(0.5, 0.65, 0.8, 0.9),
            lr_decay=0.3,
            method={"beta_cc": 0.005, "warmup_epochs": 1},  # for baselines with warm-up; published: 20 of 240 epochs
            final_threshold=PUBLISHED_FINAL_THRESHOLD,
        ),
        Recipe("cifar100_paper", epochs=240, network_lr=dict.fromkeys(("MobileNetV2", "ShuffleV1", "ShuffleV2"), 0.01)),
        # The authors' settings for ImageNet are not published. These are the usual ones since CRD (arXiv 1910.10699).
        # The final threshold is the one after 240 epochs on CIFAR-100.
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
    """Return a recipe, with some fields changed: get_recipe("classroom", epochs=5).

    Parameters
    ----------
    recipe : str or Recipe
        A key of RECIPES, or a recipe.
    **changes
        Fields of `Recipe` and their new values. A new lr applies to every network.

    Returns
    -------
    Recipe

    Raises
    ------
    ValueError
        If the name or a field is unknown, if a value is not valid, or if lr, momentum or weight_decay is given for an
        optimizer of your own.
    TypeError
        If `recipe` is neither a name nor a Recipe, or if a field has another type.
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
