"""Use a network on images with another normalisation or image size than in its training.

The images are converted before they reach the network.
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
from ..deprecation import renamed_arguments, renamed_attribute
from ..validation import plain
from .output import Classifier, Output
from .training_data import HasStatistics, TrainingData
from .wrapper import TRAINED_ON, as_classifier, unwrap

MAX_SHIFT = 0.15  # smaller differences of mean and std are ignored, see `input_differs`


class Preprocessed(Classifier):
    r"""A network that converts its input before it runs. `with_preprocessing` returns it.

    Images are first resized, if the size differs. Then the normalisation of each channel is changed:

    .. math:: x_\text{converted} = \text{scale} \cdot x + \text{shift}, \quad
        \text{scale} = \frac{\text{std}_\text{input}}{\text{std}_\text{training}}, \quad
        \text{shift} = \frac{\text{mean}_\text{input} - \text{mean}_\text{training}}{\text{std}_\text{training}}

    State dicts use the parameter names of `model`.

    Parameters
    ----------
    model : Classifier
        The network itself.
    input_format : dict
        mean, std and image_size of the images that this object takes.
    training_format : dict
        mean, std and image_size of the images that `model` was trained with.

    Attributes
    ----------
    scale, shift : Tensor of shape (C, 1, 1)
        One number per channel, as in the equation.
    resize_to : (int, int) or None
        Height and width that images are resized to. None if they are not resized.
    preprocessing : dict
        Arguments of `with_preprocessing`, as a run records them. `restore_preprocessing` takes this dict.
    """

    scale: Tensor
    shift: Tensor
    shown = renamed_attribute("shown", "input_format")
    learned = renamed_attribute("learned", "training_format")
    resized = renamed_attribute("resized", "resize_to")
    pixels = renamed_attribute("pixels", "convert_input")

    @renamed_arguments(shown="input_format", learned="training_format")
    def __init__(self, model: Classifier, input_format: dict[str, Any], training_format: dict[str, Any]):
        super().__init__()
        self.model, self.name, self.weights_from = model, model.name, model.weights_from
        self.input_format, self.training_format = input_format, training_format
        sizes_differ = training_format["image_size"] != input_format["image_size"]
        self.resize_to = training_format["image_size"] if sizes_differ else None
        (mean, std), (model_mean, model_std) = (
            torch.tensor((images["mean"], images["std"]), dtype=torch.float64)
            for images in (input_format, training_format)
        )
        scale, shift = (std / model_std).float(), ((mean - model_mean) / model_std).float()
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        self.register_buffer("shift", shift[:, None, None], persistent=False)
        self.preprocessing: dict[str, Any] = {}
        self.stages = tuple(f"model.{name}" for name in model.stages)
        self.preactivations = tuple(f"model.{name}" for name in model.preactivations)
        self.norms = tuple(f"model.{name}" for name in model.norms)
        self.last_map = f"model.{model.last_map}" if model.last_map else ""

    @property
    def head(self) -> nn.Linear:
        """Return the last layer of `model`."""
        return self.model.head

    @property
    def trained_on(self) -> TrainingData | None:
        """Return the training data of `model`, but with the normalisation and image size of `input_format`.

        These are what a caller must provide, because this object converts its input.
        """
        training_data = self.model.trained_on or TrainingData(name="", classes=(), **self.training_format)
        return training_data.model_copy(update=self.input_format)

    @trained_on.setter
    def trained_on(self, data: TrainingData | None) -> None:
        if data:  # `data` describes the images before `convert_input`; `model` was trained on the converted ones
            self.input_format = {name: getattr(data, name) for name in self.input_format}
        self.model.trained_on = data and data.model_copy(update=self.training_format)

    def convert_input(self, x: Tensor) -> Tensor:
        """Convert images to the normalisation and image size that `model` was trained with.

        Parameters
        ----------
        x : Tensor of shape (N, C, H, W)
            Images of `input_format`.

        Returns
        -------
        Tensor of shape (N, C, H', W')
            H' and W' are the image size of `training_format`.
        """
        if self.resize_to is not None:
            wide = x.to(torch.promote_types(x.dtype, torch.float32))  # a CPU cannot resize in bfloat16
            x = F.interpolate(wide, self.resize_to, mode="bilinear", antialias=True, align_corners=False).to(x.dtype)
        return x * self.scale + self.shift

    def features(self, x: Tensor) -> Tensor:
        """Return the penultimate features of `model`, shape (N, D)."""
        return self.model.features(self.convert_input(x))

    def forward(self, x: Tensor) -> Output:
        """Convert images and run `model`."""
        return cast(Output, self.model(self.convert_input(x)))

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
    """Return a network that converts images of `data` to the normalisation and image size of its training.

    Use it for a teacher that was not trained with this package. It is not needed if `teacher.trained_on` is set,
    because then `distill`, `evaluate` and `predict` convert the images.

    Parameters
    ----------
    model : Classifier, or any nn.Module that ends in a linear layer
    data : Dataset
        The data set whose images the network will take.
    mean, std : sequence of float, optional
        Normalisation in the training of the network, one number per channel, for pixels in [0, 1]. By default, the
        values of `model.trained_on`, or those of `data` if `model.trained_on` is None.
    size : int or (int, int), optional
        Image size in the training of the network, height and width in pixels. By default, the size in
        `model.trained_on`, or the size of `data` if `model.trained_on` is None.

    Returns
    -------
    Classifier
        A `Preprocessed` network. It resizes images bilinearly and changes their normalisation. If nothing has to be
        converted, `model` itself is returned.

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
    training_statistics = {
        name: tuple(map(plain, getattr(trained_on or data, name) if values is None else values))
        for name, values in (("mean", mean), ("std", std))
    }
    for name, values in training_statistics.items():
        if len(values) != len(data.mean):
            raise ValueError(
                f"{name} must have length {len(data.mean)}, one number per channel, got length {len(values)}"
            )
    training_mean, training_std = training_statistics["mean"], training_statistics["std"]
    if not all(0 < value < inf for value in training_std) or not all(map(isfinite, training_mean)):
        raise ValueError(f"mean must be finite, and std positive and finite, got {training_mean} and {training_std}")
    check_normalisation(training_mean, training_std)
    size = plain(size)
    default_size = trained_on.image_size if trained_on else data.size
    height_and_width = [size, size] if isinstance(size, int | float) else default_size if size is None else size
    sides = tuple(map(plain, height_and_width))
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(f"size must be one or two whole numbers of pixels, 1 or more, got {sides}")
    height, width = sides
    input_format = {"mean": tuple(data.mean), "std": tuple(data.std), "image_size": tuple(data.size)}
    training_format = {**training_statistics, "image_size": (height, width)}
    # The arguments can describe the same images as `data` while `trained_on` describes others. Then the arguments are
    # right. The network is wrapped although nothing is converted. Otherwise `match_input` would use `trained_on`.
    if training_format == input_format and not (trained_on and input_differs(trained_on, data, 0)):
        return model
    wrapped = Preprocessed(model, input_format, training_format)
    inner: dict[str, Any] = {}
    if isinstance(model, Preprocessed):  # record the conversion inside as well
        inner_format = {name: list(value) for name, value in model.input_format.items()}
        inner = {"inner": {**model.preprocessing, "shown": inner_format}}
    wrapped.preprocessing = {**inner, "mean": list(training_mean), "std": list(training_std), "size": [height, width]}
    return wrapped


