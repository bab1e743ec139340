"""Packaging: pip and conda install the same packages, imports are fast, and modules import only from lower floors."""

import ast
import gc
import importlib
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
MAIN_PACKAGES = {"torch", "torchvision", "jupyterlab", "matplotlib", "seaborn", "scikit-learn", "ipywidgets"}


def parsed(file: Path) -> ast.Module:
    """Parse a file without garbage collection: with it, ast.parse of Python 3.11 can fail with a recursion error."""
    gc.disable()
    try:
        return ast.parse(file.read_text())
    finally:
        gc.enable()


def requirements(lines) -> dict[str, str]:
    """Return the version range of each package."""
    return {(parts := re.match(r"([A-Za-z0-9_-]+)(.*)", line).groups())[0]: parts[1] for line in lines}


def test_conda_and_pip_install_the_same_packages():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    lines = [line for line in conda if isinstance(line, str) and line != "pip"]
    lines += [line for line in next(part for part in conda if isinstance(part, dict))["pip"] if line != "-e ."]
    found = requirements(lines)
    assert found.pop("python") == PROJECT["requires-python"]
    assert found == requirements(PROJECT["dependencies"])
    assert MAIN_PACKAGES <= found.keys()


def test_all_imported_packages_are_declared():
    names = {"sklearn": "scikit-learn", "PIL": "pillow", "lightning_fabric": "lightning-fabric", "zmq": "pyzmq"}
    names |= {"openTSNE": "opentsne", "typer_injector": "typer-injector", "pydantic_core": "pydantic"}
    names |= {"dask_jobqueue": "dask-jobqueue"}
    imported = set()
    for file in (ROOT / "pckd_nb").rglob("*.py"):
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.split(".")[0])
    foreign = {names.get(name, name) for name in imported - set(sys.stdlib_module_names) - {"pckd_nb"}}
    extras = {name for lines in PROJECT["optional-dependencies"].values() for name in requirements(lines)}
    optional = {"timm", "torchdistill", "cleanlab", "distributed", "dask-jobqueue"}
    assert foreign - requirements(PROJECT["dependencies"]).keys() == optional <= extras


# Floor by floor, from the bottom: a module may import from its own floor and from those below.
FLOORS = [
    {
        "losses",
        "preview",
        "collapse",
        "measures",
        "tensor_checks",
        "files",
        "hardware",
        "validation",
        "html",
        "paths",
        "short_help",
        "deprecation",
        "messages",
    },
    {"progress", "faults", "launcher", "plugins", "provenance"},
    {"views", "catalogue", "downloads", "config"},
    {"methods", "models", "data", "recipes"},
    {"runs", "resuming", "ranks", "arguments", "evaluation", "leaderboard"},
    {"recording", "checkpoints", "transfer"},
    {"compiling"},
    {"training", "analysis"},
    {"figures", "experiments", "course", "notebooks"},
    {"pages"},
    {"cli", "demo", "doctor", "widgets", "__main__", "__init__"},
]


def test_modules_import_only_from_their_own_floor_or_below():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    for file in (ROOT / "pckd_nb").rglob("*.py"):
        *packages, stem = file.relative_to(ROOT / "pckd_nb").with_suffix("").parts
        own = floor[packages[0] if packages else stem]
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.Import):
                ours = [alias.name.split(".") for alias in node.names if re.match(r"pckd_nb\b", alias.name)]
                for name in (parts[1] if len(parts) > 1 else "__init__" for parts in ours):
                    assert floor[name] <= own, f"{file.name} imports {name} from a higher floor"
            # with as many dots as folders, an import stays in its own subpackage; with one more, it leaves it
            outward = isinstance(node, ast.ImportFrom) and node.level == len(packages) + 1
            if outward or isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pckd_nb"):
                module = (node.module or "").removeprefix("pckd_nb").strip(".")
                below = [module.split(".")[0]] if module else [alias.name for alias in node.names]
                for name in below:
                    # a name that is not a module comes from pckd_nb/__init__.py, which is on the top floor
                    imported_floor = floor.get(name, floor["__init__"])
                    assert imported_floor <= own, f"{file.name} imports {name} from a higher floor"


