"""Plugins: methods, networks and data of your own, by a name such as "module:Name" or "file.py:Name".

A plugin is imported only if you write its name yourself, on the command line or in a call. Loading a run never imports
anything.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from .paths import user_path


def is_plugin(name: object) -> bool:
    """Return whether a name is that of a plugin.

    Parameters
    ----------
    name : object

    Returns
    -------
    bool
        True for "module:Name", if the module exists, and for "file.py:Name".
    """
    if not isinstance(name, str) or ":" not in name:
        return False
    module, _, attribute = name.rpartition(":")
    if not attribute.isidentifier() or not module:
        return False
    if module.endswith(".py"):
        return True
    return all(part.isidentifier() for part in module.split(".")) and _module_exists(module.partition(".")[0])


def load_plugin(name: str) -> Any:
    """Import a plugin.

    A file runs once per process. It can import modules from its own folder.

    Parameters
    ----------
    name : str
        "module:Name" or "file.py:Name".

    Returns
    -------
    object
        The object `Name`.

    Raises
    ------
    ValueError
        If the file, the module or the name does not exist, or if the import fails.
    """
    module_name, _, attribute = name.rpartition(":")
    if module_name.endswith(".py"):
        module = _import_file(user_path(module_name, "file"))
    else:
        module = _import_module(module_name)
    if not hasattr(module, attribute):
        names = sorted(key for key, value in vars(module).items() if not key.startswith("_") and callable(value))
        known = ", ".join(names[:20]) or "no functions or classes"
        raise ValueError(f"'{module_name}' has no {attribute!r}; it has {known}")
    return getattr(module, attribute)


def _module_exists(module: str) -> bool:
    """Return whether a top-level module exists, also in the current folder. It is not imported."""
    in_current_folder = Path(f"{module}.py").is_file() or Path(module, "__init__.py").is_file()
    return in_current_folder or importlib.util.find_spec(module) is not None


def _import_file(path: Path) -> Any:
    path = path.resolve()
    if not path.is_file():
        raise ValueError(f"there is no file '{path}'")
    name = f"pckd_nb_plug_{path.stem}"
    module = sys.modules.get(name)
    if module is not None and getattr(module, "__file__", None) == str(path):
        return module
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"'{path}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(name, None)
        raise ValueError(f"'{path}' can't be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def _import_module(name: str) -> Any:
    folder = str(Path.cwd())
    added = folder not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ValueError(f"module '{name}' can't be imported: {type(error).__name__}: {error}") from error
    finally:
        if added:
            sys.path.remove(folder)
