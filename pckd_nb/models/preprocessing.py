"""A network that learned from other pixels than a data set gives it: another normalisation, or another resolution."""

from collections.abc import Sequence
from math import inf, isfinite
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..validation import plain
from .output import Classifier, Output


class HasStatistics(Protocol):
    """What `with_preprocessing` reads of a data set."""

    @property
    def mean(self) -> tuple[float, ...]: ...

    @property
    def std(self) -> tuple[float, ...]: ...

    @property
    def size(self) -> tuple[int, int]: ...


class Preprocessed(Classifier):
    """Made by `with_preprocessing`. `model` is the network itself; state dicts have its own names."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: Classifier, scale: Tensor, shift: Tensor, size: tuple[int, int] | None):
        super().__init__()
        self.model, self.name, self.weights_from, self.resized = model, model.name, model.weights_from, size
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        self.register_buffer("shift", shift[:, None, None], persistent=False)
        self.preprocessing: dict[str, Any] = {}

    @property
    def head(self) -> nn.Linear:
        return self.model.head

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
    model: Classifier, data: HasStatistics, *, mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None, size: int | Sequence[int] | None = None,
) -> Classifier:  # fmt: skip
    """A teacher for `data` that learned with other constants or at another resolution than `data` has.

    Parameters
    ----------
    model : Classifier
    data : Dataset
        What the teacher will be shown.
    mean, std : sequence of float, optional
        Per channel, of pixels in [0, 1]: what the network learned with. Default: those of `data`.
    size : int or (height, width), optional
        Pixels that the network learned at. Default: those of `data`.

    Returns
    -------
    Classifier
        The same network, with a linear map and a bilinear scaling before it. `model` itself where nothing differs.

    Raises
    ------
    ValueError
        If there is not one number per channel, or a std is not positive.

    Examples
    --------
    >>> teacher = with_preprocessing(teacher, data, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), size=224)
    """
    given = {
        name: tuple(map(plain, getattr(data, name) if values is None else values))
        for name, values in (("mean", mean), ("std", std))
    }
    for name, values in given.items():
        if len(values) != len(data.mean):
            raise ValueError(f"{name} must have one number per channel, {len(data.mean)}, got {len(values)}")
    if not all(0 < value < inf for value in given["std"]) or not all(map(isfinite, given["mean"])):
        raise ValueError(f"mean must be finite, and std positive and finite, got {given['mean']} and {given['std']}")
    size = plain(size)
    sides = (size, size) if isinstance(size, int) else data.size if size is None else tuple(map(plain, size))
    height, width = sides
    if not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(f"size must be whole numbers of pixels, 1 or more, got {sides}")
    if (given["mean"], given["std"], (height, width)) == (tuple(data.mean), tuple(data.std), tuple(data.size)):
        return model
    ours, theirs = (
        torch.tensor(pair, dtype=torch.float64) for pair in ((data.mean, data.std), (given["mean"], given["std"]))
    )
    scale, shift = ours[1] / theirs[1], (ours[0] - theirs[0]) / theirs[1]
    resized = (height, width) if (height, width) != tuple(data.size) else None
    wrapped = Preprocessed(model, scale.float(), shift.float(), resized)
    inner = {"inner": model.preprocessing} if isinstance(model, Preprocessed) else {}
    wrapped.preprocessing = {**inner, "mean": list(given["mean"]), "std": list(given["std"]), "size": [height, width]}
    return wrapped


def preprocessed(model: Classifier, data: HasStatistics, recorded: dict[str, Any]) -> Classifier:
    """`with_preprocessing` as it was recorded in `Preprocessed.preprocessing`."""
    if "inner" in recorded:
        model = preprocessed(model, data, recorded["inner"])
    return with_preprocessing(model, data, mean=recorded["mean"], std=recorded["std"], size=recorded["size"])
