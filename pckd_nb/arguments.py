"""Accept a network, a run or a data set as an argument: the object itself, its folder or its name."""

import os
from pathlib import Path
from typing import TypeAlias

from torch import nn

from .catalogue import NETWORKS, check_network
from .data import Dataset, load_dataset
from .models import Classifier, as_classifier, create_model
from .paths import user_path
from .runs import Run, load_run

Network: TypeAlias = Classifier | Run | nn.Module | str | Path  # everything that `as_network` accepts


def as_dataset(given: object) -> Dataset:
    """Return a data set. It is loaded if its name is given.

    Parameters
    ----------
    given : Dataset or str

    Returns
    -------
    Dataset

    Raises
    ------
    TypeError
        If `given` is neither a data set nor a string.
    """
    if isinstance(given, str):
        return load_dataset(given)
    if not isinstance(given, Dataset):
        hint = "use Dataset.from_torch(train, test) for a torch Dataset"
        raise TypeError(f"data must be a Dataset or the name of one, got {type(given).__name__}: {hint}")
    return given


def as_run(given: object) -> Run:
    """Return a run. It is loaded if its folder is given.

    Parameters
    ----------
    given : Run, str or Path

    Returns
    -------
    Run

    Raises
    ------
    TypeError
        If `given` is neither a run nor a path.
    """
    if isinstance(given, str | Path):
        return load_run(user_path(given, "run"))
    if not isinstance(given, Run):
        raise TypeError(
            f"run must be a Run or the folder of one, got {type(given).__name__}: load_run(FOLDER) loads one"
        )
    return given


def as_network_or_run(argument: str, given: object) -> Classifier | Run:
    """Return a network or a run. A run is loaded if its folder is given.

    A string is always a folder here: the name of a network is an error, because such a network is not trained.

    Parameters
    ----------
    argument : str
        Name of the argument in an error message.
    given : Classifier, Run, nn.Module, str or Path
        `as_classifier` wraps an nn.Module. A string or Path is the folder of a run.

    Returns
    -------
    Classifier or Run

    Raises
    ------
    TypeError
        If `given` is not a network, a run or a path. A class is not a network.
    ValueError
        If it is not clear which layer of a module is the last one, if the path is not a run folder, or if the string is
        the name of a network.
    FileNotFoundError
        If the folder does not exist.
    """
    if isinstance(given, Classifier | Run):
        return given
    if isinstance(given, nn.Module):
        return as_classifier(given)
    if not isinstance(given, str | Path):
        kind, name = type(given).__name__, getattr(given, "__name__", "")
        hint = f"write {name}(...), not {name}" if name else "create_model(NAME, data) makes a network"
        raise TypeError(f"{argument} must be a network, a Run or the folder of one, got {kind}: {hint}")
    path = user_path(given, argument)
    if "://" in str(given) or (path.exists() and not (path / "run.json").is_file()):
        hint = f"for a file of weights write load_checkpoint(create_model(NAME, data), '{given}')"
        raise ValueError(f"{argument} '{given}' is not a run folder: {hint}")
    if path.exists() or isinstance(given, Path) or os.sep in given:
        return load_run(path)
    check_network(given)  # raises ValueError for an unknown name
    hint = f"train it with fit, or load weights with load_checkpoint(create_model('{given}', data), PATH)"
    raise ValueError(f"{argument} '{given}' is the name of a network that is not trained: {hint}")


def as_network(argument: str, given: object, data: Dataset | None = None, seed: int | None = None) -> Classifier:
    """Return a network.

    Parameters
    ----------
    argument, given
        As in `as_network_or_run`.
    data : Dataset, optional
        With `data`, a string can also be the name of a network. Then this network is created for `data`. If a folder
        has the same name as a network, write "./resnet8" for the folder.
    seed : int, optional
        Seed of the weights of a network that is created.

    Returns
    -------
    Classifier

    Raises
    ------
    TypeError, ValueError, FileNotFoundError
        If `as_network_or_run`, `create_model` or `Run.model` raises them.
    """
    if data is not None and isinstance(given, str) and os.sep not in given:
        if given in NETWORKS or not Path(given).exists():
            return create_model(given, data, seed=seed)
    found = as_network_or_run(argument, given)
    return found.model() if isinstance(found, Run) else found
