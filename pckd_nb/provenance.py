"""How run.json records a setting that is not a number or text, so that two different ones can be told apart.

`describe` turns a setting into JSON. Functions, classes and objects get a name and a fingerprint, which covers
all that decides what they do: code, attributes, weights, and the variables that the code uses. So two lambdas differ,
and so does one function before and after a change. An object that cannot be inspected, such as an open file, is marked
"(not recorded)".
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
OF_A_CLASS = {
    "__dict__",
    "__weakref__",
    "__module__",
    "__doc__",
    "__firstlineno__",
    "__static_attributes__",
    "_abc_impl",
}
OF_A_MODULE = set(vars(nn.Module())) | {
    "_chosen", "_defaults", "_initial_modules", "_initial_values", "_setting_names",
}  # fmt: skip


def describe(value: Any) -> Any:
    """A setting as JSON: numbers, text, lists and dicts as they are, all else as one line of text.

    Parameters
    ----------
    value : object
        Any setting: a number, a function, a `functools.partial`, a tensor, an object with attributes.

    Returns
    -------
    None, bool, int, float, str, list or dict
        Two values that act differently have different descriptions. Where that can't be told the text ends in
        "(not recorded)".
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
    if isinstance(value, type | FunctionType | BuiltinFunctionType) and _installed(value):
        return _name(value)
    walk = Walk()
    walk.add(value)
    mark = "" if walk.complete else f" {NOT_RECORDED}"
    return f"{_title(value)} [{walk.digest()}]{mark}"


def code_fingerprint(made: Any) -> str | None:
    """Eight hexadecimal digits that change with the code of a function or class, and of what it uses that is not part
    of an installed package; None for what is, since the version of the package says it all."""
    if _installed(made):
        return None
    walk = Walk()
    walk.add(made)
    return walk.digest()


def structure_fingerprint(module: nn.Module) -> str:
    """Eight hexadecimal digits that change with the code and the attributes of a module and its parts, weights left
    out."""
    walk = Walk(weights=False)
    walk.add(module)
    return walk.digest()


def name_of(made: Any) -> str:
    """ "module:Name" of a class or function, where Python finds it."""
    return f"{made.__module__}:{made.__qualname__}"


def public(module: nn.Module) -> dict[str, Any]:
    """A module's own public attributes, described: neither what nn.Module keeps for itself nor parts and weights."""
    return {name: describe(value) for name, value in attributes_of(module).items() if not name.startswith("_")}


def attributes_of(value: Any) -> dict[str, Any]:
    """What an object keeps, in `__dict__` and `__slots__`; of a module, what nn.Module does not keep for itself."""
    kept = dict(getattr(value, "__dict__", {}))
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                kept.setdefault(name, getattr(value, name))
    hidden = OF_A_MODULE if isinstance(value, nn.Module) else set()
    return {name: item for name, item in kept.items() if name not in hidden}


