"""Settings are checked against the types that declare them, by pydantic. What does not fit is one line of error.

A declaration stands beside the name it is for, such as `lr: Positive = 0.05`, and says all that is valid.
"""

import dataclasses
from functools import cache
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

Count = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]  # 0 is one, 1 is not
Share = Annotated[float, Field(gt=0, lt=1)]

SHORTER = {  # than pydantic's words
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "a valid integer": "a whole number",
    "a valid number": "a number",
}
STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)


def check(kind: Any, /, **values: Any) -> None:
    """Raise the error of the first value that is not of this kind.

    Parameters
    ----------
    kind : type
        A type with constraints, such as `Count`.
    **values
        Values by their names, which the error mentions.

    Raises
    ------
    TypeError
        If a value has another type.
    ValueError
        If it has the right type and does not satisfy the constraints.

    Examples
    --------
    >>> check(Seed, seed=-1)
    ValueError: seed must be at least 0, got -1
    """
    for name, value in values.items():
        try:
            _adapter(kind).validate_python(plain(value))
        except ValidationError as error:
            raise first_error(error, name) from None


def check_fields(value: Any) -> None:
    """Raise the error of the first field of a dataclass that does not fit its annotation, as `check` does."""
    cls: Any = type(value)
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    try:
        _model_of(cls).model_validate(fields)
    except ValidationError as error:
        raise first_error(error) from None


def plain(value: Any) -> Any:
    """Return a number of numpy as the plain one it stands for, and anything else as it is."""
    scalar = type(value).__module__ == "numpy" and getattr(value, "shape", None) == () and hasattr(value, "item")
    return value.item() if scalar else value


def first_error(error: ValidationError, name: str = "") -> TypeError | ValueError:
    """Return the first of pydantic's errors in one line: what was given, and what is valid."""
    found = error.errors(include_url=False)[0]
    place = ".".join(map(str, [*([name] if name else []), *found["loc"]]))
    if found["type"] == "missing":
        return ValueError(f"{place} is missing")
    message = found["msg"].removeprefix("Value error, ").replace("Input should be", f"{place} must be")
    for phrase, shorter in SHORTER.items():
        message = message.replace(phrase, shorter)
    text = message if place in message or not place else f"{place}: {message}"
    if "must be" in text:
        text += f", got {_shown(found['input'])}"
    return TypeError(text) if found["type"].endswith("_type") else ValueError(text)


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, int | float | str | None) else type(value).__name__
    return " ".join(text.split()) if len(text) <= 60 else f"{text[:60]}…"


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=STRICT)


@cache
def _model_of(cls: Any) -> type[BaseModel]:
    hints = get_type_hints(cls, include_extras=True)
    fields: dict[str, Any] = {field.name: (hints[field.name], ...) for field in dataclasses.fields(cls)}
    model: type[BaseModel] = create_model(cls.__name__, __config__=STRICT, **fields)
    return model
