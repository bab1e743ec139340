"""A network that learned from other pixels than a data set gives it: another normalisation, or another resolution."""

import warnings
from collections.abc import Sequence
from math import inf, isfinite
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalogue import check_normalisation
from ..validation import plain
from .output import Classifier, Output
from .training_data import HasStatistics, TrainingData
from .wrapper import TRAINED_ON, as_classifier, unwrapped

MAX_SHIFT = 0.15  # in standard deviations: maximum difference between the constants of a network and of the data


class Preprocessed(Classifier):
    """Made by `with_preprocessing`. `model` is the network itself; state dicts have its own names."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: Classifier, shown: dict[str, Any], learned: dict[str, Any]):
        """Show `model` pixels as in `learned` of pixels as in `shown`: both have mean, std and image_size."""
        super().__init__()
        self.model, self.name, self.weights_from = model, model.name, model.weights_from
        self.shown, self.learned = shown, learned
        self.resized = learned["image_size"] if learned["image_size"] != shown["image_size"] else None
        ours, theirs = (
            torch.tensor((pixels["mean"], pixels["std"]), dtype=torch.float64) for pixels in (shown, learned)
        )
        scale, shift = (ours[1] / theirs[1]).float(), ((ours[0] - theirs[0]) / theirs[1]).float()
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        self.register_buffer("shift", shift[:, None, None], persistent=False)
        self.preprocessing: dict[str, Any] = {}

    @property
    def head(self) -> nn.Linear:
        return self.model.head

    @property
    def trained_on(self) -> TrainingData | None:
        """The training data of `model`, with the pixels that are shown to the wrapper."""
        inner = self.model.trained_on or TrainingData(name="", classes=(), **self.learned)
        return inner.model_copy(update=self.shown)

    @trained_on.setter
    def trained_on(self, data: TrainingData | None) -> None:
        if data:
            self.shown = {name: getattr(data, name) for name in self.shown}
        self.model.trained_on = data and data.model_copy(update=self.learned)

    def pixels(self, x: Tensor) -> Tensor:
        """Network input as the data set gives it, as the network has learned to see it."""
        if self.resized is not None:
            x = F.interpolate(x, self.resized, mode="bilinear", antialias=True, align_corners=False)
        return x * self.scale + self.shift

    def features(self, x: Tensor) -> Tensor:
        return self.model.features(self.pixels(x))

    def forward(self, x: Tensor) -> Output:
        return cast(Output, self.model(self.pixels(x)))

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        return self.model.load_state_dict(state_dict, *args, **kwargs)


def with_preprocessing(
    model: nn.Module, data: HasStatistics, *, mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None, size: int | Sequence[int] | None = None,
) -> Classifier:  # fmt: skip
    """A teacher for `data` that learned with other constants or at another resolution than `data` has.

    Parameters
    ----------
    model : Classifier, or any nn.Module that ends in a linear layer
    data : Dataset
        What the teacher will be shown.
    mean, std : sequence of float, optional
        Per channel, of pixels in [0, 1]: what the network learned with. Default: those of `model.trained_on`, else
        those of `data`.
    size : int or (height, width), optional
        Pixels that the network learned at. The default is found in the same way.

    Returns
    -------
    Classifier
        The same network, with a linear map and a bilinear scaling before it. `model` itself if nothing differs.

    Raises
    ------
    ValueError
        If there is not one number per channel, a mean is not in [0, 1], or a std is not in (0, 1].

    Examples
    --------
    >>> teacher = with_preprocessing(teacher, data, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), size=224)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a network, got {type(model).__name__}")
    if isinstance(data, type) or any(callable(getattr(data, name, len)) for name in ("mean", "std", "size")):
        raise TypeError(f"data must be a Dataset, got {type(data).__name__}: load_dataset(NAME) loads one")
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and (isinstance(values, str) or not hasattr(values, "__len__")):
            raise TypeError(f"{name} must be a list of one number per channel, got {type(values).__name__}")
    model = as_classifier(model)
    own = model.trained_on
    given = {
        name: tuple(map(plain, getattr(own or data, name) if values is None else values))
        for name, values in (("mean", mean), ("std", std))
    }
    for name, values in given.items():
        if len(values) != len(data.mean):
            raise ValueError(f"{name} must have one number per channel, {len(data.mean)}, got {len(values)}")
    if not all(0 < value < inf for value in given["std"]) or not all(map(isfinite, given["mean"])):
        raise ValueError(f"mean must be finite, and std positive and finite, got {given['mean']} and {given['std']}")
    check_normalisation(given["mean"], given["std"])
    size = plain(size)
    default = own.image_size if own else data.size
    given_sides = [size, size] if isinstance(size, int | float) else default if size is None else size
    sides = tuple(map(plain, given_sides))
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(f"size must be whole numbers of pixels, 1 or more, got {sides}")
    height, width = sides
    same = (given["mean"], given["std"], (height, width)) == (tuple(data.mean), tuple(data.std), tuple(data.size))
    if same and not (own and sees_differently(own, data, 0)):
        return model
    shown = {"mean": tuple(data.mean), "std": tuple(data.std), "image_size": tuple(data.size)}
    wrapped = Preprocessed(model, shown, {**given, "image_size": (height, width)})
    inner: dict[str, Any] = {}
    if isinstance(model, Preprocessed):
        inner = {"inner": {**model.preprocessing, "shown": {name: list(value) for name, value in model.shown.items()}}}
    wrapped.preprocessing = {**inner, "mean": list(given["mean"]), "std": list(given["std"]), "size": [height, width]}
    return wrapped


