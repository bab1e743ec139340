"""Execute the notebooks of the course, store them with their outputs, and make versions for students."""

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
CELL_SECONDS = 600  # time limit per cell
DRAWING_MODULES = ("analysis/*.py", "figures/*.py", "widgets/*.py")  # they decide how a stored figure looks


class CurrentPythonKernelManager(AsyncKernelManager):
    """Start kernels with the Python that runs now, even if the kernel name "python3" belongs to another Python."""

    # ipykernel warns if the connection is not encrypted. pyzmq may not support it, and old jupyter_clients ignore it.
    transport_encryption = "auto" if zmq.has("curve") else "disabled"

    @property
    def kernel_spec(self) -> KernelSpec:
        """The kernel of the running Python."""
        return KernelSpec(**get_kernel_dict())


def execute(notebook: Path, runs_folder: str | Path | None = None, all_epochs: bool = False) -> NotebookNode:
    """Execute a notebook, and return a copy with the outputs.

    Parameters
    ----------
    notebook : Path
    runs_folder : path, optional
        Folder with the runs of the demo. The notebook gets it in the environment variable PCKD_RUNS.
    all_epochs : bool
        Whether to train for all epochs even on a slow machine. See `course.live_epochs`.

    Returns
    -------
    NotebookNode

    Raises
    ------
    RuntimeError
        If a cell fails. The message has the name of its error.
    KeyboardInterrupt
        If the user presses Ctrl-C.
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
        kernel_manager_class=CurrentPythonKernelManager,
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
    except (DeadKernelError, AssertionError) as error:  # nbclient raises these after Ctrl-C, which also ends the kernel
        raise KeyboardInterrupt from error
    for cell in book.cells:
        cell.metadata.pop("execution", None)  # the times of execution
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):  # without its kernel, a widget is shown as a picture
                output.data.pop("application/vnd.jupyter.widget-view+json", None)
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}, "pckd_nb": source_hashes(book)}
    book.metadata = nbformat.from_dict(metadata)
    return book


def source_hashes(book: NotebookNode) -> dict[str, str]:
    """Return hashes of the code that made the outputs of a notebook.

    They are stored with the notebook. A test compares them with the present code, to find outputs that are out of date.

    Parameters
    ----------
    book : NotebookNode

    Returns
    -------
    dict
        "source": hash of the code cells. "drawing": hash of the modules that draw figures.
    """
    source = hashlib.sha256("\0".join(cell.source for cell in book.cells if cell.cell_type == "code").encode())
    drawing = hashlib.sha256()
    for file in sorted(file for pattern in DRAWING_MODULES for file in Path(__file__).parent.glob(pattern)):
        drawing.update(file.read_bytes())
    return {"source": source.hexdigest()[:16], "drawing": drawing.hexdigest()[:16]}


def store(notebook: Path, runs_folder: str | Path | None = None) -> Path:
    """Execute a notebook, and save it with its outputs under the same name.

    Parameters
    ----------
    notebook : Path
    runs_folder : path, optional
        See `execute`.

    Returns
    -------
    Path
        The notebook.

    Raises
    ------
    RuntimeError
        If a cell fails. The file is then not changed.
    """
    book = execute(notebook, runs_folder, all_epochs=True)
    files.write(notebook, partial(nbformat.write, book))
    return notebook


def store_all(runs_folder: str | Path | None = None) -> list[Path]:
    """Execute and save all notebooks of the course.

    Parameters
    ----------
    runs_folder : path, optional
        See `execute`.

    Returns
    -------
    list of Path
        The notebooks.

    Raises
    ------
    RuntimeError
        If a cell fails.
    """
    return [store(notebook, runs_folder) for notebook in sorted(FOLDER.glob("*.ipynb"))]


def student_version(notebook: Path) -> NotebookNode:
    """Return a copy of a notebook without solutions and outputs.

    Parameters
    ----------
    notebook : Path

    Returns
    -------
    NotebookNode
        Without the cells that have the tag "solution".
    """
    book: NotebookNode = nbformat.read(notebook, as_version=4)
    for step in (TagRemovePreprocessor(remove_cell_tags={"solution"}), ClearOutputPreprocessor()):
        book, _ = step.preprocess(book, {})
    book.metadata.pop("pckd_nb", None)
    return book


def write_student_versions(out: str | Path) -> list[Path]:
    """Write copies of all notebooks of the course without solutions and outputs.

    Parameters
    ----------
    out : path
        Folder for the copies.

    Returns
    -------
    list of Path
        The copies.
    """
    out = user_path(out, "out")
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for notebook in sorted(FOLDER.glob("*.ipynb")):
        book = student_version(notebook)
        written.append(out / notebook.name)
        files.write(written[-1], partial(nbformat.write, book))
    return written