class Walk:
    """Feeds all that decides what a value does into one hash. `complete` says whether all of it could be seen.

    weights: whether parameters and buffers of modules count.
    """

    def __init__(self, weights: bool = True):
        self.weights, self.complete, self.seen, self.hash = weights, True, dict[int, Any](), hashlib.sha256()

    def digest(self) -> str:
        return self.hash.hexdigest()[:8]

    def text(self, *parts: object) -> None:
        for part in parts:
            self.hash.update(f"{part}\0".encode())

    def all(self, values: Iterable[Any]) -> None:
        for value in values:
            self.add(value)

    def add(self, value: Any) -> None:
        """Take in a value and all that it leads to."""
        if isinstance(value, SCALARS):
            self.text(type(value).__name__, repr(value))
            return
        if isinstance(value, np.generic):
            self.text(value.dtype, value.item())
            return
        if id(value) in self.seen:
            self.text("seen", list(self.seen).index(id(value)))
            return
        self.seen[id(value)] = value  # kept alive, so that no other value gets its id
        self.text(type(value).__qualname__)
        if isinstance(value, list | tuple):
            self.all(value)
        elif isinstance(value, set | frozenset):
            self.text(*sorted(map(repr, value)))
        elif isinstance(value, Mapping):
            for key, item in value.items():
                self.text(repr(key))
                self.add(item)
        elif isinstance(value, Tensor):
            flat = value.detach().cpu().contiguous().flatten()
            self.text(value.dtype, tuple(value.shape))
            self.hash.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
        elif isinstance(value, np.ndarray):
            self.text(value.dtype, value.shape)
            self.hash.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, functools.partial):
            self.all([value.func, value.args, value.keywords])
        elif isinstance(value, MethodType):
            self.all([value.__self__, value.__func__])
        elif isinstance(value, property):
            self.all([value.fget, value.fset])
        elif isinstance(value, functools.cached_property):
            self.add(value.func)
        elif isinstance(value, staticmethod | classmethod):
            self.add(value.__func__)
        elif isinstance(value, ModuleType):
            self.module(value)
        elif isinstance(value, type):
            self.type(value)
        elif isinstance(value, CodeType):
            self.code(value)
        elif hasattr(value, "__wrapped__") and callable(value):
            self.add(inspect.unwrap(value))
        elif isinstance(value, FunctionType | BuiltinFunctionType):
            self.function(value)
        elif isinstance(value, nn.Module):
            self.network(value)
        else:
            self.object(value)

    def module(self, value: ModuleType) -> None:
        file = getattr(value, "__file__", None)
        self.text(value.__name__)
        if file and not _in_a_package(value.__name__, file):
            self.hash.update(Path(file).read_bytes() if Path(file).is_file() else b"")

    def type(self, value: type) -> None:
        self.text(value.__module__ if _installed(value) else "", value.__qualname__)
        for base in [] if _installed(value) else [base for base in value.__mro__ if not _installed(base)]:
            for name, item in sorted(vars(base).items()):
                if name not in OF_A_CLASS and not name.startswith("__annotat"):
                    self.text(name)
                    self.add(item)

    def function(self, value: Any) -> None:
        if _installed(value):
            self.text(value.__module__, value.__qualname__)
            return
        self.all([value.__code__, value.__defaults__, value.__kwdefaults__])
        self.all(cell.cell_contents for cell in value.__closure__ or () if _filled(cell))
        for name in _names(value.__code__):
            if name in value.__globals__:
                self.text(name)
                self.add(value.__globals__[name])

    def code(self, value: CodeType) -> None:
        self.text(value.co_code.hex(), value.co_names, value.co_varnames)
        self.all(value.co_consts)

    def network(self, value: nn.Module) -> None:
        for name, part in value.named_modules():
            self.text(name)
            self.add(type(part))
            self.add({key: item for key, item in attributes_of(part).items()})
        if self.weights:
            self.add(dict(value.state_dict()))

    def object(self, value: Any) -> None:
        self.add(type(value))
        kept = attributes_of(value)
        if not kept and _installed(type(value)) and type(value).__flags__ & HEAP_TYPE == 0:
            self.complete = False  # a file, an iterator, a lock: what is in it can't be seen
        self.add(kept)


HEAP_TYPE = 1 << 9  # of a class that was made by a class statement, not in C


def _text(value: Any) -> str:
    return str(describe(value))


def _title(value: Any) -> str:
    """The name of a function or class, or an object with its public attributes as far as these are short."""
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


def _name(made: Any) -> str:
    module, name = getattr(made, "__module__", None) or "", getattr(made, "__qualname__", repr(made))
    if module.split(".")[0] == __package__:
        return str(made.__name__)
    return name if module in ("", "builtins") else f"{module}.{name}"


def _installed(made: Any) -> bool:
    """Whether it belongs to an installed package, to this one, or to Python itself."""
    if isinstance(made, BuiltinFunctionType) or getattr(made, "__module__", None) == "builtins":
        return True
    module = inspect.getmodule(made)
    if module is None or module.__name__ == "__main__":
        return False
    return _in_a_package(module.__name__, getattr(module, "__file__", None))


def _in_a_package(name: str, file: str | None) -> bool:
    if name.split(".")[0] == __package__ or file is None:
        return True
    if {"site-packages", "dist-packages"} & set(Path(file).parts):
        return True
    return any(Path(file).is_relative_to(sysconfig.get_path(place)) for place in ("stdlib", "platstdlib"))


def _names(code: CodeType) -> list[str]:
    """The names of other variables that a piece of code and the functions in it use."""
    inner = [name for item in code.co_consts if isinstance(item, CodeType) for name in _names(item)]
    return sorted({*code.co_names, *inner})


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