def test_modules_with_equations_import_only_torch():
    for name in ("losses", "preview", "tensor_checks"):
        tree = parsed(ROOT / "pckd_nb" / f"{name}.py")
        modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert {module.split(".")[0] for module in modules} <= {
            "torch",
            "collections",
            "numbers",
            "tensor_checks",
            "deprecation",
            "messages",
        }


def test_importing_the_package_loads_no_plotting_or_notebook_packages():
    heavy = ["matplotlib.pyplot", "seaborn", "sklearn", "nbconvert", "IPython", "torchdistill"]
    code = f"import sys, pckd_nb; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_exist():
    import pckd_nb

    for name in pckd_nb.__all__:
        assert getattr(pckd_nb, name) is not None
    assert {*pckd_nb.__all__, "__version__"} <= set(dir(pckd_nb))
    for name in ("nonsense", "_nonsense", "__main__"):
        with pytest.raises(AttributeError, match=name):
            getattr(pckd_nb, name)
        assert not hasattr(pckd_nb, name)
    assert pckd_nb.__version__ == PROJECT["version"]


def test_type_checkers_see_all_public_names():
    """The `if TYPE_CHECKING` block, `__all__` and `__getattr__` have the same names."""
    import pckd_nb

    block = next(node for node in parsed(ROOT / "pckd_nb" / "__init__.py").body if isinstance(node, ast.If))
    imported = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    modules = {alias.name for node in imported if node.module is None for alias in node.names}
    names = {alias.name: node.module for node in imported if node.module for alias in node.names}
    assert modules | names.keys() == set(pckd_nb.__all__) and len(pckd_nb.__all__) == len(set(pckd_nb.__all__))
    assert names == pckd_nb._MODULE_OF
    for name, module in names.items():
        assert getattr(pckd_nb, name) is getattr(importlib.import_module(f"pckd_nb.{module}"), name)


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


IMPORT_IN_ORDER = """
import sys
for first in ("transfer_table", "evaluate", "losses"):
    for name in [name for name in sys.modules if name.split(".")[0] == "pckd_nb"]:
        del sys.modules[name]
    import pckd_nb as p
    getattr(p, first)
    from pckd_nb.transfer import transfer
    import pckd_nb.transfer
    print(first, p.transfer is transfer, callable(p.transfer))
"""


def test_transfer_is_a_function_in_any_import_order():
    expected = [f"{first} True True" for first in ("transfer_table", "evaluate", "losses")]
    assert run_python(IMPORT_IN_ORDER).splitlines() == expected


def test_every_module_is_an_attribute_of_the_package():
    modules = sorted(path.stem for path in (ROOT / "pckd_nb").glob("[a-z]*.py"))
    code = f"import pckd_nb; print([name for name in {modules} if not hasattr(pckd_nb, name)])"
    assert run_python(code) == "[]"


@pytest.mark.parametrize(
    ("uses", "without"),
    [
        ("pckd_nb", ["torch", "numpy", "pandas"]),
        ("pckd_nb.PCKD, pckd_nb.load_dataset, pckd_nb.create_model", ["lightning_fabric", "torchvision", "pandas"]),
        ("pckd_nb.load_run, pckd_nb.evaluate, pckd_nb.predict", ["lightning_fabric", "torchvision", "matplotlib"]),
        ("pckd_nb.figures, pckd_nb.widgets", ["lightning_fabric", "torch._dynamo"]),
    ],
)
def test_slow_packages_are_imported_only_when_needed(uses, without):
    assert (
        run_python(f"import sys, pckd_nb; {uses}; print([name for name in {without} if name in sys.modules])") == "[]"
    )