def restore_preprocessing(model: Classifier, data: HasStatistics, recorded: dict[str, Any]) -> Classifier:
    """Apply `with_preprocessing` with the arguments that a run recorded.

    Parameters
    ----------
    model : Classifier
    data : Dataset
    recorded : dict
        The attribute `preprocessing` of a `Preprocessed` network. If that network was wrapped twice, the entry "inner"
        describes the inner conversion.

    Returns
    -------
    Classifier
    """
    if inner := recorded.get("inner"):
        # earlier versions did not record "shown"
        inner_format = inner.get("shown", {**recorded, "image_size": recorded["size"]})
        inner_data = SimpleNamespace(
            mean=inner_format["mean"], std=inner_format["std"], size=tuple(inner_format["image_size"])
        )
        model = restore_preprocessing(model, inner_data, inner)
    return with_preprocessing(model, data, mean=recorded["mean"], std=recorded["std"], size=recorded["size"])


def set_trained_on(model: nn.Module, trained_on: TrainingData | None) -> None:
    """Set the attribute `trained_on` of the network inside all wrappers.

    Parameters
    ----------
    model : nn.Module
    trained_on : TrainingData or None
        Data that its weights were trained on. None if unknown.
    """
    inner = unwrap(model)
    while isinstance(inner, Preprocessed):
        inner = unwrap(inner.model)
    if isinstance(inner, Classifier):
        inner.trained_on = trained_on
    else:
        setattr(inner, TRAINED_ON, trained_on)


