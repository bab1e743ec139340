"""The code tour names what is there, and the examples of CONTRIBUTING.md run as they stand on the page."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from .test_packaging import FLOORS, parsed

ROOT = Path(__file__).parents[1]
TOUR = (ROOT / "docs" / "code_tour.md").read_text("utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
PLACES = re.findall(r"`([\w/]+\.py)` \| `([\w.]+)` \|", TOUR)


def definitions(file: Path) -> set[str]:
    """Functions, classes, and methods as Class.method, that a file defines."""
    kinds = ast.FunctionDef | ast.ClassDef
    found = set()
    for node in parsed(file).body:
        if isinstance(node, kinds):
            found.add(node.name)
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, kinds)}
    return found


def section(title: str) -> str:
    """The text of CONTRIBUTING.md below a heading."""
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", CONTRIBUTING, re.S | re.M)[1]


def test_the_code_tour_has_a_path_and_enough_wishes():
    steps = [int(number) for number in re.findall(r"^\| (\d+) \| `[\w/]+\.py` \|", TOUR, re.M)]
    assert steps == list(range(1, len(steps) + 1)) and 10 <= len(steps) <= 15
    assert len(PLACES) - len(steps) >= 10
    assert PLACES[0][1] == "distill" and PLACES[len(steps) - 1][1] == "Optimization.step"


@pytest.mark.parametrize(("file", "name"), sorted(set(PLACES)))
def test_every_place_of_the_code_tour_is_there(file, name):
    assert name in definitions(ROOT / "pckd_nb" / file)


def test_other_names_of_the_code_tour_are_there():
    """What stands in its sentences: files, and names such as `MODELS`."""
    source = "\n".join(path.read_text("utf-8") for path in (ROOT / "pckd_nb").rglob("*.py"))
    tables = "\n".join(line for line in TOUR.splitlines() if ".py`" in line)
    for word in set(re.findall(r"`([^`]+)`", tables)):
        if word.endswith(".py"):
            assert (ROOT / "pckd_nb" / word).is_file(), word
        else:
            name = re.match(r"[\w.]+", word)[0].split(".")[-1]
            assert re.search(rf"\b{name}\b", source), word


def test_the_floors_of_the_code_tour_are_those_that_imports_keep():
    rows = re.findall(r"^\| (?:\d|Ground) \| [^|]* \| (`[^|]*`) \|$", TOUR, re.M)
    floors = [set(re.findall(r"`(\w+)`", modules)) for modules in reversed(rows)]
    assert sum(map(len, floors)) == len(set().union(*floors))
    assert set().union(*floors) == set().union(*FLOORS) - {"__main__", "__init__"}
    level = {name: number for number, names in enumerate(FLOORS) for name in names}
    for below, above in zip(floors, floors[1:], strict=False):
        assert max(level[name] for name in below) < min(level[name] for name in above)


@pytest.mark.parametrize("title", ["Add a method", "Add a data set", "Add a figure"])
def test_an_example_of_contributing_runs(title, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", section(title), re.S)
    (tmp_path / "example.py").write_text(code, "utf-8")
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if title == "Add a figure":
        with Image.open(tmp_path / "epoch_seconds.png") as picture:
            assert len(picture.convert("L").getcolors()) > 10
    else:
        heading, *rows = done.stdout.strip().splitlines()
        assert "test_top1" in heading.split() and len(rows) == {"Add a method": 1, "Add a data set": 2}[title]


def test_files_and_names_in_contributing_are_there():
    text = re.sub(r"```.*?```", "", CONTRIBUTING, flags=re.S)
    new = {"pckd_nb/methods/cosine_kd.py", "pckd_nb/NAME.py", "tests/test_NAME.py"}
    files = set(re.findall(r"`((?:pckd_nb|tests)/[\w/]+\.py)`", text)) - new
    assert len(files) > 10
    assert not [file for file in files if not (ROOT / file).is_file()]
    places = re.findall(r"`(\w+)`[^`.]* in `(pckd_nb/[\w/]+\.py)`", text)
    places += [(name, file) for name, file in re.findall(r"the function `(\w+)` of `(pckd_nb/[\w/]+\.py)`", text)]
    assert {name for name, _ in places} >= {"RENAMED", "METHODS", "_read_splits", "DATASETS"}
    for name, file in places:
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text("utf-8")), (name, file)
