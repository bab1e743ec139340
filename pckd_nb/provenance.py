"""Describe settings for run.json, so that different settings have different descriptions.

`describe` converts a setting to JSON. A function, class or object is described by its name and a fingerprint. The
fingerprint is a hash of everything that determines the behaviour: code, attributes, weights, and the variables that the
code uses. It differs for two different lambdas, and for a function before and after a change. An object that cannot be
inspected, such as an open file, is marked "(not recorded)".
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

NOT_RECORDED = "(not recorded)"
SCALARS = (bool, int, float, complex, str, bytes, type(None), range, slice, type(...), Path, torch.dtype, torch.device)
IGNORED_CLASS_ATTRIBUTES = {
    "__dict__",
    "__weakref__",
    "__module__",
    "__doc__",
    "__firstlineno__",
    "__static_attributes__",
    "_abc_impl",
}
# Attributes in which `methods.base` records how a method was created. The settings themselves are other attributes.
METHOD_RECORDS = {"_chosen", "_defaults", "_initial_modules", "_initial_values", "_setting_names"}
IGNORED_MODULE_ATTRIBUTES = set(vars(nn.Module())) | METHOD_RECORDS


def describe(value: Any) -> Any:
    """Convert a setting to JSON.

    Numbers, text, lists and dicts are kept. Anything else becomes one line of text.

    Parameters
    ----------
    value : object
        Any setting: a number, a function, a `functools.partial`, a tensor, or an object with attributes.

    Returns
    -------
    None, bool, int, float, str, list or dict
        Values with different behaviour have different descriptions. If this cannot be guaranteed, the text ends with
        "(not recorded)".

    Examples
    --------
    >>> from functools import partial
    >>> from pckd_nb.provenance import describe
    >>> describe(partial(max, 1, default=2))
    'max(1, default=2)'
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, Path | torch.dtype | torch.device):
        return str(value)
    if isinstance(value, functools.partial):
        given = [*map(_text, value.args), *(f"{name}={_text(item)}" for name, item in value.keywords.items())]
        return f"{_text(value.func)}({', '.join(given)})"
    if isinstance(value, type | FunctionType | BuiltinFunctionType) and _is_installed(value):
        return _name(value)
    fingerprint = Fingerprint()
    fingerprint.add(value)
    mark = "" if fingerprint.complete else f" {NOT_RECORDED}"
    return f"{_title(value)} [{fingerprint.digest()}]{mark}"


def code_fingerprint(code: Any) -> str | None:
    """Return a fingerprint of the code of a function or class, and of all code that it uses.

    Parameters
    ----------
    code : function or class

    Returns
    -------
    str or None
        Eight hexadecimal digits. None for a part of an installed package, which is identified by its version.
    """
    if _is_installed(code):
        return None
    fingerprint = Fingerprint()
    fingerprint.add(code)
    return fingerprint.digest()


def structure_fingerprint(module: nn.Module) -> str:
    """Return a fingerprint of the code and attributes of a module and its parts, without its weights.

    Parameters
    ----------
    module : nn.Module

    Returns
    -------
    str
        Eight hexadecimal digits.
    """
    fingerprint = Fingerprint(weights=False)
    fingerprint.add(module)
    return fingerprint.digest()


def name_of(value: Any) -> str:
    """Return "module:Name" for a class or function."""
    return f"{value.__module__}:{value.__qualname__}"


def public_attributes(module: nn.Module) -> dict[str, Any]:
    """Describe the public attributes of a module, without weights, submodules and those of nn.Module itself."""
    return {name: describe(value) for name, value in attributes_of(module).items() if not name.startswith("_")}


def attributes_of(value: Any) -> dict[str, Any]:
    """Return the attributes in `__dict__` and `__slots__` of an object, without those of nn.Module itself."""
    attributes = dict(getattr(value, "__dict__", {}))
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                attributes.setdefault(name, getattr(value, name))
    hidden = IGNORED_MODULE_ATTRIBUTES if isinstance(value, nn.Module) else set()
    return {name: item for name, item in attributes.items() if name not in hidden}


