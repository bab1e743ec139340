"""Old public names, which work with a warning for one version."""

import warnings
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any, TypeVar

Result = TypeVar("Result")

# module of the package → old name → new name. docs/renamed.md is made from this table.
RENAMED: dict[str, dict[str, str]] = {
    "data.folders": {"in_memory": "load_split", "read_what_fits": "load_if_memory_allows", "stack": "stack_images"},
    "data.shapes": {"CHUNK": "CHUNK_SIZE", "REDRAWN": "REDRAWN_FINGERPRINTS"},
    "data.streaming": {
        "CROP": "CROP_STREAM",
        "DEPTHS": "BIT_DEPTHS",
        "FULL": "SHARED_MEMORY_FULL",
        "HOW_READ": "READING_RULES",
        "LONGEST": "MAX_ASPECT_RATIO",
        "PARTS": "SIZE_FINGERPRINT_PARTS",
        "READING": "READER_VERSION",
        "REMEDY": "NO_WORKERS_HINT",
        "SAMPLED": "DEPTH_SAMPLE_SIZE",
        "clear_worker_errors": "explain_worker_errors",
        "cores": "num_cores",
        "fit": "resize_and_crop",
        "size_prints": "file_size_fingerprint",
        "upright": "load_upright",
        "with_depth": "with_bit_depth",
    },
}


def renamed(module: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of a module, which finds its old names in `RENAMED`.

    Parameters
    ----------
    module : str
        The module's `__name__`.

    Returns
    -------
    callable
        It takes a name and returns the object of the new name, with a DeprecationWarning. It raises AttributeError
        if the name is not an old one.
    """

    def __getattr__(name: str) -> Any:
        new = RENAMED.get(module.removeprefix("pckd_nb.").removesuffix(".__init__"), {}).get(name)
        if new is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(f"{module}.{name} is now called {new}", DeprecationWarning, stacklevel=2)
        return getattr(import_module(module), new)

    return __getattr__


def renamed_argument(old: str, new: str) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Return a decorator that lets a function also take an argument by its old name, with a DeprecationWarning.

    Parameters
    ----------
    old, new : str
        Names of the argument.

    Returns
    -------
    callable
        The decorator.

    Examples
    --------
    >>> @renamed_argument("colour", "color")
    ... def paint(color):
    ...     return color
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     paint(colour="red")
    'red'
    """

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Result:
            if old in kwargs:
                message = f"argument {old} of {function.__name__} is now called {new}"
                warnings.warn(message, DeprecationWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate
