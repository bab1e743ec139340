"""The first code cell of every notebook, in a Python that has the package and in one that lacks it."""

import os
import subprocess
import sys

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell

from pckd_nb import notebooks

# IPython without pckd_nb. `%pip` prints its arguments instead of installing anything.
SCRIPT = """
import importlib.util
import sys
from IPython.core.interactiveshell import InteractiveShell

find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "pckd_nb" else find_spec(name, package)
shell = InteractiveShell.instance()
shell.register_magic_function(lambda line: print("pip", line), "line", "pip")
result = shell.run_cell(sys.argv[1])
if result.error_in_exec:
    print(repr(result.error_in_exec))
else:
    import pckd_nb
    print(pckd_nb.__file__)
"""


def first_cell(notebook):
    return next(cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code")


def run_without_the_package(folder, **environment):
    cell = first_cell(notebooks.FOLDER / "00_start_here.ipynb")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, cell],
        cwd=folder, env={**os.environ, "IPYTHONDIR": str(folder / ".ipython"), **environment},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def repository(tmp_path):
    """A git repository with a package called pckd_nb and a folder of notebooks."""
    folder = tmp_path / "somewhere else"
    (folder / "pckd_nb").mkdir(parents=True)
    (folder / "notebooks").mkdir()
    (folder / "pckd_nb" / "__init__.py").write_text("")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all of it"]):
        author = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        subprocess.run(["git", *author, *command], cwd=folder, check=True)
    return folder


def test_all_notebooks_start_with_the_same_cell():
    assert len({first_cell(notebook) for notebook in notebooks.FOLDER.glob("*.ipynb")}) == 1


def test_in_a_clone_the_cell_installs_the_clone(repository):
    *_, pip, package = run_without_the_package(repository / "notebooks")
    assert pip == f'pip install -q -e "{repository}"'
    assert package == str(repository / "pckd_nb" / "__init__.py")


def test_outside_a_clone_the_cell_clones_the_given_repository(repository, tmp_path):
    alone = tmp_path / "content" / "alone"
    alone.mkdir(parents=True)
    for _ in range(2):  # the second time, the clone exists
        *_, pip, package = run_without_the_package(alone, PCKD_REPOSITORY=repository.as_uri())
        assert pip == f'pip install -q -e "{alone / "pckd-clone"}"'
        assert package == str(alone / "pckd-clone" / "pckd_nb" / "__init__.py")


def test_if_the_clone_has_an_environment_the_error_says_to_choose_it(repository):
    (repository / ".venv").mkdir()
    *_, last = run_without_the_package(repository / "notebooks")
    assert "ImportError" in last and "choose the kernel" in last


def test_if_the_package_is_installed_the_cell_does_nothing(repository, monkeypatch, capsys):
    monkeypatch.chdir(repository / "notebooks")
    code = first_cell(notebooks.FOLDER / "00_start_here.ipynb")
    InteractiveShell.instance().run_cell(code).raise_error()
    assert capsys.readouterr().out == ""
    assert str(repository) not in sys.path


def test_without_a_clone_and_an_address_the_error_says_what_to_set(tmp_path):
    (tmp_path / "alone").mkdir()
    *_, last = run_without_the_package(tmp_path / "alone")
    assert "ImportError" in last and "PCKD_REPOSITORY" in last
    assert not list((tmp_path / "alone").glob("pckd*"))
