"""Understand, run and re-examine PCKD: Preview-based Category Contrastive Learning for Knowledge Distillation.

import pckd_nb as pckd

data    = pckd.load_dataset("shapes100")
teacher = pckd.create_model("resnet20", data, seed=0)
student = pckd.create_model("resnet8", data, seed=0)
pckd.fit(teacher, data)
run     = pckd.distill(student, teacher, data, pckd.PCKD())
run.history
"""

from importlib import import_module
from importlib.metadata import version
from types import ModuleType

from . import losses, methods, models, preview, runs, views
from .checkpoints import load_checkpoint
from .datasets import Dataset, load_dataset
from .evaluation import evaluate, predict
from .methods import KD, PCKD, Supervised
from .models import Output, as_classifier, create_model
from .recipes import Recipe, get_recipe
from .runs import Run, load_run
from .training import distill, fit
from .transfer import transfer, transfer_table

__version__ = version("pckd_nb")
__all__ = [
    "KD", "PCKD", "Dataset", "Output", "Recipe", "Run", "Supervised", "analysis", "as_classifier", "course",
    "create_model", "distill", "evaluate", "experiments", "figures", "fit", "get_recipe", "load_checkpoint",
    "load_dataset", "load_run", "losses", "methods", "models", "predict", "preview", "runs", "transfer",
    "transfer_table", "views", "widgets",
]  # fmt: skip


def __getattr__(name: str) -> ModuleType:
    """Import what needs matplotlib, seaborn or scikit-learn only when it is first used."""
    if name in ("analysis", "course", "experiments", "figures", "widgets"):
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
