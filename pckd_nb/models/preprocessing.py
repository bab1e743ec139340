"""Networks that were trained with another normalisation or image size than those of the data set.

Their input is converted before it reaches the network.
"""

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
from .wrapper import TRAINED_ON, as_classifier, unwrap

MAX_SHIFT = 0.15  # largest difference of normalisation constants that is ignored, in standard deviations


class Preprocessed(Classifier):
    """A network whose input is converted first. `with_preprocessing` returns it.

    `model` is the network itself. State dicts use the parameter names of `model`.

    Parameters
    ----------
    model : Classifier
    shown : dict
        mean, std and image_size of the images that this object is called with.
    learned : dict
        mean, std and image_size of the images that `model` was trained with.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: Classifier, shown: dict[str, Any], learned: dict[str, Any]):
        super().__init__()
        self.model, self.name, self.weights_from = model, model.name, model.weights_from
        self.shown, self.learned = shown, learned
        self.resized = learned["image_size"] if learned["image_size"] != shown["image_size"] else None
        (mean, std), (model_mean, model_std) = (
            torch.tensor((pixels["mean"], pixels["std"]), dtype=torch.float64) for pixels in (shown, learned)
        )
        scale, shift = (std / model_std).float(), ((mean - model_mean) / model_std).float()
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        self.register_buffer("shift", shift[:, None, None], persistent=False)
        self.preprocessing: dict[str, Any] = {}

    @property
    def head(self) -> nn.Linear:
        """Return the last layer of `model`."""
        return self.model.head

    @property
    def trained_on(self) -> TrainingData | None:
        """Return the training data of `model`, with the normalisation and image size of the input of this object."""
        inner = self.model.trained_on or TrainingData(name="", classes=(), **self.learned)
        return inner.model_copy(update=self.shown)

    @trained_on.setter
    def trained_on(self, data: TrainingData | None) -> None:
        if data:
            self.shown = {name: getattr(data, name) for name in self.shown}
        self.model.trained_on = data and data.model_copy(update=self.learned)

    def pixels(self, x: Tensor) -> Tensor:
        """Return images with the normalisation and image size that `model` was trained with."""
        if self.resized is not None:
            x = F.interpolate(x, self.resized, mode="bilinear", antialias=True, align_corners=False)
        return x * self.scale + self.shift

    def features(self, x: Tensor) -> Tensor:
        """Return the penultimate features of `model`, shape (N, D)."""
        return self.model.features(self.pixels(x))

    def forward(self, x: Tensor) -> Output:
        """Convert images and run `model`."""
        return cast(Output, self.model(self.pixels(x)))

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state dict of `model`."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a state dict of `model`."""
        return self.model.load_state_dict(state_dict, *args, **kwargs)


