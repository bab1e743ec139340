"""Turn the arguments of `distill` into a `Task` and into the content of run.json."""

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
from ..arguments import Network, as_dataset, as_network, as_network_or_run
from ..compiling import should_compile
from ..config import FORMAT, RunConfig, make_config
from ..data import Dataset
from ..data.dataset import file_fingerprints
from ..messages import one_line
from ..methods import Method, make, resolve_settings
from ..methods.base import require_method
from ..models import Classifier, Preprocessed, SimKDNetwork, WrappedClassifier, match_input
from ..models.preprocessing import MAX_SHIFT
from ..provenance import code_fingerprint, describe, name_of, structure_fingerprint
from ..recipes import Recipe
from ..runs import Run
from .callbacks import Callback, describe_callback
from .task import Task


def make_task(
    student: Network, teacher: Network | None, data: Dataset | str, method: Method | nn.Module | type | str,
    recipe: Recipe, seed: int, val: float,
) -> Task:  # fmt: skip
    """Create the task of a training.

    Parameters
    ----------
    student, teacher, data, method, recipe, seed, val
        As in `distill`.

    Returns
    -------
    Task

    Raises
    ------
    TypeError, ValueError
        As in `distill`.
    """
    method = as_method(method)
    trained = None if teacher is None else as_network_or_run("teacher", teacher)
    teacher_run, network = (trained, trained.model()) if isinstance(trained, Run) else (None, trained)
    data = as_dataset(data)
    student = as_network("student", student, data, seed)
    data = data.with_validation(val) if val else data
    pair = network.name if network else None, student.name
    method, settings = resolve_settings(method, recipe.method_settings(), {"views": data.default_views}, pair)
    if not method.uses_teacher:
        teacher_run = network = None
    elif network:
        if network.trained_on:
            network.trained_on.check_classes(data, "teacher")
        network = match_input(network, data, "teacher", MAX_SHIFT)
    return Task(student, network, data, method, recipe.for_network(student.name), seed, settings, teacher_run)


def as_method(method: Any) -> nn.Module:
    """Return a method as an object. If a name or a class is given, create the object without arguments.

    Parameters
    ----------
    method : nn.Module, type or str

    Returns
    -------
    nn.Module

    Raises
    ------
    TypeError
        If it is not a method, or if a setting of the class has no default.
    ValueError
        If there is no method with this name.
    """
    created: nn.Module = make(method) if isinstance(method, str) else method
    if isinstance(method, type) and issubclass(method, nn.Module):
        try:
            created = method()
        except TypeError as error:
            name = method.__name__
            raise TypeError(f"method must be an object: write {name}(...), not {name} ({one_line(error)})") from None
    require_method(created)
    return created


def make_run_config(
    task: Task, fabric: Fabric, precision: str, *, exact: bool, compile: bool | str, callbacks: Sequence[Callback],
    out: str | Path | None,
) -> RunConfig:  # fmt: skip
    """Return the content of run.json for a training that is about to start.

    Parameters
    ----------
    task : Task
        After `Task.bind`.
    fabric : Fabric
    precision : str
        Precision of the student.
    exact : bool
        Whether the teacher runs in float32, and not in a faster form, see `FrozenTeacher`.
    compile : bool or "auto"
        As in `distill`.
    callbacks : sequence of Callback
        The callbacks that run.json records.
    out : path, optional
        The run folder.

    Returns
    -------
    RunConfig
    """
    method, recipe, data = task.method, task.recipe, task.data
    network_inputs = recipe.epochs * len(data.train) * method.views  # of the whole training
    device = hardware.describe(fabric.device)
    method_settings = {
        name: {**setting, "value": describe(setting["value"])} for name, setting in task.method_settings.items()
    }
    settings = {
        "format": FORMAT,
        "status": "running",
        "method": {
            "name": type(method).__name__,
            "title": method.title,
            "views": method.views,
            "settings": method_settings,
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
        "hardware": device if fabric.world_size == 1 else f"{fabric.world_size} × {device}",
        "ranks": fabric.world_size,
        "versions": _versions(task),
        "callbacks": [describe_callback(callback) for callback in callbacks],
        "compile": should_compile(
            compile, task.student, network_inputs, data.train.shape, fabric.device, precision, method.needs_maps
        ),
    }
    return make_config(settings)


def describe_data(data: Dataset) -> dict[str, Any]:
    """Return the description of a data set for run.json.

    Parameters
    ----------
    data : Dataset

    Returns
    -------
    dict
    """
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
    """Return module and code fingerprint of a method that is not part of this package."""
    code = code_fingerprint(type(method))
    return {} if code is None else {"source": name_of(type(method)), "code": code}


def _describe_network(model: Classifier, data: Dataset) -> dict[str, Any]:
    """Return the description of a network for run.json."""
    network: Classifier | nn.Module = model  # the network without the wrappers of this package
    projector: dict[str, Any] = {}
    while isinstance(network, Preprocessed | WrappedClassifier | SimKDNetwork):
        if isinstance(network, SimKDNetwork):
            projector, network = {"projector": network.projector_settings}, network.body
        else:
            network = network.module if isinstance(network, WrappedClassifier) else network.model
    code = {"code": structure_fingerprint(network)} if code_fingerprint(type(network)) is not None else {}
    preprocessing = {"preprocessing": model.preprocessing} if isinstance(model, Preprocessed) else {}
    return {
        **code,
        **preprocessing,
        **projector,
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
    description = {
        **_describe_network(task.teacher, task.data),
        "fingerprint": runs.fingerprint(task.teacher.state_dict()),
        "exact": exact,
    }
    if task.teacher_run:
        if task.data.test is not None:
            description["test_top1"] = task.teacher_run.accuracy
        if task.teacher_run.path and out is not None:
            description["run"] = relative_path(task.teacher_run.path, Path(out))
    return description


def _versions(task: Task) -> dict[str, str]:
    packages = ["pckd_nb", "torch", "torchvision", "lightning-fabric"]
    packages += ["torchdistill"] * ("torchdistill" in sys.modules)
    packages += ["timm"] * any(str(model.name).startswith("timm:") for model in (task.student, task.teacher) if model)
    return {name: metadata.version(name) for name in packages}


def relative_path(path: Path, start: Path) -> str:
    """Return a path relative to another one, so that two run folders can be moved together.

    Parameters
    ----------
    path, start : Path

    Returns
    -------
    str
        With "/" as separator, on all systems.
    """
    return Path(os.path.relpath(path, start)).as_posix()
