"""Recipes: the optimiser's settings, and what a short training must change in a method."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

PUBLISHED_FINAL_THRESHOLD = 1.005**240  # 3.31: where the paper's threshold ends


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum and step decay.

    epochs · batch_size: images a step, whatever the number of views · lr: learning rate, times lr_decay after every
    milestone, a fraction of `epochs` · flip: mirror images at random · method: settings a method takes from this
    recipe unless its caller gave them · final_threshold: chooses ε so that the preview threshold ends there, however
    short the training (ε = final_threshold^(1/epochs)); None leaves ε alone · network_lr: the learning rate of
    networks, by name, that need another one.
    Raises ValueError for numbers that can't train.
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

    def __post_init__(self):
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name} must be a whole number, at least 1, got {value}")
        for name in ("lr", "lr_decay", "final_threshold"):
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum}")
        if not (isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay must be 0 or more, and finite, got {self.weight_decay}")

    def for_network(self, name: str | None) -> "Recipe":
        """This recipe with the learning rate it has for the network called `name`."""
        return dataclasses.replace(self, lr=self.network_lr.get(name, self.lr), network_lr={})

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 1."""
        passed = sum(epoch > milestone * self.epochs for milestone in self.milestones)
        return self.lr * self.lr_decay**passed

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

    Raises ValueError for an unknown name or field.
    """
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise ValueError(f"unknown recipe '{recipe}'; known: {', '.join(RECIPES)}")
        recipe = RECIPES[recipe]
    unknown = changes.keys() - {field.name for field in dataclasses.fields(Recipe)}
    if unknown:
        raise ValueError(f"a recipe has no field '{min(unknown)}'")
    if "lr" in changes:
        changes = {"network_lr": {}, **changes}
    return dataclasses.replace(recipe, **changes)