def preprocessed(model: Classifier, data: HasStatistics, recorded: dict[str, Any]) -> Classifier:
    """`with_preprocessing` as it was recorded in `Preprocessed.preprocessing`."""
    if inner := recorded.get("inner"):
        shown = inner.get("shown", {**recorded, "image_size": recorded["size"]})  # not recorded by earlier versions
        seen = SimpleNamespace(mean=shown["mean"], std=shown["std"], size=tuple(shown["image_size"]))
        model = preprocessed(model, seen, inner)
    return with_preprocessing(model, data, mean=recorded["mean"], std=recorded["std"], size=recorded["size"])


def remember(model: nn.Module, trained_on: TrainingData | None) -> None:
    """Keep what weights were trained on with the network that they were loaded into, within all wrappers.

    Parameters
    ----------
    model : nn.Module
    trained_on : TrainingData or None
        None if it is not known.
    """
    inner = unwrapped(model)
    while isinstance(inner, Preprocessed):
        inner = unwrapped(inner.model)
    if isinstance(inner, Classifier):
        inner.trained_on = trained_on
    else:
        setattr(inner, TRAINED_ON, trained_on)


def match_input(model: Classifier, data: HasStatistics, who: str = "network", max_shift: float = 0) -> Classifier:
    """Return a network that sees `data` with the image size and normalization that it was trained with.

    Parameters
    ----------
    model : Classifier
    data : Dataset
    who : str
        How a warning names the network, such as "teacher".
    max_shift : float
        Difference between the constants that is left as it is, in standard deviations.

    Returns
    -------
    Classifier
        `model` itself if its training data are unknown or reach it the same way as `data`. Otherwise the network gets
        a linear map and a bilinear scaling before it. A warning says so if the image size or the constants differ
        clearly.
    """
    trained_on = model.trained_on
    if trained_on is None or not sees_differently(trained_on, data, max_shift):
        return model
    if sees_differently(trained_on, data, MAX_SHIFT):
        height, width = trained_on.image_size
        warnings.warn(
            f"the {who} learned from {height}×{width} pixels with mean {rounded(trained_on.mean)} and std "
            f"{rounded(trained_on.std)}: its input is resized and normalised the same way",
            stacklevel=3,
        )
    return with_preprocessing(model, data, mean=trained_on.mean, std=trained_on.std, size=trained_on.image_size)


def sees_differently(trained_on: TrainingData, data: HasStatistics, max_shift: float = MAX_SHIFT) -> bool:
    """Return whether images of `data` reach a network at another size or normalization than in its training.

    Parameters
    ----------
    trained_on : TrainingData
        Of the network.
    data : Dataset
    max_shift : float
        Largest difference between the constants that does not count, in standard deviations. Constants that were
        computed on another part of the same images differ by less than the default.

    Returns
    -------
    bool
        False if the number of channels differs: then the network can't take the images at all.
    """
    if len(trained_on.mean) != len(data.mean):
        return False
    if trained_on.image_size != tuple(data.size):
        return True
    ours, theirs = (np.array([pair.mean, pair.std]) for pair in (data, trained_on))
    moved, stretched = abs(ours[0] - theirs[0]) / theirs[1], abs(ours[1] / theirs[1] - 1)
    return bool(max(moved.max(), stretched.max()) > max_shift)


def rounded(values: Sequence[float]) -> str:
    """Return the numbers with three decimals, separated by commas."""
    return ", ".join(f"{value:.3f}" for value in values)
