"""What a trained network has to remember of its training data, so that it is used as it was trained."""

from __future__ import annotations

from typing import Protocol

from pydantic import BaseModel, ConfigDict


class DataLike(Protocol):
    """What is read of a data set here."""

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def mean(self) -> tuple[float, ...]: ...

    @property
    def std(self) -> tuple[float, ...]: ...

    @property
    def size(self) -> tuple[int, int]: ...


class TrainingData(BaseModel):
    """The classes and the network input that a network was trained with.

    `distill` and `fit` set it as `trained_on` of the network, and student.safetensors holds it. Every use compares it
    with the data.

    Parameters
    ----------
    name : str
        Name of the data set.
    classes : tuple of str
        Names of the classes. Class c has the logit with index c.
    mean, std : tuple of float
        Per channel, of pixels in [0, 1]. The network input is (pixel − mean) / std.
    image_size : (int, int)
        Height and width in pixels.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int]

    @classmethod
    def of(cls, data: DataLike) -> TrainingData:
        """Return the training data of a network that is trained on `data`."""
        return cls(name=data.name, classes=data.classes, mean=data.mean, std=data.std, image_size=data.size)

    def check_classes(self, data: DataLike, who: str) -> None:
        """Check that the logits of the network stand for the classes of `data`.

        Classes without names of their own, "0", "1", …, match any names.

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
        if self.classes == data.classes or _unnamed(self.classes) or _unnamed(data.classes):
            return
        if sorted(self.classes) == sorted(data.classes):
            found = "in another order"
        else:
            place = next(
                (i for i, (ours, theirs) in enumerate(zip(self.classes, data.classes, strict=False)) if ours != theirs),
                min(len(self.classes), len(data.classes)),
            )
            pair = (repr(names[place]) if place < len(names) else "missing" for names in (self.classes, data.classes))
            found = "class {} is {} there and {} here".format(place, *pair)
        raise ValueError(
            f"the {who} was trained on the classes of {self.name}, which differ from those of {data.name}: {found}"
        )


def _unnamed(classes: tuple[str, ...]) -> bool:
    return classes == tuple(map(str, range(len(classes))))
