"""Build the site: python docs/make_site.py [--out build/site] [--only 00,05]

The sources that Sphinx reads are laid out anew at every build, in OUT/source, as they lie in the repository, except
that docs/ is their root. So the links between them mean the same here and there; a link to a file that is no page
takes the file along. Notebooks come with the outputs that are stored in them. Warnings are errors.
"""

import argparse
import hashlib
import importlib
import inspect
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import nbformat
import typer
from docstrings import API, public
from nbformat import NotebookNode
from sphinx.cmd.build import build_main
from typer.cli import get_docs_for_click

import pckd_nb
from pckd_nb.figures import collection
from pckd_nb.notebooks import DRAWING

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = ("README.md", "CONTRIBUTING.md", "benchmarks/report.md", "data/runs/README.md", "data/paper/README.md")
UNTITLED = {"data/paper/README.md": "Published numbers"}
FIGURES = ROOT / "build" / "figures"  # kept from build to build
LINK = re.compile(r"(?<=\]\()(?P<file>[^)#:\s]+)(?P<anchor>#[^)\s]*)?(?=\))")
DATA = {"fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}


def lay_out(source: Path, only: list[str] | None = None) -> None:
    """Write all that Sphinx reads. only: beginnings of the notebooks' names; all unless said."""
    figures = draw(FIGURES)
    shutil.copytree(figures, source / "figures", ignore=shutil.ignore_patterns("*.txt", "drawn_from"))
    for page in (*sorted(DOCS.glob("*.md")), *(ROOT / name for name in PAGES)):
        title = f"# {UNTITLED[name]}\n\n" if (name := page.relative_to(ROOT).as_posix()) in UNTITLED else ""
        write(place(page, source), title + linked(page.read_text("utf-8"), page, source))
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for notebook in notebooks:
        if only is None or notebook.name.startswith(tuple(only)):
            write(place(notebook, source), nbformat.writes(shown(notebook, notebooks, source)))
    with (source / "figures.md").open("a", encoding="utf-8") as file:
        file.write(gallery(figures))
    for name, text in api():
        write(source / "api" / name, text)
    with (source / "commands.md").open("a", encoding="utf-8") as file:
        file.write(commands())


def place(file: Path, source: Path) -> Path:
    """Where a file of the repository lies in the sources of the site."""
    return source / file.relative_to(DOCS if file.is_relative_to(DOCS) else ROOT)


def linked(text: str, page: Path, source: Path) -> str:
    """The text of a page with its relative links as they are in the sources: a folder's README stands for the folder,
    and a file that is no page is copied there."""

    def moved(match: re.Match) -> str:
        target = (page.parent / unquote(match["file"])).resolve()
        if target.is_dir():
            target /= "README.md"
        if not target.is_file() or not target.is_relative_to(ROOT):
            return match[0]  # made below, or else a warning of Sphinx's
        there = place(target, source)
        if target.suffix not in (".md", ".ipynb"):
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(target, there)
        return os.path.relpath(there, place(page, source).parent) + (match["anchor"] or "")

    return LINK.sub(moved, text)


# Notebooks.


def shown(notebook: Path, notebooks: list[Path], source: Path) -> NotebookNode:
    """A notebook as the site shows it: what is tagged folded, pictures with words, other notebooks linked."""
    book = nbformat.read(notebook, as_version=4)
    book.metadata["language_info"]["pygments_lexer"] = "ipython3"  # knows !command and %magic
    for number, cell in enumerate(book.cells):
        if cell.cell_type == "markdown":
            cell.source = linked(cell.source, notebook, source)
            for other in set(notebooks) - {notebook}:
                named = rf"(?<!\[)\b([Nn]otebook {other.name[:2]})\b(?!\])"
                cell.source = re.sub(named, rf"[\1]({other.name})", cell.source)
        elif "solution" in (tags := cell.metadata.get("tags", [])):
            tags.append("hide-cell")
            cell.metadata["mystnb"] = prompts("a solution")
        elif "hide-input" in tags:
            cell.metadata["mystnb"] = prompts("how to get the package")
        if words := [alternative(output, book.cells[: number + 1]) for output in pictures(cell)]:
            cell.metadata.setdefault("mystnb", {})["image"] = {"alt": " ".join(dict.fromkeys(words))}
    return book


def prompts(what: str) -> dict[str, str]:
    """What stands above a folded cell, for myst-nb."""
    return {"code_prompt_show": f"Show {what}", "code_prompt_hide": f"Hide {what}"}


def pictures(cell: NotebookNode) -> list[NotebookNode]:
    """The outputs of a cell that are pictures."""
    return [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]


def alternative(output: NotebookNode, cells: list[NotebookNode]) -> str:
    """What a stored picture shows, in words: its own; else those of the function of pckd_nb.figures that drew it, or
    of the text before it. cells: those up to the picture's own."""
    plain = output.data.get("text/plain", "")
    says = "" if plain.startswith(("<Figure", "<Drawing")) else plain
    if own := output.metadata.get("image/png", {}).get("alt") or says:
        return own
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    section = next(line for text in reversed(texts) for line in reversed(text.split("\n")) if line.startswith("#"))
    prose = [part for part in texts[-1].split("\n\n") if not part.startswith(("#", "|", "$$", "**Try"))]
    words = prose[-1] if prose else ""
    for name in re.findall(r"\b(\w+)\(", cells[-1].source):
        function = getattr(pckd_nb.figures, name, None)
        if inspect.isfunction(function) and inspect.signature(function).return_annotation is pckd_nb.figures.Drawing:
            words = (inspect.getdoc(function) or "").split("\n\n")[0].removeprefix("Draw ")
            words = words[:1].upper() + words[1:]
    marks = r"\$\$.*?\$\$|(?<=\])\([^)]*\)|[*`$\\{}\[\]]"  # equations, addresses, marks
    words = shortened(re.sub(marks, "", re.sub(r"\|[ |-]*", " ", words), flags=re.S))
    axes = re.findall(r"[xy]label(?:=|\()\s*[\"']([^\"'{}]+)[\"']", cells[-1].source)
    labels = f" Axes: {', '.join(dict.fromkeys(axes))}." if axes else ""
    return re.sub(marks, "", section.strip("# ")) + (" " if section.endswith("?") else ". ") + words + labels


def shortened(words: str, characters: int = 400) -> str:
    """The first sentences of a text, together at most so long; one at least."""
    first, *sentences = re.split(r"(?<=[.?!:]) (?=[A-Z(])", " ".join(words.split()))
    for sentence in sentences:
        if len(first) + len(sentence) < characters:
            first += f" {sentence}"
        else:
            break
    return first


# Figures.


def draw(out: Path) -> Path:
    """Draw all figures of the recorded runs, unless they are there, drawn by this code of these runs."""
    drawn_from = out / "drawn_from"
    runs = ROOT / "data" / "runs"
    total = hashlib.sha256(pckd_nb.__version__.encode())
    code = (file for pattern in (*DRAWING, "runs.py") for file in (ROOT / "pckd_nb").glob(pattern))
    for file in sorted((*code, *runs.rglob("*"), *(ROOT / "data" / "paper").glob("*.csv"))):
        if file.is_file():
            total.update(f"{file.relative_to(ROOT)}".encode() + file.read_bytes())
    if drawn_from.is_file() and drawn_from.read_text("utf-8") == total.hexdigest():
        return out
    shutil.rmtree(out, ignore_errors=True)
    collection.draw_all(runs, out)
    write(drawn_from, total.hexdigest())
    return out


def gallery(figures: Path) -> str:
    """The figures with their captions, the same figure of several data sets under one heading."""
    text, names = "", sorted(collection.FIGURES, key=len, reverse=True)
    heading = None
    for picture in sorted(figures.glob("*.png")):
        says, about = (figures / f"{picture.stem}.txt").read_text("utf-8").strip().split("\n\n")
        name = next(name for name in names if picture.stem == name or picture.stem.startswith(f"{name}_"))
        if name != heading:
            heading = name
            text += f"\n## {name[3:].replace('_', ' ').capitalize()}\n\n{escaped(says)}\n"
        data = picture.stem.removeprefix(name).lstrip("_")
        alt = says + (f" On {DATA.get(data, data)}." if data else "")
        text += f"\n```{{figure}} figures/{picture.name}\n:alt: {alt}\n\n{escaped(about)}\n```\n"
    return text


def escaped(text: str) -> str:
    """A plain text as Markdown."""
    return re.sub(r"([\\*_`$<>\[\]|{}])", r"\\\1", text)


# What is in the package.


def api() -> Iterator[tuple[str, str]]:
    """Name and text of every page of the API: one a module, and the index, which groups them."""
    index = "# The package\n\n" + " ".join((inspect.getdoc(pckd_nb) or "").split("\n\n")[0].split())
    index += (
        "\n\nBelow, what is nearest to the paper comes first. The names that most work begins with are also those of\n"
    )
    index += "`pckd_nb` itself: `" + "`, `".join(pckd_nb.__all__) + "`.\n"
    for title, modules in API.items():
        index += f"\n## {title}\n\n| | |\n|---|---|\n"
        for name in modules:
            module = importlib.import_module(f"pckd_nb.{name}")
            says = escaped(" ".join((inspect.getdoc(module) or "").split("\n\n")[0].split()))
            index += f"| [{name}]({name}.rst) | {says} |\n"
            text = f"{name}\n{'=' * len(name)}\n\n.. automodule:: pckd_nb.{name}\n"
            yield f"{name}.rst", f"{text}   :members: {', '.join(public(module))}\n"
        index += "\n```{toctree}\n:hidden:\n\n" + "\n".join(modules) + "\n```\n"
    yield "index.md", index


def commands() -> str:
    """`pckd-nb --help` and that of every command, as Markdown."""
    from pckd_nb.cli import app

    group = typer.main.get_command(app)
    context = typer.Context(group, info_name="pckd-nb")
    text = get_docs_for_click(obj=group, ctx=context, name="pckd-nb")
    return "\n" + text.split("\n", 1)[1]


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def main() -> int:
    arguments = argparse.ArgumentParser(description="Build the site from notebooks, docstrings and recorded runs.")
    arguments.add_argument("--out", type=Path, default=ROOT / "build" / "site", help="its pages go to OUT/html")
    arguments.add_argument(
        "--only", type=lambda text: text.split(","), help="beginnings of notebooks' names, for a try"
    )
    asked = arguments.parse_args()
    out = asked.out.resolve()
    for name in ("source", "html", "doctrees", "jupyter_execute"):  # myst-nb puts the last beside the pages
        shutil.rmtree(out / name, ignore_errors=True)
    lay_out(out / "source", asked.only)
    options = ["-b", "html", "-q", "--fail-on-warning", "--keep-going", "-c", DOCS, "-d", out / "doctrees"]
    failed = build_main([*map(str, options), str(out / "source"), str(out / "html")])
    if not failed:
        print(out / "html" / "index.html")
    return failed


if __name__ == "__main__":
    sys.exit(main())
