"""Settings are checked against the types that declare them, by pydantic. What does not fit is one line of error.

A declaration stands beside the name it is for, such as `lr: Positive = 0.05`, and says all that is valid.
"""

import dataclasses
from functools import cache
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic_core import PydanticCustomError


def plain(value: Any) -> Any:
    """Return a number of numpy as the plain one it stands for, and anything else as it is."""
    scalar = type(value).__module__ == "numpy" and getattr(value, "shape", None) == () and hasattr(value, "item")
    return value.item() if scalar else value


def _number(value: Any) -> int | float:
    """Refuse what only can be converted to a number, such as a Decimal or a tensor: it would be kept as it is."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PydanticCustomError("number_type", "Input should be a valid number")
    return value


Real = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Positive = Annotated[Real, Field(gt=0)]
NotNegative = Annotated[Real, Field(ge=0)]
Fraction = Annotated[Real, Field(ge=0, lt=1)]  # in [0, 1)
Share = Annotated[Real, Field(gt=0, lt=1)]  # in (0, 1)
Count = Annotated[int, BeforeValidator(plain), Field(ge=1, le=10**9)]
Seed = Annotated[int, BeforeValidator(plain), Field(ge=0, lt=2**31)]
Views = Annotated[int, BeforeValidator(plain), Field(ge=1, le=4)]  # quarter turns of an image

PLAIN_WORDS = {  # of pydantic → ours
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "an instance of Sequence": "a list or tuple",
}
STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)


def checked(kind: Any, name: str, value: Any) -> Any:
    """Return a value as the plain Python object it stands for.

    Parameters
    ----------
    kind : type
        A type with constraints, such as `Count`.
    name : str
        What the error calls the value.
    value
        A number of numpy is as good as a plain one.

    Raises
    ------
    TypeError
        If the value has another type.
    ValueError
        If it has the right type and does not satisfy the constraints.

    Examples
    --------
    >>> checked(Seed, "seed", -1)
    ValueError: seed must be at least 0, got -1
    """
    try:
        return _adapter(kind).validate_python(plain(value))
    except ValidationError as error:
        raise first_error(error, name) from None


def check(kind: Any, /, **values: Any) -> None:
    """Raise the error of the first value, by its name, that is not of this kind. See `checked`."""
    for name, value in values.items():
        checked(kind, name, value)


def check_fields(value: Any) -> None:
    """Check every field of a dataclass against its annotation, and keep numbers as plain ones. Raises as `checked`."""
    cls: Any = type(value)
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    try:
        valid = _model_of(cls).model_validate(fields)
    except ValidationError as error:
        raise first_error(error) from None
    for name in fields:
        object.__setattr__(value, name, getattr(valid, name))


def first_error(error: ValidationError, name: str = "") -> TypeError | ValueError:
    """Return the first of pydantic's errors in one line: what was given, and what is valid."""
    found = error.errors(include_url=False)[0]
    place = ".".join(map(str, [*([name] if name else []), *found["loc"]]))
    if found["type"] == "missing":
        return ValueError(f"{place} is missing")
    message = found["msg"].removeprefix("Value error, ").replace("Input should be", f"{place} must be")
    for phrase, shorter in PLAIN_WORDS.items():
        message = message.replace(phrase, shorter)
    text = message if place in message or not place else f"{place}: {message}"
    if "must be" in text:
        text += f", got {_shown(found['input'])}"
    wrong_type = found["type"].endswith("_type") or found["type"] == "is_instance_of"
    return TypeError(text) if wrong_type else ValueError(text)


def _shown(value: Any) -> str:
    value = plain(value)  # else numpy's numbers are shown as np.float64(1.0)
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
