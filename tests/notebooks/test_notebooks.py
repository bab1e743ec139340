"""The notebooks as they are stored, and executed from scratch."""

import os
import re
import shutil
import time
from pathlib import Path

import nbformat
import pytest

from pckd_nb import demo, notebooks
from pckd_nb.analysis import SAMPLE_KINDS
from pckd_nb.experiments import SWEEPS

from ..conftest import time_limit
from ..test_browser import START, WIDGETS

NOTEBOOKS = sorted(notebooks.FOLDER.glob("*.ipynb"))
SECONDS = 60  # for one notebook, on the machine for which the documentation states times
ATTEMPTS = 3  # one attempt within the limit is enough, as other programs only add time

every_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_the_notebook_of_the_demo_exists():
    assert demo.NOTEBOOK in NOTEBOOKS


@every_notebook
def test_notebook_is_stored_with_outputs(notebook):
    book = nbformat.read(notebook, as_version=4)
    nbformat.validate(book)
    cells = code_cells(book)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


@every_notebook
def test_stored_outputs_are_up_to_date(notebook):
    book = nbformat.read(notebook, as_version=4)
    assert book.metadata.get("pckd_nb") == notebooks.source_hashes(book), "run make notebooks"


@every_notebook
def test_every_stored_answer_is_right(notebook):
    checks = [
        cell for cell in code_cells(nbformat.read(notebook, as_version=4)) if "check" in cell.metadata.get("tags", [])
    ]
    assert all(output.text == "Right.\n" for cell in checks for output in cell.outputs)
    assert len(checks) == 3 and all(cell.outputs for cell in checks)


@every_notebook
def test_notebook_is_small_and_contains_no_paths_of_a_machine(notebook):
    text = notebook.read_text(encoding="utf-8")
    assert len(text) < 1.6e6
    for path in (str(Path.home()), str(notebooks.REPOSITORY), "site-packages"):
        assert path == "/" or path not in text
    book = nbformat.reads(text, as_version=4)
    assert book.metadata.kernelspec.name == "python3"
    assert not any(cell.metadata.get("execution") for cell in book.cells)


@every_notebook
def test_notebook_starts_with_goals_requirements_and_duration(notebook):
    first = nbformat.read(notebook, as_version=4).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    for words in ("What you learn", "What you need", "How long it takes"):
        assert words in first.source


@every_notebook
def test_g_a_and_b_have_their_meaning_in_the_method(notebook):
    """g is the projector, A_s and A_t are the layers of the contrast, B is the number of images in a batch."""
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "markdown":
            assert not re.search(r"gradients? \$[gAB]\b", cell.source)
            for formula in re.findall(r"\$\$.+?\$\$|\$[^$\n]+\$", cell.source, re.S):
                symbols = re.sub(r"\\(text|mathrm)\{.*?\}", "", formula)
                assert not re.search(r"(?<![\\A-Za-z])(g(?![(:$A-Za-z])|A(?!_[st])|[A-Za-z]_[AB]\b)", symbols), formula


def source_of(start):
    (notebook,) = notebooks.FOLDER.glob(f"{start}_*.ipynb")
    return "\n".join(cell.source for cell in nbformat.read(notebook, as_version=4).cells)


def test_one_seed_is_not_called_a_difference():
    """Notebook 11 trains each method with one seed only, so it must not call its results a difference."""
    assert not re.search(r'"an? (clear )?difference"', source_of("11"))
    assert "one seed shows no difference between methods" in source_of("11")


def test_notebook_09_shows_epsilon_as_in_the_sweep():
    """With four digits, 1.0025 would be shown as 1.002, which is not a value of the sweep."""
    assert "ε₂₄₀ = {group['epsilon'].iloc[0] ** (classroom.epochs / 240):g}" in source_of("09")
    assert {f"{(value ** (240 / 10)) ** (10 / 240):g}" for value in SWEEPS["epsilon_240"]} == {
        "1", "1.0025", "1.005", "1.01", "1.015"
    }  # fmt: skip


def test_kinds_of_samples_have_the_names_of_the_package():
    text = source_of("08")
    assert all(f"**{kind.capitalize()}**" in text and f'"{kind}"' in text for kind in SAMPLE_KINDS)
    assert "lways easy" not in text


@pytest.mark.slow
@every_notebook
def test_notebook_runs_from_scratch_within_a_minute(notebook, tmp_path, monkeypatch):
    if notebook.stem in (START, *WIDGETS) and os.environ.get("PCKD_NEED_BROWSER"):
        pytest.skip("tests/test_browser.py runs this notebook")
    seconds, limits = [], []
    for attempt in range(ATTEMPTS):
        folder, elsewhere = tmp_path / f"notebooks{attempt}", tmp_path / f"elsewhere{attempt}"
        folder.mkdir()
        monkeypatch.setenv("PCKD_RUNS", str(elsewhere / "none"))  # no demo runs, so it trains its own
        monkeypatch.setenv("PCKD_DATA", str(elsewhere / "data"))
        copy = Path(shutil.copy(notebook, folder))
        limits.append(time_limit(SECONDS, own_process=True))
        started = time.monotonic()
        book = notebooks.execute(copy)
        seconds.append(time.monotonic() - started)
        outputs = [output for cell in code_cells(book) for output in cell.outputs]
        assert notebook != demo.NOTEBOOK or any("digits" in output.get("text", "") for output in outputs)
        assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
        assert {path.name for path in folder.iterdir()} == {copy.name}  # it leaves nothing behind
        if seconds[-1] < limits[-1]:
            break
    print(f"{notebook.stem}: {seconds[-1]:.0f} s of at most {limits[-1]:.0f} s")
    assert seconds[-1] < limits[-1], (seconds, limits)
