"""Understand, run and check PCKD: Preview-based Category Contrastive Learning for Knowledge Distillation.

A trained network, the teacher, helps to train a smaller one, the student. `pckd.PCKD`, `pckd.KD` and other methods
define how. `pckd.fit` trains a teacher, `pckd.distill` trains a student, and `pckd.load_run` loads a saved run. To see
a first result in a terminal, run `pckd-nb demo`.

References
----------
Ding et al., Preview-based Category Contrastive Learning for Knowledge Distillation, IEEE TCSVT 2025, arXiv 2410.14143.

Examples
--------
>>> import pckd_nb as pckd
>>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
>>> teacher = pckd.create_model("resnet14", data, seed=0)
>>> student = pckd.create_model("resnet8", data, seed=0)
>>> recipe = pckd.get_recipe("classroom", epochs=1)
>>> teacher_run = pckd.fit(teacher, data, recipe, progress=False)
>>> run = pckd.distill(student, teacher, data, pckd.PCKD(), recipe, progress=False)
>>> run.title, len(run.history)
('PCKD resnet8', 1)
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import hardware

hardware.limit_openmp_spinning()  # before torch is loaded

if TYPE_CHECKING:
    from . import (
        analysis,
        course,
        data,
        experiments,
        figures,
        leaderboard,
        losses,
        measures,
        methods,
        models,
        pages,
        preview,
        runs,
        views,
        widgets,
    )
    from .checkpoints import load_checkpoint
    from .data import Dataset, load_dataset
    from .evaluation import evaluate, predict
    from .leaderboard import load_published
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
    "get_recipe", "leaderboard", "load_checkpoint", "load_dataset", "load_published", "load_run", "losses", "measures",
    "methods", "models", "pages", "predict", "preview", "runs", "transfer", "transfer_table", "views", "widgets",
    "with_preprocessing",
]  # fmt: skip

# module → its functions and classes that are also available as pckd.NAME
_NAMES_IN_MODULE = {
    "checkpoints": ("load_checkpoint",),
    "data": ("Dataset", "load_dataset"),
    "evaluation": ("evaluate", "predict"),
    "leaderboard": ("load_published",),
    "methods": ("KD", "PCKD", "Supervised"),
    "models": ("Output", "as_classifier", "create_model", "with_preprocessing"),
    "recipes": ("Recipe", "get_recipe"),
    "runs": ("Run", "load_run"),
    "training": ("Callback", "EarlyStopping", "distill", "fit"),
    "transfer": ("transfer", "transfer_table"),
}
_MODULE_OF = {name: module for module, names in _NAMES_IN_MODULE.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a module or a name of the package when it is first used, because the import of torch takes seconds."""
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
    """Import the module of this name, or raise AttributeError."""
    full_name = f"{__name__}.{name}"
    try:
        if not name.startswith("_"):
            return import_module(full_name)
    except ModuleNotFoundError as error:
        if error.name != full_name:
            raise
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


class _Package(ModuleType):
    """Makes `pckd.transfer` the function, not the module of the same name that Python would store there on import."""

    def __setattr__(self, name: str, value: Any) -> None:
        is_module = name == "transfer" and isinstance(value, ModuleType)
        super().__setattr__(name, value.transfer if is_module else value)


sys.modules[__name__].__class__ = _Package
