"""The code tour: its table of floors as a picture, and links from its tables to the API pages."""

import re
import textwrap
from html import escape
from pathlib import Path

PAGE = Path(__file__).with_name("code_tour.md")
WIDTH, LINE = 360, 17  # of the picture, in px: it must be readable on a phone
COLUMNS = 44  # characters in a line of module names
ACCENTS = ("#D55E00", "#CC79A7", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#8C8C8C")


def floors() -> dict[str, tuple[str, list[str]]]:
    """Return the table of floors: the number of every floor, its name and its modules, the top floor first."""
    rows = re.findall(r"^\| (\d|Ground) \| ([^|]*) \| (`[^|]*`) \|$", PAGE.read_text("utf-8"), re.M)
    return {number: (name, re.findall(r"`(\w+)`", modules)) for number, name, modules in rows}


def linked(text: str) -> str:
    """Return the page with a link from every function, in a table row "`file.py` | `function`", to its API entry."""
    import api

    def link(match: re.Match) -> str:
        module = "pckd_nb." + match["file"].removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        found = api.target(module, match["name"])
        return match[0] if found is None else f"`{match['file']}` | {{py:obj}}`{match['name']} <{found}>` |"

    return re.sub(r"`(?P<file>[\w/]+\.py)` \| `(?P<name>[\w.]+)` \|", link, text)


def picture() -> str:
    """Return a drawing of the floors as a house, in SVG. Inside the page, its text gets the page's text color."""
    top, shapes = 54, ""
    for accent, (number, (name, modules)) in zip(ACCENTS, floors().items(), strict=True):
        lines = textwrap.wrap(" ".join(modules), COLUMNS)
        height = 30 + LINE * len(lines)
        shapes += f'<rect x="12" y="{top}" width="{WIDTH - 24}" height="{height}" class="room"/>'
        shapes += f'<rect x="12" y="{top}" width="6" height="{height}" fill="{accent}"/>'
        shapes += f'<text x="28" y="{top + 20}" class="name">{escape(f"{number} · {name}")}</text>'
        for row, line in enumerate(lines):
            shapes += f'<text x="28" y="{top + 38 + LINE * row}" class="modules">{escape(line)}</text>'
        top += height
    roof = f'<polygon points="2,54 {WIDTH // 2},6 {WIDTH - 2},54" class="room"/>'
    roof += f'<text x="{WIDTH // 2}" y="44" text-anchor="middle" class="name">pckd_nb</text>'
    note = f'<text x="{WIDTH // 2}" y="{top + 20}" text-anchor="middle" class="note">'
    note += "A module imports only from its own floor and from floors below.</text>"
    label = "A house with seven floors. Each floor lists modules of pckd_nb, as in the table below."
    size = f'viewBox="0 0 {WIDTH} {top + 30}"'
    begin = f'<svg class="house" xmlns="http://www.w3.org/2000/svg" role="img" {size} aria-label="{label}">'
    return f"{begin}\n{roof}{shapes}{note}\n</svg>\n"