def match_input(model: Classifier, data: HasStatistics, who: str = "network", max_shift: float = 0) -> Classifier:
    """Add a conversion of the input if a network was trained with another normalisation or image size.

    Parameters
    ----------
    model : Classifier
    data : Dataset
    who : str
        Name of the network in a warning, such as "teacher".
    max_shift : float
        Differences of mean and std up to this value are ignored, see `input_differs`.

    Returns
    -------
    Classifier
        `model` itself if `model.trained_on` is None, or if it has the normalisation and image size of `data`. Otherwise
        a `Preprocessed` network. There is a warning if the image size differs, or if the normalisation differs by more
        than 0.15, see `input_differs`.
    """
    trained_on = model.trained_on
    if trained_on is None or not input_differs(trained_on, data, max_shift):
        return model
    if input_differs(trained_on, data, MAX_SHIFT):
        height, width = trained_on.image_size
        warnings.warn(
            f"the {who} was trained on images of {height}×{width} pixels with mean {format_numbers(trained_on.mean)} "
            f"and std {format_numbers(trained_on.std)}: the images are converted to this size and normalisation",
            stacklevel=3,
        )
    return with_preprocessing(model, data, mean=trained_on.mean, std=trained_on.std, size=trained_on.image_size)


def input_differs(trained_on: TrainingData, data: HasStatistics, max_shift: float = MAX_SHIFT) -> bool:
    r"""Return whether a network was trained with another image size or normalisation than that of `data`.

    The normalisation differs if, in any channel,

    .. math:: \max\left(\frac{|\text{mean} - \text{mean}_\text{training}|}{\text{std}_\text{training}},
        \left|\frac{\text{std}}{\text{std}_\text{training}} - 1\right|\right) > \text{max\_shift}.

    Parameters
    ----------
    trained_on : TrainingData
        Training data of a network.
    data : Dataset
    max_shift : float
        Differences up to this value are ignored. With the default, small differences do not count, such as those
        between two subsets of the same data set.

    Returns
    -------
    bool
        False if the number of channels differs, because then no conversion is possible.
    """
    if len(trained_on.mean) != len(data.mean):
        return False
    if trained_on.image_size != tuple(data.size):
        return True
    (mean, std), (model_mean, model_std) = (np.array([source.mean, source.std]) for source in (data, trained_on))
    shift, change_of_scale = abs(mean - model_mean) / model_std, abs(std / model_std - 1)
    return bool(max(shift.max(), change_of_scale.max()) > max_shift)


def format_numbers(values: Sequence[float]) -> str:
    """Return numbers as text, with three decimals and separated by commas."""
    return ", ".join(f"{value:.3f}" for value in values)
