"""Describe the data that a network was trained on, so that it can be compared with other data sets."""

from __future__ import annotations

import unicodedata
import warnings
from typing import Annotated, Protocol

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

Std = Annotated[FiniteFloat, Field(gt=0)]
Side = Annotated[int, Field(ge=1, le=100_000)]


class HasStatistics(Protocol):
    """The normalisation and image size of a data set."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean per channel, of pixels in [0, 1]."""

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation per channel, of pixels in [0, 1]."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""


class DataLike(HasStatistics, Protocol):
    """The part of a data set that `TrainingData` needs."""

    @property
    def name(self) -> str:
        """Name of the data set."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""


class TrainingData(BaseModel):
    """Classes, normalisation and image size of the data that a network was trained on.

    `distill` and `fit` store it in the attribute `trained_on` of the network and in student.safetensors. It is compared
    with the data set whenever the network is used. `load_state_dict` does not change `trained_on`: if you load other
    weights in this way, set it yourself.

    Parameters
    ----------
    name : str
        Name of the data set.
    classes : tuple of str
        Names of the classes. The class at index c belongs to the logit at index c. Empty if they are not known.
    mean, std : tuple of float
        One number per channel, for pixels in [0, 1]. The network input is (pixel − mean) / std.
    image_size : (int, int)
        Height and width in pixels.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> pckd.models.TrainingData.of(data).image_size
    (16, 16)
    """

    model_config = ConfigDict(frozen=True)

    name: str
    classes: tuple[str, ...]
    mean: tuple[FiniteFloat, ...]
    std: tuple[Std, ...]
    image_size: tuple[Side, Side]

    @model_validator(mode="after")
    def check_channels(self) -> TrainingData:
        """Raise ValueError unless mean and std have one number per channel."""
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(f"mean and std must have one number per channel, got {len(self.mean)} and {len(self.std)}")
        return self

    @classmethod
    def of(cls, data: DataLike) -> TrainingData:
        """Return the description of `data`, for a network that is trained on it."""
        return cls(name=data.name, classes=data.classes, mean=data.mean, std=data.std, image_size=data.size)

    def without_classes(self) -> TrainingData:
        """Return a copy without names of classes. `check_classes` then accepts any names."""
        return self.model_copy(update={"classes": ()})

    def check_classes(self, data: DataLike, who: str) -> None:
        """Check that the network was trained on the classes of `data`, in the same order.

        There is only a warning if both have the same number of classes, and one of them names its classes "0", "1",
        "2" and so on.

        Parameters
        ----------
        data : Dataset
        who : str
            Name of the network in the error, such as "teacher".

        Raises
        ------
        ValueError
            If the names or their order differ.
        """
        # the same letter with an accent can be stored in two ways in Unicode: NFC makes them equal
        ours, theirs = (tuple(unicodedata.normalize("NFC", c) for c in names) for names in (self.classes, data.classes))
        if not ours or ours == theirs:
            return
        if sorted(ours) == sorted(theirs):
            found = "the same names in another order"
        elif len(ours) == len(theirs) and (_only_numbers(ours) or _only_numbers(theirs)):
            numbered, named = (self.name, data.name) if _only_numbers(ours) else (data.name, self.name)
            warnings.warn(
                f"the class names of {numbered} are only numbers and cannot be compared: class c of {numbered} is "
                f"treated as class c of {named}",
                stacklevel=3,
            )
            return
        else:
            index = next(
                (i for i, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other),
                min(len(ours), len(theirs)),
            )
            pair = (repr(names[index]) if index < len(names) else "missing" for names in (ours, theirs))
            found = "class {} is {} in the training data and {} in the given data".format(index, *pair)
            if len(ours) == len(theirs):
                found += "; if only the names differ, set trained_on to trained_on.without_classes()"
        raise ValueError(
            f"the {who} was trained on the classes of {self.name}, which differ from those of {data.name}: {found}"
        )


def _only_numbers(classes: tuple[str, ...]) -> bool:
    return classes == tuple(map(str, range(len(classes))))
