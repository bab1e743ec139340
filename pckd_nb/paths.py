"""Check the paths that a user gives, and find the tables of published results."""

import os
from pathlib import Path
from typing import Any


def user_path(value: Any, name: str = "path") -> Path:
    """Return a path that a user gave, with the home folder instead of "~".

    Parameters
    ----------
    value : str or Path
    name : str
        Name of the argument in an error message.

    Returns
    -------
    Path

    Raises
    ------
    TypeError
        If `value` is not a path.
    ValueError
        If it is empty, contains a null character, or begins with the home folder of an unknown user.

    Examples
    --------
    >>> from pckd_nb.paths import user_path
    >>> user_path("runs/first").parts
    ('runs', 'first')
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(text := os.fspath(value), str):
        raise TypeError(f"{name} must be a path, got {type(value).__name__}")
    if not text or "\0" in text:
        raise ValueError(f"{name} must be a path, got {text!r}")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"{name} '{text}' begins with an unknown home folder: write the full path") from None


def paper_folder() -> Path:
    """Return the folder with the tables of published results.

    Returns
    -------
    Path
        `pckd_nb/paper` in an installed package, and `data/paper` in the repository.
    """
    installed = Path(__file__).with_name("paper")
    return installed if installed.is_dir() else Path(__file__).parents[1] / "data" / "paper"
