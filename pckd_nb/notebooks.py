"""The course's notebooks: executed, stored with their outputs, sealed, and stripped for students."""

import hashlib
import os
from functools import partial
from pathlib import Path

import nbformat
import zmq
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert.preprocessors import ClearOutputPreprocessor, TagRemovePreprocessor
from nbformat import NotebookNode

from . import files
from .paths import user_path

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = REPOSITORY / "notebooks"
CELL_SECONDS = 600  # a cell that takes longer hangs
DRAWING = ("analysis/*.py", "figures/*.py", "widgets/*.py")  # what decides how a stored figure looks


class ThisInterpreter(AsyncKernelManager):
    """Starts kernels with the Python that runs now, whatever kernel "python3" names on this machine."""

    # What is sent to the kernel is encrypted where pyzmq can: ipykernel warns otherwise. Old jupyter_clients ignore it.
    transport_encryption = "auto" if zmq.has("curve") else "disabled"

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


def execute(notebook: Path, runs_folder: str | Path | None = None, all_epochs: bool = False) -> NotebookNode:
    """A copy of the notebook, executed from its first cell, on the runs in `runs_folder` if that is given.

    all_epochs: live trainings have as many epochs on a slow machine as on a fast one, see `course.live_epochs`.

    Raises RuntimeError, naming the cell's error, where one fails.
    """
    book: NotebookNode = nbformat.read(notebook, as_version=4)
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    if all_epochs:
        environment["PCKD_ALL_EPOCHS"] = "1"
    if runs_folder is not None:
        environment["PCKD_RUNS"] = str(user_path(runs_folder).resolve())
    client = NotebookClient(
        book,
        kernel_name="python3",
        kernel_manager_class=ThisInterpreter,
        timeout=CELL_SECONDS,
        store_widget_state=False,
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(notebook.parent)}},
    )
    try:
        client.execute(env=environment)
    except CellExecutionError as error:
        raise RuntimeError(f"a cell of {notebook.name} failed: {error.ename}: {error.evalue}") from error
    except (DeadKernelError, AssertionError) as error:  # what nbclient makes of Ctrl-C, whose kernel is gone then
        raise KeyboardInterrupt from error
    for cell in book.cells:
        cell.metadata.pop("execution", None)  # when it ran
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):  # a widget's picture outlives its kernel, its view does not
                output.data.pop("application/vnd.jupyter.widget-view+json", None)
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}, "pckd_nb": seal(book)}
    book.metadata = nbformat.from_dict(about)
    return book


def seal(book: NotebookNode) -> dict[str, str]:
    """What a stored notebook's outputs came from: sums of its code cells, and of the modules that draw figures. A test
    compares them with the sources as they are."""
    source = hashlib.sha256("\0".join(cell.source for cell in book.cells if cell.cell_type == "code").encode())
    drawing = hashlib.sha256()
    for file in sorted(file for pattern in DRAWING for file in Path(__file__).parent.glob(pattern)):
        drawing.update(file.read_bytes())
    return {"source": source.hexdigest()[:16], "drawing": drawing.hexdigest()[:16]}


def store(notebook: Path, runs_folder: str | Path | None = None) -> Path:
    """Execute a notebook and store it, with its outputs and its seal, in its place. runs_folder: as in `execute`."""
    book = execute(notebook, runs_folder, all_epochs=True)
    files.write(notebook, partial(nbformat.write, book))
    return notebook


def store_all(runs_folder: str | Path | None = None) -> list[Path]:
    """`store` for every notebook of the course."""
    return [store(notebook, runs_folder) for notebook in sorted(FOLDER.glob("*.ipynb"))]


def student_version(notebook: Path) -> NotebookNode:
    """The notebook as a student gets it: cells tagged "solution" are gone, and so are all outputs."""
    book: NotebookNode = nbformat.read(notebook, as_version=4)
    for step in (TagRemovePreprocessor(remove_cell_tags={"solution"}), ClearOutputPreprocessor()):
        book, _ = step.preprocess(book, {})
    book.metadata.pop("pckd_nb", None)
    return book


def write_student_versions(out: str | Path) -> list[Path]:
    """`student_version` of every notebook of the course, in the folder `out`."""
    out = user_path(out, "out")
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for notebook in sorted(FOLDER.glob("*.ipynb")):
        book = student_version(notebook)
        written.append(out / notebook.name)
        files.write(written[-1], partial(nbformat.write, book))
    return written
