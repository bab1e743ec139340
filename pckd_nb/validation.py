"""Checks of settings against their declared types, with pydantic.

A type such as `Positive` says which values are valid: `lr: Positive = 0.05`. Errors are one line.
"""

import dataclasses
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    import numpy as np


def plain(value: Any) -> Any:
    """Return a NumPy number as a Python number, and any other value unchanged.

    Parameters
    ----------
    value : object

    Returns
    -------
    object

    Examples
    --------
    >>> import numpy as np
    >>> from pckd_nb.validation import plain
    >>> plain(np.int64(3))
    3
    """
    scalar = type(value).__module__ == "numpy" and getattr(value, "shape", None) == () and hasattr(value, "item")
    return value.item() if scalar else value


def _only_numbers(value: Any) -> int | float:
    """Refuse values that pydantic would convert to a number, such as a Decimal or a tensor."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PydanticCustomError("number_type", "Input should be a valid number")
    return value


Real = Annotated[float, BeforeValidator(_only_numbers), Field(allow_inf_nan=False)]
Positive = Annotated[Real, Field(gt=0)]
NotNegative = Annotated[Real, Field(ge=0)]
Fraction = Annotated[Real, Field(ge=0, lt=1)]  # in [0, 1)
PositiveFraction = Annotated[Real, Field(gt=0, lt=1)]  # in (0, 1)
Count = Annotated[int, BeforeValidator(plain), Field(ge=1, le=10**9)]
Seed = Annotated[int, BeforeValidator(plain), Field(ge=0, lt=2**31)]
Views = Annotated[int, BeforeValidator(plain), Field(ge=1, le=4)]  # rotations of an image, by 0°, 90°, 180°, 270°

REPLACEMENTS = {  # words in pydantic's messages → our words
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "an instance of Sequence": "a list or tuple",
}
STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)


def checked(kind: Any, name: str, value: Any) -> Any:
    """Check a value against a type and return it.

    Parameters
    ----------
    kind : type
        A type with constraints, such as `Count`.
    name : str
        Name of the setting, for the error message.
    value : object
        A NumPy number counts as a Python number.

    Returns
    -------
    object
        The value. A NumPy number becomes a Python number.

    Raises
    ------
    TypeError
        If the value has the wrong type.
    ValueError
        If the value has the right type, but is outside the allowed range.

    Examples
    --------
    >>> from pckd_nb.validation import Seed, checked
    >>> checked(Seed, "seed", 3)
    3
    >>> checked(Seed, "seed", -1)
    Traceback (most recent call last):
    ValueError: seed must be at least 0, got -1
    """
    try:
        return _adapter(kind).validate_python(plain(value))
    except ValidationError as error:
        raise first_error(error, name) from None


def check(kind: Any, /, **values: Any) -> None:
    """Check several values against one type.

    Parameters
    ----------
    kind : type
        A type with constraints, such as `Count`.
    **values
        The values, by the names of the settings.

    Raises
    ------
    TypeError
        If a value has the wrong type.
    ValueError
        If a value is outside the allowed range.
    """
    for name, value in values.items():
        checked(kind, name, value)


def check_fields(value: Any) -> None:
    """Check every field of a dataclass against its annotation.

    NumPy numbers in the fields are replaced by Python numbers.

    Parameters
    ----------
    value : dataclass instance

    Raises
    ------
    TypeError
        If a field has the wrong type.
    ValueError
        If a field is outside the allowed range.
    """
    cls: Any = type(value)
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    try:
        valid = _model_of(cls).model_validate(fields)
    except ValidationError as error:
        raise first_error(error) from None
    for name in fields:
        object.__setattr__(value, name, getattr(valid, name))


def first_error(error: ValidationError, name: str = "") -> TypeError | ValueError:
    """Return the first error that pydantic found, as a TypeError or ValueError with a message of one line.

    Parameters
    ----------
    error : pydantic.ValidationError
    name : str
        Name of the setting. Empty if the error itself contains it.

    Returns
    -------
    TypeError or ValueError
        The message says what is accepted and what was given.
    """
    found = error.errors(include_url=False)[0]
    full_name = ".".join(map(str, [*([name] if name else []), *found["loc"]]))
    if found["type"] == "missing":
        return ValueError(f"{full_name} is missing")
    message = found["msg"].removeprefix("Value error, ").replace("Input should be", f"{full_name} must be")
    for phrase, ours in REPLACEMENTS.items():
        message = message.replace(phrase, ours)
    text = message if full_name in message or not full_name else f"{full_name}: {message}"
    if "must be" in text:
        text += f", got {_shown(found['input'])}"
    wrong_type = found["type"].endswith("_type") or found["type"] == "is_instance_of"
    return TypeError(text) if wrong_type else ValueError(text)


def _shown(value: Any) -> str:
    value = plain(value)  # otherwise NumPy numbers would be shown as np.float64(1.0)
    text = repr(value) if isinstance(value, int | float | str | None) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:60]}…"


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=STRICT)


@cache
def _model_of(cls: Any) -> type[BaseModel]:
    hints = get_type_hints(cls, include_extras=True)
    fields: dict[str, Any] = {field.name: (hints[field.name], ...) for field in dataclasses.fields(cls)}
    model: type[BaseModel] = create_model(cls.__name__, __config__=STRICT, **fields)
    return model


def check_matrix(name: str, values: "np.ndarray") -> None:
    """Raise ValueError unless `values` is a non-empty matrix of finite numbers.

    Parameters
    ----------
    name : str
        Name of the argument, for the error message.
    values : array of shape (rows, columns)

    Raises
    ------
    ValueError
        If the rows have unequal lengths, if there are no values, if the dtype is neither integer nor float, if the
        array does not have two dimensions, or if a value is not finite.
    """
    import numpy as np  # imported here, because commands that need no arrays start faster without it

    try:
        found = np.asarray(values)
    except ValueError:  # rows of unequal length
        raise ValueError(f"{name} must be a matrix: all rows must have the same length") from None
    if found.dtype.kind not in "fiu" or found.ndim != 2 or not found.size:
        raise ValueError(f"{name} must be a non-empty matrix of numbers, got {found.dtype} of shape {found.shape}")
    if not np.isfinite(found).all():
        raise ValueError(f"{name} must be finite numbers, but some are NaN or infinite")
