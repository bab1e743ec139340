"""The task of a training and what run.json says of it, both made of the arguments of `distill`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from torch import nn

from .. import hardware, runs
from ..arguments import Network, as_dataset, as_network, as_trained
from ..compiling import compiles
from ..config import FORMAT, RunConfig, make_config
from ..data import Dataset
from ..data.dataset import file_fingerprints
from ..downloads import one_line
from ..methods import Method, make, resolve
from ..methods.base import require_method
from ..models import Classifier, Preprocessed, WrappedClassifier, match_input
from ..models.preprocessing import MAX_SHIFT
from ..provenance import code_fingerprint, describe, name_of, structure_fingerprint
from ..recipes import Recipe
from ..runs import Run
from .callbacks import Callback, describe_callback
from .task import Task


def make_task(
    student: Network, teacher: Network | None, data: Dataset | str, method: Method | nn.Module | type[nn.Module] | str,
    recipe: Recipe, seed: int, val: float,
) -> Task:  # fmt: skip
    """Return the task of these arguments of `distill`. Raises TypeError or ValueError as `distill` does."""
    method = as_method(method)
    found = None if teacher is None else as_trained("teacher", teacher)
    run, network = (found, found.model()) if isinstance(found, Run) else (None, found)
    data = as_dataset(data)
    student = as_network("student", student, data, seed)
    data = data.with_validation(val) if val else data
    method, settings = resolve(method, recipe.method_settings(), {"views": data.default_views})
    if not method.uses_teacher:
        run = network = None
    elif network:
        if network.trained_on:
            network.trained_on.check_classes(data, "teacher")
        network = match_input(network, data, "teacher", MAX_SHIFT)
    return Task(student, network, data, method, recipe.for_network(student.name), seed, settings, run)


def as_method(given: Any) -> nn.Module:
    """Return a method, which is made with its defaults if its name or class is given.

    Raises TypeError if it is not a method, or if its class has settings without a default.
    """
    method: nn.Module = make(given) if isinstance(given, str) else given
    if isinstance(given, type) and issubclass(given, nn.Module):
        try:
            method = given()
        except TypeError as error:
            name = given.__name__
            raise TypeError(f"method must be an object: write {name}(...), not {name} ({one_line(error)})") from None
    require_method(method)
    return method


def make_run_config(
    task: Task, fabric: Fabric, precision: str, *, exact: bool, compile: bool | str, callbacks: Sequence[Callback],
    out: str | Path | None,
) -> RunConfig:  # fmt: skip
    """Return what run.json says of a training that is about to begin.

    Parameters
    ----------
    task : Task
        After `Task.bind`.
    fabric : Fabric
    precision : str
        Of the student.
    exact : bool
        Whether the teacher computes as it is, in float32.
    compile : bool or "auto"
        As in `distill`.
    callbacks : sequence of Callback
        Those of the caller.
    out : path, optional
        The run folder.
    """
    method, recipe, data = task.method, task.recipe, task.data
    rows = recipe.epochs * len(data.train) * method.views
    settings = {name: {**about, "value": describe(about["value"])} for name, about in task.method_settings.items()}
    about = {
        "format": FORMAT,
        "status": "running",
        "method": {
            "name": type(method).__name__,
            "title": method.title,
            "views": method.views,
            "settings": settings,
            "left_out": dict(method.left_out),
            **_source(method),
        },
        "model": {
            **_describe_network(task.student, data),
            "start": runs.fingerprint(task.student.state_dict()),
        },
        "teacher": _describe_teacher(task, exact, out),
        "data": describe_data(data),
        "recipe": recipe.settings(),
        "seed": task.seed,
        "precision": precision,
        "hardware": f"{fabric.world_size} × " * (fabric.world_size > 1) + hardware.describe(fabric.device),
        "ranks": fabric.world_size,
        "versions": _versions(task),
        "callbacks": [describe_callback(callback) for callback in callbacks],
        "compile": compiles(compile, task.student, rows, data.train.shape, fabric.device, precision, method.needs_maps),
    }
    return make_config(about)


def describe_data(data: Dataset) -> dict[str, Any]:
    """Return what run.json says of a data set."""
    return {
        "name": data.name,
        "options": data.options,
        "fingerprint": data.fingerprint,
        "train_images": len(data.train),
        **{f"{name}_images": len(getattr(data, name)) for name in data.held_out},
        "image_size": list(data.size),
        "mean": list(data.mean),
        "std": list(data.std),
        "normalisation": data.normalisation,
        "classes": list(data.classes),
        "groups": {name: list(groups) for name, groups in data.groups.items()},
        **({"files": files} if (files := file_fingerprints(data)) else {}),
    }


def _source(method: Method) -> dict[str, str]:
    """Where a method that is not this package's comes from, and a fingerprint of its code."""
    code = code_fingerprint(type(method))
    return {} if code is None else {"source": name_of(type(method)), "code": code}


def _describe_network(model: Classifier, data: Dataset) -> dict[str, Any]:
    inner: Classifier | nn.Module = model
    while isinstance(inner, Preprocessed | WrappedClassifier):
        inner = inner.module if isinstance(inner, WrappedClassifier) else inner.model
    own = {"code": structure_fingerprint(inner)} if code_fingerprint(type(inner)) is not None else {}
    seen = {"preprocessing": model.preprocessing} if isinstance(model, Preprocessed) else {}
    return {
        **own,
        **seen,
        "name": model.name,
        "num_classes": model.num_classes,
        "in_channels": data.channels,
        "feature_width": model.feature_width,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights_from": model.weights_from,
    }


def _describe_teacher(task: Task, exact: bool, out: str | Path | None) -> dict[str, Any] | None:
    if task.teacher is None:
        return None
    about = {
        **_describe_network(task.teacher, task.data),
        "fingerprint": runs.fingerprint(task.teacher.state_dict()),
        "exact": exact,
    }
    if task.teacher_run:
        about["test_top1"] = task.teacher_run.accuracy
        if task.teacher_run.path and out is not None:
            about["run"] = relative_path(task.teacher_run.path, Path(out))
    return about


def _versions(task: Task) -> dict[str, str]:
    packages = ["pckd_nb", "torch", "torchvision", "lightning-fabric"]
    packages += ["torchdistill"] * ("torchdistill" in sys.modules)
    packages += ["timm"] * any(str(model.name).startswith("timm:") for model in (task.student, task.teacher) if model)
    return {name: metadata.version(name) for name in packages}


def relative_path(path: Path, start: Path) -> str:
    """Return `path` as seen from `start`, so that two run folders can move together."""
    return Path(os.path.relpath(path, start)).as_posix()
