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
SECONDS = 60  # what each may take on the machine for which times are stated
ATTEMPTS = 3  # a busy machine only adds to it: one within the limit is enough

every_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert demo.NOTEBOOK in NOTEBOOKS


@every_notebook
def test_it_is_stored_with_its_outputs(notebook):
    book = nbformat.read(notebook, as_version=4)
    nbformat.validate(book)
    cells = code_cells(book)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


@every_notebook
def test_its_outputs_are_of_its_source_and_of_the_figures_as_they_are(notebook):
    book = nbformat.read(notebook, as_version=4)
    assert book.metadata.get("pckd_nb") == notebooks.source_hashes(book), "run make notebooks"


@every_notebook
def test_every_answer_in_it_is_right(notebook):
    checks = [
        cell for cell in code_cells(nbformat.read(notebook, as_version=4)) if "check" in cell.metadata.get("tags", [])
    ]
    assert all(output.text == "Right.\n" for cell in checks for output in cell.outputs)
    assert len(checks) == 3 and all(cell.outputs for cell in checks)


@every_notebook
def test_it_is_small_and_says_nothing_of_the_machine_it_ran_on(notebook):
    text = notebook.read_text(encoding="utf-8")
    assert len(text) < 1.6e6
    for path in (str(Path.home()), str(notebooks.REPOSITORY), "site-packages"):
        assert path == "/" or path not in text
    book = nbformat.reads(text, as_version=4)
    assert book.metadata.kernelspec.name == "python3"
    assert not any(cell.metadata.get("execution") for cell in book.cells)


@every_notebook
def test_it_opens_with_what_it_teaches_and_how_long_it_takes(notebook):
    first = nbformat.read(notebook, as_version=4).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    for words in ("What you learn", "What you need", "How long it takes"):
        assert words in first.source


@every_notebook
def test_g_a_and_b_mean_what_they_mean_in_the_method(notebook):
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
    """Notebook 11 trains each method with one seed: it says so where it compares them, and how far seeds scatter."""
    assert not re.search(r'"an? (clear )?difference"', source_of("11"))
    assert "one seed shows no difference between methods" in source_of("11")


def test_epsilon_is_named_by_its_value_in_the_sweep():
    """Four digits would make 1.0025 a value that nobody swept, 1.002."""
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
def test_it_runs_from_scratch_within_a_minute(notebook, tmp_path, monkeypatch):
    if notebook.stem in (START, *WIDGETS) and os.environ.get("PCKD_NEED_BROWSER"):
        pytest.skip("runs in tests/test_browser.py, which does not take this long twice")
    took, limits = [], []
    for attempt in range(ATTEMPTS):
        folder, elsewhere = tmp_path / f"notebooks{attempt}", tmp_path / f"elsewhere{attempt}"
        folder.mkdir()
        monkeypatch.setenv("PCKD_RUNS", str(elsewhere / "none"))  # no demo runs: it has to train its own
        monkeypatch.setenv("PCKD_DATA", str(elsewhere / "data"))
        copy = Path(shutil.copy(notebook, folder))
        limits.append(time_limit(SECONDS, own_process=True))
        started = time.monotonic()
        book = notebooks.execute(copy)
        took.append(time.monotonic() - started)
        outputs = [output for cell in code_cells(book) for output in cell.outputs]
        assert notebook != demo.NOTEBOOK or any("digits" in output.get("text", "") for output in outputs)
        assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
        assert {path.name for path in folder.iterdir()} == {copy.name}  # it leaves nothing behind
        if took[-1] < limits[-1]:
            break
    print(f"{notebook.stem}: {took[-1]:.0f} s of at most {limits[-1]:.0f} s")
    assert took[-1] < limits[-1], (took, limits)
