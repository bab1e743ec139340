"""Checks of tensors and numbers that the functions of `losses`, `preview`, `views` and `methods` receive.

Tensors are checked by type, shape, dtype and device. Their values are not read, because the program would have to wait
for the GPU. There are two exceptions: the range of labels on a CPU, and a tensor that is given as a number.

Settings, such as the learning rate of a recipe, are checked in `validation`.
"""

from numbers import Integral

import torch
from torch import Tensor

TEMPERATURE_RANGE = 1e-6, 1e6  # at other temperatures, float32 overflows in the loss terms
FLOAT_DTYPES = torch.float16, torch.bfloat16, torch.float32, torch.float64
LABEL_DTYPES = torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8


def as_number(name: str, value: float) -> float:
    """Return a number as a float.

    Parameters
    ----------
    name : str
        Name of the argument, for the error message.
    value : float
        Also an int, a NumPy number, or a tensor with one element.

    Returns
    -------
    float
        Plus or minus infinity for an int that is too large for a float.

    Raises
    ------
    TypeError
        If `value` is not a number. Strings and bools are not numbers here.
    """
    try:
        if not isinstance(value, bool | str | bytes):
            return float(value)
    except OverflowError:
        return float("inf") if value > 0 else -float("inf")
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor with several elements
        pass
    raise TypeError(f"{name} must be a number, got {type(value).__name__}")


def check_whole_number(name: str, value: int, lowest: int, highest: int = 2**63 - 1) -> None:
    """Check that an argument is a whole number in a range.

    Parameters
    ----------
    name : str
        Name of the argument, for the error message.
    value : int
    lowest, highest : int
        Smallest and largest number that is accepted.

    Raises
    ------
    TypeError
        If `value` is not an integer. A bool is not an integer here.
    ValueError
        If `value` is outside the range.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {type(value).__name__}")
    if not lowest <= value <= highest:
        raise ValueError(f"{name} must be from {lowest} to {highest}, got {value}")


def check_temperature(name: str, value: float) -> None:
    """Check that an argument is a temperature that float32 can compute with.

    Parameters
    ----------
    name : str
        Name of the argument, for the error message.
    value : float

    Raises
    ------
    TypeError
        If `value` is not a number.
    ValueError
        If `value` is outside `TEMPERATURE_RANGE`, which is 1e-6 to 1e6.
    """
    lowest, highest = TEMPERATURE_RANGE
    if not lowest <= as_number(name, value) <= highest:
        raise ValueError(f"{name} must be from {lowest:g} to {highest:g}, got {value}")


def check_same_shape(name: str, student: Tensor, teacher: Tensor, dimensions: int = 2) -> None:
    """Check that two tensors have the same shape and are on the same device.

    Parameters
    ----------
    name : str
        What both tensors contain, in the plural, for the error message: "logits".
    student, teacher : float Tensor of any shape with `dimensions` dimensions
    dimensions : int
        Number of dimensions that both tensors must have.

    Raises
    ------
    TypeError
        If one of them is not a tensor.
    ValueError
        If a dtype is not in `FLOAT_DTYPES`, if the number of dimensions is wrong, if a dimension has size 0, or if
        shapes or devices differ.
    """
    for tensor in (student, teacher):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be tensors, got {type(tensor).__name__}")
        if tensor.dtype not in FLOAT_DTYPES:
            raise ValueError(f"{name} must be floating-point numbers, got {tensor.dtype}")
        if tensor.ndim != dimensions or 0 in tensor.shape:
            got = tuple(tensor.shape)
            raise ValueError(f"{name} must be tensors with {dimensions} dimensions, none of size 0, got shape {got}")
    if student.shape != teacher.shape:
        raise ValueError(f"{name} differ in shape: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}")
    if student.device != teacher.device:
        raise ValueError(f"{name} are on different devices: student {student.device}, teacher {teacher.device}")


def check_labels(labels: Tensor, rows: Tensor, num_classes: int | None = None) -> None:
    """Check that there is one integer label per row of another tensor.

    Parameters
    ----------
    labels : int Tensor of shape (N,)
    rows : Tensor of shape (N, ...)
        The tensor that the labels belong to, such as logits.
    num_classes : int, optional
        If given, labels must be from 0 to num_classes − 1. This is checked on a CPU only.

    Raises
    ------
    TypeError
        If `labels` is not a tensor.
    ValueError
        If the labels are not integers, if their shape is not (N,), if they are on another device than `rows`, or if a
        label is outside the range.
    """
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor, got {type(labels).__name__}")
    if labels.dtype not in LABEL_DTYPES:
        raise ValueError(f"labels must be whole numbers, got {labels.dtype}")
    if labels.shape != rows.shape[:1]:
        raise ValueError(f"labels must have shape {tuple(rows.shape[:1])}, one per row, got {tuple(labels.shape)}")
    if labels.device != rows.device:
        raise ValueError(f"labels must be on {rows.device}, like the logits or scores, got labels on {labels.device}")
    if num_classes is not None and labels.device.type == "cpu":
        lowest, highest = map(int, labels.aminmax())
        if lowest < 0 or highest >= num_classes:
            raise ValueError(f"labels must be from 0 to {num_classes - 1}, got {lowest} to {highest}")


def check_one_value_per_sample(**tensors: Tensor) -> None:
    """Check that every tensor has one floating-point value per sample, and that all have the same number of samples.

    Parameters
    ----------
    **tensors : float Tensor of shape (B,)
        The tensors, by the names of the arguments.

    Raises
    ------
    TypeError
        If a value is not a tensor.
    ValueError
        If a tensor is not floating-point, if it does not have the shape (B,) with B ≥ 1, or if the lengths differ.
    """
    for name, values in tensors.items():
        if not isinstance(values, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(values).__name__}")
        if not values.is_floating_point() or values.ndim != 1 or not len(values):
            got = f"{values.dtype} of shape {tuple(values.shape)}"
            raise ValueError(f"{name} must be floating-point numbers, one per sample, got {got}")
    if len({len(values) for values in tensors.values()}) > 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in tensors.items())
        raise ValueError(f"all tensors must have the same number of samples, got {lengths}")


def check_images(images: Tensor, dtype: torch.dtype | None = None) -> None:
    """Check that an argument is a batch of images.

    Parameters
    ----------
    images : Tensor of shape (B, C, H, W)
    dtype : torch.dtype, optional
        The dtype that the images must have. None accepts any.

    Raises
    ------
    TypeError
        If `images` is not a tensor.
    ValueError
        If the shape does not have four dimensions, if one of them has size 0, or if the dtype is another one.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor, got {type(images).__name__}")
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"images must have shape (B, C, H, W), with no size 0, got {tuple(images.shape)}")
    if dtype is not None and images.dtype != dtype:
        raise ValueError(f"images must be {dtype}, got {images.dtype}")
