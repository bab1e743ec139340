"""Understand, run and re-examine PCKD: Preview-based Category Contrastive Learning for Knowledge Distillation.

import pckd_nb as pckd

data    = pckd.load_dataset("shapes100")
teacher = pckd.create_model("resnet20", data, seed=0)
student = pckd.create_model("resnet8", data, seed=0)
pckd.fit(teacher, data)
run     = pckd.distill(student, teacher, data, pckd.PCKD())
run.history
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import hardware

hardware.prepare()  # before torch is loaded

if TYPE_CHECKING:
    from . import analysis, course, data, experiments, figures, losses, methods, models, preview, runs, views, widgets
    from .checkpoints import load_checkpoint
    from .data import Dataset, load_dataset
    from .evaluation import evaluate, predict
    from .methods import KD, PCKD, Supervised
    from .models import Output, as_classifier, create_model, with_preprocessing
    from .recipes import Recipe, get_recipe
    from .runs import Run, load_run
    from .training import Callback, EarlyStopping, distill, fit
    from .transfer import transfer, transfer_table

    __version__: str

__all__ = [
    "KD", "PCKD", "Callback", "Dataset", "EarlyStopping", "Output", "Recipe", "Run", "Supervised", "analysis",
    "as_classifier", "course", "create_model", "data", "distill", "evaluate", "experiments", "figures", "fit",
    "get_recipe", "load_checkpoint", "load_dataset", "load_run", "losses", "methods", "models", "predict", "preview",
    "runs", "transfer", "transfer_table", "views", "widgets", "with_preprocessing",
]  # fmt: skip

# module → the names of it that are names of the package, too
_NAMES = {
    "checkpoints": ("load_checkpoint",),
    "data": ("Dataset", "load_dataset"),
    "evaluation": ("evaluate", "predict"),
    "methods": ("KD", "PCKD", "Supervised"),
    "models": ("Output", "as_classifier", "create_model", "with_preprocessing"),
    "recipes": ("Recipe", "get_recipe"),
    "runs": ("Run", "load_run"),
    "training": ("Callback", "EarlyStopping", "distill", "fit"),
    "transfer": ("transfer", "transfer_table"),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a module of the package, or what one of them holds, when it is first used: torch alone takes seconds."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("pckd_nb")
    elif name in _MODULE_OF:
        value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    else:
        value = _submodule(name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _submodule(name: str) -> ModuleType:
    """The module of this name. Raises AttributeError if there is none."""
    full = f"{__name__}.{name}"
    try:
        if not name.startswith("_"):
            return import_module(full)
    except ModuleNotFoundError as error:
        if error.name != full:
            raise
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


class _Package(ModuleType):
    """Keeps the function `transfer` from being hidden by the module of that name, which Python binds on its import."""

    def __setattr__(self, name: str, value: Any) -> None:
        hides = name == "transfer" and isinstance(value, ModuleType)
        super().__setattr__(name, value.transfer if hides else value)


sys.modules[__name__].__class__ = _Package