class Fingerprint:
    """Computes a hash of everything that determines the behaviour of a value.

    Parameters
    ----------
    weights : bool
        Whether to include parameters and buffers of modules.

    Attributes
    ----------
    complete : bool
        False if a value was found that cannot be inspected.
    """

    def __init__(self, weights: bool = True):
        self.weights, self.complete, self.seen, self.hash = weights, True, dict[int, Any](), hashlib.sha256()

    def digest(self) -> str:
        """Return eight hexadecimal digits of the hash."""
        return self.hash.hexdigest()[:8]

    def add_text(self, *parts: object) -> None:
        """Add texts to the hash."""
        for part in parts:
            self.hash.update(f"{part}\0".encode())

    def add_all(self, values: Iterable[Any]) -> None:
        """Add several values to the hash."""
        for value in values:
            self.add(value)

    def add(self, value: Any) -> None:
        """Add a value, and everything that it refers to, to the hash."""
        if isinstance(value, SCALARS):
            self.add_text(type(value).__name__, repr(value))
            return
        if isinstance(value, np.generic):
            self.add_text(value.dtype, value.item())
            return
        if id(value) in self.seen:
            self.add_text("seen", list(self.seen).index(id(value)))
            return
        self.seen[id(value)] = value  # a reference keeps the value alive, so that no other value gets its id
        self.add_text(type(value).__qualname__)
        if isinstance(value, list | tuple):
            self.add_all(value)
        elif isinstance(value, set | frozenset):
            self.add_text(*sorted(map(repr, value)))
        elif isinstance(value, Mapping):
            for key, item in value.items():
                self.add_text(repr(key))
                self.add(item)
        elif isinstance(value, Tensor):
            flat = value.detach().cpu().contiguous().flatten()
            self.add_text(value.dtype, tuple(value.shape))
            self.hash.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
        elif isinstance(value, np.ndarray):
            self.add_text(value.dtype, value.shape)
            self.hash.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, functools.partial):
            self.add_all([value.func, value.args, value.keywords])
        elif isinstance(value, MethodType):
            self.add_all([value.__self__, value.__func__])
        elif isinstance(value, property):
            self.add_all([value.fget, value.fset])
        elif isinstance(value, functools.cached_property):
            self.add(value.func)
        elif isinstance(value, staticmethod | classmethod):
            self.add(value.__func__)
        elif isinstance(value, ModuleType):
            self.add_module(value)
        elif isinstance(value, type):
            self.add_type(value)
        elif isinstance(value, CodeType):
            self.add_code(value)
        elif hasattr(value, "__wrapped__") and callable(value):
            self.add(inspect.unwrap(value))
        elif isinstance(value, FunctionType | BuiltinFunctionType):
            self.add_function(value)
        elif isinstance(value, nn.Module):
            self.add_network(value)
        else:
            self.add_object(value)

    def add_module(self, value: ModuleType) -> None:
        """Add the name of a Python module, and its file if it is not part of an installed package."""
        file = getattr(value, "__file__", None)
        self.add_text(value.__name__)
        if file and not _in_installed_package(value.__name__, file):
            self.hash.update(Path(file).read_bytes() if Path(file).is_file() else b"")

    def add_type(self, value: type) -> None:
        """Add the name of a class, and its attributes and methods if it is not part of an installed package."""
        self.add_text(value.__module__ if _is_installed(value) else "", value.__qualname__)
        for base in [] if _is_installed(value) else [base for base in value.__mro__ if not _is_installed(base)]:
            for name, item in sorted(vars(base).items()):
                if name not in IGNORED_CLASS_ATTRIBUTES and not name.startswith("__annotat"):
                    self.add_text(name)
                    self.add(item)

    def add_function(self, value: Any) -> None:
        """Add the code of a function, its defaults, and the variables that it uses."""
        if _is_installed(value):
            self.add_text(value.__module__, value.__qualname__)
            return
        self.add_all([value.__code__, value.__defaults__, value.__kwdefaults__])
        self.add_all(cell.cell_contents for cell in value.__closure__ or () if _has_value(cell))
        for name in _names(value.__code__):
            if name in value.__globals__:
                self.add_text(name)
                self.add(value.__globals__[name])

    def add_code(self, value: CodeType) -> None:
        """Add byte code, names and constants."""
        self.add_text(value.co_code.hex(), value.co_names, value.co_varnames)
        self.add_all(value.co_consts)

    def add_network(self, value: nn.Module) -> None:
        """Add the classes and attributes of a network's modules, and its weights."""
        for name, part in value.named_modules():
            self.add_text(name)
            self.add(type(part))
            self.add(attributes_of(part))
        if self.weights:
            self.add(dict(value.state_dict()))

    def add_object(self, value: Any) -> None:
        """Add the class and the attributes of an object."""
        self.add(type(value))
        attributes = attributes_of(value)
        if not attributes and _is_installed(type(value)) and type(value).__flags__ & HEAP_TYPE == 0:
            self.complete = False  # such as a file, an iterator or a lock
        self.add(attributes)


HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE, the flag of classes that are defined in Python, not in C


def _text(value: Any) -> str:
    return str(describe(value))


def _title(value: Any) -> str:
    """Return the name of a function or class, or the class of an object with its short public attributes."""
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        return _name(value)
    if isinstance(value, MethodType):
        return f"{_name(type(value.__self__))}.{value.__name__}"
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} {tuple(value.shape)}"
    short = {
        name: item
        for name, item in attributes_of(value).items()
        if not name.startswith("_") and isinstance(item, bool | int | float | str | None)
    }
    return f"{_name(type(value))}({', '.join(f'{name}={item}' for name, item in short.items())})"


def _name(value: Any) -> str:
    module, name = getattr(value, "__module__", None) or "", getattr(value, "__qualname__", repr(value))
    if module.split(".")[0] == __package__:
        return str(value.__name__)
    return name if module in ("", "builtins") else f"{module}.{name}"


def _is_installed(value: Any) -> bool:
    """Return whether a class or function is part of an installed package, of this package, or of Python itself."""
    if isinstance(value, BuiltinFunctionType) or getattr(value, "__module__", None) == "builtins":
        return True
    module = inspect.getmodule(value)
    if module is None or module.__name__ == "__main__":
        return False
    return _in_installed_package(module.__name__, getattr(module, "__file__", None))


def _in_installed_package(name: str, file: str | None) -> bool:
    if name.split(".")[0] == __package__ or file is None:
        return True
    if {"site-packages", "dist-packages"} & set(Path(file).parts):
        return True
    return any(Path(file).is_relative_to(sysconfig.get_path(place)) for place in ("stdlib", "platstdlib"))


def _names(code: CodeType) -> list[str]:
    """Return the names of variables that the code, and the functions inside it, use."""
    inner = [name for item in code.co_consts if isinstance(item, CodeType) for name in _names(item)]
    return sorted({*code.co_names, *inner})


def _has_value(cell: Any) -> bool:
    """Return whether a closure cell has a value. The cell of a variable that is assigned later has none."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
