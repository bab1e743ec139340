"""The package's docstrings, which are plain text, as reStructuredText; and what of a module is public."""

import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

from pydantic import BaseModel
from sphinx.ext.napoleon import Config, NumpyDocstring

NUMPY = re.compile(r"^(Parameters|Attributes|Returns|Raises)\n-+$", re.M)

# What the site documents, by the floors of the house (CONTRIBUTING.md): title → modules.
API: dict[str, Sequence[str]] = {
    "The paper's equations": ("losses", "preview", "tensor_checks"),
    "Images": ("views", "data", "data.streaming", "data.folders", "data.shapes", "downloads"),
    "Methods and networks": ("methods", "models", "models.training_data", "recipes", "checkpoints"),
    "Training": (
        "training",
        "training.task",
        "training.prepare",
        "training.folder",
        "training.loggers",
        "training.optimization",
        "training.teacher",
        "training.teacher_cache",
        "training.checks",
        "progress",
        "ranks",
        "launcher",
        "hardware",
        "compiling",
        "faults",
        "recording",
        "provenance",
    ),
    "Runs": (
        "runs",
        "config",
        "validation",
        "arguments",
        "paths",
        "resuming",
        "files",
        "evaluation",
        "analysis",
        "transfer",
    ),
    "Figures": ("figures", "figures.arms", "figures.collection", "widgets", "html"),
    "Studies": ("experiments", "demo", "doctor"),
    "The course": ("course", "notebooks"),
    "The command line": ("catalogue", "plugs", "short_help", "deprecation", "messages"),
}


def public(module: ModuleType) -> list[str]:
    """Names of the functions and classes with a docstring that a module or package offers, by file and line."""
    found = {}
    for name, value in vars(module).items():
        if name.startswith("_") or not (inspect.isfunction(value) or inspect.isclass(value)) or not value.__doc__:
            continue
        if value.__module__ == module.__name__ or value.__module__.startswith(f"{module.__name__}."):
            found[name] = value
    if hasattr(module, "__all__"):
        found = {name: value for name, value in found.items() if name in module.__all__}
    return sorted(found, key=lambda name: (found[name].__module__, inspect.findsource(found[name])[1]))


@cache
def documented() -> dict[int, str]:
    """id of every public function and class → the full name under which the site has it."""
    places: dict[int, str] = {}
    for names in API.values():
        for name in names:
            module = importlib.import_module(f"pckd_nb.{name}")
            for member in public(module):
                places.setdefault(id(getattr(module, member)), f"{module.__name__}.{member}")
    return places


def process(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Turns a docstring, in place, into reStructuredText (Sphinx's event autodoc-process-docstring)."""
    module = thing if what == "module" else inspect.getmodule(thing)
    text = "\n".join(lines)
    if NUMPY.search(text):
        lines[:] = numpy_style(text, lambda word: _target(module, word)).splitlines()
        return
    try:
        arguments = list(inspect.signature(thing).parameters)
    except (TypeError, ValueError):
        arguments = []
    lines[:] = rst(text, arguments, lambda word: _target(module, word)).splitlines()


def readable(
    app: Any, what: str, name: str, thing: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Return a signature as it is written in Python (event autodoc-process-signature).

    A dataclass shows a default that is made anew for every instance as <factory>. A declared type has its name, see
    `declared` in conf.py. Pydantic's models are described by their fields alone.
    """
    if inspect.isclass(thing) and issubclass(thing, BaseModel):
        return "", ""
    written = re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", signature or "")
    return written.replace("<factory>", "...") or None, returns


def skip(app: Any, what: str, name: str, thing: Any, skipped: bool, options: Any) -> bool | None:
    """Leaves out the fields of named tuples, whose only docstring is their number, and what matplotlib writes into its
    subclasses (event autodoc-skip-member)."""
    numbered = (inspect.getdoc(thing) or "").startswith("Alias for field number")
    return True if numbered or str(getattr(thing, "__module__", "")).startswith("matplotlib.") else None


def rst(text: str, arguments: Sequence[str] = (), target: Callable[[str], str | None] = lambda word: None) -> str:
    """A plain text as reStructuredText.

    Indented lines stay as they are, in a literal block. In paragraphs `code`, *stress* and **stress** are kept, code
    that `target` has a full name for is linked, and all other marks are escaped. `arguments`, where they are explained,
    are bold. A line that begins with one of them, or with Returns or Raises, begins a paragraph; arguments that a
    middle dot separates make a list.
    """
    named = "|".join(map(re.escape, arguments)) or "(?!)"
    names = rf"(?:{named})(?:, (?:{named}))*(?=:| \(|$)"
    begins = re.compile(rf"{names}|Returns |Raises ")
    blocks: list[tuple[bool, list[str]]] = []  # whether indented, and lines
    goes_on = False
    for line in text.split("\n"):
        indented = line.startswith("    ")
        if not line.strip():
            goes_on = False
        elif goes_on and indented == blocks[-1][0] and (indented or not begins.match(line)):
            blocks[-1][1].append(line)
        else:
            blocks.append((indented, [line]))
            goes_on = True
    written = []
    for indented, lines in blocks:
        parts = " ".join(lines).split(" · ")
        if indented:
            written.append("::\n\n" + textwrap.indent(textwrap.dedent("\n".join(lines)), "    "))
        elif len(parts) > 1 and all(re.match(names, part) for part in parts):
            written += [f"- {_inline(part, names, target)}" for part in parts]
        else:
            written.append(_inline(" ".join(lines), names, target))
    return "\n\n".join(written)


def numpy_style(text: str, target: Callable[[str], str | None] = lambda word: None) -> str:
    """A docstring with NumPy's sections as reStructuredText, by napoleon; `code` as in `rst`."""
    config = Config(napoleon_use_ivar=True, napoleon_use_param=False, napoleon_use_rtype=False)
    lines, example = [], False
    for line in text.split("\n"):
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))  # code, and what it prints
        lines.append(line if example else _inline(line.replace("``", "`"), "(?!)", target))
    return str(NumpyDocstring("\n".join(lines), config))  # type: ignore[arg-type]  # its own Config serves


def _inline(text: str, names: str, target: Callable[[str], str | None]) -> str:
    def marked(match: re.Match) -> str:
        if code := match["code"]:
            place = target(code)
            return rf":py:obj:`{code} <{place}>`\ " if place else rf"``{code}``\ "  # "\ ": a letter may follow
        if names := match["names"]:
            return f"**{names}**"
        return match["stress"] or "\\" + match["mark"]

    stress = r"(?P<stress>(?<!\S)\*{1,2}\w[^*]*\w\*{1,2}(?!\w))"
    explained = rf"(?P<names>(?:^|(?<=[.·] )){names})"
    return re.sub(rf"`(?P<code>[^`]+)`|{explained}|{stress}|(?P<mark>[\\*`|_])", marked, text)


def _target(module: ModuleType | None, word: str) -> str | None:
    """Full name of what a word in a docstring of `module` means, where the site has it."""
    for start in (module, importlib.import_module("pckd_nb")):
        thing: Any = start
        for part in word.removesuffix("()").split("."):
            thing = getattr(thing, part, None)
        if thing is not None and id(thing) in documented():
            return documented()[id(thing)]
    return None
