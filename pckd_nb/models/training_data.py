"""What a trained network has to remember of its training data, so that it is used as it was trained."""

from __future__ import annotations

import unicodedata
import warnings
from typing import Annotated, Protocol

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

Std = Annotated[FiniteFloat, Field(gt=0)]
Side = Annotated[int, Field(ge=1, le=100_000)]


class HasStatistics(Protocol):
    """What decides how the pixels of a data set reach a network."""

    @property
    def mean(self) -> tuple[float, ...]: ...

    @property
    def std(self) -> tuple[float, ...]: ...

    @property
    def size(self) -> tuple[int, int]: ...


class DataLike(HasStatistics, Protocol):
    """What a network remembers of a data set."""

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...


class TrainingData(BaseModel):
    """The classes and the network input that a network was trained with.

    `distill` and `fit` set it as `trained_on` of the network, and student.safetensors holds it. Every use compares it
    with the data. Weights that you load by `load_state_dict` do not change it.

    Parameters
    ----------
    name : str
        Name of the data set.
    classes : tuple of str
        Names of the classes. Class c has the logit with index c. Empty if they are not known.
    mean, std : tuple of float
        Per channel, of pixels in [0, 1]. The network input is (pixel − mean) / std.
    image_size : (int, int)
        Height and width in pixels.
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
        """Return the training data of a network that is trained on `data`."""
        return cls(name=data.name, classes=data.classes, mean=data.mean, std=data.std, image_size=data.size)

    def without_classes(self) -> TrainingData:
        """Return the same without names of classes: the network may be used for classes of any names."""
        return self.model_copy(update={"classes": ()})

    def check_classes(self, data: DataLike, who: str) -> None:
        """Check that the logits of the network stand for the classes of `data`.

        A warning says so if only one of both has names: "0", "1", … are taken for numbers.

        Parameters
        ----------
        data : Dataset
        who : str
            How the error names the network, such as "teacher".

        Raises
        ------
        ValueError
            If the names of the classes or their order differ.
        """
        ours, theirs = (tuple(unicodedata.normalize("NFC", c) for c in names) for names in (self.classes, data.classes))
        if not ours or ours == theirs:
            return
        if sorted(ours) == sorted(theirs):
            found = "in another order"
        elif len(ours) == len(theirs) and (_unnamed(ours) or _unnamed(theirs)):
            numbered, named = (self.name, data.name) if _unnamed(ours) else (data.name, self.name)
            warnings.warn(
                f"the classes of {numbered} have numbers for names: they are taken for those of {named}, in order",
                stacklevel=3,
            )
            return
        else:
            place = next(
                (i for i, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other),
                min(len(ours), len(theirs)),
            )
            pair = (repr(names[place]) if place < len(names) else "missing" for names in (ours, theirs))
            found = "class {} is {} there and {} here".format(place, *pair)
        raise ValueError(
            f"the {who} was trained on the classes of {self.name}, which differ from those of {data.name}: {found}"
        )


def _unnamed(classes: tuple[str, ...]) -> bool:
    return classes == tuple(map(str, range(len(classes))))
