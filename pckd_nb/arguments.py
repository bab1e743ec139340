"""What callers give for a network, a run or a data set: the object, or where it is or what it is called."""

import os
from pathlib import Path
from typing import TypeAlias

from torch import nn

from .catalogue import NETWORKS, check_network
from .data import Dataset, load_dataset
from .models import Classifier, as_classifier, create_model
from .paths import user_path
from .runs import Run, load_run

Network: TypeAlias = Classifier | Run | nn.Module | str | Path  # a Classifier, or what one can be made of


def as_dataset(given: object) -> Dataset:
    """Return a data set, which is loaded if its name is given. Raises TypeError for anything else."""
    if isinstance(given, str):
        return load_dataset(given)
    if not isinstance(given, Dataset):
        hint = "Dataset.from_torch(train, test) makes one of a torch Dataset"
        raise TypeError(f"data must be a Dataset or the name of one, got {type(given).__name__}: {hint}")
    return given


def as_run(given: object) -> Run:
    """Return a run, which is read if its folder is given. Raises TypeError for anything else."""
    if isinstance(given, str | Path):
        return load_run(user_path(given, "run"))
    if not isinstance(given, Run):
        raise TypeError(f"run must be a Run or the folder of one, got {type(given).__name__}")
    return given


def as_trained(argument: str, given: object) -> Classifier | Run:
    """Return a network that a caller gave, or the run that has it.

    Parameters
    ----------
    argument : str
        The name of the argument. Errors mention it.
    given : Classifier, Run, nn.Module, str or path
        A module is wrapped by `as_classifier`. A string or path is the folder of a run.

    Returns
    -------
    Classifier or Run

    Raises
    ------
    TypeError
        If `given` is not a network, a run or a path. A class is not a network.
    ValueError
        If a module has no clear last layer, or if a string or path leads to weights alone or is a network's name.
    FileNotFoundError
        If there is no such folder.
    """
    if isinstance(given, Classifier | Run):
        return given
    if isinstance(given, nn.Module):
        return as_classifier(given)
    if not isinstance(given, str | Path):
        kind, name = type(given).__name__, getattr(given, "__name__", "")
        hint = f"write {name}(...), not {name}" if name else "create_model(name, data) makes a network"
        raise TypeError(f"{argument} must be a network, a Run or the folder of one, got {kind}: {hint}")
    path = user_path(given, argument)
    if "://" in str(given) or (path.exists() and not (path / "run.json").is_file()):
        how = f"load_checkpoint(create_model(NAME, data), '{given}')"
        raise ValueError(f"{argument} '{given}' is not a run folder: for a file of weights write {how}")
    if path.exists() or isinstance(given, Path) or os.sep in given:
        return load_run(path)
    check_network(given)
    how = f"fit trains one, load_checkpoint(create_model('{given}', data), PATH) loads weights"
    raise ValueError(f"{argument} '{given}' names a network without weights: {how}")


def as_network(argument: str, given: object, data: Dataset | None = None, seed: int | None = None) -> Classifier:
    """Return a network that a caller gave.

    Parameters
    ----------
    argument, given
        As in `as_trained`.
    data : Dataset, optional
        If it is given, a string may also be the name of a network, which is then made for it. A folder of this name
        has to be written as a path, "./resnet8".
    seed : int, optional
        Seed of the weights of a network that is made.

    Returns
    -------
    Classifier

    Raises
    ------
    TypeError, ValueError, FileNotFoundError
        As `as_trained`, `create_model` and `Run.model`.
    """
    if data is not None and isinstance(given, str) and os.sep not in given:
        if given in NETWORKS or not Path(given).exists():
            return create_model(given, data, seed=seed)
    found = as_trained(argument, given)
    return found.model() if isinstance(found, Run) else found
