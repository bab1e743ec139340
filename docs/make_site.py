"""Build the site.

    python docs/make_site.py [--out build/site] [--only 00,05]

Every build writes the sources for Sphinx to OUT/source. They have the same folders as the repository, but the files of
docs/ are at the top. Links between pages are adapted. A file that a page links to is copied. Notebooks are shown with
their stored outputs; no code of them is run. A warning of Sphinx is an error.
"""

import argparse
import hashlib
import inspect
import os
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote

import api
import nbformat
import tour
import typer
from nbformat import NotebookNode
from sphinx.cmd.build import build_main
from typer.cli import get_docs_for_click

import pckd_nb
from pckd_nb.deprecation import RENAMED
from pckd_nb.figures import collection
from pckd_nb.notebooks import DRAWING_MODULES

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = ("README.md", "CONTRIBUTING.md", "benchmarks/report.md", "data/runs/README.md", "data/paper/README.md")
UNTITLED = {"data/paper/README.md": "Published numbers"}
FIGURES = ROOT / "build" / "figures"  # kept between builds
LINK = re.compile(r"(?<=\]\()(?P<file>[^)#:\s]+)(?P<anchor>#[^)\s]*)?(?=\))")
DATA = {"fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}


def lay_out(source: Path, only: list[str] | None = None) -> None:
    """Write the sources that Sphinx reads.

    Parameters
    ----------
    source : Path
        The folder to write to.
    only : list of str, optional
        Beginnings of the names of the notebooks to include. Default: all notebooks.
    """
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
    for name, text in api.pages():
        write(source / "api" / name, text)
    write(source / "code_tour.md", tour.linked((source / "code_tour.md").read_text("utf-8")))
    write(source / "house.svg", tour.picture())
    with (source / "renamed.md").open("a", encoding="utf-8") as file:
        file.write(renamed())
    with (source / "commands.md").open("a", encoding="utf-8") as file:
        file.write(commands())


def place(file: Path, source: Path) -> Path:
    """Return where a file of the repository is copied to in the sources of the site."""
    return source / file.relative_to(DOCS if file.is_relative_to(DOCS) else ROOT)


def linked(text: str, page: Path, source: Path) -> str:
    """Return the text of a page with its relative links adapted to the site's sources.

    A link to a folder becomes a link to its README. A linked file that is not a page is copied to the sources.

    Parameters
    ----------
    text : str
        Markdown.
    page : Path
        The file that the text is from.
    source : Path
        The folder of the sources.

    Returns
    -------
    str
    """

    def moved(match: re.Match) -> str:
        target = (page.parent / unquote(match["file"])).resolve()
        if target.is_dir():
            target /= "README.md"
        if not target.is_file() or not target.is_relative_to(ROOT):
            return match[0]  # a page that is generated; if there is none, Sphinx warns
        there = place(target, source)
        if target.suffix not in (".md", ".ipynb"):
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(target, there)
        return os.path.relpath(there, place(page, source).parent) + (match["anchor"] or "")

    return LINK.sub(moved, text)


# Notebooks.


def shown(notebook: Path, notebooks: list[Path], source: Path) -> NotebookNode:
    """Return a notebook as the site shows it.

    Solutions are folded, pictures have an alternative text, and mentions of other notebooks are links.

    Parameters
    ----------
    notebook : Path
    notebooks : list of Path
        All notebooks.
    source : Path
        The folder of the sources.

    Returns
    -------
    NotebookNode
    """
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
    """Return the texts above a folded cell, for myst-nb."""
    return {"code_prompt_show": f"Show {what}", "code_prompt_hide": f"Hide {what}"}


def pictures(cell: NotebookNode) -> list[NotebookNode]:
    """Return the outputs of a cell that are pictures."""
    return [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]


def alternative(output: NotebookNode, cells: list[NotebookNode]) -> str:
    """Return the alternative text of a stored picture.

    It is the text stored with the picture. If there is none, it is the docstring of the function of `pckd_nb.figures`
    that drew the picture, or the text before the picture.

    Parameters
    ----------
    output : NotebookNode
        The picture.
    cells : list of NotebookNode
        The cells of the notebook up to the one with the picture.

    Returns
    -------
    str
    """
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
    """Return the first sentences of a text: as many as fit into `characters`, but at least one."""
    first, *sentences = re.split(r"(?<=[.?!:]) (?=[A-Z(])", " ".join(words.split()))
    for sentence in sentences:
        if len(first) + len(sentence) < characters:
            first += f" {sentence}"
        else:
            break
    return first


# Figures.


def draw(out: Path) -> Path:
    """Draw all figures of the recorded runs, and return their folder.

    Figures in `out` that were drawn by the same code from the same runs are kept.
    """
    drawn_from = out / "drawn_from"
    runs = ROOT / "data" / "runs"
    fingerprint = hashlib.sha256(pckd_nb.__version__.encode())
    code = (
        file for pattern in (*DRAWING_MODULES, "runs.py", "leaderboard.py") for file in (ROOT / "pckd_nb").glob(pattern)
    )
    for file in sorted((*code, *runs.rglob("*"), *(ROOT / "data" / "paper").glob("*.csv"))):
        if file.is_file():
            fingerprint.update(f"{file.relative_to(ROOT)}".encode() + file.read_bytes())
    if drawn_from.is_file() and drawn_from.read_text("utf-8") == fingerprint.hexdigest():
        return out
    shutil.rmtree(out, ignore_errors=True)
    collection.draw_all(runs, out)
    write(drawn_from, fingerprint.hexdigest())
    return out


def gallery(figures: Path) -> str:
    """Return the page of figures with their captions, as Markdown. Each figure has one heading for all data sets."""
    text, names = "", sorted(collection.FIGURES, key=len, reverse=True)
    heading = None
    for picture in sorted(figures.glob("*.png")):
        description, origin = (figures / f"{picture.stem}.txt").read_text("utf-8").strip().split("\n\n")
        name = next(name for name in names if picture.stem == name or picture.stem.startswith(f"{name}_"))
        if name != heading:
            heading = name
            text += f"\n## {name[3:].replace('_', ' ').capitalize()}\n\n{escaped(description)}\n"
        data = picture.stem.removeprefix(name).lstrip("_")
        alt = description + (f" On {DATA.get(data, data)}." if data else "")
        text += f"\n```{{figure}} figures/{picture.name}\n:alt: {alt}\n\n{escaped(origin)}\n```\n"
    return text


def escaped(text: str) -> str:
    """Return a plain text as Markdown, with its special characters escaped."""
    return re.sub(r"([\\*_`$<>\[\]|{}])", r"\\\1", text)


# Pages about the package.


def commands() -> str:
    """Return the help of `pckd-nb` and of all its commands, as Markdown."""
    from pckd_nb.cli import app

    group = typer.main.get_command(app)
    context = typer.Context(group, info_name="pckd-nb")
    text = get_docs_for_click(obj=group, ctx=context, name="pckd-nb")
    return "\n" + text.split("\n", 1)[1]


def renamed() -> str:
    """Return the table of old and new public names, as Markdown."""
    rows = [
        f"| `{module}.{old}` | `{module}.{new}` |\n" for module, names in RENAMED.items() for old, new in names.items()
    ]
    return "\n| old | new |\n|---|---|\n" + "".join(rows) if rows else "\nNo public name has changed in this version.\n"


def write(file: Path, text: str) -> None:
    """Write a text file, and create its folder if needed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def main() -> int:
    """Build the site and return the exit code."""
    arguments = argparse.ArgumentParser(description="Build the site from notebooks, docstrings and recorded runs.")
    arguments.add_argument("--out", type=Path, default=ROOT / "build" / "site", help="its pages go to OUT/html")
    arguments.add_argument(
        "--only", type=lambda text: text.split(","), help="notebooks to include, by the beginnings of their names"
    )
    options = arguments.parse_args()
    out = options.out.resolve()
    for name in ("source", "html", "doctrees", "jupyter_execute"):  # myst-nb writes the last one
        shutil.rmtree(out / name, ignore_errors=True)
    lay_out(out / "source", options.only)
    flags = ["-b", "html", "-q", "--fail-on-warning", "--keep-going", "-c", DOCS, "-d", out / "doctrees"]
    if options.only:
        flags += ["-D", "suppress_warnings=myst.xref_missing"]  # links to notebooks that are left out
    failed = build_main([*map(str, flags), str(out / "source"), str(out / "html")])
    if not failed:
        print(out / "html" / "index.html")
    return failed


if __name__ == "__main__":
    sys.exit(main())
