import os
import re
import shutil
import signal
from pathlib import Path

import nbformat
import pytest
import requests
from nbformat.v4 import new_code_cell, new_notebook

from pckd_nb import notebooks

from .browser import jupyterlab

ROOT = Path(__file__).parents[1]


def make_notebook(path, *cells):
    cells = [nbformat.v4.new_code_cell(source) for source in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_storing_keeps_outputs_but_no_times(tmp_path):
    notebook = make_notebook(tmp_path / "book.ipynb", "import os\nprint(os.path.basename(os.environ['PCKD_RUNS']))")
    notebooks.store(notebook, tmp_path / "some runs")
    book = nbformat.read(notebook, 4)
    nbformat.validate(book)
    (cell,) = book.cells
    assert cell.outputs[0].text == "some runs\n" and cell.execution_count == 1
    assert cell.metadata == {} and set(book.metadata) == {"kernelspec", "language_info", "pckd_nb"}


def test_a_failing_cell_is_named_and_nothing_is_stored(tmp_path):
    notebook = make_notebook(tmp_path / "book.ipynb", "1 / 0")
    before = notebook.read_bytes()
    with pytest.raises(RuntimeError, match="book.ipynb failed: ZeroDivisionError"):
        notebooks.store(notebook, tmp_path)
    assert notebook.read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_while_a_notebook_runs_raises_keyboard_interrupt(tmp_path):
    source = f"import os, signal, time\nos.kill({os.getpid()}, signal.{signal.SIGINT.name})\ntime.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        notebooks.execute(make_notebook(tmp_path / "book.ipynb", source))


def test_the_hashes_change_with_the_source_and_with_the_drawing_modules(tmp_path, monkeypatch):
    notebook = make_notebook(tmp_path / "book.ipynb", "1 + 1")
    notebooks.store(notebook)
    book = nbformat.read(notebook, 4)
    assert book.metadata["pckd_nb"] == notebooks.source_hashes(book)
    book.cells.append(nbformat.v4.new_markdown_cell("Words may change."))
    assert book.metadata["pckd_nb"] == notebooks.source_hashes(book)
    book.cells[0].source = "1 + 2"
    assert book.metadata["pckd_nb"]["source"] != notebooks.source_hashes(book)["source"]
    monkeypatch.setattr(notebooks, "DRAWING_MODULES", ("runs.py",))
    assert book.metadata["pckd_nb"]["drawing"] != notebooks.source_hashes(book)["drawing"]


def test_student_versions_have_no_solutions_and_no_outputs(tmp_path, monkeypatch):
    task, solution = new_code_cell("answer = ..."), new_code_cell("answer = 4", metadata={"tags": ["solution"]})
    check = new_code_cell("from pckd_nb.course import check\ncheck(answer, 4)", metadata={"tags": ["check"]})
    nbformat.write(new_notebook(cells=[task, solution, check]), tmp_path / "book.ipynb")
    notebooks.store(tmp_path / "book.ipynb")
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    (written,) = notebooks.write_student_versions(tmp_path / "student")
    book = nbformat.read(written, 4)
    nbformat.validate(book)
    assert [cell.source for cell in book.cells] == [task.source, check.source]
    assert not any(cell.outputs or cell.execution_count for cell in book.cells)
    assert notebooks.execute(written).cells[-1].outputs[0].text == "No answer yet.\n"


def test_plots_after_the_style_of_figures_are_shown_as_well(tmp_path):
    inside = "import matplotlib.pyplot as plt, pckd_nb as pckd\nwith pckd.figures.style():\n    plt.plot([1, 2])"
    book = notebooks.execute(make_notebook(tmp_path / "book.ipynb", inside, "plt.plot([1, 2]);"))
    assert ["image/png" in cell.outputs[-1].data for cell in book.cells] == [True, True]


def test_only_the_picture_of_a_widget_is_stored(tmp_path):
    view = "application/vnd.jupyter.widget-view+json"
    source = f"display({{'{view}': {{'model_id': 'gone'}}, 'image/png': 'aGk=', 'text/plain': 'a picture'}}, raw=True)"
    book = notebooks.execute(make_notebook(tmp_path / "book.ipynb", source))
    assert set(book.cells[0].outputs[0].data) == {"image/png", "text/plain"}


@pytest.mark.slow
def test_make_lab_opens_the_first_notebook(tmp_path):
    recipe = re.search(r"^lab:.*\n\t(.*)$", (ROOT / "Makefile").read_text(), re.M)[1]
    program, command, folder, *options = recipe.split()
    assert (program, command, folder) == ("$(BIN)/jupyter", "lab", "notebooks") and options
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "00_start_here.ipynb", tmp_path / "notebooks")
    with jupyterlab(tmp_path / "notebooks", tmp_path, options=options) as address:
        base, token = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/.*[?&]token=(\w+).*", address).groups()
        answer = requests.get(f"{base}/", {"token": token}, timeout=300)
        assert answer.ok and re.match(rf"{base}/lab/tree/00_start_here\.ipynb(\?|$)", answer.url)
        contents = requests.get(f"{base}/api/contents/00_start_here.ipynb", {"token": token, "content": 0}, timeout=300)
        assert contents.json()["type"] == "notebook"
