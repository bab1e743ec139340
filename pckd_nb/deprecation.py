"""Old public names, which work with a warning for one version."""

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

# module of the package → old name → new name. docs/renamed.md is made from this table.
RENAMED: dict[str, dict[str, str]] = {
    "models": {"preprocessed": "restore_preprocessing"},
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
