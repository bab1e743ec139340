"""The one way for a path of a user into the package."""

import os
from pathlib import Path
from typing import Any


def user_path(value: Any, name: str = "path") -> Path:
    """Return the path that a user gave, with the home folder in place of "~".

    Parameters
    ----------
    value : str or path
    name : str
        Name of the argument, for the error.

    Returns
    -------
    Path

    Raises
    ------
    TypeError
        If `value` is not a path.
    ValueError
        If it is empty, contains a null character, or begins with the home folder of a user who does not exist.

    Examples
    --------
    >>> user_path("~/runs/first")
    PosixPath('/home/me/runs/first')
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(text := os.fspath(value), str):
        raise TypeError(f"{name} must be a path, got {type(value).__name__}")
    if not text or "\0" in text:
        raise ValueError(f"{name} must be a path, got {text!r}")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"{name} '{text}' begins with a home folder that is not known: write the whole path") from None
