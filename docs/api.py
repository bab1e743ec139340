"""The API pages of the site: the public names by task, and all other names by layer (the floors in code_tour.md)."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Iterator
from functools import cache
from types import ModuleType
from typing import Any

import tour

import pckd_nb

# The public modules, by task.
PUBLIC = {
    "Data": ("data", "views"),
    "Networks": ("models", "checkpoints"),
    "Methods": ("methods", "losses", "preview"),
    "Training": ("training", "recipes"),
    "Analysis": ("analysis", "measures", "collapse", "evaluation", "transfer"),
    "Figures and widgets": ("figures", "pages", "widgets", "course"),
    "Experiments and runs": ("experiments", "runs", "leaderboard"),
}
# Classes of the objects that public functions return. `pckd_nb.__all__` does not list them.
RETURNED = {"evaluation": ("Predictions", "Scores"), "transfer": ("TransferScores",)}
PUBLIC_PAGE = """The package
===========

This page has the public functions and classes, by task. :doc:`Internals <internals/index>` has everything else, which
you need only to change the package.
"""
INTERNALS_PAGE = """Internals
=========

These modules and names are not on the public pages. Their order is that of the floors of the house in the
:doc:`code tour </code_tour>`, which shows how they work together.
"""


def import_module(name: str) -> ModuleType:
    """Return a module of the package, by its name without `pckd_nb.`."""
    return importlib.import_module(f"pckd_nb.{name}")


def modules_of(name: str) -> list[str]:
    """Return a module's name; for a package also the names of its modules, and of the modules of packages inside it.

    The modules of the command line are left out: commands.md describes the commands.
    """
    module = import_module(name)
    inside = pkgutil.iter_modules(module.__path__) if hasattr(module, "__path__") and name != "cli" else ()
    return [name, *(inner for found in inside for inner in modules_of(f"{name}.{found.name}"))]


def defined_in(module: ModuleType, inside: bool = False) -> list[str]:
    """Return the names of the functions and classes of a module that have a docstring, in the order of the source.

    Parameters
    ----------
    module : module
    inside : bool
        Whether to include the modules inside a package.
    """
    found = {}
    for name, value in vars(module).items():
        if name.startswith("_") or not (inspect.isfunction(value) or inspect.isclass(value)) or not value.__doc__:
            continue
        own = value.__module__ == module.__name__
        if own or (inside and value.__module__.startswith(f"{module.__name__}.")):
            found[name] = value
    return sorted(found, key=lambda name: (found[name].__module__, inspect.findsource(found[name])[1]))


def public_modules() -> list[str]:
    """Return the modules that have a public page."""
    return [name for modules in PUBLIC.values() for name in modules]


def public_names(name: str) -> list[str]:
    """Return the functions and classes that the public page of a module shows."""
    module = import_module(name)
    if hasattr(module, "__all__"):
        return [member for member in defined_in(module, inside=True) if member in module.__all__]
    names = defined_in(module)
    if name in pckd_nb.__all__:
        return names
    listed = {member for member in pckd_nb.__all__ if pckd_nb._MODULE_OF.get(member) == name}
    return [member for member in names if member in listed or member in RETURNED.get(name, ())]


def internal_names(name: str) -> list[str]:
    """Return the functions and classes of a module that no public page shows."""
    module = import_module(name)
    return [member for member in defined_in(module) if id(getattr(module, member)) not in public_objects()]


@cache
def public_objects() -> dict[int, str]:
    """Return the id of every object that a public page shows, and the name that it has there."""
    shown: dict[int, str] = {}
    for name in public_modules():
        for member in public_names(name):
            shown.setdefault(id(getattr(import_module(name), member)), f"pckd_nb.{name}.{member}")
    return shown


@cache
def documented() -> dict[int, str]:
    """Return the id of every function, class and module on the site, and its full name there."""
    shown = dict(public_objects())
    for name in {*public_modules(), *internal_modules()}:
        shown[id(import_module(name))] = f"pckd_nb.{name}"
    for name in internal_modules():
        for member in internal_names(name):
            shown[id(getattr(import_module(name), member))] = f"pckd_nb.{name}.{member}"
    return shown


@cache
def internal_modules() -> list[str]:
    """Return the modules that have a page under Internals, in the order of the floors."""
    everything = [name for _, modules in tour.floors().values() for module in modules for name in modules_of(module)]
    return [name for name in everything if name not in public_modules() or internal_names(name)]


def target(module: str | None, word: str) -> str | None:
    """Return the full name of the object that a word in a docstring of `module` means; None if it is not on the site.

    The word may be a name of the module or of `pckd_nb`, and may go on with attributes, as `Dataset.from_torch`.
    """
    first, *rest = word.removeprefix("pckd_nb.").removeprefix("pckd.").removesuffix("()").split(".")
    for place in filter(None, (module, "pckd_nb")):
        thing: Any = vars(importlib.import_module(place)).get(first) or _of_package(place, first)
        for start in range(len(rest) + 1):
            linked = not inspect.ismodule(thing) or "." in word  # `data` without a dot is an argument, not the module
            if thing is not None and linked and id(thing) in documented():
                return ".".join([documented()[id(thing)], *rest[start:]])
            thing = getattr(thing, rest[start], None) if start < len(rest) else None
    return None


def _of_package(place: str, name: str) -> Any:
    """Return a name of `pckd_nb`, which may not be imported yet; None for other modules."""
    return getattr(pckd_nb, name, None) if place == "pckd_nb" and name.isidentifier() else None


def summary(thing: object) -> str:
    """Return the first paragraph of a docstring on one line."""
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def pages() -> Iterator[tuple[str, str]]:
    """Yield the file name and the text of every API page: one per module, and the two lists of them."""
    public, internals = PUBLIC_PAGE, INTERNALS_PAGE
    for task, modules in PUBLIC.items():
        rows = [(f":doc:`{name}`", f"{summary(import_module(name))}\n\n       {links(name)}") for name in modules]
        public += f"\n{title(task, '-')}\n{table(rows)}\n{contents(modules)}"
        for name in modules:
            shown = f".. automodule:: pckd_nb.{name}\n   :members: {', '.join(public_names(name))}\n"
            yield f"{name}.rst", f"{title(name, '=')}\n{shown}"
    for floor, (floor_name, floor_modules) in tour.floors().items():
        members = [name for module in floor_modules for name in modules_of(module) if name in internal_modules()]
        rows = [(f":doc:`{name}`", summary(import_module(name))) for name in members]
        internals += f"\n{title(f'{floor} · {floor_name}', '-')}\n{table(rows)}\n{contents(members)}"
        for name in members:
            yield f"internals/{name}.rst", f"{title(name, '=')}\n{internal_page(name)}"
    yield "index.rst", f"{public}\n{contents(['internals/index'])}"
    yield "internals/index.rst", internals


def internal_page(name: str) -> str:
    """Return what the page of an internal module says below its title."""
    names = internal_names(name)
    if name not in public_modules():
        return f".. automodule:: pckd_nb.{name}\n   :members: {', '.join(names)}\n"
    text = f"The rest of the module. Its public names are on :doc:`their own page <../{name}>`.\n\n"
    text += f".. currentmodule:: pckd_nb.{name}\n\n"
    for member in names:
        kind = "class" if inspect.isclass(getattr(import_module(name), member)) else "function"
        text += f".. auto{kind}:: {member}\n\n"
    return text


def links(name: str) -> str:
    """Return links to the public names of a module."""
    return ", ".join(f":py:obj:`{member} <pckd_nb.{name}.{member}>`" for member in public_names(name))


def title(text: str, line: str) -> str:
    """Return a heading in reStructuredText, underlined with a character."""
    return f"{text}\n{len(text) * line}\n"


def table(rows: list[tuple[str, str]]) -> str:
    """Return a table without a head, in reStructuredText."""
    lines = "".join(f"   * - {first}\n     - {second}\n" for first, second in rows)
    return f".. list-table::\n   :widths: 25 75\n\n{lines}"


def contents(pages: Iterable[str]) -> str:
    """Return the hidden list of pages that Sphinx needs."""
    return ".. toctree::\n   :hidden:\n\n" + "".join(f"   {page}\n" for page in pages)
