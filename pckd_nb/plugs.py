"""Methods, networks and data of your own by name: "module:Name" or "file.py:Name".

A name is looked up where you type it: on the command line or in a call. No run folder makes anything be imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from .paths import user_path


def is_plug(name: object) -> bool:
    """Whether a name has the form "module:Name", of a module that there is, or "file.py:Name"."""
    if not isinstance(name, str) or name.count(":") < 1:
        return False
    module, _, attribute = name.rpartition(":")
    if not attribute.isidentifier() or not module:
        return False
    if module.endswith(".py"):
        return True
    return all(part.isidentifier() for part in module.split(".")) and _there_is(module.partition(".")[0])


def load_plug(name: str) -> Any:
    """What is called `Name` in the module or file of "module:Name" or "file.py:Name".

    A file is run once per process, and its folder can be imported from while it runs.

    Raises
    ------
    ValueError
        If there is no such file, module or name, or it can't be imported; the message says what was found.
    """
    module_name, _, attribute = name.rpartition(":")
    module = _from_file(user_path(module_name, "file")) if module_name.endswith(".py") else _imported(module_name)
    found: Any = module
    if not hasattr(found, attribute):
        there = sorted(key for key, value in vars(module).items() if not key.startswith("_") and callable(value))
        raise ValueError(f"'{module_name}' has no {attribute!r}; it has {', '.join(there[:20]) or 'nothing to call'}")
    return getattr(found, attribute)


def _there_is(module: str) -> bool:
    """Whether a top-level module can be imported, from the current folder too; it is not."""
    here = Path(f"{module}.py").is_file() or Path(module, "__init__.py").is_file()
    return here or importlib.util.find_spec(module) is not None


def _from_file(path: Path) -> Any:
    path = path.resolve()
    if not path.is_file():
        raise ValueError(f"there is no file '{path}'")
    name = f"pckd_nb_plug_{path.stem}"
    module = sys.modules.get(name)
    if module is not None and getattr(module, "__file__", None) == str(path):
        return module
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"'{path}' is no Python file")
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


def _imported(name: str) -> Any:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ValueError(f"module '{name}' can't be imported: {type(error).__name__}: {error}") from error
    finally:
        if added:
            sys.path.remove(here)
