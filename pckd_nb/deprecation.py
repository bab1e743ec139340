"""Old public names, which work with a warning for one version."""

import warnings
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])

# module of the package → old name → new name. docs/renamed.md is made from this table.
RENAMED: dict[str, dict[str, str]] = {
    "analysis": {
        "KINDS": "SAMPLE_KINDS",
    },
    "data.folders": {
        "in_memory": "load_split",
        "read_what_fits": "load_if_memory_allows",
        "stack": "stack_images",
    },
    "data.streaming": {
        "clear_worker_errors": "explain_worker_errors",
        "cores": "num_cores",
        "fit": "resize_and_crop",
        "size_prints": "file_size_fingerprint",
        "upright": "load_upright",
        "with_depth": "with_bit_depth",
    },
    "experiments": {
        "dealt": "split_into_shards",
        "duration": "format_duration",
        "my_points": "shard_points",
        "projected_seconds": "estimate_seconds",
    },
    "figures.arms": {
        "Seeds": "RunsBySeed",
        "all_of": "unique_runs",
        "arms_of": "group_by_arm",
        "beside": "comparable_runs",
        "budgets": "find_budgets",
        "by_seed": "runs_by_seed",
        "difference": "accuracy_difference",
        "same_seeds": "common_seed_filter",
        "studies": "group_by_study",
        "study_of": "study_key",
        "swept": "find_sweep",
    },
    "losses": {
        "FLOATS": "FLOAT_DTYPES",
        "TEMPERATURES": "TEMPERATURE_RANGE",
    },
    "methods": {
        "resolve": "resolve_settings",
    },
    "models": {
        "flops_of": "count_flops_by_name",
        "preprocessed": "restore_preprocessing",
    },
    "runs": {
        "having": "require_parts",
        "values_of": "setting_values",
    },
    "training": {
        "same_folder": "is_same_folder",
    },
    "views": {
        "callers_random_numbers": "preserve_random_state",
        "noise_seed": "step_seed",
        "soften": "soft_targets",
        "steps": "steps_per_epoch",
        "transform": "apply_transform",
    },
}


def renamed(module: str) -> Callable[[str], Any]:
    """Return a function to use as the `__getattr__` of a module. It looks up old names in `RENAMED`.

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

    def find(name: str) -> Any:
        new = RENAMED.get(module.removeprefix("pckd_nb.").removesuffix(".__init__"), {}).get(name)
        if new is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(f"{module}.{name} is now called {new}", DeprecationWarning, stacklevel=2)
        return getattr(import_module(module), new)

    return find


def renamed_arguments(**new_names: str) -> Callable[[Function], Function]:
    """Return a decorator that accepts the old names of keyword arguments, with a DeprecationWarning.

    Parameters
    ----------
    **new_names : str
        One entry per argument: the key is the old name, the value is the new name.

    Returns
    -------
    callable
        The decorator.

    Examples
    --------
    >>> from pckd_nb.deprecation import renamed_arguments
    >>> @renamed_arguments(size="count")
    ... def double(count):
    ...     return 2 * count
    >>> double(size=3)
    6
    """

    def decorate(function: Function) -> Function:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for old, new in new_names.items():
                if old in kwargs and new not in kwargs:
                    message = f"argument {old} of {function.__name__} is now called {new}"
                    warnings.warn(message, DeprecationWarning, stacklevel=2)
                    kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return cast(Function, call)

    return decorate


def renamed_attribute(old: str, new: str) -> property:
    """Return a property that gives access to an attribute by its old name, with a DeprecationWarning.

    Parameters
    ----------
    old, new : str
        Names of the attribute.

    Returns
    -------
    property

    Examples
    --------
    >>> from pckd_nb.deprecation import renamed_attribute
    >>> class Circle:
    ...     radius = 3
    ...     r = renamed_attribute("r", "radius")
    >>> Circle().r
    3
    """

    def warn(instance: object) -> None:
        warnings.warn(f"{type(instance).__name__}.{old} is now called {new}", DeprecationWarning, stacklevel=3)

    def read(instance: object) -> Any:
        warn(instance)
        return getattr(instance, new)

    def write(instance: object, value: Any) -> None:
        warn(instance)
        setattr(instance, new, value)

    return property(read, write, doc=f"Old name of `{new}`.")