def with_preprocessing(
    model: nn.Module, data: HasStatistics, *, mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None, size: int | Sequence[int] | None = None,
) -> Classifier:  # fmt: skip
    """Return a network that takes images of `data` but was trained with another normalisation or image size.

    Use it for a teacher from another source. It is not needed if `trained_on` of the teacher is known: `distill`,
    `evaluate` and `predict` then convert the images themselves.

    Parameters
    ----------
    model : Classifier, or any nn.Module that ends in a linear layer
    data : Dataset
        The data set whose images the network will take.
    mean, std : sequence of float, optional
        Normalisation of the training, one number per channel, for pixels in [0, 1]. Default: that of
        `model.trained_on`, or that of `data` if it is not known.
    size : int or (int, int), optional
        Image size of the training, height and width in pixels. The default is found in the same way.

    Returns
    -------
    Classifier
        The network with a conversion of its input before it: bilinear resizing and the other normalisation. `model`
        itself if nothing has to be converted.

    Raises
    ------
    TypeError
        If `model` is not a network, `data` is not a data set, or `mean` or `std` is not a list of numbers.
    ValueError
        If there is not one number per channel, if a mean is not in [0, 1] or a std not in (0, 1], or if `size` is not
        one or two positive whole numbers.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> teacher = pckd.create_model("resnet8", data, seed=0)
    >>> teacher = pckd.with_preprocessing(teacher, data, mean=(0.5,), std=(0.5,), size=32)
    >>> pckd.predict(teacher, data).logits.shape
    torch.Size([16, 10])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a network, got {type(model).__name__}: create_model(NAME, data) makes one")
    if isinstance(data, type) or any(callable(getattr(data, name, len)) for name in ("mean", "std", "size")):
        raise TypeError(f"data must be a Dataset, got {type(data).__name__}: load_dataset(NAME) loads one")
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and (isinstance(values, str) or not hasattr(values, "__len__")):
            raise TypeError(f"{name} must be a list of one number per channel, got {type(values).__name__}")
    model = as_classifier(model)
    trained_on = model.trained_on
    given = {
        name: tuple(map(plain, getattr(trained_on or data, name) if values is None else values))
        for name, values in (("mean", mean), ("std", std))
    }
    for name, values in given.items():
        if len(values) != len(data.mean):
            raise ValueError(f"{name} must have one number per channel, {len(data.mean)}, got {len(values)}")
    if not all(0 < value < inf for value in given["std"]) or not all(map(isfinite, given["mean"])):
        raise ValueError(f"mean must be finite, and std positive and finite, got {given['mean']} and {given['std']}")
    check_normalisation(given["mean"], given["std"])
    size = plain(size)
    default = trained_on.image_size if trained_on else data.size
    given_sides = [size, size] if isinstance(size, int | float) else default if size is None else size
    sides = tuple(map(plain, given_sides))
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(f"size must be one or two whole numbers of pixels, 1 or more, got {sides}")
    height, width = sides
    same = (given["mean"], given["std"], (height, width)) == (tuple(data.mean), tuple(data.std), tuple(data.size))
    if same and not (trained_on and input_differs(trained_on, data, 0)):
        return model
    shown = {"mean": tuple(data.mean), "std": tuple(data.std), "image_size": tuple(data.size)}
    wrapped = Preprocessed(model, shown, {**given, "image_size": (height, width)})
    inner: dict[str, Any] = {}
    if isinstance(model, Preprocessed):
        inner = {"inner": {**model.preprocessing, "shown": {name: list(value) for name, value in model.shown.items()}}}
    wrapped.preprocessing = {**inner, "mean": list(given["mean"]), "std": list(given["std"]), "size": [height, width]}
    return wrapped


def restore_preprocessing(model: Classifier, data: HasStatistics, recorded: dict[str, Any]) -> Classifier:
    """Apply `with_preprocessing` with the arguments that a run recorded.

    Parameters
    ----------
    model : Classifier
    data : Dataset
    recorded : dict
        The attribute `preprocessing` of a `Preprocessed` network.

    Returns
    -------
    Classifier
    """
    if inner := recorded.get("inner"):
        shown = inner.get("shown", {**recorded, "image_size": recorded["size"]})  # not recorded by earlier versions
        input_of_inner = SimpleNamespace(mean=shown["mean"], std=shown["std"], size=tuple(shown["image_size"]))
        model = restore_preprocessing(model, input_of_inner, inner)
    return with_preprocessing(model, data, mean=recorded["mean"], std=recorded["std"], size=recorded["size"])


def set_trained_on(model: nn.Module, trained_on: TrainingData | None) -> None:
    """Set the attribute `trained_on` of the network inside all wrappers.

    Parameters
    ----------
    model : nn.Module
    trained_on : TrainingData or None
        Training data of its weights. None if they are not known.
    """
    inner = unwrap(model)
    while isinstance(inner, Preprocessed):
        inner = unwrap(inner.model)
    if isinstance(inner, Classifier):
        inner.trained_on = trained_on
    else:
        setattr(inner, TRAINED_ON, trained_on)


def match_input(model: Classifier, data: HasStatistics, who: str = "network", max_shift: float = 0) -> Classifier:
    """Return a network that takes images of `data` as it took those of its training.

    Parameters
    ----------
    model : Classifier
    data : Dataset
    who : str
        Name of the network in a warning, such as "teacher".
    max_shift : float
        Largest difference of normalisation constants that is ignored, in standard deviations.

    Returns
    -------
    Classifier
        `model` itself if its training data are unknown, or if they have the normalisation and image size of `data`.
        Otherwise `with_preprocessing(model, data, …)`. There is a warning if the image size differs, or the constants
        by more than `MAX_SHIFT`.
    """
    trained_on = model.trained_on
    if trained_on is None or not input_differs(trained_on, data, max_shift):
        return model
    if input_differs(trained_on, data, MAX_SHIFT):
        height, width = trained_on.image_size
        warnings.warn(
            f"the {who} learned from {height}×{width} pixels with mean {rounded(trained_on.mean)} and std "
            f"{rounded(trained_on.std)}: its input is resized and normalised the same way",
            stacklevel=3,
        )
    return with_preprocessing(model, data, mean=trained_on.mean, std=trained_on.std, size=trained_on.image_size)


def input_differs(trained_on: TrainingData, data: HasStatistics, max_shift: float = MAX_SHIFT) -> bool:
    """Return whether the images of `data` have another size or normalisation than those of a training.

    Parameters
    ----------
    trained_on : TrainingData
        Training data of a network.
    data : Dataset
    max_shift : float
        Largest difference of normalisation constants that is ignored, in standard deviations. The default allows for
        constants that were computed from another part of the same images.

    Returns
    -------
    bool
        False if the number of channels differs, because then the network cannot take the images at all.
    """
    if len(trained_on.mean) != len(data.mean):
        return False
    if trained_on.image_size != tuple(data.size):
        return True
    (mean, std), (model_mean, model_std) = (np.array([source.mean, source.std]) for source in (data, trained_on))
    shift, change_of_scale = abs(mean - model_mean) / model_std, abs(std / model_std - 1)
    return bool(max(shift.max(), change_of_scale.max()) > max_shift)


def rounded(values: Sequence[float]) -> str:
    """Return numbers as text, with three decimals and separated by commas."""
    return ", ".join(f"{value:.3f}" for value in values)
