"""What an install gives: the same packages from pip and conda, and imports that stay light and point down."""

import ast
import gc
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SEVEN = {"torch", "torchvision", "jupyterlab", "matplotlib", "seaborn", "scikit-learn", "ipywidgets"}


def parsed(file: Path) -> ast.Module:
    """Python 3.11 can fail where the garbage collector runs in the middle of this (AST constructor recursion depth)."""
    gc.disable()
    try:
        return ast.parse(file.read_text())
    finally:
        gc.enable()


def requirements(lines) -> dict[str, str]:
    """Package → version range."""
    return {(parts := re.match(r"([A-Za-z0-9_-]+)(.*)", line).groups())[0]: parts[1] for line in lines}


def test_conda_and_pip_install_the_same():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    lines = [line for line in conda if isinstance(line, str) and line != "pip"]
    lines += [line for line in next(part for part in conda if isinstance(part, dict))["pip"] if line != "-e ."]
    found = requirements(lines)
    assert found.pop("python") == PROJECT["requires-python"]
    assert found == requirements(PROJECT["dependencies"])
    assert SEVEN <= found.keys()


def test_everything_the_package_imports_is_declared():
    names = {"sklearn": "scikit-learn", "PIL": "pillow", "lightning_fabric": "lightning-fabric", "zmq": "pyzmq"}
    names["openTSNE"] = "opentsne"
    imported = set()
    for file in (ROOT / "pckd_nb").rglob("*.py"):
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.split(".")[0])
    foreign = {names.get(name, name) for name in imported - set(sys.stdlib_module_names) - {"pckd_nb"}}
    extras = {name for lines in PROJECT["optional-dependencies"].values() for name in requirements(lines)}
    assert foreign - requirements(PROJECT["dependencies"]).keys() == {"timm", "torchdistill"} <= extras


FLOORS = [
    {"losses", "preview", "views", "shapes", "files"},
    {"streams", "downloads"},
    {"methods", "models", "datasets", "recipes"},
    {"runs", "resuming", "ranks", "evaluation"},
    {"recording", "checkpoints", "transfer", "frozen", "cache"},
    {"training", "analysis"},
    {"figures", "experiments", "course", "notebooks"},
    {"cli", "demo", "widgets", "__main__", "__init__"},
]


def test_imports_only_point_down():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    for file in (ROOT / "pckd_nb").rglob("*.py"):
        *packages, stem = file.relative_to(ROOT / "pckd_nb").with_suffix("").parts
        own = floor[packages[0] if packages else stem]
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.Import):
                ours = [alias.name.split(".") for alias in node.names if re.match(r"pckd_nb\b", alias.name)]
                for name in (parts[1] if len(parts) > 1 else "__init__" for parts in ours):
                    assert floor[name] <= own, f"{file.name} imports {name}, which stands above it"
            # as many dots as folders lead to a neighbour in the same room, one more out of it
            outward = isinstance(node, ast.ImportFrom) and node.level == len(packages) + 1
            if outward or isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pckd_nb"):
                module = (node.module or "").removeprefix("pckd_nb").strip(".")
                below = [module.split(".")[0]] if module else [alias.name for alias in node.names]
                for name in below:
                    # what is no module is a name of the package itself, which stands on top
                    stands = floor.get(name, floor["__init__"])
                    assert stands <= own, f"{file.name} imports {name}, which stands above it"


def test_the_papers_equations_import_nothing_but_torch():
    for name in ("losses", "preview"):
        tree = parsed(ROOT / "pckd_nb" / f"{name}.py")
        modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert {module.split(".")[0] for module in modules} <= {"torch", "collections"}


def test_importing_the_package_loads_no_plotting_and_no_notebook_machinery():
    heavy = ["matplotlib.pyplot", "seaborn", "sklearn", "nbconvert", "IPython", "torchdistill"]
    code = f"import sys, pckd_nb; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_there():
    import pckd_nb

    for name in pckd_nb.__all__:
        assert getattr(pckd_nb, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = pckd_nb.nonsense
    assert pckd_nb.__version__ == PROJECT["version"]
