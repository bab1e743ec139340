"""Recipes: all settings of a training, and settings of the method that depend on the length of the training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import SkipValidation

from .plugins import is_plugin, load_plugin
from .validation import Count, Fraction, NotNegative, Positive, check_fields

OPTIMIZERS, SCHEDULES = ("sgd", "adamw"), ("step", "cosine", "constant")  # built by `training.optimization`
MIXES = ("mixup", "cutmix")  # built by `views.find_mix`
PUBLISHED_FINAL_THRESHOLD = 1.005**240  # 3.31: the preview threshold after the paper's 240 epochs
NameOrCallable = Annotated[str | Callable[..., Any], SkipValidation]  # checked in `_check_name_or_callable`


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: optimizer, learning-rate schedule, batches and augmentation.

    For `optimizer`, `schedule`, `augment` and `mix` you can use your own: "module:Name", "file.py:Name", or a callable.

    Parameters
    ----------
    name : str
        Name of the recipe, which run.json records.
    epochs : int
        At least 1.
    batch_size : int
        Images per step. The number of views does not change it.
    lr : float
        Learning rate, positive.
    momentum : float, in [0, 1)
        Momentum of the optimizer.
    weight_decay : float
        Weight decay of the optimizer, at least 0.
    milestones : sequence of float
        When the schedule "step" lowers the learning rate, as fractions of `epochs`: 0.5 means after half of them.
    lr_decay : float
        Factor by which the schedule "step" multiplies the learning rate after every milestone.
    flip : bool
        Whether every image is mirrored with probability ½.
    method : dict
        Settings for the method. They replace its defaults, but not the settings that you passed to the method.
    final_threshold : float, optional
        The preview threshold of the last epoch: ε = final_threshold^(1/epochs). None does not change ε.
    network_lr : dict
        Name of a network → its learning rate, for networks that need another one than `lr`.
    optimizer : "sgd", "adamw" or callable
        "sgd" and "adamw" use `lr`, `momentum` and `weight_decay` of this recipe. A callable takes a list of parameters
        and returns a torch.optim.Optimizer.
    schedule : "step", "cosine", "constant" or callable
        A callable takes the optimizer and the number of steps, and returns a scheduler of torch.optim.lr_scheduler. Its
        `step` is called after every training step.
    warmup_epochs : float
        Number of epochs in which the learning rate increases linearly. Only for "step", "cosine" and "constant".
    clip_norm : float, optional
        Gradients are scaled so that their total norm is at most this value.
    ema : float, in [0, 1), optional
        Decay per step of an exponential moving average of the weights. The averaged weights are tested and stored.
    label_smoothing : float, in [0, 1)
        Share of the target that is distributed over all classes.
    crop : bool
        Whether images are padded with zeros and cropped at random.
    crop_per_view : bool
        Whether the rotated views of an image are cropped separately, after the rotation. Otherwise, an image is cropped
        once, before the rotation. For a method with one view, both are the same.
    augment : str or callable, optional
        Name of a class in torchvision.transforms.v2, or a transform. It is applied after crop and flip, see
        `views.apply_transform`.
    mix : "mixup", "cutmix" or callable, optional
        Mixes the images of a batch and their labels, see `views.soft_targets`.

    Raises
    ------
    TypeError
        If a field has the wrong type.
    ValueError
        If a field is outside its range, or if a name is unknown.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> pckd.Recipe("mine", epochs=20, optimizer="adamw", lr=1e-3, schedule="cosine").batch_size
    64
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
    optimizer: NameOrCallable = "sgd"
    schedule: NameOrCallable = "step"
    warmup_epochs: NotNegative = 0
    clip_norm: Positive | None = None
    ema: Fraction | None = None
    label_smoothing: Fraction = 0
    crop: bool = True
    augment: NameOrCallable | None = None
    mix: NameOrCallable | None = None
    crop_per_view: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        known_names = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "augment": (), "mix": MIXES}
        for field_name, names in known_names.items():
            _check_name_or_callable(field_name, getattr(self, field_name), names)
        if self.warmup_epochs and self.schedule not in SCHEDULES:
            raise ValueError(
                f"warmup_epochs needs one of the schedules {', '.join(SCHEDULES)}: do the warm-up in your own schedule"
            )
        if self.crop_per_view and self.mix:
            raise ValueError("mix needs one crop for all views of an image: set crop_per_view to False")

    def settings(self) -> dict[str, Any]:
        """Return the fields of this recipe as run.json records them.

        Returns
        -------
        dict
            Field → value. Callables are described as text, see `provenance.describe`. For your own optimizer, `lr`,
            `momentum` and `weight_decay` are None, because it does not receive them.
        """
        from .provenance import describe  # imports torch, which is slow and not needed to print help

        values = {name: describe(value) for name, value in vars(self).items()}
        for name in ("optimizer", "schedule", "augment", "mix"):
            if is_plugin(values[name]):  # record the code, too: the file may change
                values[name] += f" = {describe(load_plugin(values[name]))}"
        if self.optimizer not in OPTIMIZERS:
            values |= dict.fromkeys(("lr", "momentum", "weight_decay"))
        return values

    def for_network(self, name: str | None) -> Recipe:
        """Return this recipe with the learning rate for a network.

        Parameters
        ----------
        name : str or None
            Name of the network. If `network_lr` does not contain it, `lr` does not change.

        Returns
        -------
        Recipe
            With an empty `network_lr`.
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
        """Return the learning rate of an epoch with the schedule "step", without warm-up.

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
        """Return the settings of the method that this recipe replaces, with their new values.

        Returns
        -------
        dict
            Name → value: the field `method`, and epsilon = final_threshold^(1/epochs) if `final_threshold` is given.
        """
        settings = dict(self.method)
        if self.final_threshold is not None:
            settings["epsilon"] = self.final_threshold ** (1 / self.epochs)
        return settings


def _check_name_or_callable(field_name: str, value: Any, known: Sequence[str]) -> None:
    """Check that a field is a known name, a callable, or None if the field is optional."""
    optional = field_name in ("augment", "mix")
    if value is None and optional:
        return
    if isinstance(value, type) and optional:
        raise TypeError(f"{field_name} must be an object: write {value.__name__}(), not {value.__name__}")
    if not callable(value) and not isinstance(value, str):
        raise TypeError(f"{field_name} must be a name or a callable, got {type(value).__name__}")
    if isinstance(value, str) and not value.strip():
        raise ValueError(f"{field_name} must be a name or a callable, got an empty string")
    if isinstance(value, str) and known and value not in known and not is_plugin(value):
        raise ValueError(f"unknown {field_name} {value!r}; known: {', '.join(known)}, file.py:NAME, or a callable")


RECIPES = {
    recipe.name: recipe
    for recipe in (
        # A short training needs many steps, so batches are small. Several small learning-rate decays work better than
        # a few large ones.
        Recipe(
            "classroom",
            epochs=10,
            batch_size=32,
            milestones=(0.5, 0.65, 0.8, 0.9),
            lr_decay=0.3,
            # This warmup_epochs is a setting of two baselines, not the field of Recipe. They were published with 20
            # epochs of warm-up in 240.
            method={"beta_cc": 0.005, "warmup_epochs": 1},
            final_threshold=PUBLISHED_FINAL_THRESHOLD,
        ),
        # Flip and crops: the data loader of the authors' code is not published, but its call is that of SSKD's loader
        # (Xu et al., arXiv 2006.07114), which flips an image and then crops every rotation separately. Most other
        # methods were published with one view, a crop and a flip.
        Recipe(
            "cifar100_paper",
            epochs=240,
            flip=True,
            network_lr=dict.fromkeys(("MobileNetV2", "ShuffleV1", "ShuffleV2"), 0.01),
            crop_per_view=True,
        ),
        # The authors did not publish their settings for ImageNet. Most papers since CRD (arXiv 1910.10699) use these.
        # The final threshold is that of the 240 epochs on CIFAR-100.
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
    """Return a recipe by its name, with some fields changed.

    Parameters
    ----------
    recipe : str or Recipe
        "classroom", "cifar100_paper", "imagenet_paper", or a recipe of your own.
    **changes
        Fields of `Recipe` and their new values. A new `lr` applies to every network, and `network_lr` becomes empty.

    Returns
    -------
    Recipe

    Raises
    ------
    TypeError
        If `recipe` is neither a name nor a `Recipe`, or if a field has the wrong type.
    ValueError
        If the name or a field is unknown, if a value is outside its range, or if `lr`, `momentum` or `weight_decay` is
        given for your own optimizer.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> recipe = pckd.get_recipe("classroom", epochs=5)
    >>> recipe.epochs, recipe.batch_size
    (5, 32)
    """
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise ValueError(f"unknown recipe {recipe!r}; known: {', '.join(RECIPES)}")
        recipe = RECIPES[recipe]
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be a Recipe or the name of one, got {type(recipe).__name__}")
    fields = [field.name for field in dataclasses.fields(Recipe)]
    unknown = changes.keys() - set(fields)
    if unknown:
        raise ValueError(f"a recipe has no field {min(unknown)!r}; its fields: {', '.join(fields)}")
    if "lr" in changes:
        changes = {"network_lr": {}, **changes}
    changed = dataclasses.replace(recipe, **changes)
    if changed.optimizer not in OPTIMIZERS and (ignored := sorted({"lr", "momentum", "weight_decay"} & changes.keys())):
        raise ValueError(
            f"your own optimizer does not receive {ignored[0]}: set it in the optimizer, "
            f"as in partial(SGD, {ignored[0]}=...)"
        )
    return changed
